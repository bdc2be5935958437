"""A run folder from config to metrics: prepare data, train, save, calibrate, evaluate."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from demr.annotations import Annotation, read_annotations_with_report
from demr.calibration import Calibration, check_counts
from demr.config import DataConfig, TrainConfig, load_config
from demr.dataset import MomentDataset, check_splits, check_videos
from demr.domain import describe_domain
from demr.encoders import Encoder, get_encoder
from demr.encoders.remembered import RememberedQueries
from demr.encoders.stored import StoredText, open_text
from demr.errors import AnnotationError, ConfigError, ModelError
from demr.evaluation import (
    apply_calibration,
    error_bins,
    fit_calibration,
    is_scored,
    load_calibration,
    measure,
    prediction_lines,
    run_model,
    write_json,
)
from demr.features import FeaturePack, feature_statistics
from demr.figures import error_figure
from demr.files import atomic_path
from demr.model import DemrModel
from demr.noise import FeatureDeviation, TrainingNoise
from demr.pretrained import APPENDED_DIMS, Pretrained, load_pretrained, save_pretrained
from demr.shapes.dataset import build_dataset
from demr.training import make_masking, train_stages

console = Console(stderr=True, soft_wrap=True)
_FOLDER_VARIABLE = "DEMR_RUN_FOLDER"


@dataclass(frozen=True)
class RunData:
    """The data a config names, opened."""

    config: DataConfig
    pack: FeaturePack
    encoder: Encoder

    def read(self, path: Path) -> list[Annotation]:
        """Annotations of one split, with features for every video.

        Raises:
            AnnotationError: If the split is empty or damaged.
            FeatureError: If a video has no features.
        """
        source = self.config.root / path
        annotations, report = read_annotations_with_report(source)
        console.print(f"{source}: {report.summary()}", highlight=False)
        check_videos(annotations, self.pack, source)
        return annotations

    def train_and_val(self) -> tuple[list[Annotation], list[Annotation]]:
        """Queries to train on and to choose by.

        Raises:
            AnnotationError: If a split is empty or damaged.
            ConfigError: If ``data.val_share`` leaves one of them without a moment.
            FeatureError: If a video has no features.
        """
        train = self._read_annotated(self.config.train)
        if self.config.val_share:
            return hold_out(train, self.config.val_share, "data.val_share")
        return train, self._read_annotated(self.config.val)

    def val(self) -> list[Annotation]:
        """Queries to choose by; training queries are read only where these are held out of them."""
        if self.config.val_share:
            return self.train_and_val()[1]
        return self._read_annotated(self.config.val)

    def _read_annotated(self, path: Path) -> list[Annotation]:
        """As :meth:`read`, without queries of which it is not known where their moment is."""
        annotations = self.read(path)
        known = [annotation for annotation in annotations if annotation.windows_s is not None]
        if not any(annotation.windows_s for annotation in known):
            raise AnnotationError(
                str(self.config.root / path),
                expected="queries with relevant_windows, to learn from and to choose by",
                got=f"{len(annotations)} queries, none with windows",
                remedy="use another split; this one can only be answered",
            )
        if len(known) < len(annotations):
            console.print(f"{len(annotations) - len(known)} queries without windows left out")
        return known

    def dataset(self, annotations: list[Annotation], *, training: bool = False) -> MomentDataset:
        """Annotations with their features; of long videos one stretch at a time for training."""
        encoder = self.encoder
        if isinstance(encoder, StoredText):
            encoder = encoder.about(
                {annotation.query: annotation.qid for annotation in annotations}
            )
        max_clips = self.config.max_clips if training else None
        return MomentDataset(annotations, self.pack, encoder, max_clips=max_clips)


def open_data(config: DataConfig, *, render: bool = False) -> RunData:
    """Open what a config names.

    Args:
        config: The data section of a config.
        render: Render the embedded world first, if the config asks for it and it is not there.

    Raises:
        ConfigError: If the data folder is missing and not to be rendered.
        FeatureError: If its features are missing or damaged.
    """
    if render and config.shapes is not None:
        prepare_shapes(config)
    elif not config.root.is_dir():
        raise ConfigError(
            str(config.root),
            expected="the run's data folder, data.root of its config",
            got=f"none seen from {Path.cwd()}",
            remedy="run this in the folder that training was started in, or train first",
        )
    pack = FeaturePack(config.root / config.features)
    if config.text is None:
        return RunData(config, pack, RememberedQueries(get_encoder(config.encoder)))
    return RunData(config, pack, open_text(config.root / config.text, pack.identity))


def prepare_shapes(config: DataConfig) -> None:
    """Render and encode the embedded world into ``config.root``, unless it is there."""
    shapes = config.shapes
    if shapes is None:
        return
    # Without work even an empty bar would print a line.
    splits = (config.train, config.val, *config.tests.values())
    idle = all((config.root / split).exists() for split in splits)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=idle) as bar:
        tasks: dict[str, Any] = {}

        def report(split: str, done: int, total: int) -> None:
            if split not in tasks:
                tasks[split] = bar.add_task(f"rendering {split}", total=total)
            bar.update(tasks[split], completed=done)

        build_dataset(
            config.root,
            {"train": shapes.train, "val": shapes.val, "iid": shapes.iid, "ood": shapes.ood},
            seed=shapes.seed,
            workers=shapes.workers,
            progress=report,
        )


def train_run(config: TrainConfig, run: Path, *, resume: bool = False) -> Path:
    """Train, save, calibrate and evaluate; everything ends up in ``run``.

    Args:
        config: What to do.
        run: New folder; with ``resume`` the folder of a run that was cut short.
        resume: Go on from the last finished epoch.

    Returns:
        The run folder.

    Raises:
        AnnotationError: If a split is empty or damaged, or two have other content under a qid.
        ConfigError: If the folder exists (without ``resume``) or is another run's (with it).
        FeatureError: If a video has no features, or they are damaged.
        InputError: If the validation split is too small to calibrate on.
    """
    _check_folder(config, run, resume)
    data = open_data(config.data, render=True)
    # Read the test splits now: a typo in their path must not cost a night of training.
    shown, val = data.train_and_val()
    splits = {"val": val}
    splits |= {name: data.read(path) for name, path in config.data.tests.items()}
    for note in check_splits({"train": shown, **splits}, data.pack):
        console.print(note, highlight=False)
    labels = [annotation.windows_s for annotation in val if is_scored(annotation)]
    check_counts(sum(map(bool, labels)), labels.count(()), "validation split")
    share = config.retrieval.refit_share if config.retrieval.refit_epochs else 0.0
    shown, kept = hold_out(shown, share, "retrieval.refit_share")
    # Only foreground has residuals to learn from.
    kept = [annotation for annotation in kept if annotation.windows_s]
    train = data.dataset(shown, training=True)
    refit = data.dataset(kept, training=True) if kept else None
    validation = data.dataset(_first(splits["val"], config.retrieval.validate_queries))
    masking = make_masking(config, train, data.encoder)
    noise = None
    stage = config.retrieval
    if stage.video_noise or stage.text_noise:
        noise = TrainingNoise(
            FeatureDeviation.of(train, data.pack),
            stage.video_noise,
            stage.text_noise,
            stage.noise_level,
            config.seed,
        )
    # Only now: a typo in the config must leave nothing behind.
    _claim(config, run, resume)
    lightning.seed_everything(config.seed, verbose=False)
    architecture = config.model.model_dump()
    identity = data.encoder.identity
    model = DemrModel(identity.video_dim + APPENDED_DIMS, identity.text_dim, **architecture)
    if config.data.standardize:
        vids = sorted({annotation.vid for annotation in train.annotations})
        mean, deviation = feature_statistics(data.pack[vid] for vid in vids)
        model.set_feature_statistics(torch.from_numpy(mean), torch.from_numpy(deviation))
    model = train_stages(config, run, model, train, validation, masking, refit, noise)
    if is_main_process():
        # A word that only ever stood in queries without a moment was never shown to mean anything.
        words = {
            word
            for query, annotation in zip(train.queries, train.annotations, strict=True)
            if annotation.windows_s
            for word in query.words
        }
        seen, held_out = (
            [data.pack[vid].features for vid in sorted({annotation.vid for annotation in part})]
            for part in ([*train.annotations, *kept], splits["val"])
        )
        domain = describe_domain(seen, held_out)
        save_pretrained(
            run,
            Pretrained(
                model,
                config.name,
                identity,
                architecture,
                frozenset(words),
                domain,
                train.longest,
            ),
        )
        calibrate_run(run, data, splits["val"])
        evaluate_run(run, data, splits)
    return run


def hold_out(
    annotations: list[Annotation], share: float, setting: str
) -> tuple[list[Annotation], list[Annotation]]:
    """Split off the queries of every so many-th video, spread evenly over the sorted names.

    Args:
        annotations: Queries of one split.
        share: Of the videos; 0 holds none out, anything above at least one.
        setting: The config's name of the share, for errors.

    Returns:
        What is left, and the queries of the held-out videos.

    Raises:
        ConfigError: If either part would have no query whose moment is in the video.
    """
    if not share:
        return annotations, []
    vids = sorted({annotation.vid for annotation in annotations})
    count = max(round(share * len(vids)), 1)
    held = {vids[i] for i in np.linspace(0, len(vids) - 1, count).round().astype(int)}
    left = [annotation for annotation in annotations if annotation.vid not in held]
    kept = [annotation for annotation in annotations if annotation.vid in held]
    if not all(any(a.windows_s for a in part) for part in (left, kept)):
        raise ConfigError(
            setting,
            expected="queries with moments on both sides of the split",
            got=f"{share:g} of {len(vids)} videos",
            remedy="choose another share, or 0 to hold none out",
        )
    return left, kept


def _first(annotations: list[Annotation], count: int) -> list[Annotation]:
    """An even sample of ``count`` annotations; all if 0."""
    if not count or count >= len(annotations):
        return annotations
    return [annotations[i] for i in np.linspace(0, len(annotations) - 1, count).astype(int)]


def _check_folder(config: TrainConfig, run: Path, resume: bool) -> None:
    path = run / "config.yaml"
    if not is_main_process():
        return
    if resume:
        if not path.exists():
            raise ConfigError(
                str(run),
                expected="a run to resume",
                got="a folder without config.yaml",
                remedy="start it without --resume",
            )
        if load_config(path) != config:
            raise ConfigError(
                str(path),
                expected="the config this run was started with",
                got="another one",
                remedy="resume with the same config and --set, or start a new run",
            )
        return
    if run.exists() and not (run.is_dir() and not any(run.iterdir())):
        raise _taken(run)


def _claim(config: TrainConfig, run: Path, resume: bool) -> None:
    if resume or not is_main_process():
        return
    run.mkdir(parents=True, exist_ok=True)
    path = run / "config.yaml"
    try:
        # "x": of two runs that begin at the same moment, one gets the folder.
        with path.open("x", encoding="utf-8") as stream:
            stream.write(config.to_yaml())
    except FileExistsError as error:
        raise _taken(run) from error
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _taken(run: Path) -> ConfigError:
    return ConfigError(
        str(run),
        expected="a new folder for the run",
        got="an existing one" if run.is_dir() else "a file",
        remedy="choose another --out, or --resume this one",
    )


def is_main_process() -> bool:
    """Whether this is the process that writes; false in the others of a parallel training."""
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK")
    return all(int(os.environ.get(rank, "0")) == 0 for rank in ranks)


def default_run_folder(name: str) -> Path:
    """``runs/NAME``, with a number if that is taken; the same in all processes of a training.

    The main process decides and leaves its choice in the environment, which the processes that
    Lightning starts inherit.

    Raises:
        ConfigError: If the processes were started by something else, such as torchrun.
    """
    if not is_main_process():
        chosen = os.environ.get(_FOLDER_VARIABLE)
        if chosen is None:
            raise ConfigError(
                "demr train in several processes",
                expected="--out, as they cannot agree on a folder otherwise",
                got="no --out",
                remedy="name a new folder with --out",
            )
        return Path(chosen)
    folder = Path("runs") / name
    number = 2
    while folder.exists():
        folder = Path("runs") / f"{name}-{number}"
        number += 1
    os.environ[_FOLDER_VARIABLE] = str(folder)
    return folder


def load_run(run: Path) -> tuple[TrainConfig, Pretrained]:
    """Config and model of a finished run.

    Raises:
        ModelError: If the folder holds no finished run.
    """
    if not (run / "config.yaml").exists() or not (run / "model.safetensors").exists():
        raise ModelError(
            str(run),
            expected="a run folder with config.yaml and model.safetensors",
            got="an unfinished run" if (run / "config.yaml").exists() else "no run",
            remedy="finish it with demr train --resume, or name another folder",
        )
    return load_config(run / "config.yaml"), load_pretrained(run)


def calibrate_run(
    run: Path,
    data: RunData | None = None,
    annotations: list[Annotation] | None = None,
) -> Calibration:
    """Fit ``calibration.json`` on the validation split, or on annotations of one's own.

    Without absent queries the presence calibration that is there stays, and a line says so.

    Raises:
        InputError: If there is too little to calibrate on.
        ModelError: If there are no absent queries, and the calibration that is there cannot be
            read: what it holds of presence would be lost.
    """
    config, pretrained = load_run(run)
    data = open_data(config.data) if data is None else data
    annotations = data.val() if annotations is None else annotations
    # As in evaluate_run: intervals are promised for moments, and a vague query has no single one.
    annotations = [annotation for annotation in annotations if is_scored(annotation)]
    path = run / "calibration.json"
    former, note = None, ""
    if all(annotation.windows_s != () for annotation in annotations):
        former = _former_calibration(path)
        kept = "the one there is kept" if former and former.presence else "search will say so"
        note = f"no absent queries, so presence cannot be calibrated: {kept}"
    raw = run_model(pretrained.model, data.dataset(annotations), max_clips=pretrained.max_clips)
    calibration = fit_calibration(
        raw,
        annotations,
        ranking=config.calibration.ranking,
        disagreement=config.calibration.disagreement,
        seed=config.seed,
        former=former,
    )
    calibration.save(path)
    if note:
        console.print(note)
    return calibration


def _former_calibration(path: Path) -> Calibration | None:
    if not path.exists():
        return None
    try:
        return load_calibration(path)
    except ModelError as error:
        raise ModelError(
            str(path),
            expected="a calibration to keep presence of, as these labels have no absent ones",
            got=error.got,
            remedy="add absent queries to the labels, or remove the file",
        ) from error


def evaluate_run(
    run: Path, data: RunData | None = None, splits: Mapping[str, list[Annotation]] | None = None
) -> dict[str, dict[str, float]]:
    """Measure a run on its validation and test splits.

    Writes ``metrics.json``, ``predictions.jsonl`` (of all splits, in order), ``error_bins.json``
    and ``uncertainty.png``, its figure.

    Returns:
        Split -> metric -> value; where there are splits called iid and ood, also their ``gap``.
    """
    config, pretrained = load_run(run)
    data = open_data(config.data) if data is None else data
    if splits is None:
        splits = {"val": data.val()}
        splits |= {name: data.read(path) for name, path in config.data.tests.items()}
    calibration = load_calibration(run / "calibration.json")
    level = config.calibration.interval_level
    metrics: dict[str, dict[str, float]] = {}
    bins: dict[str, dict[str, list[float]]] = {}
    lines: list[str] = []
    for name, annotations in splits.items():
        raw = run_model(pretrained.model, data.dataset(annotations), max_clips=pretrained.max_clips)
        # Vague queries have no single moment; what a model makes of them is shown, not scored.
        scored = [(r, a) for r, a in zip(raw, annotations, strict=True) if is_scored(a)]
        predictions = apply_calibration([r for r, _ in scored], calibration)
        queries = [a for _, a in scored]
        metrics[name] = measure(predictions, queries, calibration, level=level)
        bins[name] = error_bins(predictions, queries)
        lines += prediction_lines(predictions, queries, calibration, level)
    if {"iid", "ood"} <= metrics.keys():
        metrics["gap"] = {
            key: metrics["iid"][key] - metrics["ood"][key]
            for key in ("R1@0.3", "R1@0.5", "R1@0.7", "mIoU")
        }
    write_json(run / "error_bins.json", bins)
    error_figure({name: [part] for name, part in bins.items()}, run / "uncertainty.png")
    write_json(run / "metrics.json", metrics)
    with atomic_path(run / "predictions.jsonl") as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return metrics

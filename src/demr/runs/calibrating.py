"""Calibrate a model: on a run's validation split, or on labels of one's own for any videos."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from demr.annotations.annotations import Annotation
from demr.answers.calibration import Calibration
from demr.answers.domain import describe_domain
from demr.answers.fitting import fit_calibration, load_calibration
from demr.answers.pretrained import Pretrained, find_model, load_pretrained
from demr.encoders.cached_queries import CachedQueries
from demr.encoders.frames import encode_noting_damage
from demr.errors import FeatureError, InputError, ModelError
from demr.extraction.videos import find_videos
from demr.features.pack import FeaturePack, FeaturePackWriter
from demr.machine.devices import resolve_device
from demr.machine.files import atomic_folder, temporary_folder
from demr.runs.config import CalibrationConfig, DataConfig
from demr.runs.data import RunData, console, open_data
from demr.runs.folder import load_run
from demr.runs.predicting import SplitPredictions, predict_split
from demr.runs.splits import check_videos

_MODEL_FILES = ("config.json", "model.safetensors", "calibration.json")
# What fewer videos look like says little of others.
LEAST_VIDEOS = 10
Tell = Callable[[str], None]


def calibrate_run(
    run: Path, annotations: Sequence[Annotation] | None = None, *, device: str = "auto"
) -> Calibration:
    """Fit ``calibration.json`` on the validation split, or on labels for the run's own features.

    Raises:
        InputError: If there is too little to calibrate on.
        ModelError: As :func:`fit_and_save` says.
    """
    config, pretrained = load_run(run)
    data = open_data(config.data)
    labels = data.val() if annotations is None else annotations
    split = predict_split(pretrained, data, labels, device=resolve_device(device))
    others = None if annotations is None else data
    return fit_and_save(
        run / "calibration.json", split, config.calibration, config.seed, others=others
    )


def calibrate_model(
    source: str | Path,
    annotations: Sequence[Annotation],
    *,
    videos: Path | None = None,
    features: Path | None = None,
    out: Path | None = None,
    device: str = "auto",
    tell: Tell | None = None,
) -> tuple[Path, Calibration]:
    """Calibrate any model on labels of one's own, for any videos.

    The ranking stays the one that the model was calibrated with; a model without a calibration
    takes the one that is best on the labels.

    Args:
        source: A model folder, a Hugging Face id, or the name of a bundled model.
        annotations: Labels; a video is called by its file name without the suffix.
        videos: A video file or a folder of them; those that labels name are encoded.
        features: A feature pack instead, of the model's encoder.
        out: New model folder that takes a copy of the model with the calibration; None writes it
            into the model's own folder, which a bundled or fetched model does not have.
        device: ``auto``, ``cpu``, or an accelerator.
        tell: Called with what is being done, in words.

    Returns:
        The folder that holds the calibration, and the calibration.

    Raises:
        FeatureError: If a video is missing or its features are another encoder's.
        InputError: If there is too little to calibrate on, ``out`` is missing or taken.
        ModelError: If there is no such model, or its encoder is not here.
        VideoError: If a video cannot be decoded.
    """
    folder = find_model(source)
    _check_place(source, out)
    pretrained = load_pretrained(folder)
    calibration = folder / "calibration.json"
    former = load_calibration(calibration) if calibration.exists() else None
    settings = CalibrationConfig()
    if former is not None:
        values = {"ranking": former.ranking, "disagreement": former.disagreement}
        settings = CalibrationConfig.model_validate(values)
    with _features(pretrained, annotations, videos, features, device, tell) as data:
        check_videos(annotations, data.pack, features or videos or Path())
        if tell is not None:
            tell("predicting the labelled queries")
        split = predict_split(pretrained, data, annotations, device=resolve_device(device))
        return _write_model(folder, out, split, settings, data)


def _write_model(
    folder: Path,
    out: Path | None,
    split: SplitPredictions,
    settings: CalibrationConfig,
    data: RunData,
) -> tuple[Path, Calibration]:
    """Write the calibration into the model's folder, or with a copy of the model into a new one."""
    if out is None:
        return folder, fit_and_save(folder / "calibration.json", split, settings, others=data)
    with atomic_folder(out) as made:
        for name in _MODEL_FILES:
            if (folder / name).exists():
                shutil.copyfile(folder / name, made / name)
        fitted = fit_and_save(made / "calibration.json", split, settings, others=data)
    return out, fitted


def _check_place(source: str | Path, out: Path | None) -> None:
    if out is None and not Path(source).is_dir():
        raise InputError(
            f"calibrate {source}",
            expected="a new model folder to write to, as this model is not in one of yours",
            got="no --out",
            remedy="name it with --out, and search with --model and that folder",
        )
    if out is not None and out.exists():
        raise InputError(
            str(out),
            expected="a new folder for the calibrated model",
            got="an existing one" if out.is_dir() else "a file",
            remedy="choose another --out",
        )


def fit_and_save(
    path: Path,
    split: SplitPredictions,
    settings: CalibrationConfig,
    seed: int = 0,
    *,
    others: RunData | None = None,
) -> Calibration:
    """Fit a calibration on the predictions of labelled queries, and write it.

    Without absent queries the presence calibration that is there stays, and a line says so.

    Args:
        path: ``calibration.json`` of a model.
        split: Predictions of the labelled queries.
        settings: Which ranking.
        seed: Of the folds.
        others: Features and queries, where they are not the model's own: what the model may judge
            from now on, if there are absent queries.

    Raises:
        InputError: If there is too little to calibrate on.
        ModelError: If there are no absent queries, and the calibration that is there cannot be
            read: what it holds of presence would be lost.
    """
    former, note = None, ""
    if all(annotation.windows_s != () for annotation in split.annotations):
        former = _former_calibration(path)
        what_follows = (
            "the one there is kept" if former and former.presence else "search will say so"
        )
        note = f"no absent queries, so presence cannot be calibrated: {what_follows}"
    calibration = fit_calibration(
        split.raw,
        split.annotations,
        ranking=settings.ranking,
        disagreement=settings.disagreement,
        seed=seed,
        former=former,
    )
    if others is not None and not note:
        calibration = _knowing(calibration, split, others)
    elif former is not None:
        known = former.domain, former.known_words
        calibration = replace(calibration, domain=known[0], known_words=known[1])
    calibration.save(path)
    if note:
        console.print(note)
    return calibration


def _knowing(calibration: Calibration, split: SplitPredictions, data: RunData) -> Calibration:
    """The calibration with what its videos and present queries look like."""
    vids = sorted({annotation.vid for annotation in split.annotations})
    present = [annotation.query for annotation in split.annotations if annotation.windows_s]
    words = {word for query in data.encoder.encode_queries(present) for word in query.words}
    domain = None
    if len(vids) >= LEAST_VIDEOS:
        features = [data.pack[vid].features for vid in vids]
        # Few videos fit their own range all too closely: half of them show where its edge is.
        domain = describe_domain(features[::2], features[1::2])
    return replace(calibration, domain=domain, known_words=tuple(sorted(words)))


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


@contextmanager
def _features(
    pretrained: Pretrained,
    annotations: Sequence[Annotation],
    videos: Path | None,
    features: Path | None,
    device: str,
    tell: Tell | None,
) -> Iterator[RunData]:
    """Features of the labelled videos and the encoder of their queries, while the block lasts."""
    encoder = pretrained.load_encoder(device)
    if features is not None:
        yield RunData(DataConfig(root=features), FeaturePack(features), CachedQueries(encoder))
        return
    files = {video.vid: video.path for video in find_videos([videos or Path()]).videos}
    wanted = sorted({annotation.vid for annotation in annotations})
    missing = [vid for vid in wanted if vid not in files]
    if missing:
        raise FeatureError(
            str(videos),
            expected="a file for every labelled video",
            got=f"{len(missing)} of {len(wanted)} missing, such as {missing[0]}",
            remedy="name the folder that holds them; a video is called by its file name",
        )
    with temporary_folder(Path(tempfile.gettempdir())) as temporary:
        pack = temporary / "features"
        with FeaturePackWriter(pack, pretrained.identity) as writer:
            for number, vid in enumerate(wanted, start=1):
                if tell is not None:
                    tell(f"reading video {number} of {len(wanted)}: {files[vid].name}")
                encoded, notes = encode_noting_damage(encoder, files[vid])
                for note in notes:
                    console.print(f"{files[vid].name}: {note}", highlight=False, markup=False)
                writer.add(replace(encoded, vid=vid))
        yield RunData(DataConfig(root=pack), FeaturePack(pack), CachedQueries(encoder))

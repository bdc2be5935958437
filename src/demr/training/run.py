"""A whole training run: prepare data, train both stages, save, calibrate, evaluate."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from safetensors.torch import save_file
from torch import Tensor

from demr.annotations.annotations import Annotation
from demr.answers.calibration import check_counts
from demr.answers.domain import describe_domain
from demr.answers.pretrained import APPENDED_DIMS, Pretrained, save_pretrained
from demr.batches.dataset import MomentDataset
from demr.batches.masking import Masking, Vocabulary
from demr.batches.noise import FeatureDeviation, TrainingNoise
from demr.errors import ConfigError, ModelError
from demr.evaluation.measuring import is_scored
from demr.features.prepare import feature_statistics
from demr.machine.devices import resolve_device
from demr.machine.files import atomic_path
from demr.network.model import DemrModel
from demr.network.reconstruction import ReconstructionHead
from demr.network.weights import read_weights
from demr.runs.calibrating import fit_and_save
from demr.runs.config import TrainConfig
from demr.runs.data import RunData, console, open_data
from demr.runs.evaluating import write_evaluation
from demr.runs.folder import check_folder, claim_folder, is_main_process, locked_folder
from demr.runs.predicting import predict_split
from demr.runs.splits import check_splits, hold_out
from demr.training.stages import ReconstructionStage, RefitStage, RetrievalStage
from demr.training.trainer import disk_errors, fit_stage, read_stage, use_bf16

# Largest noise in training, in standard deviations of each feature.
_NOISE_LEVEL = 4.0


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from, opened and checked.

    Attributes:
        data: Features, and the encoder of the queries.
        train: Queries that both stages learn from.
        refit: Queries of videos that both stages leave out, for the evidential head; None refits
            on ``train``.
        validation: Queries that choose the checkpoint.
        splits: Whole splits to measure on, validation first.
    """

    data: RunData
    train: MomentDataset
    refit: MomentDataset | None
    validation: MomentDataset
    splits: Mapping[str, list[Annotation]]


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
    check_folder(config, run, resume)
    with ExitStack() as stack:
        if resume:
            stack.enter_context(locked_folder(run, "training"))
        opened = open_training_data(config)
        masking = make_masking(config, opened.train, opened.data.encoder)
        noise = _make_noise(config, opened)
        # Only now: a typo in the config must leave nothing behind.
        if not resume:
            stack.enter_context(locked_folder(run, "training"))
        claim_folder(config, run, resume)
        if is_main_process():
            number = "bfloat16" if use_bf16(config.precision) else "float32"
            console.print(f"training in {number} (precision: {config.precision})", highlight=False)
        lightning.seed_everything(config.seed, verbose=False)
        model = _new_model(config, opened)
        model = train_stages(
            config, run, model, opened.train, opened.validation, masking, opened.refit, noise
        )
        if is_main_process():
            _finish(config, run, model, opened)
    return run


def _finish(config: TrainConfig, run: Path, model: DemrModel, opened: TrainingData) -> None:
    """Save, calibrate and evaluate a trained model."""
    pretrained = _describe(config, model, opened)
    save_pretrained(run, pretrained)
    device = resolve_device()
    predicted = {
        name: predict_split(pretrained, opened.data, annotations, device=device)
        for name, annotations in opened.splits.items()
    }
    calibration = fit_and_save(
        run / "calibration.json", predicted["val"], config.calibration, config.seed
    )
    write_evaluation(run, predicted, calibration)


def open_training_data(config: TrainConfig) -> TrainingData:
    """Open and check everything that a run reads, so that none of it can fail after a night.

    Raises:
        AnnotationError: If a split is empty or damaged, or two have other content under a qid.
        ConfigError: If the data folder is missing, or a held-out share leaves no queries.
        FeatureError: If a video has no features, or they are damaged.
        InputError: If the validation split is too small to calibrate on.
    """
    data = open_data(config.data, render=True)
    shown, val = data.train_and_val()
    splits = {"val": val}
    splits |= {name: data.read(path) for name, path in config.data.tests.items()}
    for note in check_splits({"train": shown, **splits}, data.pack):
        console.print(note, highlight=False)
    queries = [*val, *data.absent_queries(val)]
    labels = [annotation.windows_s for annotation in queries if is_scored(annotation)]
    check_counts(sum(map(bool, labels)), labels.count(()), "validation split")
    share = config.retrieval.refit_share if config.retrieval.refit_epochs else 0.0
    shown, held_out = hold_out(shown, share, "retrieval.refit_share")
    # Only foreground has residuals to learn from.
    held_out = [annotation for annotation in held_out if annotation.windows_s]
    return TrainingData(
        data,
        data.dataset(shown, training=True, seed=config.seed),
        data.dataset(held_out, training=True, seed=config.seed) if held_out else None,
        data.dataset(val),
        splits,
    )


def _make_noise(config: TrainConfig, opened: TrainingData) -> TrainingNoise | None:
    shares = config.retrieval.noise
    if not any(shares.values()):
        return None
    return TrainingNoise(
        FeatureDeviation.of(opened.train, opened.data.pack),
        shares.get("video", 0.0),
        shares.get("text", 0.0),
        _NOISE_LEVEL,
        config.seed,
    )


def _new_model(config: TrainConfig, opened: TrainingData) -> DemrModel:
    """A model with fresh weights, from the random stream as it stands."""
    identity = opened.data.encoder.identity
    model = DemrModel(identity.video_dim + APPENDED_DIMS, identity.text_dim, config.model)
    # Features that no encoder has brought to unit length differ in size by orders of magnitude.
    if identity.normalization == "none":
        features = (opened.data.pack[vid] for vid in _videos_of(opened.train))
        mean, deviation = feature_statistics(features)
        model.set_feature_statistics(torch.from_numpy(mean), torch.from_numpy(deviation))
    return model


def _describe(config: TrainConfig, model: DemrModel, opened: TrainingData) -> Pretrained:
    """A trained model and what is known about its training data."""
    train, pack = opened.train, opened.data.pack
    # A word that only ever stood in queries without a moment was never shown to mean anything.
    words = {
        word
        for query, annotation in zip(train.queries, train.annotations, strict=True)
        if annotation.windows_s
        for word in query.words
    }
    seen = {*_videos_of(train), *(_videos_of(opened.refit) if opened.refit else ())}
    held_out = {annotation.vid for annotation in opened.splits["val"]}
    domain = describe_domain(
        *([pack[vid].features for vid in sorted(vids)] for vids in (seen, held_out))
    )
    return Pretrained(
        model,
        config.name,
        opened.data.encoder.identity,
        config.model,
        frozenset(words),
        domain,
        train.longest,
    )


def _videos_of(dataset: MomentDataset) -> list[str]:
    return sorted({annotation.vid for annotation in dataset.annotations})


def train_stages(
    config: TrainConfig,
    run: Path,
    model: DemrModel,
    train: MomentDataset,
    validation: MomentDataset,
    masking: Masking | None,
    refit: MomentDataset | None = None,
    noise: TrainingNoise | None = None,
) -> DemrModel:
    """Run both stages in ``run``, continuing where a killed run left off.

    Args:
        config: The run's config.
        run: Folder that takes checkpoints and logs.
        model: Freshly initialised under ``config.seed``.
        train: Training queries.
        validation: Queries that choose the checkpoint.
        masking: What stage 1 hides; None leaves stage 1 out.
        refit: Queries that the evidential head is fitted to at the end; None takes ``train``.
        noise: Augments the items of stage 2 and of the refit; None leaves them as they are.

    Returns:
        The model with the weights of the best validated epoch.
    """
    head = None
    checkpoints = run / "checkpoints"
    stage = config.reconstruction
    if stage.epochs + stage.align_epochs:
        if masking is not None:
            head = ReconstructionHead(config.model.dim, len(masking.vocabulary))
        done = checkpoints / "stage1.safetensors"
        stage1 = ReconstructionStage(model, head, config, train, stage, 1)
        stage1.masking = masking
        if not done.exists():
            epochs = stage.align_epochs + stage.epochs
            fit_stage(stage1, config, run, "stage1", epochs)
            with disk_errors(done), atomic_path(done) as path:
                save_file(_state(stage1), path)
        stage1.load_state_dict(_read_stage1(done, stage1))
    train.masking = None
    train.augment = None if noise is None else noise.augment
    stage2 = RetrievalStage(model, head, config, train, validation)
    last = config.retrieval
    best = fit_stage(stage2, config, run, "stage2", last.epochs, validates=True)
    stage2.load_state_dict(read_stage(best, stage2))
    if last.refit_epochs:
        fitted_to = train if refit is None else refit
        fitted_to.augment = train.augment
        stage3 = RefitStage(stage2.model, config, fitted_to)
        fitted = fit_stage(stage3, config, run, "refit", last.refit_epochs)
        stage3.load_state_dict(read_stage(fitted, stage3))
    return stage2.model.eval()


def _read_stage1(path: Path, stage: ReconstructionStage) -> dict[str, Tensor]:
    try:
        return read_weights(path, stage)
    except (OSError, ValueError) as error:
        raise ModelError(
            str(path),
            expected="the weights of stage 1",
            got=str(error)[:200],
            remedy=f"remove the folder {path.parent} and run --resume again: training starts anew",
        ) from error


def _state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.contiguous().cpu() for name, value in module.state_dict().items()}


def make_masking(config: TrainConfig, train: MomentDataset, encoder: Any) -> Masking | None:
    """What stage 1 hides, with the vocabulary of the training queries; None without stage 1.

    Raises:
        ConfigError: If no training query has a word of the configured kind.
    """
    stage = config.reconstruction
    if not stage.epochs:
        return None
    words = train.words_of(frozenset(stage.pos))
    if not words:
        raise ConfigError(
            "reconstruction.pos",
            expected=f"training queries with a {' or '.join(stage.pos)}",
            got="none",
            remedy="choose other parts of speech, or set reconstruction.epochs to 0",
        )
    wordless, unplaced = train.never_masked(frozenset(stage.pos))
    reasons = {
        f"{wordless} have no {' or '.join(stage.pos)}": wordless,
        f"of {unplaced} it is not known which token is which word (stored text can say so under "
        "the name tokens)": unplaced,
    }
    if (wordless or unplaced) and is_main_process():
        console.print(
            f"query reconstruction never masks {(wordless + unplaced) / len(train):.1%} of the "
            f"training queries: {', '.join(why for why, count in reasons.items() if count)}",
            highlight=False,
        )
    return Masking(
        vocabulary=Vocabulary.build(words),
        pos=frozenset(stage.pos),
        at_input=stage.masking == "input",
        encoder=encoder,
        seed=config.seed,
    )

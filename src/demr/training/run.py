"""A whole training run: prepare data, train both stages, save, calibrate, evaluate."""

from pathlib import Path
from typing import Any

import lightning
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from demr.answers.calibration import check_counts
from demr.answers.domain import describe_domain
from demr.answers.pretrained import APPENDED_DIMS, Pretrained, save_pretrained
from demr.batches.dataset import MomentDataset
from demr.batches.masking import Masking, Vocabulary
from demr.batches.noise import FeatureDeviation, TrainingNoise
from demr.errors import ConfigError
from demr.evaluation.measure import is_scored
from demr.features.prepare import feature_statistics
from demr.machine.files import atomic_path
from demr.network.model import DemrModel
from demr.network.reconstruction import ReconstructionHead
from demr.runs.calibrating import calibrate_run
from demr.runs.config import TrainConfig
from demr.runs.data import console, open_data
from demr.runs.evaluating import evaluate_run
from demr.runs.folder import check_folder, claim_folder, is_main_process
from demr.runs.splits import check_splits, hold_out, sample
from demr.training.stages import ReconstructionStage, RefitStage, RetrievalStage
from demr.training.trainer import disk_errors, fit_stage


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
    data = open_data(config.data, render=True)
    # Read the test splits now: a typo in their path must not cost a night of training.
    shown, val = data.train_and_val()
    splits = {"val": val}
    splits |= {name: data.read(path) for name, path in config.data.tests.items()}
    for note in check_splits({"train": shown, **splits}, data.pack):
        console.print(note, highlight=False)
    asked = [*val, *data.absent_queries(val)]
    labels = [annotation.windows_s for annotation in asked if is_scored(annotation)]
    check_counts(sum(map(bool, labels)), labels.count(()), "validation split")
    share = config.retrieval.refit_share if config.retrieval.refit_epochs else 0.0
    shown, kept = hold_out(shown, share, "retrieval.refit_share")
    # Only foreground has residuals to learn from.
    kept = [annotation for annotation in kept if annotation.windows_s]
    train = data.dataset(shown, training=True, seed=config.seed)
    refit = data.dataset(kept, training=True, seed=config.seed) if kept else None
    validation = data.dataset(sample(splits["val"], config.retrieval.validate_queries))
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
    claim_folder(config, run, resume)
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
            fit_stage(stage1, config, run, "stage1", epochs, validate_every=0)
            with disk_errors(done), atomic_path(done) as path:
                save_file(_state(stage1), path)
        stage1.load_state_dict(load_file(done))
    train.masking = None
    train.augment = None if noise is None else noise.augment
    stage2 = RetrievalStage(model, head, config, train, validation)
    last = config.retrieval
    best = fit_stage(stage2, config, run, "stage2", last.epochs, validate_every=last.validate_every)
    state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
    stage2.load_state_dict(state)
    if last.refit_epochs:
        fitted_to = train if refit is None else refit
        fitted_to.augment = train.augment
        stage3 = RefitStage(stage2.model, config, fitted_to)
        fitted = fit_stage(stage3, config, run, "refit", last.refit_epochs, validate_every=0)
        stage3.load_state_dict(
            torch.load(fitted, map_location="cpu", weights_only=True)["state_dict"]
        )
    return stage2.model.eval()


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
    return Masking(
        vocabulary=Vocabulary.build(words),
        pos=frozenset(stage.pos),
        words=stage.words,
        at_input=stage.masking == "input",
        encoder=encoder,
        seed=config.seed,
    )

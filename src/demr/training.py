"""Two-stage training on Lightning: reconstruct words first, then retrieve moments."""

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader

from demr.batch import Batch, Item, collate
from demr.config import ReconstructionConfig, RetrievalConfig, TrainConfig
from demr.dataset import LengthBatches, Masking, MomentDataset, sequential_batches
from demr.errors import ConfigError, ModelError
from demr.evaluation import quick_metrics
from demr.evidential import EvidentialHead
from demr.files import atomic_path
from demr.inference import predict
from demr.losses import (
    LossBreakdown,
    LossWeights,
    alignment_loss,
    evidential_sum,
    evidential_terms,
    retrieval_loss,
    saliency_loss,
)
from demr.model import DemrModel
from demr.noise import TrainingNoise
from demr.reconstruction import (
    ReconstructionHead,
    Vocabulary,
    reconstruction_accuracy,
    reconstruction_loss,
)

if TYPE_CHECKING:
    from demr.proposals import Proposals

_DROP = 0.1


class _Stage(lightning.LightningModule):
    """What both stages share: batches by seed and epoch, optimiser, learning-rate schedule."""

    def __init__(
        self,
        model: DemrModel,
        head: ReconstructionHead | None,
        config: TrainConfig,
        dataset: MomentDataset,
        stage: ReconstructionConfig | RetrievalConfig,
        number: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.config = config
        self.weights = LossWeights(**config.losses.model_dump())
        self._dataset = dataset
        self._stage = stage
        self._number = number

    def train_dataloader(self) -> DataLoader[Item]:
        """Batches of this epoch; a function of seed and epoch alone."""
        self._dataset.epoch = self.current_epoch
        batches = LengthBatches(
            self._dataset,
            self._stage.batch_size,
            together=self._stage.queries_per_video,
            limit=self._limit,
            seed=self.config.seed * 10 + self._number,
            epoch=self.current_epoch,
            rank=self.global_rank,
            world=self.trainer.world_size,
        )
        return DataLoader(self._dataset, batch_sampler=batches, collate_fn=collate)

    @property
    def _limit(self) -> int:
        """Queries of this epoch; 0 takes all."""
        return self._stage.queries_per_epoch

    def transfer_batch_to_device(
        self, batch: Batch | list[Item], device: torch.device, dataloader_idx: int
    ) -> Batch | list[Item]:
        """Move a batch; items of the validation move when they are predicted."""
        del dataloader_idx
        return batch.to(device) if isinstance(batch, Batch) else batch

    def configure_optimizers(self) -> Optimizer:
        """AdamW over what this stage trains."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        return AdamW(
            parameters, lr=self._stage.lr, weight_decay=self.config.weight_decay, fused=True
        )

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradient; Lightning's own clipping refuses a fused optimiser."""
        del optimizer
        if self.config.gradient_clip:
            torch.nn.utils.clip_grad_norm_(self.parameters(), self.config.gradient_clip)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set learning rate and random stream from the step alone, so that a resumed run repeats.

        A scheduler's state could go stale; and Lightning draws from the stream between the start
        of an epoch and its first batch, but not as often after a resume.
        """
        del batch, batch_idx
        stream = (self.config.seed * 10 + self._number) * 10**9 + self.global_step
        torch.manual_seed((stream * 4099 + self.global_rank) % 2**63)
        steps = max(int(self.trainer.num_training_batches), 1)
        rate = self._stage.lr * self._rate(self.global_step / steps)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def _rate(self, epoch: float) -> float:
        del epoch
        return 1.0


class ReconstructionStage(_Stage):
    """Stage 1: predict masked words from the fused text; ``L = L_qr + L_sal``.

    Attributes:
        masking: What to hide once the alignment is over.
    """

    masking: Masking | None = None

    def train_dataloader(self) -> DataLoader[Item]:
        """Batches of this epoch, with hidden words once the alignment is over."""
        self._dataset.masking = None if self._aligning else self.masking
        return super().train_dataloader()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step."""
        del batch_idx
        if self._aligning:
            return self._align(batch)
        output = self.model(batch)
        if self.head is None or batch.masked is None or batch.label is None:
            raise ValueError("stage 1 needs a head and a dataset with masking")
        logits = self.head(output.fused_text)
        with torch.autocast(self.device.type, enabled=False):
            reconstruction = reconstruction_loss(logits.float(), batch.label, batch.masked)
            saliency = saliency_loss(output, batch, self.weights)
        self.log_dict(
            {
                "qr/loss": reconstruction,
                "qr/saliency": saliency,
                "qr/accuracy": reconstruction_accuracy(logits, batch.label, batch.masked),
            },
            on_step=False,
            on_epoch=True,
            batch_size=len(batch),
        )
        return reconstruction + saliency

    @property
    def _aligning(self) -> bool:
        return self.current_epoch < self.config.reconstruction.align_epochs

    @property
    def _limit(self) -> int:
        return 0 if self._aligning else self._stage.queries_per_epoch

    def _align(self, batch: Batch) -> Tensor:
        embeddings = self.model.embed(batch)
        with torch.autocast(self.device.type, enabled=False):
            loss = alignment_loss(embeddings, batch, self.weights)
        self.log("qr/alignment", loss, on_step=False, on_epoch=True, batch_size=len(batch))
        return loss

    def _rate(self, epoch: float) -> float:
        stage = self.config.reconstruction
        if self._aligning:
            peak = stage.align_lr / stage.lr if stage.lr else 0.0
            return peak * rate_factor(
                epoch, warmup=0.5, total=stage.align_epochs, schedule="cosine", drop=0
            )
        return 1.0

    def on_train_epoch_end(self) -> None:
        """Print one line an epoch."""
        logged = self.trainer.callback_metrics
        if self.global_rank == 0 and self._aligning:
            _say(
                f"alignment epoch {self.current_epoch + 1}/"
                f"{self.config.reconstruction.align_epochs}"
                f"  loss {float(logged['qr/alignment']):.3f}",
                self.trainer.default_root_dir,
            )
        elif self.global_rank == 0:
            _say(
                f"stage 1 epoch {self.current_epoch + 1}/{self.trainer.max_epochs}"
                f"  qr {float(logged['qr/loss']):.3f}"
                f"  accuracy {float(logged['qr/accuracy']):.1%}"
                f"  saliency {float(logged['qr/saliency']):.3f}",
                self.trainer.default_root_dir,
            )


class RetrievalStage(_Stage):
    """Stage 2: moment retrieval with evidential regression. The stage-1 head rests, frozen."""

    def __init__(
        self,
        model: DemrModel,
        head: ReconstructionHead | None,
        config: TrainConfig,
        dataset: MomentDataset,
        validation: MomentDataset,
    ) -> None:
        if head is not None:
            head.requires_grad_(False)
        super().__init__(model, head, config, dataset, config.retrieval, 2)
        self._validation = validation
        self._collected: list[tuple[list[Proposals], list[int]]] = []
        self._scored: dict[str, float] = {}
        self._validation_batches = sequential_batches(validation, 128)

    def val_dataloader(self) -> DataLoader[Item]:
        """Validation queries, each once."""
        return DataLoader(self._validation, batch_sampler=self._validation_batches, collate_fn=list)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step."""
        del batch_idx
        output = self.model(batch)
        with torch.autocast(self.device.type, enabled=False):
            losses = retrieval_loss(output, batch, self.weights)
        values = {
            f"train/{f.name}": getattr(losses, f.name).detach() for f in fields(LossBreakdown)
        }
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch))
        return losses.total

    def validation_step(self, batch: list[Item], batch_idx: int) -> None:
        """Keep every proposal of the batch, of long videos as a search would make them."""
        said = predict(
            self.model,
            batch,
            self._validation.clip_s,
            max_clips=self._dataset.longest,
            device=self.device,
        )
        records = [prediction.proposals for prediction in said]
        self._collected.append((records, self._validation_batches[batch_idx]))

    def on_validation_epoch_end(self) -> None:
        """Score the checkpoint."""
        proposals = [p for records, _ in self._collected for p in records]
        annotations = [
            self._validation.annotations[index] for _, part in self._collected for index in part
        ]
        self._collected.clear()
        metrics = quick_metrics(proposals, annotations)
        self.log_dict({f"val/{name}": value for name, value in metrics.items()})
        self._scored = metrics

    def on_train_epoch_end(self) -> None:
        """Print one line an epoch."""
        if self.global_rank == 0:
            loss = float(self.trainer.callback_metrics["train/total"])
            _say(
                f"stage 2 epoch {self.current_epoch + 1}/{self.trainer.max_epochs}"
                f"  loss {loss:.3f}  "
                + "  ".join(f"{name} {value:.2f}" for name, value in self._scored.items()),
                self.trainer.default_root_dir,
            )
        self._scored = {}

    def _rate(self, epoch: float) -> float:
        stage = self.config.retrieval
        return rate_factor(
            epoch,
            warmup=stage.warmup_epochs,
            total=stage.epochs,
            schedule=stage.schedule,
            drop=stage.drop_epoch,
        )


class RefitStage(_Stage):
    """After stage 2: fit a fresh evidential head to the finished network, which rests.

    Not in the paper. The head of stage 2 learns from residuals that shrink all the while; it
    explains the large ones of the beginning by heavy tails (alpha near 1) and is left there when
    the learning rate ends. Fitted to the final residuals it orders errors better: docs/log.md.
    """

    def __init__(self, model: DemrModel, config: TrainConfig, dataset: MomentDataset) -> None:
        super().__init__(model, None, config, dataset, config.retrieval, 3)
        # Its own stream: the surrounding one has advanced by as much as the run was not resumed.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed * 10 + 3)
            model.evidential_head = EvidentialHead(model.dim, targets=2)
        model.requires_grad_(False)
        model.evidential_head.requires_grad_(True)

    @property
    def _limit(self) -> int:
        return 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step of the evidential loss alone."""
        del batch_idx
        self.model.eval()
        output = self.model(batch)
        with torch.autocast(self.device.type, enabled=False):
            nll, regularizer = evidential_terms(output, batch, self.weights)
        self.log_dict(
            {"refit/nll": nll, "refit/regularizer": regularizer},
            on_step=False,
            on_epoch=True,
            batch_size=len(batch),
        )
        return evidential_sum(nll, regularizer, self.weights)

    def on_train_epoch_end(self) -> None:
        """Print one line an epoch."""
        if self.global_rank == 0:
            logged = self.trainer.callback_metrics
            _say(
                f"refit epoch {self.current_epoch + 1}/{self.trainer.max_epochs}"
                f"  nll {float(logged['refit/nll']):.3f}"
                f"  regularizer {float(logged['refit/regularizer']):.3f}",
                self.trainer.default_root_dir,
            )

    def _rate(self, epoch: float) -> float:
        stage = self.config.retrieval
        peak = stage.refit_lr / stage.lr if stage.lr else 0.0
        return peak * rate_factor(
            epoch, warmup=0, total=stage.refit_epochs, schedule="cosine", drop=0
        )


def rate_factor(epoch: float, *, warmup: float, total: int, schedule: str, drop: int) -> float:
    """Learning rate relative to its peak after ``epoch`` epochs (a fraction counts).

    >>> recipe = dict(warmup=2, total=10, schedule="step", drop=8)
    >>> [round(rate_factor(epoch, **recipe), 3) for epoch in (0, 1, 5, 9)]
    [0.01, 0.5, 1.0, 0.1]
    """
    factor = 1.0
    if warmup > 0 and epoch < warmup:
        # Not from zero: the first step would be thrown away.
        factor = max(epoch / warmup, 0.01)
    if schedule == "cosine":
        rest = min(max((epoch - warmup) / max(total - warmup, 1e-9), 0.0), 1.0)
        return factor * 0.5 * (1 + math.cos(math.pi * rest))
    return factor * (_DROP if epoch >= drop else 1.0)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written beside their target and moved into place."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write atomically and through to the disk.

        Raises:
            ModelError: If the disk is full; the last checkpoint is still there.
        """
        del storage_options
        with (
            _disk_errors(Path(path)),
            atomic_path(Path(path)) as temporary,
            temporary.open("wb") as stream,
        ):
            torch.save(checkpoint, stream)

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read without unpickling anything but tensors and plain values."""
        del weights_only
        location = "cpu" if map_location is None else map_location
        checkpoint: dict[str, Any] = torch.load(path, map_location=location, weights_only=True)
        return checkpoint


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch covers what the disk said with a complaint of its own.
        cause = error if isinstance(error, OSError) else error.__context__ or error
        raise ModelError(
            str(path),
            expected="room to save the state of training",
            got=str(cause),
            remedy="free disk space and go on with --resume; the last checkpoint is unchanged",
        ) from error


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
        noise: Disturbs the items of stage 2 and of the refit; None leaves them as they are.

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
            _fit(stage1, config, run, "stage1", epochs, validate_every=0)
            with _disk_errors(done), atomic_path(done) as path:
                save_file(_state(stage1), path)
        stage1.load_state_dict(load_file(done))
    train.masking = None
    train.disturb = None if noise is None else noise.disturb
    stage2 = RetrievalStage(model, head, config, train, validation)
    last = config.retrieval
    best = _fit(stage2, config, run, "stage2", last.epochs, validate_every=last.validate_every)
    state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
    stage2.load_state_dict(state)
    if last.refit_epochs:
        fitted_to = train if refit is None else refit
        fitted_to.disturb = train.disturb
        stage3 = RefitStage(stage2.model, config, fitted_to)
        fitted = _fit(stage3, config, run, "refit", last.refit_epochs, validate_every=0)
        stage3.load_state_dict(
            torch.load(fitted, map_location="cpu", weights_only=True)["state_dict"]
        )
    return stage2.model.eval()


def _state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.contiguous().cpu() for name, value in module.state_dict().items()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice and its own deprecations away from who trains a model."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\.")
            yield
    finally:
        log.setLevel(level)


@_quiet()
def _fit(
    stage: _Stage, config: TrainConfig, run: Path, name: str, epochs: int, *, validate_every: int
) -> Path:
    folder = run / "checkpoints" / name
    last = ModelCheckpoint(
        dirpath=folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    callbacks: list[lightning.Callback] = [
        last,
        # Standard output belongs to the results.
        RichProgressBar(refresh_rate=5, console_kwargs={"stderr": True}),
    ]
    best = last
    if validate_every:
        best = ModelCheckpoint(
            dirpath=folder,
            filename="best",
            monitor="val/quality",
            mode="max",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        # Before `last`, so that the newest `last` always knows the newest `best`.
        callbacks.insert(0, best)
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=config.devices,
        # No stage uses every head.
        strategy="auto" if config.devices == 1 else "ddp_find_unused_parameters_true",
        max_epochs=epochs,
        precision="bf16-mixed" if use_bf16(config.precision) else "32-true",
        callbacks=callbacks,
        logger=TensorBoardLogger(run, name="logs", version=name),
        plugins=[AtomicCheckpointIO()],
        check_val_every_n_epoch=validate_every or None,
        limit_val_batches=None if validate_every else 0,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        enable_model_summary=False,
        default_root_dir=run,
    )
    resume = folder / "last.ckpt"
    try:
        trainer.fit(stage, ckpt_path=resume if resume.exists() else None, weights_only=True)
    except SystemExit as stop:
        # Lightning turns Ctrl-C into a silent exit with code 1.
        if trainer.interrupted:
            raise KeyboardInterrupt from stop
        raise
    return Path(best.best_model_path or folder / "last.ckpt")


def use_bf16(precision: str) -> bool:
    """Whether to train under bfloat16 autocast; ``auto`` asks the hardware."""
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Without AMX tiles bfloat16 on a CPU is emulated and slower than float32.
    return bool(torch.cpu._is_amx_tile_supported())


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


def _say(line: str, run: str) -> None:
    Console(stderr=True).print(line, highlight=False, soft_wrap=True)
    with (Path(run) / "train.log").open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")

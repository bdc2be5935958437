"""Two-stage training on Lightning: reconstruct words first, then retrieve moments."""

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Literal

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader

from demr.annotations.annotations import Annotation
from demr.annotations.windows import window_iou
from demr.answers.inference import predict_dataset
from demr.answers.proposals import Proposals
from demr.batches.batch import Batch, Item, collate
from demr.batches.dataset import MomentDataset
from demr.batches.masking import Masking
from demr.batches.sampling import LengthBatches
from demr.errors import ModelError
from demr.evaluation.measuring import is_scored
from demr.evidential import EvidentialHead
from demr.machine.terminal import console
from demr.metrics.uncertainty import auroc
from demr.network.losses import (
    LossBreakdown,
    alignment_loss,
    anchored_geom,
    evidential_sum,
    evidential_terms,
    retrieval_loss,
    saliency_loss,
)
from demr.network.model import DemrModel
from demr.network.reconstruction import (
    ReconstructionHead,
    reconstruction_accuracy,
    reconstruction_loss,
)
from demr.network.weights import check_finite
from demr.runs.config import ReconstructionConfig, RetrievalConfig, TrainConfig

_DROP = 0.1
_WEIGHT_DECAY = 1e-4
# Peak rates of what the paper does not have. The alignment has no fusion to upset, and the refit
# one layer to move: both bear more than the stages do.
_ALIGN_LR = 2e-3
_REFIT_LR = 3e-3


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
        self.weights = config.losses
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
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move a batch."""
        del dataloader_idx
        return batch.to(device)

    def configure_optimizers(self) -> Optimizer:
        """AdamW over what this stage trains."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        return AdamW(parameters, lr=self._stage.lr, weight_decay=_WEIGHT_DECAY, fused=True)

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

    def _check_finite(self, loss: str) -> None:
        """Stop a training that has diverged, before its weights replace the last checkpoint.

        Args:
            loss: Under which the epoch's mean loss was logged.

        Raises:
            ModelError: If the loss or a weight is not finite.
        """
        if torch.isfinite(self.trainer.callback_metrics[loss]):
            try:
                check_finite(dict(self.named_parameters()))
            except ValueError as error:
                got = str(error)
            else:
                return
        else:
            got = f"a loss of {float(self.trainer.callback_metrics[loss])}"
        name = "reconstruction" if self._number == 1 else "retrieval"
        raise ModelError(
            f"training, {loss.partition('/')[0]} epoch {self.current_epoch + 1}",
            expected="finite losses and weights",
            got=got,
            remedy=f"start a new run with a {name}.lr below {self._stage.lr:g}",
        )


class ReconstructionStage(_Stage):
    """Stage 1: predict masked words from the fused text; ``L = L_qr + L_sal``.

    [ours] All of the saliency loss, as the paper has it: the release leaves its clip contrast out.

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
            peak = _ALIGN_LR / stage.lr if stage.lr else 0.0
            return peak * rate_factor(
                epoch, warmup=0.5, total=stage.align_epochs, schedule="cosine"
            )
        return 1.0

    def on_train_epoch_end(self) -> None:
        """Print one line an epoch.

        Raises:
            ModelError: If the training has diverged.
        """
        self._check_finite("qr/alignment" if self._aligning else "qr/loss")
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
        self.anchored = anchored_geom(config.losses)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step."""
        del batch_idx
        output = self.model(batch)
        with torch.autocast(self.device.type, enabled=False):
            losses = retrieval_loss(output, batch, self.weights, self.anchored)
        values = {
            f"train/{f.name}": getattr(losses, f.name).detach() for f in fields(LossBreakdown)
        }
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch))
        return losses.total

    def _validate(self) -> dict[str, float]:
        """Score the network as it stands; what chooses the checkpoint."""
        raw = predict_dataset(
            self.model, self._validation, device=self.device, max_clips=self._dataset.longest
        )
        self.model.train()
        metrics = quick_metrics([r.proposals for r in raw], self._validation.annotations)
        self.log_dict({f"val/{name}": value for name, value in metrics.items()})
        return metrics

    def on_train_epoch_end(self) -> None:
        """Validate, and print one line.

        Raises:
            ModelError: If the training has diverged.
        """
        self._check_finite("train/total")
        metrics = self._validate()
        if self.global_rank == 0:
            loss = float(self.trainer.callback_metrics["train/total"])
            _say(
                f"stage 2 epoch {self.current_epoch + 1}/{self.trainer.max_epochs}"
                f"  loss {loss:.3f}  "
                + "  ".join(f"{name} {value:.2f}" for name, value in metrics.items()),
                self.trainer.default_root_dir,
            )

    def _rate(self, epoch: float) -> float:
        stage = self.config.retrieval
        return rate_factor(
            epoch,
            warmup=stage.warmup_epochs,
            total=stage.epochs,
            schedule=stage.schedule,
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
        self.anchored = anchored_geom(config.losses)

    @property
    def _limit(self) -> int:
        return 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step of the evidential loss alone."""
        del batch_idx
        self.model.eval()
        output = self.model(batch)
        with torch.autocast(self.device.type, enabled=False):
            nll, regularizer = evidential_terms(output, batch, self.weights, self.anchored)
        self.log_dict(
            {"refit/nll": nll, "refit/regularizer": regularizer},
            on_step=False,
            on_epoch=True,
            batch_size=len(batch),
        )
        return evidential_sum(nll, regularizer, self.weights)

    def on_train_epoch_end(self) -> None:
        """Print one line an epoch.

        Raises:
            ModelError: If the training has diverged.
        """
        self._check_finite("refit/nll")
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
        peak = _REFIT_LR / stage.lr if stage.lr else 0.0
        return peak * rate_factor(epoch, warmup=0, total=stage.refit_epochs, schedule="cosine")


def rate_factor(
    epoch: float, *, warmup: float, total: int, schedule: int | Literal["cosine"]
) -> float:
    """Learning rate relative to its peak after ``epoch`` epochs (a fraction counts).

    >>> recipe = dict(warmup=2, total=10, schedule=8)
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
    return factor * (_DROP if epoch >= schedule else 1.0)


def _say(line: str, run: str) -> None:
    console(stderr=True, soft_wrap=True).print(line)
    with (Path(run) / "train.log").open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")


def quick_metrics(
    proposals: Sequence[Proposals], annotations: Sequence[Annotation]
) -> dict[str, float]:
    """Cheap numbers for choosing a checkpoint: recall, mean IoU, presence, and their mean."""
    present_score, absent_score, overlap = [], [], []
    for record, annotation in zip(proposals, annotations, strict=True):
        if annotation.windows_s is None or not is_scored(annotation):
            continue
        best = int(record.foreground.argmax())
        if not annotation.windows_s:
            absent_score.append(record.foreground[best])
            continue
        present_score.append(record.foreground[best])
        window = record.window_s[best][None]
        overlap.append(window_iou(window, np.asarray(annotation.windows_s)).max())
    iou = np.asarray(overlap)
    metrics = {
        "R1@0.5": float((iou >= 0.5).mean() * 100) if len(iou) else 0.0,
        "R1@0.7": float((iou >= 0.7).mean() * 100) if len(iou) else 0.0,
        "mIoU": float(iou.mean() * 100) if len(iou) else 0.0,
    }
    if absent_score and present_score:
        metrics["AUROC"] = float(auroc(present_score, absent_score)) * 100
    # Finding moments and knowing when there is none count the same.
    metrics["quality"] = float(np.mean([metrics["mIoU"], metrics.get("AUROC", metrics["mIoU"])]))
    return metrics

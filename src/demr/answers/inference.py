"""A model over videos of any length: stretch by stretch, then one record for the whole video."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demr.answers.proposals import Proposals
from demr.batches.batch import Item, collate
from demr.batches.dataset import MomentDataset
from demr.batches.sampling import sequential_batches
from demr.batches.stretches import MAX_CLIPS, Stretch, cut_item, cut_video, plan_stretches
from demr.errors import ModelError
from demr.network.model import DemrModel, ModelOutput

FloatArray = NDArray[np.float64]
# Called with the share that is done, 0 to 1.
Progress = Callable[[float], None]
# Attention holds a number a head for every pair of clips: so many pairs are read at once, and so
# many items at most.
_CLIP_PAIRS = 1 << 20
_ITEMS = 128


@dataclass(frozen=True)
class RawPrediction:
    """Everything a model predicts for one query, before ranking and calibration.

    Attributes:
        proposals: One for every clip.
        saliency: Cosine of clip and query, ``(L,)``.
        parts: Predictions for each stretch of a long video, as for a video by itself;
            empty if the video was read at once.
        part_of_clip: Which of them a clip's proposal comes from, ``(L,)``; None if there are none.
    """

    proposals: Proposals
    saliency: FloatArray
    parts: tuple["RawPrediction", ...] = ()
    part_of_clip: NDArray[np.int64] | None = None


def predict(
    model: DemrModel,
    items: Sequence[Item],
    clip_s: float,
    *,
    max_clips: int = MAX_CLIPS,
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> list[RawPrediction]:
    """Ask a model about items whose videos may be of any length.

    Videos of at most ``max_clips`` go through the model together, whole. Longer ones are cut into
    stretches (:mod:`demr.batches.stretches`); time and memory then grow with the length, not its
    square.

    Args:
        model: In evaluation mode, on ``device``.
        items: Queries against whole videos; those of one video share its tensor. What they know
            of targets is not looked at.
        clip_s: Length of a clip in seconds.
        max_clips: Clips to read at once.
        device: Of the model.
        progress: Called after each batch.

    Returns:
        One prediction an item, in order, on whole videos throughout.
    """
    device = torch.device("cpu") if device is None else device
    short = [index for index, item in enumerate(items) if len(item.video) <= max_clips]
    batches = list(_long_batches(items, max_clips))
    total = len(short) + sum(map(len, batches))
    done = 0
    results: dict[int, RawPrediction] = {}
    parts: dict[int, list[RawPrediction]] = {}
    if short:
        predicted = _forward(model, [items[index] for index in short], device)
        results |= zip(short, predicted, strict=True)
        done += len(short)
        if progress is not None:
            progress(done / total)
    for batch in batches:
        predicted = _forward(model, _cut(items, batch, clip_s), device)
        for (index, _), part in zip(batch, predicted, strict=True):
            parts.setdefault(index, []).append(part)
        done += len(batch)
        if progress is not None:
            progress(done / total)
    for index, of_item in parts.items():
        item = items[index]
        plan = plan_stretches(len(item.video), max_clips)
        results[index] = join(of_item, plan, item.duration_s, clip_s)
    return [results[index] for index in range(len(items))]


def predict_dataset(
    model: DemrModel,
    dataset: MomentDataset,
    *,
    device: torch.device | None = None,
    batch_size: int = 128,
    max_clips: int = MAX_CLIPS,
) -> list[RawPrediction]:
    """Predict every item of a dataset, in its order, in float32.

    Args:
        model: In evaluation mode.
        dataset: Queries and features.
        device: Where to run; the model is moved there.
        batch_size: Items at once.
        max_clips: Clips to read at once; of longer videos stretches are read, as in a search.
    """
    device = torch.device("cpu") if device is None else device
    model = model.to(device).eval()
    results: dict[int, RawPrediction] = {}
    for indices in sequential_batches(dataset, batch_size):
        items = [dataset[index] for index in indices]
        predicted = predict(model, items, dataset.clip_s, max_clips=max_clips, device=device)
        results |= zip(indices, predicted, strict=True)
    return [results[index] for index in range(len(dataset))]


def join(
    parts: Sequence[RawPrediction], plan: Sequence[Stretch], duration_s: float, clip_s: float
) -> RawPrediction:
    """Make one prediction about a video of those about its stretches.

    A boundary at fraction x of a stretch lies at ``(start + x * length) / duration`` of the video:
    locations shift and shrink, ``beta``, a squared fraction, shrinks by the square of the ratio of
    durations, and ``nu`` and ``alpha``, which are counts of evidence, stay.

    Args:
        parts: One a stretch, in order.
        plan: The stretches.
        duration_s: Of the whole video.
        clip_s: Length of a clip in seconds.

    Returns:
        For every clip the proposal and the saliency of the stretch in whose core it lies.
    """
    columns: dict[str, list[FloatArray]] = {
        name: [] for name in ("window_norm", "foreground", "nu", "alpha", "beta", "score")
    }
    saliency = []
    for part, stretch in zip(parts, plan, strict=True):
        core = slice(stretch.core_start - stretch.start, stretch.core_stop - stretch.start)
        proposals_of_part = part.proposals[core]
        ratio = proposals_of_part.duration_s / duration_s
        shift = stretch.start_s(clip_s) / duration_s
        changed = {
            "window_norm": shift + proposals_of_part.window_norm * ratio,
            "beta": proposals_of_part.beta * ratio**2,
        }
        for name, column in columns.items():
            column.append(changed[name] if name in changed else getattr(proposals_of_part, name))
        saliency.append(part.saliency[core])
    counts = [stretch.core_stop - stretch.core_start for stretch in plan]
    proposals = Proposals(
        **{name: np.concatenate(column) for name, column in columns.items()},
        clip_idx=np.arange(sum(counts)),
        duration_s=duration_s,
    )
    part_of_clip = np.repeat(np.arange(len(plan)), counts)
    return RawPrediction(proposals, np.concatenate(saliency), tuple(parts), part_of_clip)


def _long_batches(items: Sequence[Item], max_clips: int) -> Iterator[list[tuple[int, Stretch]]]:
    """Pairs of item and stretch, the queries of a stretch together: they share its projection."""
    size = min(max(_CLIP_PAIRS // max_clips**2, 1), _ITEMS)
    of_video: dict[int, list[int]] = {}
    for index, item in enumerate(items):
        if len(item.video) > max_clips:
            of_video.setdefault(id(item.video), []).append(index)
    pairs = [
        (index, stretch)
        for mine in of_video.values()
        for stretch in plan_stretches(len(items[mine[0]].video), max_clips)
        for index in mine
    ]
    for low in range(0, len(pairs), size):
        yield pairs[low : low + size]


def _cut(items: Sequence[Item], batch: Sequence[tuple[int, Stretch]], clip_s: float) -> list[Item]:
    videos: dict[tuple[int, int], torch.Tensor] = {}
    cut = []
    for index, stretch in batch:
        item = items[index]
        key = id(item.video), stretch.start
        if key not in videos:
            videos[key] = cut_video(item, stretch, clip_s)
        cut.append(cut_item(item, stretch, clip_s, videos[key]))
    return cut


def _forward(model: DemrModel, items: Sequence[Item], device: torch.device) -> list[RawPrediction]:
    # Answers need no targets, and a split may hold queries without.
    batch = collate([replace(item, targets=None) for item in items])
    with torch.inference_mode():
        output = model(batch.to(device))
    records = decode(output, batch.video_mask, batch.duration_s)
    saliency = output.saliency.double().cpu().numpy()
    return [
        # A copy: a view would keep the whole padded batch alive.
        RawPrediction(record, saliency[row, : len(record)].copy())
        for row, record in enumerate(records)
    ]


def decode(output: ModelOutput, mask: Tensor, duration_s: Tensor) -> list[Proposals]:
    """Turn a batch of model outputs into one record an item, a row for each valid clip.

    Args:
        output: Model output for a batch.
        mask: True where a clip is valid, ``(B, L)``.
        duration_s: ``(B,)``.

    Raises:
        ModelError: If the model says something that is no number, about a clip that is there.
    """
    nig = output.nig
    # The excess keeps the digits of alpha - 1 that float32 loses in alpha.
    loc, logit, nu_all, excess, beta_all = (
        tensor.detach().cpu().double()
        for tensor in (nig.loc, output.foreground_logit, nig.nu, nig.excess, nig.beta)
    )
    columns: list[FloatArray] = [
        tensor.numpy() for tensor in (loc, logit.sigmoid(), nu_all, 1 + excess, beta_all)
    ]
    lengths = mask.sum(dim=1).tolist()
    records = []
    for index, length in enumerate(lengths):
        rows = [column[index, :length] for column in columns]
        if not all(np.isfinite(row).all() for row in rows):
            raise ModelError(
                "the model's predictions",
                expected="finite numbers",
                got=f"numbers that are not, for {length} clips",
                remedy="its weights have diverged: train it again with a lower learning rate",
            )
        window, foreground, nu, alpha, beta = rows
        records.append(
            Proposals(
                window,
                foreground,
                nu,
                alpha,
                beta,
                clip_idx=np.arange(length),
                score=foreground,
                duration_s=float(duration_s[index]),
            )
        )
    return records

"""Retrieval and highlight metrics, equal to the field's evaluator (Moment-DETR standalone_eval).

All values are percentages, unrounded; the field prints two decimals. Uncertainty metrics are
written in :mod:`demr.metrics.uncertainty` and offered here as well.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from demr.annotations.windows import iou as window_overlap
from demr.annotations.windows import window_iou
from demr.metrics.uncertainty import (
    auroc,
    brier,
    consistency_bins,
    crps_student_t,
    ece,
    interval_coverage,
    interval_width,
    nll_student_t,
    risk_coverage_curve,
    spearman,
    uncertainty_metrics,
)

__all__ = [
    "AP_THRESHOLDS",
    "LENGTH_RANGES_S",
    "auroc",
    "brier",
    "consistency_bins",
    "crps_student_t",
    "discounted_recall",
    "ece",
    "highlight_metrics",
    "interval_coverage",
    "interval_width",
    "iou_matrix",
    "nll_student_t",
    "retrieval_metrics",
    "risk_coverage_curve",
    "saliency_truth",
    "spearman",
    "uncertainty_metrics",
]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# Two-decimal literals: 0.5 + 3 * 0.05 is not 0.65 in binary, and ties must count as hits.
AP_THRESHOLDS: tuple[float, ...] = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
RECALL_THRESHOLDS: tuple[float, ...] = (0.3, *AP_THRESHOLDS)
RECALL_TOP: tuple[int, ...] = (1, 5)
# Lower bound excluded, upper included. The field stops "long" at 150 s, the longest video of
# QVHighlights; other data sets have longer windows, so it is open here.
LENGTH_RANGES_S: dict[str, tuple[float, float]] = {
    "short": (0.0, 10.0),
    "middle": (10.0, 30.0),
    "long": (30.0, np.inf),
}
HIGHLIGHT_LEVELS: dict[str, float] = {"Fair": 2.0, "Good": 3.0, "VeryGood": 4.0}


def iou_matrix(a: npt.ArrayLike, b: npt.ArrayLike) -> FloatArray:
    """Intersection over union of every window of ``a`` with every window of ``b``.

    Args:
        a: Windows (start, end) in seconds, ``(N, 2)``.
        b: Windows in the same unit, ``(M, 2)``.

    Returns:
        ``(N, M)``. A window without length (or reversed) overlaps nothing, itself included.

    Raises:
        ValueError: If a shape is wrong or a number is not finite.

    >>> iou_matrix([[0, 10]], [[5, 10], [20, 30]]).tolist()
    [[0.5, 0.0]]
    """
    first, _ = _pack([a], 2, "a")
    second, _ = _pack([b], 2, "b")
    return window_iou(first[0], second[0])


def retrieval_metrics(
    predictions: Sequence[npt.ArrayLike],
    truths: Sequence[npt.ArrayLike],
    *,
    max_predictions: int = 10,
    thresholds: Sequence[float] = (),
) -> dict[str, float]:
    """Recall, mean IoU and mean average precision over queries.

    Recall takes a query's predictions in the order given (the field's R1 is the first of the
    list, whatever its score); average precision takes the first ``max_predictions`` and orders
    them by score. Per query a prediction counts with its best true window.

    Args:
        predictions: Per query ``(K, 3)``: start and end in seconds, score. ``K`` may differ or
            be 0.
        truths: Per query ``(W, 2)``: start and end in seconds, in the same order of queries.
        max_predictions: How many predictions of a query count.
        thresholds: Further t of recall.

    Returns:
        Percentages ``R1@t`` and ``R5@t`` for t = 0.3, 0.5, 0.55 ... 0.95 and ``thresholds``;
        ``mIoU`` of the first prediction; ``mAP@t`` for t = 0.5 ... 0.95 and their mean ``mAP``;
        the same with a prefix ``short/``, ``middle/``, ``long/`` over true windows of that length
        alone; NaN where a length has no query. Counts: ``queries`` (with each prefix),
        ``queries_without_truth``, ``queries_without_predictions``.

        Repairs: a query without a true window (absent) is left out. A query without
        predictions is a miss (the field's script stops there, and its mAP forgets the query).
        A zero-length or reversed window overlaps nothing.

    Raises:
        ValueError: If the numbers of queries differ, a shape is wrong, or a time or score is
            not finite; the message names the query's index.

    Reference:
        Lei et al. 2021, Moment-DETR, standalone_eval. Where it splits by length, a query keeps
        only its true windows of that length, and all its predictions.
    """
    if len(predictions) != len(truths):
        raise ValueError(
            f"as many predictions as truths are needed, got {len(predictions)} and {len(truths)}"
        )
    if max_predictions < 1:
        raise ValueError(f"max_predictions must be at least 1, got {max_predictions}")
    pred, pred_valid = _pack(predictions, 3, "predictions", limit=max_predictions)
    true, true_valid = _pack(truths, 2, "truths")
    present = true_valid.any(axis=1)
    unanswered = int(np.sum(present & ~pred_valid.any(axis=1)))
    absent = int(np.sum(~present))
    kept = np.flatnonzero(present)
    pred, pred_valid = pred[kept], pred_valid[kept]
    true, true_valid = true[kept], true_valid[kept]

    # Pairs that are padding get an IoU of -1, which no threshold reaches. The field divides by
    # the hull for recall and by the union for precision, which are equal where windows overlap.
    pair_valid: BoolArray = pred_valid[:, :, None] & true_valid[:, None, :]
    p, t = pred[:, :, None, :], true[:, None, :, :]
    iou = np.where(pair_valid, window_overlap(p, t), -1.0)
    iou_given = iou[:, : max(RECALL_TOP)]
    score = np.where(pred_valid, pred[:, :, 2], -np.inf)
    by_score = np.argsort(-score, axis=1, kind="stable")
    iou = np.take_along_axis(iou, by_score[:, :, None], axis=1)

    length = true[:, :, 1] - true[:, :, 0]
    at = sorted({*RECALL_THRESHOLDS, *thresholds})
    metrics = _split_metrics(iou, iou_given, true_valid, "", at)
    for name, (low, high) in LENGTH_RANGES_S.items():
        in_range = true_valid & (length > low) & (length <= high)
        metrics |= _split_metrics(iou, iou_given, in_range, f"{name}/", at)
    metrics["queries_without_truth"] = float(absent)
    metrics["queries_without_predictions"] = float(unanswered)
    return metrics


def discounted_recall(
    predictions: Sequence[npt.ArrayLike],
    truths: Sequence[npt.ArrayLike],
    durations_s: npt.ArrayLike,
    *,
    top: Sequence[int] = RECALL_TOP,
    thresholds: Sequence[float] = (0.3, 0.5, 0.7),
) -> dict[str, float]:
    """Recall whose hits are discounted by how far the boundaries are off (dR@n,IoU@m).

    A hit counts ``(1 - |start error| / duration) * (1 - |end error| / duration)``; of several
    hits among the first n the best counts. Absent queries and queries without predictions are
    treated as in :func:`retrieval_metrics`.

    Args:
        predictions: Per query ``(K, 3)``: start, end, score, the best first.
        truths: Per query ``(W, 2)``.
        durations_s: Of each query's video, ``(Q,)``, seconds.
        top: The n.
        thresholds: The m; ties are hits.

    Returns:
        Percentages ``dR1@0.3`` ...; NaN without a query.

    Raises:
        ValueError: As :func:`retrieval_metrics`, or a duration that is not positive.

    Reference:
        Yuan et al. 2021, A Closer Look at Temporal Sentence Grounding in Videos,
        arXiv:2101.09028.
    """
    duration = np.asarray(durations_s, dtype=np.float64)
    if not len(predictions) == len(truths) == duration.size or duration.ndim != 1:
        raise ValueError(
            "predictions, truths and durations must agree in number, got "
            f"{len(predictions)}, {len(truths)} and {duration.shape}"
        )
    bad = np.flatnonzero(~(np.isfinite(duration) & (duration > 0)))
    if bad.size:
        raise ValueError(f"durations_s[{bad[0]}] must be positive, got {duration[bad[0]]}")
    pred, pred_valid = _pack(predictions, 3, "predictions", limit=max(top))
    true, true_valid = _pack(truths, 2, "truths")
    present = true_valid.any(axis=1)
    pair_valid: BoolArray = pred_valid[:, :, None] & true_valid[:, None, :]
    p, t = pred[:, :, None, :], true[:, None, :, :]
    iou = np.where(pair_valid, window_overlap(p, t), -1.0)
    # Clipped: a prediction far past the video's end must not turn two negatives into a plus.
    start, end = (
        np.clip(1.0 - np.abs(p[..., side] - t[..., side]) / duration[:, None, None], 0.0, 1.0)
        for side in (0, 1)
    )
    discount = start * end
    metrics = {}
    for n in top:
        for m in thresholds:
            gain = np.where(iou[:, :n] >= m, discount[:, :n], 0.0).max(axis=(1, 2), initial=0.0)
            metrics[f"dR{n}@{m:g}"] = _percent(gain[present])
    return metrics


def saliency_truth(
    duration_s: float,
    clip_idx: Sequence[int],
    scores: npt.ArrayLike,
    *,
    clip_s: float = 2.0,
) -> FloatArray:
    """Spread the scores of the relevant clips over all clips of a video.

    Args:
        duration_s: Of the video.
        clip_idx: Which clips were scored; an index past the last whole clip is dropped.
        scores: One row a clip, one column an annotator, ``(len(clip_idx), A)``.
        clip_s: Length of a clip.

    Returns:
        ``(L, A)``, zero where nobody scored; L counts whole clips, as the field does.

    Raises:
        ValueError: If ``scores`` has not one row a clip.

    >>> saliency_truth(6, [1], [[2, 3, 4]]).tolist()
    [[0.0, 0.0, 0.0], [2.0, 3.0, 4.0], [0.0, 0.0, 0.0]]
    """
    values = np.asarray(scores, dtype=np.float64)
    index = np.asarray(clip_idx, dtype=np.int64)
    if values.ndim != 2 or len(values) != len(index):
        raise ValueError(f"scores must be ({len(index)}, annotators), got {values.shape}")
    out = np.zeros((int(duration_s / clip_s), values.shape[1]))
    inside = (index >= 0) & (index < len(out))
    out[index[inside]] = values[inside]
    return out


def highlight_metrics(
    predictions: Sequence[npt.ArrayLike], truths: Sequence[npt.ArrayLike]
) -> dict[str, float]:
    """Mean average precision and HIT@1 of clip saliency at three grades of highlight.

    Args:
        predictions: Per query one score a clip, ``(L,)``, any scale.
        truths: Per query ``(L, A)``, scores 0 to 4 of A annotators (:func:`saliency_truth`).

    Returns:
        Percentages ``Fair/mAP``, ``Fair/HIT@1``, ``Good/..``, ``VeryGood/..`` (clips scored at
        least 2, 3, 4 are highlights); NaN without a query. The precision is averaged over
        annotators and queries; HIT@1 asks whether any annotator calls the top clip a highlight.

        Repairs, the field's: scores past the last true clip are dropped (though a top clip
        among them is a miss), missing ones are 0. A query without scores misses HIT@1.

    Raises:
        ValueError: If numbers disagree, a shape is wrong, or a score is not finite.

    Reference:
        Lei et al. 2021, Moment-DETR, standalone_eval. Of equal scores the first clip is the
        top; clips of equal score enter the precision-recall curve together.
    """
    if len(predictions) != len(truths):
        raise ValueError(
            f"as many predictions as truths are needed, got {len(predictions)} and {len(truths)}"
        )
    if not len(truths):
        return {f"{k}/{m}": float("nan") for k in HIGHLIGHT_LEVELS for m in ("mAP", "HIT@1")}
    annotators = {np.asarray(t).shape[-1] if np.ndim(t) == 2 else 0 for t in truths}
    if len(annotators) != 1 or 0 in annotators:
        raise ValueError("every truth must be (clips, annotators) with one number of annotators")
    true, valid = _pack(truths, annotators.pop(), "truths")
    columns = [np.asarray(p, dtype=np.float64) for p in predictions]
    for index, column in enumerate(columns):
        if column.ndim != 1:
            raise ValueError(f"predictions[{index}] must be one score a clip, got {column.shape}")
    packed, pred_valid = _pack([c[:, None] for c in columns], 1, "predictions")
    pred = np.where(pred_valid, packed[:, :, 0], -np.inf)

    clips = true.shape[1]
    top = pred.argmax(axis=1)
    rows = np.arange(len(true))
    answered = pred_valid.any(axis=1) & (top < valid.sum(axis=1))
    at_top = true[rows, np.minimum(top, clips - 1)].max(axis=1)

    score = np.zeros((len(true), clips))
    shared = min(clips, packed.shape[1])
    score[:, :shared] = packed[:, :shared, 0]
    score[~valid] = -np.inf
    order = np.argsort(-score, axis=1, kind="stable")
    # Ranks first: what runs along them is then done for all queries at once.
    ranked = np.ascontiguousarray(np.take_along_axis(score, order, axis=1).T)
    group_end = np.ones_like(ranked, dtype=np.bool_)
    group_end[:-1] = ranked[:-1] != ranked[1:]
    grades = true[rows, order.T]

    metrics = {}
    for name, least in HIGHLIGHT_LEVELS.items():
        precision = _clip_average_precision(grades >= least, group_end[:, :, None])
        metrics[f"{name}/mAP"] = _percent(precision)
        metrics[f"{name}/HIT@1"] = _percent(answered & (at_top >= least))
    return metrics


def _clip_average_precision(label: BoolArray, group_end: BoolArray) -> FloatArray:
    """Mean interpolated precision over the ranks where recall rises; 0 without a positive.

    Args:
        label: Best score first, ``(L, Q, A)``; padding last and False.
        group_end: True at the last clip of each run of equal scores, ``(L, Q, 1)``.

    Returns:
        ``(Q, A)``.
    """
    at_end = label.cumsum(axis=0, dtype=np.int32)
    at_end *= group_end
    envelope = at_end / np.arange(1, len(label) + 1)[:, None, None]
    for rank in range(len(envelope) - 2, -1, -1):
        np.maximum(envelope[rank], envelope[rank + 1], out=envelope[rank])
    rises = at_end > 0
    rises[1:] &= at_end[1:] > np.maximum.accumulate(at_end, axis=0)[:-1]
    envelope *= rises
    result: FloatArray = envelope.sum(axis=0) / np.maximum(rises.sum(axis=0), 1)
    return result


def _split_metrics(
    iou: FloatArray, iou_given: FloatArray, counted: BoolArray, prefix: str, at: Sequence[float]
) -> dict[str, float]:
    """Metrics over the queries that have a counted true window.

    Args:
        iou: ``(Q, K, W)``, predictions ordered by score; padding is -1.
        iou_given: ``(Q, min(K, 5), W)``, predictions as given.
        counted: True windows to use, ``(Q, W)``.
        prefix: Of the keys.
        at: Thresholds of recall.
    """
    keep = counted.any(axis=1)
    used = counted[keep]
    best = np.where(used[:, None, :], iou_given[keep], 0.0).max(axis=2, initial=0.0)
    metrics = {}
    for n in RECALL_TOP:
        reached = np.maximum(best[:, :n], 0.0).max(axis=1, initial=0.0)
        for threshold in at:
            metrics[f"{prefix}R{n}@{threshold:g}"] = _percent(reached >= threshold)
        if n == 1:
            metrics[f"{prefix}mIoU"] = _percent(reached)
    precision = _average_precision(np.where(used[:, None, :], iou[keep], -1.0), used)
    for column, threshold in enumerate(AP_THRESHOLDS):
        metrics[f"{prefix}mAP@{threshold:g}"] = _percent(precision[:, column])
    metrics[f"{prefix}mAP"] = _percent(precision)
    metrics[f"{prefix}queries"] = float(len(used))
    return metrics


def _average_precision(iou: FloatArray, counted: BoolArray) -> FloatArray:
    """Interpolated average precision of each query at each of AP_THRESHOLDS.

    In order of score each prediction takes the free true window it overlaps most, if by enough.

    Args:
        iou: ``(Q, K, W)``, -1 where there is no pair.
        counted: ``(Q, W)``.

    Returns:
        ``(Q, T)``.
    """
    queries, ranks, _ = iou.shape
    thresholds = np.asarray(AP_THRESHOLDS)
    hit = np.zeros((queries, len(thresholds), ranks), dtype=np.bool_)
    width = counted.shape[1] - counted[:, ::-1].argmax(axis=1)  # last counted window + 1
    # One window: the first prediction that reaches the threshold has it.
    rows = np.flatnonzero(width == 1)
    reached = iou[rows, None, :, 0] >= thresholds[:, None]
    hit[rows] = reached & (reached.cumsum(axis=2) == 1)
    rows = np.flatnonzero(width > 1)
    # Reversed, so that argmax takes the last of equal overlaps, as a reversed sort does.
    overlap = iou[rows, :, ::-1]
    within_reach = overlap.max(axis=2) >= thresholds[0]
    free = np.ones((len(rows), len(thresholds), overlap.shape[2]), dtype=np.bool_)
    for rank in range(ranks):
        some = np.flatnonzero(within_reach[:, rank])
        left = np.where(free[some], overlap[some, rank, None, :], -1.0)
        taken = left.max(axis=2) >= thresholds
        hit[rows[some], :, rank] = taken
        query, threshold = np.nonzero(taken)
        free[some[query], threshold, left.argmax(axis=2)[query, threshold]] = False
    # Padded ranks come last and are never hits, so they cannot raise the envelope.
    precision = hit.cumsum(axis=2, dtype=np.int32) / np.arange(1, ranks + 1)
    envelope = np.maximum.accumulate(precision[:, :, ::-1], axis=2)[:, :, ::-1]
    result: FloatArray = np.where(hit, envelope, 0.0).sum(axis=2) / counted.sum(axis=1)[:, None]
    return result


def _pack(
    items: Sequence[npt.ArrayLike], columns: int, name: str, *, limit: int | None = None
) -> tuple[FloatArray, BoolArray]:
    """Pad per-query arrays to ``(Q, longest, columns)`` and say which rows are real.

    At least one row is kept, so that maxima over rows exist. All rows are checked, those past
    ``limit`` too.
    """
    arrays = [np.asarray(item, dtype=np.float64) for item in items]
    for index, array in enumerate(arrays):
        if array.size == 0:
            arrays[index] = np.zeros((0, columns))
        elif array.ndim != 2 or array.shape[1] != columns:
            raise ValueError(f"{name}[{index}] must be (rows, {columns}), got {array.shape}")
    lengths = np.array([len(a) for a in arrays], dtype=np.int64)
    flat = np.concatenate(arrays) if arrays else np.zeros((0, columns))
    query = np.repeat(np.arange(len(arrays)), lengths)
    row = np.arange(len(flat)) - np.repeat(lengths.cumsum() - lengths, lengths)
    bad = np.flatnonzero(~np.isfinite(flat).all(axis=1))
    if bad.size:
        where = bad[0]
        raise ValueError(
            f"{name}[{query[where]}] row {row[where]} must be finite numbers, "
            f"got {flat[where].tolist()}"
        )
    if limit is not None:
        kept = row < limit
        flat, query, row = flat[kept], query[kept], row[kept]
        lengths = np.minimum(lengths, limit)
    longest = max(int(lengths.max(initial=0)), 1)
    packed = np.zeros((len(arrays), longest, columns))
    packed[query, row] = flat
    return packed, np.arange(longest) < lengths[:, None]


def _percent(values: FloatArray | BoolArray) -> float:
    return 100.0 * float(np.mean(values, dtype=np.float64)) if values.size else float("nan")

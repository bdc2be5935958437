"""Queries whose moment is not in the video: rejected or not, and the overlap of whole answers."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from demr.annotations.windows import window_iou

SET_SIZES: tuple[int, ...] = (1, 3, 5)


def rejection_f1(rejected: npt.ArrayLike, absent: npt.ArrayLike) -> float:
    """F1 of "not in this video" (``Rej-F1``), in percent.

    Precision is the share of rejected queries that are absent, recall the share of absent queries
    that are rejected.

    Args:
        rejected: Whether each query was rejected, ``(N,)``.
        absent: Whether it should have been, ``(N,)``.

    Returns:
        0..100; 0 where no absent query is rejected.

    Raises:
        ValueError: If shapes differ, nothing is given, or an entry is neither true nor false.

    Reference:
        Ding et al. 2026, Retrieving Any Relevant Moments: Benchmark and Models for Generalized
        Moment Retrieval, arXiv:2605.02623. There a query is rejected whose
        probability of being present is at most 0.4.

    >>> rejection_f1([1, 1, 0, 0], [1, 0, 1, 0])
    50.0
    """
    said, true = (_flags(x, name) for x, name in ((rejected, "rejected"), (absent, "absent")))
    if said.size != true.size:
        raise ValueError(f"one entry a query each, got {said.size} rejected, {true.size} absent")
    found, claimed = int((said & true).sum()), int(said.sum()) + int(true.sum())
    return 200.0 * found / claimed if claimed else 0.0


def generalized_miou(
    predictions: Sequence[npt.ArrayLike],
    truths: Sequence[npt.ArrayLike],
    *,
    sizes: Sequence[int] = SET_SIZES,
) -> dict[str, float]:
    """Overlap of the whole answer with the whole truth (``G-mIoU@k``), absent queries included.

    A query's overlap is 1 where answer and truth are both empty, 0 where one of them is, and else
    the sum of the matched windows' IoU over ``predicted + true - matched``. Predictions choose in
    their order, each the best true window that is left, be the IoU 0.

    Args:
        predictions: Of each query the windows that are told, the best first, ``(K, 2)`` or
            ``(K, 3)`` with scores; empty where the query is rejected. Windows that do not end after
            their start are not told.
        truths: Its true windows, ``(M, 2)``; empty where it is absent.
        sizes: How many windows count at most.

    Returns:
        ``G-mIoU@k`` for each size, in percent. Two windows for one moment halve its overlap, so
        ``G-mIoU@5`` asks to tell of no more than there is.

    Raises:
        ValueError: If there are not as many predictions as truths, or none.

    Reference:
        Ding et al. 2026, arXiv:2605.02623; details as in published code, not its text.
    """
    if len(predictions) != len(truths) or not len(truths):
        counts = f"{len(predictions)} and {len(truths)}"
        raise ValueError(f"as many predictions as truths are needed, at least one, got {counts}")
    total = np.zeros(len(sizes))
    for predicted, true in zip(predictions, truths, strict=True):
        windows = np.asarray(predicted, dtype=np.float64)
        windows = windows.reshape(-1, windows.shape[-1] if windows.size else 2)[:, :2]
        windows = windows[windows[:, 1] > windows[:, 0]][: max(sizes)]
        truth = np.asarray(true, dtype=np.float64).reshape(-1, 2)
        if not len(windows) or not len(truth):
            total += float(len(windows) == len(truth))
            continue
        matched = np.zeros(len(windows))  # IoU of the windows that found a true one to match
        overlap = window_iou(windows, truth)
        for row in range(min(len(windows), len(truth))):
            best = int(overlap[row].argmax())
            matched[row] = overlap[row, best]
            overlap[:, best] = -1.0
        for place, size in enumerate(sizes):
            count = min(size, len(windows))
            pairs = min(count, len(truth))
            total[place] += matched[:count].sum() / (count + len(truth) - pairs)
    return {
        f"G-mIoU@{size}": float(100 * value / len(truths))
        for size, value in zip(sizes, total, strict=True)
    }


def _flags(values: npt.ArrayLike, name: str) -> npt.NDArray[np.bool_]:
    flags = np.asarray(values)
    if flags.ndim != 1 or not flags.size or not np.isin(flags, (0, 1)).all():
        raise ValueError(f"{name} must be a list of true or false, at least one")
    return flags.astype(bool)

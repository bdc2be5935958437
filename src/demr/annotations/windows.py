"""Windows in time: overlap (IoU), non-maximum suppression, the true window of a predicted one."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

# A moment is right where it overlaps a true window by this much: the field's usual measure.
RIGHT_IOU = 0.5
# A moment that overlaps a better one by more says the same again.
_REPEATED_IOU = 0.3


def iou(a: FloatArray, b: FloatArray) -> FloatArray:
    """Intersection over union of windows that broadcast; 0 where they share nothing.

    Empty and reversed windows share nothing with any.

    Args:
        a: Start and end in the first two columns, ``(..., 2)`` or wider.
        b: Likewise.
    """
    start_a, end_a, start_b, end_b = a[..., 0], a[..., 1], b[..., 0], b[..., 1]
    shared = np.maximum(np.minimum(end_a, end_b) - np.maximum(start_a, start_b), 0.0)
    union = (end_a - start_a) + (end_b - start_b) - shared
    # No overlap is checked by itself: a reversed window could make the union negative.
    result: FloatArray = np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)
    return result


def window_iou(a: FloatArray, b: FloatArray) -> FloatArray:
    """IoU of every window in ``a`` with every one in ``b``, ``(N, M)``; empty windows give 0."""
    return iou(a[:, None], b[None])


def true_windows(
    windows: FloatArray, truths: Sequence[Sequence[tuple[float, float]]]
) -> FloatArray:
    """The true window of highest IoU; of several (or none overlapping) the nearest.

    Args:
        windows: One a query, ``(N, 2)``.
        truths: The true windows of each query, at least one.

    Returns:
        ``(N, 2)``.

    Raises:
        ValueError: If a query has no true window.
    """
    count = np.array([len(of_query) for of_query in truths], dtype=np.int64)
    if not count.all():
        raise ValueError(f"query {int(count.argmin())} has no true window")
    table = np.array([w for of_query in truths for w in of_query], np.float64).reshape(-1, 2)
    query = np.repeat(np.arange(len(count)), count)
    distance = np.abs(table - windows[query]).sum(axis=1)
    best_first = np.lexsort((distance, -iou(windows[query], table), query))
    result: FloatArray = table[best_first[count.cumsum() - count]]
    return result


def suppress(
    windows: FloatArray, threshold: float, limit: int, candidates: int | None = None
) -> npt.NDArray[np.int64]:
    """Greedy non-maximum suppression of windows given best first.

    Time is that of ``limit`` passes over the windows, memory that of one: a table of all pairs
    would take 15 GB for twelve hours in clips of a second.

    Args:
        windows: Start and end, ``(N, 2)``.
        threshold: A window of greater IoU with a selected one is suppressed by it.
        limit: Windows to select.
        candidates: Only so many of the best may be selected; None leaves it open.

    Returns:
        For every window the index of the selected window that suppressed it (of itself, if
        selected), or -1 if it was left over when ``limit`` windows were selected.
    """
    selected_by = np.full(len(windows), -1)
    selected = 0
    for index in range(len(windows) if candidates is None else min(candidates, len(windows))):
        if selected_by[index] >= 0:
            continue
        if selected == limit:
            break
        selected += 1
        overlap = window_iou(windows[index : index + 1], windows)[0]
        selected_by[(selected_by < 0) & (overlap > threshold)] = index
        selected_by[index] = index
    return selected_by


def distinct_rows(windows: FloatArray) -> npt.NDArray[np.int64]:
    """Rows of the windows that do not repeat a better one, given best first, ``(M,)``."""
    owner = suppress(windows, _REPEATED_IOU, len(windows))
    return np.flatnonzero(owner == np.arange(len(owner)))


def assign_truths(
    windows: FloatArray, truth: Sequence[tuple[float, float]]
) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Give each of a query's moments a true window of its own, the best moment first.

    Each moment in turn takes the free true window of highest IoU, the nearest one where none
    overlaps, until no window is left. What a further moment claims is that it is another one
    of the true windows; this says which.

    Args:
        windows: Predicted, best first, ``(N, 2)``.
        truth: True windows of the query.

    Returns:
        Rows of the moments that were given a window, and those windows, ``(M, 2)``; M is the
        smaller of the two numbers.
    """
    free = list(truth)
    given = []
    for row in range(min(len(windows), len(free))):
        taken = true_windows(windows[row : row + 1], [free])[0]
        free.remove((float(taken[0]), float(taken[1])))
        given.append(taken)
    return np.arange(len(given)), np.reshape(given, (-1, 2)).astype(np.float64)

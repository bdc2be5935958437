import numpy as np
import pytest
from numpy.typing import NDArray

from demr.annotations.windows import iou, true_windows, window_iou

CASES: list[tuple[tuple[float, float], list[tuple[float, float]], tuple[float, float]]] = [
    ((10, 20), [(0, 9), (12, 22)], (12, 22)),
    ((10, 12), [(0, 4), (15, 18)], (15, 18)),  # none overlaps: 18 s away or 11 s
    ((10, 20), [(0, 20), (10, 15)], (10, 15)),  # both overlap by half: 10 s away or 5 s
    ((10, 20), [(9, 40), (18, 21)], (9, 40)),  # 10 of 31 against 2 of 11
    ((30, 30), [(0, 5), (31, 32)], (31, 32)),  # an empty window overlaps nothing
    ((10, 20), [(40, 50)], (40, 50)),  # the only one, however far
    ((10, 20), [(5, 15), (15, 25), (2, 3)], (5, 15)),  # equal in both: the first
]


def test_true_windows() -> None:
    window = np.array([case[0] for case in CASES], float)
    found = true_windows(window, [case[1] for case in CASES])
    np.testing.assert_array_equal(found, [case[2] for case in CASES])
    for row, (_, truths, expected) in zip(window, CASES, strict=True):
        np.testing.assert_array_equal(true_windows(row[None], [truths]), [expected])
    assert true_windows(np.zeros((0, 2)), []).shape == (0, 2)


def test_a_query_without_a_true_window_is_refused() -> None:
    with pytest.raises(ValueError, match="query 1 has no true window"):
        true_windows(np.zeros((3, 2)), [[(0, 1)], [], [(1, 2)]])


def slow_iou(a: NDArray[np.float64], b: np.ndarray) -> float:
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / (a[1] - a[0] + b[1] - b[0] - shared) if shared else 0.0


def test_iou_against_the_loop() -> None:
    rng = np.random.default_rng(0)
    a, b = np.sort(rng.random((6, 2)), axis=1), np.sort(rng.random((4, 2)), axis=1)
    expected = [[slow_iou(x, y) for y in b] for x in a]
    np.testing.assert_allclose(window_iou(a, b), expected)
    np.testing.assert_allclose(iou(a[:4], b), np.diagonal(expected))


def test_empty_and_reversed_windows_overlap_nothing() -> None:
    odd = np.array([[3.0, 3.0], [8.0, 2.0], [-1.0, -1.0]])
    assert not window_iou(odd, np.array([[0.0, 10.0], [3.0, 3.0], [8.0, 2.0]])).any()
    assert window_iou(np.zeros((0, 2)), odd).shape == (0, 3)

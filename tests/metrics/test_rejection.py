import itertools

import numpy as np
import pytest

from demr.metrics import generalized_miou, rejection_f1

Window = tuple[float, float]


def test_rejection_f1_by_hand() -> None:
    # Three rejected, two of them rightly, of four absent: precision 2/3, recall 1/2.
    rejected, absent = [1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0]
    assert rejection_f1(rejected, absent) == pytest.approx(100 * 2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert rejection_f1([False, False], [True, False]) == 0
    assert rejection_f1([False], [False]) == 0
    assert rejection_f1([True, False], [True, False]) == 100
    with pytest.raises(ValueError, match="got 1 rejected, 2 absent"):
        rejection_f1([1], [1, 0])
    with pytest.raises(ValueError, match="absent must be a list of true or false"):
        rejection_f1([1, 0], [0.4, 0])


def test_generalized_miou_by_hand() -> None:
    predictions: list[list[Window]] = [
        [],  # rightly rejected: 1
        [(0, 10)],  # wrongly told: 0
        [],  # wrongly rejected: 0
        [(0, 10), (20, 30), (40, 50)],  # two of three true, IoU 1 and 0.5
        [(5, 5), (0, 10)],  # the first has no length
    ]
    truths: list[list[Window]] = [[], [], [(0, 5)], [(0, 10), (20, 40)], [(0, 20)]]
    got = generalized_miou(predictions, truths)
    one, three = 1 / (1 + 2 - 1), 1.5 / (3 + 2 - 2)
    assert got["G-mIoU@1"] == pytest.approx(100 * (1 + one + 0.5) / 5)
    assert got["G-mIoU@3"] == got["G-mIoU@5"] == pytest.approx(100 * (1 + three + 0.5) / 5)
    with pytest.raises(ValueError, match="got 1 and 2"):
        generalized_miou([[]], [[], []])


def test_generalized_miou_matches_in_order_of_the_predictions() -> None:
    # The first takes the only true window at 0.5, though the second fits better.
    got = generalized_miou([[(0, 5), (0, 10)]], [[(0, 10)]], sizes=(1, 2))
    assert got == pytest.approx({"G-mIoU@1": 50, "G-mIoU@2": 25})


def slow_overlap(predicted: list[Window], true: list[Window], size: int) -> float:
    told = [w for w in predicted if w[1] > w[0]][:size]
    if not told or not true:
        return float(not told and not true)
    left, total, pairs = list(true), 0.0, 0
    for start, end in told:
        best, best_iou = None, -1.0
        for window in left:
            shared = max(0.0, min(end, window[1]) - max(start, window[0]))
            union = (end - start) + (window[1] - window[0]) - shared
            if shared / union > best_iou:
                best, best_iou = window, shared / union
        if best is not None:
            left.remove(best)
            total, pairs = total + best_iou, pairs + 1
    return total / (len(told) + len(true) - pairs)


def test_generalized_miou_agrees_with_a_slow_loop() -> None:
    rng = np.random.default_rng(0)

    def windows(most: int) -> list[Window]:
        start = rng.uniform(0, 20, rng.integers(0, most + 1)).round(1)
        return [
            (float(s), float(s + w))
            for s, w in zip(start, rng.uniform(1, 9, len(start)), strict=True)
        ]

    pairs = [(windows(8), windows(3)) for _ in range(200)]
    predictions, truths = [p for p, _ in pairs], [t for _, t in pairs]
    got = generalized_miou(predictions, truths)
    for size in (1, 3, 5):
        slow = [slow_overlap(p, t, size) for p, t in pairs]
        assert got[f"G-mIoU@{size}"] == pytest.approx(100 * np.mean(slow))
    scored = [[(*w, 0.5) for w in p] for p in predictions]
    assert generalized_miou(scored, truths) == got
    assert list(got) == [f"G-mIoU@{k}" for k in itertools.islice((1, 3, 5), 3)]

import gzip
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from demr.metrics import retrieval as metrics

Window = tuple[float, float]
Scored = tuple[float, float, float]

NO_MATCH = -1


def slow_iou(a: Window, b: Window) -> float:
    shared = min(a[1], b[1]) - max(a[0], b[0])
    if shared <= 0:
        return 0.0
    return shared / ((a[1] - a[0]) + (b[1] - b[0]) - shared)


def slow_average_precision(pred: list[Scored], true: list[Window], threshold: float) -> float:
    ranked = sorted(pred, key=lambda p: -p[2])
    taken: set[int] = set()
    hits: list[bool] = []
    for start, end, _ in ranked:
        best, best_iou = NO_MATCH, threshold
        for j, window in enumerate(true):
            overlap = slow_iou((start, end), window)
            if j not in taken and overlap >= best_iou:
                best, best_iou = j, overlap
        hits.append(best != NO_MATCH)
        if best != NO_MATCH:
            taken.add(best)
    precision = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
    return sum(max(precision[i:]) for i, hit in enumerate(hits) if hit) / len(true)


def slow_retrieval(
    predictions: list[list[Scored]], truths: list[list[Window]], low: float, high: float
) -> dict[str, float]:
    rows: list[dict[str, float]] = []
    for pred, all_true in zip(predictions, truths, strict=True):
        true = [w for w in all_true if low < w[1] - w[0] <= high]
        if not true:
            continue
        row: dict[str, float] = {}
        for n in (1, 5):
            ious = [slow_iou(p[:2], w) for p in pred[:n] for w in true]
            best = max(ious, default=0.0)
            for t in metrics.RECALL_THRESHOLDS:
                row[f"R{n}@{t:g}"] = float(best >= t)
            if n == 1:
                row["mIoU"] = best
        for t in metrics.AP_THRESHOLDS:
            row[f"mAP@{t:g}"] = slow_average_precision(pred[:10], true, t)
        row["mAP"] = sum(row[f"mAP@{t:g}"] for t in metrics.AP_THRESHOLDS) / 10
        rows.append(row)
    if not rows:
        return {}
    return {key: 100 * sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def windows(draw: st.DrawFn) -> Window:
    # Whole and half seconds, so that ties and zero lengths are common.
    start = draw(st.integers(0, 80)) / 2
    return start, start + draw(st.integers(0, 90)) / 2


@st.composite
def query(draw: st.DrawFn) -> tuple[list[Scored], list[Window]]:
    true = [windows(draw) for _ in range(draw(st.integers(0, 4)))]
    pred: list[Scored] = []
    for _ in range(draw(st.integers(0, 12))):
        near = draw(st.booleans()) and bool(true)
        base = draw(st.sampled_from(true)) if near else windows(draw)
        shift = draw(st.integers(-4, 4)) / 2 if near else 0.0
        pred.append((base[0] + shift, base[1], draw(st.integers(0, 5)) / 5))
    return pred, true


@settings(max_examples=150, deadline=None)
@given(st.lists(query(), min_size=1, max_size=6))
def test_retrieval_agrees_with_the_slow_loop(
    queries: list[tuple[list[Scored], list[Window]]],
) -> None:
    predictions, truths = [q[0] for q in queries], [q[1] for q in queries]
    fast = metrics.retrieval_metrics(predictions, truths)
    ranges = {"": (-1.0, math.inf)} | {
        f"{name}/": bounds for name, bounds in metrics.LENGTH_RANGES_S.items()
    }
    for prefix, (low, high) in ranges.items():
        slow = slow_retrieval(predictions, truths, low, high)
        for key, value in slow.items():
            assert fast[prefix + key] == pytest.approx(value, abs=1e-9), prefix + key
        if not slow:
            assert math.isnan(fast[f"{prefix}mAP"])
            assert fast[f"{prefix}queries"] == 0


def test_retrieval_by_hand() -> None:
    predictions = [
        [(0, 10, 0.2), (20, 30, 0.9), (0, 6, 0.5)],
        [(0, 40, 1.0)],
    ]
    truths = [[(0, 10), (20, 40)], [(0, 40)]]
    got = metrics.retrieval_metrics(predictions, truths)
    # Query 0: the first of the list fits; by score: half of (20, 40), 0.6 of (0, 10), all of it.
    assert got["R1@0.7"] == 100
    assert got["mIoU"] == 100
    # At 0.5 all of both truths are found first: 1 + 1 over 2; the third is a duplicate.
    assert got["mAP@0.5"] == 100
    # At 0.55 (20, 30) misses, (0, 6) hits at rank 2: 1/2 of the one found, over 2 truths.
    assert got["mAP@0.55"] == pytest.approx(100 * (0.25 + 1) / 2)
    # At 0.75 only rank 3 hits: 1/3 over 2.
    assert got["mAP@0.75"] == pytest.approx(100 * (1 / 6 + 1) / 2)
    assert (got["short/queries"], got["middle/queries"], got["long/queries"]) == (1, 1, 1)
    assert got["middle/R1@0.3"] == 0
    assert got["middle/R5@0.5"] == 100


def test_ties_at_the_threshold_are_hits() -> None:
    got = metrics.retrieval_metrics([[(0, 13, 1)], [(0, 14, 1)]], [[(0, 20)], [(0, 20)]])
    assert got["R1@0.65"] == 100
    assert got["mAP@0.65"] == 100
    assert got["R1@0.7"] == 50


def test_repairs_of_retrieval_are_counted() -> None:
    predictions = [[(5, 5, 1.0)], [], [(0, 4, 1.0)], [(9, 3, 1.0)]]
    truths = [[(5, 5)], [(0, 4)], [], [(3, 9)]]
    got = metrics.retrieval_metrics(predictions, truths)
    assert got["queries"] == 3
    assert got["queries_without_truth"] == 1
    assert got["queries_without_predictions"] == 1
    assert got["mAP"] == got["mIoU"] == got["R5@0.3"] == 0
    assert all(math.isnan(v) for k, v in metrics.retrieval_metrics([], []).items() if "mAP" in k)


def test_a_reversed_or_empty_prediction_is_a_miss() -> None:
    # Over the hull the first would fit perfectly; its union with the truth is negative.
    predictions = [[(8, 2, 0.9), (2, 8, 0.5)], [(3, 3, 0.9), (2, 8, 0.5)]]
    got = metrics.retrieval_metrics(predictions, [[(2, 8)]] * 2)
    assert (got["R1@0.3"], got["mIoU"], got["R5@0.7"]) == (0, 0, 100)
    assert got["mAP"] == 50
    discounted = metrics.discounted_recall(predictions, [[(2, 8)]] * 2, [10.0, 10.0])
    assert (discounted["dR1@0.3"], discounted["dR5@0.3"]) == (0, 100)


def test_garbage_is_named_by_its_index() -> None:
    with pytest.raises(ValueError, match=r"predictions\[1\] row 0 .*nan"):
        metrics.retrieval_metrics([[(0, 1, 1)], [(0, 1, math.nan)]], [[(0, 1)]] * 2)
    with pytest.raises(ValueError, match=r"truths\[0\] row 1 .*inf"):
        metrics.retrieval_metrics([[(0, 1, 1)]], [[(0, 1), (0, math.inf)]])
    with pytest.raises(ValueError, match=r"predictions\[0\] must be \(rows, 3\)"):
        metrics.retrieval_metrics([[(0, 1)]], [[(0, 1)]])
    with pytest.raises(ValueError, match="got 1 and 2"):
        metrics.retrieval_metrics([[]], [[], []])
    # Also past the ten that count: the file is damaged either way.
    with pytest.raises(ValueError, match="row 10"):
        metrics.retrieval_metrics([[(0, 1, 1)] * 10 + [(0, 1, math.nan)]], [[(0, 1)]])


def test_iou_matrix() -> None:
    got = metrics.iou_matrix([(0, 10), (5, 5), (8, 2)], [(5, 15), (20, 30), (5, 5)])
    assert got.shape == (3, 3)
    np.testing.assert_allclose(got, [[1 / 3, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


def test_discounted_recall_by_hand() -> None:
    # IoU 8/10; starts 2 s off in 20 s: (1 - 0.1) * 1. Of query 1 only the second is a hit.
    predictions: list[list[Scored]] = [[(2, 10, 1)], [(50, 60, 1), (0, 12, 0.5)], []]
    got = metrics.discounted_recall(predictions, [[(0, 10)]] * 3, [20, 60, 10])
    assert set(got) == {f"dR{n}@{m}" for n in (1, 5) for m in (0.3, 0.5, 0.7)}
    assert got["dR1@0.5"] == pytest.approx(100 * 0.9 / 3)
    assert got["dR5@0.5"] == pytest.approx(100 * (0.9 + 58 / 60) / 3)
    assert math.isnan(metrics.discounted_recall([[]], [[]], [10])["dR1@0.5"])
    # A query of one true window counts beside one of two: half of the two are hit.
    several = metrics.discounted_recall(
        [[(0, 10, 1)], []], [[(0, 10)], [(0, 5), (9, 10)]], [20, 20]
    )
    assert several["dR1@0.7"] == 50
    with pytest.raises(ValueError, match=r"durations_s\[1\]"):
        metrics.discounted_recall([[], []], [[], []], [10, 0])


def slow_clip_precision(label: list[bool], score: list[float]) -> float:
    if not any(label):
        return 0.0
    points: list[tuple[int, float]] = []
    for threshold in sorted(set(score), reverse=True):
        chosen = [y for y, s in zip(label, score, strict=True) if s >= threshold]
        points.append((sum(chosen), sum(chosen) / len(chosen)))
    at_rise = []
    for i, (found, _) in enumerate(points):
        if found > (points[i - 1][0] if i else 0):
            at_rise.append(max(precision for _, precision in points[i:]))
    return sum(at_rise) / len(at_rise)


def slow_highlights(predictions: list[list[float]], truths: list[Any]) -> dict[str, float]:
    out = {}
    for name, least in metrics.HIGHLIGHT_LEVELS.items():
        precisions, hits = [], []
        for pred, true in zip(predictions, truths, strict=True):
            padded = (pred + [0.0] * len(true))[: len(true)]
            for annotator in range(len(true[0])):
                labels = [row[annotator] >= least for row in true]
                precisions.append(slow_clip_precision(labels, padded))
            top = pred.index(max(pred)) if pred else len(true)
            hits.append(top < len(true) and max(true[top]) >= least)
        out[f"{name}/mAP"] = 100 * sum(precisions) / len(precisions)
        out[f"{name}/HIT@1"] = 100 * sum(hits) / len(hits)
    return out


@st.composite
def highlight_query(draw: st.DrawFn) -> tuple[list[float], list[list[float]]]:
    clips = draw(st.integers(1, 8))
    true = [[float(draw(st.integers(0, 4))) for _ in range(2)] for _ in range(clips)]
    length = max(0, clips + draw(st.integers(-2, 2)))
    return [draw(st.integers(-3, 3)) / 2 for _ in range(length)], true


@settings(max_examples=150, deadline=None)
@given(st.lists(highlight_query(), min_size=1, max_size=5))
def test_highlights_agree_with_the_slow_loop(
    queries: list[tuple[list[float], list[list[float]]]],
) -> None:
    predictions, truths = [q[0] for q in queries], [q[1] for q in queries]
    fast = metrics.highlight_metrics(predictions, truths)
    assert fast == pytest.approx(slow_highlights(predictions, truths), abs=1e-9)


def test_highlights_name_garbage() -> None:
    with pytest.raises(ValueError, match=r"predictions\[1\] row 2"):
        metrics.highlight_metrics([[1.0], [1.0, 2.0, math.nan]], [[[1, 2]], [[1, 2]]])
    with pytest.raises(ValueError, match="annotators"):
        metrics.highlight_metrics([[1.0], [1.0]], [[[1, 2]], [[1, 2, 3]]])
    with pytest.raises(ValueError, match="as many predictions as truths are needed, got 1 and 2"):
        metrics.highlight_metrics([[1.0]], [[[1, 2]], [[1, 2]]])
    with pytest.raises(ValueError, match=r"predictions\[0\] must be one score a clip"):
        metrics.highlight_metrics([[[1.0]]], [[[1, 2]]])
    assert math.isnan(metrics.highlight_metrics([], [])["Fair/mAP"])


def test_saliency_truth_drops_clips_past_the_end() -> None:
    got = metrics.saliency_truth(5, [0, 2, 7], [[1, 2], [3, 4], [4, 4]])
    assert got.tolist() == [[1, 2], [0, 0]]
    # Nor is the clip before the first one the last.
    assert metrics.saliency_truth(5, [-1, 0], [[4, 4], [3, 2]]).tolist() == [[3, 2], [0, 0]]
    assert metrics.saliency_truth(4, [], np.zeros((0, 3))).tolist() == [[0.0] * 3] * 2
    assert metrics.saliency_truth(3, [2], [[4]], clip_s=1.0).tolist() == [[0], [0], [4]]
    for scores in ([4, 4], [[4], [3], [2]]):
        with pytest.raises(ValueError, match=r"scores must be \(2, annotators\)"):
            metrics.saliency_truth(5, [0, 1], scores)


# Golden files: predictions of published models and the numbers published with them.


def read_lines(path: Path) -> list[dict[str, Any]]:
    raw = path.read_bytes()
    text = gzip.decompress(raw) if path.suffix == ".gz" else raw
    return [json.loads(line) for line in text.decode().splitlines() if line.strip()]


def qvhighlights(
    root: Path, name: str
) -> tuple[list[Any], list[Any], list[Any], list[Any], dict[str, Any]]:
    golden = root / "golden_eval" / "qvhighlights"
    predictions = read_lines(golden / f"{name}_preds.jsonl.gz")
    truth = {d["qid"]: d for d in read_lines(root / "annotations" / "qvhighlights" / "val.jsonl")}
    rows = [truth[d["qid"]] for d in predictions]
    published = json.loads((golden / f"{name}_metrics_published.json").read_text())
    scores = [
        metrics.saliency_truth(d["duration"], d["relevant_clip_ids"], d["saliency_scores"])
        for d in rows
    ]
    return (
        [d["pred_relevant_windows"] for d in predictions],
        [d["relevant_windows"] for d in rows],
        [d["pred_saliency_scores"] for d in predictions],
        scores,
        published,
    )


@pytest.mark.data
@pytest.mark.parametrize("name", ["moment_detr_sample_val", "qd_detr_video_val"])
def test_the_field_s_numbers_on_qvhighlights(name: str, data_dir: Path) -> None:
    predictions, truths, saliency, scores, published = qvhighlights(data_dir, name)
    got = metrics.retrieval_metrics(predictions, truths)
    compared = 0
    for group in ("full", "short", "middle", "long"):
        prefix = "" if group == "full" else f"{group}/"
        for threshold, value in published[group]["MR-mAP"].items():
            key = "mAP" if threshold == "average" else f"mAP@{threshold}"
            assert got[prefix + key] == pytest.approx(value, abs=0.00501), prefix + key
            compared += 1
        for threshold, value in published[group]["MR-R1"].items():
            key = f"{prefix}R1@{threshold}"
            assert got[key] == pytest.approx(value, abs=0.00501), key
            compared += 1
    found = metrics.highlight_metrics(saliency, scores)
    for level in ("Fair", "Good", "VeryGood"):
        values = published[f"HL-min-{level}"]
        assert found[f"{level}/mAP"] == pytest.approx(values["HL-mAP"], abs=0.00501)
        assert found[f"{level}/HIT@1"] == pytest.approx(values["HL-Hit1"], abs=0.00501)
        compared += 2
    assert compared == 4 * 21 + 6


@pytest.mark.data
def test_the_published_numbers_on_charades_sta(data_dir: Path) -> None:
    golden = data_dir / "golden_eval" / "charades_sta"
    predictions = read_lines(golden / "moment_detr_zeroshot_test_preds.jsonl.gz")
    truth = {d["qid"]: d for d in read_lines(golden / "some1else_format_test_gt.jsonl.gz")}
    published = json.loads(
        (golden / "moment_detr_zeroshot_test_metrics_published.json").read_text()
    )
    got = metrics.retrieval_metrics(
        [d["ranked_predicted_windows"] for d in predictions],
        [truth[d["qid"]]["relevant_windows"] for d in predictions],
    )
    assert got["queries"] == published["evaluated_queries"]
    assert got["mIoU"] == pytest.approx(100 * published["mIoU"], abs=0.005)
    for threshold in ("0.3", "0.5", "0.7"):
        value = 100 * published[f"R@1_IoU_{threshold}"]
        assert got[f"R1@{threshold}"] == pytest.approx(value, abs=0.005)


# Uncertainty

floats = st.integers(-6, 6).map(float)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(floats, floats), min_size=2, max_size=30))
def test_spearman_agrees_with_scipy(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs).T
    got = metrics.spearman(a, b)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert math.isnan(got)
    else:
        assert got == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(floats, min_size=1, max_size=15), st.lists(floats, min_size=1, max_size=15))
def test_auroc_agrees_with_counting_pairs(positive: list[float], negative: list[float]) -> None:
    wins = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    assert metrics.auroc(positive, negative) == pytest.approx(sum(wins) / len(wins))


def test_risk_coverage_by_hand() -> None:
    coverage, risk = metrics.risk_coverage_curve([4.0, 1.0, 3.0, 0.0], [9.0, 2.0, 2.0, 1.0])
    # Certain first: 0; then 1 and 3 tied, 2 each; then 4.
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    np.testing.assert_allclose(risk, [0, 1, 4 / 3, 2])
    got = metrics.uncertainty_metrics(
        [4.0, 1.0, 3.0, 0.0], [9.0, 2.0, 2.0, 1.0], [0.0] * 4, [1.0, 2.0, 3.0, 4.0]
    )
    assert got["AURC/AU"] == pytest.approx((0 + 1 + 4 / 3 + 2) / 4)
    # The oracle's curve: 0, 1/2, 4/3, 2; mean error 2.
    assert got["AUSE/AU"] == pytest.approx((1 - 0.5) / 4 / 2)
    assert got["AUSE/AU+EU"] == got["AUSE/AU"]
    # No order at all: the mean error at every coverage.
    assert got["AURC/EU"] == pytest.approx(2)
    assert math.isnan(got["spearman/EU"])
    assert got["spearman/-evidence"] == pytest.approx(
        stats.spearmanr([4, 1, 3, 0], [4, 3, 2, 1])[0]
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), floats), min_size=1, max_size=5))
def test_ties_have_the_mean_curve_of_all_orders(pairs: list[tuple[int, float]]) -> None:
    error, measure = np.array(pairs, dtype=np.float64).T
    _, risk = metrics.risk_coverage_curve(error, measure)
    curves = []
    for shuffle in itertools.permutations(range(len(error))):
        shuffled = np.array(shuffle)
        order = shuffled[np.argsort(measure[shuffled], kind="stable")]
        curves.append(error[order].cumsum() / np.arange(1, len(error) + 1))
    np.testing.assert_allclose(risk, np.mean(curves, axis=0), atol=1e-12)
    assert risk[-1] == pytest.approx(error.mean())


def test_perfect_and_reversed_uncertainty() -> None:
    rng = np.random.default_rng(1)
    error = rng.gamma(1.0, 2.0, 500)
    got = metrics.uncertainty_metrics(error, -error, error, error)
    assert got["spearman/EU"] == pytest.approx(1)
    assert got["AUSE/EU"] == pytest.approx(0, abs=1e-12)
    assert got["consistency/EU"] == 1
    assert got["spearman/-evidence"] == pytest.approx(-1)
    assert got["consistency/-evidence"] == 0
    assert got["AUSE/AU"] > 0.5
    assert math.isnan(metrics.spearman(error, np.ones(500)))
    assert metrics.uncertainty_metrics([0, 0], [1, 2], [1, 2], [1, 2])["AUSE/EU"] == 0


def test_consistency_bins_keep_ties_together() -> None:
    measure, error, count = metrics.consistency_bins(
        [1.0, 3.0, 5.0, 7.0, 9.0], [0.0, 0.0, 0.0, 1.0, 2.0], bins=5
    )
    assert count.tolist() == [3, 1, 1]
    np.testing.assert_allclose(measure, [0, 1, 2])
    np.testing.assert_allclose(error, [3, 7, 9])


def test_consistency_is_that_of_ten_bins() -> None:
    # One of the 45 pairs of ten answers is out of order; nine bins would have 36 pairs.
    order, error = np.arange(10), [1.0, 0, 2, 3, 4, 5, 6, 7, 8, 9]
    got = metrics.uncertainty_metrics(error, order, order)
    assert got["consistency/EU"] == pytest.approx(44 / 45)
    assert metrics.uncertainty_metrics(error, order, order, bins=5)["consistency/EU"] == 1


def test_uncertainty_garbage() -> None:
    with pytest.raises(ValueError, match=r"epistemic\[1\] must be finite"):
        metrics.uncertainty_metrics([1, 2], [1, 2], [1, math.nan], [1, 2])
    with pytest.raises(ValueError, match=r"error\[1\] must be at least 0"):
        metrics.uncertainty_metrics([1, -2], [1, 2], [1, 1], [1, 2])
    with pytest.raises(ValueError, match="2 entries"):
        metrics.uncertainty_metrics([1, 2], [1], [1, 1], [1, 2])
    with pytest.raises(ValueError, match="at least one"):
        metrics.auroc([], [1.0])


def test_probability_metrics_by_hand() -> None:
    prob, label = [0.05, 0.12, 0.18, 1.0], [0, 0, 1, 1]
    assert metrics.brier(prob, label) == pytest.approx((0.0025 + 0.0144 + 0.6724) / 4)
    # Bins [0, .1): 0.05 against 0; [.1, .2): 0.15 against 0.5; [.9, 1]: 1 against 1.
    assert metrics.ece(prob, label) == pytest.approx((0.05 + 2 * 0.35) / 4)
    # Two of equal mass: 0.085 against 0, 0.59 against 1.
    assert metrics.ece(prob, label, bins=2, adaptive=True) == pytest.approx((0.17 + 0.82) / 4)
    assert metrics.ece([0.7] * 10, [1] * 7 + [0] * 3, adaptive=True) == pytest.approx(0)
    # Ten bins unless one asks for others: of nine, the second would hold both.
    assert metrics.ece([0.12, 0.21], [0, 1]) == pytest.approx((0.12 + 0.79) / 2)
    with pytest.raises(ValueError, match=r"prob\[1\]"):
        metrics.ece([0.5, 1.1], [0, 1])
    with pytest.raises(ValueError, match=r"label\[0\]"):
        metrics.brier([0.5, 0.1], [2, 1])


def test_interval_coverage_and_width_by_hand() -> None:
    low = np.array([[0, 5], [0, 5], [0, 5], [0, 5]])
    high = low + np.array([2, 3])
    truth = np.array([[0, 8], [1, 9], [3, 6], [1, 6]])
    got = metrics.interval_coverage(low, high, truth)
    assert got == {"start": 0.75, "end": 0.75, "mean": 0.75, "joint": 0.5}
    assert metrics.interval_width(low, high) == {"start": 2, "end": 3, "mean": 2.5}
    with pytest.raises(ValueError, match="shapes differ"):
        metrics.interval_coverage(low, high[:2], truth)
    for wrong in (np.zeros((2, 3)), np.zeros(2), np.zeros((0, 2))):
        with pytest.raises(ValueError, match=r"low must be \(N, 2\) with N >= 1"):
            metrics.interval_width(wrong, wrong)
    with pytest.raises(ValueError, match=r"truth\[0\]"):
        metrics.interval_coverage(low, high, truth * math.nan)


CASES = [(0.3, 0.1, 0.7, 3.0), (5.0, 2.0, 0.05, 4.4), (-2.0, 1.0, 3.0, 2.01), (1.5, 1.5, 2.0, 80.0)]


@pytest.mark.parametrize(("y", "loc", "scale", "dof"), CASES)
def test_crps_agrees_with_integration(y: float, loc: float, scale: float, dof: float) -> None:
    def squared(x: float, step: float) -> float:
        return float((special.stdtr(dof, (x - loc) / scale) - step) ** 2)

    middle = [loc] if loc != y else []
    far = loc + 400 * scale * np.sign(loc - y) if middle else loc
    ends = sorted([y, *middle, float(far)])
    total = 0.0
    for a, b in zip([-math.inf, *ends], [*ends, math.inf], strict=True):
        step = 0.0 if b <= y else 1.0
        total += integrate.quad(squared, a, b, args=(step,), limit=400)[0]
    got = float(metrics.crps_student_t(y, loc, scale, dof))
    assert got == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(("y", "loc", "scale", "dof"), CASES)
def test_nll_agrees_with_scipy(y: float, loc: float, scale: float, dof: float) -> None:
    expected = -stats.t.logpdf(y, dof, loc=loc, scale=scale)
    assert float(metrics.nll_student_t(y, loc, scale, dof)) == pytest.approx(expected, rel=1e-10)


def test_student_t_scores_at_the_extremes() -> None:
    # Many degrees of freedom: the normal distribution's closed form.
    z = np.array([-1.3, 0.0, 2.2])
    normal = z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi)
    np.testing.assert_allclose(metrics.crps_student_t(z, 0, 1, 2e7), normal, atol=1e-6)
    np.testing.assert_allclose(
        metrics.nll_student_t(z, 0, 1, 2e9), -stats.norm.logpdf(z), rtol=1e-6
    )
    huge: npt.NDArray[np.float64] = metrics.nll_student_t([1e200], [0], [1e-9], [3])
    assert np.isfinite(huge).all()
    with pytest.raises(ValueError, match="scale"):
        metrics.nll_student_t(0, 0, 0, 3)
    with pytest.raises(ValueError, match="more than 1"):
        metrics.crps_student_t(0, 0, 1, 1)

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demr.annotations.annotations import Annotation
from demr.annotations.windows import window_iou
from demr.answers.answering import (
    COVARIATES,
    answer,
    apply_calibration,
    boundary_residual,
    load_calibration,
    presence_probability,
)
from demr.answers.calibration import Calibration
from demr.answers.fitting import fit_calibration
from demr.answers.inference import RawPrediction
from demr.answers.intervals import IntervalCalibrator
from demr.answers.presence import somewhere
from demr.answers.proposals import Proposals
from demr.errors import InputError, ModelError
from demr.evaluation.measure import (
    error_bins,
    measure,
    prediction_lines,
    quick_metrics,
)
from demr.machine.files import write_json


def proposals(
    windows: list[tuple[float, float]],
    foreground: list[float],
    *,
    nu: list[float] | None = None,
    duration_s: float = 100.0,
) -> Proposals:
    """Records with alpha 3 and beta 4e-4: at 100 s the aleatoric variance is 2 s^2."""
    count = len(windows)
    return Proposals(
        np.array(windows) / duration_s,
        np.array(foreground),
        np.tile(np.array([2.0] * count if nu is None else nu)[:, None], 2),
        np.full((count, 2), 3.0),
        np.full((count, 2), 4e-4),
        np.arange(count),
        np.array(foreground),
        duration_s,
    )


def query(
    windows: tuple[tuple[float, float], ...] | None, *, kind: str = "present", number: int = 0
) -> Annotation:
    return Annotation(f"q{number}", "a red circle spins", "v", 100.0, windows, kind=kind)


# What demr.answers.answering.answer collects, worked by hand for RAW:
# odds 9; 0.9 - 0.6 (the second overlaps the first, so it is no rival); AU 2, EU 1; 0.5 - 0.2; by
# a third only, so it does not propose the same moment either; 100 s; 10 s.
RAW = RawPrediction(
    proposals([(10, 20), (15, 25), (50, 60)], [0.9, 0.8, 0.6]), np.array([0.5, 0.1, 0.0])
)
PRESENCE = [
    math.log(9), 0.3, math.log(3), 0.0, 0.3, math.log(9), math.log(100), math.log(10)
]  # fmt: skip


def test_covariates_of_an_answer_by_hand() -> None:
    found = answer(RAW)
    assert found.presence == pytest.approx(PRESENCE)
    assert len(PRESENCE) == len(COVARIATES)
    assert found.covariates.shape == (3, len(COVARIATES))
    np.testing.assert_array_equal(found.covariates[0], found.presence)
    # The third: even odds of 1.5, its gap to the best moment apart from the top one is zero.
    assert found.covariates[2, :2] == pytest.approx([math.log(1.5), 0.0])
    np.testing.assert_allclose(found.dof, 6.0)
    np.testing.assert_allclose(found.moments.window_s[0], [10, 20])


@pytest.mark.parametrize("top", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("ranking", ["score", "uncertainty", "fusion"])
def test_covariates_do_not_depend_on_how_many_moments_are_listed(ranking: str, top: int) -> None:
    rng = np.random.default_rng(5)
    start = rng.uniform(0, 80, 60)
    windows = [(float(s), float(s + w)) for s, w in zip(start, rng.uniform(1, 20, 60), strict=True)]
    record = proposals(windows, rng.uniform(0, 1, 60).tolist(), nu=rng.uniform(0.1, 9, 60).tolist())
    raw = RawPrediction(record, rng.uniform(-1, 1, 60))
    usual = answer(raw, ranking=ranking, tau=0.2)  # type: ignore[arg-type]
    other = answer(raw, ranking=ranking, tau=0.2, top=top)  # type: ignore[arg-type]
    assert len(other.moments) == min(top, len(other.moments))
    np.testing.assert_array_equal(usual.presence, other.presence)
    shared = min(len(usual.moments), len(other.moments))
    np.testing.assert_array_equal(usual.covariates[:shared], other.covariates[:shared])
    np.testing.assert_array_equal(usual.moments.window_s[:shared], other.moments.window_s[:shared])


def test_the_median_logit_is_that_of_the_clips_that_propose_the_same_moment() -> None:
    # The second overlaps the top window by 8/12, the third by 6/10, the last two by less.
    windows = [(10.0, 20.0), (12.0, 22.0), (10.0, 16.0), (17.0, 30.0), (60.0, 70.0)]
    record = proposals(windows, [0.9, 0.8, 0.3, 0.7, 0.85])
    found = answer(RawPrediction(record, np.zeros(5)))
    assert found.presence[COVARIATES.index("median logit")] == pytest.approx(math.log(4))


def test_no_moment_is_listed_twice() -> None:
    # Two proposals that overlap by 6/14 and a cloud of voters between them: both move to the same
    # place, and the second is dropped then; the one far away stays.
    windows = [(10.0, 20.0), (14.0, 24.0), (12.0, 22.0), (12.0, 22.0), (60.0, 70.0)]
    record = proposals(windows, [0.9, 0.8, 0.7, 0.7, 0.6])
    raw = RawPrediction(record, np.zeros(5))
    moments = answer(raw, ranking="voting").moments
    overlap = window_iou(moments.window_s, moments.window_s)
    assert (overlap[~np.eye(len(moments), dtype=bool)] <= 0.7).all()
    assert len(moments) == 2
    np.testing.assert_allclose(moments.window_s[1], [60, 70])
    assert len(answer(raw, ranking="voting").covariates) == 2
    # The list is filled up with what lies further down.
    crowd = [(float(s), float(s) + 1) for s in range(0, 90, 2)]
    many = proposals([*windows, *crowd], [0.9, 0.8, 0.7, 0.7, 0.6, *[0.5] * len(crowd)])
    assert len(answer(RawPrediction(many, np.zeros(50)), ranking="voting").moments) == 10


def test_a_calibration_on_other_covariates_is_refused(tmp_path: Path) -> None:
    raw, annotations = population(0, 150, 80)
    fitted = fit_calibration(raw, annotations)
    assert fitted.presence is not None
    fitted.save(tmp_path / "now.json")
    assert load_calibration(tmp_path / "now.json") == fitted
    scaler = replace(fitted.presence.scaler, names=("something", *COVARIATES[1:]))
    other = replace(fitted, presence=replace(fitted.presence, scaler=scaler))
    other.save(tmp_path / "then.json")
    with pytest.raises(ModelError, match="got one on something, gap to next"):
        load_calibration(tmp_path / "then.json")


def test_an_answer_without_a_rival_and_with_certain_clips_is_finite() -> None:
    record = proposals([(10, 10)], [1.0])
    found = answer(RawPrediction(record, np.array([0.2])))
    assert np.isfinite(found.presence).all()
    assert np.isfinite(found.covariates).all()
    assert found.presence[1] == 1.0


def test_residual_is_truth_minus_prediction() -> None:
    found = boundary_residual([answer(RAW)], [query(((12, 19), (70, 80)))])
    np.testing.assert_allclose(found, [[2, -1]])


def test_quick_metrics_by_hand() -> None:
    # Top windows: 10..20 against 10..26 (10/16), 10..20 against 50..60 (0), and an absent query
    # between the two in probability: half the pairs are in order.
    records = [
        proposals([(50, 60), (10, 20)], [0.1, 0.9]),
        proposals([(10, 20)], [0.2]),
        proposals([(10, 20)], [0.5]),
    ]
    found = quick_metrics(records, [query(((10, 26),)), query(((50, 60),)), query(())])
    assert found == pytest.approx(
        {"R1@0.5": 50, "R1@0.7": 0, "mIoU": 31.25, "AUROC": 50, "quality": (31.25 + 50) / 2}
    )
    only = quick_metrics(records[:1], [query(((10, 26),))])
    assert only["quality"] == only["mIoU"] == 62.5
    nothing = quick_metrics(records[2:], [query(())])
    assert nothing["quality"] == nothing["mIoU"] == 0
    # Vague queries and such without labels are neither right nor wrong.
    more = [*records, records[1], records[1]]
    unscored = [query(((10, 20),), kind="vague"), query(None)]
    queries = [query(((10, 26),)), query(((50, 60),)), query(())]
    assert quick_metrics(more, [*queries, *unscored]) == found


def population(
    seed: int, present: int, absent: int
) -> tuple[list[RawPrediction], list[Annotation]]:
    """Two moments a query; the likelier is wrong but unsure, the other right but for noise."""
    rng = np.random.default_rng(seed)
    raw, annotations = [], []
    for number in range(present + absent):
        there = number < present
        start = float(rng.uniform(0, 40))
        error = rng.normal(0, 1.5, 2)
        guess = (max(start + float(error[0]), 0), start + 10 + float(error[1]))
        level = float(rng.uniform(0.8, 0.95) if there else rng.uniform(0.1, 0.4))
        record = proposals([(70, 80), guess], [level, level - 0.02], nu=[0.1, 8.0])
        raw.append(RawPrediction(record, np.array([0.4, 0.1])))
        windows = ((start, start + 10),) if there else ()
        annotations.append(query(windows, kind="present" if there else "absent", number=number))
    return raw, annotations


def test_calibration_chooses_the_ranking_that_is_right() -> None:
    raw, annotations = population(0, 150, 60)
    # Unlabelled queries count neither as present nor as absent.
    raw, annotations = [*raw, raw[0]], [*annotations, query(None)]
    fitted = fit_calibration(raw, annotations)
    # p exp(-tau z) with z = +-1: the least tau, 0.05, turns 0.02 of probability around.
    assert (fitted.ranking, fitted.tau) == ("uncertainty", 0.05)
    assert fitted.interval is not None
    assert fitted.interval.points == 150
    assert fitted.presence is not None
    assert fitted.presence.points == 2 * 60  # as many present as absent ones
    assert fitted == fit_calibration(raw, annotations)
    forced = fit_calibration(raw, annotations, ranking="score")
    assert (forced.ranking, forced.tau) == ("score", 0.0)


def test_calibration_without_absent_queries_has_no_presence() -> None:
    fitted = fit_calibration(*population(0, 30, 0))
    assert fitted.presence is None
    assert fitted.interval is not None


def test_presence_is_kept_where_no_absent_query_can_renew_it() -> None:
    former = fit_calibration(*population(0, 150, 60), ranking="fusion")
    assert former.presence is not None
    fitted = fit_calibration(*population(1, 30, 0), former=former)
    assert fitted.presence == former.presence
    # Its covariates are those of the top moment, and so of the ranking.
    assert (fitted.ranking, fitted.tau) == (former.ranking, former.tau)
    assert fitted.interval is not None
    assert fitted.interval.points == 30
    # Absent queries renew it, and a former calibration without presence changes nothing.
    renewed = population(2, 40, 20)
    assert fit_calibration(*renewed, former=former) == fit_calibration(*renewed)
    bare = replace(former, presence=None)
    assert fit_calibration(*population(1, 30, 0), former=bare) == fit_calibration(
        *population(1, 30, 0)
    )


@pytest.mark.parametrize("present", [0, 9])
def test_too_little_to_calibrate_on_is_said(present: int) -> None:
    with pytest.raises(InputError, match=r"expected .*queries"):
        fit_calibration(*population(0, present, 20))


def test_measured_numbers_against_a_slow_loop() -> None:
    fitted = fit_calibration(*population(0, 200, 200))
    raw, annotations = population(1, 60, 40)
    predictions = apply_calibration(raw, fitted)
    found = measure(predictions, annotations, fitted, level=0.9)
    assert fitted.interval is not None
    assert fitted.presence is not None
    inside, widths, errors, hits = [], [], [], []
    for prediction, annotation in zip(predictions[:60], annotations[:60], strict=True):
        top = prediction.moments[:1]
        low, high = fitted.interval.interval(
            top.window_s, top.scale_s, prediction.dof[:1], prediction.covariates[:1], 0.9
        )
        truth = (annotation.windows_s or ())[0]
        for side in (0, 1):
            lower, upper = max(low[0, side], 0.0), min(high[0, side], 100.0)
            inside.append(lower <= truth[side] <= upper)
            widths.append(upper - lower)
        start, end = top.window_s[0]
        errors.append((abs(start - truth[0]) + abs(end - truth[1])) / 2)
        overlap = min(end, truth[1]) - max(start, truth[0])
        hits.append(overlap / (max(end, truth[1]) - min(start, truth[0])) >= 0.7)
    assert found["interval/coverage mean"] == pytest.approx(np.mean(inside))
    assert found["interval/width mean s"] == pytest.approx(np.mean(widths))
    assert found["uncertainty/mean error s"] == pytest.approx(np.mean(errors))
    assert found["R1@0.7"] == pytest.approx(100 * np.mean(hits))
    assert found["queries"] == 60
    assert found["absent_queries"] == 40
    assert found["presence/AUROC"] == 1.0
    assert 0.8 < found["interval/coverage mean"] < 1.0


def test_intervals_and_truths_end_with_the_video() -> None:
    # The prediction is 0.3 s off an end at 100 s; 0.7 + (100 - 0.7) need not be 100 in floats.
    rng = np.random.default_rng(0)
    raw, annotations = [], []
    for number in range(300):
        start = float(rng.uniform(0, 49))
        raw.append(RawPrediction(proposals([(start / 2, start)], [0.9]), np.array([0.3, 0.1])))
        annotations.append(query(((0, 100),), number=number))
    wide = IntervalCalibrator.fit(
        rng.normal(0, 1, (200, 2)) * 1e4,
        np.ones((200, 2)),
        np.full((200, 2), 6.0),
        np.zeros((200, len(COVARIATES))),
        COVARIATES,
    )
    calibration = Calibration(interval=wide)
    found = measure(apply_calibration(raw, calibration), annotations, calibration)
    assert found["interval/coverage joint"] == 1.0
    assert found["interval/width mean s"] <= 100.0


def test_a_split_without_present_or_absent_queries_is_measured() -> None:
    fitted = fit_calibration(*population(0, 30, 30))
    raw, annotations = population(1, 3, 3)
    predictions = apply_calibration(raw, fitted)
    assert measure(predictions[3:], annotations[3:], fitted) == {"absent_queries": 3.0}
    present = measure(predictions[:3], annotations[:3], fitted)
    assert present["absent_queries"] == 0
    assert not any(key.startswith("presence") for key in present)


def test_the_weight_of_the_voters_spread_is_the_likeliest_one() -> None:
    # Two voters 2 s apart (boundary variance 1) and errors whose variance is far more: an
    # aleatoric variance of 2e-4 alone never explains them.
    rng = np.random.default_rng(3)
    raw, annotations = [], []
    for number in range(60):
        record = proposals([(40.0, 60.0), (42.0, 62.0)], [0.9, 0.9], nu=[1e3, 1e3])
        record = record.replace(beta=np.full((2, 2), 4e-8))
        start, end = np.array([41.0, 61.0]) + rng.normal(0, 2.9, 2)
        raw.append(RawPrediction(record, np.zeros(2)))
        annotations.append(query(((float(start), float(end)),), number=number))

    def fit(disagreement: float | None, ranking: str = "voting") -> float:
        fitted = fit_calibration(raw, annotations, ranking=ranking, disagreement=disagreement)
        return fitted.disagreement

    # Errors have 2.9^2 = 8.4 times the variance of the votes.
    assert fit(None) == 8.0
    assert fit(2.0) == 2.0
    assert fit(None, "score") == 1.0


def test_error_bins_by_hand() -> None:
    # Two queries: errors of (1 + 3)/2 and 0 s, evidence 2 nu + 3 of 3.4 and 11.
    raw = [
        RawPrediction(proposals([(10, 20)], [0.9], nu=[0.2]), np.zeros(1)),
        RawPrediction(proposals([(30, 40)], [0.9], nu=[4.0]), np.zeros(1)),
    ]
    annotations = [query(((11.0, 23.0),)), query(((30.0, 40.0),)), query((), kind="absent")]
    predictions = apply_calibration([*raw, raw[0]], Calibration())
    found = error_bins(predictions, annotations, bins=2)
    assert found["error s"] == pytest.approx([0.0, 2.0])
    assert found["evidence"] == pytest.approx([11.0, 3.4])
    # AU is 2 s^2, EU is AU / nu.
    assert found["AU s"] == pytest.approx([math.sqrt(2)] * 2)
    assert found["EU s"] == pytest.approx([math.sqrt(2 / 4), math.sqrt(2 / 0.2)])
    assert found["AU+EU s"] == pytest.approx([math.sqrt(2.5), math.sqrt(12)])
    assert error_bins(predictions[2:], annotations[2:])["error s"] == []


def test_prediction_lines_keep_all_fields_in_one_order() -> None:
    fitted = fit_calibration(*population(0, 30, 30), ranking="score")
    raw, annotations = population(1, 1, 1)
    predictions = apply_calibration(raw, fitted)
    rows = [json.loads(line) for line in prediction_lines(predictions, annotations, fitted, 0.9)]
    assert rows[0].keys() == {
        *("qid", "query", "vid", "pred_relevant_windows", "pred_saliency_scores"),
        *("aleatoric", "epistemic", "evidence", "present", "intervals"),
    }
    count = len(rows[0]["pred_relevant_windows"])
    assert count == 2
    assert rows[0]["pred_relevant_windows"][0][:2] == [70.0, 80.0]
    assert all(len(rows[0][key]) == count for key in ("aleatoric", "epistemic", "intervals"))
    assert rows[0]["aleatoric"][0] == [pytest.approx(math.sqrt(2), abs=1e-4)] * 2
    # EU = AU / nu, and nu is 0.1 here.
    assert rows[0]["epistemic"][0] == [pytest.approx(math.sqrt(20), abs=1e-4)] * 2
    # 2 nu + alpha
    assert rows[0]["evidence"][0] == [pytest.approx(3.2)] * 2
    assert rows[0]["present"] > rows[1]["present"]
    for low, high in np.array(rows[0]["intervals"]).reshape(-1, 2):
        assert 0 <= low <= high <= 100
    bare = Calibration()
    row = json.loads(prediction_lines(predictions, annotations, bare, 0.9)[0])
    assert row["present"] is None
    assert "intervals" not in row


def test_json_holds_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "new" / "m.json"
    values = {"a": {"b": math.nan, "c": 1.5}, "d": [math.inf, 2], "e": True, "f": np.float64(3)}
    write_json(path, values)
    assert json.loads(path.read_text()) == {
        "a": {"b": None, "c": 1.5},
        "d": [None, 2],
        "e": True,
        "f": 3,
    }


# --- long videos ------------------------------------------------------------------------------


def long_raw() -> RawPrediction:
    """Two stretches of 100 s that share nothing; the second has the top moment and a rival."""
    first = RawPrediction(proposals([(10, 20), (15, 25)], [0.3, 0.2]), np.array([0.2, 0.0]))
    parts = (first, RAW)
    windows = [*first.proposals.window_s, *(RAW.proposals.window_s + 100)]
    both = proposals(
        [(float(s), float(e)) for s, e in windows], [0.3, 0.2, 0.9, 0.8, 0.6], duration_s=200.0
    )
    both = both.replace(beta=both.beta / 4)
    saliency = np.concatenate([first.saliency, RAW.saliency])
    return RawPrediction(both, saliency, parts, np.array([0, 0, 1, 1, 1]))


def test_covariates_of_a_long_video_are_those_of_the_moments_stretch() -> None:
    found = answer(long_raw())
    # As of the second stretch alone: 100 s, not 200, its own contrast and its own rival.
    assert found.presence == pytest.approx(PRESENCE)
    np.testing.assert_allclose(found.moments.window_s[0], [110, 120])
    assert found.stretches is not None
    assert found.stretches[1] == pytest.approx(PRESENCE)
    assert found.stretches[0] == pytest.approx(answer(long_raw().parts[0]).presence)
    # The moment of the first stretch: contrast 0.2 - 0.1, and no rival there.
    row = found.moments.foreground.tolist().index(0.3)
    assert found.covariates[row, [1, 4, 6]] == pytest.approx([0.3, 0.1, math.log(100)])
    np.testing.assert_allclose(found.moments.aleatoric, 2.0)


def test_presence_in_a_long_video_is_the_surest_stretchs_less_chance() -> None:
    fitted = fit_calibration(*population(0, 60, 60))
    assert fitted.presence is not None
    short, long = answer(RAW), answer(long_raw())
    alone = fitted.presence.probability(np.array([short.presence]))
    assert long.stretches is not None
    each = fitted.presence.probability(long.stretches)
    found = presence_probability(fitted, [long, short])
    assert found is not None
    odds = (each / (1 - each)).max() / 2**0.3
    np.testing.assert_allclose(found, [odds / (1 + odds), alone[0]])
    # A video that was read at once is believed to the bit as before.
    assert found[1] == alone[0]
    assert presence_probability(Calibration(), [short]) is None
    none = presence_probability(fitted, [])
    assert none is not None
    assert len(none) == 0


def test_chance_in_many_stretches_does_not_add_up_to_found() -> None:
    # By hand: odds 3 by 1000 ** 0.3 = 7.943.
    assert somewhere(np.array([0.75] + [0.05] * 999)) == pytest.approx(
        3 / 7.943 / (1 + 3 / 7.943), rel=1e-3
    )
    assert somewhere(np.array([0.99] + [0.05] * 999)) > 0.9
    assert somewhere(np.full(1000, 0.5)) < 0.2
    assert somewhere(np.array([0.7])) == 0.7
    assert 0 <= somewhere(np.array([1.0, 0.0])) <= 1


def test_presence_is_fitted_on_stretches_of_long_absent_videos() -> None:
    raw, annotations = population(0, 40, 40)
    long = [
        RawPrediction(r.proposals, r.saliency, (r, r), np.array([0, 1])) if a.windows_s == () else r
        for r, a in zip(raw, annotations, strict=True)
    ]
    # Both halves of a doubled video look like the video, so the fit is the same.
    assert fit_calibration(long, annotations) == fit_calibration(raw, annotations)

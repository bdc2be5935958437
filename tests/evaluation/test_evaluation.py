import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demr.annotations.annotations import Annotation, write_annotations
from demr.annotations.windows import window_iou
from demr.answers.calibration import Calibration
from demr.answers.fitting import fit_calibration, load_calibration
from demr.answers.inference import RawPrediction
from demr.answers.intervals import IntervalCalibrator
from demr.answers.judging import Familiarity, judge, presence_probability
from demr.answers.predictions import COVARIATES, Prediction, rank_all, rank_moments
from demr.answers.presence import somewhere
from demr.answers.proposals import Proposals
from demr.errors import InputError, ModelError
from demr.evaluation.measuring import evaluate_predictions, measure
from demr.evaluation.predictions import PredictionRecord, to_records, write_predictions
from demr.evaluation.uncertainty import error_bins
from demr.machine.files import write_json
from demr.training.stages import quick_metrics


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
    return Annotation(f"q{number}", "a red circle spins", f"v{number}", 100.0, windows, kind=kind)


def records_of(
    predictions: list[Prediction],
    annotations: list[Annotation],
    calibration: Calibration,
    level: float = 0.9,
) -> list[PredictionRecord]:
    judgements = judge(predictions, calibration, level=level)
    return to_records(predictions, judgements, annotations, 1.0)


def measured(
    predictions: list[Prediction],
    annotations: list[Annotation],
    calibration: Calibration,
    level: float = 0.9,
) -> dict[str, float]:
    return measure(records_of(predictions, annotations, calibration, level), annotations).metrics


# What demr.answers.predictions.rank_moments collects, worked by hand for RAW:
# odds 9; 0.9 - 0.6 (the second overlaps the first, so it is no rival); AU 2, EU 1; 0.5 - 0.2; by
# a third only, so it does not propose the same moment either; 100 s; 10 s.
RAW = RawPrediction(
    proposals([(10, 20), (15, 25), (50, 60)], [0.9, 0.8, 0.6]), np.array([0.5, 0.1, 0.0])
)
PRESENCE = [
    math.log(9), 0.3, math.log(3), 0.0, 0.3, math.log(9), math.log(100), math.log(10)
]  # fmt: skip


def test_covariates_of_an_answer_by_hand() -> None:
    found = rank_moments(RAW)
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
    usual = rank_moments(raw, ranking=ranking, tau=0.2)  # type: ignore[arg-type]
    other = rank_moments(raw, ranking=ranking, tau=0.2, top=top)  # type: ignore[arg-type]
    assert len(other.moments) == min(top, len(other.moments))
    np.testing.assert_array_equal(usual.presence, other.presence)
    shared = min(len(usual.moments), len(other.moments))
    np.testing.assert_array_equal(usual.covariates[:shared], other.covariates[:shared])
    np.testing.assert_array_equal(usual.moments.window_s[:shared], other.moments.window_s[:shared])


@pytest.mark.parametrize(("length_s", "expected"), [(0.5, 0.5), (0.05, 0.1), (0.0, 0.1)])
def test_lengths_count_from_a_tenth_of_a_second(length_s: float, expected: float) -> None:
    record = proposals([(10.0, 10.0 + length_s)], [0.9])
    found = rank_moments(RawPrediction(record, np.zeros(1))).presence
    assert found[COVARIATES.index("log length")] == pytest.approx(math.log(expected))


def test_the_median_logit_is_that_of_the_clips_that_propose_the_same_moment() -> None:
    # The second overlaps the top window by 8/12, the third by 6/10, the last two by less.
    windows = [(10.0, 20.0), (12.0, 22.0), (10.0, 16.0), (17.0, 30.0), (60.0, 70.0)]
    record = proposals(windows, [0.9, 0.8, 0.3, 0.7, 0.85])
    found = rank_moments(RawPrediction(record, np.zeros(5)))
    assert found.presence[COVARIATES.index("median logit")] == pytest.approx(math.log(4))


def test_no_moment_is_listed_twice() -> None:
    # Two proposals that overlap by 6/14 and a cloud of voters between them: both move to the same
    # place, and the second is dropped then; the one far away stays.
    windows = [(10.0, 20.0), (14.0, 24.0), (12.0, 22.0), (12.0, 22.0), (60.0, 70.0)]
    record = proposals(windows, [0.9, 0.8, 0.7, 0.7, 0.6])
    raw = RawPrediction(record, np.zeros(5))
    moments = rank_moments(raw, ranking="voting").moments
    overlap = window_iou(moments.window_s, moments.window_s)
    assert (overlap[~np.eye(len(moments), dtype=bool)] <= 0.7).all()
    assert len(moments) == 2
    np.testing.assert_allclose(moments.window_s[1], [60, 70])
    assert len(rank_moments(raw, ranking="voting").covariates) == 2
    # The list is filled up with what lies further down.
    crowd = [(float(s), float(s) + 1) for s in range(0, 90, 2)]
    many = proposals([*windows, *crowd], [0.9, 0.8, 0.7, 0.7, 0.6, *[0.5] * len(crowd)])
    assert len(rank_moments(RawPrediction(many, np.zeros(50)), ranking="voting").moments) == 10


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
    found = rank_moments(RawPrediction(record, np.array([0.2])))
    assert np.isfinite(found.presence).all()
    assert np.isfinite(found.covariates).all()
    assert found.presence[1] == 1.0


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
    predictions = rank_all(raw, fitted)
    found = measured(predictions, annotations, fitted, level=0.9)
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
    found = measured(rank_all(raw, calibration), annotations, calibration)
    assert found["interval/coverage joint"] == 1.0
    assert found["interval/width mean s"] <= 100.0


def test_a_split_without_present_or_absent_queries_is_measured() -> None:
    fitted = fit_calibration(*population(0, 30, 30))
    raw, annotations = population(1, 3, 3)
    predictions = rank_all(raw, fitted)
    absent = measured(predictions[3:], annotations[3:], fitted)
    assert (absent["absent_queries"], absent["queries"]) == (3, 0)
    assert not any(key.startswith(("uncertainty", "interval", "presence")) for key in absent)
    present = measured(predictions[:3], annotations[:3], fitted)
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
    predictions = rank_all([*raw, raw[0]], Calibration())
    records = records_of(predictions, annotations, Calibration())
    found = error_bins(records, annotations, bins=2)
    assert found["error s"] == pytest.approx([0.0, 2.0])
    assert found["evidence"] == pytest.approx([11.0, 3.4])
    # AU is 2 s^2, EU is AU / nu.
    assert found["AU s"] == pytest.approx([math.sqrt(2)] * 2)
    assert found["EU s"] == pytest.approx([math.sqrt(2 / 4), math.sqrt(2 / 0.2)])
    assert found["AU+EU s"] == pytest.approx([math.sqrt(2.5), math.sqrt(12)])
    assert error_bins(records[2:], annotations[2:])["error s"] == []


def test_records_keep_all_fields_in_one_order() -> None:
    fitted = fit_calibration(*population(0, 30, 30), ranking="score")
    raw, annotations = population(1, 1, 1)
    predictions = rank_all(raw, fitted)
    records = records_of(predictions, annotations, fitted)
    rows = [json.loads(record.to_line()) for record in records]
    assert rows[0].keys() == {
        *("qid", "query", "vid", "duration", "clip_s"),
        *("pred_relevant_windows", "pred_saliency_scores", "intervals"),
        *("aleatoric", "epistemic", "scale", "alpha", "present", "verdict"),
    }
    count = len(rows[0]["pred_relevant_windows"])
    assert count == 2
    assert rows[0]["pred_relevant_windows"][0][:2] == [70.0, 80.0]
    assert all(len(rows[0][key]) == count for key in ("aleatoric", "epistemic", "intervals"))
    assert rows[0]["aleatoric"][0] == [pytest.approx(math.sqrt(2), abs=1e-4)] * 2
    # EU = AU / nu, and nu is 0.1 here.
    assert rows[0]["epistemic"][0] == [pytest.approx(math.sqrt(20), abs=1e-4)] * 2
    assert records[0].nu is not None
    assert records[0].evidence is not None
    assert records[0].nu[0] == pytest.approx([0.1, 0.1])
    assert records[0].evidence[0] == pytest.approx([3.2, 3.2])  # 2 nu + alpha
    assert rows[0]["scale"][0] == pytest.approx([math.sqrt(4 * 1.1 / (0.1 * 3))] * 2)
    assert rows[0]["present"] > rows[1]["present"]
    # Too few queries have a second true window to say where further moments begin and end.
    assert rows[0]["intervals"][1] is None
    for low, high in rows[0]["intervals"][0]:
        assert 0 <= low <= high <= 100
    row = json.loads(records_of(predictions, annotations, Calibration())[0].to_line())
    assert row["present"] is None
    assert row["verdict"] == "uncertain"
    assert "intervals" not in row


def test_a_file_of_predictions_has_the_numbers_of_those_in_memory(tmp_path: Path) -> None:
    # The annotations say that videos are a second longer than they were when looked at.
    fitted = fit_calibration(*population(0, 60, 60))
    raw, annotations = population(1, 40, 30)
    annotations = [replace(a, duration_s=101.0) for a in annotations]
    annotations[0] = replace(annotations[0], windows_s=((60.0, 101.0),))
    records = records_of(rank_all(raw, fitted), annotations, fitted)
    write_predictions(tmp_path / "p.jsonl", records)
    write_annotations(tmp_path / "a.jsonl", annotations)
    memory = measure(records, annotations).metrics
    file = evaluate_predictions(tmp_path / "p.jsonl", tmp_path / "a.jsonl")
    assert memory.keys() == file.keys()
    assert memory.keys() >= {
        *("R1@0.7", "mAP", "dR1@0.5", "interval/coverage mean", "presence/ECE"),
        *("uncertainty/NLL", "uncertainty/CRPS s", "uncertainty/AUSE/EU"),
        *("uncertainty/spearman/-evidence", "uncertainty/nu q0.5"),
    }
    np.testing.assert_equal(memory, file)  # unlike ==, it takes NaN to be NaN


def test_a_truth_past_the_end_of_what_was_seen_is_held_by_an_interval_up_to_there() -> None:
    # Seen were 30 s, annotated are 31; nothing can be predicted for the last second.
    record = PredictionRecord(
        "q0",
        np.array([[20.0, 29.9, 0.9]]),
        duration_s=30.0,
        intervals=np.array([[[19.0, 21.0], [29.0, 30.0]]]),
    )
    annotation = Annotation("q0", "a dog", "v", 31.0, ((20.0, 31.0),))
    found = measure([record], [annotation]).metrics
    assert found["interval/coverage joint"] == 1.0
    assert found["interval/width end s"] == 1.0


def test_further_moments_have_intervals_of_their_own() -> None:
    """By the first moments' calibration, those of further ones would hold far too seldom."""
    rng = np.random.default_rng(0)

    def draw(count: int) -> tuple[list[RawPrediction], list[Annotation]]:
        raw, annotations = [], []
        for number in range(count):
            truth = [(10.0, 30.0), (60.0, 80.0)]
            # The second is four times as far off as the first, and says nothing of it.
            noise = rng.normal(0, 1, (2, 2)) * np.array([[1.0], [4.0]])
            windows = np.sort(np.array(truth) + noise, axis=1)
            record = proposals([(float(a), float(b)) for a, b in windows], [0.9, 0.6])
            raw.append(RawPrediction(record, np.zeros(2)))
            annotations.append(query((truth[0], truth[1]), number=number))
        return raw, annotations

    fitted = fit_calibration(*draw(400), ranking="score")
    assert fitted.further is not None
    assert fitted.further.points == 400
    raw, annotations = draw(600)
    found = measured(rank_all(raw, fitted), annotations, fitted)
    assert found["interval/further moments"] == 600
    assert 0.88 < found["interval/further coverage mean"] < 0.96
    assert 0.88 < found["interval/coverage mean"] < 0.96
    alike = replace(fitted, further=fitted.interval)
    too_narrow = measured(rank_all(raw, alike), annotations, alike)
    assert too_narrow["interval/further coverage mean"] < 0.5


def test_evaluation_says_present_as_a_search_does() -> None:
    fitted = fit_calibration(*population(0, 60, 60))
    raw, _ = population(1, 1, 0)
    predictions = rank_all(raw, fitted)
    plain, strange, unknown = (
        judge(predictions, fitted, [known])[0]
        for known in (Familiarity(), Familiarity(4.0), Familiarity(0.0, ("giraffe",)))
    )
    assert plain.verdict == "found"
    assert plain.notes == ()
    for one in (strange, unknown):
        assert (one.present, one.verdict) == (None, "uncertain")
    assert "4.0 times beyond its edge" in strange.notes[0]
    assert "the model was never trained on: giraffe" in unknown.notes[0]
    bare = judge(predictions, Calibration())[0]
    assert (bare.present, bare.verdict) == (None, "uncertain")
    assert np.isnan(bare.intervals).all()


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
    found = rank_moments(long_raw())
    # As of the second stretch alone: 100 s, not 200, its own contrast and its own rival.
    assert found.presence == pytest.approx(PRESENCE)
    np.testing.assert_allclose(found.moments.window_s[0], [110, 120])
    assert found.stretches is not None
    assert found.stretches[1] == pytest.approx(PRESENCE)
    assert found.stretches[0] == pytest.approx(rank_moments(long_raw().parts[0]).presence)
    # The moment of the first stretch: contrast 0.2 - 0.1, and no rival there.
    row = found.moments.foreground.tolist().index(0.3)
    assert found.covariates[row, [1, 4, 6]] == pytest.approx([0.3, 0.1, math.log(100)])
    np.testing.assert_allclose(found.moments.aleatoric, 2.0)


def test_presence_in_a_long_video_is_the_surest_stretchs_less_chance() -> None:
    fitted = fit_calibration(*population(0, 60, 60))
    assert fitted.presence is not None
    short, long = rank_moments(RAW), rank_moments(long_raw())
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
    # No odds are so low, or so high, that a number of stretches could not lower them.
    assert somewhere(np.array([0.0, 0.0])) == pytest.approx(1e-12 / 2**0.3, rel=1e-3, abs=0)
    assert somewhere(np.array([1.0, 1.0])) < 1 - 1e-12
    assert 0 <= somewhere(np.array([1.0, 0.0])) <= 1


def test_presence_is_fitted_on_stretches_of_long_absent_videos() -> None:
    raw, annotations = population(0, 40, 40)
    long = [
        RawPrediction(r.proposals, r.saliency, (r, r), np.array([0, 1])) if a.windows_s == () else r
        for r, a in zip(raw, annotations, strict=True)
    ]
    # Both halves of a doubled video look like the video, so the fit is the same.
    assert fit_calibration(long, annotations) == fit_calibration(raw, annotations)

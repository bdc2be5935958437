import gzip
import json
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from demr.annotations.annotations import Annotation, read_annotations, write_annotations
from demr.errors import AnnotationError
from demr.evaluation.measuring import PredictionWarning, evaluate_predictions, measure
from demr.evaluation.predictions import PredictionRecord, read_predictions, write_predictions

RECORD: dict[str, Any] = {
    "qid": 7,
    "query": "a man opens a door",
    "vid": "v1",
    "pred_relevant_windows": [[2, 6, 0.9], [20, 25.5, 0.1]],
}
QUERY: dict[str, Any] = {
    "query": "a man opens a door",
    "vid": "v1",
    "duration": 30,
    "relevant_windows": [[2, 6]],
}
OWN: dict[str, Any] = {
    "intervals": [[[1, 3], [5, 7]], [[19, 21], [25, 26]]],
    "aleatoric": [[0.1, 0.2], [0.3, 0.4]],
    "epistemic": [[0.5, 0.6], [0.7, 0.8]],
    "present": 0.75,
}


def save(path: Path, records: Sequence[object]) -> Path:
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def asked(
    qid: int | str, windows: Sequence[tuple[float, float]] | None = ((2.0, 6.0),), vid: str = "v1"
) -> Annotation:
    known = None if windows is None else tuple(windows)
    return Annotation(qid, "a man opens a door", vid, 30.0, known)


def predicted(qid: int | str, *windows: tuple[float, float, float], **own: Any) -> PredictionRecord:
    table = np.array(windows, dtype=np.float64).reshape(-1, 3)
    arrays: dict[str, Any] = {key: np.asarray(value, np.float64) for key, value in own.items()}
    return PredictionRecord(qid, table, **arrays)


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
def test_all_keys_are_read(tmp_path: Path, name: str) -> None:
    path = save(
        tmp_path / name,
        [RECORD | OWN | {"pred_saliency_scores": [1, -2.5]}, {**RECORD, "qid": "x"}],
    )
    first, second = read_predictions(path)
    assert (first.qid, first.vid, first.query) == (7, "v1", "a man opens a door")
    np.testing.assert_array_equal(first.windows, [[2, 6, 0.9], [20, 25.5, 0.1]])
    assert first.saliency is not None
    assert first.saliency.tolist() == [1, -2.5]
    assert first.intervals is not None
    assert first.intervals.shape == (2, 2, 2)
    assert first.aleatoric is not None
    assert first.aleatoric.tolist() == [[0.1, 0.2], [0.3, 0.4]]
    assert first.epistemic is not None
    assert (first.present, second.present) == (0.75, None)
    assert (second.qid, second.intervals, second.saliency) == ("x", None, None)
    assert second.place == f"{path}:2"


def test_null_is_a_missing_key_and_no_window_is_an_answer(tmp_path: Path) -> None:
    empty = {
        "qid": 1,
        "pred_relevant_windows": [],
        "intervals": [],
        "aleatoric": [],
        "present": None,
    }
    saliency = {"qid": 2, "pred_relevant_windows": None, "pred_saliency_scores": [0.5]}
    first, second = read_predictions(save(tmp_path / "p.jsonl", [empty, saliency]))
    assert first.windows.shape == second.windows.shape == (0, 3)
    assert first.intervals is not None
    assert first.intervals.shape == (0, 2, 2)
    assert (first.vid, first.present) == (None, None)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"pred_relevant_windows": []}, "as qid"),
        (RECORD | {"qid": 1.5}, "as qid"),
        (
            {"qid": 1, "vid": "v"},
            "the key pred_relevant_windows or pred_saliency_scores, got qid, vid",
        ),
        (RECORD | {"pred_relevant_windows": [[1, 2]]}, "[[start, end, score], ...]"),
        (RECORD | {"pred_relevant_windows": [1, 2, 3]}, "[[start, end, score], ...]"),
        (RECORD | {"pred_relevant_windows": [[1, 2, 3], [1, 2]]}, "[[start, end, score], ...]"),
        (RECORD | {"pred_relevant_windows": [[]]}, "[[start, end, score], ...]"),
        (RECORD | {"pred_relevant_windows": {"a": 1}}, "[[start, end, score], ...]"),
        (RECORD | {"pred_relevant_windows": [["1", 2, 3]]}, "[[start, end, score], ...]"),
        (RECORD | {"pred_relevant_windows": [[1, None, 3]]}, "[[start, end, score], ...]"),
        (RECORD | {"pred_relevant_windows": [[1, 2, 10**400]]}, "[[start, end, score], ...]"),
        (RECORD | {"pred_relevant_windows": [[1, 2, 3], [1, 2, math.nan]]}, "[1.0, 2.0, nan] at 1"),
        (RECORD | {"pred_relevant_windows": [[1, math.inf, 3]]}, "finite numbers"),
        (RECORD | {"pred_saliency_scores": [0.1, math.nan]}, "nan at 1"),
        (RECORD | {"pred_saliency_scores": [[0.1]]}, "one score a clip"),
        (RECORD | OWN | {"intervals": OWN["intervals"][:1]}, "for 2 windows under intervals"),
        (RECORD | OWN | {"intervals": [[[3, 1], [5, 7]]] * 2}, "low above high"),
        (RECORD | OWN | {"aleatoric": [0.1, 0.2]}, "for 2 windows under aleatoric"),
        (RECORD | OWN | {"aleatoric": []}, "for 2 windows under aleatoric"),
        (RECORD | OWN | {"epistemic": [[-1, 0], [0, 0]]}, "at least 0 as epistemic, got -1.0"),
        (RECORD | OWN | {"present": 1.5}, "a probability in 0..1"),
        (RECORD | OWN | {"present": math.nan}, "a probability in 0..1"),
        (RECORD | OWN | {"present": True}, "a probability in 0..1"),
        ([RECORD], "one JSON object a line"),
        (RECORD, "qid 7 again, first at"),
        (RECORD | {"qid": "7", "vid": None}, "qid '7' again, first at"),
    ],
)
def test_damage_is_named_by_file_and_line(tmp_path: Path, record: object, message: str) -> None:
    path = save(tmp_path / "p.jsonl", [RECORD, record])
    with pytest.raises(AnnotationError) as caught:
        read_predictions(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = save(tmp_path / "p.jsonl", [RECORD])
    path.write_text(path.read_text() + '{"qid": 8, "pred_rel')
    with pytest.raises(AnnotationError, match=r"p\.jsonl:2: expected one JSON object a line"):
        read_predictions(path)
    path.write_text("\n")
    with pytest.raises(AnnotationError, match="at least one prediction"):
        read_predictions(path)
    with pytest.raises(AnnotationError, match="a file of predictions, got No such file"):
        read_predictions(tmp_path / "missing.jsonl")
    half = save(tmp_path / "half.jsonl.gz", [RECORD] * 50)
    half.write_bytes(half.read_bytes()[:40])
    with pytest.raises(AnnotationError, match="half"):
        read_predictions(half)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)


@given(
    changed=st.dictionaries(
        st.sampled_from([*RECORD, *OWN, "pred_saliency_scores"]), values, min_size=1, max_size=3
    )
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_values_are_read_or_refused_in_one_line(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    path = save(tmp_path / "wild.jsonl", [RECORD | OWN | changed])
    try:
        (read,) = read_predictions(path)
    except AnnotationError as error:
        refusal = str(error)
        assert "\n" not in refusal
    else:
        assert np.isfinite(read.windows).all()


def test_joining_counts_what_does_not_fit() -> None:
    predictions = [
        predicted("a", (2, 6, 0.9)),
        predicted("b"),
        predicted("c", (9, 9, 0.5)),
        predicted("stranger", (0, 1, 1.0)),
    ]
    annotations = [asked(qid) for qid in "abcd"] + [asked("e", None), asked("f", ())]
    found = measure(predictions, annotations)
    assert found.metrics["queries"] == 4
    assert found.metrics["R1@0.7"] == 25
    assert found.metrics["dR1@0.5"] == 25
    assert found.metrics["absent_queries"] == 1
    assert found.metrics["queries_without_predictions"] == 3
    assert found.notes == (
        "1 predictions for queries that the annotations do not have: ignored (such as 'stranger')",
        "3 of 6 annotated queries without a prediction: counted as misses (such as 'd')",
        "1 queries whose windows are unknown: left out (such as 'e')",
        "1 predictions without windows: counted as misses (such as 'b')",
        "1 predictions with windows of no length or reversed: they overlap nothing (such as 'c')",
    )
    assert not any(
        "/" in key and key.split("/")[0] in ("presence", "interval", "highlights")
        for key in found.metrics
    )


def test_what_cannot_be_compared() -> None:
    with pytest.raises(AnnotationError, match="no common qid"):
        measure([predicted("a", (0, 1, 1))], [asked("b")])
    with pytest.raises(AnnotationError, match="at least one of each, got 1 and 0"):
        measure([predicted("a", (0, 1, 1))], [])
    with pytest.raises(AnnotationError, match="answers are not public"):
        measure([predicted("a", (0, 1, 1))], [asked("a", None)])
    other = PredictionRecord("a", np.array([[0.0, 1.0, 1.0]]), vid="v2", place="p.jsonl:3")
    with pytest.raises(AnnotationError, match=r"p\.jsonl:3: expected the video v1 of query 'a'"):
        measure([other], [asked("a")])


def test_intervals_and_uncertainty_by_hand() -> None:
    # Mean errors of the first windows: 0.5, 2 and 3 seconds.
    starts = {"a": (2, 7), "b": (4, 8), "c": (5, 9)}
    deviation = {"a": 0.1, "b": 0.3, "c": 0.2}
    predictions = [
        predicted(
            qid,
            (start, end, 0.9),
            intervals=[[[start - 1, start + 1], [end - 2.5, end + 2.5]]],
            aleatoric=[[deviation[qid]] * 2],
            epistemic=[[1.0 - deviation[qid]] * 2],
        )
        for qid, (start, end) in starts.items()
    ]
    # The second true window of "a" is far away and must not be taken.
    annotations = [asked("a", [(20, 25), (2, 6)]), asked("b"), asked("c")]
    got = measure(predictions, annotations).metrics
    assert got["uncertainty/mean error s"] == pytest.approx(5.5 / 3)
    assert got["interval/coverage start"] == pytest.approx(1 / 3)
    assert got["interval/coverage end"] == pytest.approx(2 / 3)
    assert got["interval/coverage joint"] == pytest.approx(1 / 3)
    assert got["interval/width start s"] == pytest.approx(2)
    assert got["interval/width end s"] == pytest.approx(5)
    # Ranks of the error 1, 2, 3 against 1, 3, 2.
    assert got["uncertainty/spearman/AU"] == pytest.approx(0.5)
    assert got["uncertainty/spearman/EU"] == pytest.approx(-0.5)
    partial = measure([*predictions[:2], predicted("c", (5, 9, 0.9))], annotations).metrics
    assert not any(key.startswith("uncertainty/spearman") for key in partial)
    # "c" has no interval: it is counted, and the others are measured.
    assert partial["interval/without"] == 1
    assert "interval/without" not in got
    two = measure(predictions[:2], annotations[:2]).metrics
    assert partial["interval/coverage mean"] == two["interval/coverage mean"]
    assert partial["uncertainty/mean error s"] == got["uncertainty/mean error s"]


def test_presence_by_hand() -> None:
    def says(qid: str, present: float | None) -> PredictionRecord:
        verdict = "uncertain" if present is None else "found"
        return PredictionRecord(qid, np.zeros((0, 3)), present=present, verdict=verdict)

    annotations = [asked("a"), asked("b"), asked("c", ()), asked("d", ())]
    predictions = [says("a", 0.9), says("b", 0.4), says("c", 0.4), says("d", 0.1)]
    got = measure(predictions, annotations).metrics
    assert got["presence/AUROC"] == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert got["presence/brier"] == pytest.approx((0.01 + 0.36 + 0.16 + 0.01) / 4)
    assert got["presence/ECE"] == pytest.approx((0.1 + 2 * 0.1 + 0.1) / 4)
    assert "presence/not judged" not in got
    # What could not be judged is counted beside what was.
    some = measure([*predictions[:3], says("d", None)], annotations).metrics
    assert some["presence/not judged"] == 1
    assert some["presence/AUROC"] == pytest.approx((1 + 0.5) / 2)
    assert some["presence/brier"] == pytest.approx((0.01 + 0.36 + 0.16) / 3)
    none = [says(qid, None) for qid in "abcd"]
    said = {k: v for k, v in measure(none, annotations).metrics.items() if "presence" in k}
    # All four are answered: the two absent ones wrongly, and without windows the others, too.
    overlaps = {f"presence/G-mIoU@{k}": 50.0 for k in (1, 3, 5)}
    assert said == {"presence/not judged": 4, "presence/Rej-F1": 0.0} | overlaps
    # Predictions of others say nothing of presence, and nothing is said of them.
    foreign = [replace(one, verdict=None) for one in none]
    assert not any("presence" in key for key in measure(foreign, annotations).metrics)
    assert "presence/AUROC" not in measure(predictions[:2], annotations[:2]).metrics


def test_rejected_queries_by_hand() -> None:
    annotations = [asked("a"), asked("b"), asked("c", ()), asked("d", ())]  # 2..6 s or absent

    def answered(verdicts: dict[str, str | None], **present: float) -> dict[str, float]:
        records = [
            replace(predicted(qid, (2, 4, 0.9), (8, 9, 0.5)), verdict=v, present=present.get(qid))
            for qid, v in verdicts.items()
        ]
        return measure(records, annotations).metrics

    no = "not in this video"
    # Of b, c rejected one is absent, and one of the two absent ones is rejected. Overlaps with one
    # window: 1/2, 0, 1 and 0; the second is no moment, so with it a's is 0.5 / 2.
    got = answered({"a": "found", "b": no, "c": no, "d": "uncertain"})
    assert got["presence/Rej-F1"] == pytest.approx(50)
    assert got["presence/G-mIoU@1"] == pytest.approx(100 * 1.5 / 4)
    assert got["presence/G-mIoU@3"] == pytest.approx(100 * 1.25 / 4)
    # Files without a verdict reject by their probability, at 0.4 as the benchmark does.
    by_chance = answered(dict.fromkeys("abcd"), a=0.41, b=0.4, c=0.1, d=0.9)
    assert by_chance["presence/Rej-F1"] == pytest.approx(50)
    assert by_chance["presence/G-mIoU@1"] == got["presence/G-mIoU@1"]


def test_scores_of_intervals_and_of_student_t_s_by_hand() -> None:
    predictions = [
        predicted(
            qid,
            (start, end, score),
            intervals=[[[start - 1, start + 1], [end - 2, end + 2]]],
            aleatoric=[[1.0, 1.0]],
            epistemic=[[wide, wide]],
            scale=[[wide, wide]],
            alpha=[[1.5, 1.5]],
        )
        for qid, start, end, score, wide in [("a", 2, 7, 0.9, 1.0), ("b", 5, 9, 0.8, 4.0)]
    ]
    got = measure(predictions, [asked("a"), asked("b")]).metrics
    # True windows 2..6 s: inside, inside; 2 s below 4..6 and 1 s below 7..11.
    # Widths 2 and 4; 20 times what lies outside.
    assert got["interval/winkler s"] == pytest.approx((2 + 4 + (2 + 20 * 2) + (4 + 20 * 1)) / 4)
    assert "interval/worst slab" not in got  # four boundaries
    # Student-t with three degrees of freedom: z = 0, -1, -3/4, -3/4.
    pit = stats.t.cdf([0, -1, -0.75, -0.75], 3)
    miss = [abs(np.mean(abs(2 * pit - 1) <= a) - a) for a in np.linspace(0.05, 0.95, 15)]
    assert got["uncertainty/quantile calibration error"] == pytest.approx(np.mean(miss))
    half = stats.t.ppf(0.75, 3)  # 0.76: all but z = -1 are inside
    assert got["uncertainty/coverage 0.5"] == 0.75
    ends = [(2, 7, 1.0), (5, 9, 4.0)]
    widths = [
        place + half * wide - max(place - half * wide, 0)
        for start, end, wide in ends
        for place in (start, end)
    ]
    assert got["uncertainty/width 0.5 s"] == pytest.approx(np.mean(widths))
    # "a" is right, "b" (IoU 1/7) wrong, and all measures know: one of two is round(1.6) = 2.
    assert got["uncertainty/R1@0.5 of the surest 80 %/score"] == 50
    assert got["uncertainty/spearman/scale"] == 1
    assert got["uncertainty/1-IoU/AUSE/EU"] == pytest.approx(0)


def test_the_least_sure_fifth_is_discarded() -> None:
    # The third of five is wrong; EU puts it last, the score first.
    places = [(2, 6), (2, 6), (50, 60), (2, 6), (2, 6)]
    names = "abcde"
    predictions = [
        predicted(
            qid,
            (*place, 0.9 if number == 2 else 0.5),
            aleatoric=[[1.0, 1.0]],
            epistemic=[[3.0 if number == 2 else 1.0] * 2],
        )
        for number, (qid, place) in enumerate(zip(names, places, strict=True))
    ]
    got = measure(predictions, [asked(qid) for qid in names]).metrics
    assert got["R1@0.5"] == 80
    assert got["uncertainty/R1@0.5 of the surest 80 %/EU"] == pytest.approx(100)
    assert got["uncertainty/R1@0.5 of the surest 80 %/score"] == pytest.approx(75)


def test_confidence_by_hand() -> None:
    def says(qid: str, *windows: tuple[float, float, float | None]) -> PredictionRecord:
        table = [(start, end, 0.5) for start, end, _ in windows]
        sure = [np.nan if value is None else value for *_, value in windows]
        return predicted(qid, *table, confidence=np.array(sure))

    annotations = [asked("a", [(0, 4), (20, 24)]), asked("b", [(10, 20)]), asked("c", ())]
    predictions = [
        # Right; a repetition, which is not told; right; wrong, though no window is left for it.
        says("a", (0, 4, 0.9), (0, 5, 0.0), (20, 24, 0.7), (30, 34, 0.1)),
        says("b", (0, 5, 0.4), (10, 19, 0.3)),  # wrong: half of it at least must overlap
        says("c", (3, 4, 0.2), (8, 9, None)),
    ]
    got = measure(predictions, annotations).metrics
    assert got["confidence/ECE"] == pytest.approx((0.1 + 0.4 + 0.2) / 3)
    assert got["confidence/AUROC"] == 1.0
    # Each moment has a window of its own: that of "b" was given to its first one.
    assert got["confidence/further ECE"] == pytest.approx((0.3 + 0.1 + 0.3) / 3)
    assert not any("confidence" in key for key in measure([predicted("b")], annotations).metrics)


def scored(qid: str, votes: dict[int, tuple[float, ...]]) -> Annotation:
    return Annotation(qid, "a dog", "v1", 6.0, None, saliency_votes=votes)


def test_highlights_without_windows() -> None:
    annotations = [scored("a", {1: (4.0, 1.0, 4.0)}), scored("b", {0: (4.0, 4.0, 4.0)})]
    found = measure(
        [predicted("a", saliency=[0, 5, 1]), predicted("b", saliency=[0, 5])], annotations
    )
    assert found.metrics["highlights/VeryGood/HIT@1"] == 50
    # Query a: two of three annotators have a highlight, found first. Query b: tied with clip 2.
    assert found.metrics["highlights/VeryGood/mAP"] == pytest.approx(100 * (2 + 3 / 3) / 6)
    assert "mAP" not in found.metrics
    assert found.notes == ()
    missing = measure([predicted("a", saliency=[0, 5, 1]), predicted("b")], annotations)
    assert missing.metrics["highlights/Fair/HIT@1"] == 50
    assert missing.notes == ("1 predictions without saliency: counted as misses (such as 'b')",)


def test_saliency_of_other_clips_or_annotators_is_not_compared() -> None:
    annotations = [scored("a", {1: (4.0, 1.0, 4.0)}), scored("b", {0: (4.0, 2.0)})]
    predictions = [predicted("a", saliency=[0.0] * 12), predicted("b", saliency=[0.0] * 12)]
    found = measure(predictions, annotations)
    assert "highlights/Fair/mAP" not in found.metrics
    assert found.notes[0].startswith("2 predictions whose saliency is not for clips of 2 s")
    found = measure([predicted("a", saliency=[0.0] * 3)], annotations)
    assert found.notes[-1].startswith("queries were scored by different numbers of annotators")
    predictions = [predicted("a", saliency=[0.0] * 3)]
    assert "highlights/Fair/mAP" in measure(predictions, annotations[:1]).metrics


def test_files_become_metrics_and_warnings(tmp_path: Path) -> None:
    truth = tmp_path / "a.jsonl"
    write_annotations(truth, [asked(7), asked(8, ((20.0, 25.5),))])
    path = save(tmp_path / "p.jsonl", [RECORD])
    with pytest.warns(PredictionWarning, match="1 of 2 annotated queries") as caught:
        assert evaluate_predictions(path, truth)["R1@0.5"] == 50
    assert len(caught) == 1
    save(
        truth, [{"qid": 7, "query": "x", "vid": "v1", "duration": 5, "relevant_windows": [[2, 6]]}]
    )
    with pytest.warns(PredictionWarning) as caught:
        assert evaluate_predictions(path, truth)["R1@0.7"] == 100
    assert str(caught[0].message) == "annotations: 1 queries: 1 windows clipped to the duration"
    write_annotations(truth, [asked(9)])
    with pytest.raises(AnnotationError, match=r"p\.jsonl and .*a\.jsonl: expected at least one"):
        evaluate_predictions(path, truth)


def test_qids_of_written_predictions_are_those_of_the_annotations(tmp_path: Path) -> None:
    """The field's evaluator stops unless the two sets of qids are equal."""
    save(tmp_path / "a.jsonl", [{**QUERY, "qid": 2579}, {**QUERY, "qid": "2580"}])
    annotations = read_annotations(tmp_path / "a.jsonl")
    records = [PredictionRecord(a.qid, np.array([[2.0, 6.0, 1.0]]), a.vid) for a in annotations]
    write_predictions(tmp_path / "p.jsonl", records)
    written, given = (
        {json.loads(line)["qid"] for line in (tmp_path / name).read_text().splitlines()}
        for name in ("p.jsonl", "a.jsonl")
    )
    assert written == given == {2579, "2580"}
    assert {p.qid for p in read_predictions(tmp_path / "p.jsonl")} == given


@pytest.mark.parametrize(("left", "right"), [(7, "7"), ("7", 7)])
def test_a_number_joins_its_digits_and_that_is_said_once(left: int | str, right: int | str) -> None:
    predictions = [predicted(left, (2, 6, 0.9)), predicted("b", (2, 6, 0.9))]
    found = measure(predictions, [asked(right), asked("b")])
    assert found.metrics["R1@0.7"] == 100
    assert found.notes == (
        (
            "1 qids are numbers in one file and text in the other: joined all the same, which the "
            f"field's evaluator does not (such as {right!r})"
        ),
    )


def negative(vid: str, query: str = "a man opens a door") -> Annotation:
    return Annotation(7, query, vid, 30.0, ())


def of_video(vid: str | None, window: tuple[float, float, float], **own: Any) -> PredictionRecord:
    return replace(predicted(7, window), vid=vid, place="p.jsonl:4", **own)


def test_a_shared_qid_is_joined_by_its_video(tmp_path: Path) -> None:
    annotations = [asked(7), negative("v2"), negative("v3"), negative("v1", "an eagle hunts")]
    predictions = [
        of_video("v2", (9, 20, 0.1), present=0.1),
        of_video("v1", (2, 6, 0.9), present=0.8, query="a man  opens a door"),
        of_video("v1", (9, 20, 0.2), present=0.2, query="an eagle hunts"),
        of_video("v4", (2, 6, 0.9), present=0.8),
    ]
    found = measure(predictions, annotations)
    assert (found.metrics["R1@0.7"], found.metrics["absent_queries"]) == (100, 3)
    assert found.metrics["presence/AUROC"] == 1
    assert found.notes == (
        "1 predictions for queries that the annotations do not have: ignored (such as 7)",
        "1 of 4 annotated queries without a prediction: counted as misses (such as 7)",
    )
    write_predictions(tmp_path / "p.jsonl", predictions)
    again = measure(read_predictions(tmp_path / "p.jsonl"), annotations)
    assert again.metrics == pytest.approx(found.metrics, nan_ok=True)
    with pytest.raises(AnnotationError, match=r"p\.jsonl:4: expected the video beside qid 7"):
        measure([of_video(None, (2, 6, 0.9))], annotations)
    write_predictions(tmp_path / "p.jsonl", [predictions[0], of_video(None, (2, 6, 0.9))])
    with pytest.raises(AnnotationError, match="expected one prediction a query, got qid 7 again"):
        read_predictions(tmp_path / "p.jsonl")


def test_the_ending_of_a_video_s_file_does_not_matter() -> None:
    prediction = replace(predicted("a", (2, 6, 0.9)), vid="v1.mp4")
    assert measure([prediction], [asked("a")]).metrics["R1@0.7"] == 100


def test_windows_as_annotated_are_measured_on_request(tmp_path: Path) -> None:
    windows = {
        1: [[20, 40]],  # in 30 s: IoU of 20 to 30 is 1 with the clipped window, 1/2 with the whole
        2: [[32, 40]],  # after the end: unknown, or a miss
        3: [[4, 4]],  # no length: likewise
        4: [[2, 6]],
        5: [],
    }
    save(
        tmp_path / "a.jsonl",
        [{**QUERY, "qid": q, "relevant_windows": w} for q, w in windows.items()],
    )
    predictions = [[20, 30, 1], [2, 6, 1], [2, 6, 1], [2, 6, 1], [2, 6, 1]]
    save(
        tmp_path / "p.jsonl",
        [{"qid": q, "pred_relevant_windows": [w]} for q, w in enumerate(predictions, 1)],
    )
    moved = (
        r"the true windows of 3 queries are clipped .* as annotated \(--unclipped\): "
        r"R1@0\.5 50\.00 instead of 100\.00, R1@0\.7 25\.00 instead of 100\.00, "
        r"mIoU 37\.50 instead of 100\.00"
    )
    with pytest.warns(PredictionWarning) as default:
        clipped = evaluate_predictions(tmp_path / "p.jsonl", tmp_path / "a.jsonl")
    assert any(re.search(moved, str(warning.message)) for warning in default)
    with pytest.warns(PredictionWarning) as caught:
        whole = evaluate_predictions(tmp_path / "p.jsonl", tmp_path / "a.jsonl", unclipped=True)
    assert not any("instead of" in str(warning.message) for warning in caught)
    assert (clipped["queries"], clipped["R1@0.5"], clipped["mIoU"]) == (2, 100, 100)
    assert (whole["queries"], whole["R1@0.5"], whole["mIoU"]) == (4, 50, 37.5)
    assert clipped["absent_queries"] == whole["absent_queries"] == 1


def test_recall_at_further_thresholds() -> None:
    predictions = [predicted("a", (2, 10, 1)), predicted("b", (2, 12, 1))]  # IoU 1/2 and 2/5
    annotations = [asked("a"), asked("b")]
    got = measure(predictions, annotations, thresholds=(0.35, 0.4, 0.45)).metrics
    assert [got[f"R1@{t}"] for t in (0.35, 0.4, 0.45, 0.5)] == [100, 100, 50, 50]
    assert (got["R5@0.45"], got["short/R1@0.45"]) == (50, 50)
    plain = measure(predictions, annotations).metrics
    assert "R1@0.4" not in plain
    assert {k: v for k, v in got.items() if k in plain} == pytest.approx(plain, nan_ok=True)


def test_windows_not_sorted_by_score_are_noted() -> None:
    rising = predicted("a", (20, 25, 0.1), (2, 6, 0.9))
    found = measure([rising, predicted("b", (2, 6, 0.5), (3, 6, 0.5))], [asked("a"), asked("b")])
    assert (found.metrics["R1@0.7"], found.metrics["mAP"]) == (50, 100)
    assert found.notes == (
        (
            "1 predictions whose windows are not sorted by score: recall (R1, R5, mIoU) takes them "
            "in the order given and mAP by score, as the field does (such as 'a')"
        ),
    )


def test_torch_is_not_needed(tmp_path: Path) -> None:
    """Not by the command either, whatever it writes: importing it takes seconds."""
    write_annotations(tmp_path / "a.jsonl", [asked(7)])
    save(tmp_path / "p.jsonl", [RECORD])
    code = (
        "import sys\nfrom demr.cli.main import main\ntry:\n    main()\n"
        "except SystemExit as stop:\n    sys.exit(stop.code or 'torch' in sys.modules)"
    )
    arguments = ["evaluate", "--predictions", "p.jsonl", "--annotations", "a.jsonl"]
    subprocess.run(
        [sys.executable, "-c", code, *arguments, "--json", "out.json"], check=True, cwd=tmp_path
    )
    assert json.loads((tmp_path / "out.json").read_text())["all"]["R1@0.5"] == 100


@pytest.mark.data
@pytest.mark.parametrize("name", ["moment_detr_sample_val", "qd_detr_video_val"])
def test_the_field_s_numbers_on_qvhighlights(name: str, data_dir: Path) -> None:
    golden = data_dir / "golden_eval" / "qvhighlights"
    published = json.loads((golden / f"{name}_metrics_published.json").read_text())
    truth = data_dir / "annotations" / "qvhighlights" / "val.jsonl"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = evaluate_predictions(golden / f"{name}_preds.jsonl.gz", truth)
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
    for level in ("Fair", "Good", "VeryGood"):
        values = published[f"HL-min-{level}"]
        assert got[f"highlights/{level}/mAP"] == pytest.approx(values["HL-mAP"], abs=0.00501)
        assert got[f"highlights/{level}/HIT@1"] == pytest.approx(values["HL-Hit1"], abs=0.00501)
        compared += 2
    assert compared == 4 * 21 + 6


@pytest.mark.data
def test_the_published_numbers_on_charades_sta(data_dir: Path, tmp_path: Path) -> None:
    golden = data_dir / "golden_eval" / "charades_sta"
    published = json.loads(
        (golden / "moment_detr_zeroshot_test_metrics_published.json").read_text()
    )
    # Somebody else's form: the windows stand under another key.
    text = gzip.decompress((golden / "moment_detr_zeroshot_test_preds.jsonl.gz").read_bytes())
    path = tmp_path / "p.jsonl"
    path.write_bytes(text.replace(b'"ranked_predicted_windows"', b'"pred_relevant_windows"'))
    got = evaluate_predictions(path, golden / "some1else_format_test_gt.jsonl.gz")
    assert got["queries"] == published["evaluated_queries"]
    assert got["mIoU"] == pytest.approx(100 * published["mIoU"], abs=0.005)
    for threshold in ("0.3", "0.5", "0.7"):
        value = 100 * published[f"R@1_IoU_{threshold}"]
        assert got[f"R1@{threshold}"] == pytest.approx(value, abs=0.005)


@pytest.mark.data
def test_predictions_of_another_split_are_refused(data_dir: Path) -> None:
    golden = data_dir / "golden_eval" / "qvhighlights" / "qd_detr_video_val_preds.jsonl.gz"
    test = data_dir / "annotations" / "qvhighlights" / "test.jsonl"
    assert read_annotations(test)[0].windows_s is None
    with pytest.raises(AnnotationError, match="no common qid"):
        evaluate_predictions(golden, test)

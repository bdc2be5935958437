import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demr.annotations.annotations import (
    Annotation,
    read_annotations,
    read_annotations_with_report,
    saliency_votes,
    tidy_query,
    write_annotations,
)
from demr.errors import AnnotationError

RECORD = {
    "qid": 7,
    "query": "a man opens a door",
    "vid": "v1",
    "duration": 30,
    "relevant_windows": [[2, 5.5]],
}


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def make(text: str, name: str = "queries.jsonl") -> Path:
        path = tmp_path / name
        data = text.encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return make


Maker = Callable[..., Path]


def test_a_record_with_the_required_keys_alone(file: Maker) -> None:
    record = {key: value for key, value in RECORD.items() if key != "qid"}
    found, report = read_annotations_with_report(file("\n" + lines(record)))
    window = ((2.0, 5.5),)
    assert found == [Annotation("v1_2", "a man opens a door", "v1", 30.0, window)]
    assert report.named == 1


@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz", "q.json", "q"])
def test_names_and_compression_do_not_matter(file: Maker, name: str) -> None:
    found = read_annotations(file(lines(RECORD, RECORD | {"qid": "x"}), name))
    assert [annotation.qid for annotation in found] == [7, "x"]


def test_a_list_of_records(file: Maker) -> None:
    assert len(read_annotations(file(json.dumps([RECORD, RECORD | {"qid": 8}]), "q.json"))) == 2


def test_a_byte_order_mark_and_windows_line_ends(file: Maker) -> None:
    text = "\ufeff" + lines(RECORD, RECORD | {"qid": 8}).replace("\n", "\r\n")
    assert len(read_annotations(file(text))) == 2


def test_all_keys(file: Maker) -> None:
    record = RECORD | {
        "relevant_clip_ids": [1, 2],
        "saliency_scores": [[4, 4, 1], [0, 0, 0]],
        "event": "red-circle-bounces",
        "kind": "vague",
    }
    (found,) = read_annotations(file(lines(record)))
    assert found.saliency == {1: 0.75, 2: 0.0}
    assert (found.event, found.kind) == ("red-circle-bounces", "vague")


@pytest.mark.parametrize(
    ("windows", "expected", "counted"),
    [
        ([[5, 2]], ((2.0, 5.0),), "swapped"),
        ([[20, 31]], ((20.0, 30.0),), "clipped"),
        ([[-1, 31]], ((0.0, 30.0),), "clipped"),
        ([[20, 30.01]], ((20.0, 30.0),), "trimmed"),
        ([[31, 40], [1, 2]], ((1.0, 2.0),), "after_end"),
        ([[30, 40], [1, 2]], ((1.0, 2.0),), "after_end"),
        ([[3, 3], [1, 2]], ((1.0, 2.0),), "zero_length"),
        ([[3, 3]], None, "emptied"),
        ([], (), "absent"),
        (None, None, "unknown"),
    ],
)
def test_windows_are_repaired_and_counted(
    file: Maker, windows: Any, expected: tuple[tuple[float, float], ...] | None, counted: str
) -> None:
    path = file(lines(RECORD | {"relevant_windows": windows}))
    (found,), report = read_annotations_with_report(path)
    assert found.windows_s == expected
    assert getattr(report, counted) == 1
    assert found.kind == ("absent" if expected == () else "present")


def test_floating_point_noise_is_cut_and_not_counted(file: Maker) -> None:
    path = file(lines(RECORD | {"relevant_windows": [[20, 30 + 1e-12]]}))
    (found,), report = read_annotations_with_report(path)
    assert found.windows_s == ((20.0, 30.0),)
    assert (report.clipped, report.trimmed, found.annotated_s) == (0, 0, None)


def test_several_windows_and_the_whole_video_are_kept(file: Maker) -> None:
    windows = [[0, 30], [9, 10], [1, 2]]
    (found,), report = read_annotations_with_report(
        file(lines(RECORD | {"relevant_windows": windows}))
    )
    assert found.windows_s == ((0.0, 30.0), (9.0, 10.0), (1.0, 2.0))
    assert report.summary() == "1 queries, no repairs"


def test_the_summary_is_one_line_with_the_counts(file: Maker) -> None:
    text = lines(
        RECORD | {"relevant_windows": [[20, 31], [32, 33], [4, 4], [9, 8]]},
        RECORD | {"qid": 8, "query": " a\ndog "},
        RECORD | {"qid": 8, "query": " a\ndog "},
    )
    _, report = read_annotations_with_report(file(text))
    assert report.summary() == (
        "2 queries: 1 windows clipped to the duration, 1 windows reversed: start and end swapped, "
        "1 dropped: start after the end, 1 dropped: zero length, "
        "2 queries with surplus blanks tidied, 1 exact repetitions dropped"
    )


def test_queries_are_tidied() -> None:
    assert tidy_query("  a man\r\nopens\u00a0a  door ") == "a man opens a door"
    assert Annotation("1", "  a\ndog ", "v", 1.0, None).query == "a dog"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"query": "x", "vid": "v"}, "expected the key 'duration'"),
        ({"vid": "v", "duration": 3}, "expected the key 'query'"),
        ({}, "expected the key 'query', got nothing"),
        (RECORD | {"query": " \n "}, "at least one word"),
        (RECORD | {"query": None}, "at least one word"),
        (RECORD | {"query": "\ud800"}, "printable"),
        (RECORD | {"duration": 0}, "duration above 0 s"),
        (RECORD | {"duration": -2.5}, "duration above 0 s"),
        (RECORD | {"duration": float("nan")}, "finite number as duration"),
        (RECORD | {"duration": float("inf")}, "finite number as duration"),
        (RECORD | {"duration": 10**400}, "finite number as duration"),
        (RECORD | {"duration": "30"}, "a number as duration"),
        (RECORD | {"duration": True}, "a number as duration"),
        (RECORD | {"vid": ""}, "as vid"),
        (RECORD | {"vid": None}, "as vid"),
        (RECORD | {"qid": 1.5}, "as qid"),
        (RECORD | {"relevant_windows": [2, 5]}, "windows of"),
        (RECORD | {"relevant_windows": [[2]]}, "windows of"),
        (RECORD | {"relevant_windows": {"a": 1}}, "a list of"),
        (RECORD | {"relevant_windows": [[2, None]]}, "a number as window"),
        (RECORD | {"relevant_windows": [[2, float("nan")]]}, "a finite number as window"),
        (RECORD | {"relevant_clip_ids": [1], "saliency_scores": []}, "per relevant clip"),
        (RECORD | {"relevant_clip_ids": ["1"], "saliency_scores": [[1]]}, "clip numbers"),
        (RECORD | {"relevant_clip_ids": [1], "saliency_scores": [[]]}, "per clip"),
        (RECORD | {"relevant_clip_ids": [1], "saliency_scores": [[5]]}, "saliency in 0..1"),
        (RECORD | {"relevant_clip_ids": [-1], "saliency_scores": [[1]]}, "clips from 0"),
        # 1 comes first, and true equals it.
        (
            RECORD | {"relevant_clip_ids": [1, 2], "saliency_scores": [[1], [True]]},
            "a number as saliency, got True",
        ),
        (RECORD | {"relevant_clip_ids": [1], "saliency_scores": [[[1]]]}, "number as saliency"),
        (RECORD | {"relevant_clip_ids": [1], "saliency_scores": [[10**400]]}, "a finite number"),
        (RECORD | {"relevant_clip_ids": [True], "saliency_scores": [[1]]}, "clip numbers"),
        (RECORD | {"relevant_clip_ids": [2**63], "saliency_scores": [[1]]}, "clip numbers"),
        (RECORD | {"event": 3}, "text under 'event'"),
        (RECORD | {"kind": None}, "text under 'event' and 'kind'"),
        ([RECORD], "one JSON object a line"),
        (3, "one JSON object a line"),
        (RECORD | {"query": "another"}, "qid 7 again"),
    ],
)
def test_a_broken_record_is_named_by_file_and_line(
    file: Maker, record: object, message: str
) -> None:
    path = file(lines(RECORD, record))
    with pytest.raises(AnnotationError) as caught:
        read_annotations(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 250


@pytest.mark.parametrize("line", ["{", "not json", '{"a": 1} {"b": 2}', "[" * 100_000, "\x00"])
def test_what_is_no_json_is_named_by_file_and_line(file: Maker, line: str) -> None:
    path = file(lines(RECORD) + line + "\n")
    with pytest.raises(AnnotationError, match=r":2: expected one JSON object a line"):
        read_annotations(path)


@pytest.mark.parametrize("text", ["", "\n\n", "{}", "[]"])
def test_a_file_without_queries(file: Maker, text: str) -> None:
    with pytest.raises(AnnotationError, match="expected at least one query, got none"):
        read_annotations(file(text))


def test_files_that_cannot_be_read(tmp_path: Path, file: Maker) -> None:
    with pytest.raises(AnnotationError, match="No such file"):
        read_annotations(tmp_path / "missing.jsonl")
    with pytest.raises(AnnotationError, match="directory"):
        read_annotations(tmp_path)
    path = file(lines(RECORD) * 50, "half.jsonl.gz")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(AnnotationError, match="half"):
        read_annotations(path)
    path.write_bytes(b"\x1f\x8b garbage")
    with pytest.raises(AnnotationError, match="half"):
        read_annotations(path)
    path.write_bytes(lines(RECORD).encode() + b'{"query": "caf\xe9"}')
    with pytest.raises(AnnotationError, match=r":2: expected UTF-8 text, got byte 0xe9"):
        read_annotations(path)


@given(st.text())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_read_or_refused_in_one_line(file: Maker, text: str) -> None:
    for name in ("x.jsonl", "x.json", "x.csv", "x.txt", "x"):
        try:
            read_annotations(file(text, name))
        except AnnotationError as error:
            refusal = str(error)
        else:
            continue
        assert "\n" not in refusal


names = st.text(min_size=1, max_size=8)
scores = st.floats(0, 1)


@st.composite
def annotations(draw: st.DrawFn) -> Annotation:
    duration = draw(st.floats(1e-3, 1e6))
    bounds = st.tuples(st.floats(0, duration), st.floats(0, duration)).filter(
        lambda window: window[0] != window[1]
    )
    ordered = bounds.map(lambda window: (min(window), max(window)))
    whole = st.integers(0, 4).map(float)
    votes = st.dictionaries(
        st.integers(0, 99), st.lists(whole, min_size=1, max_size=4).map(tuple), max_size=4
    )
    return Annotation(
        qid=draw(names),
        query=draw(st.text(min_size=1).filter(str.strip)),
        vid=draw(names),
        duration_s=duration,
        windows_s=draw(st.none() | st.lists(ordered, max_size=3).map(tuple)),
        saliency=draw(st.none() | st.dictionaries(st.integers(0, 10**6), scores, max_size=4)),
        event=draw(st.none() | st.text(max_size=5)),
        kind=draw(st.sampled_from(["present", "absent", "vague", "unknown"])),
        saliency_votes=draw(st.none() | votes),
    )


def test_votes_are_kept_where_annotators_differ(file: Maker) -> None:
    record = RECORD | {"relevant_clip_ids": [1, 2], "saliency_scores": [[4, 4, 1], [0, 0, 0]]}
    (found,) = read_annotations(file(lines(record)))
    assert found.saliency_votes == {1: (4.0, 4.0, 1.0), 2: (0.0, 0.0, 0.0)}
    assert saliency_votes(found) == found.saliency_votes
    (agreed,) = read_annotations(file(lines(record | {"saliency_scores": [[3] * 3, [1] * 3]})))
    assert agreed.saliency_votes is None
    assert agreed.saliency == {1: 0.75, 2: 0.25}
    assert saliency_votes(agreed) == {1: (3.0,) * 3, 2: (1.0,) * 3}
    assert saliency_votes(agreed, annotators=2)[1] == (3.0, 3.0)
    assert saliency_votes(Annotation("1", "a dog", "v", 3.0, None)) == {}


@given(
    written=st.lists(annotations(), min_size=1, max_size=5, unique_by=lambda one: one.qid),
    name=st.sampled_from(["a.jsonl", "b.jsonl.gz", "deep/c"]),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_back(tmp_path: Path, written: list[Annotation], name: str) -> None:
    write_annotations(tmp_path / name, written)
    found, report = read_annotations_with_report(tmp_path / name)
    assert found == written
    quiet = report.__dict__ | {"queries": 0, "unknown": 0, "absent": 0}
    assert not any(quiet.values())
    assert [len(list(folder.iterdir())) for folder in [(tmp_path / name).parent]] != [0]


@pytest.mark.parametrize("query", ["## a", "video,query", "a 1 2##b"])
def test_a_query_like_another_form_changes_nothing(tmp_path: Path, query: str) -> None:
    annotation = Annotation("1", query, "v", 3.0, None, event="\ud800")
    write_annotations(tmp_path / "no_ending", [annotation])
    assert read_annotations(tmp_path / "no_ending") == [annotation]


def test_the_same_queries_give_the_same_bytes(tmp_path: Path) -> None:
    annotation = Annotation("1", "caf\u00e9", "v", 3.0, ((0.0, 1.0),))
    write_annotations(tmp_path / "a.jsonl.gz", [annotation])
    write_annotations(tmp_path / "b.jsonl.gz", [annotation])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    write_annotations(tmp_path / "c.jsonl", [annotation])
    assert json.loads((tmp_path / "c.jsonl").read_text("utf-8")) == {
        "qid": "1",
        "query": "caf\u00e9",
        "vid": "v",
        "duration": 3.0,
        "relevant_windows": [[0.0, 1.0]],
    }


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    write_annotations(path, [Annotation("1", "a dog", "v", 3.0, None)])
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AnnotationError, match="No space left"):
        write_annotations(path, [Annotation("2", "a cat", "v", 3.0, None)])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_and_repeated_qids_are_not_written(tmp_path: Path) -> None:
    annotation = Annotation("1", "a dog", "v", 3.0, None)
    with pytest.raises(AnnotationError, match="at least one"):
        write_annotations(tmp_path / "a.jsonl", [])
    with pytest.raises(AnnotationError, match="twice"):
        write_annotations(tmp_path / "a.jsonl", [annotation, annotation])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"qid": ""},
        {"vid": ""},
        {"query": " "},
        {"duration_s": float("nan")},
        {"windows_s": ((2.0, 1.0),)},
        {"windows_s": ((1.0, 1.0),)},
        {"windows_s": ((1.0, 3.1),)},
        {"windows_s": ((float("nan"), 2.0),)},
        {"saliency": {0: 1.5}},
        {"saliency_votes": {0: (4.5,)}},
        {"saliency_votes": {0: ()}},
        {"saliency_votes": {-1: (1.0,)}},
    ],
)
def test_an_impossible_annotation_cannot_be_made(change: dict[str, Any]) -> None:
    values: dict[str, Any] = {"qid": "1", "query": "x", "vid": "v", "duration_s": 3.0}
    with pytest.raises(AnnotationError):
        Annotation(**({**values, "windows_s": None} | change))


def test_the_text_form(file: Maker) -> None:
    text = "AB 1.0 6.5##a person sits.\nAB 0 2 ##person  runs ## away\nCD 3 4##a dog\n"
    path = file(text, "q.txt")
    found, report = read_annotations_with_report(path, durations_s={"AB": 6.0})
    assert found == [
        Annotation("AB_1", "a person sits.", "AB", 6.0, ((1.0, 6.0),)),
        Annotation("AB_2", "person runs ## away", "AB", 6.0, ((0.0, 2.0),)),
        Annotation("CD_3", "a dog", "CD", 4.0, ((3.0, 4.0),)),
    ]
    assert (report.clipped, report.guessed_durations) == (1, 1)
    for broken in ("AB 1 x##a\n", "AB 1 2 a dog\n", "##\n"):
        with pytest.raises(AnnotationError, match=r":4: expected 'vid start end##sentence'"):
            read_annotations(file(text + broken, "q.txt"))
    with pytest.raises(AnnotationError, match=r":4: expected a query"):
        read_annotations(file(text + "AB 1 2##  \n", "q.txt"))


def test_the_tvsum_form(file: Maker) -> None:
    record = RECORD | {"duration": 2, "relevant_windows": None, "label": [[1.0, 2.0], [5.0, 5.0]]}
    (found,) = read_annotations(file(lines(record)))
    assert (found.duration_s, found.saliency) == (4.0, {0: 0.125, 1: 1.0})
    for label in ("a dog", [[1.0]], [[1.0], [None]], [1, 2]):  # somebody's own key of that name
        (found,) = read_annotations(file(lines(record | {"label": label})))
        assert (found.duration_s, found.saliency) == (2.0, None)


@pytest.mark.parametrize("key", ["duration", "video_duration"])
def test_the_caption_form(file: Maker, key: str) -> None:
    entry = {key: 9.5, "timestamps": [[0, 2], [8, 11]], "sentences": [" a dog", "a cat"]}
    path = file(json.dumps({"v_1": entry}), "q.json")
    found, report = read_annotations_with_report(path)
    assert found == [
        Annotation("v_1_0", "a dog", "v_1", 9.5, ((0.0, 2.0),)),
        Annotation("v_1_1", "a cat", "v_1", 9.5, ((8.0, 9.5),)),
    ]
    assert (report.clipped, report.tidied) == (1, 1)
    for change, message in (
        ({"sentences": ["one"]}, "2 and 1"),
        ({"sentences": "ab"}, "a list under 'sentences'"),
        ({key: None}, "a number as duration"),
    ):
        with pytest.raises(AnnotationError, match=message):
            read_annotations(file(json.dumps({"v_1": entry | change}), "q.json"))


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("qvhighlights/train.jsonl.gz", {"queries": 7218, "unknown": 0}),
        ("qvhighlights/val.jsonl", {"queries": 1550, "unknown": 0}),
        ("qvhighlights/test.jsonl", {"queries": 1542, "unknown": 1542}),
        ("charades_sta/train.jsonl.gz", {"queries": 12404, "clipped": 0}),
        ("charades_sta/test.jsonl", {"queries": 3720, "clipped": 0}),
        ("charades_sta/charades_sta_train.txt.gz", {"queries": 12408, "clipped": 0}),
        ("charades_sta/charades_sta_test.txt", {"queries": 3720, "guessed_durations": 1334}),
        ("charades_cd/charades_train.json.gz", {"queries": 11071, "clipped": 1639, "emptied": 0}),
        ("charades_cd/charades_val.json", {"queries": 859, "emptied": 0}),
        ("charades_cd/charades_test_iid.json", {"queries": 823, "emptied": 0}),
        ("charades_cd/charades_test_ood.json", {"queries": 3375, "after_end": 3, "emptied": 3}),
        ("tacos/train.jsonl.gz", {"queries": 9790, "repeated": 0}),
        ("tacos/val.jsonl.gz", {"queries": 4436}),
        ("tacos/test.jsonl.gz", {"queries": 4001}),
        (
            "activitynet/train.json.gz",
            {"queries": 37421, "swapped": 2, "zero_length": 2, "trimmed": 29, "clipped": 0},
        ),
        ("activitynet/val_1.json.gz", {"queries": 17505, "zero_length": 0}),
        ("activitynet/val_2.json.gz", {"queries": 17031, "zero_length": 0}),
        ("tvsum/train.jsonl", {"queries": 40, "unknown": 40}),
        ("tvsum/val.jsonl", {"queries": 10, "unknown": 10}),
    ],
)
def test_published_files(data_dir: Path, name: str, counts: dict[str, int]) -> None:
    found, report = read_annotations_with_report(data_dir / "annotations" / name)
    assert {key: getattr(report, key) for key in counts} == counts
    assert len(found) == report.queries


@pytest.mark.data
def test_published_highlights(data_dir: Path) -> None:
    first = read_annotations(data_dir / "annotations/qvhighlights/val.jsonl")[0]
    assert (first.qid, first.windows_s) == (2579, ((82.0, 150.0),))
    assert first.saliency is not None
    assert len(first.saliency) == 34
    assert first.saliency[41] == pytest.approx(4 / 12)  # votes 1, 1, 2


@pytest.mark.data
def test_tvsum_counts_clips_where_others_count_seconds(data_dir: Path) -> None:
    first = read_annotations(data_dir / "annotations/tvsum/train.jsonl")[0]
    assert first.duration_s == 132
    assert first.saliency is not None
    assert sorted(first.saliency) == list(range(66))


ABSENT = {"relevant_clip_ids": [], "saliency_scores": [[]], "relevant_windows": [[0, 0]]}


@pytest.mark.parametrize(
    ("change", "windows"),
    [
        (ABSENT, ()),
        ({"relevant_windows": [[0, 0]]}, ()),
        ({"relevant_windows": [[0.0, 0.0]], "relevant_clip_ids": []}, ()),
        ({**ABSENT, "relevant_windows": []}, ()),
        ({**ABSENT, "saliency_scores": []}, ()),
        ({**ABSENT, "kind": "absent"}, ()),
        ({**ABSENT, "relevant_windows": None}, None),
        # A moment was scored, or is said to be there; another window has a length; zero elsewhere.
        ({"relevant_windows": [[0, 0]], "relevant_clip_ids": [0], "saliency_scores": [[1]]}, None),
        ({"relevant_windows": [[0, 0]], "kind": "present"}, None),
        ({**ABSENT, "relevant_windows": [[0, 0], [3, 4]]}, ((3.0, 4.0),)),
        ({**ABSENT, "relevant_windows": [[5, 5]]}, None),
    ],
)
def test_absence_as_the_negative_benchmarks_write_it(
    file: Maker, change: dict[str, Any], windows: tuple[tuple[float, float], ...] | None
) -> None:
    (found,), report = read_annotations_with_report(file(lines(RECORD | change)))
    assert found.windows_s == windows
    assert report.absent == (windows == ())
    assert found.kind == ("absent" if windows == () else "present")


NEGATIVE = RECORD | ABSENT | {"vid": "v2", "duration": 150}


def test_a_qid_is_used_again_for_the_negative(file: Maker, tmp_path: Path) -> None:
    other_sentence = NEGATIVE | {"vid": "v1", "query": "an eagle hunts"}
    records = (RECORD, NEGATIVE, other_sentence, NEGATIVE | {"vid": "v3"}, NEGATIVE)
    found, report = read_annotations_with_report(file(lines(*records)))
    assert [(a.qid, a.vid, a.windows_s) for a in found] == [
        (7, "v1", ((2.0, 5.5),)),
        (7, "v2", ()),
        (7, "v1", ()),
        (7, "v3", ()),
    ]
    assert (report.shared_qids, report.repeated, report.absent) == (3, 1, 4)
    assert "3 share a qid with a query they negate" in report.summary()
    write_annotations(tmp_path / "out.jsonl", found)
    assert read_annotations(tmp_path / "out.jsonl") == found


@pytest.mark.parametrize(
    "change",
    [
        {"vid": "v2"},
        {"query": "a dog barks"},
        {"relevant_windows": [[1, 2]]},
        ABSENT,
        {"qid": "7", "vid": "v2"},
    ],
)
def test_other_repeated_qids_are_refused(
    file: Maker, tmp_path: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(AnnotationError, match="expected a qid of its own"):
        read_annotations(file(lines(RECORD, RECORD | change)))
    found = [
        *read_annotations(file(lines(RECORD))),
        *read_annotations(file(lines(RECORD | change))),
    ]
    with pytest.raises(AnnotationError, match="expected unique qids"):
        write_annotations(tmp_path / "out.jsonl", found)


@pytest.mark.parametrize("qid", [2579, "2579", 0, -3, 2**70, "test0", "\u00e9"])
def test_a_qid_keeps_its_type(file: Maker, tmp_path: Path, qid: int | str) -> None:
    (found,) = read_annotations(file(lines(RECORD | {"qid": qid})))
    write_annotations(tmp_path / "out.jsonl", [found])
    again = json.loads((tmp_path / "out.jsonl").read_text("utf-8"))["qid"]
    assert (found.qid, type(found.qid), again, type(again)) == (qid, type(qid), qid, type(qid))


def test_windows_as_annotated_survive_clipping_and_writing(file: Maker, tmp_path: Path) -> None:
    windows = [[31, 26], [40, 50], [4, 4], [1, 2]]
    found = read_annotations(
        file(
            lines(
                RECORD | {"relevant_windows": windows},
                RECORD | {"qid": 8, "relevant_windows": [[40, 50]]},
                RECORD | {"qid": 9},
            )
        )
    )
    assert [a.windows_s for a in found] == [((26.0, 30.0), (1.0, 2.0)), None, ((2.0, 5.5),)]
    annotated = [((26.0, 31.0), (40.0, 50.0), (4.0, 4.0), (1.0, 2.0)), ((40.0, 50.0),), None]
    assert [a.annotated_s for a in found] == annotated
    write_annotations(tmp_path / "out.jsonl", found)
    again, report = read_annotations_with_report(tmp_path / "out.jsonl")
    assert again == found
    assert [a.annotated_s for a in again] == annotated
    assert report.clipped == 0


def test_the_summary_names_few_keys_and_none_raw(file: Maker) -> None:
    strange = {"a\x1b[2J\n": 1, **{f"k{n}" + "x" * 99: n for n in range(20)}}
    _, report = read_annotations_with_report(file(lines(RECORD | strange)))
    assert report.summary().isprintable()
    assert r"a\x1b[2J\n (1), k0x" in report.summary()
    assert report.summary().endswith(", 13 more")
    assert len(report.summary()) < 400


def test_labels_of_youtube_highlights_are_kept(file: Maker, tmp_path: Path) -> None:
    labels = {"label": [[0], [1], [1]], "match": [-1, 1, 1], "domain": "dog", "fps": 30.0}
    record = RECORD | {"duration": 4.9, "relevant_windows": None, **labels}
    (found,), report = read_annotations_with_report(file(lines(record)))
    assert (found.duration_s, found.saliency, found.extra) == (4.9, None, labels)
    assert report.summary().endswith("further keys kept: domain (1), fps (1), label (1), match (1)")
    write_annotations(tmp_path / "out.jsonl", [found])
    assert read_annotations(tmp_path / "out.jsonl")[0].extra == labels

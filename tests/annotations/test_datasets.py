"""The JSON of single data sets, by hand-worked values, and what is broken in it."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from demr.annotations.annotations import (
    Annotation,
    read_annotations,
    read_annotations_with_report,
    write_annotations,
)
from demr.annotations.repairs import RepairReport
from demr.errors import AnnotationError

TACOS = {
    "timestamps": [[294, 588], [588, 441]],
    "sentences": ["a pan is washed", "it is dried"],
    "num_frames": 2940,
    "fps": 29.4,
}
DIDEMO = {
    "num_segments": 6,
    "description": "a dog jumps",
    "times": [[2, 2], [2, 2], [0, 0], [2, 3]],
    "video": "1@N_2.3gp",
    "annotation_id": 5,
}


def read(tmp_path: Path, document: object, **options: Any) -> tuple[list[Annotation], RepairReport]:
    path = tmp_path / "queries.json"
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")
    return read_annotations_with_report(path, **options)


def refusal(tmp_path: Path, document: object) -> str:
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, document)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500 + len(str(tmp_path))
    return text.removeprefix(f"{tmp_path / 'queries.json'}")


def window_of(annotation: Annotation) -> tuple[float, float]:
    assert annotation.windows_s is not None
    (window,) = annotation.windows_s
    return window


def test_tacos_in_frames(tmp_path: Path) -> None:
    found, report = read(tmp_path, {"s01-d01.avi": TACOS})
    assert [a.qid for a in found] == ["s01-d01_0", "s01-d01_1"]
    assert {a.vid for a in found} == {"s01-d01"}
    assert {a.duration_s for a in found} == {100.0}
    assert window_of(found[0]) == pytest.approx((10.0, 20.0))
    assert window_of(found[1]) == pytest.approx((15.0, 20.0))
    assert (report.framed_videos, report.swapped, report.further_keys) == (1, 1, {})


@pytest.mark.parametrize(
    ("entry", "duration", "window"),
    [
        # Frames and their rate, and the length in frames, or in seconds beside times in frames.
        ({"duration": 2940}, 100.0, (10.0, 20.0)),
        ({"duration": 100.0, "timestamps": [[294, 588]]}, 100.0, (10.0, 20.0)),
        # Seconds beside the frames of the video: ends past the duration stay in seconds.
        ({"duration": 100.0, "timestamps": [[10, 20]]}, 100.0, (10.0, 20.0)),
        ({"duration": 19.0, "timestamps": [[10, 20]]}, 19.0, (10.0, 19.0)),
        ({"video_duration": 100.0, "timestamps": [[10, 20]]}, 100.0, (10.0, 20.0)),
        ({"num_frames": 100, "fps": 1, "timestamps": [[10, 20]]}, 100.0, (10.0, 20.0)),
    ],
)
def test_what_counts_frames(
    tmp_path: Path, entry: dict[str, Any], duration: float, window: tuple[float, float]
) -> None:
    given = {**TACOS, "timestamps": [[294, 588]], "sentences": ["a pan"], **entry}
    ((found,), _) = read(tmp_path, {"v1": given})
    assert found.duration_s == pytest.approx(duration)
    assert window_of(found) == pytest.approx(window)


@pytest.mark.parametrize(
    ("vid", "duration", "seconds"),
    [
        # 1420 frames are TACoS's shortest video, 1402 s its longest.
        ("s34-d28.avi", 11800.0, 11800 / 29.4),
        ("s34-d28", 1420.0, 1420 / 29.4),
        ("s34-d28.avi", 1402.2, 1402.2),
        ("s34-d28.avi", 401.4, 401.4),
        ("lecture", 11800.0, 11800.0),
    ],
)
def test_scdm_counts_the_duration_in_frames(
    tmp_path: Path, vid: str, duration: float, seconds: float
) -> None:
    entry = {"duration": duration, "timestamps": [[147, 294]], "sentences": ["a knife"]}
    ((found,), report) = read(tmp_path, {vid: entry})
    rate = duration / seconds
    assert found.duration_s == pytest.approx(seconds)
    assert window_of(found) == pytest.approx((147 / rate, 294 / rate))
    assert report.framed_videos == (rate > 1)
    assert found.vid == (vid.removesuffix(".avi") if rate > 1 else vid)


def test_novel_words_and_compositions_are_kept(tmp_path: Path) -> None:
    entry = {
        "sentences": ["a book is put on a shelf", "a phone rings"],
        "timestamps": [[0.0, 6.9], [1, 2]],
        "duration": 33.67,
        "novels": [{"v-adv": [["put", "on"]]}, {"n-n": [["phone", "ring"]]}],
        "decode_fps": 16.0,
    }
    found, report = read(tmp_path, {"AO8RW": entry})
    assert found[0].extra == {"novels": {"v-adv": [["put", "on"]]}, "decode_fps": 16.0}
    assert found[1].extra == {"novels": {"n-n": [["phone", "ring"]]}, "decode_fps": 16.0}
    assert report.summary().endswith("further keys kept: decode_fps (2), novels (2)")
    write_annotations(tmp_path / "out.jsonl", found)
    again = read_annotations(tmp_path / "out.jsonl")
    assert again == found
    assert [a.extra for a in again] == [a.extra for a in found]


def test_zero_length_captions_are_not_absent(tmp_path: Path) -> None:
    entry = {"duration": 9, "timestamps": [[0, 0]], "sentences": ["a dog"]}
    ((found,), report) = read(tmp_path, {"v": entry})
    assert (found.windows_s, found.annotated_s) == (None, ((0.0, 0.0),))
    assert (report.zero_length, report.absent) == (1, 0)


def test_didemo(tmp_path: Path) -> None:
    ((found,), report) = read(tmp_path, [DIDEMO])
    # Sums of IoU with all four: [2, 2] has 1 + 1 + 0 + 1/2, [2, 3] has 1/2 + 1/2 + 0 + 1.
    assert (found.qid, found.vid, found.query) == (5, "1@N_2", "a dog jumps")
    assert (found.windows_s, found.duration_s) == (((10.0, 15.0),), 30.0)
    assert found.duration_guessed
    assert found.extra == {"times": DIDEMO["times"]}
    assert (report.disagreed, report.guessed_durations) == (1, 1)


@pytest.mark.parametrize(
    ("times", "known_s", "window", "duration_s"),
    [
        ([[5, 5]] * 4, 28.2, (25.0, 28.2), 28.2),
        ([[5, 5]] * 4, 60.0, (25.0, 30.0), 60.0),
        ([[5, 5]] * 4, None, (25.0, 30.0), 30.0),
        # The middle of three that overlap in a row; then the first of two that share nothing.
        ([[0, 1], [1, 2], [2, 3]], None, (5.0, 15.0), 30.0),
        ([[4, 4], [0, 0]], None, (20.0, 25.0), 30.0),
        ([[0, 5]], 24.0, (0.0, 24.0), 24.0),
    ],
)
def test_didemo_s_segments(
    tmp_path: Path,
    times: list[list[int]],
    known_s: float | None,
    window: tuple[float, float],
    duration_s: float,
) -> None:
    known = {} if known_s is None else {"1@N_2": known_s}
    ((found,), _) = read(tmp_path, [{**DIDEMO, "times": times}], durations_s=known)
    assert (found.windows_s, found.duration_s) == ((window,), duration_s)


def nlq(*queries: dict[str, Any], **clip: Any) -> dict[str, Any]:
    whole = {
        "clip_uid": "c1",
        "video_start_sec": 480.0,
        "video_end_sec": 960.02,
        "annotations": [{"annotation_uid": "a1", "language_queries": list(queries)}],
        **clip,
    }
    return {"version": "1", "videos": [{"video_uid": "v1", "clips": [whole]}]}


def test_ego4d_nlq(tmp_path: Path) -> None:
    asked = {"clip_start_sec": 10.5, "clip_end_sec": 12.0, "query": "where is the cup?"}
    nothing = {"clip_start_sec": 0.0, "clip_end_sec": 0.0}
    found, report = read(
        tmp_path,
        nlq(
            {**asked, "query": None},
            {**asked, "template": "Objects: Where is object X ?"},
            nothing,
            {**asked, "query": ""},
            {"query": "of the test split"},
            {**nothing, "query": "no length"},
        ),
    )
    assert [a.qid for a in found] == ["c1_a1_1", "c1_a1_4", "c1_a1_5"]
    assert [a.windows_s for a in found] == [((10.5, 12.0),), None, None]
    assert {(a.vid, a.duration_s) for a in found} == {("c1", 480.02)}
    assert found[0].extra == {"template": "Objects: Where is object X ?", "video_uid": "v1"}
    assert (report.null_queries, report.unknown, report.zero_length) == (3, 1, 1)
    assert "3 records without a sentence dropped" in report.summary()
    with pytest.raises(AnnotationError, match="at least one query, got none in 1 records"):
        read(tmp_path, nlq({**asked, "query": None}))


def test_youcook2(tmp_path: Path) -> None:
    entry = {
        "duration": 241.64,
        "subset": "validation",
        "recipe_type": "212",
        "annotations": [
            {"id": 0, "segment": [25, 37], "sentence": "cut the onion"},
            {"id": 3, "segment": [64, 82]},
        ],
    }
    ((found,), report) = read(tmp_path, {"database": {"9GX8f5EwwE4": entry}})
    assert (found.qid, found.query) == ("9GX8f5EwwE4_0", "cut the onion")
    assert (found.windows_s, found.duration_s) == (((25.0, 37.0),), 241.64)
    assert found.extra == {"subset": "validation", "recipe_type": "212"}
    assert report.null_queries == 1


def test_hirest(tmp_path: Path) -> None:
    steps = [{"index": 0, "heading": "take oats", "absolute_bounds": [50, 58]}]
    shown = {"relevant": True, "clip": True, "v_duration": 207.08, "bounds": [50, 121]}
    found, report = read(
        tmp_path,
        {
            "Make Oatmeal": {
                "a.mp4": {**shown, "steps": steps},
                "b.mp4": {**shown, "clip": False, "bounds": [0, 0], "steps": []},
                "c.mp4": {**shown, "relevant": False, "clip": False, "bounds": [0, 0]},
            },
            "Use a Fire Pit": {"a.mp4": shown},
        },
    )
    assert [a.qid for a in found] == ["a_0", "b_0", "c_0", "a_1"]
    assert [a.windows_s for a in found] == [((50, 121),), ((0, 207.08),), (), ((50, 121),)]
    assert [a.kind for a in found] == ["present", "present", "absent", "present"]
    assert found[0].extra == {"steps": steps}
    assert (report.whole_videos, report.absent) == (1, 1)


@pytest.mark.parametrize(
    ("document", "where", "what"),
    [
        (
            {"v_a": {"duration": 9, "timestamps": [[1, 2]], "sentences": ["x"]}, "v_b": {}},
            ": video 'v_b': expected the key 'timestamps', got nothing",
            "",
        ),
        (
            {"v_a": {"duration": 9, "timestamps": [[1, 2]], "sentences": ["x"]}, "v_b": None},
            ": video 'v_b': expected an object",
            "None",
        ),
        (
            {"v_b": {"duration": 9, "timestamps": [[1, 2]]}},
            ": video 'v_b': expected the key 'sentences'",
            "duration, timestamps",
        ),
        (
            {"v_b": {"timestamps": [[1, 2]], "sentences": ["x"]}},
            ": video 'v_b': expected the key 'duration'",
            "",
        ),
        (
            {"v_b": {"duration": 9, "timestamps": [[1]], "sentences": ["x"]}},
            ": video 'v_b', sentence 0: expected windows of",
            "[1]",
        ),
        ({"v_b": {**TACOS, "fps": 0}}, ": video 'v_b': expected num_frames and fps above 0", ""),
        ({"v_b": {**TACOS, "fps": "29"}}, ": video 'v_b': expected a number as fps", "'29'"),
        ({"s1-d1": {**TACOS, "timestamps": [["a", 1]] * 2}}, ": video 's1-d1', sentence 0", "'a'"),
        ([DIDEMO, {"description": "x"}], ": record 2: expected the key 'video'", "description"),
        (
            [{**DIDEMO, "times": [[3, 2]]}],
            ": record 1, video '1@N_2.3gp': expected times of [first segment, last",
            "[3, 2]",
        ),
        ([{**DIDEMO, "times": "2"}], ": record 1, video '1@N_2.3gp': expected a list under", ""),
        (nlq({"query": 3}), ": clip 'c1', query 0: expected a query", "3"),
        (nlq(video_end_sec=None), ": clip 'c1': expected a number as video_end_sec", "None"),
        (nlq(annotations=[None]), ": clip 'c1': expected an object with the key", "None"),
        ({"videos": [{"clips": [{}]}]}, ": video 0: expected the key 'clip_uid'", "nothing"),
        ({"database": {"yv": {}}}, ": video 'yv': expected the key 'annotations'", ""),
        (
            {"database": {"yv": {"duration": 3, "annotations": [{"sentence": "x"}]}}},
            ": video 'yv', annotation 0: expected the key 'segment'",
            "",
        ),
        (
            {"Make it": {"a.mp4": {"v_duration": 3}, "b.mp4": {}}},
            ": video 'a.mp4': expected the key 'bounds'",
            "v_duration",
        ),
        (
            {"Make it": {"b.mp4": {"bounds": [1, 2]}}},
            ": video 'b.mp4': expected the key 'v_duration'",
            "bounds",
        ),
    ],
)
def test_a_broken_entry_is_named_by_its_video(
    tmp_path: Path, document: object, where: str, what: str
) -> None:
    text = refusal(tmp_path, document)
    assert text.startswith(where)
    assert what in text


@pytest.mark.parametrize(
    ("document", "got"),
    [
        ({"info": {}, "images": []}, "got an object with the keys info, images;"),
        ({"vid": "v", "duration": 3}, "got an object with the keys vid, duration;"),
        ([{"image": 1}], "got a list of an object with the keys image;"),
        ([1, 2], "got a list of 1;"),
        ("text", "got JSON that is 'text';"),
        (3, "got JSON that is 3;"),
        ({str(n): n for n in range(9)}, "got an object with the keys 0, 1, 2, 3, 4, ...;"),
    ],
)
def test_json_of_no_known_form_lists_the_forms(tmp_path: Path, document: object, got: str) -> None:
    text = refusal(tmp_path, document)
    assert text.startswith(": expected a known form of queries: JSON Lines as of QVHighlights")
    assert got in text
    for name in ("QVHighlights", "ActivityNet", "TACoS", "DiDeMo", "NLQ", "YouCook2", "HiREST",
                 "Charades-STA", "CSV"):  # fmt: skip
        assert name in text


def test_broken_json_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "queries.json"
    path.write_text('{\n "v_a": {"duration": 9,\n  "timestamps": [[1, 2]\n')
    with pytest.raises(AnnotationError, match=r":4: expected one JSON object a line, or one JSON"):
        read_annotations(path)
    path.write_text("{" * 100_000)
    with pytest.raises(AnnotationError, match=r":1: expected one JSON object a line, or one JSON"):
        read_annotations(path)


def test_other_text_lists_the_forms(tmp_path: Path) -> None:
    path = tmp_path / "queries.xml"
    path.write_text("<queries/>")
    with pytest.raises(
        AnnotationError, match=r"a known form of queries: .* got no JSON: .* at line 1"
    ):
        read_annotations(path)


def test_one_record_over_several_lines(tmp_path: Path) -> None:
    record = {"qid": 1, "query": "a dog", "vid": "v", "duration": 9, "relevant_windows": [[1, 2]]}
    ((found,), _) = read(tmp_path, record)
    assert found == Annotation(1, "a dog", "v", 9.0, ((1.0, 2.0),))


WHOLE: list[Any] = [
    {"s01-d01.avi": TACOS, "s34-d28.avi": {**TACOS, "duration": 100.0, "novels": [{}, {}]}},
    [DIDEMO, {**DIDEMO, "annotation_id": 6, "times": [[0, 5]]}],
    nlq({"clip_start_sec": 10.5, "clip_end_sec": 12.0, "query": "where is the cup?"}),
    {"database": {"yv": {"duration": 9, "annotations": [{"id": 0, "segment": [2, 3],
                                                         "sentence": "cut"}]}}},
    {"Make it": {"a.mp4": {"relevant": True, "clip": True, "v_duration": 9, "bounds": [1, 2]}}},
    [{"qid": 1, "query": "a dog", "vid": "v", "duration": 9, "relevant_windows": [[1, 2]],
      "relevant_clip_ids": [0], "saliency_scores": [[1, 2, 3]], "annotated_windows": [[1, 2]]}],
]  # fmt: skip
GARBAGE: list[Any] = [
    None, True, 0, -1, 1.5, 1e308, 10**400, float("nan"), "", "x", "\ud800", [], [[]], {}, [None],
    [[0, 0]], [1, 2, 3], {"a": 1}, [[[]]], 2**63,
]  # fmt: skip


def damage(generator: random.Random, node: Any) -> Any:
    """The document with one value, somewhere in it, replaced, removed, doubled or renamed."""
    if not isinstance(node, dict | list) or not node or generator.random() < 0.15:
        return copy.deepcopy(generator.choice(GARBAGE))
    node = copy.copy(node)
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    key, turn = generator.choice(keys), generator.random()
    if turn < 0.1:
        del node[key]
    elif turn < 0.15 and isinstance(node, dict):
        node[generator.choice(["", "query", "\x1b[2J", "video"])] = node.pop(key)
    elif turn < 0.2 and isinstance(node, list):
        node.append(copy.deepcopy(node[key]))
    else:
        node[key] = damage(generator, node[key])
    return node


@pytest.mark.parametrize("whole", WHOLE)
def test_any_damage_is_read_or_refused_in_one_line(tmp_path: Path, whole: Any) -> None:
    generator = random.Random(0)
    path, out = tmp_path / "queries.json", tmp_path / "out.jsonl"
    read_any = 0
    for _ in range(300):
        path.write_text(json.dumps(damage(generator, whole)))
        try:
            found, report = read_annotations_with_report(path)
        except AnnotationError as error:
            refused = str(error)
            assert "\n" not in refused
            assert len(refused) < 500 + len(str(path))
            continue
        read_any += 1
        assert "\n" not in report.summary()
        write_annotations(out, found)
        assert read_annotations(out) == found
    assert 10 < read_any < 290


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"v_a": {"timestamps": [[1, 2]], "sentences": ["x"]}}, "got timestamps, sentences;"),
        (
            [{"video": "a.mov", "description": "x", "times": []}],
            "expected times, num_segments or a duration (--durations), got none",
        ),
    ],
)
def test_a_missing_duration_is_told_in_words_of_the_file(
    tmp_path: Path, document: object, message: str
) -> None:
    assert message in refusal(tmp_path, document)


def test_sentences_of_blanks_are_no_sentences(tmp_path: Path) -> None:
    query = {"query": " ", "clip_start_sec": 1, "clip_end_sec": 2}
    queries = [query, query | {"query": "where is it"}]
    clip = {"clip_uid": "c", "video_start_sec": 0, "video_end_sec": 9}
    clip |= {"annotations": [{"language_queries": queries}]}
    found, report = read(tmp_path, {"videos": [{"clips": [clip]}]})
    assert [a.query for a in found] == ["where is it"]
    assert report.null_queries == 1


@pytest.mark.parametrize("name", ["queries.json", "queries.jsonl"])
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, name: str) -> None:
    entry = '{"duration": 9, "timestamps": [[1, 2]], "sentences": ["x"]}'
    (tmp_path / name).write_text(f'{{"v_a": {entry},\n"v_b": {entry},\n"v_a": {entry}}}')
    with pytest.raises(AnnotationError, match="every key of an object once, got 'v_a' 2 times"):
        read_annotations(tmp_path / name)

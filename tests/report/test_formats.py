import csv
import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console
from tests.report.searches import answer, moment, result_of

from demr.machine.terminal import clock
from demr.report.formats import to_csv, to_json, to_srt
from demr.report.tables import search_table
from demr.search.result import SearchResult


def test_json_is_the_result_on_one_line(result: SearchResult) -> None:
    text = to_json(result)
    assert "\n" not in text
    assert text.isascii()
    loaded = json.loads(text)
    assert loaded["interval_level"] == 0.9
    assert loaded["answers"][0]["moments"][0]["start_interval"] == [61.75, 62.75]


def test_csv_keeps_a_row_for_what_is_absent(result: SearchResult) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(result))))
    assert [row["query"] for row in rows] == [
        "a red circle bounces",
        "a red circle bounces",
        "something",
        "a star, spinning",
        "a zebra, galloping",
    ]
    assert [row["rank"] for row in rows] == ["1", "2", "1", "", ""]
    assert [row["moment_verdict"] for row in rows] == ["found", "found", "uncertain", "", ""]
    assert [row["confidence"] for row in rows] == ["0.8400", "0.8400", "0.4500", "", ""]
    assert [row["present"] for row in rows] == ["0.9000", "0.9000", "0.5000", "0.0300", ""]
    first = {name: float(rows[0][name]) for name in ("start", "end_low", "end_high", "score")}
    assert first == {"start": 62.25, "end_low": 69.5, "end_high": 70.5, "score": 0.75}
    assert float(rows[0]["aleatoric_end"]) == 0.34
    assert rows[3]["verdict"] == "not in this video"
    assert not any(rows[3][name] for name in ("start", "end", "score", "end_high"))


def test_all_outputs_hold_the_same_moments(result: SearchResult) -> None:
    rows = [row for row in csv.DictReader(io.StringIO(to_csv(result))) if row["rank"]]
    answers = json.loads(to_json(result))["answers"]
    moments = [moment for answer in answers for moment in answer["moments"]]
    in_csv = [(float(row["start"]), float(row["confidence"])) for row in rows]
    assert in_csv == [(m["start"], m["confidence"]) for m in moments]
    assert [row["moment_verdict"] for row in rows] == [m["verdict"] for m in moments]
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(search_table(result))
    starts = {clock(m["start"]) for m in moments}
    assert set(re.findall(r"\d+:\d\d\.\d", console.export_text())) >= starts
    assert to_srt(result).count(" --> ") == len(moments)


def test_srt_is_ordered_by_start_and_says_how_sure_each_is(result: SearchResult) -> None:
    assert to_srt(result) == (
        "1\n00:00:10,000 --> 00:00:14,000\na red circle bounces\nfound, 84 %\n\n"
        "2\n00:00:30,000 --> 00:00:36,000\nsomething\nuncertain, 45 %\n\n"
        "3\n00:01:02,250 --> 00:01:10,000\na red circle bounces\nfound, 84 %\n"
    )


def test_srt_text_cannot_end_its_cue() -> None:
    text = to_srt(
        result_of(answer("one\n\n2\n00:00:01,000 --> x", moments=[moment(3661.5, 3661.5)]))
    )
    assert text.splitlines()[1:3] == [
        "01:01:01,500 --> 01:01:01,501",
        "one 2 00:00:01,000 → x",
    ]


def test_what_is_not_known_is_null_or_empty(zero_shot: SearchResult) -> None:
    values = json.loads(to_json(zero_shot))
    assert values["interval_level"] is None
    assert values["answers"][0]["present"] is None
    assert values["answers"][0]["moments"][0]["aleatoric"] is None
    (_, first, second) = csv.reader(io.StringIO(to_csv(zero_shot)))
    assert first == [
        "a zebra",
        "uncertain",
        "",
        "1",
        "10.0000",
        "20.0000",
        "0.6000",
        *[""] * 9,
        "uncertain",
        "",
    ]
    assert second[3:7] == ["2", "50.0000", "54.0000", "0.4000"]
    assert "uncertain, not known" in to_srt(zero_shot)


@pytest.mark.parametrize(
    ("query", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-5 degrees", "'-5 degrees"),
        ("@cmd", "'@cmd"),
        ("\tx", "'\\tx"),
        ("\rx", "'\\rx"),
        ("＝1", "'＝1"),  # noqa: RUF001
        ("a = b", "a = b"),
        ("'quoted'", "'quoted'"),
        ("a\x1b[31m", "a\\x1b[31m"),
        ("a\nb", "a\\nb"),
        ('a "b", c', 'a "b", c'),
    ],
)
def test_text_cells_are_no_formulas(query: str, cell: str) -> None:
    (row,) = csv.DictReader(io.StringIO(to_csv(result_of(answer(query, moments=[moment(1, 2)])))))
    assert row["query"] == cell
    assert float(row["start"]) == 1.0


def test_subtitles_hold_no_tags() -> None:
    text = to_srt(result_of(answer("<i>x</i> {\\an8} \x1b[2J", moments=[moment(1, 2)])))
    assert text.splitlines()[2] == "‹i›x‹/i› (\\an8) \\x1b[2J"  # noqa: RUF001


def test_json_holds_no_control_characters() -> None:
    text = to_json(result_of(answer("a\x7f\x1b\x9b\u202e", moments=[moment(1, 2)])))
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text)["answers"][0]["query"] == "a\x7f\x1b\x9b\u202e"


def test_csv_has_the_notes_on_an_answer(result: SearchResult) -> None:
    found, *_, unknown = result.answers
    notes = ("frames after 0:03.0 are damaged", "never trained on: zebra")
    answers = (replace(found, notes=notes[:1]), replace(unknown, notes=notes))
    rows = csv.DictReader(io.StringIO(to_csv(replace(result, answers=answers))))
    assert [row["notes"] for row in rows] == [notes[0], notes[0], " | ".join(notes)]


def test_json_of_results_of_one_name_keeps_all(result: SearchResult) -> None:
    other = replace(result, duration=99.0)
    values = json.loads(to_json([result, other]))
    assert [(one["duration"], one["answers"][0]["rank"]) for one in values] == [(80, 1), (99, 2)]

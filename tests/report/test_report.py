import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from demr.errors import InputError
from demr.machine.terminal import clock
from demr.report import page
from demr.report.formats import answer_figure, notes, search_table, to_csv, to_json, to_srt
from demr.report.page import write_html_report
from demr.report.timeline import timeline
from demr.report.wording import in_words, overlap, percent, shown, span
from demr.search.result import Answer, Moment, SearchResult, Verdict

HOSTILE = '</h2><script>alert("x")</script> & $title [red]{{x}}'


def moment(
    start: float, end: float, half: tuple[float, float] = (0.5, 0.5), epistemic: float = 0.1
) -> Moment:
    return Moment(
        start=start,
        end=end,
        score=0.75,
        start_interval=(start - half[0], start + half[0]),
        end_interval=(end - half[1], end + half[1]),
        aleatoric=(0.21, 0.34),
        epistemic=(epistemic, epistemic),
    )


def answer(
    query: str,
    verdict: Verdict = "found",
    moments: Sequence[Moment] = (),
    present: float = 0.9,
    unknown_words: tuple[str, ...] = (),
) -> Answer:
    return Answer(
        query=query,
        present=present,
        verdict=verdict,
        moments=tuple(moments),
        saliency=(0.1, 0.9, 0.2, 0.1),
        unknown_words=unknown_words,
        notes=(),
    )


def result_of(*answers: Answer, duration: float = 80.0) -> SearchResult:
    return SearchResult(
        video="clips/talk.mp4",
        duration=duration,
        clip_s=duration / 4,
        model="demr-shapes",
        encoder="builtin@1",
        interval_level=0.9,
        answers=answers,
    )


@pytest.fixture
def result() -> SearchResult:
    return result_of(
        answer("a red circle bounces", moments=[moment(62.25, 70.0), moment(10.0, 14.0)]),
        answer("something", "uncertain", [moment(30.0, 36.0)], present=0.5),
        answer("a zebra, galloping", "not in this video", [moment(1.0, 2.0)], 0.03, ("zebra",)),
    )


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "talk 1.mp4"
    path.write_bytes(b"\x00\x01video")
    return path


def printed(result: SearchResult, width: int = 120, **truth: object) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(search_table(result, **truth))  # type: ignore[arg-type]
    return console.export_text()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0:00.0"), (9.94, "0:09.9"), (59.96, "1:00.0"), (3599.96, "1:00:00.0"), (-1, "0:00.0")],
)
def test_clock_carries_after_rounding(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@given(st.floats(0, 360_000))
def test_clock_is_within_half_a_tenth(seconds: float) -> None:
    total = 0.0
    for part in clock(seconds).split(":"):
        total = total * 60 + float(part)
    assert abs(total - seconds) <= 0.05 + 1e-6


def test_span_repeats_the_minutes_only_where_they_differ() -> None:
    assert span(3599.0, 3601.0) == "59:59.0–1:00:01.0"
    assert span(3601.0, 3602.5) == "1:00:01.0–02.5"


@given(st.tuples(*[st.floats(0, 100)] * 4))
def test_overlap_is_symmetric_and_bounded(times: tuple[float, float, float, float]) -> None:
    first = (min(times[:2]), max(times[:2]))
    second = (min(times[2:]), max(times[2:]))
    assert overlap(first, second) == overlap(second, first)
    assert 0.0 <= overlap(first, second) <= 1.0
    if first[0] < first[1]:
        assert overlap(first, first) == 1.0


def test_percent_never_claims_certainty() -> None:
    assert [percent(share) for share in (0, 1e-9, 0.494, 0.9999, 1)] == [
        "0 %",
        "<1 %",
        "49 %",
        ">99 %",
        "100 %",
    ]


def test_table_has_every_number_and_no_guess(result: SearchResult) -> None:
    text = printed(result)
    for expected in ("1:02.2", "1:01.8–02.8", "90 %", "0.10/0.21", "0.10/0.34", "0.75", "50 %"):
        assert expected in text
    assert "0:01.0" not in text  # the guess of an absent verdict


def test_table_shows_the_truth_at_eighty_columns(result: SearchResult) -> None:
    truth = {"a red circle bounces": [(62.0, 70.5), (10.0, 13.0)], "a zebra, galloping": []}
    text = printed(result, width=80, truth=truth)
    for expected in ("1:02.0–10.5", "0:10.0–13.0", "absent", "unknown", "0.75"):
        assert expected in text
    assert max(map(len, text.splitlines())) <= 80


def test_weak_and_repeated_moments_are_left_to_the_data_formats() -> None:
    best, repeated, second = moment(10.0, 20.0), moment(12.0, 20.0), moment(40.0, 50.0)
    weak = replace(moment(60.0, 66.0), score=0.37)
    one = answer("x", moments=[best, repeated, second, weak])
    assert shown(one) == (best, second)
    assert shown(replace(one, verdict="not in this video")) == (best,)
    assert shown(answer("x")) == ()
    assert len(list(csv.DictReader(io.StringIO(to_csv(result_of(one)))))) == 4
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(search_table(result_of(one), every=True))
    assert "1:00.0" in console.export_text()
    assert "1:00.0" not in printed(result_of(one))


def test_table_prints_brackets_as_they_are() -> None:
    assert "[red]circle[/red]" in printed(result_of(answer("[red]circle[/red]")))


def test_notes_are_said_once_and_name_the_queries_they_are_about() -> None:
    strange = "this video looks unlike anything the model was trained on"
    result = result_of(
        replace(answer("a star spins"), notes=(strange,)),
        replace(answer("a giraffe sings"), notes=(strange, "never trained on: giraffe")),
    )
    assert notes(result) == [
        f"note: {strange}",
        "note on 'a giraffe sings': never trained on: giraffe",
    ]


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
        "a zebra, galloping",
    ]
    assert [row["rank"] for row in rows] == ["1", "2", "1", ""]
    first = {name: float(rows[0][name]) for name in ("start", "end_low", "end_high", "score")}
    assert first == {"start": 62.25, "end_low": 69.5, "end_high": 70.5, "score": 0.75}
    assert float(rows[0]["aleatoric_end"]) == 0.34
    assert rows[3]["verdict"] == "not in this video"
    assert not any(rows[3][name] for name in ("start", "end", "score", "end_high"))


def test_srt_is_ordered_by_start_and_holds_no_guess(result: SearchResult) -> None:
    assert to_srt(result) == (
        "1\n00:00:10,000 --> 00:00:14,000\na red circle bounces\nfound, 90 %\n\n"
        "2\n00:00:30,000 --> 00:00:36,000\nsomething\nuncertain, 50 %\n\n"
        "3\n00:01:02,250 --> 00:01:10,000\na red circle bounces\nfound, 90 %\n"
    )


def test_srt_text_cannot_end_its_cue() -> None:
    text = to_srt(
        result_of(answer("one\n\n2\n00:00:01,000 --> x", moments=[moment(3661.5, 3661.5)]))
    )
    assert text.splitlines()[1:3] == [
        "01:01:01,500 --> 01:01:01,501",
        "one 2 00:00:01,000 → x",
    ]


def test_words_say_which_boundary_is_less_sure() -> None:
    one = answer("x", moments=[moment(10.0, 20.0, half=(0.4, 1.6))])
    assert in_words(one, result_of(one)) == (
        "The start is known to about ± 0.4 s (90 % sure), the end is less sure: ± 1.6 s."
    )
    other = answer("x", moments=[moment(10.0, 12.0, half=(3.0, 1.0))])
    assert in_words(other, result_of(other)) == (
        "The end is known only to about ± 1.0 s (90 % sure), the start is less sure: ± 3.0 s. "
        "That is wide for a moment of 2.0 s."
    )


def test_words_name_unknown_words_and_absence(result: SearchResult) -> None:
    said = in_words(result.answers[2], result)
    assert "“zebra” is a word the model was never taught" in said
    assert "Probably not in this video" in said
    assert "3 %" in said
    assert "Start and end" not in said


def test_words_compare_the_models_doubt_with_the_other_answers() -> None:
    usual = [answer(str(i), moments=[moment(10.0, 20.0, epistemic=0.1)]) for i in range(3)]
    odd = answer("odd", moments=[moment(10.0, 20.0, epistemic=0.35)])
    assert "3.5 times" in in_words(odd, result_of(*usual, odd))
    assert "times" not in in_words(usual[0], result_of(*usual, odd))
    assert "times" not in in_words(odd, result_of(usual[0], odd))  # two are no crowd


class Page(HTMLParser):
    """Collects what a browser would run or fetch, and whether tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts = 0
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.fetched += [value or "" for name, value in attrs if name in {"src", "href"}]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in {"meta", "link"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_page_is_whole_and_fetches_nothing(
    result: SearchResult, video: Path, tmp_path: Path
) -> None:
    truth = {"a red circle bounces": [(62.25, 70.0)], "a zebra, galloping": []}
    path = write_html_report(
        tmp_path / "new" / "report.html", result, video_path=video, truth=truth
    )
    text = path.read_text(encoding="utf-8")
    parsed = Page(text)
    assert parsed.open == []
    assert parsed.scripts == 1
    assert all(link.startswith(("data:", "#answer-")) for link in parsed.fetched)
    assert "data:video/mp4;base64,AAF2aWRlbw==" in parsed.fetched
    assert not re.search(r"https?://", text)
    assert "IoU of the top moment 1.00" in text
    assert "Truth: not in this video" in text
    assert text.count('class="guess"') == 1
    assert [found.name for found in path.parent.iterdir()] == ["report.html"]


def test_page_escapes_sentences_titles_and_file_names(video: Path, tmp_path: Path) -> None:
    hostile = answer(HOSTILE, "not in this video", present=0.0, unknown_words=("<b>",))
    path = write_html_report(
        tmp_path / "r.html", result_of(hostile), video_path=video, title=HOSTILE, truth={}
    )
    parsed = Page(path.read_text(encoding="utf-8"))
    assert parsed.scripts == 1
    assert HOSTILE in "".join(parsed.headings)
    assert "b" not in parsed.open


def test_page_links_a_large_video(
    result: SearchResult, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "_LARGEST_EMBEDDED_BYTES", 3)
    path = write_html_report(tmp_path / "out" / "r.html", result, video_path=video)
    assert "../talk%201.mp4" in Page(path.read_text(encoding="utf-8")).fetched


@pytest.mark.parametrize("duration", [0.0, 0.04, 10_800.0])
def test_page_survives_extreme_results(video: Path, tmp_path: Path, duration: float) -> None:
    odd = Answer(
        query="😀 \ud800",
        present=1.0,
        verdict="found",
        moments=(moment(-1.0, duration + 5),),
        saliency=(float("nan"), 3.0) * 5000,
        unknown_words=(),
        notes=("<i>",),
    )
    empty = answer("", "uncertain")
    result = result_of(odd, empty, duration=duration)
    path = write_html_report(tmp_path / "r.html", result, video_path=video, truth={})
    text = path.read_text(encoding="utf-8")
    assert "nan" not in re.sub(r"<script>.*", "", text, flags=re.DOTALL).lower()
    assert len(text) < 150_000
    write_html_report(tmp_path / "r.html", result_of(), video_path=video)


def test_a_failed_write_leaves_the_older_page(
    result: SearchResult, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_html_report(tmp_path / "out" / "r.html", result, video_path=video)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_html_report(path, result, video_path=video, title="other")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_video_is_one_line(result: SearchResult, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected the video that was searched") as caught:
        write_html_report(tmp_path / "r.html", result, video_path=tmp_path / "none.mp4")
    assert "\n" not in str(caught.value)


def test_timeline_puts_bars_where_the_times_are() -> None:
    one = answer("x", moments=[moment(20.0, 60.0, half=(4.0, 8.0))])
    drawn = timeline(one, result_of(one), [(40.0, 80.0)])
    assert re.search(r'class="bar" x="25.000%" y="[\d.]+" width="50.000%"', drawn)
    assert 'class="whisker" x1="20.000%" x2="30.000%"' in drawn
    assert 'class="whisker" x1="65.000%" x2="85.000%"' in drawn
    assert re.search(r'class="truth" x="50.000%" y="\d+" width="50.000%"', drawn)
    assert 'data-start="20.000" data-end="60.000"' in drawn


def test_overlapping_moments_take_lanes_of_their_own() -> None:
    crowd = [moment(10.0, 20.0), moment(18.0, 26.0), moment(40.0, 50.0)]
    drawn = timeline(one := answer("x", moments=crowd), result_of(one), None)
    heights = re.findall(r'class="bar" x="([\d.]+)%" y="([\d.]+)"', drawn)
    lane = {float(x): float(y) for x, y in heights}
    assert lane[12.5] == lane[50.0] < lane[22.5]


def test_figure_is_a_picture(result: SearchResult, tmp_path: Path) -> None:
    money = answer("costs $5 and $6^{", moments=[moment(30.0, 36.0)])
    truth = {"a red circle bounces": [(62.0, 70.0)]}
    path = answer_figure(result_of(*result.answers, money), tmp_path / "new" / "answer.png", truth)
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert [found.name for found in path.parent.iterdir()] == ["answer.png"]


@pytest.fixture
def uncalibrated() -> SearchResult:
    """What a search without a trained model knows: windows and their scores."""
    unknown = (math.nan, math.nan)
    moments = [
        Moment(10.0, 20.0, 0.6, unknown, unknown, unknown, unknown),
        Moment(50.0, 54.0, 0.4, unknown, unknown, unknown, unknown),
    ]
    found = result_of(answer("a zebra", "uncertain", moments, present=math.nan))
    return replace(found, model="zero-shot", interval_level=math.nan)


def test_what_is_not_known_is_null_empty_or_a_dash(uncalibrated: SearchResult) -> None:
    values = json.loads(to_json(uncalibrated))
    assert values["interval_level"] is None
    assert values["answers"][0]["present"] is None
    assert values["answers"][0]["moments"][0]["aleatoric"] is None
    (_, first, second) = csv.reader(io.StringIO(to_csv(uncalibrated)))
    assert first == ["a zebra", "uncertain", "", "1", "10.0000", "20.0000", "0.6000", *[""] * 8]
    assert second[3:7] == ["2", "50.0000", "54.0000", "0.4000"]
    text = printed(uncalibrated)
    assert "uncalibrated" in text
    assert "0:50.0" in text
    assert "%" not in text
    assert "uncertain, uncalibrated" in to_srt(uncalibrated)
    assert "Zero-shot" in in_words(uncalibrated.answers[0], uncalibrated)


@pytest.mark.parametrize(
    ("present", "words"), [(0.9996, "&gt;99"), (0.994, "99"), (0.0004, "&lt;1"), (1.0, "100")]
)
def test_the_gauge_is_no_surer_than_the_words(
    result: SearchResult, video: Path, tmp_path: Path, present: float, words: str
) -> None:
    one = replace(result, answers=(replace(result.answers[0], present=present),))
    text = write_html_report(tmp_path / "r.html", one, video_path=video).read_text()
    assert f'text-anchor="middle">{words}</text>' in text


def test_page_and_picture_show_windows_without_intervals(
    uncalibrated: SearchResult, video: Path, tmp_path: Path
) -> None:
    path = write_html_report(tmp_path / "r.html", uncalibrated, video_path=video)
    text = path.read_text(encoding="utf-8")
    assert Page(text).open == []
    assert not re.search(r"\bnan\b", text)
    for absent in ('class="whisker"', "confidence", 'class="gauge"', "% intervals", "footage"):
        assert absent not in text
    assert "uncalibrated" in text
    picture = answer_figure(uncalibrated, tmp_path / "a.png")
    assert picture.read_bytes().startswith(b"\x89PNG")

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.report.searches import HOSTILE, Element, answer, moment, parse, result_of

from demr.errors import InputError
from demr.report import page
from demr.report.page import write_html_report
from demr.search.result import Answer, SearchResult

Write = Callable[..., Element]


@pytest.fixture
def write(video: Path, tmp_path: Path) -> Write:
    """Write the page of a result and read it as a browser would."""

    def run(result: SearchResult, **options: Any) -> Element:
        options = {"video_path": video} | options
        path = write_html_report(tmp_path / "out" / "report.html", result, **options)
        return parse(path.read_text(encoding="utf-8"))

    return run


def fetched(document: Element) -> list[str]:
    """What a browser would load or go to."""
    everything = [document]
    links = []
    while everything:
        element = everything.pop()
        links += [
            element.attributes[name] for name in ("src", "href") if name in element.attributes
        ]
        everything += [part for part in element.inside if isinstance(part, Element)]
    return links


def scripts(document: Element) -> list[Element]:
    return [script for script in document.all("script") if "type" not in script.attributes]


def test_page_is_whole_and_fetches_nothing(
    result: SearchResult, video: Path, tmp_path: Path
) -> None:
    path = write_html_report(tmp_path / "new" / "report.html", result, video_path=video)
    text = path.read_text(encoding="utf-8")
    document = parse(text)
    assert len(scripts(document)) == 1
    assert all(link.startswith(("data:", "#answer-")) for link in fetched(document))
    assert document.one("video").attributes["src"] == "data:video/mp4;base64,AAF2aWRlbw=="
    assert not re.search(r"https?://", text)
    assert "{{" not in text
    assert [found.name for found in path.parent.iterdir()] == ["report.html"]


def test_only_the_script_of_the_package_may_run(result: SearchResult, write: Write) -> None:
    document = write(result)
    (script,) = scripts(document)
    (source,) = script.inside
    digest = base64.b64encode(hashlib.sha256(str(source).encode()).digest()).decode()
    (policy,) = [
        meta.attributes["content"]
        for meta in document.all("meta")
        if meta.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';")


def test_cards_show_what_was_found_and_the_truth(result: SearchResult, write: Write) -> None:
    truth = {"a red circle bounces": [(62.25, 70.0)], "a star, spinning": []}
    document = write(result, truth=truth)
    cards = list(document.all("article"))
    assert [card.attributes["class"] for card in cards] == [
        "card found",
        "card uncertain",
        "card absent",
        "card uncertain",
    ]
    assert [card.one("h2").text for card in cards] == [a.query for a in result.answers]
    assert [card.one("div", "tags").text for card in cards] == [
        "✓found Truth: 1:02.2 – 1:10.0 · IoU of the top moment 1.00",
        "?uncertain",
        "∅not in this video Truth: not in this video",
        "?uncertain",
    ]
    links = [link.text for link in document.one("nav").all("a")]
    assert links == [
        "a red circle bounces90 %",
        "something50 %",
        "a star, spinning3 %",
        "a zebra, gallopingnot known",
    ]
    buttons = [[button.text for button in card.all("button")] for card in cards]
    sure = "found, confidence 84 % · score 0.75"
    assert buttons[0] == [
        f"1:02.2 – 1:10.0{sure} · footage ± 0.21 / 0.34 s · model ± 0.10 / 0.10 s",
        f"0:10.0 – 0:14.0{sure} · footage ± 0.21 / 0.34 s · model ± 0.10 / 0.10 s",
    ]
    assert [len(list(card.all("g", "uncertain"))) for card in cards] == [0, 1, 0, 0]
    assert [len(list(card.all("g", "found"))) for card in cards] == [2, 0, 0, 0]
    # Where nobody knows there is no ring.
    assert [len(list(card.all("div", "gauge"))) for card in cards] == [1, 1, 1, 0]


def test_bars_and_buttons_play_their_moments(write: Write) -> None:
    one = answer("x", moments=[moment(20.0, 60.0, half=(4.0, 8.0))])
    card = write(result_of(one), truth={"x": [(40.0, 80.0)]}).one("article")
    (truth, bar) = card.all("g")
    for element in (bar, card.one("button")):
        assert element.attributes["data-start"] == "20.000"
        assert element.attributes["data-end"] == "60.000"
    assert truth.attributes["data-start"] == "40.000"
    drawn = bar.one("rect", "bar").attributes
    assert (drawn["x"], drawn["width"]) == ("25.000%", "50.000%")
    assert [line.attributes["x1"] for line in bar.all("line", "whisker")] == [
        *("20.000%", "20.000%", "30.000%"),
        *("65.000%", "65.000%", "85.000%"),
    ]


def shape(element: Element) -> list[Any]:
    """Tags and names of attributes, without any text."""
    children = [shape(part) for part in element.inside if isinstance(part, Element)]
    return [element.tag, sorted(element.attributes), children]


@pytest.mark.parametrize("text", HOSTILE)
def test_page_shows_text_of_others_as_it_is(text: str, write: Write) -> None:
    def page_of(text: str) -> Element:
        guess = answer(text, "uncertain", [moment(1.0, 2.0)], None, (text,))
        result = result_of(replace(guess, notes=(text,)))
        name = text.replace("/", "|")
        result = replace(result, video=f"clips/{name}.mp4", model=text, encoder=text)
        return write(result, title=text, truth={text: []})

    document = page_of(text)
    # No element and no attribute came out of the text.
    assert shape(document) == shape(page_of("a zebra"))
    card, shown = document.one("article"), " ".join(text.split())
    assert document.one("head").one("title").text == document.one("h1").text == shown
    assert card.one("h2").text == card.one("p", "note").text == shown
    assert document.one("nav").one("span").text == shown
    assert [fact.text for fact in document.all("bdi")] == [
        *(f"{shown.replace('/', '|')}.mp4", "1:20.0", "1 sentence", shown, shown),
    ]


def test_data_of_the_script_cannot_end_it(video: Path, tmp_path: Path) -> None:
    query = "</script><!-- <script> ]]> & ' \u2028\u2029 \ud800"
    path = write_html_report(tmp_path / "r.html", result_of(answer(query)), video_path=video)
    document = parse(path.read_text(encoding="utf-8"))
    (data,) = [s for s in document.all("script") if "type" in s.attributes]
    assert data.attributes["type"] == "application/json"
    (source,) = data.inside
    assert isinstance(source, str)
    assert source.isascii()
    assert not set("<>&'") & set(source)
    assert json.loads(source) == {
        "duration": 80.0,
        "queries": ["</script><!-- <script> ]]> & ' \\u2028\\u2029 \\ud800"],
    }


def test_page_makes_control_characters_visible(write: Write) -> None:
    document = write(result_of(answer("a\x00b\x1b[0m\u202ec")))
    assert document.one("article").one("h2").text == r"a\x00b\x1b[0m\u202ec"


def test_page_links_a_large_video(
    result: SearchResult, video: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "_LARGEST_EMBEDDED_BYTES", 3)
    assert write(result).one("video").attributes["src"] == "../talk%201.mp4"
    odd = Path(os.fsdecode(os.fsencode(video.parent) + b"/\xff#.mp4"))
    odd.write_bytes(b"video")
    assert write(result, video_path=odd).one("video").attributes["src"] == "../%FF%23.mp4"


@pytest.mark.parametrize("duration", [0.0, 0.04, 10_800.0])
def test_page_survives_extreme_results(write: Write, tmp_path: Path, duration: float) -> None:
    odd = Answer(
        query="😀 \ud800",
        present=1.0,
        verdict="found",
        moments=(moment(-1.0, duration + 5),),
        saliency=(float("nan"), 3.0) * 5000,
        unknown_words=(),
        notes=("<i>",),
    )
    document = write(result_of(odd, answer("", "uncertain"), duration=duration), truth={})
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "nan" not in re.sub(r"<script>.*", "", text, flags=re.DOTALL).lower()
    assert len(text) < 150_000
    for rect in document.all("rect", "bar"):
        assert (rect.attributes["x"], rect.attributes["width"]) == ("0.000%", "100.000%")
    assert not list(write(result_of()).all("article"))


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


@pytest.mark.parametrize(
    ("present", "words"), [(0.9996, ">99%"), (0.994, "99%"), (0.0004, "<1%"), (1.0, "100%")]
)
def test_the_gauge_is_no_surer_than_the_words(
    result: SearchResult, write: Write, present: float, words: str
) -> None:
    one = replace(result, answers=(replace(result.answers[0], present=present),))
    gauge = write(one).one("div", "gauge")
    assert gauge.one("text").text == words
    _, ring = gauge.all("circle")
    filled, around = map(float, ring.attributes["stroke-dasharray"].split())
    assert filled / around == pytest.approx(present, abs=1e-3)


def test_page_without_a_trained_model_shows_windows_alone(
    zero_shot: SearchResult, write: Write
) -> None:
    document = write(zero_shot)
    card = document.one("article")
    assert not list(document.all("line", "whisker"))
    assert not list(document.all("div", "gauge"))
    assert [button.text for button in card.all("button")] == [
        "0:10.0 – 0:20.0uncertain, confidence not known · score 0.60",
        "0:50.0 – 0:54.0uncertain, confidence not known · score 0.40",
    ]
    assert document.one("nav").one("small").text == "not known"
    assert "confidence" not in document.one("section").text
    assert (
        document.one("div", "legend").text
        == "saliency: how well each clip fits moment uncertain moment"
    )
    assert not re.search(r"\bnan\b|% interval", card.text)


def test_legend_explains_what_is_on_the_page_alone(result: SearchResult, write: Write) -> None:
    (bare, full) = (write(replace(result, answers=result.answers[:1])), write(result, truth={}))
    assert [span.text for span in bare.one("div", "legend").all("span")] == [
        "saliency: how well each clip fits",
        "moment, 90 % intervals",
    ]
    assert [span.text for span in full.one("div", "legend").all("span")][1::2] == [
        "truth",
        "uncertain moment",
    ]


def test_a_page_of_several_videos_has_a_part_for_each(
    result: SearchResult, video: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = video.with_name("other.mp4")
    other.write_bytes(b"other")
    monkeypatch.setattr(page, "_LARGEST_EMBEDDED_BYTES", 8)
    surest, *_, unknown = result.answers
    unsure = replace(surest, present=0.5, verdict="uncertain")
    results = [
        replace(result, video="none.mp4", answers=(unknown, unknown)),
        replace(result, video=str(other), duration=9.0, answers=(unsure, unknown)),
        replace(result, video=str(video), answers=(surest, unknown)),
    ]
    document = write(results, video_path=None)
    assert document.one("h1").text == "3 videos"
    first, second = document.all("div", "part")
    assert [part.one("header").one("h2").text for part in (first, second)] == [
        "talk 1.mp4",
        "other.mp4",
    ]
    # What there is no room for is linked.
    sources = [part.one("video").attributes["src"] for part in (first, second)]
    assert sources == ["data:video/mp4;base64,AAF2aWRlbw==", "../other.mp4"]
    assert [card.one("div", "tags").text for card in document.all("article")] == [
        "✓found 1 of 3 videos",
        "?uncertain 1 of 3 videos",
        "?uncertain 2 of 3 videos",
        "?uncertain 2 of 3 videos",
    ]
    assert document.one("p", "others").text == "No moment in none.mp4."
    data = [json.loads(part.one("script").text) for part in (first, second)]
    assert [part["duration"] for part in data] == [80.0, 9.0]
    anchors = [card.attributes["id"] for card in document.all("article")]
    assert [link for link in fetched(document) if link.startswith("#a")] == [
        f"#{anchor}" for anchor in reversed(anchors)
    ]
    with pytest.raises(ValueError, match="of one video"):
        write(results, video_path=None, truth={})

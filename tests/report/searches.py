"""Searches and answers to make reports of, and the page as a browser would parse it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser

from demr.answers.judging import Verdict
from demr.search.result import Answer, Moment, SearchResult

# What others could write into a query, a title or a file name, to be shown as it is.
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</h2></script><script>alert(2)</script>",
    "{{7*7}} {% raw %} $title ${video}",
    "a giraffe [/b] dances [red]x[/red] :smile:",
    "\" onload='x' & &lt;",
    "🦒 👩‍🚀 رجل يفتح الباب",
)
UNKNOWN = (math.nan, math.nan)
_VOID = {"meta", "link"}


def moment(
    start: float,
    end: float,
    half: tuple[float, float] = (0.5, 0.5),
    epistemic: float = 0.1,
    confidence: float = 0.84,
) -> Moment:
    """A moment whose intervals reach so many seconds to both sides of its boundaries."""
    return Moment(
        start=start,
        end=end,
        score=0.75,
        start_interval=(start - half[0], start + half[0]),
        end_interval=(end - half[1], end + half[1]),
        aleatoric=(0.21, 0.34),
        epistemic=(epistemic, epistemic),
        confidence=confidence,
        verdict="found" if confidence >= 0.6 else "uncertain",
    )


def answer(
    query: str,
    verdict: Verdict = "found",
    moments: Sequence[Moment] = (),
    present: float | None = 0.9,
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


def zero_shot_result() -> SearchResult:
    """What a search without a trained model knows: windows and their scores."""
    moments = [
        Moment(10.0, 20.0, 0.6, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN),
        Moment(50.0, 54.0, 0.4, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN),
    ]
    found = result_of(answer("a zebra", "uncertain", moments, present=None))
    return replace(found, model="zero-shot", interval_level=math.nan)


@dataclass
class Element:
    """One element of a page.

    Attributes:
        tag: Its name.
        attributes: Their values by name.
        inside: Its elements and texts in order.
    """

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    inside: "list[Element | str]" = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it, with single spaces."""
        texts = (part if isinstance(part, str) else part.text for part in self.inside)
        return " ".join("".join(texts).split())

    def all(self, tag: str, of_class: str | None = None) -> "Iterator[Element]":
        """Every element of a tag, and of a class, in document order."""
        for part in self.inside:
            if isinstance(part, Element):
                classes = part.attributes.get("class", "").split()
                if part.tag == tag and (of_class is None or of_class in classes):
                    yield part
                yield from part.all(tag, of_class)

    def one(self, tag: str, of_class: str | None = None) -> "Element":
        """The only such element."""
        (found,) = self.all(tag, of_class)
        return found


class _Parser(HTMLParser):
    """Builds the tree, and fails where a tag is closed that is not the open one."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("document")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in _VOID:
            child = self.open[-1].inside[-1]
            assert isinstance(child, Element)
            self.open.append(child)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.open[-1].inside.append(Element(tag, attributes))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].inside.append(data)


def parse(text: str) -> Element:
    """Read a page, whose tags must all be closed in order."""
    parser = _Parser()
    parser.feed(text)
    parser.close()
    (document,) = parser.open
    return document

"""One self-contained HTML page of a search: each video, and a timeline for every sentence.

This file gathers what the page shows; ``page.html`` and what it includes lay it out. Jinja2
escapes every text on its way into the page.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from demr.errors import InputError
from demr.machine.terminal import clock, counted, printable
from demr.report.output import write_output
from demr.report.timeline import CURVE_HEIGHT, LANE_HEIGHT, Timeline, lay_out
from demr.report.wording import (
    SHORT_VERDICT,
    Windows,
    best_iou,
    chance_text,
    explain_answer,
    first_few,
    level_text,
)
from demr.search.several import order_videos, rank_videos

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jinja2 import Environment

    from demr.search.result import Answer, Moment, SearchResult

_SIGNS: Final = {"found": "✓", "uncertain": "?", "absent": "∅"}
_MIME: Final = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/mp4",
    ".webm": "video/webm",
}
_BEFORE_UNIT: Final = re.compile(r"(?<=±) (?=\d)|(?<=\d) (?=s\b|%)")
# Base64 grows a file by a third, and browsers become slow with pages far above this.
_LARGEST_EMBEDDED_BYTES: Final = 40 * 1024 * 1024


@dataclass(frozen=True)
class Gauge:
    """A ring that is filled as far as a probability says: lengths of its stroke, and its end."""

    filled: float
    around: float
    cap: str


@dataclass(frozen=True)
class Card:
    """What the page shows of one answer.

    Attributes:
        answer: Query, verdict and notes.
        verdict: In one word, which is also its class in ``page.css``.
        rank: Which of several videos this one is for the sentence; empty of one alone.
        presence: The probability that the moment is in the video, as text.
        gauge: The same as a ring; None where it is not known.
        truth_line: The truth, and how well the best moment meets it; empty where not known.
        timeline: What is drawn.
        explanation: How far the answer can be trusted, in words.
    """

    answer: Answer
    verdict: str
    rank: str
    presence: str
    gauge: Gauge | None
    truth_line: str
    timeline: Timeline
    explanation: str


@dataclass(frozen=True)
class Part:
    """What the page shows of one video.

    Attributes:
        result: The search of it.
        name: Of the file.
        source: The video as a URL.
        cards: Of its answers.
    """

    result: SearchResult
    name: str
    source: str
    cards: tuple[Card, ...]

    @property
    def facts(self) -> tuple[str, ...]:
        """What is said of the video below its name."""
        result, sentences = self.result, counted(len(self.cards), "sentence")
        return (self.name, clock(result.duration), sentences, result.model, result.encoder)

    @property
    def verdicts(self) -> str:
        """How many answers have each verdict."""
        short_verdicts = [card.verdict for card in self.cards]
        return " · ".join(
            f"{short_verdicts.count(short)} {verdict}"
            for verdict, short in SHORT_VERDICT.items()
            if short in short_verdicts
        )

    @property
    def data(self) -> dict[str, object]:
        """What the script of the page asks for."""
        queries = [printable(card.answer.query) for card in self.cards]
        return {"duration": self.result.duration, "queries": queries}


def write_html_report(
    path: str | Path,
    results: SearchResult | Sequence[SearchResult],
    *,
    video_path: str | Path | None = None,
    truth: Mapping[str, Windows] | None = None,
    title: str | None = None,
) -> Path:
    """Write a search as one page that needs no network and no other file.

    Of several videos each with a moment has a part of its own, the surest first; the others are
    named. What is above 40 MiB, of all videos together, is linked relative to the page and not
    embedded.

    Args:
        path: The page; its folder is made, and an older page is replaced in one step.
        results: What was searched and found, in one video or in each of several.
        video_path: Of one video, the file that a browser plays; the searched one if not given.
        truth: Of one video, true windows in seconds by sentence, where known; an empty sequence
            says that the moment is not in the video.
        title: Heading of the page; the name of the video, or their number, if not given.

    Returns:
        The path of the page.

    Raises:
        InputError: If a video cannot be read or the page cannot be written.
        ValueError: If ``video_path`` or ``truth`` is given for several videos.
    """
    path, several = Path(path), isinstance(results, Sequence)
    if several and not (video_path is None and truth is None):
        raise ValueError("video_path and truth are of one video")
    searched = order_videos(results) if isinstance(results, Sequence) else [results]
    shown = [r for r in searched if not several or any(a.moments for a in r.answers)]
    parts, left = [], _LARGEST_EMBEDDED_BYTES
    for result in shown:
        file = Path(result.video if video_path is None else video_path)
        source, size = _video_source(file, path, left)
        left -= size
        cards = tuple(
            _card(answer, result, truth, _rank(result, number, searched) if several else "")
            for number, answer in enumerate(result.answers)
        )
        parts.append(Part(result, Path(result.video).name, source, cards))
    if title is None:
        title = counted(len(searched), "video") if several else parts[0].name
    others = [result.video for result in searched if result not in shown]
    text = _render(
        parts,
        title=title,
        several=several,
        others=f"No moment in {first_few(others)}." if others else "",
        level=level_text(searched[0]),
        has_truth=truth is not None,
    )
    write_output(path, text.encode())
    return path


def _rank(result: SearchResult, number: int, searched: Sequence[SearchResult]) -> str:
    """Which of several videos a video is for one of the sentences."""
    rank = [id(one) for one in rank_videos(searched, number)].index(id(result)) + 1
    return f"{rank} of {counted(len(searched), 'video')}"


def _render(parts: Sequence[Part], **context: object) -> str:
    from markupsafe import Markup

    # Of this package, and the same to the byte as what the policy of the page lets run.
    script = Markup(files("demr.report").joinpath("page.js").read_text(encoding="utf-8"))  # noqa: S704
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    moments = [m for part in parts for answer in part.result.answers for m in answer.moments]
    return (
        _templates()
        .get_template("page.html")
        .render(
            parts=parts,
            has_uncertain=any(moment.verdict == "uncertain" for moment in moments),
            script=script,
            script_digest=digest,
            **context,
        )
    )


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("demr.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Exactly str: what is marked as safe has been through here.
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    templates.filters |= {
        "clock": clock,
        "keep_units": _keep_units,
        "has_deviations": _has_deviations,
        "chance": chance_text,
    }
    templates.globals |= {
        "signs": _SIGNS,
        "curve_height": CURVE_HEIGHT,
        "lane_height": LANE_HEIGHT,
    }
    return templates


def _video_source(video: Path, page: Path, most: int) -> tuple[str, int]:
    """The video itself as a URL, or where it lies as seen from the page; and bytes embedded."""
    try:
        size = video.stat().st_size
        if size > most:
            place = os.path.relpath(video.resolve(), page.resolve().parent)
            # As bytes: not every name is UTF-8.
            return quote(os.fsencode(Path(place).as_posix())), 0
        content = base64.b64encode(video.read_bytes()).decode()
    except OSError as error:
        raise InputError(
            str(video),
            expected="the video that was searched",
            got=error.strerror or str(error),
            remedy="give the path of an existing video file",
        ) from error
    return f"data:{_MIME.get(video.suffix.lower(), 'video/mp4')};base64,{content}", size


def _card(
    answer: Answer, result: SearchResult, truth: Mapping[str, Windows] | None, rank: str
) -> Card:
    windows = None if truth is None else truth.get(answer.query)
    return Card(
        answer=answer,
        verdict=SHORT_VERDICT[answer.verdict],
        rank=rank,
        presence=chance_text(answer.present),
        gauge=_gauge(answer.present),
        truth_line="" if windows is None else _truth_line(answer, windows),
        timeline=lay_out(answer, result, windows),
        explanation=explain_answer(answer, result),
    )


def _gauge(present: float | None) -> Gauge | None:
    if present is None:
        return None
    around = 2 * math.pi * 25
    share = min(max(present, 0.0), 1.0)
    return Gauge(around * share, around, cap="round" if share > 0.02 else "butt")


def _truth_line(answer: Answer, windows: Windows) -> str:
    if not windows:
        return "Truth: not in this video"
    times = ", ".join(f"{clock(start)} – {clock(end)}" for start, end in windows)
    if not answer.moments:
        return f"Truth: {times}"
    return f"Truth: {times} · IoU of the top moment {best_iou(answer.moments[0], windows):.2f}"


def _has_deviations(moment: Moment) -> bool:
    return not math.isnan(sum((*moment.aleatoric, *moment.epistemic)))


def _keep_units(text: str) -> str:
    """Numbers stay on one line with their units."""
    return _BEFORE_UNIT.sub("\N{NO-BREAK SPACE}", text)

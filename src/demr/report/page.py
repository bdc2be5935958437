"""One self-contained HTML page of a search: the video, and a timeline for every sentence.

This file gathers what the page shows; ``page.html`` and what it includes lay it out. Jinja2
escapes every text on its way into the page.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
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
    level_text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
        presence: The probability that the moment is in the video, as text.
        gauge: The same as a ring; None where it is not known.
        truth_line: The truth, and how well the best moment meets it; empty where not known.
        timeline: What is drawn.
        explanation: How far the answer can be trusted, in words.
    """

    answer: Answer
    verdict: str
    presence: str
    gauge: Gauge | None
    truth_line: str
    timeline: Timeline
    explanation: str


def write_html_report(
    path: str | Path,
    result: SearchResult,
    *,
    video_path: str | Path,
    truth: Mapping[str, Windows] | None = None,
    title: str | None = None,
) -> Path:
    """Write a search as one page that needs no network and no other file.

    A video above 40 MiB is linked relative to the page and not embedded.

    Args:
        path: The page; its folder is made, and an older page is replaced in one step.
        result: What was searched and found.
        video_path: The video as a file that a browser plays.
        truth: True windows in seconds by sentence, where known; an empty sequence says that the
            moment is not in the video.
        title: Heading of the page; the name of the video if not given.

    Returns:
        The path of the page.

    Raises:
        InputError: If the video cannot be read or the page cannot be written.
    """
    path = Path(path)
    video = _video_source(Path(video_path), path)
    write_output(path, _render(result, video, truth, title).encode())
    return path


def _render(
    result: SearchResult, video: str, truth: Mapping[str, Windows] | None, title: str | None
) -> str:
    from markupsafe import Markup

    # Of this package, and the same to the byte as what the policy of the page lets run.
    script = Markup(files("demr.report").joinpath("page.js").read_text(encoding="utf-8"))  # noqa: S704
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    name = Path(result.video).name
    cards = [_card(answer, result, truth) for answer in result.answers]
    return (
        _templates()
        .get_template("page.html")
        .render(
            result=result,
            cards=cards,
            video=video,
            title=name if title is None else title,
            facts=(
                name,
                clock(result.duration),
                counted(len(cards), "sentence"),
                result.model,
                result.encoder,
            ),
            verdicts=_count_verdicts(cards),
            level=level_text(result),
            has_truth=truth is not None,
            has_uncertain=any(
                moment.verdict == "uncertain" for card in cards for moment in card.answer.moments
            ),
            data={
                "duration": result.duration,
                "queries": [printable(answer.query) for answer in result.answers],
            },
            script=script,
            script_digest=digest,
        )
    )


def _count_verdicts(cards: Sequence[Card]) -> str:
    short_verdicts = [card.verdict for card in cards]
    return " · ".join(
        f"{short_verdicts.count(short)} {verdict}"
        for verdict, short in SHORT_VERDICT.items()
        if short in short_verdicts
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


def _video_source(video: Path, page: Path) -> str:
    """The video itself as a URL, or where it lies as seen from the page."""
    try:
        if video.stat().st_size > _LARGEST_EMBEDDED_BYTES:
            place = os.path.relpath(video.resolve(), page.resolve().parent)
            # As bytes: not every name is UTF-8.
            return quote(os.fsencode(Path(place).as_posix()))
        content = base64.b64encode(video.read_bytes()).decode()
    except OSError as error:
        raise InputError(
            str(video),
            expected="the video that was searched",
            got=error.strerror or str(error),
            remedy="give the path of an existing video file",
        ) from error
    return f"data:{_MIME.get(video.suffix.lower(), 'video/mp4')};base64,{content}"


def _card(answer: Answer, result: SearchResult, truth: Mapping[str, Windows] | None) -> Card:
    windows = None if truth is None else truth.get(answer.query)
    return Card(
        answer=answer,
        verdict=SHORT_VERDICT[answer.verdict],
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

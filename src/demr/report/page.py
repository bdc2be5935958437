"""One self-contained HTML page of a search: the video, and a timeline for every sentence."""

from __future__ import annotations

import base64
import hashlib
import math
import os
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from demr.errors import InputError
from demr.machine.files import atomic_path
from demr.machine.terminal import clock
from demr.report.timeline import seek, timeline
from demr.report.wording import TONE, Windows, chance, in_words, level, overlap, percent, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from demr.search.result import Answer, Moment, SearchResult

_SIGN: Final = {"found": "✓", "uncertain": "?", "absent": "∅"}
_MIME: Final = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/mp4",
    ".webm": "video/webm",
}
# Base64 grows a file by a third, and browsers become slow with pages far above this.
_LARGEST_EMBEDDED_BYTES: Final = 40 * 1024 * 1024


def write_html_report(
    path: str | Path,
    result: SearchResult,
    *,
    video_path: str | Path,
    truth: Mapping[str, Windows] | None = None,
    title: str | None = None,
    explain: bool = True,
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
        explain: Whether a paragraph on how to read the page is added.

    Returns:
        The path of the page.

    Raises:
        InputError: If the video cannot be read or the page cannot be written.
    """
    path = Path(path)
    script = _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    counts = [TONE[answer.verdict] for answer in result.answers]
    verdicts = " · ".join(
        f"{counts.count(tone)} {verdict}" for verdict, tone in TONE.items() if tone in counts
    )
    sentences = f"{len(counts)} sentence{'' if len(counts) == 1 else 's'}"
    facts = (
        Path(result.video).name,
        clock(result.duration),
        sentences,
        result.model,
        result.encoder,
    )
    page = Template(_resource("page.html")).substitute(
        # Only this script may run, whatever a sentence or a file name contains.
        policy=f"default-src 'none'; img-src data:; media-src data: 'self' file:; "
        f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        title=escape(title if title is not None else Path(result.video).name),
        facts=escape(" · ".join(facts)),
        verdicts=escape(verdicts),
        video=escape(_video_source(Path(video_path), path)),
        duration=clock(result.duration),
        links="\n".join(_link(index, answer) for index, answer in enumerate(result.answers)),
        how=_how(result, truth is not None) if explain else "",
        truth_legend='<span><svg width="28" height="12"><rect y="3" width="28" height="6" rx="3" '
        'fill="var(--truth)"/></svg>truth</span>'
        if truth is not None
        else "",
        level=f", {level(result).replace(' ', '&nbsp;')} intervals" if level(result) else "",
        cards="\n".join(
            _card(index, answer, result, truth) for index, answer in enumerate(result.answers)
        ),
        script=script,
    )
    write_atomically(path, page.encode("utf-8", "xmlcharrefreplace"))
    return path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under another name and move it into place, so that no half file is ever seen.

    Raises:
        InputError: If the folder or the file cannot be written; an older file stays as it was.
    """
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise InputError(
            str(path),
            expected="a file that can be written",
            got=error.strerror or str(error),
            remedy="name a writable folder with enough free space",
        ) from error


def _resource(name: str) -> str:
    return files("demr.report").joinpath(name).read_text(encoding="utf-8")


def _video_source(video: Path, page: Path) -> str:
    try:
        if video.stat().st_size > _LARGEST_EMBEDDED_BYTES:
            return quote(Path(os.path.relpath(video.resolve(), page.resolve().parent)).as_posix())
        content = base64.b64encode(video.read_bytes()).decode()
    except OSError as error:
        raise InputError(
            str(video),
            expected="the video that was searched",
            got=error.strerror or str(error),
            remedy="give the path of an existing video file",
        ) from error
    return f"data:{_MIME.get(video.suffix.lower(), 'video/mp4')};base64,{content}"


def _link(index: int, answer: Answer) -> str:
    tone = TONE[answer.verdict]
    return (
        f'<a class="{tone}" href="#answer-{index}"><i></i><span>{escape(answer.query)}</span>'
        f"<small>{escape(chance(answer))}</small></a>"
    )


def _how(result: SearchResult, with_truth: bool) -> str:
    if not level(result):
        return (
            '<section class="panel how"><h2>How to read this page</h2>'
            "<p>Click on a moment to play it, or anywhere on a timeline to jump there. "
            "Moments are where the pictures look most like the sentence.</p></section>"
        )
    truth = " The green line is the truth, as it was given with the video." if with_truth else ""
    return (
        '<section class="panel how"><h2>How to read this page</h2>'
        "<p>Click on a moment to play it, or anywhere on a timeline to jump there. "
        f"A whisker spans where a boundary lies with {level(result)} confidence.{truth}</p>"
        "<p>The ring is the calibrated chance that the moment is in this video at all.</p>"
        "<p>Spreads are standard deviations of start / end: “footage” is what the video itself "
        "leaves open, “model” is the model's own doubt.</p></section>"
    )


def _card(
    index: int, answer: Answer, result: SearchResult, truth: Mapping[str, Windows] | None
) -> str:
    tone = TONE[answer.verdict]
    windows = None if truth is None else truth.get(answer.query)
    against = "" if windows is None else f"<span>{escape(_against_truth(answer, windows))}</span>"
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in answer.notes)
    buttons = "".join(_moment_button(moment) for moment in shown(answer))
    return (
        f'<article class="card {tone}" id="answer-{index}"><div class="top"><div>'
        f'<h2>{escape(answer.query)}</h2><div class="tags"><span class="badge">'
        f'<span aria-hidden="true">{_SIGN[tone]}</span>{answer.verdict}</span>{against}</div></div>'
        f"{_gauge(answer.present)}</div>{timeline(answer, result, windows)}"
        f'<p class="says">{escape(in_words(answer, result))}</p>{notes}'
        f'<ul class="moments">{buttons}</ul></article>'
    )


def _against_truth(answer: Answer, windows: Windows) -> str:
    if not windows:
        return "Truth: not in this video"
    times = ", ".join(f"{clock(start)} – {clock(end)}" for start, end in windows)
    if not answer.moments or TONE[answer.verdict] == "absent":
        return f"Truth: {times}"
    top = answer.moments[0]
    best = max(overlap((top.start, top.end), (start, end)) for start, end in windows)
    return f"Truth: {times} · IoU of the top moment {best:.2f}"


def _gauge(present: float) -> str:
    if math.isnan(present):
        return ""
    around = 2 * math.pi * 25
    filled = around * min(max(present, 0.0), 1.0)
    cap = "round" if present > 0.02 else "butt"
    circle = '<circle cx="31" cy="31" r="25" fill="none" stroke-width="6"'
    number = escape(percent(present).removesuffix(" %"))
    return (
        '<div class="gauge" role="img" aria-label="Chance that it is in this video: '
        f'{escape(percent(present))}"><svg width="62" height="62" viewBox="0 0 62 62">'
        f'{circle} stroke="var(--line)"/>{circle} stroke="var(--tone)" stroke-linecap="{cap}" '
        f'stroke-dasharray="{filled:.1f} {around:.1f}" transform="rotate(-90 31 31)"/>'
        f'<text x="31" y="37" text-anchor="middle">{number}</text></svg>'
        "% in this video</div>"
    )


def _moment_button(moment: Moment) -> str:
    spread = ""
    if not math.isnan(sum((*moment.aleatoric, *moment.epistemic))):
        aleatoric = f"± {moment.aleatoric[0]:.2f} / {moment.aleatoric[1]:.2f} s"
        epistemic = f"± {moment.epistemic[0]:.2f} / {moment.epistemic[1]:.2f} s"
        spread = f" · footage {aleatoric} · model {epistemic}"
    return (
        f'<li><button type="button" {seek(moment.start, moment.end)}>'
        f'<span class="play" aria-hidden="true"></span><span>{clock(moment.start)} – '
        f"{clock(moment.end)}<small>score {moment.score:.2f}{spread}"
        "</small></span></button></li>"
    )

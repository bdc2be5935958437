"""The result of a search for other programs: JSON, CSV, and subtitles."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from demr.machine.terminal import printable
from demr.report.wording import chance_text
from demr.search.several import order_videos, rank_videos

if TYPE_CHECKING:
    from demr.search.result import Moment, SearchResult

_CSV_COLUMNS: Final = (
    "query",
    "verdict",
    "present",
    "rank",
    "start",
    "end",
    "score",
    "start_low",
    "start_high",
    "end_low",
    "end_high",
    "aleatoric_start",
    "aleatoric_end",
    "epistemic_start",
    "epistemic_end",
    "confidence",
    "moment_verdict",
    "notes",
)

# Excel, LibreOffice and others begin a formula at these; full-width ones in East Asian editions.
_FORMULA_SIGNS: Final = tuple("=+-@\t\r\n＝＋－＠")  # noqa: RUF001
# Players take these in subtitles for tags and commands, and --> for the times of another cue.
_SRT_SIGNS: Final = str.maketrans("<>{}", "‹›()")  # noqa: RUF001


def to_json(results: SearchResult | Sequence[SearchResult]) -> str:
    """Return a search as JSON on one line, in ASCII so that any terminal carries it.

    Args:
        results: Of one video its JSON object. Of several an array of such objects, the video with
            the surest answer first; each answer has its ``rank`` among the videos there, from 1.
    """
    if isinstance(results, Sequence):
        values: Any = _ranked_dicts(results)
    else:
        values = results.to_dict()
    # Of what terminals obey JSON leaves only this one as it is.
    return json.dumps(values, allow_nan=False).replace("\x7f", "\\u007f")


def _ranked_dicts(results: Sequence[SearchResult]) -> list[dict[str, Any]]:
    ordered = order_videos(results)
    values = {id(result): result.to_dict() for result in ordered}
    for number in range(len(ordered[0].answers)):
        for rank, result in enumerate(rank_videos(ordered, number), start=1):
            values[id(result)]["answers"][number]["rank"] = rank
    return list(values.values())


def to_csv(results: SearchResult | Sequence[SearchResult]) -> str:
    """Return one row a moment; a sentence without a moment keeps a row without times.

    Of several videos the first column names the video, and the rows of each sentence begin with
    its surest video. The last column has the notes on an answer, with bars between them. Text that
    spreadsheets would take for a formula has an apostrophe before it, and control characters are
    written as escapes.
    """
    several = isinstance(results, Sequence)
    searched = results if isinstance(results, Sequence) else [results]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("video", *_CSV_COLUMNS) if several else _CSV_COLUMNS)
    for number in range(len(searched[0].answers)):
        for result in rank_videos(searched, number):
            answer = result.answers[number]
            name = (_cell(result.video),) if several else ()
            head = (*name, _cell(answer.query), answer.verdict, _number(answer.present))
            notes = _cell(" | ".join(answer.notes))
            for rank, moment in enumerate(answer.moments, start=1):
                numbers = map(_number, _moment_numbers(moment))
                writer.writerow((*head, rank, *numbers, moment.verdict, notes))
            if not answer.moments:
                writer.writerow((*head, *[""] * (len(_CSV_COLUMNS) - 4), notes))
    return stream.getvalue()


def _cell(text: str) -> str:
    """Text of others, as a spreadsheet shows it and does not run it.

    >>> _cell("=1+1"), _cell("-5 degrees"), _cell("a = b")
    ("'=1+1", "'-5 degrees", 'a = b')
    """
    shown = printable(text)
    return f"'{shown}" if text.startswith(_FORMULA_SIGNS) else shown


def _moment_numbers(moment: Moment) -> tuple[float | None, ...]:
    """What the columns of CSV hold from ``start`` to ``confidence``."""
    return (
        moment.start,
        moment.end,
        moment.score,
        *moment.start_interval,
        *moment.end_interval,
        *moment.aleatoric,
        *moment.epistemic,
        moment.confidence,
    )


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4f}"


def to_srt(result: SearchResult) -> str:
    """Return the moments as subtitles by start, each with how sure it is, for any player."""
    cues = [
        (
            moment,
            f"{_srt_text(answer.query)}\n{moment.verdict}, {chance_text(moment.confidence)}",
        )
        for answer in result.answers
        for moment in answer.moments
    ]
    cues.sort(key=lambda cue: (cue[0].start, cue[0].end))
    return "\n".join(
        f"{number}\n{_srt_times(moment)}\n{text}\n"
        for number, (moment, text) in enumerate(cues, start=1)
    )


def _srt_text(text: str) -> str:
    """A query on one line that no player takes for anything else."""
    return printable(" ".join(text.split())).replace("-->", "→").translate(_SRT_SIGNS)


def _srt_times(moment: Moment) -> str:
    # A cue of no length is shown by no player.
    return f"{_srt_time(moment.start)} --> {_srt_time(max(moment.end, moment.start + 0.001))}"


def _srt_time(seconds: float) -> str:
    milliseconds = round(max(seconds, 0.0) * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d},{rest % 1000:03d}"

"""The result of a search for other programs: JSON, CSV, and subtitles."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import TYPE_CHECKING, Final

from demr.report.wording import SHORT_VERDICT, moments_to_show, presence_text

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
)


def to_json(result: SearchResult) -> str:
    """Return the JSON object of a search on one line, in ASCII so that any terminal carries it."""
    return json.dumps(result.to_dict(), allow_nan=False)


def to_csv(result: SearchResult) -> str:
    """Return one row a moment; a sentence that is not in the video keeps a row without times."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for answer in result.answers:
        head = (answer.query, answer.verdict, _number(answer.present))
        moments = () if SHORT_VERDICT[answer.verdict] == "absent" else answer.moments
        for rank, moment in enumerate(moments, start=1):
            writer.writerow((*head, rank, *map(_number, _moment_numbers(moment))))
        if not moments:
            writer.writerow((*head, *[""] * (len(_CSV_COLUMNS) - len(head))))
    return stream.getvalue()


def _moment_numbers(moment: Moment) -> tuple[float, ...]:
    """What the columns of CSV hold from ``start`` on."""
    return (
        moment.start,
        moment.end,
        moment.score,
        *moment.start_interval,
        *moment.end_interval,
        *moment.aleatoric,
        *moment.epistemic,
    )


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def to_srt(result: SearchResult) -> str:
    """Return the moments worth showing as subtitles by start, for any player beside the video."""
    cues = [
        (moment, f"{' '.join(answer.query.split())}\n{answer.verdict}, {presence_text(answer)}")
        for answer in result.answers
        if SHORT_VERDICT[answer.verdict] != "absent"
        for moment in moments_to_show(answer)
    ]
    cues.sort(key=lambda cue: (cue[0].start, cue[0].end))
    return "\n".join(
        # An arrow inside the text would start another cue; the query has lost its blank lines.
        f"{number}\n{_srt_times(moment)}\n{text.replace('-->', '→')}\n"
        for number, (moment, text) in enumerate(cues, start=1)
    )


def _srt_times(moment: Moment) -> str:
    # A cue of no length is shown by no player.
    return f"{_srt_time(moment.start)} --> {_srt_time(max(moment.end, moment.start + 0.001))}"


def _srt_time(seconds: float) -> str:
    milliseconds = round(max(seconds, 0.0) * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d},{rest % 1000:03d}"

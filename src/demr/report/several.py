"""Searches of several videos together: what is shown of each sentence, best first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from demr.machine.terminal import counted, plain
from demr.report.tables import empty_table, moment_cells, verdict_cell, verdict_text
from demr.report.wording import SHORT_VERDICT, level_text
from demr.search.several import rank_videos

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table

    from demr.search.result import Answer, Moment, SearchResult


@dataclass(frozen=True)
class ShownAnswer:
    """What is shown of one sentence in one video.

    Attributes:
        result: The search of the video.
        answer: The answer to the sentence.
        moments: Those to show, best first; at least one.
    """

    result: SearchResult
    answer: Answer
    moments: tuple[Moment, ...]


def shown_answers(
    results: Sequence[SearchResult], number: int, most: int | None = None
) -> Iterator[ShownAnswer]:
    """Yield what people are shown of one sentence, the surest video first.

    Args:
        results: Searches of one or several videos for the same sentences.
        number: Which of the sentences, from 0.
        most: Moments to show in all; None for all.
    """
    left = most
    for result in rank_videos(results, number):
        answer = result.answers[number]
        moments = answer.moments[:left]
        if left is not None:
            left -= len(moments)
        if moments:
            yield ShownAnswer(result, answer, moments)


def videos_table(results: Sequence[SearchResult], most: int) -> Table:
    """Lay searches of several videos out for the terminal: a sentence's best moments in any.

    Args:
        results: Searches of the videos for the same sentences.
        most: Moments to list for a sentence.
    """
    table = empty_table(level_text(results[0]), ("query", "video"))
    for number, asked in enumerate(results[0].answers):
        heads = iter([plain(asked.query)])
        shown = list(shown_answers(results, number, most))
        for part in shown:
            names = iter([plain(_shortest_name(part.result, results))])
            verdicts = iter([verdict_cell(part.answer)])
            for moment in part.moments:
                first = (next(cells, Text()) for cells in (heads, names))
                verdict = next(verdicts, verdict_text(moment.verdict))
                table.add_row(*first, verdict, *moment_cells(moment))
        rest = _rest(results, number, shown)
        if rest:
            table.add_row(next(heads, Text()), Text(rest, style="dim"), *[Text("–")] * 5)
    return table


def _shortest_name(result: SearchResult, results: Sequence[SearchResult]) -> str:
    """The name of the file, or its path where another video has the same name."""
    name = Path(result.video).name
    same = [other for other in results if Path(other.video).name == name]
    return name if len(same) == 1 else result.video


def _rest(results: Sequence[SearchResult], number: int, shown: Sequence[ShownAnswer]) -> str:
    """How many videos have no row for a sentence, and why."""
    answers = [result.answers[number] for result in results]
    absent = sum(SHORT_VERDICT[answer.verdict] == "absent" for answer in answers)
    unknown = sum(not answer.moments for answer in answers) - absent
    parts = []
    if absent == len(results):
        return f"in none of {counted(len(results), 'video')}"
    more = len(results) - absent - unknown - len(shown)
    if more:
        parts.append(f"{more} more with lower chances")
    if unknown:
        parts.append(f"uncertain in {unknown}" + (" more" if shown else ""))
    if absent:
        parts.append(f"not in {absent} more")
    return ", ".join(parts)

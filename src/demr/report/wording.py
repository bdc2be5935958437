"""The words and times in which every report speaks of a search."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from demr.annotations.windows import window_iou
from demr.machine.terminal import clock

if TYPE_CHECKING:
    from demr.search.result import Answer, Moment, SearchResult

Windows = Sequence[tuple[float, float]]
"""True windows of one query in seconds, ``(start, end)``; empty if it is not in the video."""

SHORT_VERDICT: Final = {"found": "found", "uncertain": "uncertain", "not in this video": "absent"}
"""One word for each verdict, the surest first."""

_UNCALIBRATED: Final = (
    "Zero-shot, uncalibrated: these moments look most like the sentence. Whether it is in this "
    "video at all, and where exactly it begins and ends, is not known; look yourself."
)


def window_text(start: float, end: float) -> str:
    """Return a window in one string, with the minutes of its end only where they differ.

    >>> window_text(11.7, 12.5), window_text(57.6, 62.4), window_text(math.nan, math.nan)
    ('0:11.7–12.5', '0:57.6–1:02.4', '–')
    """
    if math.isnan(start + end):
        return "–"
    first, second = clock(start), clock(end)
    hours, _, _ = first.rpartition(":")
    if second.rpartition(":")[0] == hours:
        second = second.rpartition(":")[2]
    return f"{first}–{second}"


def percent(share: float) -> str:
    """Return a share as whole percent; only an exact 0 or 1 is called 0 % or 100 %.

    >>> percent(0.934), percent(0.0004), percent(0.9996)
    ('93 %', '<1 %', '>99 %')
    """
    if 0.0 < share < 0.005:
        return "<1 %"
    if 0.995 <= share < 1.0:
        return ">99 %"
    return f"{round(share * 100)} %"


def chance_text(probability: float | None) -> str:
    """Return a probability as percent, or that nobody knows it.

    >>> chance_text(0.934), chance_text(None)
    ('93 %', 'not known')
    """
    return "not known" if probability is None else percent(probability)


def level_text(result: SearchResult) -> str:
    """Return the level of the intervals as percent; empty where there are none."""
    known = not math.isnan(result.interval_level)
    return f"{result.interval_level * 100:g} %" if known else ""


def overlaps(moment: Moment, others: Sequence[Moment], *, above: float) -> bool:
    """Whether the IoU of a moment with any of others is above a threshold."""
    windows = [(other.start, other.end) for other in others]
    return best_iou(moment, windows) > above


def best_iou(moment: Moment, windows: Windows) -> float:
    """Return the highest IoU of a moment with any of some windows; 0 where there are none."""
    table = np.array(windows, np.float64).reshape(-1, 2)
    return float(window_iou(np.array([[moment.start, moment.end]]), table).max(initial=0.0))


def unique_notes(results: SearchResult | Sequence[SearchResult]) -> list[str]:
    """What limits the trust in the answers, once each.

    A note on some queries or videos alone names them; of many, the first few.
    """
    searched = results if isinstance(results, Sequence) else [results]
    noted: dict[str, list[tuple[str, str]]] = {}
    for result in searched:
        for answer in result.answers:
            for note in answer.notes:
                noted.setdefault(note, []).append((answer.query, result.video))
    return [f"{_scope(places, searched)}: {note}" for note, places in noted.items()]


def _scope(places: Sequence[tuple[str, str]], results: Sequence[SearchResult]) -> str:
    """On which queries and videos a note is, where it is not on all."""
    queries = list(dict.fromkeys(query for query, _ in places))
    videos = list(dict.fromkeys(video for _, video in places))
    named = []
    if len(queries) < len(results[0].answers):
        # Quoted, so that a query cannot be taken for our own words.
        named.append(first_few([repr(query) for query in queries]))
    if len(videos) < len(results):
        named.append(first_few(videos))
    return f"note on {' in '.join(named)}" if named else "note"


def first_few(names: Sequence[str], most: int = 5) -> str:
    """Return names in a row; of many, the first few and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def explain_answer(answer: Answer, result: SearchResult) -> str:
    """Return in plain words how far one answer can be trusted.

    The epistemic uncertainty is compared with that of the other answers of the same search and
    never with the aleatoric part: the likelihood does not identify how the two share the variance
    (Meinert et al. 2023, arXiv:2205.10060).
    """
    if math.isnan(result.interval_level):
        return _UNCALIBRATED
    verdict = SHORT_VERDICT[answer.verdict]
    if answer.present is None:
        # The notes say why; nothing was calibrated for such a video or such words.
        hint = " The moment below is a guess." if answer.moments else ""
        return f"Whether it is in this video is not known.{hint}"
    share = percent(answer.present).replace("<", "under ").replace(">", "over ")
    chance = f"the chance that it is in this video is put at {share}"
    if verdict == "absent":
        return f"Probably not in this video: {chance}."
    sentences = []
    if verdict == "uncertain":
        sentences.append(f"It may be in this video ({chance}); look before you rely on it.")
    if answer.moments:
        sentences.extend(_boundaries(answer.moments[0], result))
        sentences.extend(_high_epistemic(answer, result))
    return " ".join(sentences)


def _boundaries(moment: Moment, result: SearchResult) -> list[str]:
    if math.isnan(sum((*moment.start_interval, *moment.end_interval))):
        return []
    start = (moment.start_interval[1] - moment.start_interval[0]) / 2
    end = (moment.end_interval[1] - moment.end_interval[0]) / 2
    sure = f"{level_text(result)} sure"
    names = ("start", "end") if start <= end else ("end", "start")
    low, high = sorted((start, end))
    length = moment.end - moment.start
    known = "known only" if high > length / 2 else "known"
    if high - low < 0.15 or high < 1.4 * low:
        text = f"Start and end are {known} to about ± {high:.1f} s ({sure})"
    else:
        text = (
            f"The {names[0]} is {known} to about ± {low:.1f} s ({sure}), "
            f"the {names[1]} is less sure: ± {high:.1f} s"
        )
    if high > length / 2:
        return [f"{text}. That is wide for a moment of {length:.1f} s."]
    return [f"{text}."]


def _high_epistemic(answer: Answer, result: SearchResult) -> list[str]:
    of_answers = [_epistemic(other.moments[0]) for other in result.answers if other.moments]
    usual = statistics.median(of_answers)
    epistemic = _epistemic(answer.moments[0])
    if len(of_answers) < 3 or usual <= 0.0 or epistemic < 2 * usual:
        return []
    times = f"{epistemic / usual:.1f} times what is usual here"
    return [f"The model's own doubt is {times}: it has seen little like this."]


def _epistemic(moment: Moment) -> float:
    return math.hypot(*moment.epistemic)

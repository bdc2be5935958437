"""The words and times in which every report speaks of a search."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from demr.machine.terminal import clock

if TYPE_CHECKING:
    from demr.search.result import Answer, Moment, SearchResult

Windows = Sequence[tuple[float, float]]
"""Windows of one sentence in seconds, ``(start, end)``; empty if it is not in the video."""

TONE: Final = {"found": "found", "uncertain": "uncertain", "not in this video": "absent"}
"""Short name of each verdict, in the order of belief."""


def span(start: float, end: float) -> str:
    """Return a window in one string, with the minutes of its end only where they differ.

    >>> span(11.7, 12.5), span(57.6, 62.4), span(math.nan, math.nan)
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


def chance(answer: Answer) -> str:
    """Return how likely the moment is in the video, or that nobody knows: without a model."""
    return "uncalibrated" if math.isnan(answer.present) else percent(answer.present)


def level(result: SearchResult) -> str:
    """Return the level of the intervals as percent; empty where there are none."""
    known = not math.isnan(result.interval_level)
    return f"{result.interval_level * 100:g} %" if known else ""


def overlap(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Return the intersection over union of two windows in seconds.

    >>> overlap((0.0, 4.0), (1.0, 5.0))
    0.6
    """
    shared = min(first[1], second[1]) - max(first[0], second[0])
    if shared <= 0.0:
        return 0.0
    return shared / (max(first[1], second[1]) - min(first[0], second[0]))


def shown(answer: Answer) -> tuple[Moment, ...]:
    """Return the moments that people are shown: the best, and what is not far below it.

    A search returns as many moments as were asked for, whatever their score. Shown are those
    with at least half the best score that do not repeat a better one (IoU up to 0.3); of an
    absent verdict, the best guess alone.
    """
    kept: list[Moment] = []
    for moment in answer.moments:
        window = (moment.start, moment.end)
        if kept and moment.score < kept[0].score / 2:
            continue
        if all(overlap(window, (better.start, better.end)) <= 0.3 for better in kept):
            kept.append(moment)
    return tuple(kept[:1] if TONE[answer.verdict] == "absent" else kept)


def in_words(answer: Answer, result: SearchResult) -> str:
    """Say in plain words what the uncertainty of one answer says.

    The model's own doubt (epistemic) is compared with the other answers of the same search and
    never with the aleatoric part: the likelihood does not identify how the two share the variance
    (Meinert et al. 2023, arXiv:2205.10060).
    """
    if math.isnan(answer.present):
        return (
            "Zero-shot, uncalibrated: these stretches look most like the sentence. Whether it is "
            "in this video at all, and where exactly it begins and ends, is not known; look "
            "yourself."
        )
    said = []
    tone = TONE[answer.verdict]
    share = percent(answer.present).replace("<", "under ").replace(">", "over ")
    chance = f"the chance that it is in this video is put at {share}"
    if answer.unknown_words:
        named = ", ".join(f"“{word}”" for word in answer.unknown_words)
        verb = "is a word" if len(answer.unknown_words) == 1 else "are words"
        said.append(f"{named} {verb} the model was never taught; it has not seen anything like it.")
    if tone == "absent":
        said.append(f"Probably not in this video: {chance}.")
        if answer.moments:
            said.append(
                "The dashed best guess is shown for completeness and should not be trusted."
            )
        return " ".join(said)
    if tone == "uncertain":
        said.append(f"It may be in this video ({chance}); look before you rely on it.")
    if answer.moments:
        said.append(_boundaries_in_words(answer.moments[0], result))
        said.extend(_doubt_in_words(answer, result))
    return " ".join(said)


def _boundaries_in_words(moment: Moment, result: SearchResult) -> str:
    start = (moment.start_interval[1] - moment.start_interval[0]) / 2
    end = (moment.end_interval[1] - moment.end_interval[0]) / 2
    sure = f"{level(result)} sure"
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
        return f"{text}. That is wide for a moment of {length:.1f} s."
    return f"{text}."


def _doubt_in_words(answer: Answer, result: SearchResult) -> list[str]:
    others = [_doubt(other.moments[0]) for other in result.answers if other.moments]
    usual = statistics.median(others)
    own = _doubt(answer.moments[0])
    if len(others) < 3 or usual <= 0.0 or own < 2 * usual:
        return []
    times = f"{own / usual:.1f} times what is usual here"
    return [f"The model's own doubt is {times}: it has seen little like this."]


def _doubt(moment: Moment) -> float:
    return math.hypot(*moment.epistemic)

"""One answer laid out over the duration of its video; ``timeline.html`` draws it.

Positions along the time are in percent, so that bars stretch and text does not; heights are in
pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from demr.machine.terminal import clock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from demr.report.wording import Windows
    from demr.search.result import Answer, Moment, SearchResult

CURVE_HEIGHT: Final = 58
LANE_HEIGHT: Final = 24
TRUTH_HEIGHT: Final = 18
# Of an axis: from half a second to ten hours.
_STEPS_S: Final = (
    *(0.5, 1, 2, 5, 10, 15, 30),
    *(60, 120, 300, 600, 1200, 1800),
    *(3600, 7200, 14400, 36000),
)
_MOST_POINTS: Final = 600
# A moment of seconds in a video of hours must be seen and hit with a pointer.
_LEAST_WIDTH: Final = 0.6


@dataclass(frozen=True)
class Span:
    """A stretch of time on the axis.

    Attributes:
        x: Where it begins, in percent of the duration.
        width: In percent of the duration.
    """

    x: float
    width: float

    @property
    def right(self) -> float:
        """Where it ends, in percent of the duration."""
        return self.x + self.width


@dataclass(frozen=True)
class Whisker:
    """The interval of one boundary of a moment.

    Attributes:
        span: Of the interval.
        shift: How far below the middle of its bar it is drawn, in pixels.
    """

    span: Span
    shift: float


@dataclass(frozen=True)
class Bar:
    """One moment.

    Attributes:
        moment: What is drawn.
        span: Of the moment.
        middle: Its height in the drawing, in pixels.
        opacity: The surer, the more opaque.
        whiskers: Of start and end, where their intervals are known and the bar has room for them.
    """

    moment: Moment
    span: Span
    middle: float
    opacity: float
    whiskers: tuple[Whisker, ...]


@dataclass(frozen=True)
class Tick:
    """A mark on the axis: its place in percent, its label, and which side of it stands there."""

    x: float
    label: str
    anchor: str


@dataclass(frozen=True)
class Timeline:
    """What is drawn of one answer, and where.

    Attributes:
        curve: Saliency as an SVG path in a box of 1000 x 100; empty where there is none.
        truth: True windows in seconds with their spans; None where the truth is not known.
        bars: Of the moments, the best first.
        ticks: Of the axis.
        truth_top: Where the row of the truth begins, in pixels.
        bars_top: Where the lanes of the moments begin, in pixels.
        bottom: Where the lanes end and the axis is, in pixels.
        description: For those who do not see it.
    """

    curve: str
    truth: tuple[tuple[tuple[float, float], Span], ...] | None
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    truth_top: int
    bars_top: int
    bottom: int
    description: str


def lay_out(answer: Answer, result: SearchResult, windows: Windows | None) -> Timeline:
    """Place saliency, truth where known, the moments, and an axis.

    Args:
        answer: What is to be drawn.
        result: The search it belongs to, whose answers share one scale.
        windows: The true windows in seconds; empty if the moment is not in the video.
    """
    duration = max(result.duration, 1e-3)
    moments = answer.moments
    lanes = _lanes(moments, duration)
    truth_top = CURVE_HEIGHT + 8
    bars_top = truth_top + (0 if windows is None else TRUTH_HEIGHT)
    spoken = "; ".join(f"{clock(moment.start)} to {clock(moment.end)}" for moment in moments)
    return Timeline(
        curve=_curve(answer, result),
        truth=None
        if windows is None
        else tuple(((start, end), _span(start, end, duration)) for start, end in windows),
        bars=tuple(
            _bar(moment, bars_top + (lane + 0.5) * LANE_HEIGHT, duration)
            for moment, lane in zip(moments, lanes, strict=True)
        ),
        ticks=tuple(_ticks(duration)),
        truth_top=truth_top,
        bars_top=bars_top,
        bottom=bars_top + (1 + max(lanes, default=-1)) * LANE_HEIGHT + 4,
        description=f"Timeline of {clock(duration)}: {spoken or 'no moment'}",
    )


def _span(start: float, end: float, duration: float, least: float = _LEAST_WIDTH) -> Span:
    """Cut a window to the axis, and widen it to what can be seen."""
    left = min(max(start / duration, 0.0), 1.0) * 100
    right = min(max(end / duration, 0.0), 1.0) * 100
    width = max(right - left, least)
    return Span(min(left, 100 - width), width)


def _lanes(moments: Sequence[Moment], duration: float) -> list[int]:
    """Place every moment, best first, in the highest lane where its whiskers touch no other's."""
    gap = duration * 0.01
    taken: list[list[tuple[float, float]]] = []
    lanes = []
    for moment in moments:
        # The boundaries come first: min and max keep them where an interval is not known.
        low = min(moment.start, moment.start_interval[0]) - gap
        high = max(moment.end, moment.end_interval[1]) + gap
        free = (
            lane
            for lane, spans in enumerate(taken)
            if all(high <= other[0] or low >= other[1] for other in spans)
        )
        lane = next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((low, high))
        lanes.append(lane)
    return lanes


def _bar(moment: Moment, middle: float, duration: float) -> Bar:
    # Whiskers that would run over each other are drawn apart.
    apart = 3.0 if moment.start_interval[1] >= moment.end_interval[0] else 0.0
    intervals = ((moment.start_interval, -apart), (moment.end_interval, apart))
    has_room = (moment.end - moment.start) / duration * 100 >= _LEAST_WIDTH
    return Bar(
        moment=moment,
        span=_span(moment.start, moment.end, duration),
        middle=middle,
        opacity=0.35 + 0.65 * min(max(moment.score, 0.0), 1.0),
        whiskers=tuple(
            Whisker(_span(*interval, duration, least=0.0), shift)
            for interval, shift in intervals
            if has_room and not math.isnan(sum(interval))
        ),
    )


def _ticks(duration: float) -> list[Tick]:
    step = next((s for s in _STEPS_S if duration / s <= 6.5), _STEPS_S[-1])
    ticks = []
    for number in range(int(duration / step) + 1):
        x = number * step / duration * 100
        anchor = "start" if x < 3 else "end" if x > 96 else "middle"
        ticks.append(Tick(x, clock(number * step).removesuffix(".0"), anchor))
    return ticks


def saliency_range(result: SearchResult) -> tuple[float, float]:
    """Return the bottom and top of every curve: one scale, so that a flat curve looks flat."""
    values = [v for answer in result.answers for v in answer.saliency if math.isfinite(v)]
    return min([0.0, *values]), max([0.5, *values])


def _curve(answer: Answer, result: SearchResult) -> str:
    if not answer.saliency:
        return ""
    low, high = saliency_range(result)
    duration = max(result.duration, 1e-3)
    points = []
    # Very many clips: the highest of each run of neighbours stays visible.
    run = math.ceil(len(answer.saliency) / _MOST_POINTS)
    for first in range(0, len(answer.saliency), run):
        values = [v for v in answer.saliency[first : first + run] if math.isfinite(v)]
        middle = min((first + run / 2) * result.clip_s / duration, 1.0)
        height = (max(values, default=low) - low) / (high - low)
        points.append((middle * 1000, 98 - 94 * height))
    points = [(0.0, points[0][1]), *points, (1000.0, points[-1][1])]
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x, y), (next_x, next_y) in pairwise(points):
        # Level at both ends of every piece: smooth to look at, and never beyond the values.
        half = (x + next_x) / 2
        path += f"C{half:.1f} {y:.1f} {half:.1f} {next_y:.1f} {next_x:.1f} {next_y:.1f}"
    return path

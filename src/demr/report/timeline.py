"""One answer drawn over the duration of its video, as SVG that stretches with its page.

Positions along the time are in percent, so that bars stretch and text does not.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from demr.machine.terminal import clock
from demr.report.wording import TONE, Windows, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from demr.search.result import Answer, Moment, SearchResult

_STEPS_S: Final = (
    0.5,
    1,
    2,
    5,
    10,
    15,
    30,
    60,
    120,
    300,
    600,
    1200,
    1800,
    3600,
    7200,
    14400,
    36000,
)
_MOST_POINTS: Final = 600

# Pixels.
_CURVE_HEIGHT: Final = 58
_LANE_HEIGHT: Final = 24
_BAR_HEIGHT: Final = 13


def timeline(answer: Answer, result: SearchResult, windows: Windows | None) -> str:
    """Return the timeline of one answer: saliency, truth where known, the best moments, an axis."""
    duration = max(result.duration, 1e-3)
    moments = shown(answer)
    lanes = _lanes(moments, duration)
    top = _CURVE_HEIGHT + 8
    labels = [(_CURVE_HEIGHT / 2, "fit")]
    parts = [f'<rect class="well" width="100%" height="{_CURVE_HEIGHT}" rx="6"/>']
    bars = []
    if windows is not None:
        labels.append((top + 8, "truth"))
        if not windows:
            bars.append(f'<text class="axis" x="0" y="{top + 12}">not in this video</text>')
        for start, end in windows:
            x, width = _span(start, end, duration)
            bars.append(
                f'<g {seek(start, end)}><rect class="truth" x="{x}" y="{top + 4}" '
                f'width="{width}" height="7" rx="3.5"/></g>'
            )
        top += 18
    if moments:
        labels.append((top + _LANE_HEIGHT / 2, "answer"))
    guess = "guess" if TONE[answer.verdict] == "absent" else ""
    for moment, lane in reversed(list(zip(moments, lanes, strict=True))):
        bars.append(_bar(moment, top + lane * _LANE_HEIGHT + _LANE_HEIGHT / 2, duration, guess))
    if moments and not guess:
        x, width = _span(moments[0].start, moments[0].end, duration)
        parts.append(f'<rect class="column" x="{x}" width="{width}" height="{_CURVE_HEIGHT}"/>')
    bottom = top + (1 + max(lanes, default=-1)) * _LANE_HEIGHT + 4
    parts += [_ticks(duration, bottom), _curve(answer, result), *bars]
    parts.append(f'<line class="head" x1="0%" x2="0%" y1="0" y2="{bottom}"/>')
    names = "".join(f'<text y="{y + 4:g}">{label}</text>' for y, label in labels)
    spoken = "; ".join(f"{clock(moment.start)} to {clock(moment.end)}" for moment in moments)
    return (
        f'<div class="timeline"><svg class="lanes" aria-hidden="true" height="{bottom + 18:g}" '
        f'width="68">{names}</svg><svg class="plot" role="img" height="{bottom + 18:g}" '
        f'data-duration="{duration:.3f}" aria-label="Timeline of {clock(duration)}: '
        f'{spoken or "no moment"}">{"".join(parts)}</svg></div>'
    )


def seek(start: float, end: float) -> str:
    """Return the attributes by which the page's script plays a window."""
    return f'data-start="{start:.3f}" data-end="{end:.3f}"'


def _span(start: float, end: float, duration: float) -> tuple[str, str]:
    left = min(max(start / duration, 0.0), 1.0)
    right = min(max(end / duration, left), 1.0)
    return f"{left * 100:.3f}%", f"{max(right - left, 0.002) * 100:.3f}%"


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


def _bar(moment: Moment, middle: float, duration: float, guess: str) -> str:
    x, width = _span(moment.start, moment.end, duration)
    opacity = 1.0 if guess else 0.35 + 0.65 * min(max(moment.score, 0.0), 1.0)
    # Whiskers that would run over each other are drawn apart.
    apart = 3.0 if moment.start_interval[1] >= moment.end_interval[0] else 0.0
    hint = f"{clock(moment.start)} – {clock(moment.end)}, score {moment.score:.2f}"
    return (
        f'<g class="{guess}" {seek(moment.start, moment.end)}><title>{hint}</title>'
        f'<rect class="bar" x="{x}" y="{middle - _BAR_HEIGHT / 2:g}" width="{width}" '
        f'height="{_BAR_HEIGHT}" rx="3.5" opacity="{opacity:.2f}"/>'
        f"{_whisker(moment.start_interval, middle, middle - apart, duration)}"
        f"{_whisker(moment.end_interval, middle, middle + apart, duration)}</g>"
    )


def _whisker(interval: tuple[float, float], middle: float, y: float, duration: float) -> str:
    if math.isnan(sum(interval)):
        return ""
    left, width = _span(*interval, duration)
    right = _span(interval[1], interval[1], duration)[0]
    top, bottom = f"{y - 4:g}", f"{y + 4:g}"
    return (
        f'<rect class="blur" x="{left}" y="{middle - _LANE_HEIGHT / 2 + 1:g}" width="{width}" '
        f'height="{_LANE_HEIGHT - 2}"/>'
        f'<line class="whisker" x1="{left}" x2="{right}" y1="{y:g}" y2="{y:g}"/>'
        f'<line class="whisker" x1="{left}" x2="{left}" y1="{top}" y2="{bottom}"/>'
        f'<line class="whisker" x1="{right}" x2="{right}" y1="{top}" y2="{bottom}"/>'
    )


def _ticks(duration: float, bottom: float) -> str:
    step = next((s for s in _STEPS_S if duration / s <= 6.5), _STEPS_S[-1])
    parts = []
    for number in range(int(duration / step) + 1):
        share = number * step / duration * 100
        anchor = "start" if share < 3 else "end" if share > 96 else "middle"
        name = clock(number * step).removesuffix(".0")
        parts.append(
            f'<line class="grid" x1="{share:.3f}%" x2="{share:.3f}%" y1="0" y2="{bottom:g}"/>'
            f'<text class="axis" x="{share:.3f}%" y="{bottom + 14:g}" '
            f'text-anchor="{anchor}">{name}</text>'
        )
    return "".join(parts)


def saliency_range(result: SearchResult) -> tuple[float, float]:
    """Return the bottom and top of every curve: one scale, so that a flat curve looks flat."""
    everything = [v for answer in result.answers for v in answer.saliency if math.isfinite(v)]
    return min([0.0, *everything]), max([0.5, *everything])


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
    return (
        f'<svg width="100%" height="{_CURVE_HEIGHT}" viewBox="0 0 1000 100" '
        'preserveAspectRatio="none">'
        f'<path class="area" d="{path}L1000 100L0 100Z"/><path class="stroke" d="{path}"/></svg>'
    )

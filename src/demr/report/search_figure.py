"""A search as a picture, for papers and READMEs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

from demr.machine.terminal import clock, shortened
from demr.report.output import figure_text, write_figure
from demr.report.timeline import saliency_range
from demr.report.wording import (
    SHORT_VERDICT,
    Windows,
    chance_text,
    level_text,
    overlaps,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from demr.search.result import Answer, Moment, SearchResult

_INK, _GREY, _SALIENCY, _MOMENT, _TRUTH = "#171a21", "#5d6575", "#8b93a7", "#5648d8", "#0d9488"
_VERDICT_INK: Final = {"found": "#157f4f", "uncertain": "#935300", "absent": "#515b6e"}


def search_figure(
    result: SearchResult, path: str | Path, truth: Mapping[str, Windows] | None = None
) -> Path:
    """Draw every sentence as a timeline with saliency, moments and whiskers into a PNG file.

    Args:
        result: What was searched and found.
        path: The PNG file; an older one is replaced in one step.
        truth: True windows in seconds by sentence, drawn as a line where known.

    Returns:
        The path of the picture.

    Raises:
        InputError: If the picture cannot be written.
    """
    figure, axes = _axes(max(len(result.answers), 1))
    for axis, answer in zip(axes, result.answers, strict=False):
        _draw_answer(axis, answer, result, None if truth is None else truth.get(answer.query))
    _draw_legend(figure, level_text(result), truth is not None)
    write_figure(Path(path), figure)
    return Path(path)


def _axes(rows: int) -> tuple[Figure, list[Axes]]:
    """Rows under each other, of which only the last shows the time."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    height = 0.8 + 0.92 * rows
    figure = Figure(figsize=(10, height), dpi=160, facecolor="white")
    axes: list[Axes] = list(figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0])
    for axis in axes[:-1]:
        axis.set_axis_off()
    last = axes[-1]
    last.set_yticks([])
    last.spines[["left", "right", "top"]].set_visible(False)
    last.spines["bottom"].set_color(_GREY)
    last.xaxis.set_major_formatter(FuncFormatter(lambda x, _: clock(x).removesuffix(".0")))
    last.tick_params(colors=_GREY, labelsize=9)
    figure.subplots_adjust(
        left=0.02, right=0.98, top=1 - 0.4 / height, bottom=0.35 / height, hspace=0.12
    )
    return figure, axes


def _draw_legend(figure: Figure, level: str, has_truth: bool) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=_SALIENCY, alpha=0.35, label="saliency: how well each clip fits")]
    if has_truth:
        handles.append(Patch(color=_TRUTH, label="truth"))
    handles.append(Patch(color=_MOMENT, label=f"moment, {level} intervals" if level else "moment"))
    figure.legend(handles=handles, loc="upper left", ncols=3, frameon=False, labelcolor=_GREY)


def _draw_answer(axis: Axes, answer: Answer, result: SearchResult, windows: Windows | None) -> None:
    verdict = SHORT_VERDICT[answer.verdict]
    axis.set_xlim(0, result.duration)
    axis.set_ylim(0, 1.7)
    query = figure_text(shortened(answer.query, 80))
    axis.text(0, 1.4, query, fontsize=10.5, color=_INK)
    axis.text(
        result.duration,
        1.4,
        f"{answer.verdict}, {chance_text(answer.present)}",
        fontsize=10,
        color=_VERDICT_INK[verdict],
        ha="right",
        weight="bold",
    )
    axis.axhline(0.0, color="#e2e5ec", linewidth=1.2)
    _draw_saliency(axis, answer, result)
    for start, end in windows or ():
        axis.plot([start, end], [1.2, 1.2], color=_TRUTH, linewidth=3.2, solid_capstyle="butt")
    drawn: list[Moment] = []
    for moment in answer.moments:
        # All lie in one lane: a weaker moment over a better one would only blur it.
        if not overlaps(moment, drawn, above=0.0):
            drawn.append(moment)
            _draw_moment(axis, moment)


def _draw_saliency(axis: Axes, answer: Answer, result: SearchResult) -> None:
    low, high = saliency_range(result)
    middles = [min((i + 0.5) * result.clip_s, result.duration) for i in range(len(answer.saliency))]
    heights = [1.1 * (value - low) / (high - low) for value in answer.saliency]
    axis.fill_between(middles, heights, color=_SALIENCY, alpha=0.35, linewidth=0)


def _draw_moment(axis: Axes, moment: Moment) -> None:
    width = moment.end - moment.start
    bar = axis.barh(0.6, width, left=moment.start, height=0.44, color=_MOMENT)[0]
    bar.set_alpha(0.3 + 0.65 * min(max(moment.score, 0.0), 1.0))
    if moment.verdict == "uncertain":
        bar.set(facecolor="white", edgecolor=_VERDICT_INK["uncertain"], linestyle="--")
    boundaries = ((moment.start, moment.start_interval), (moment.end, moment.end_interval))
    for boundary, (early, late) in boundaries:
        if not math.isnan(early + late):
            reach = [[max(boundary - early, 0.0)], [max(late - boundary, 0.0)]]
            axis.errorbar(boundary, 0.6, xerr=reach, color=_INK, linewidth=1.4, capsize=4)

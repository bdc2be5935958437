"""Figures for comparing runs: noise curves, error against uncertainty, sweeps, variants."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from demr.report.output import figure_text, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart, in an order that starts dark.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#5d6575"
_MEASURES = ("EU", "AU+EU")


def noise_figure(balances: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """How uncertainty answers to noise on each modality: a column a variant; bands span the seeds.

    Args:
        balances: Name of a variant -> ``balance.json`` of its runs.
        path: PNG to write.
    """
    if len(balances) == 1:
        figure, (row,) = _grid(1, len(_MEASURES), width=4.0, height=3.2, share=False)
        rows = [[axis] for axis in row]
    else:
        figure, rows = _grid(len(_MEASURES), len(balances), width=2.8)
    for measure, axes in zip(_MEASURES, rows, strict=True):
        for axis, (name, runs) in zip(axes, balances.items(), strict=True):
            levels = np.asarray(runs[0]["levels"])
            # Places, not levels: a quarter and a half would lie on the undisturbed point.
            place = np.arange(len(levels))
            for color, (modality, style) in enumerate((("video", "-"), ("text", "--"))):
                curves = np.array([run[measure][modality] for run in runs])
                _curve(axis, place, curves, f"noise on {modality}", color, style, marker=".")
            axis.set_xticks(place, [f"{level:g}" for level in levels])
            axis.axhline(0, color=_GREY, linewidth=0.6)
            if measure == _MEASURES[0]:
                axis.set_title(figure_text(name), fontsize="medium")
            if measure == _MEASURES[-1] or len(balances) == 1:
                axis.set_xlabel("noise, in deviations", fontsize="small")
        axes[0].set_ylabel(f"log {measure}, standardised")
    _finish(figure, rows[0], path)


def error_figure(bins: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Evidence and uncertainty against the error of the top moment; bands span the seeds.

    Args:
        bins: Name of a variant or split -> :func:`~demr.evaluation.uncertainty.error_bins` of its
            runs.
        path: PNG to write.
    """
    figure, axes = _axes(3, "error of the top moment, s (a dot: a tenth of the queries)")
    panels = {"evidence": "evidence", "EU s": "epistemic, s", "AU+EU s": "aleatoric + epistemic, s"}
    for axis, (measure, label) in zip(axes, panels.items(), strict=True):
        for number, (name, runs) in enumerate(bins.items()):
            known = [run for run in runs if run["error s"]]
            if not known:
                continue
            shortest = min(len(run["error s"]) for run in known)
            error = np.mean([run["error s"][:shortest] for run in known], axis=0)
            table = np.array([run[measure][:shortest] for run in known])
            _curve(axis, error, table, figure_text(name), number, "-", marker=".")
        axis.set_xscale("log")
        axis.set_yscale("log")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter("{x:g}")
            side.set_minor_formatter("{x:g}" if side is axis.yaxis else "")
        axis.tick_params(axis="y", which="minor", labelsize="x-small")
        axis.set_ylabel(label)
    _finish(figure, axes, path)


def sweep_figure(
    setting: str,
    points: Sequence[str],
    panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
    path: Path,
) -> None:
    """Metrics over the values of a setting; bands span the seeds.

    Args:
        setting: Its name.
        points: Its values, as they are to be shown, in order.
        panels: Metric -> split -> for each value the metric of each seed; may be empty.
        path: PNG to write.
    """
    figure, axes = _axes(len(panels), setting)
    for axis, (metric, splits) in zip(axes, panels.items(), strict=True):
        for number, (split, values) in enumerate(splits.items()):
            known = [index for index, seeds in enumerate(values) if len(seeds)]
            mean = [float(np.mean(values[index])) for index in known]
            ink, label = _ink(number), figure_text(split)
            axis.plot(known, mean, "-o", color=ink, label=label, markersize=4)
            for index in known:
                seeds = values[index]
                if len(seeds) > 1:
                    axis.vlines(index, min(seeds), max(seeds), color=ink, alpha=0.5)
        axis.set_xticks(range(len(points)), list(map(figure_text, points)))
        axis.set_ylabel(figure_text(metric))
    _finish(figure, axes, path)


def variant_figure(
    variants: Sequence[str],
    panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]],
    path: Path,
) -> None:
    """A dot a seed and a bar at their mean, for each variant.

    Args:
        variants: Their names, from left to right.
        panels: Metric -> split -> for each variant the metric of each seed; may be empty.
        path: PNG to write.
    """
    figure, axes = _axes(len(panels), "")
    for axis, (metric, splits) in zip(axes, panels.items(), strict=True):
        for number, (split, values) in enumerate(splits.items()):
            shift = (number - (len(splits) - 1) / 2) * 0.25
            for index, seeds in enumerate(values):
                place, color = index + shift, _ink(number)
                axis.plot([place] * len(seeds), seeds, "o", color=color, markersize=4, alpha=0.6)
                if len(seeds):
                    mean = float(np.mean(seeds))
                    axis.plot([place - 0.1, place + 0.1], [mean, mean], color=color, linewidth=2)
            axis.plot([], [], "o", color=_ink(number), label=figure_text(split))
        names = list(map(figure_text, variants))
        axis.set_xticks(range(len(variants)), names, rotation=30, ha="right")
        axis.set_ylabel(figure_text(metric))
    _finish(figure, axes, path)


def _axes(count: int, label: str) -> "tuple[Figure, list[Axes]]":
    figure, rows = _grid(1, count, width=4.4, height=3.6, share=False)
    for axis in rows[0]:
        axis.set_xlabel(figure_text(label))
    return figure, rows[0]


def _grid(
    rows: int, columns: int, *, width: float, height: float = 2.4, share: bool = True
) -> "tuple[Figure, list[list[Axes]]]":
    """Axes row by row; with ``share`` those of a row have one scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), dpi=130, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey="row" if share else False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, [list(row) for row in axes]


def _curve(
    axis: "Axes",
    x: NDArray[Any],
    curves: NDArray[Any],
    label: str,
    color: int,
    style: str,
    marker: str = "",
) -> None:
    ink = _ink(color)
    axis.plot(x, curves.mean(axis=0), style, marker=marker, color=ink, label=label)
    if len(curves) > 1:
        axis.fill_between(
            x, curves.min(axis=0), curves.max(axis=0), color=ink, alpha=0.12, linewidth=0
        )


def _ink(number: int) -> str:
    return _COLORS[number % len(_COLORS)]


def _finish(figure: "Figure", axes: "Sequence[Axes]", path: Path) -> None:
    handles, labels = axes[0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False
        )
    write_figure(path, figure)

"""The result of a search, for people and for other programs: table, JSON, CSV, SRT, pictures.

The HTML page is built in ``page.py``.
"""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Final

from rich import box
from rich.table import Table
from rich.text import Text

from demr.machine.terminal import clock
from demr.report.page import write_atomically, write_html_report
from demr.report.timeline import saliency_range
from demr.report.wording import TONE, Windows, chance, in_words, level, overlap, shown, span

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from matplotlib.axes import Axes

    from demr.search.result import Answer, Moment, SearchResult

__all__ = [
    "answer_figure",
    "in_words",
    "metrics_table",
    "notes",
    "search_table",
    "to_csv",
    "to_json",
    "to_srt",
    "write_html_report",
]

_STYLE: Final = {"found": "bold green", "uncertain": "bold yellow", "absent": "bold bright_black"}
_INK, _GREY, _CURVE, _MOMENT, _TRUTH = "#171a21", "#5d6575", "#8b93a7", "#5648d8", "#0d9488"
_VERDICT_INK: Final = {"found": "#157f4f", "uncertain": "#935300", "absent": "#515b6e"}
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


def search_table(
    result: SearchResult, truth: Mapping[str, Windows] | None = None, *, every: bool = False
) -> Table:
    """Lay a search out for the terminal, from 80 columns, one row of two short lines a moment.

    Args:
        result: What was searched and found. Moments of an absent verdict are guesses and are
            left out here; JSON has them.
        truth: True windows in seconds by sentence, for a column beside the answer; empty where
            the moment is not in the video.
        every: Whether moments far below the best, or repeating a better one, have rows too.
    """
    share = f"\n{level(result)}".rstrip()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("query", min_width=8, overflow="fold")
    table.add_column("verdict\npresent", min_width=10)
    table.add_column(f"start{share}", justify="right", no_wrap=True)
    table.add_column(f"end{share}", justify="right", no_wrap=True)
    table.add_column("± s model\n/ footage", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    if truth is not None:
        table.add_column("truth", justify="right", no_wrap=True)
    for answer in result.answers:
        tone = TONE[answer.verdict]
        # Text, not str: a sentence with square brackets is no markup.
        query = Text(answer.query)
        verdict = Text(answer.verdict, style=_STYLE[tone])
        verdict.append(f"\n{chance(answer)}", style="default not bold")
        moments = answer.moments if every else shown(answer)
        if tone == "absent":
            moments = ()
        rows = [_moment_cells(moment) for moment in moments] or [[Text("–")] * 4]
        for number, cells in enumerate(rows):
            first = [query, verdict] if number == 0 else [Text(), Text()]
            last = []
            if truth is not None:
                last = [_truth_cell(truth.get(answer.query)) if number == 0 else Text()]
            table.add_row(*first, *cells, *last)
    return table


def _moment_cells(moment: Moment) -> list[Text]:
    return [
        _two_lines(clock(moment.start), span(*moment.start_interval)),
        _two_lines(clock(moment.end), span(*moment.end_interval)),
        Text("\n".join(map(_deviations, moment.epistemic, moment.aleatoric))),
        Text(f"{moment.score:.2f}"),
    ]


def _deviations(epistemic: float, aleatoric: float) -> str:
    return "–" if math.isnan(epistemic + aleatoric) else f"{epistemic:.2f}/{aleatoric:.2f}"


def _two_lines(first: str, second: str) -> Text:
    return Text.assemble(first, "\n", (second, "dim"))


def _truth_cell(windows: Windows | None) -> Text:
    if windows is None:
        return Text("unknown", style="dim")
    if not windows:
        return Text("absent")
    return Text("\n".join(span(start, end) for start, end in windows))


def notes(result: SearchResult) -> list[str]:
    """What limits the trust in the answers, once each; a note on some queries alone names them."""
    asked: dict[str, list[str]] = {}
    for answer in result.answers:
        for note in answer.notes:
            asked.setdefault(note, []).append(answer.query)
    return [
        f"note: {note}"
        if len(queries) == len(result.answers)
        # Quoted, so that a query cannot be taken for our own words.
        else f"note on {', '.join(repr(query) for query in queries)}: {note}"
        for note, queries in asked.items()
    ]


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
        moments = () if TONE[answer.verdict] == "absent" else answer.moments
        for rank, moment in enumerate(moments, start=1):
            times = (
                moment.start,
                moment.end,
                moment.score,
                *moment.start_interval,
                *moment.end_interval,
                *moment.aleatoric,
                *moment.epistemic,
            )
            writer.writerow((*head, rank, *map(_number, times)))
        if not moments:
            writer.writerow((*head, *[""] * (len(_CSV_COLUMNS) - len(head))))
    return stream.getvalue()


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def to_srt(result: SearchResult) -> str:
    """Return the moments worth showing as subtitles by start, for any player beside the video."""
    cues = sorted(_believed(result), key=lambda cue: (cue[1].start, cue[1].end))
    blocks = []
    for number, (answer, moment) in enumerate(cues, start=1):
        # A blank line or an arrow inside the text would end the cue.
        text = " ".join(answer.query.split()).replace("-->", "→")
        end = max(moment.end, moment.start + 0.001)
        blocks.append(
            f"{number}\n{_srt_time(moment.start)} --> {_srt_time(end)}\n"
            f"{text}\n{answer.verdict}, {chance(answer)}\n"
        )
    return "\n".join(blocks)


def _believed(result: SearchResult) -> Iterator[tuple[Answer, Moment]]:
    for answer in result.answers:
        if TONE[answer.verdict] != "absent":
            for moment in shown(answer):
                yield answer, moment


def _srt_time(seconds: float) -> str:
    milliseconds = round(max(seconds, 0.0) * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d},{rest % 1000:03d}"


def answer_figure(
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
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter

    rows = max(len(result.answers), 1)
    height = 0.8 + 0.92 * rows
    figure = Figure(figsize=(10, height), dpi=160, facecolor="white")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for axis in axes:
        axis.set_axis_off()
    for axis, answer in zip(axes, result.answers, strict=False):
        _draw_answer(axis, answer, result, None if truth is None else truth.get(answer.query))
    last = axes[-1]
    last.set_axis_on()
    last.set_yticks([])
    last.spines[["left", "right", "top"]].set_visible(False)
    last.spines["bottom"].set_color(_GREY)
    last.xaxis.set_major_formatter(FuncFormatter(lambda x, _: clock(x).removesuffix(".0")))
    last.tick_params(colors=_GREY, labelsize=9)
    handles = [
        Patch(color=_CURVE, alpha=0.35, label="how well each clip fits"),
        Patch(
            color=_MOMENT,
            label=f"moment, {level(result)} intervals" if level(result) else "moment",
        ),
    ]
    if truth is not None:
        handles.insert(1, Patch(color=_TRUTH, label="truth"))
    figure.legend(handles=handles, loc="upper left", ncols=3, frameon=False, labelcolor=_GREY)
    figure.subplots_adjust(
        left=0.02, right=0.98, top=1 - 0.4 / height, bottom=0.35 / height, hspace=0.12
    )
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    write_atomically(Path(path), stream.getvalue())
    return Path(path)


def _draw_answer(axis: Axes, answer: Answer, result: SearchResult, windows: Windows | None) -> None:
    tone = TONE[answer.verdict]
    axis.set_xlim(0, result.duration)
    axis.set_ylim(0, 1.7)
    # parse_math: a dollar sign in a sentence is no formula.
    axis.text(0, 1.4, shorten(answer.query, 80), fontsize=10.5, color=_INK, parse_math=False)
    axis.text(
        result.duration,
        1.4,
        f"{answer.verdict}, {chance(answer)}",
        fontsize=10,
        color=_VERDICT_INK[tone],
        ha="right",
        weight="bold",
    )
    axis.axhline(0.0, color="#e2e5ec", linewidth=1.2)
    low, high = saliency_range(result)
    middles = [min((i + 0.5) * result.clip_s, result.duration) for i in range(len(answer.saliency))]
    heights = [1.1 * (value - low) / (high - low) for value in answer.saliency]
    axis.fill_between(middles, heights, color=_CURVE, alpha=0.35, linewidth=0)
    for start, end in windows or ():
        axis.plot([start, end], [1.2, 1.2], color=_TRUTH, linewidth=3.2, solid_capstyle="butt")
    drawn: list[Moment] = []
    for moment in () if tone == "absent" else shown(answer):
        # One lane: a weaker moment that lies over a better one would only blur it.
        window = (moment.start, moment.end)
        if any(overlap(window, (better.start, better.end)) > 0.0 for better in drawn):
            continue
        drawn.append(moment)
        share = 0.3 + 0.65 * min(max(moment.score, 0.0), 1.0)
        left, width = moment.start, moment.end - moment.start
        axis.barh(0.6, width, left=left, height=0.44, color=_MOMENT, alpha=share)
        for boundary, (early, late) in zip(
            window, (moment.start_interval, moment.end_interval), strict=True
        ):
            if math.isnan(early + late):
                continue
            reach = [[max(boundary - early, 0.0)], [max(late - boundary, 0.0)]]
            axis.errorbar(boundary, 0.6, xerr=reach, color=_INK, linewidth=1.4, capsize=4)


_METRICS: Final = (
    ("R1@0.3", "R1@0.3", 1),
    ("R1@0.5", "R1@0.5", 1),
    ("R1@0.7", "R1@0.7", 1),
    ("R5@0.5", "R5@0.5", 1),
    ("R5@0.7", "R5@0.7", 1),
    ("mIoU", "mIoU", 1),
    ("mAP", "mAP", 1),
    ("presence/AUROC", "AUROC, absent", 3),
    ("presence/ECE", "ECE of presence", 3),
    ("presence/brier", "Brier score of presence", 3),
    ("uncertainty/spearman/EU", "Spearman error, EU", 3),
    ("uncertainty/spearman/AU", "Spearman error, AU", 3),
    ("uncertainty/spearman/AU+EU", "Spearman error, AU+EU", 3),
    ("uncertainty/spearman/-evidence", "Spearman error, -evidence", 3),
    ("uncertainty/AUSE/AU+EU", "AUSE, AU+EU", 3),
    ("uncertainty/mean error s", "mean boundary error, s", 2),
    ("interval/coverage mean", "interval coverage", 3),
    ("interval/width mean s", "interval width, s", 2),
    ("queries", "present queries", 0),
    ("absent_queries", "absent queries", 0),
)


def metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> Table:
    """The main numbers of an evaluation, one column a split.

    Args:
        metrics: Split -> metric -> value, as in ``metrics.json``; what is missing stays blank.
    """
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("metric")
    for split in metrics:
        table.add_column(split, justify="right")
    for key, label, digits in _METRICS:
        values = [part.get(key) for part in metrics.values()]
        if any(value is not None for value in values):
            table.add_row(label, *("" if v is None else f"{v:.{digits}f}" for v in values))
    return table

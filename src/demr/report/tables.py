"""A search and an evaluation as tables for the terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from rich import box
from rich.table import Table
from rich.text import Text

from demr.machine.terminal import clock, plain
from demr.report.wording import (
    SHORT_VERDICT,
    Windows,
    chance_text,
    level_text,
    percent,
    window_text,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from demr.answers.judging import Verdict
    from demr.search.result import Answer, Moment, SearchResult

_STYLE: Final = {"found": "bold green", "uncertain": "bold yellow", "absent": "bold bright_black"}
_METRICS: Final = (
    ("R1@0.3", "R1@0.3", 1),
    ("R1@0.5", "R1@0.5", 1),
    ("R1@0.7", "R1@0.7", 1),
    ("R5@0.5", "R5@0.5", 1),
    ("R5@0.7", "R5@0.7", 1),
    ("mIoU", "mIoU", 1),
    ("mAP", "mAP", 1),
    ("highlights/Fair/mAP", "highlights, fair: mAP", 1),
    ("highlights/Fair/HIT@1", "highlights, fair: HIT@1", 1),
    ("highlights/Good/mAP", "highlights, good: mAP", 1),
    ("highlights/Good/HIT@1", "highlights, good: HIT@1", 1),
    ("highlights/VeryGood/mAP", "highlights, very good: mAP", 1),
    ("highlights/VeryGood/HIT@1", "highlights, very good: HIT@1", 1),
    ("presence/AUROC", "AUROC, absent", 3),
    ("presence/Rej-F1", "Rej-F1, absent", 1),
    ("presence/G-mIoU@1", "G-mIoU@1", 1),
    ("presence/ECE", "ECE of presence", 3),
    ("presence/not judged", "queries not judged", 0),
    ("confidence/ECE", "ECE of confidence", 3),
    ("confidence/further ECE", "ECE of further confidence", 3),
    ("presence/brier", "Brier score of presence", 3),
    ("uncertainty/spearman/EU", "Spearman error, EU", 3),
    ("uncertainty/spearman/AU", "Spearman error, AU", 3),
    ("uncertainty/spearman/AU+EU", "Spearman error, AU+EU", 3),
    ("uncertainty/spearman/-evidence", "Spearman error, -evidence", 3),
    ("uncertainty/spearman/scale", "Spearman error, scale", 3),
    ("uncertainty/AUSE/AU+EU", "AUSE, AU+EU", 3),
    ("uncertainty/R1@0.5 of the surest 80 %/AU+EU", "R1@0.5, surest 80 % by AU+EU", 1),
    ("uncertainty/R1@0.5 of the surest 80 %/score", "R1@0.5, surest 80 % by score", 1),
    ("uncertainty/NLL", "NLL of the boundaries", 3),
    ("uncertainty/CRPS s", "CRPS of the boundaries, s", 3),
    ("uncertainty/quantile calibration error", "quantile calibration error", 3),
    ("uncertainty/mean error s", "mean boundary error, s", 2),
    ("interval/coverage mean", "interval coverage", 3),
    ("interval/worst slab", "interval coverage, worst slab", 3),
    ("interval/width mean s", "interval width, s", 2),
    ("interval/winkler s", "Winkler score of intervals, s", 2),
    ("queries", "present queries", 0),
    ("absent_queries", "absent queries", 0),
)


def search_table(result: SearchResult, truth: Mapping[str, Windows] | None = None) -> Table:
    """Lay a search out for the terminal, from 80 columns, one row of two short lines a moment.

    Args:
        result: What was searched and found.
        truth: True windows in seconds by sentence, for a column beside the answer; empty where
            the moment is not in the video.
    """
    table = empty_table(level_text(result), ("query",), has_truth=truth is not None)
    for answer in result.answers:
        rows = [moment_cells(moment) for moment in answer.moments] or [[Text("–")] * 4]
        for number, cells in enumerate(rows):
            if number == 0:
                heads = [plain(answer.query), verdict_cell(answer)]
                tails = [] if truth is None else [_truth_cell(truth.get(answer.query))]
            else:
                heads = [Text(), verdict_text(answer.moments[number].verdict)]
                tails = [] if truth is None else [Text()]
            table.add_row(*heads, *cells, *tails)
    return table


def empty_table(level: str, heads: Sequence[str], *, has_truth: bool = False) -> Table:
    """The columns of a search.

    Args:
        level: Of the intervals, as text.
        heads: Names of the columns before the verdict.
        has_truth: Whether a column of the truth follows.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in heads:
        table.add_column(name, min_width=8, overflow="fold")
    table.add_column(Text("verdict\npresent"), min_width=10)
    names = [f"start\n{level}", f"end\n{level}", "± s model\n/ footage", "score\nsure"]
    for name in [*names, "truth"] if has_truth else names:
        table.add_column(Text(name.rstrip()), justify="right", no_wrap=True)
    return table


def verdict_cell(answer: Answer) -> Text:
    """Verdict and presence on two lines."""
    cell = verdict_text(answer.verdict)
    return cell.append(f"\n{chance_text(answer.present)}", style="default not bold")


def verdict_text(verdict: Verdict) -> Text:
    """A verdict in its colour."""
    return plain(verdict, _STYLE[SHORT_VERDICT[verdict]])


def moment_cells(moment: Moment) -> list[Text]:
    """Start, end, deviations and score, each on two lines."""
    return [
        _two_lines(clock(moment.start), window_text(*moment.start_interval)),
        _two_lines(clock(moment.end), window_text(*moment.end_interval)),
        Text("\n".join(map(_deviations, moment.epistemic, moment.aleatoric))),
        _two_lines(f"{moment.score:.2f}", _confidence(moment)),
    ]


def _confidence(moment: Moment) -> str:
    return "–" if moment.confidence is None else percent(moment.confidence)


def _deviations(epistemic: float, aleatoric: float) -> str:
    return "–" if math.isnan(epistemic + aleatoric) else f"{epistemic:.2f}/{aleatoric:.2f}"


def _two_lines(first: str, second: str) -> Text:
    return Text.assemble(first, "\n", (second, "dim"))


def _truth_cell(windows: Windows | None) -> Text:
    if windows is None:
        return Text("unknown", style="dim")
    if not windows:
        return Text("absent")
    return Text("\n".join(window_text(start, end) for start, end in windows))


def metrics_table(
    metrics: Mapping[str, Mapping[str, float]], thresholds: Sequence[float] = ()
) -> Table:
    """Lay the main numbers of an evaluation out, one column a split.

    Args:
        metrics: Split -> metric -> value; what is missing or NaN stays blank.
        thresholds: IoU of further rows of R1 and R5.
    """
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("metric")
    for split in metrics:
        table.add_column(plain(split), justify="right")
    recall = {key for key, _, _ in _METRICS if key.startswith(("R1@", "R5@"))}
    recall |= {f"R{n}@{t:g}" for n in (1, 5) for t in thresholds}
    others = [row for row in _METRICS if row[0] not in recall]
    for key, label, digits in (*((key, key, 1) for key in sorted(recall)), *others):
        values = [of_split.get(key, math.nan) for of_split in metrics.values()]
        if not all(map(math.isnan, values)):
            table.add_row(label, *("" if math.isnan(v) else f"{v:.{digits}f}" for v in values))
    return table

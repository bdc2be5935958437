"""The page and the figure of `human_agreement.py`, from what it stored."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from demr.report.output import write_figure

FIGURE = "human_agreement.png"
LEVELS = (0.5, 0.8, 0.9, 0.95)


def draw(model: Mapping[str, Any], path: Path) -> None:
    """Disagreement against AU, and coverage against what was promised."""
    figure = Figure(figsize=(8.8, 3.6), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    points = model["bins"]
    left.errorbar(
        points["AU s"],
        points["disagreement s"],
        yerr=2 * np.array(points["standard error s"]),
        fmt="o",
        color="#0072B2",
    )
    left.set_xlim(left=0)
    left.set_xlabel("AU of the answer, s (a dot: a tenth of the queries)")
    left.set_ylabel("distance between two people, s")
    left.set_ylim(bottom=0)
    styles = {"data set": ("o-", "#000000"), "people": ("s-", "#D55E00")}
    for who, (style, color) in styles.items():
        covered = [model["coverage"][f"Student-t {level:g}"][who][0] for level in LEVELS]
        right.plot(LEVELS, covered, style, color=color, label=f"{who}, Student-t")
        fitted = model["coverage"]["calibrated 0.9"][who][0]
        right.plot([0.9], [fitted], "*", markersize=13, color=color, label=f"{who}, calibrated")
    right.plot([0.4, 1], [0.4, 1], ":", color="#5d6575")
    right.set_xlabel("level of the interval")
    right.set_ylabel("share of boundaries inside")
    right.legend(frameon=False, fontsize="small")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    write_figure(path, figure)


def page(stored: Mapping[str, Any]) -> str:
    """The page, as Markdown; without a model where none was measured."""
    people, model = stored["people"], stored.get("model")
    lines = [
        "# Five people and a data set",
        "",
        *paragraph(
            f"{people['queries']} test queries of Charades-STA, about {people['videos']} videos,",
            "were annotated again by five people each (Otani et al. 2020, Uncovering Hidden",
            "Challenges in Query-Based Video Moment Retrieval). How far do people agree with the",
            "data set and with each other, and does a model's uncertainty know where they do not?",
            "Made by `python benchmarks/studies/human_agreement.py`.",
        ),
        "## Who agrees with whom",
        "",
        *agreement_table(people, model),
        *people_paragraph(people),
    ]
    if model is None:
        lines += [
            "No model is measured here yet: `--train FOLDER` trains one on Charades-STA's training",
            "videos and adds whether its AU ranks the queries by disagreement, and whether its",
            "intervals cover the five people's boundaries.",
        ]
    else:
        lines += [*model_paragraph(model), f"![](figures/{FIGURE})", ""]
        lines += [*ranking_table(model["ranking"]), *coverage_table(model["coverage"])]
    return "\n".join(lines).rstrip() + "\n"


def agreement_table(people: Mapping[str, Any], model: Mapping[str, Any] | None) -> list[str]:
    """Who agrees with whom."""
    keys = ("R1@0.5", "R1@0.7", "mIoU")
    lines = [
        f"| who | with whom | {' | '.join(keys)} | median distance of start, end |",
        "|---|---|---|---|---|---|",
    ]
    every = {"one person": people["one person"], "the data set": people["the data set"]}
    if model is not None:
        every["the model"] = model["against"]
    for who, table in every.items():
        for whom, row in table.items():
            apart = f"{row['start s']:.1f} s, {row['end s']:.1f} s" if "start s" in row else ""
            cells = " | ".join(f"{row[key]:.1f}" for key in keys)
            lines.append(f"| {who} | {whom} | {cells} | {apart} |")
    return [*lines, ""]


def shown(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """A number and its interval."""
    value, low, high = (scale * number for number in values)
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ranking_table(table: Mapping[str, Any]) -> list[str]:
    """Rank correlations."""
    columns = ("seconds", "seconds, length held", "1 - IoU")
    lines = [
        "## Does uncertainty rank queries by disagreement?",
        "",
        "Spearman correlation with the distance of a boundary between two people, on average over",
        "pairs: in seconds, the same with the length of the answer held (partial correlation), and",
        "as 1 - IoU. In brackets 95 % intervals, a thousand draws of the videos.",
        "",
        f"| measure | {' | '.join(columns)} |",
        "|---|" + "---|" * len(columns),
    ]
    for measure, row in table.items():
        cells = [shown(row[column]) if column in row else "" for column in columns]
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    return [*lines, ""]


def coverage_table(table: Mapping[str, Any]) -> list[str]:
    """Coverage of intervals."""
    heads = {"data set": "the data set's", "people": "a person's", "all five": "of all five"}
    lines = [
        "## Do intervals cover what people say?",
        "",
        "Share of boundaries inside the interval of start or end, in percent. Calibrated intervals",
        "were fitted to the data set's windows of other videos; a query has none where the model",
        "cannot judge its video or words.",
        "",
        f"| interval | queries | mean width | {' | '.join(heads.values())} |",
        "|---|---|---|" + "---|" * len(heads),
    ]
    for name, row in table.items():
        cells = " | ".join(shown(row[who], 100, 1) for who in heads)
        lines.append(f"| {name} | {row['queries']} | {row['width s']:.1f} s | {cells} |")
    return [*lines, ""]


def paragraph(*sentences: str) -> list[str]:
    """Text in lines of a page, and an empty one."""
    return [*textwrap.wrap(" ".join(sentences), 100, break_on_hyphens=False), ""]


def people_paragraph(people: Mapping[str, Any]) -> list[str]:
    """What the people's numbers say."""
    one, to_any = people["one person"], people["the data set"]["any of the five"]
    data_set, another = one["the data set"], one["another person"]
    seconds = one["another person, in seconds"]
    return paragraph(
        f"A person agrees with the data set's window in {data_set['R1@0.5']:.0f} % of the queries,",
        f"and with another person in {another['R1@0.5']:.0f} %. The data set's boundaries lie",
        f"{data_set['start s']:.1f} and {data_set['end s']:.1f} s from a person's (median),",
        f"those of another person {another['start s']:.1f} and {another['end s']:.1f} s. So a",
        "model that agrees with the data set more often than people do has learnt its convention.",
        f"In {to_any['R1@0.5']:.0f} % of the queries at least one of the five says what the data",
        "set says; R1 against any of the six windows forgives what people would forgive, and a",
        "person, measured against the other five so, has",
        f"{one['any of the other five']['R1@0.5']:.0f}.",
        "People's windows are whole percents of the video, so an IoU of exactly 0.5 is common and",
        "counts as a hit; in seconds, rounding loses some of them",
        f"({seconds['R1@0.5']:.1f} instead of {another['R1@0.5']:.1f}).",
    )


def model_paragraph(model: Mapping[str, Any]) -> list[str]:
    """How the model was made, and what its numbers say."""
    against, au = model["against"], model["ranking"]["AU"]
    recall = {whom: f"{row['R1@0.5']:.1f}" for whom, row in against.items()}
    fitted, made = model["coverage"]["calibrated 0.9"], model["made"]
    return paragraph(
        "The model is trained on Charades-STA's training videos, none of which is among these, on",
        "the simulated timeline features of [results.md](results.md), one seed, with text layers,",
        "noise and refit as in the last variant there, but for a short schedule",
        f"({made['reconstruction epochs']} epochs of reconstruction, {made['retrieval epochs']} of",
        f"retrieval, {made['refit epochs']} of refit, ranked by {made['ranking']}): a weak model.",
        "Nothing was chosen on these queries. The features are made of action intervals from",
        "which the data set's windows were derived, so it may know the convention better than",
        f"pixels would let it. It has R1@0.5 {recall['the data set']} against the data set,",
        f"{recall['the median of the five']} against the median of the five and",
        f"{recall['any of the six']} against any of the six. The rank correlation of its AU with",
        f"the distance of two people is {shown(au['seconds'])}, and",
        f"{shown(au['seconds, length held'])}",
        "where the length of the answer is held. Its intervals, calibrated for 90 % of the data",
        f"set's boundaries, hold {shown(fitted['data set'], 100, 1)} % of those and",
        f"{shown(fitted['people'], 100, 1)} % of a person's.",
    )

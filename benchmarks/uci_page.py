"""The page docs/uci.md, from what uci.py has measured."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demr.machine.files import atomic_path

PAGE = Path(__file__).parents[1] / "docs" / "uci.md"
# RMSE and NLL of DER: as published, and as run honestly by others before these were.
PUBLISHED = {
    "boston": (3.06, 2.35), "concrete": (5.85, 3.01), "energy": (2.06, 1.39),
    "power": (4.23, 2.81), "wine": (0.61, 0.89), "yacht": (1.57, 1.03),
}  # fmt: skip
TO_BEAT = {
    "boston": (3.58, 2.470), "concrete": (5.85, 3.047), "energy": (2.16, 0.955),
    "power": (4.12, 2.781), "wine": (0.641, 0.930), "yacht": (2.04, 1.09),
}  # fmt: skip
Rows = Sequence[dict[str, float]]
OURS = "folds + anchored Geom"
RIVALS = ("likelihood alone", "DER", "Geom (paper)")
# Name, digits, and whether more is better.
MEASURES = {
    "RMSE": (3, False), "NLL": (3, False), "rho EU": (3, True), "rho -evidence": (3, True),
    "rho AU+EU": (3, True), "rho scale": (3, True), "AUSE": (3, False), "QCE": (3, False),
}  # fmt: skip
ORDER = ("rho EU", "AUSE", "QCE")

HEAD = """\
# Evidential regression on six UCI tables

Written by `benchmarks/uci.py`. Twenty splits each, one hidden layer of 50 units, 1,500 steps of
Adam on 32 rows at a rate that falls from 0.005 to 0; mean and standard error over the splits, in
the target's own units. Longer trainings lower the RMSE of concrete and yacht for all.

- *likelihood alone*, *DER*, *Geom (paper)*: no regulariser, and those two with the weight (0.01 or
  0.1) that is better on held-out rows, split by split.
- *anchored Geom*: `demr.evidential.AnchoredGeom()` with weight 1, nothing chosen.
- *folds*: evidence learned from the errors of five networks, each of which has not seen a fifth of
  the rows (`NormalInverseGamma.with_loc`); the answer is still that of one network.
- *ensemble of 5*: five networks of the likelihood alone; its NLL is that of the mixture.

*rho* is Spearman's correlation of the absolute error with EU, with -evidence, with the variance
AU + EU and with the scale of the Student-t; *AUSE* orders by EU; *QCE* is how far central
intervals are from covering what they promise, mean over 15 levels; *nu* and *alpha* are medians
over test rows, with their 5 % and 95 % quantiles.
"""


def write_page(results: Path) -> None:
    """Write docs/uci.md from the sets that have results."""
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in results.glob("*.json")}
    found = {name: found[name] for name in PUBLISHED if name in found}
    lines = [HEAD, *_verdict(found), "## Honest protocol", ""]
    lines += [
        "A fifth of the training rows is held out, for the step to stop at and for weights.",
        "",
    ]
    for name, parts in found.items():
        if "honest" in parts:
            lines += _honest(name, parts["honest"])
    lines += _published(found) + _growth(found)
    with atomic_path(PAGE) as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def mean_and_error(rows: Rows, measure: str) -> tuple[float, float]:
    """Mean over splits and its standard error."""
    values = [row[measure] for row in rows]
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def _verdict(found: dict[str, Any]) -> list[str]:
    """Ours against each rival, set by set, in one table."""
    sets = {name: parts["honest"] for name, parts in found.items() if "honest" in parts}
    if not sets:
        return []
    lines = [f"## {OURS} against the others", ""]
    lines += [
        _counts(sets),
        "",
        "Mean difference, split by split, with its standard error; in bold where it favours",
        f"*{OURS}*.",
        "",
        "| set | against | NLL | rho EU | AUSE | QCE |",
        "|---|---|---|---|---|---|",
    ]
    for name, methods in sets.items():
        for rival in RIVALS:
            cells = [_cell(methods[OURS], methods[rival], m) for m in ("NLL", *ORDER)]
            lines.append(f"| {name} | {rival} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _difference(ours: Rows, theirs: Rows, measure: str) -> tuple[float, float]:
    each = [{measure: a[measure] - b[measure]} for a, b in zip(ours, theirs, strict=True)]
    return mean_and_error(each, measure)


def _cell(ours: Rows, theirs: Rows, measure: str) -> str:
    mean, error = _difference(ours, theirs, measure)
    text = f"{mean:+.3f} ± {error:.3f}"
    return f"**{text}**" if (mean > 0) == MEASURES[measure][1] else text


def _counts(sets: dict[str, Any]) -> str:
    """In how many sets ours is not worse in NLL, and better otherwise, than all rivals."""
    close = 0
    better = dict.fromkeys(ORDER, 0)
    for methods in sets.values():
        ours = methods[OURS]
        error = mean_and_error(ours, "NLL")[1]
        close += all(_difference(ours, methods[r], "NLL")[0] <= error for r in RIVALS)
        for measure in ORDER:
            differences = [_difference(ours, methods[r], measure)[0] for r in RIVALS]
            better[measure] += all((d > 0) == MEASURES[measure][1] for d in differences)
    counts = ", ".join(f"{measure} in {count}" for measure, count in better.items())
    return (
        f"Of {len(sets)} sets: NLL no worse than any of the three by more than its standard error "
        f"in {close}; better than all three: {counts}."
    )


def _honest(name: str, methods: dict[str, Any]) -> list[str]:
    lines = [f"### {name}", "", "| method | " + " | ".join(MEASURES) + " | nu | alpha |"]
    lines.append("|---" * (len(MEASURES) + 3) + "|")
    for method, rows in methods.items():
        cells = []
        for measure, (digits, _) in MEASURES.items():
            mean, error = mean_and_error(rows, measure)
            cells.append(f"{mean:.{digits}f} ± {error:.{digits}f}")
        for parameter in ("nu", "alpha"):
            low, middle, high = (
                statistics.median(row[f"{parameter} {share}%"] for row in rows)
                for share in (5, 50, 95)
            )
            cells.append(f"{middle:.1f} ({low:.1f} ... {high:.1f})")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    rmse, nll = TO_BEAT[name]
    return [*lines, "", f"DER as run by others in this way: RMSE {rmse}, NLL {nll}.", ""]


def _published(found: dict[str, Any]) -> list[str]:
    sets = {name: parts["published"] for name, parts in found.items() if "published" in parts}
    if not sets:
        return []
    methods = list(next(iter(sets.values())))
    lines = [
        "## Published protocol", "",
        "The least value over training on batches of at most 100 test rows, as the published",
        "figures of DER are: RMSE / NLL. Nobody can choose like this; it is for comparison alone.",
        "",
        "| set | " + " | ".join(methods) + " | DER as published |",
        "|---" * (len(methods) + 2) + "|",
    ]  # fmt: skip
    for name, rows in sets.items():
        cells = [
            " / ".join(f"{mean_and_error(rows[method], m)[0]:.3f}" for m in ("RMSE", "NLL"))
            for method in methods
        ]
        rmse, nll = PUBLISHED[name]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {rmse} / {nll} |")
    return [*lines, ""]


def _growth(found: dict[str, Any]) -> list[str]:
    sets = {name: parts["growth"] for name, parts in found.items() if "growth" in parts}
    if not sets:
        return []
    steps = list(next(iter(next(iter(sets.values())).values())))
    lines = [
        "## Does nu stay put?", "",
        "Median of nu on test rows after so many steps at a constant rate, mean of three splits.",
        "",
        "| set | method | " + " | ".join(f"{int(step):,}" for step in steps) + " |",
        "|---" * (len(steps) + 2) + "|",
    ]  # fmt: skip
    for name, methods in sets.items():
        for method, medians in methods.items():
            cells = " | ".join(f"{medians[step]:.1f}" for step in steps)
            lines.append(f"| {name} | {method} | {cells} |")
    return [*lines, ""]

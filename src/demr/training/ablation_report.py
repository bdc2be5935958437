"""What an ablation found: tables in Markdown and figures, from the rows of its finished runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from demr.report.figures import error_figure, noise_figure, sweep_figure, variant_figure
from demr.report.output import markdown
from demr.training.grids import Grid
from demr.training.trials import Row, Trial, is_row_of

# Variant -> rows of its finished runs, by seed.
Results = Mapping[str, Mapping[int, Row]]

# Key in metrics.json, label, decimals.
METRICS = (
    ("R1@0.3", "R1@0.3", 1),
    ("R1@0.5", "R1@0.5", 1),
    ("R1@0.7", "R1@0.7", 1),
    ("mIoU", "mIoU", 1),
    ("presence/AUROC", "AUROC of absent queries", 3),
    ("presence/ECE", "ECE of `present`", 3),
    ("uncertainty/spearman/EU", "Spearman(error, EU)", 2),
    ("uncertainty/spearman/AU", "Spearman(error, AU)", 2),
    ("uncertainty/spearman/AU+EU", "Spearman(error, AU + EU)", 2),
    ("uncertainty/spearman/-evidence", "Spearman(error, -evidence)", 2),
    ("uncertainty/AUSE/AU+EU", "AUSE, AU + EU", 2),
    ("uncertainty/NLL", "NLL", 2),
    ("uncertainty/nu q0.05", "nu, 5 % quantile", 2),
    ("uncertainty/nu q0.5", "nu, median", 2),
    ("uncertainty/nu q0.95", "nu, 95 % quantile", 2),
    ("interval/coverage mean", "coverage of the 90 % interval", 3),
    ("interval/width mean s", "its mean width, s", 1),
)
# Neither more nor less of these is better.
_DESCRIPTIVE = ("uncertainty/nu", "interval/")
_DRAWN = ("R1@0.5", "mIoU", "uncertainty/spearman/EU", "uncertainty/spearman/-evidence")
_LABELS = {key: label for key, label, _ in METRICS}


def collect(trials: Mapping[str, Mapping[int, Trial]], rows: Mapping[str, Row]) -> Results:
    """Rows of one grid's variants; those without a finished run are left out."""
    results = {
        variant: {
            seed: rows[trial.id]
            for seed, trial in of_seed.items()
            if trial.id in rows and is_row_of(rows[trial.id], trial)
        }
        for variant, of_seed in trials.items()
    }
    return {variant: of_seed for variant, of_seed in results.items() if of_seed}


def splits_of(results: Results) -> list[str]:
    """Test splits that all rows have; the validation split where there is none."""
    every = [set(row["metrics"]) for of_seed in results.values() for row in of_seed.values()]
    common = [split for split in _some_row(results)["metrics"] if all(split in e for e in every)]
    return [split for split in common if split not in ("val", "gap")] or ["val"]


def _some_row(results: Results) -> Row:
    return next(iter(next(iter(results.values())).values()))


def tables(grid: Grid, results: Results) -> list[str]:
    """Mean and spread of every variant and split, then paired differences."""
    seeds = "; ".join(
        f"{markdown(variant)}: {', '.join(map(str, of_seed))}"
        for variant, of_seed in results.items()
    )
    same = len({tuple(of_seed) for of_seed in results.values()}) == 1
    if same:
        seeds = ", ".join(map(str, next(iter(results.values()))))
    lines = [f"Mean ± standard deviation over seeds ({seeds}).", ""]
    for split in splits_of(results):
        lines += [f"### {markdown(split)}", "", *_header("", results)]
        for key, label, digits in METRICS:
            columns = [_values(of_seed, split, key) for of_seed in results.values()]
            if any(columns):
                lines.append(_line(label, [cell(column, digits) for column in columns]))
        lines.append("")
    lines += ["### Overall", "", *_header("", results), *_overall(results), ""]
    if len(results) > 1:
        lines += _differences(grid, results)
    return lines


def _overall(results: Results) -> list[str]:
    rows = [list(of_seed.values()) for of_seed in results.values()]
    lines = []
    if all("gap" in row["metrics"] for of_seed in rows for row in of_seed):
        gaps = [[row["metrics"]["gap"]["R1@0.3"] for row in of_seed] for of_seed in rows]
        lines.append(_line("R1@0.3, iid - ood", [cell(column, 1) for column in gaps]))
    if all(row["balance"] for of_seed in rows for row in of_seed):
        for measure in ("EU", "AU+EU"):
            cells = []
            for of_seed in rows:
                parts = [row["balance"][measure] for row in of_seed]
                rising = sum(part["both rise"] for part in parts)
                cells.append(f"{cell([p['dVar'] for p in parts], 3)} ({rising}/{len(parts)} rise)")
            lines.append(_line(f"dVar of {measure} (runs in which both curves rise)", cells))
    lines.append(
        _line("ranking, by seed", [", ".join(row["ranking"] for row in part) for part in rows])
    )
    minutes = [[row["minutes"] for row in part if row["minutes"]] for part in rows]
    return [*lines, _line("minutes a run", [cell(column, 1) for column in minutes])]


def _differences(grid: Grid, results: Results) -> list[str]:
    names = list(results)
    pairs = [
        (names[index], names[0 if grid.against == "first" else index - 1])
        for index in range(1, len(names))
    ]
    head = {f"{name} minus {other}": None for name, other in pairs}
    lines = ["### Paired differences", "", "Seed by seed, then mean ± standard deviation.", ""]
    for split in splits_of(results):
        lines += _header(split, head)
        for key, label, digits in METRICS:
            if key.startswith(_DESCRIPTIVE):
                continue
            cells = []
            for name, other in pairs:
                shared = [seed for seed in results[name] if seed in results[other]]
                values = [
                    [
                        part[seed]["metrics"][split].get(key)
                        for part in (results[name], results[other])
                    ]
                    for seed in shared
                ]
                known = [new - old for new, old in values if None not in (new, old)]
                cells.append(cell(known, digits, signed=True))
            if any(text != "-" for text in cells):
                lines.append(_line(label, cells))
        lines.append("")
    return lines


def figures(name: str, grid: Grid, results: Results, out: Path) -> list[Path]:
    """Draw one grid; returns what was written."""
    splits = splits_of(results)
    panels = {
        _LABELS[key]: {
            split: [_values(of_seed, split, key) for of_seed in results.values()]
            for split in splits
        }
        for key in _DRAWN
    }
    path = out / f"{name}.png"
    if grid.sweep is None:
        variant_figure(list(results), panels, path)
    else:
        sweep_figure(grid.sweep, list(results), panels, path)
    written = [path]
    if all(row["balance"] for of_seed in results.values() for row in of_seed.values()):
        written.append(out / f"{name}-noise.png")
        noise_figure(
            {v: [row["balance"] for row in of_seed.values()] for v, of_seed in results.items()},
            written[-1],
        )
    # The last split is the hardest where there are several: iid, then ood.
    split = splits[-1]
    if all(split in row["error_bins"] for of_seed in results.values() for row in of_seed.values()):
        written.append(out / f"{name}-errors.png")
        error_figure(
            {v: [row["error_bins"][split] for row in r.values()] for v, r in results.items()},
            written[-1],
        )
    return written


def _values(of_seed: Mapping[int, Row], split: str, key: str) -> list[float]:
    values = [row["metrics"][split].get(key) for row in of_seed.values()]
    return [value for value in values if value is not None]


def _header(corner: str, columns: Mapping[str, object]) -> list[str]:
    return [
        f"| {markdown(corner)} | {' | '.join(map(markdown, columns))} |",
        "|---|" + "---|" * len(columns),
    ]


def _line(label: str, cells: Sequence[str]) -> str:
    return f"| {label} | {' | '.join(cells)} |"


def cell(values: Sequence[float], digits: int, *, signed: bool = False) -> str:
    """Mean and, from two values, spread; a dash without any.

    >>> cell([1.0, 3.0], 1), cell([0.25], 2, signed=True), cell([], 1)
    ('2.0 ± 1.4', '+0.25', '-')
    """
    if not len(values):
        return "-"
    sign = "+" if signed else ""
    mean = f"{np.mean(values):{sign}.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"

"""Make what the README shows: docs/answer.png, the demo's table and the table of results.

    python benchmarks/studies/readme_assets.py

Runs the demo and puts its table between the fences of README.md that hold `demr demo` output; the
results come from the bundled model's metrics, and from the rows in benchmarks/results, which
shapes_study.py and track_study.py fill.
"""

import argparse
import io
import json
import re
import tempfile
from pathlib import Path

from rich.console import Console
from shapes_study import PARTS as SHAPES
from track_study import PARTS as TRACKS
from track_study import goals

from demr.cli.demo import run_demo, search_demo
from demr.report import search_figure, search_table
from demr.training.ablation_report import cell

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "src" / "demr" / "models" / "shapes"
_FENCE = re.compile(r"(beside the answers:\n\n```text\n).*?(\n```)", re.DOTALL)
_RESULTS = re.compile(r"(<!-- results -->\n).*?(<!-- end of results -->)", re.DOTALL)
_BUNDLED = re.compile(r"(<!-- bundled -->\n).*?(<!-- end of bundled -->)", re.DOTALL)
_TRACKS = re.compile(r"(<!-- tracks -->\n).*?(<!-- end of tracks -->)", re.DOTALL)
_ROWS = (
    ("R1@0.5", "R1@0.5", 1),
    ("R1@0.7", "R1@0.7", 1),
    ("mIoU", "mIoU", 1),
    ("presence/AUROC", "AUROC of absent queries", 3),
    ("presence/ECE", "ECE of `present`", 3),
    ("uncertainty/spearman/EU", "Spearman(error, EU)", 2),
    ("uncertainty/spearman/AU+EU", "Spearman(error, AU + EU)", 2),
    ("uncertainty/spearman/-evidence", "Spearman(error, -evidence)", 2),
    ("interval/coverage mean", "90 % intervals that hold the boundary", 3),
    ("interval/width mean s", "their mean width, s", 1),
)


def results() -> str:
    """Mean and spread of the recipe over its seeds, as Markdown."""
    ((_, variants),) = SHAPES["recipe"].results().values()
    (of_seed,) = variants.values()
    runs = [row["metrics"] for row in of_seed.values()]
    lines = ["| | IID | OOD |", "|---|---|---|"]
    for key, label, digits in _ROWS:
        iid, ood = (cell([run[split][key] for run in runs], digits) for split in ("iid", "ood"))
        lines.append(f"| {label} | {iid} | {ood} |")
    gap = cell([run["gap"]["R1@0.3"] for run in runs], 1)
    lines.append(f"| R1@0.3, IID minus OOD | {gap} | |")
    return "\n".join(lines) + "\n"


def bundled() -> str:
    """What the bundled model reaches with sentences that name an action, and a thing alone."""
    metrics = json.loads((MODEL / "metrics.json").read_text(encoding="utf-8"))
    splits = ("iid", "ood", "iid_things", "ood_things")
    lines = [
        "| | actions, IID | actions, OOD | things, IID | things, OOD |",
        "|---|---|---|---|---|",
    ]
    for key, label, digits in _ROWS:
        cells = " | ".join(f"{metrics[split][key]:.{digits}f}" for split in splits)
        lines.append(f"| {label} | {cells} |")
    return "\n".join(lines) + "\n"


def tracks() -> str:
    """What the study of the timeline track was to show, and what it shows."""
    ((_, variants),) = TRACKS["timeline"].results().values()
    return "\n".join(goals(variants)[2:]).strip() + "\n"


def main() -> None:
    """Search the demo video and write both."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run_demo(Path(folder), 0)
        result, truth = search_demo(Path(folder) / "shapes.mp4", 0)
    search_figure(result, ROOT / "docs" / "answer.png", truth)
    stream = io.StringIO()
    Console(file=stream, width=100).print(search_table(result, truth))
    table = "\n".join(line.rstrip() for line in stream.getvalue().strip("\n").splitlines())
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    text = _FENCE.sub(lambda m: m[1] + table + m[2], text)
    text = _RESULTS.sub(lambda m: m[1] + results() + m[2], text)
    text = _BUNDLED.sub(lambda m: m[1] + bundled() + m[2], text)
    text = _TRACKS.sub(lambda m: m[1] + tracks() + m[2], text)
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

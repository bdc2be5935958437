"""What the studies share: parts that are one `demr ablate` each, and pages of their stored rows."""

import argparse
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from demr.training.ablation import Ablation, plan_ablation
from demr.training.ablation_report import Results, figures, tables
from demr.training.grids import Grid, load_grid

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
CONFIGS = ROOT / "benchmarks" / "configs"
FIGURES = ROOT / "docs" / "figures"


@dataclass(frozen=True)
class Part:
    """One `demr ablate`.

    Attributes:
        study: Rows of all parts of a study lie together, so that none trains what another has.
        recipe: Config that the variants depart from.
        grids: Names or files.
        seeds: Of every variant.
        balance: Split whose noise curves are measured, or none.
        limit: Queries of that split; 0 takes all.
        overrides: For all variants.
    """

    study: str
    recipe: Path
    grids: tuple[str, ...]
    seeds: tuple[int, ...]
    balance: str
    limit: int = 0
    overrides: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where its rows are."""
        return RESULTS / self.study

    def ablation(self) -> Ablation:
        """Its trials."""
        grids = dict(load_grid(spec) for spec in self.grids)
        return plan_ablation(self.recipe, grids, self.seeds, self.overrides, self.folder)

    def results(self) -> dict[str, tuple[Grid, Results]]:
        """Every grid and the rows of its finished trials."""
        ablation = self.ablation()
        return {name: (ablation.grids[name], rows) for name, rows in ablation.results().items()}

    def train(self, jobs: int) -> None:
        """Train what is missing; the page says whose rows are missing since they failed."""
        command = [sys.executable, "-m", "demr", "ablate", str(self.recipe)]
        for grid in self.grids:
            command += ["--grid", grid]
        command += ["--seeds", ",".join(map(str, self.seeds)), "--out", str(self.folder)]
        command += ["--jobs", str(jobs), "--balance", self.balance, "--limit", str(self.limit)]
        for override in self.overrides:
            command += ["--set", override]
        subprocess.run(command, cwd=ROOT, check=False)  # noqa: S603 - our own command


def parse_parts(doc: str, parts: Mapping[str, Part]) -> tuple[list[str], int]:
    """The parts that the command line asks to train, and the number of trials at a time."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*parts, []])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    arguments = parser.parse_args()
    return arguments.parts, arguments.jobs


def headed_tables(name: str, grid: Grid, results: Results) -> list[str]:
    """Tables of one grid, under headings that name the part."""
    return [line.replace("### ", f"### {name}: ") for line in tables(grid, results)]


def figure_lines(name: str, grid: Grid, results: Results) -> list[str]:
    """Draw one grid for docs/, and show it."""
    lines = []
    for figure in figures(name, grid, results, FIGURES):
        lines += [f"![](figures/{figure.name})", ""]
    return lines

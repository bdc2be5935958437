"""Ablations: variants of a recipe, each trained with several seeds, and compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from demr.errors import InputError
from demr.machine import terminal
from demr.machine.files import atomic_path
from demr.report.output import markdown
from demr.runs.folder import locked_folder
from demr.training.ablation_report import Results, collect, figures, tables
from demr.training.grids import Grid
from demr.training.trials import (
    NoiseCurves,
    Trial,
    TrialRunner,
    Trials,
    is_row_of,
    plan,
    read_rows,
)


@dataclass(frozen=True)
class Ablation:
    """The trials of some grids, and the folder in which their rows are.

    Attributes:
        grids: Name -> grid.
        trials: Grid -> variant -> seed -> trial.
        seeds: Of every variant.
        out: Folder of rows, runs, logs and the report.
    """

    grids: Mapping[str, Grid]
    trials: Trials
    seeds: Sequence[int]
    out: Path

    @property
    def different(self) -> dict[str, Trial]:
        """Trials by their id; what grids share is there once.

        Seed by seed, so that an ablation that was stopped has complete seeds.
        """
        return {
            of_seed[seed].id: of_seed[seed]
            for seed in self.seeds
            for variants in self.trials.values()
            for of_seed in variants.values()
        }

    def describe(self) -> str:
        """The grids with their variants, and how many runs they are."""
        lines = []
        for name, grid in self.grids.items():
            lines.append(f"{name}: {grid.title}")
            for variant, settings in grid.settings.items():
                changes = ", ".join(f"{key}={value}" for key, value in settings.items())
                lines.append(f"    {variant}: {changes or 'the recipe'}")
        lines.append(f"{len(self.different)} different runs with seeds {list(self.seeds)}")
        return "\n".join(lines)

    def check_split(self, split: str) -> None:
        """Refuse a split that the recipe does not have.

        Raises:
            InputError: Naming those that it has.
        """
        trial = next(iter(self.different.values()))
        splits = ("val", *trial.config.data.tests)
        if split not in splits:
            raise InputError(
                f"--balance {split}",
                expected=f"one of {', '.join(splits)}, or none",
                got=split,
                remedy="name a split of the recipe",
            )

    def train(self, *, jobs: int, noise: NoiseCurves | None) -> list[Trial]:
        """Train what has no row yet, and write the report after each.

        Args:
            jobs: Trials at a time.
            noise: Noise curves to measure, if any.

        Returns:
            The trials that failed.

        Raises:
            ConfigError: If another ablation is at work in the folder.
            InputError: If a row is damaged.
        """
        with locked_folder(self.out, "ablation"):
            return self._train(jobs, noise)

    def _train(self, jobs: int, noise: NoiseCurves | None) -> list[Trial]:
        rows = read_rows(self.out)
        every = self.different
        missing = [t for id_, t in every.items() if id_ not in rows or not is_row_of(rows[id_], t)]
        console = terminal.console(stderr=True, soft_wrap=True)
        console.print(
            f"{len(every)} runs, {len(every) - len(missing)} of them finished: {self.out}"
        )
        columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=not missing) as bar:
            task = bar.add_task("runs", total=len(missing))

            def notify(line: str) -> None:
                bar.console.print(line, highlight=False)

            def finished() -> None:
                bar.advance(task)
                self.write_report()

            runner = TrialRunner(self.out, jobs=jobs, noise=noise, notify=notify)
            return runner.run(missing, finished)

    def results(self) -> dict[str, Results]:
        """Rows of what is finished, by grid.

        Raises:
            InputError: If a row is damaged.
        """
        rows = read_rows(self.out)
        return {grid: collect(self.trials[grid], rows) for grid in self.grids}

    def write_report(self) -> Path:
        """Write ``report.md`` and the figures of everything that is finished.

        Returns:
            The report.

        Raises:
            InputError: If a row is damaged.
        """
        lines = ["# Ablation", ""]
        for name, results in self.results().items():
            grid = self.grids[name]
            lines += [f"## {markdown(grid.title)}", ""]
            if not results:
                lines += ["No run has finished yet.", ""]
                continue
            lines += tables(grid, results)
            lines += [
                f"![]({quote(path.name)})\n" for path in figures(name, grid, results, self.out)
            ]
        with atomic_path(self.out / "report.md") as path:
            path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
        return self.out / "report.md"


def plan_ablation(
    recipe: Path,
    grids: Mapping[str, Grid],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    out: Path | None = None,
) -> Ablation:
    """Resolve the trials of an ablation.

    Args:
        recipe: Training config that the variants depart from.
        grids: Name -> grid.
        seeds: Of every variant.
        overrides: ``a.b=value`` for all variants.
        out: Folder; None takes ``runs/NAME-ablation``.

    Raises:
        ConfigError: If the recipe, an override or a grid does not fit.
    """
    trials = plan(recipe, grids, seeds, overrides)
    if out is None:
        any_trial = next(iter(next(iter(trials.values())).values()))[seeds[0]]
        out = Path("runs") / f"{any_trial.config.name}-ablation"
    return Ablation(grids, trials, seeds, out)

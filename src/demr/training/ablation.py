"""Ablations: which variants of a recipe to train, training them, and one row for each that is done.

A *grid* is a question ("does the fusion matter?") with a few named variants, each a set of
overrides of the recipe. Runs are known by the settings they resolve to: a variant that two grids
share is trained once, and a changed recipe never takes an old run for its own.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from demr.errors import ConfigError, InputError
from demr.machine.files import atomic_path
from demr.runs.config import TrainConfig, load_config

Override = bool | int | float | str | list[str] | None
_CONCAT_DER: dict[str, Override] = {
    "model.fusion": "concat",
    "reconstruction.epochs": 0,
    "losses.regularizer": "der",
}
_NO_QR: dict[str, Override] = {"reconstruction.epochs": 0}


class Grid(BaseModel):
    """One question and the variants that answer it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    title: str
    """Heading of its table."""
    variants: dict[str, dict[str, Override]] = {}
    """Name of a variant -> ``a.b: value`` overrides of the recipe; none is the recipe itself."""
    sweep: str | None = None
    """A setting to try several values of, instead of variants; drawn as a curve."""
    values: list[Override] = []
    """The values of a sweep."""
    against: Literal["first", "previous"] = "first"
    """Which variant the paired differences of each are taken to."""

    @model_validator(mode="after")
    def _variants_or_sweep(self) -> "Grid":
        if bool(self.variants) == bool(self.sweep) or bool(self.sweep) != bool(self.values):
            raise ValueError("a grid has either variants, or a sweep with its values")
        return self

    @property
    def settings(self) -> dict[str, dict[str, Override]]:
        """Variants with their overrides; those of a sweep are called by their values."""
        if self.sweep is None:
            return self.variants
        return {_shown(value): {self.sweep: value} for value in self.values}


GRIDS: Mapping[str, Grid] = {
    "steps": Grid(
        title="From concat + DER to DEMR, step by step",
        variants={
            "concat + DER": _CONCAT_DER,
            "+ RFF": _NO_QR | {"losses.regularizer": "der"},
            "+ QR": {"losses.regularizer": "der"},
            "+ Geom (DEMR)": {},
        },
        against="previous",
    ),
    "fusion": Grid(title="Fusion", variants={"concat": {"model.fusion": "concat"}, "RFF": {}}),
    "reconstruction": Grid(title="Query reconstruction", variants={"off": _NO_QR, "on": {}}),
    "words": Grid(
        title="What query reconstruction masks",
        variants={
            "nouns": {},
            "verbs": {"reconstruction.pos": ["verb"]},
            "adjectives": {"reconstruction.pos": ["adjective"]},
            "nouns and verbs": {"reconstruction.pos": ["noun", "verb"]},
        },
    ),
    "word_count": Grid(
        title="Words masked in a query", sweep="reconstruction.words", values=[1, 2, 3]
    ),
    "reconstruction_epochs": Grid(
        title="Epochs of query reconstruction",
        sweep="reconstruction.epochs",
        values=[0, 5, 10, 20, 30],
    ),
    "reconstruction_lr": Grid(
        title="Learning rate of query reconstruction",
        sweep="reconstruction.lr",
        values=[1e-5, 1e-4, 1e-3],
    ),
    "regularizer": Grid(
        title="Regulariser of the evidence",
        variants={
            "none": {"losses.regularizer": "none"},
            "DER": {"losses.regularizer": "der"},
            "Geom": {"losses.regularizer": "geom"},
        },
    ),
    "lambda_geom": Grid(
        title="Weight of Geom", sweep="losses.lambda_geom", values=[1e-4, 1e-3, 1e-2, 1e-1, 1.0]
    ),
    "lambda_reg": Grid(
        title="Weight of DER's regulariser",
        variants={
            f"{weight:g}": {"losses.regularizer": "der", "losses.lambda_reg": weight}
            for weight in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
        },
    ),
    "lambda_der": Grid(
        title="Weight of the evidential loss",
        sweep="losses.lambda_der",
        values=[1e-4, 1e-3, 1e-2, 1e-1, 1.0],
    ),
    "location_gradient": Grid(
        title="Likelihood's gradient to the boundaries",
        variants={
            "reaches them": {"losses.location_gradient": True},
            "detached": {"losses.location_gradient": False},
        },
    ),
}


def load_grid(spec: str) -> tuple[str, Grid]:
    """A grid by name, or from a YAML file of one's own.

    Raises:
        ConfigError: If there is neither, or the file does not hold a grid.
    """
    if spec in GRIDS:
        return spec, GRIDS[spec]
    path = Path(spec)
    try:
        return path.stem, Grid.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--grid {spec}",
            expected=f"a YAML file with a grid, or one of {', '.join(GRIDS)}",
            got=type(error).__name__,
            remedy="check the name",
        ) from error
    except (ValidationError, yaml.YAMLError, ValueError, RecursionError) as error:
        message = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            message = f"{place}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")
        raise ConfigError(
            f"--grid {spec}",
            expected="a grid: title, and variants (or sweep and values)",
            got=" ".join(message.split()),
            remedy="mend the file",
        ) from error


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        label: For people: grid and variant.
        key: Of the settings it resolves to; the same for all seeds.
        seed: Also in the config.
        config: Complete.
    """

    label: str
    key: str
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        """Name of its folder; also of its row."""
        return f"{self.key}-{self.seed}"

    @property
    def id(self) -> str:
        """What tells it from others: the name without the words, which are the first grid's."""
        return _id(self.name)


def plan(
    recipe: Path, grids: Mapping[str, Grid], seeds: Sequence[int], overrides: Sequence[str] = ()
) -> dict[str, dict[str, dict[int, Job]]]:
    """Resolve every variant and seed.

    Args:
        recipe: Training config.
        grids: Name -> grid.
        seeds: Each variant is trained with each.
        overrides: ``a.b=value``, for all variants; what a variant sets itself goes before.

    Returns:
        Grid -> variant -> seed -> job.

    Raises:
        ConfigError: If the recipe or an override does not fit.
    """
    jobs: dict[str, dict[str, dict[int, Job]]] = {}
    for grid_name, grid in grids.items():
        for variant, settings in grid.settings.items():
            own = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
            for seed in seeds:
                config = load_config(recipe, [*overrides, *own, f"seed={seed}"])
                job = Job(f"{grid_name}: {variant}", _key(config, variant), seed, config)
                jobs.setdefault(grid_name, {}).setdefault(variant, {})[seed] = job
    # The name of a shared run is the one that came first.
    first: dict[str, str] = {}
    return {
        grid_name: {
            variant: {
                seed: Job(job.label, first.setdefault(job.key[-8:], job.key), seed, job.config)
                for seed, job in of_seed.items()
            }
            for variant, of_seed in of_variant.items()
        }
        for grid_name, of_variant in jobs.items()
    }


def _key(config: TrainConfig, variant: str) -> str:
    # Without defaults, so that a setting that demr learns later leaves finished runs finished.
    settings = config.model_dump(
        mode="json", exclude={"seed", "name", "devices"}, exclude_defaults=True
    )
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    words = re.sub(r"[^a-z0-9.]+", "_", variant.lower()).strip("_")
    return f"{words}-{digest[:8]}"


def _id(name: str) -> str:
    return "-".join(name.rsplit("-", 2)[1:])


def _shown(value: Override) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def is_row_of(row: Mapping[str, Any], job: Job) -> bool:
    """Whether a row's run had the job's settings, those left at their defaults included.

    Settings that the run did not know yet are not compared: they came with a newer demr.
    """
    return _agree(row["config"], job.config.model_dump(mode="json", exclude={"name", "devices"}))


def _agree(had: Any, wanted: Any) -> bool:
    if isinstance(had, dict) and isinstance(wanted, dict):
        return all(_agree(had[key], wanted[key]) for key in had.keys() & wanted.keys())
    return bool(had == wanted)


def read_rows(out: Path) -> dict[str, dict[str, Any]]:
    """Rows of the finished runs, by :attr:`Job.id`.

    Raises:
        InputError: If a row is damaged.
    """
    rows = {}
    for path in sorted((out / "rows").glob("*.json")):
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            rows[_id(path.stem)] = row | {"metrics": dict(row["metrics"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                str(path),
                expected="the row of a finished run",
                got=f"{type(error).__name__}: {error}",
                remedy="remove the file; its run is then taken up again",
            ) from error
    return rows


class Runner:
    """Trains jobs, each in a process of its own, and keeps a row of each that finishes.

    Args:
        out: Folder of the ablation: ``rows``, ``runs``, ``configs`` and ``logs``.
        jobs: Runs at a time.
        balance: Split whose noise curves are measured; None leaves them out.
        limit: Queries of that split.
        say: Told what happens, a line at a time.
    """

    def __init__(
        self, out: Path, *, jobs: int, balance: str | None, limit: int, say: Callable[[str], None]
    ) -> None:
        self._out, self._jobs, self._say = out, jobs, say
        self._balance, self._limit = balance, limit
        self._stopping = threading.Event()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def run(self, jobs: Sequence[Job], finished: Callable[[], None]) -> list[Job]:
        """Train what has no row yet; a failed run does not stop the others.

        Args:
            jobs: In order of importance.
            finished: Called after every run.

        Returns:
            The jobs that failed.
        """
        failed: list[Job] = []
        with ThreadPoolExecutor(self._jobs) as pool:
            try:
                pending = [(job, pool.submit(self._train, job)) for job in jobs]
                for job, future in pending:
                    if not future.result():
                        failed.append(job)
                    finished()
            except BaseException:
                # Without this, leaving the pool would start what still waits.
                self._stop()
                pool.shutdown(cancel_futures=True)
                raise
        return failed

    def _stop(self) -> None:
        with self._lock:
            self._stopping.set()
            for process in self._running:
                process.terminate()

    def _train(self, job: Job) -> bool:
        """Train and measure one job; False if that failed."""
        if self._stopping.is_set():
            return False
        folder = self._out / "runs" / job.name
        config = self._out / "configs" / f"{job.name}.yaml"
        with atomic_path(config) as path:
            path.write_text(job.config.to_yaml(), encoding="utf-8")
        log = self._out / "logs" / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        resume = ["--resume"] if (folder / "config.yaml").exists() else []
        commands = [["train", str(config), "--out", str(folder), *resume]]
        if self._balance is not None:
            limit = str(self._limit)
            commands.append(["balance", str(folder), "--split", self._balance, "--limit", limit])
        self._say(f"{job.label}, seed {job.seed}: " + ("going on" if resume else "training"))
        began = time.perf_counter()
        for command in commands:
            if self._call(command, log):
                if not self._stopping.is_set():
                    self._say(f"{job.label}, seed {job.seed}: failed ({_last_line(log)}); {log}")
                return False
        minutes = (time.perf_counter() - began) / 60
        row = make_row(folder, job, None if resume else minutes)
        with atomic_path(self._out / "rows" / f"{job.name}.json") as path:
            path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        self._say(f"{job.label}, seed {job.seed}: done in {minutes:.1f} min")
        return True

    def _call(self, command: list[str], log: Path) -> int:
        threads = str(max((os.cpu_count() or 1) // self._jobs, 1))
        environment = {"OMP_NUM_THREADS": threads} | os.environ
        with log.open("ab") as stream:
            with self._lock:
                if self._stopping.is_set():
                    return 1
                process = subprocess.Popen(  # noqa: S603 - our own command
                    [sys.executable, "-m", "demr", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    env=environment,
                )
                self._running.add(process)
            try:
                return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)


def make_row(folder: Path, job: Job, minutes: float | None) -> dict[str, Any]:
    """What is kept of a finished run.

    Args:
        folder: The run.
        job: What it was to be.
        minutes: How long it took; None if it was cut short and taken up again.
    """
    calibration = _read(folder / "calibration.json")
    balance = folder / "balance.json"
    return {
        "variant": job.label,
        "seed": job.seed,
        "minutes": minutes,
        "ranking": calibration["ranking"],
        "tau": calibration["tau"],
        "metrics": _read(folder / "metrics.json"),
        "error_bins": _read(folder / "error_bins.json"),
        "balance": _read(balance) if balance.exists() else None,
        "config": job.config.model_dump(mode="json"),
    }


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _last_line(log: Path) -> str:
    lines = [
        line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line
    ]
    return lines[-1].strip()[:200] if lines else "no output"

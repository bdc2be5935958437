"""Trials of an ablation: what to train, training it, and a row of results for each that is done.

A trial is one variant with one seed. Trials are known by the settings they resolve to: a variant
that two grids share is trained once, and a changed recipe never takes an old row for its own.
"""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demr.errors import InputError
from demr.machine.documents import read_json
from demr.machine.files import atomic_path
from demr.machine.processes import tied_process
from demr.runs.config import TrainConfig, load_config
from demr.training.grids import Grid

if TYPE_CHECKING:
    import subprocess

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """One variant of a recipe with one seed.

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


# Grid -> variant -> seed.
Trials = Mapping[str, Mapping[str, Mapping[int, Trial]]]


def plan(
    recipe: Path, grids: Mapping[str, Grid], seeds: Sequence[int], overrides: Sequence[str] = ()
) -> Trials:
    """Resolve every variant and seed.

    Args:
        recipe: Training config.
        grids: Name -> grid.
        seeds: Each variant is trained with each.
        overrides: ``a.b=value``, for all variants; what a variant sets itself goes before.

    Returns:
        Grid -> variant -> seed -> trial.

    Raises:
        ConfigError: If the recipe or an override does not fit.
    """
    # Where grids share a variant, its trials have the key that came first.
    keys: dict[str, str] = {}

    def trial(grid: str, variant: str, settings: Mapping[str, Any], seed: int) -> Trial:
        changes = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        config = load_config(recipe, [*overrides, *changes, f"seed={seed}"])
        digest = _digest(config)
        key = keys.setdefault(digest, f"{_words(variant)}-{digest}")
        return Trial(f"{grid}: {variant}", key, seed, config)

    return {
        name: {
            variant: {seed: trial(name, variant, settings, seed) for seed in seeds}
            for variant, settings in grid.settings.items()
        }
        for name, grid in grids.items()
    }


def _digest(config: TrainConfig) -> str:
    # Without defaults, so that a setting that demr learns later leaves finished trials finished.
    settings = config.model_dump(
        mode="json", exclude={"seed", "name", "devices"}, exclude_defaults=True
    )
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def _words(variant: str) -> str:
    # Folders are called by them, and no file system takes names of any length.
    return re.sub(r"[^a-z0-9.]+", "_", variant.lower())[:60].strip("_")


def _id(name: str) -> str:
    return "-".join(name.rsplit("-", 2)[1:])


# --- rows -------------------------------------------------------------------------------------


def read_rows(out: Path) -> dict[str, dict[str, Any]]:
    """Rows of the finished trials, by :attr:`Trial.id`.

    Raises:
        InputError: If a row is damaged.
    """
    rows = {}
    for path in sorted((out / "rows").glob("*.json")):
        try:
            row = read_json(path)
            rows[_id(path.stem)] = row | {"metrics": dict(row["metrics"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                str(path),
                expected="the row of a finished run",
                got=f"{type(error).__name__}: {error}",
                remedy="remove the file; its run is then taken up again",
            ) from error
    return rows


def is_row_of(row: Row, trial: Trial) -> bool:
    """Whether a row's run had the trial's settings, those left at their defaults included.

    Settings that the run did not know yet are not compared: they came with a newer demr.
    """
    return _agree(row["config"], trial.config.model_dump(mode="json", exclude={"name", "devices"}))


def _agree(had: Any, wanted: Any) -> bool:
    if isinstance(had, dict) and isinstance(wanted, dict):
        return all(_agree(had[key], wanted[key]) for key in had.keys() & wanted.keys())
    return bool(had == wanted)


def make_row(run: Path, trial: Trial, minutes: float | None) -> dict[str, Any]:
    """What is stored of a finished run.

    Args:
        run: Its folder.
        trial: What it was to be.
        minutes: How long it took; None if it was cut short and taken up again.
    """
    calibration = _read(run / "calibration.json")
    balance = run / "balance.json"
    return {
        "variant": trial.label,
        "seed": trial.seed,
        "minutes": minutes,
        "ranking": calibration["ranking"],
        "tau": calibration["tau"],
        "metrics": _read(run / "metrics.json"),
        "error_bins": _read(run / "error_bins.json"),
        "balance": _read(balance) if balance.exists() else None,
        "config": trial.config.model_dump(mode="json"),
    }


def _read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = read_json(path)
    return values


# --- training ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoiseCurves:
    """Noise curves to measure of every run (``demr balance``).

    Attributes:
        split: On which split.
        limit: Queries of that split; 0 takes all.
    """

    split: str
    limit: int


class TrialRunner:
    """Trains trials, each in a process of its own, and stores a row of each that finishes.

    Args:
        out: Folder of the ablation: ``rows``, ``runs``, ``configs`` and ``logs``.
        jobs: Trials at a time.
        noise: Noise curves to measure, if any.
        notify: Told what happens, a line at a time.
    """

    def __init__(
        self, out: Path, *, jobs: int, noise: NoiseCurves | None, notify: Callable[[str], None]
    ) -> None:
        self._out, self._jobs, self._noise, self._notify = out, jobs, noise, notify
        self._stopping = threading.Event()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def run(self, trials: Sequence[Trial], finished: Callable[[], None]) -> list[Trial]:
        """Train all; one that fails does not stop the others.

        Args:
            trials: In order of importance.
            finished: Called after every trial.

        Returns:
            The trials that failed.
        """
        failed: list[Trial] = []
        with ThreadPoolExecutor(self._jobs) as pool:
            try:
                pending = [(trial, pool.submit(self._train, trial)) for trial in trials]
                for trial, future in pending:
                    if not future.result():
                        failed.append(trial)
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

    def _train(self, trial: Trial) -> bool:
        """Train and measure one trial; False if that failed."""
        if self._stopping.is_set():
            return False
        run = self._out / "runs" / trial.name
        config = self._out / "configs" / f"{trial.name}.yaml"
        with atomic_path(config) as path:
            path.write_text(trial.config.to_yaml(), encoding="utf-8")
        log = self._out / "logs" / f"{trial.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        resume = (run / "config.yaml").exists()
        title = f"{trial.label}, seed {trial.seed}"
        self._notify(f"{title}: {'going on' if resume else 'training'}")
        began = time.perf_counter()
        for command in self._commands(config, run, resume=resume):
            if self._call(command, log):
                if not self._stopping.is_set():
                    self._notify(f"{title}: failed ({_last_line(log)}); {log}")
                return False
        minutes = (time.perf_counter() - began) / 60
        row = make_row(run, trial, None if resume else minutes)
        with atomic_path(self._out / "rows" / f"{trial.name}.json") as path:
            path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        self._notify(f"{title}: done in {minutes:.1f} min")
        return True

    def _commands(self, config: Path, run: Path, *, resume: bool) -> list[list[str]]:
        train = ["train", str(config), "--out", str(run), *(["--resume"] if resume else [])]
        if self._noise is None:
            return [train]
        split, limit = self._noise.split, str(self._noise.limit)
        return [train, ["balance", str(run), "--split", split, "--limit", limit]]

    def _call(self, command: list[str], log: Path) -> int:
        with log.open("ab") as stream, ExitStack() as stack:
            with self._lock:
                if self._stopping.is_set():
                    return 1
                process = stack.enter_context(tied_process(command, stream, self._threads))
                self._running.add(process)
            try:
                return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)

    @property
    def _threads(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // self._jobs, 1))}


def _last_line(log: Path) -> str:
    lines = [
        line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line
    ]
    return lines[-1].strip()[:200] if lines else "no output"

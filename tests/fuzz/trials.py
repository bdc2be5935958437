"""Trials of the fuzz: damage one file, run a command on it, and judge what a user would see."""

import contextlib
import io
import json
import multiprocessing
import random
import resource
import shutil
import tempfile
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as TooLong
from dataclasses import dataclass
from pathlib import Path

from pebble import ProcessExpired, ProcessPool
from tests.conftest import call_main
from tests.fuzz.corpus import ANNOTATIONS, VIDEOS
from tests.fuzz.mutations import damage_file

MEMORY_MB = 2048
TIMEOUT_S = 120
_ADDRESSES = 24 << 30
_LONGEST_LINE = 500
_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # categories of what terminals obey or hide

# The damaged file (or the folder that holds it), the corpus, a folder for outputs -> arguments.
Command = Callable[[Path, Path, Path], Sequence[object]]


@dataclass(frozen=True)
class Target:
    """A file of the corpus to damage, and the command that reads it.

    Attributes:
        name: For reports.
        file: The file, relative to the corpus.
        folder: Its folder, where the command reads a whole one: copied, then damaged.
        command: What reads it.
    """

    name: str
    file: str
    command: Command
    folder: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        problem: What a user should never see, or empty.
        code: Exit code; -1 where there was none.
        seconds: Wall time.
        memory_mb: Highest resident memory of the process during the trial.
        output: What was printed, shortened.
    """

    problem: str
    code: int = -1
    seconds: float = 0.0
    memory_mb: float = 0.0
    output: str = ""


def _targets() -> Iterator[Target]:
    for ending in VIDEOS:
        file = f"video.{ending}"
        yield Target(f"search {ending}", file, lambda bad, _c, _o: ["search", bad, "a star"])
        yield Target(
            f"extract {ending}",
            file,
            lambda bad, _c, out: ["extract", bad, "--encoder", "builtin", "--out", out / "pack"],
        )
    for file in ANNOTATIONS:
        yield Target(
            f"annotations {file}",
            file,
            lambda bad, _c, out: ["import", "annotations", bad, "--out", out / "new.jsonl"],
        )
    yield Target(
        "predictions",
        "predictions.jsonl",
        lambda bad, c, _o: [*_EVALUATE, bad, "--annotations", c / "labels.jsonl"],
    )
    yield Target(
        "ground truth",
        "labels.jsonl",
        lambda bad, c, _o: [*_EVALUATE, c / "predictions.jsonl", "--annotations", bad],
    )
    yield Target("npz", "npz/v0.npz", _import_features, folder="npz")
    yield Target("hdf5", "features.h5", _import_features)
    for file in _PACK_FILES:
        yield Target(f"pack {file}", f"{_PACK}/{file}", _calibrate, folder=_PACK)
    for file in ("config.json", "calibration.json", "model.safetensors"):
        yield Target(f"model {file}", f"run/{file}", _search_model, folder="run")
    for file in ("config.yaml", "config.json", "calibration.json", "model.safetensors"):
        yield Target(
            f"run {file}", f"run/{file}", lambda bad, _c, _o: ["evaluate", bad], folder="run"
        )
    yield Target("resume", "run/checkpoints/stage2/last.ckpt", _resume, folder="run")
    for file in _CLIP_FILES:
        yield Target(f"clip {file}", f"clip/{file}", _search_clip, folder="clip")
    yield Target(
        "recipe", "recipe.yaml", lambda bad, _c, out: ["ablate", bad, "--list", "--out", out]
    )
    yield Target(
        "grid",
        "grid.yaml",
        lambda bad, c, out: ["ablate", c / "recipe.yaml", "--grid", bad, "--list", "--out", out],
    )
    yield Target(
        "queries",
        "queries.txt",
        lambda bad, c, _o: ["search", c / "video.mp4", "--queries", bad, "--json"],
    )


_EVALUATE = ("evaluate", "--predictions")
_PACK = "world/features/val"
_PACK_FILES = ("index.json", "video-00000.safetensors")
_CLIP_FILES = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "model.safetensors",
)


def _import_features(bad: Path, corpus: Path, out: Path) -> Sequence[object]:
    return [
        *("import", "features", "--stream", f"clip={bad}", "--clip-length", "2"),
        *("--annotations", corpus / "labels.jsonl", "--encoder", "clip@1", "--out", out / "pack"),
    ]


def _calibrate(bad: Path, corpus: Path, out: Path) -> Sequence[object]:
    labels = corpus / "world" / "val.jsonl"
    return [
        *("calibrate", "shapes", "--annotations", labels, "--features", bad),
        *("--out", out / "model"),
    ]


def _search_model(bad: Path, corpus: Path, _out: Path) -> Sequence[object]:
    return ["search", corpus / "video.mp4", "a star", "--model", bad, "--json"]


def _search_clip(bad: Path, corpus: Path, _out: Path) -> Sequence[object]:
    return ["search", corpus / "video.mp4", "a star", "--encoder", f"clip:{bad}", "--json"]


def _resume(bad: Path, corpus: Path, _out: Path) -> Sequence[object]:
    # As a run is left that was stopped before it was calibrated.
    for name in ("model.safetensors", "config.json", "calibration.json", "metrics.json"):
        (bad / name).unlink()
    return ["train", corpus / "recipe.yaml", "--out", bad, "--resume"]


TARGETS = {target.name: target for target in _targets()}


def run_trial(name: str, seed: int | None, corpus: Path) -> Outcome:
    """Damage the target's file as the seed says, run its command, judge what came.

    Without a seed the file is left whole.
    """
    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="demr-fuzz-") as made:
        folder, out = Path(made) / "in", Path(made) / "out"
        folder.mkdir()
        out.mkdir()
        source = corpus / target.file
        bad = damaged = folder / source.name
        if target.folder:
            bad = folder / Path(target.folder).name
            shutil.copytree(corpus / target.folder, bad, copy_function=_link)
            damaged = bad / Path(target.file).relative_to(target.folder)
            damaged.unlink()
        if seed is None:
            shutil.copyfile(source, damaged)
        else:
            damage_file(source, damaged, random.Random(f"{name} {seed}"))
        return _judged(target.command(bad, corpus, out))


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


def _judged(arguments: Sequence[object]) -> Outcome:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    out, err = io.StringIO(), io.StringIO()
    started, problem, code = time.monotonic(), "", -1
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = call_main(*arguments)
        except Exception:  # noqa: BLE001 - any is what the fuzz looks for
            problem = traceback.format_exc()
    memory = _peak_mb()
    if not problem:
        told = err.getvalue()
        if code == 2 and arguments[0] == "train":
            # How far it has come is told, too.
            told = "".join(told.splitlines(keepends=True)[-1:])
        problem = _complaint(code, out.getvalue(), told, "--json" in arguments)
    if not problem and memory > MEMORY_MB:
        problem = f"{memory:.0f} MB of memory"
    shown = (out.getvalue()[-1000:] + err.getvalue()[-1000:]).strip()
    return Outcome(problem, code, time.monotonic() - started, memory, shown)


def _peak_mb() -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status names no peak")


def _complaint(code: int, out: str, err: str, is_json: bool) -> str:
    """What is wrong with an exit code and what was printed; empty if nothing."""
    lines = err.splitlines()
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if "Traceback" in out + err:
        return "a traceback was printed"
    if any(len(line) > _LONGEST_LINE for line in lines):
        return f"a line of {max(map(len, lines))} characters"
    if any(unicodedata.category(c) in _OBEYED and c not in "\n\r\u200c\u200d" for c in err):
        return "control characters in the messages"
    # What was found on the way (how many queries were read) may stand before it.
    if code == 2 and (out or not lines or not lines[-1].startswith("demr: ")):
        return "exit code 2 without a line that says why"
    if code == 0 and is_json:
        try:
            json.loads(out, parse_constant=_refuse)
        except ValueError as error:
            return f"no JSON: {error}"
    return ""


def _refuse(constant: str) -> None:
    raise ValueError(constant)


@contextlib.contextmanager
def trial_pool(workers: int = 1) -> Iterator[ProcessPool]:
    """Processes for trials, which may die or hang."""
    context = multiprocessing.get_context("spawn")
    with ProcessPool(
        max_workers=workers, max_tasks=250, initializer=_bound_memory, context=context
    ) as pool:
        yield pool


def _bound_memory() -> None:
    # A trial that asks for all there is must not take the machine down: it gets a MemoryError.
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESSES, _ADDRESSES))


def run_trials(
    pool: ProcessPool, trials: Sequence[tuple[str, int | None]], corpus: Path
) -> Iterator[tuple[str, int | None, Outcome]]:
    """Run trials in the processes of a pool; outcomes in order."""
    waiting = [
        pool.schedule(run_trial, args=[name, seed, corpus], timeout=TIMEOUT_S)
        for name, seed in trials
    ]
    for (name, seed), future in zip(trials, waiting, strict=True):
        try:
            yield name, seed, future.result()
        except TooLong:
            yield name, seed, Outcome(f"no end within {TIMEOUT_S} s", seconds=TIMEOUT_S)
        except ProcessExpired as death:
            yield name, seed, Outcome(f"the process died: {death}")

"""``kill -9`` in the middle of what a command writes, and the start after it."""

import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demr.annotations import read_annotations
from demr.machine import files

Cli = Callable[..., Any]

# Dies where what was written is made sure to be on the disk: all of it is there, none in place.
KILLED = """
import os, signal, sys
from demr.cli.main import main

left = int(sys.argv[1])
fsync = os.fsync

def count_down(handle):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(handle)

os.fsync = count_down
sys.argv = ["demr", *sys.argv[2:]]
main()
"""


def calibrate(run: Path, place: Path) -> list[object]:
    (place / "model").mkdir()
    for name in ("config.yaml", "config.json", "model.safetensors"):
        (place / "model" / name).write_bytes((run / name).read_bytes())
    (place / "model" / "calibration.json").write_text("the one before", encoding="utf-8")
    return ["calibrate", place / "model"]


def calibrate_a_copy(run: Path, world: Path, place: Path) -> list[object]:
    labels = ["--annotations", world / "val.jsonl", "--features", world / "features"]
    return ["calibrate", run, *labels, "--out", place / "copy"]


def import_features(world: Path, place: Path) -> list[object]:
    (place / "rows").mkdir()
    labels = world / "val.jsonl"
    for annotation in read_annotations(labels):
        rows = np.ones((math.ceil(annotation.duration_s), 8), np.float32)
        np.savez(place / "rows" / f"{annotation.vid}.npz", features=rows)
    stream = ["--stream", f"x={place / 'rows'}", "--clip-length", "1", "--encoder", "x@1"]
    return ["import", "features", *stream, "--annotations", labels, "--out", place / "pack"]


def export(run: Path, place: Path) -> list[object]:
    return ["export", run, "--format", "pt2", "--out", place / "model.pt2"]


def demo(place: Path) -> list[object]:
    for name in ("shapes.mp4", "answers.json", "report.html"):
        (place / name).write_text("of the demo before", encoding="utf-8")
    return ["demo", "--out", place]


def found(*places: Path) -> dict[Path, bytes]:
    """What lies in some folders, but for temporaries."""
    return {
        path: path.read_bytes()
        for place in places
        for path in place.rglob("*")
        if path.is_file() and ".demr-" not in str(path)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "fsync"),
    [
        (calibrate, 1),
        (calibrate_a_copy, 1),  # of the copy's calibration
        (calibrate_a_copy, 3),  # of the copy
        (import_features, 1),
        (import_features, 3),
        (export, 1),
        (demo, 1),
    ],
)
def test_what_was_there_stays_whole_and_the_next_start_sweeps(
    make: Callable[..., list[object]],
    fsync: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, temporary = tmp_path / "place", tmp_path / "temporary"
    place.mkdir()
    temporary.mkdir()
    names = make.__code__.co_varnames[: make.__code__.co_argcount]
    given = {name: request.getfixturevalue(name) for name in names if name != "place"}
    command = make(place=place, **given)
    before = found(place, *given.values())
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(fsync), *map(str, command)],
        check=False, capture_output=True, text=True, env=os.environ | {"TMPDIR": str(temporary)},
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert killed.stdout == ""
    assert found(place, *given.values()) == before
    assert list(place.rglob(".demr-*.tmp"))

    monkeypatch.setattr(files, "_swept", set())
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    done = cli(*command)
    assert done.code == 0, done.err
    assert not list(tmp_path.rglob(".demr-*"))
    after = found(place)
    assert before.keys() & after.keys() == {path for path in before if place in path.parents}
    assert after != {path: before.get(path) for path in after}

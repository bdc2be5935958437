"""Streams that are closed, full or read no further, and terminals that know little."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
DEMR = Path(sys.executable).with_name("demr")


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command.replace("demr", f"'{DEMR}'", 1)],
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("command", "code", "complaints"),
    [
        ("demr --help >&-", 0, 0),
        ("demr --help >/dev/full", 2, 1),
        ("demr --help | head -c 0; exit ${PIPESTATUS[0]}", 0, 0),
        ("demr --help <&- >&- 2>&-", 0, 0),
        ("demr search none.mp4 'a dog' 2>&-", 2, 0),
        ("demr search none.mp4 'a dog' 2>/dev/full", 2, 0),
        ("demr search none.mp4 'a dog' 2>&1 | head -c 0; exit ${PIPESTATUS[0]}", 2, 0),
        ("demr search none.mp4 --queries - <&-", 2, 1),
        ("demr search none.mp4 --queries - </dev/null", 2, 1),
        ("demr search none.mp4 --queries - </dev/zero", 2, 1),
        ("demr search none.mp4 --queries /dev/zero", 2, 1),
        ("printf 'W\\374rfel' | demr search none.mp4 --queries -", 2, 1),
    ],
)
def test_streams_that_fail_are_quiet_or_one_line(command: str, code: int, complaints: int) -> None:
    done = shell(command)
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == complaints
    assert all(line.startswith("demr: ") and len(line) < 500 for line in lines)


def test_work_goes_on_when_the_reader_has_gone(run: Path, world: Path, tmp_path: Path) -> None:
    clip = next((world / "videos").glob("iid*.mp4"))
    arguments = f"'{clip}' 'a red circle' --model '{run}' --device cpu --save-clips '{tmp_path}/c'"
    done = shell(f"demr search {arguments} | head -c 0; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r"])
def test_what_an_encoding_lacks_is_replaced_in_complaints(encoding: str) -> None:
    done = subprocess.run(
        [str(DEMR), "search", f"{'猫🦒' * 100}.mp4", "a dog"],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        check=False,
        capture_output=True,
    )
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.count(b"\n") == 1
    assert len(done.stderr) < 500


@pytest.mark.parametrize(
    "arguments",
    [
        ["search", "x" * 5000 + ".mp4", "a dog"],
        ["search", "none.mp4", "word " * 20_000],
        ["search", "none.mp4", "w" * 60_000 + " w" * 80],
        ["search", "none.mp4", "a dog", "--top", "m" * 5000],
        ["search", "none.mp4", "--queries", "q" * 5000],
        ["y" * 5000],
        ["search", "--" + "y" * 5000],
        ["search", "\x1b" * 4000 + ".mp4", "a dog"],
    ],
    ids=lambda words: words[-1][:8],
)
def test_complaints_are_short(arguments: list[str], cli: Cli) -> None:
    line = cli(*arguments).one_line()
    assert len(line) < 500
    assert "\x1b" not in line
    assert "…" in line or len(line) < 300

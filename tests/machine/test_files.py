import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from demr.machine import files
from demr.machine.files import atomic_folder, atomic_path, sweep, temporary_folder


@pytest.fixture
def _first_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process, which has swept nothing yet."""
    monkeypatch.setattr(files, "_swept", set())


@pytest.fixture(params=[0o022, 0o077, 0o002, 0o027])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_atomic_path(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.json"
    with atomic_path(target) as path:
        path.write_text("old")
    assert target.read_text() == "old"

    def fail() -> None:
        with atomic_path(target) as path:
            path.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]


def test_who_may_read_is_for_the_umask_to_say(tmp_path: Path, umask: int) -> None:
    with atomic_path(tmp_path / "a.txt") as path:
        path.write_text("x")
    # safetensors puts a file of its own in place, which only its owner can read.
    with atomic_path(tmp_path / "a.safetensors") as path:
        save_file({"a": np.zeros(2)}, path)
    with atomic_folder(tmp_path / "folder") as folder:
        save_file({"a": np.zeros(2)}, folder / "b.safetensors")
        (folder / "c.txt").write_text("x")
    found = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    assert found.pop("folder") == 0o777 & ~umask
    assert set(found.values()) == {0o666 & ~umask}
    assert len(found) == 4


KILLED = """
import os, signal, sys
from pathlib import Path
from demr.machine.files import atomic_folder, atomic_path

with atomic_path(Path(sys.argv[1]) / "a") as a, atomic_folder(Path(sys.argv[1]) / "b") as b:
    a.write_text("half")
    (b / "c").write_text("half")
    print("writing", flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.readline()
"""


def start(folder: Path, how: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.mark.usefixtures("_first_start")
def test_what_a_kill_leaves_goes_at_the_next_start_and_what_lives_stays(tmp_path: Path) -> None:
    with start(tmp_path, "die") as dead:
        pass
    assert dead.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".demr-*.tmp"))) == 2
    with start(tmp_path, "live") as living:
        # It swept at its own start.
        assert len(list(tmp_path.iterdir())) == 2
        with atomic_path(tmp_path / "d") as path:
            path.write_text("whole")
        sweep(tmp_path)
        assert len(list(tmp_path.glob(".demr-*.tmp"))) == 2
        living.communicate("\n")
    assert living.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "d"]
    assert (tmp_path / "a").read_text() == "half"


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / ".demr-notes").mkdir()
    (tmp_path / ".demr-1.tmp").write_text("a file")
    (tmp_path / "there").mkdir()
    (tmp_path / ".demr-2.tmp").symlink_to(tmp_path / "there")
    (tmp_path / ".demr-3.tmp").mkdir()
    (tmp_path / ".demr-3.tmp" / ".demr-lock").symlink_to(tmp_path / "elsewhere")
    with temporary_folder(tmp_path):
        sweep(tmp_path)
        assert len(list(tmp_path.glob(".demr-*.tmp"))) == 4
    names = {".demr-notes", ".demr-1.tmp", ".demr-2.tmp", ".demr-3.tmp", "there"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_folder_of_a_process_that_had_not_begun_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".demr-0.tmp").mkdir()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from demr.errors import ConfigError
from demr.machine.files import locked

BUSY = ConfigError("x", expected="one at a time", got="another", remedy="wait")
HOLDER = """
import sys, time
from pathlib import Path
from demr.machine.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(path: Path) -> "subprocess.Popen[str]":
    """Another process that holds a lock."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_one_at_a_time_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, busy=BUSY):
        with pytest.raises(ConfigError, match="one at a time"), locked(path, busy=BUSY):
            pass
        assert path.exists()
    assert list(tmp_path.iterdir()) == []
    with locked(path, busy=BUSY):
        path.unlink()
        path.write_text("another's by now")
    assert path.exists()


def test_a_dead_process_bars_nobody(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold(path) as process:
        with pytest.raises(ConfigError), locked(path, busy=BUSY):
            pass
        process.kill()
    assert path.exists()
    with locked(path, busy=BUSY):
        pass
    assert not path.exists()


def test_who_waits_gets_it_next(tmp_path: Path) -> None:
    path, waits, got = tmp_path / "lock", threading.Event(), threading.Event()

    def wait() -> None:
        with locked(path, waiting=waits.set):
            got.set()

    thread = threading.Thread(target=wait)
    with locked(path, busy=BUSY):
        thread.start()
        assert waits.wait(10)
        assert not got.is_set()
    thread.join(10)
    assert got.is_set()
    assert not path.exists()

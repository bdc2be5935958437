import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# A parent with a child that would live for a minute, in each of the ways in which demr starts one.
TIED = """
import sys, time
from pathlib import Path
from demr.machine import processes

sys.executable = sys.argv[1]
with open(sys.argv[2], "wb") as output, processes.tied_process([], output, {}) as child:
    print(child.pid, flush=True)
    time.sleep(60)
"""
CHILD = """#!{python}
import time
from demr.machine.processes import end_with_parent
end_with_parent()
time.sleep(60)
"""
POOL = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from demr.machine.processes import end_with_parent

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
"""


def tied(tmp_path: Path) -> list[str]:
    child = tmp_path / "child"
    child.write_text(CHILD.format(python=sys.executable))
    child.chmod(0o755)
    return ["-c", TIED, str(child), str(tmp_path / "log")]


def pool(tmp_path: Path) -> list[str]:
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    return [str(script)]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("make", [tied, pool])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_child_ends_with_its_parent(
    tmp_path: Path, make: Callable[[Path], list[str]], number: signal.Signals
) -> None:
    command = [sys.executable, *make(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(0.5)
        assert is_alive(child)
        os.kill(parent.pid, number)
    deadline = time.monotonic() + 30
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child)


@pytest.mark.parametrize("value", ["", "x", "-1", "0", "2", "77", "9" * 30])
def test_without_a_parent_nothing_is_waited_for(value: str) -> None:
    script = "import time; from demr.machine.processes import end_with_parent as tie; tie()"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}; time.sleep(0.3); print('alive')"],
        check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        env=os.environ | {"DEMR_LIFELINE": value},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")

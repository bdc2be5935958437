"""A decoder that does not come back."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.video.numbered_videos import every, make_video

from demr.video.watchdog import TIMED_OUT

HANGS = """
import os, sys, time
from pathlib import Path
from demr.video import watchdog
from demr.video.source import Source

def give_up(error):
    print(error, flush=True)
    os._exit(2)

def wait(self):
    while True:
        {stuck}
    yield

Source._frames = wait
with watchdog.decoder_watchdog(0.5, {how}):
    next(Source(sys.argv[1]).frames())
"""


def run(path: Path, stuck: str, how: str) -> subprocess.CompletedProcess[str]:
    code = HANGS.format(stuck=stuck, how=how)
    return subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )


def test_a_decoder_that_hangs_is_given_up_with_a_line(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", every(10, 5))
    ended = run(path, "time.sleep(1)", "give_up")
    assert ended.returncode == 2
    assert "got no frame out of it for 0.5 s" in ended.stdout


@pytest.mark.parametrize("stuck", ["time.sleep(1)", "pass"])
def test_without_one_to_tell_the_alarm_ends_it(tmp_path: Path, stuck: str) -> None:
    path = make_video(tmp_path / "v.mp4", every(10, 5))
    assert run(path, stuck, "None").returncode == -TIMED_OUT


def test_a_step_of_many_packets_is_no_hang(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", every(10, 5))
    busy = "time.sleep(0.1); watchdog.decoder_gets_on()"
    code = HANGS.format(stuck=busy, how="give_up").replace("while True", "for _ in range(15)")
    ended = subprocess.run(
        [sys.executable, "-c", code.replace("    yield\n", "    yield 0\n"), str(path)],
        capture_output=True,
        check=False,
    )
    assert ended.returncode == 0

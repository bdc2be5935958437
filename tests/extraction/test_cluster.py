"""demr extract --ray, on a real cluster of this machine."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.extraction.extraction_plans import name_plan, named

from demr.encoders import get_encoder
from demr.errors import ModelError
from demr.extraction.job import extract, parts_folder
from demr.extraction.parts import ExtractionPlan, read_part
from demr.extraction.videos import VideoFile, find_videos
from demr.extraction.workers import run_workers

pytest.importorskip("ray")
Cli = Callable[..., Any]


def processes(title: str) -> list[int]:
    """Workers of this process's own cluster that are at something of this name."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or title.encode() not in (entry / "cmdline").read_bytes():
                continue
            if os.getpid() in ancestors(int(entry.name)):
                found.append(int(entry.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


def ancestors(process: int) -> list[int]:
    """Who started a process, and who started them."""
    found = []
    while process > 1:
        # Behind the name, which may hold anything, stand the state and the parent.
        stat = Path(f"/proc/{process}/stat").read_text(errors="replace")
        process = int(stat.rpartition(")")[2].split()[1])
        found.append(process)
    return found


def untold(_video: VideoFile, _share: float, _skipped: str) -> None:
    pass


@pytest.mark.slow
def test_a_cluster_makes_the_same_pack_though_workers_are_killed(
    film: Path, clip_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from demr.extraction.cluster import run_on_ray

    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(12):
        shutil.copyfile(film, folder / f"film{number:02d}.mp4")
    (folder / "film04.mp4").write_text("not a video")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spec = f"clip:{clip_models['clip']}"
    encoder, found = get_encoder(spec, device="cpu"), find_videos([folder])
    here, there = tmp_path / "here", tmp_path / "there"
    plan = ExtractionPlan(spec, "cpu", encoder.identity.to_dict(), parts_folder(here))
    alone = extract(found, encoder, plan, here, run_workers, untold)
    assert (alone.videos, len(alone.skipped)) == (11, 1)

    killed: list[int] = []

    def kill(_video: VideoFile, _share: float, _skipped: str) -> None:
        if not killed:
            killed.extend(processes("ray::_Worker"))
            for process in killed:
                os.kill(process, signal.SIGKILL)

    plan = replace(plan, parts=parts_folder(there))
    run = partial(run_on_ray, address="local", workers=2)
    extract(found, encoder, plan, there, run, kill)
    assert killed
    names = sorted(file.name for file in here.iterdir())
    assert names == sorted(file.name for file in there.iterdir())
    for name in names:
        assert (here / name).read_bytes() == (there / name).read_bytes()


@pytest.mark.slow
def test_a_file_that_kills_workers_of_a_cluster_is_left_to_processes_here(tmp_path: Path) -> None:
    from demr.extraction.cluster import run_on_ray

    videos = named(tmp_path, "a", "killer", "hang", "bad", "b", "c")
    run_on_ray(videos, name_plan(tmp_path, timeout_s=0.1), untold, workers=2)
    errors = {video.vid: read_part(tmp_path, video).error for video in videos}
    assert [errors[vid] for vid in "abc"] == ["", "", ""]
    assert errors["killer"] == "the process that read it was killed by signal 9"
    assert errors["hang"] == "the process that read it got no frame out of it for 0.1 s"
    assert "expected a video" in errors["bad"]
    with pytest.raises(ModelError, match="weights: expected all, got some; get the rest"):
        run_on_ray(named(tmp_path, "weights"), name_plan(tmp_path), untold)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "here:there"])
def test_no_cluster_there(cli: Cli, film: Path, tmp_path: Path, address: str) -> None:
    line = cli(
        *("extract", film, "--encoder", "builtin", "--out", tmp_path / "pack", "--ray", address),
    ).one_line()
    assert f"--ray {address}: expected the address of a running cluster" in line
    assert not (tmp_path / "pack").exists()


def test_an_interrupt_waits_until_a_cluster_has_started() -> None:
    from demr.machine.processes import late_interrupts

    started = []

    def start() -> None:
        with late_interrupts():
            signal.raise_signal(signal.SIGINT)
            started.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        start()
    assert started
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

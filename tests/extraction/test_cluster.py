"""demr extract --ray, on a real cluster of this machine."""

import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.extraction.extraction_jobs import name_job, unit_of

import demr.extraction.videos
from demr.encoders import get_encoder
from demr.encoders.frames import Closed, Opened, Rows
from demr.extraction.job import extract, parts_folder
from demr.extraction.units import Done, Job, has_part, read_part
from demr.extraction.videos import Unit, find_videos
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


def untold(_unit: Unit, _share: float, _done: Done | None) -> None:
    pass


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "builtin"])
def test_a_cluster_makes_the_same_pack_though_workers_are_killed(
    kind: str,
    film: Path,
    clip_models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from demr.extraction.cluster import run_on_ray

    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(16):
        shutil.copyfile(film, folder / f"film{number:02d}.mp4")
    (folder / "film04.mp4").write_text("not a video")
    monkeypatch.setattr(demr.extraction.videos, "_UNIT_FILES", 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spec = f"clip:{clip_models['clip']}" if kind == "clip" else "builtin"
    encoder, found = get_encoder(spec, device="cpu"), find_videos([folder])
    here, there = tmp_path / "here", tmp_path / "there"
    job = Job(spec, "cpu", encoder.identity.to_dict(), parts_folder(here))
    alone = extract(found, encoder, job, here, run_workers, untold)
    assert (alone.videos, len(alone.skipped)) == (15, 1)

    killed: list[int] = []

    def kill(_unit: Unit, _share: float, _done: Done | None) -> None:
        if not killed:
            # One that decodes or encodes, and one actor if the encoder has any.
            for title in ("ray::MapBatches", "ray::MapWorker"):
                killed.extend(processes(title)[:1])
            for process in killed:
                os.kill(process, signal.SIGKILL)

    job = Job(spec, "cpu", encoder.identity.to_dict(), parts_folder(there))
    run = partial(run_on_ray, address="local", workers=2)
    extract(found, encoder, job, there, run, kill)
    assert killed
    names = sorted(file.name for file in here.iterdir())
    assert names == sorted(file.name for file in there.iterdir())
    for name in names:
        assert (here / name).read_bytes() == (there / name).read_bytes()


@pytest.mark.parametrize("order", [(0, 0, 1, 2, 3, 4, 5, 5), (5, 4, 3, 2, 2, 1, 0, 0)])
def test_parts_that_come_twice_or_in_another_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    from demr.extraction.cluster import _End, _Made, _Sink

    def rows(place: int) -> _Made:
        value = np.full((1, 2), place + 7, np.float32)
        return _Made((Rows(0, np.array([0]), np.array([place]), value),), "float16")

    unit = unit_of(tmp_path, "a", "b")
    parts = [Opened(0, 2.0, 2), rows(0), Closed(0), Closed(1, "broken"), rows(1), _End(5)]
    told: list[Done | None] = []
    sink = _Sink([unit], name_job(tmp_path), lambda _, __, done: told.append(done))
    # Short of one, it is not whole: neither twice the same nor the end makes up for it.
    for number in order[:-2]:
        sink.take(unit.key, number, parts[number])
        assert not has_part(tmp_path, unit)
    for number in order[-2:]:
        sink.take(unit.key, number, parts[number])
    first, second = read_part(tmp_path, unit)
    np.testing.assert_array_equal(first.features, [[7, 7], [8, 8]])
    assert (first.dtype, second.error) == ("float16", "broken")
    assert [done.key for done in told if done] == [unit.key]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379", "here:there", "auto"])
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

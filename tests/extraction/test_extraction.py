"""demr extract: packs from folders of videos, whatever happens on the way."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.progress import Progress
from tests.extraction.extraction_jobs import IDENTITY, NameEncoder, name_job, touched, unit_of

import demr.extraction.videos
from demr.encoders import EncoderIdentity, get_encoder
from demr.errors import DemrError, FeatureError, InputError, ModelError, VideoError
from demr.extraction.job import REPORT, extract, parts_folder
from demr.extraction.progress import _Teller
from demr.extraction.units import Done, encode_unit, has_part, read_part, write_part
from demr.extraction.videos import Unit, VideoFile, find_videos
from demr.extraction.workers import run_workers
from demr.features.pack import FeaturePack

Cli = Callable[..., Any]


def untold(unit: Unit, share: float, done: Done | None) -> None:
    pass


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, film: Path) -> Path:
    """Forty copies of a short film, more than a unit, and three files that are no videos."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(40):
        shutil.copyfile(film, root / f"film{number:02d}.mp4")
    (root / "film05.mp4").write_bytes(b"")
    (root / "film35.mp4").write_text("not a video")
    (root / "film38.mp4").write_bytes(film.read_bytes()[: film.stat().st_size // 3])
    return root


@pytest.fixture(scope="module")
def pack(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, clip_models: dict[str, Path]
) -> Path:
    """The pack of that folder, made undisturbed."""
    out = tmp_path_factory.mktemp("packs") / "whole"
    assert command(folder, clip_models["clip"], out).wait() == 1
    return out


def command(folder: Path, model: Path, out: Path, *options: str) -> "subprocess.Popen[str]":
    """Begin an extraction in a process of its own."""
    line = [sys.executable, "-m", "demr", "extract", str(folder), "--encoder", f"clip:{model}"]
    return subprocess.Popen(
        [*line, "--out", str(out), "--device", "cpu", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_a_folder_becomes_a_pack(pack: Path, folder: Path, clip_models: dict[str, Path]) -> None:
    encoder = get_encoder(f"clip:{clip_models['clip']}", device="cpu")
    made = FeaturePack(pack)
    assert made.identity == encoder.identity
    assert made.vids == tuple(f"film{n:02d}" for n in range(40) if n not in (5, 35))
    alone = encoder.encode_video(folder / "film07.mp4")
    assert (made["film07"].duration_s, made["film07"].clip_s) == (alone.duration_s, 2.0)
    np.testing.assert_allclose(
        made["film07"].features.astype(np.float32), alone.features, rtol=2e-3, atol=1e-3
    )
    report = json.loads((pack / REPORT).read_text())
    # Of the one that was cut off, what there is.
    assert (report["videos"], report["clips"]) == (38, 37 * 5 + 1)
    assert made["film38"].features.shape == (1, 24)
    assert EncoderIdentity.from_dict(report["encoder"]) == encoder.identity
    (damage,) = report["damaged"]
    assert damage["path"] == str(folder / "film38.mp4")
    assert "of 9.00 s" in damage["damage"]
    skipped = {Path(entry["path"]).name: entry["reason"] for entry in report["skipped"]}
    assert sorted(skipped) == ["film05.mp4", "film35.mp4"]
    assert "an empty file" in skipped["film05.mp4"]
    assert sorted(path.name for path in pack.parent.iterdir()) == ["whole"]


def test_what_the_command_says(
    cli: Cli, folder: Path, clip_models: dict[str, Path], tmp_path: Path
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for name in ("film00.mp4", "film05.mp4"):
        shutil.copyfile(folder / name, few / name)
    line = ("extract", few, "--encoder", f"clip:{clip_models['clip']}", "--out", tmp_path / "pack")
    done = cli(*line)
    assert done.code == 1
    first, second, third = done.out.splitlines()
    assert first.startswith(f"{tmp_path / 'pack'}: 1 video, 5 clips of 2 s, clip@1:")
    assert second == "skipped: 1 file"
    assert third == f"which, and why: {tmp_path / 'pack' / REPORT}"
    assert done.err.count("demr: skipped") == 1
    assert "film05.mp4: expected a readable video" in done.err
    before = contents(tmp_path / "pack")
    # The same again is done at once, and says the same.
    again = cli(*line)
    assert (again.code, again.out.splitlines()[1:]) == (1, [second, third])
    assert "was there already" in again.out
    assert contents(tmp_path / "pack") == before
    # Other videos, or another encoder, under the same name: refused, and nothing is lost.
    shutil.copyfile(folder / "film00.mp4", few / "more.mp4")
    assert "a pack of other files than the 3 asked for" in cli(*line).one_line()
    (few / "more.mp4").unlink()
    # So is the pack of a broken file once the file is mended.
    shutil.copyfile(folder / "film00.mp4", few / "film05.mp4")
    assert "a pack of other files than the 2 asked for" in cli(*line).one_line()
    (few / "film05.mp4").write_bytes(b"")
    other = cli(*line[:3], "builtin", *line[4:]).one_line()
    assert re.search(r"new folder .* got a pack by clip@1:.*, where builtin@1 .* asked for", other)
    assert contents(tmp_path / "pack") == before
    (few / "film05.mp4").unlink()
    done = cli(*line[:-1], tmp_path / "good")
    assert (done.code, done.out.count("\n")) == (0, 1)


def test_odd_names_make_one_line_each(
    cli: Cli, folder: Path, clip_models: dict[str, Path], tmp_path: Path
) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    shutil.copyfile(folder / "film00.mp4", odd / "good.mp4")
    shutil.copyfile(folder / "film00.mp4", odd / os.fsdecode(b"\xff.mp4"))
    for name in ("new\nline.mp4", "\x1b[31mred.mp4", os.fsdecode(b"\xfe.mp4")):
        (odd / name).write_text("not a video")
    # Through a folder that is not there yet, and back.
    out = tmp_path / "new" / ".." / "pack"
    done = cli("extract", odd, "--encoder", f"clip:{clip_models['clip']}", "--out", out)
    assert done.code == 1
    lines = sorted(line for line in done.err.splitlines() if line.startswith("demr: skipped"))
    for line, name in zip(lines, ("?.mp4", "?[31mred.mp4", "new line.mp4"), strict=True):
        assert line.startswith(f"demr: skipped {odd}/{name}: expected a readable video")
    made = FeaturePack(tmp_path / "pack")
    assert made.vids == (r"\xff", "good")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd", "pack"]


def test_the_bar_counts_each_video_once(tmp_path: Path) -> None:
    bar = Progress(disable=True)
    unit, other = unit_of(tmp_path, "a", "b"), unit_of(tmp_path, "c")
    tell = _Teller(bar, "names", [10, 10, 10])
    (task,) = bar.tasks
    seen = []
    whole = Done(unit.key, ())
    # Half done when its worker dies, tried one by one, then put together.
    for of, share, done in (
        *((unit, 0.5, None), (unit, 0.0, None), (unit_of(tmp_path, "a"), 1.0, whole)),
        *((unit_of(tmp_path, "b"), 1.0, whole), (unit, 1.0, whole), (other, 0.25, None)),
    ):
        tell(of, share, done)
        seen.append((task.completed, task.fields["videos"]))
    assert seen == [
        *((10, "0/3"), (0, "0/3"), (10, "1/3")),
        *((20, "2/3"), (20, "2/3"), (22.5, "2/3")),
    ]


@pytest.mark.parametrize("killed", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_extraction_goes_on_to_the_same_bytes(
    pack: Path, folder: Path, clip_models: dict[str, Path], tmp_path: Path, killed: signal.Signals
) -> None:
    out = tmp_path / "pack"
    begun = command(folder, clip_models["clip"], out)
    while begun.poll() is None and not list(parts_folder(out).glob("unit-*")):
        time.sleep(0.005)
    begun.send_signal(killed)
    begun.wait()
    assert begun.returncode in (-killed, 130)
    assert not out.exists()
    assert list(parts_folder(out).glob("unit-*"))
    on = command(folder, clip_models["clip"], out, "--workers", "2")
    text, complaint = on.communicate()
    assert on.returncode == 1, complaint
    assert "38 videos" in text
    assert contents(out) == contents(pack)
    assert not parts_folder(out).exists()


def test_a_killed_worker_is_replaced(
    pack: Path,
    folder: Path,
    clip_models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import multiprocessing

    out = tmp_path / "pack"
    spec = f"clip:{clip_models['clip']}"
    encoder = get_encoder(spec, device="cpu")
    from demr.extraction.units import Job

    job = Job(spec, "cpu", encoder.identity.to_dict(), parts_folder(out))
    killed: list[int] = []

    def kill(_unit: Unit, _share: float, _done: Done | None) -> None:
        if not killed:
            for process in multiprocessing.active_children():
                killed.append(process.pid or 0)
                os.kill(killed[-1], signal.SIGKILL)

    def run(units: Any, job: Job, tell: Any) -> None:
        run_workers(units, job, tell, workers=2)

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    extract(find_videos([folder]), encoder, job, out, run, kill)
    assert len(killed) == 2
    assert contents(out) == contents(pack)


# What workers make of files that kill them, told by a stand-in for an encoder.


def finished(units: list[Unit], parts: Path) -> dict[str, str]:
    """Vid -> error of all that was done."""
    return {made.vid: made.error for unit in units for made in read_part(parts, unit)}


def test_the_file_that_kills_its_worker_is_skipped(tmp_path: Path) -> None:
    units = [unit_of(tmp_path, "a", "killer", "b"), unit_of(tmp_path, "c", "bad", "nan", "huge")]
    told: list[tuple[str, str]] = []

    def tell(_unit: Unit, _share: float, done: Done | None) -> None:
        told.extend(done.skipped if done else ())

    run_workers(units, name_job(tmp_path), tell, workers=2)
    errors = finished(units, tmp_path)
    assert list(errors) == ["a", "killer", "b", "c", "bad", "nan", "huge"]
    assert [errors[vid] for vid in "abc"] == ["", "", ""]
    assert errors["killer"] == "the process that read it was killed by signal 9"
    assert "expected a video, got none" in errors["bad"]
    assert "NaN or infinity in row 0" in errors["nan"]
    assert "within 65504" in errors["huge"]
    (made, *_) = read_part(tmp_path, units[0])
    np.testing.assert_array_equal(made.features, [[1, 1]])
    assert {path for path, _ in told} == {
        str(tmp_path / f"{name}.mp4") for name in ("killer", "bad", "nan", "huge")
    }


def test_a_worker_that_dies_once_costs_nothing(tmp_path: Path) -> None:
    unit = unit_of(tmp_path, "a", "once", "bug")
    run_workers([unit], name_job(tmp_path), untold)
    errors = finished([unit], tmp_path)
    assert errors["a"] == errors["once"] == ""
    assert errors["bug"] == "the process that read it failed: RuntimeError: no kernel for this"


ORPHANED = """
import sys
from pathlib import Path
from tests.extraction import test_extraction as t

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    t.run_workers([t.unit_of(folder, "slow")], t.name_job(folder), t.untold)
"""


def test_a_worker_ends_when_the_command_is_killed(tmp_path: Path) -> None:
    script, pid = tmp_path / "begin.py", tmp_path / "pid"
    script.write_text(ORPHANED)
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(script), str(tmp_path)]
    begun = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths})
    while begun.poll() is None and not (pid.exists() and pid.read_text().endswith("\n")):
        time.sleep(0.01)
    begun.kill()
    begun.wait()
    worker = Path("/proc") / pid.read_text().strip() / "cmdline"
    for _ in range(500):
        # Of one that has ended and was not waited for, nothing is to be read.
        if not worker.exists() or not worker.read_bytes():
            break
        time.sleep(0.01)
    else:
        pytest.fail("the worker goes on")


def test_damaged_weights_end_it(tmp_path: Path) -> None:
    units = [unit_of(tmp_path, "a"), unit_of(tmp_path, "weights")]
    with pytest.raises(ModelError, match="weights: expected all, got some; get the rest"):
        run_workers(units, name_job(tmp_path), untold)
    assert has_part(tmp_path, units[0])
    assert not has_part(tmp_path, units[1])


def test_a_full_accelerator_is_no_fault_of_a_file(tmp_path: Path) -> None:
    unit = unit_of(tmp_path, "gpu")
    with pytest.raises(
        ModelError, match=r"--device cpu: .* CUDA out of memory; .* fewer --workers"
    ):
        run_workers([unit], name_job(tmp_path), untold)
    assert not has_part(tmp_path, unit)


def test_damaged_weights_bar_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demr.extraction.videos, "_UNIT_FILES", 1)
    out = tmp_path / "pack"
    job = name_job(parts_folder(out))
    with pytest.raises(ModelError):
        extract(named(tmp_path, "weights"), NameEncoder(), job, out, run_workers, untold)
    assert not parts_folder(out).exists()
    # What is finished is kept, though.
    with pytest.raises(ModelError):
        extract(named(tmp_path, "a", "weights"), NameEncoder(), job, out, run_workers, untold)
    assert len(list(parts_folder(out).glob("unit-*"))) == 1


def test_parts_hold_what_was_made(tmp_path: Path) -> None:
    unit = unit_of(tmp_path, "a", "bad", "longer")
    outcomes = encode_unit(NameEncoder(), unit, lambda _: None)
    done = write_part(tmp_path, unit, outcomes)
    assert [path for path, _ in done.skipped] == [str(tmp_path / "bad.mp4")]
    for made, read in zip(outcomes, read_part(tmp_path, unit), strict=True):
        assert (made.vid, made.duration_s, made.error) == (read.vid, read.duration_s, read.error)
        np.testing.assert_array_equal(made.features, read.features)
    assert not has_part(tmp_path, touched(unit))
    (path,) = tmp_path.glob("unit-*")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FeatureError, match="remove this file and run the same command again"):
        read_part(tmp_path, unit)


def in_process(units: Any, job: Any, tell: Any) -> None:
    for unit in units:
        made = encode_unit(NameEncoder(), unit, lambda _: None)
        tell(unit, 1.0, write_part(job.parts, unit, made))


def named(folder: Path, *names: str) -> demr.extraction.videos.Found:
    return demr.extraction.videos.Found(unit_of(folder, *names).videos)


def test_no_video_at_all(tmp_path: Path) -> None:
    out = tmp_path / "pack"
    with pytest.raises(VideoError, match=r"2 videos: expected at least one .* such as .*bad1.mp4"):
        extract(
            named(tmp_path, "bad1", "bad2"),
            NameEncoder(),
            name_job(parts_folder(out)),
            out,
            in_process,
            untold,
        )
    assert list(tmp_path.iterdir()) == []


def test_one_extraction_at_a_time_and_one_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "pack"
    job = name_job(parts_folder(out))
    parts_folder(out).mkdir()
    with (parts_folder(out) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FeatureError, match="another that is at work there"):
            extract(named(tmp_path, "a"), NameEncoder(), job, out, in_process, untold)
    with monkeypatch.context() as patch:
        # The other has just finished, and removed what is locked here.
        patch.setattr(fcntl, "flock", lambda lock, _: Path(lock.name).unlink())
        with pytest.raises(FeatureError, match="another that is at work there"):
            extract(named(tmp_path, "a"), NameEncoder(), job, out, in_process, untold)

        def cannot(_lock: object, _how: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        patch.setattr(fcntl, "flock", cannot)
        with pytest.raises(FeatureError, match="No locks available"):
            extract(named(tmp_path, "a"), NameEncoder(), job, out, in_process, untold)
    other = IDENTITY.to_dict() | {"version": "2"}
    plan = {"version": 1, "encoder": other}
    (parts_folder(out) / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(FeatureError, match=r"names@1 .*names@2 .*choose another --out"):
        extract(named(tmp_path, "a"), NameEncoder(), job, out, in_process, untold)
    (parts_folder(out) / "plan.json").write_text("{")
    with pytest.raises(FeatureError, match=r"plan of an extraction"):
        extract(named(tmp_path, "a"), NameEncoder(), job, out, in_process, untold)


@pytest.mark.parametrize("fails_at", range(7))
def test_a_full_disk_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    monkeypatch.setattr(demr.extraction.videos, "_UNIT_FILES", 1)
    out = tmp_path / "pack"
    job, found = name_job(parts_folder(out)), named(tmp_path, "a", "bb", "ccc")
    written, sync = 0, os.fsync

    def full(handle: int) -> None:
        nonlocal written
        written += 1
        if written > fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    # The plan, three units, and three files of the pack.
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DemrError, match="free disk space"):
        extract(found, NameEncoder(), job, out, in_process, untold)
    # The folder of parts: there with the first write, and not left behind without a unit in it.
    assert list(tmp_path.iterdir()) == ([] if fails_at == 1 else [parts_folder(out)])
    assert len(list(parts_folder(out).glob("unit-*"))) == min(max(fails_at - 1, 0), 3)
    monkeypatch.setattr(os, "fsync", sync)
    done: list[float] = []
    extract(found, NameEncoder(), job, out, in_process, lambda _, share, __: done.append(share))
    assert done == [1.0] * 3
    assert FeaturePack(out).vids == ("a", "bb", "ccc")


def test_the_pack_is_on_the_disk_before_the_parts_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "pack"
    synced: list[int] = []

    def note(handle: int) -> None:
        assert parts_folder(out).exists()
        synced.append(os.fstat(handle).st_ino)

    monkeypatch.setattr(os, "fsync", note)
    extract(
        named(tmp_path, "a"),
        NameEncoder(),
        name_job(parts_folder(out)),
        out,
        in_process,
        untold,
    )
    made = {path.stat().st_ino for path in (*out.iterdir(), out, tmp_path)}
    assert len(made) == 5
    assert made <= set(synced)


def test_what_others_keep_in_the_folder_stays_and_half_written_files_go(tmp_path: Path) -> None:
    out = tmp_path / "pack"
    parts = parts_folder(out)
    (parts / ".pack.abc").mkdir(parents=True)
    for name in (".pack.abc/video-00000.safetensors", ".unit-0.abc", ".plan.json.abc"):
        (parts / name).write_text("half")
    (parts / "notes.txt").write_text("mine")
    seen: list[set[str]] = []

    def run(units: Any, job: Any, tell: Any) -> None:
        seen.append({path.name for path in parts.iterdir()})
        in_process(units, job, tell)

    extract(named(tmp_path, "a"), NameEncoder(), name_job(parts), out, run, untold)
    assert seen == [{"lock", "plan.json", "notes.txt"}]
    assert [path.name for path in parts.iterdir()] == ["notes.txt"]
    # Of a run that was killed while it removed its parts, the next one removes the rest.
    (parts / "notes.txt").unlink()
    (parts / "unit-0.safetensors").write_text("x")
    again = extract(named(tmp_path, "a"), NameEncoder(), name_job(parts), out, run, untold)
    assert again.was_there
    assert list(tmp_path.iterdir()) == [out]


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.extraction import test_extraction as t

out, sync, written = Path(sys.argv[1]), os.fsync, 0

def kill(handle):
    global written
    written += 1
    # The plan, the unit, and a first file of the pack have been written.
    if written == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(handle)

os.fsync = kill
job = t.name_job(t.parts_folder(out))
t.extract(t.named(out.parent, "a"), t.NameEncoder(), job, out, t.in_process, t.untold)
"""


def test_killed_while_the_pack_is_written(tmp_path: Path) -> None:
    out = tmp_path / "pack"
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out)], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == [parts_folder(out)]
    assert len(list(parts_folder(out).glob(".pack.*"))) == 1
    found, job = named(tmp_path, "a"), name_job(parts_folder(out))
    extract(found, NameEncoder(), job, out, in_process, untold)
    assert list(tmp_path.iterdir()) == [out]
    assert FeaturePack(out).vids == ("a",)


def test_a_pack_says_all_that_its_features_were_computed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An accelerator began it and a CPU went on."""
    monkeypatch.setattr(demr.extraction.videos, "_UNIT_FILES", 1)
    weighty = replace(IDENTITY, model="owner/model", digest="0")
    monkeypatch.setattr(NameEncoder, "identity", weighty)
    out = tmp_path / "pack"

    def run(units: Any, job: Any, tell: Any) -> None:
        for unit, dtype in zip(units, ("float16", "float32", "float16"), strict=True):
            made = encode_unit(NameEncoder(), unit, lambda _: None)
            outcomes = [replace(outcome, dtype=dtype) for outcome in made]
            tell(unit, 1.0, write_part(job.parts, unit, outcomes))

    found = named(tmp_path, "a", "bb", "ccc")
    extract(found, NameEncoder(), name_job(parts_folder(out)), out, run, untold)
    assert FeaturePack(out).identity.dtype == "float16+float32"
    assert FeaturePack(out).identity == weighty
    report = json.loads((out / REPORT).read_text())
    assert report["encoder"]["dtype"] == "float16+float32"


def test_files_that_changed_are_read_again(tmp_path: Path) -> None:
    out = tmp_path / "pack"
    parts, unit = parts_folder(out), unit_of(tmp_path, "a")
    parts.mkdir()
    run_workers([unit], name_job(parts), untold)
    video = VideoFile("a", tmp_path / "a.mp4", 10, 1)
    found, asked = demr.extraction.videos.Found((video,)), []

    def run(units: Any, job: Any, tell: Any) -> None:
        asked.extend(units)
        in_process(units, job, tell)

    extract(found, NameEncoder(), name_job(parts), out, run, untold)
    assert [made.videos for made in asked] == [(video,)]


def test_bad_options(cli: Cli, folder: Path, tmp_path: Path) -> None:
    line = ("extract", folder, "--encoder", "builtin", "--out", tmp_path / "pack")
    assert "--workers" in cli(*line, "--workers", "0").one_line()
    assert (
        "expected one of builtin"
        in cli("extract", folder, "--encoder", "nine", "--out", "x").one_line()
    )
    assert "got nothing" in cli("extract", tmp_path / "no", *line[2:]).one_line()
    assert "the root of all folders" in cli(*line[:-1], "/").one_line()
    (tmp_path / "file").write_text("x")
    assert "--out" in cli(*line[:-1], tmp_path / "file").one_line()
    with pytest.raises(InputError):
        find_videos([tmp_path / "no"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_closed_folder_is_reported_by_its_whole_name(tmp_path: Path) -> None:
    out = tmp_path / "pack"
    found = demr.extraction.videos.Found(
        unit_of(tmp_path, "a").videos, ("/my: films: Permission denied",)
    )
    job = name_job(parts_folder(out))
    made = extract(found, NameEncoder(), job, out, in_process, untold)
    assert made.skipped == (("/my: films", "Permission denied"),)

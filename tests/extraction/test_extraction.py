"""demr extract: packs from folders of videos, whatever happens on the way."""

import errno
import fcntl
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.progress import Progress
from tests.extraction.extraction_plans import IDENTITY, NameEncoder, found, name_plan, named

from demr.encoders import EncoderIdentity, get_encoder
from demr.errors import DemrError, FeatureError, InputError, ModelError, VideoError
from demr.extraction import workers
from demr.extraction.job import REPORT, extract, parts_folder
from demr.extraction.parts import (
    ExtractionPlan,
    Outcome,
    encode_video,
    has_part,
    read_part,
    write_part,
)
from demr.extraction.progress import _Teller
from demr.extraction.videos import Found, VideoFile, find_videos
from demr.extraction.workers import run_workers
from demr.features.pack import FeaturePack

Cli = Callable[..., Any]


def untold(video: VideoFile, share: float, skipped: str) -> None:
    pass


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, film: Path) -> Path:
    """Twelve copies of a short film; two of them emptied or overwritten, one cut off."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(12):
        shutil.copyfile(film, root / f"film{number:02d}.mp4")
    (root / "film05.mp4").write_bytes(b"")
    (root / "film08.mp4").write_text("not a video")
    (root / "film10.mp4").write_bytes(film.read_bytes()[: film.stat().st_size // 3])
    return root


@pytest.fixture(scope="module")
def pack(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, clip_models: dict[str, Path]
) -> Path:
    """The pack of that folder, made undisturbed."""
    out = tmp_path_factory.mktemp("packs") / "whole"
    assert command(folder, f"clip:{clip_models['clip']}", out).wait() == 1
    return out


def command(folder: Path, encoder: str, out: Path) -> "subprocess.Popen[str]":
    """Begin an extraction in a process of its own."""
    line = [sys.executable, "-m", "demr", "extract", str(folder), "--encoder", encoder]
    return subprocess.Popen(
        [*line, "--out", str(out), "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_a_folder_becomes_a_pack(pack: Path, folder: Path, clip_models: dict[str, Path]) -> None:
    encoder = get_encoder(f"clip:{clip_models['clip']}", device="cpu")
    made = FeaturePack(pack)
    assert made.identity == encoder.identity
    assert made.vids == tuple(f"film{n:02d}" for n in range(12) if n not in (5, 8))
    alone = encoder.encode_video(folder / "film07.mp4")
    assert (made["film07"].duration_s, made["film07"].clip_s) == (alone.duration_s, 2.0)
    # As a search encodes it: no video depends on those it was extracted with.
    np.testing.assert_array_equal(made["film07"].features, alone.features.astype(np.float16))
    report = json.loads((pack / REPORT).read_text())
    # Of the one that was cut off, what there is.
    assert (report["videos"], report["clips"]) == (10, 9 * 5 + 1)
    assert made["film10"].features.shape == (1, 24)
    assert EncoderIdentity.from_dict(report["encoder"]) == encoder.identity
    (damage,) = report["damaged"]
    assert damage["path"] == str(folder / "film10.mp4")
    assert "of 9.00 s" in damage["damage"]
    skipped = {Path(entry["path"]).name: entry["reason"] for entry in report["skipped"]}
    assert sorted(skipped) == ["film05.mp4", "film08.mp4"]
    assert "an empty file" in skipped["film05.mp4"]
    assert sorted(path.name for path in pack.parent.iterdir()) == ["whole"]


def test_what_the_command_says(
    cli: Cli, folder: Path, clip_models: dict[str, Path], tmp_path: Path
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for name in ("film00.mp4", "film05.mp4"):
        shutil.copyfile(folder / name, few / name)
    line = ("extract", few, "--encoder", "builtin", "--out", tmp_path / "pack")
    done = cli(*line)
    assert done.code == 1
    first, second, third = done.out.splitlines()
    assert first.startswith(f"{tmp_path / 'pack'}: 1 video, 9 clips of 1 s, builtin@1")
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
    other = cli(*line[:3], f"clip:{clip_models['clip']}", *line[4:]).one_line()
    assert re.search(r"new folder .* got a pack by builtin@1 .*, where clip@1:.* asked for", other)
    assert contents(tmp_path / "pack") == before
    (few / "film05.mp4").unlink()
    done = cli(*line[:-1], tmp_path / "good")
    assert (done.code, done.out.count("\n")) == (0, 1)


def test_odd_names_make_one_line_each(cli: Cli, folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    shutil.copyfile(folder / "film00.mp4", odd / "good.mp4")
    shutil.copyfile(folder / "film00.mp4", odd / os.fsdecode(b"\xff.mp4"))
    for name in ("new\nline.mp4", "\x1b[31mred.mp4", os.fsdecode(b"\xfe.mp4")):
        (odd / name).write_text("not a video")
    # Through a folder that is not there yet, and back.
    out = tmp_path / "new" / ".." / "pack"
    done = cli("extract", odd, "--encoder", "builtin", "--out", out)
    assert done.code == 1
    lines = sorted(line for line in done.err.splitlines() if line.startswith("demr: skipped"))
    names = (r"\udcfe.mp4", r"\x1b[31mred.mp4", "new line.mp4")
    for line, name in zip(lines, names, strict=True):
        assert line.startswith(f"demr: skipped {odd}/{name}: expected a readable video")
    made = FeaturePack(tmp_path / "pack")
    assert made.vids == (r"\xff", "good")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd", "pack"]


def test_the_bar_counts_each_video_once(tmp_path: Path) -> None:
    bar = Progress(disable=True)
    first, second, third = named(tmp_path, "a", "b", "c")
    tell = _Teller(bar, "names", [10, 10, 10])
    (task,) = bar.tasks
    seen = []
    # The first is half done when its worker dies, and done at the second try.
    for video, share, skipped in (
        *((first, 0.5, ""), (first, 0.0, ""), (second, 1.0, "")),
        *((first, 0.75, ""), (first, 1.0, "no video"), (third, 0.25, "")),
    ):
        tell(video, share, skipped)
        seen.append((task.completed, task.fields["videos"]))
    assert seen == [
        *((5, "0/3"), (0, "0/3"), (10, "1/3")),
        *((17.5, "1/3"), (20, "2/3"), (22.5, "2/3")),
    ]


def test_a_stopped_extraction_goes_on_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """By Ctrl-C, by the death of the command, and by that of all its workers."""
    found, encoder = find_videos([folder]), get_encoder("builtin")
    whole, out = tmp_path / "whole", tmp_path / "pack"
    identity, parts = encoder.identity.to_dict(), parts_folder(out)
    plan = ExtractionPlan("builtin", "cpu", identity, parts_folder(whole))
    assert extract(found, encoder, plan, whole, in_process, untold).videos == 10
    for signalled, finished in ((signal.SIGINT, 1), (signal.SIGKILL, 3)):
        begun = command(folder, "builtin", out)
        while begun.poll() is None and len(list(parts.glob("video-*"))) < finished:
            time.sleep(0.005)
        begun.send_signal(signalled)
        _, complaint = begun.communicate()
        assert begun.returncode in (-signalled, 130)
        assert "Traceback" not in complaint
        assert not out.exists()
    before, killed = len(list(parts.glob("video-*"))), list[int]()
    told: list[VideoFile] = []

    def kill(video: VideoFile, share: float, _skipped: str) -> None:
        told.extend([video] if share == 1.0 else [])
        if len(told) > before and not killed:
            for process in multiprocessing.active_children():
                killed.append(process.pid or 0)
                os.kill(killed[-1], signal.SIGKILL)

    plan = replace(plan, parts=parts)
    extract(found, encoder, plan, out, partial(run_workers, workers=2), kill)
    assert len(killed) == 2
    assert len(told) == len(set(told)) == 12
    assert contents(out) == contents(whole)
    assert not parts.exists()


# What workers make of files that kill them, told by a stand-in for an encoder.


def test_files_that_kill_or_hang_their_worker_are_skipped(tmp_path: Path) -> None:
    names = "a", "killer", "b", "hang", "once", "bug", "bad", "nan", "huge", "c"
    videos = named(tmp_path, *names)
    told: list[tuple[str, str]] = []

    def tell(video: VideoFile, share: float, skipped: str) -> None:
        if share == 1.0:
            told.append((video.vid, skipped))

    run_workers(videos, name_plan(tmp_path, timeout_s=0.1), tell, workers=2)
    outcomes = {video.vid: read_part(tmp_path, video) for video in videos}
    errors = {vid: outcome.error for vid, outcome in outcomes.items()}
    # A worker that dies once costs nothing.
    assert [errors.pop(vid) for vid in ("a", "b", "c", "once")] == ["", "", "", ""]
    assert errors.pop("killer") == "the process that read it was killed by signal 9"
    assert errors.pop("hang") == "the process that read it got no frame out of it for 0.1 s"
    reason = "the process that read it failed: RuntimeError: no kernel for this"
    assert errors.pop("bug") == reason
    assert "expected a video, got none" in errors.pop("bad")
    assert "NaN or infinity in row 0" in errors.pop("nan")
    assert "within 65504" in errors.pop("huge")
    np.testing.assert_array_equal(outcomes["a"].features, [[1, 1]])
    assert sorted(told) == sorted((vid, outcome.error) for vid, outcome in outcomes.items())


def test_workers_that_never_start_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_start", end_at_once)
    with pytest.raises(ModelError, match="--workers 1: expected processes that start"):
        run_workers(named(tmp_path, "a"), name_plan(tmp_path), untold)


def end_at_once(*_: object) -> None:
    os._exit(1)


def test_shares_of_a_long_video_are_told(
    film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_SHOWN_WITHIN", 0)
    here = workers._Worker(name_plan(tmp_path), shares := [0.0])
    watcher = here._watcher(VideoFile("film", film, 10), 0)
    assert watcher is not None
    watcher(4.5)
    assert shares == [pytest.approx(0.5, abs=0.05)]
    assert here._watcher(VideoFile("gone", tmp_path / "gone.mp4", 10), 0) is None


ORPHANED = """
import sys
from pathlib import Path
from tests.extraction import test_extraction as t

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    t.run_workers(t.named(folder, "slow"), t.name_plan(folder), t.untold)
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
    first, second = named(tmp_path, "a", "weights")
    with pytest.raises(ModelError, match="weights: expected all, got some; get the rest"):
        run_workers([first, second], name_plan(tmp_path), untold)
    assert has_part(tmp_path, first)
    assert not has_part(tmp_path, second)


def test_a_full_accelerator_is_no_fault_of_a_file(tmp_path: Path) -> None:
    (video,) = named(tmp_path, "gpu")
    message = r"--device cpu: .* CUDA out of memory; .* fewer --workers"
    with pytest.raises(ModelError, match=message):
        encode_video(NameEncoder(), video, name_plan(tmp_path))


def test_damaged_weights_bar_no_others(tmp_path: Path) -> None:
    out = tmp_path / "pack"
    plan = name_plan(parts_folder(out))
    with pytest.raises(ModelError):
        extract(found(tmp_path, "weights"), NameEncoder(), plan, out, in_process, untold)
    assert not parts_folder(out).exists()
    # What is finished is kept, though.
    with pytest.raises(ModelError):
        extract(found(tmp_path, "a", "weights"), NameEncoder(), plan, out, in_process, untold)
    assert len(list(parts_folder(out).glob("video-*"))) == 1


def test_parts_hold_what_was_made(tmp_path: Path) -> None:
    video, bad = named(tmp_path, "longer", "bad")
    made = Outcome(np.ones((3, 2), np.float16), 2.5, "", ("a hole",), "float16")
    write_part(tmp_path, video, made)
    read = read_part(tmp_path, video)
    np.testing.assert_array_equal(read.features, made.features)
    assert replace(read, features=None) == replace(made, features=None)
    write_part(tmp_path, bad, Outcome(error="no video"))
    assert read_part(tmp_path, bad) == Outcome(error="no video")
    assert not has_part(tmp_path, replace(video, changed_ns=1))
    path = tmp_path / f"video-{video.key}.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FeatureError, match="remove this file and run the same command again"):
        read_part(tmp_path, video)


def in_process(videos: Any, plan: Any, tell: Any) -> None:
    encoder = plan.make_encoder()
    for video in videos:
        outcome = encode_video(encoder, video, plan)
        write_part(plan.parts, video, outcome)
        tell(video, 1.0, outcome.error)


def test_no_video_at_all(tmp_path: Path) -> None:
    out = tmp_path / "pack"
    with pytest.raises(VideoError, match=r"2 videos: expected at least one .* such as .*bad1.mp4"):
        extract(
            found(tmp_path, "bad1", "bad2"),
            NameEncoder(),
            name_plan(parts_folder(out)),
            out,
            in_process,
            untold,
        )
    assert list(tmp_path.iterdir()) == []


def test_one_extraction_at_a_time_and_one_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "pack"
    plan = name_plan(parts_folder(out))
    parts_folder(out).mkdir()
    with (parts_folder(out) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FeatureError, match="another that is at work there"):
            extract(found(tmp_path, "a"), NameEncoder(), plan, out, in_process, untold)
    with monkeypatch.context() as patch:
        # The other has just finished, and removed what is locked here.
        patch.setattr(fcntl, "flock", lambda *_: (parts_folder(out) / "lock").unlink())
        with pytest.raises(FeatureError, match="another that is at work there"):
            extract(found(tmp_path, "a"), NameEncoder(), plan, out, in_process, untold)

        def cannot(_lock: object, _how: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        patch.setattr(fcntl, "flock", cannot)
        with pytest.raises(FeatureError, match="No locks available"):
            extract(found(tmp_path, "a"), NameEncoder(), plan, out, in_process, untold)
    other = IDENTITY.to_dict() | {"version": "2"}
    for version, message in (
        (2, r"names@1 .*names@2 .*choose another --out"),
        (1, r"one of an older version, .* remove that folder"),
        (3, r"one of a newer version, .* remove that folder"),
    ):
        begun = {"version": version, "encoder": other}
        (parts_folder(out) / "plan.json").write_text(json.dumps(begun))
        with pytest.raises(FeatureError, match=message):
            extract(found(tmp_path, "a"), NameEncoder(), plan, out, in_process, untold)
    (parts_folder(out) / "plan.json").write_text("[]")
    with pytest.raises(FeatureError, match=r"plan of an extraction"):
        extract(found(tmp_path, "a"), NameEncoder(), plan, out, in_process, untold)
    (parts_folder(out) / "plan.json").write_text("{")
    with pytest.raises(FeatureError, match=r"plan of an extraction"):
        extract(found(tmp_path, "a"), NameEncoder(), plan, out, in_process, untold)


@pytest.mark.parametrize("fails_at", range(7))
def test_a_full_disk_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    out = tmp_path / "pack"
    plan, videos = name_plan(parts_folder(out)), found(tmp_path, "a", "bb", "ccc")
    written, sync = 0, os.fsync

    def full(handle: int) -> None:
        nonlocal written
        written += 1
        if written > fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    # The plan, three videos, and three files of the pack.
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DemrError, match="free disk space"):
        extract(videos, NameEncoder(), plan, out, in_process, untold)
    # The folder of parts: there with the first write, and not left behind without a video in it.
    assert list(tmp_path.iterdir()) == ([] if fails_at == 1 else [parts_folder(out)])
    assert len(list(parts_folder(out).glob("video-*"))) == min(max(fails_at - 1, 0), 3)
    monkeypatch.setattr(os, "fsync", sync)
    done: list[float] = []
    extract(videos, NameEncoder(), plan, out, in_process, lambda _, share, __: done.append(share))
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
        found(tmp_path, "a"),
        NameEncoder(),
        name_plan(parts_folder(out)),
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
    (parts / ".demr-0.tmp" / "pack").mkdir(parents=True)
    (parts / ".demr-0.tmp" / "pack" / "video-00000.safetensors").write_text("half")
    (parts / "notes.txt").write_text("mine")
    seen: list[set[str]] = []

    def run(videos: Any, plan: Any, tell: Any) -> None:
        seen.append({path.name for path in parts.iterdir()})
        in_process(videos, plan, tell)

    extract(found(tmp_path, "a"), NameEncoder(), name_plan(parts), out, run, untold)
    assert seen == [{"lock", "plan.json", "notes.txt"}]
    assert [path.name for path in parts.iterdir()] == ["notes.txt"]
    # Of a run that was killed while it removed its parts, the next one removes the rest.
    (parts / "notes.txt").unlink()
    (parts / "video-0.safetensors").write_text("x")
    again = extract(found(tmp_path, "a"), NameEncoder(), name_plan(parts), out, run, untold)
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
    # The plan, the video, and a first file of the pack have been written.
    if written == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(handle)

os.fsync = kill
plan = t.name_plan(t.parts_folder(out))
t.extract(t.found(out.parent, "a"), t.NameEncoder(), plan, out, t.in_process, t.untold)
"""


def test_killed_while_the_pack_is_written(tmp_path: Path) -> None:
    out = tmp_path / "pack"
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out)], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == [parts_folder(out)]
    assert len(list(parts_folder(out).glob(".demr-*.tmp/pack"))) == 1
    videos, plan = found(tmp_path, "a"), name_plan(parts_folder(out))
    extract(videos, NameEncoder(), plan, out, in_process, untold)
    assert list(tmp_path.iterdir()) == [out]
    assert FeaturePack(out).vids == ("a",)


def test_a_pack_says_all_that_its_features_were_computed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An accelerator began it and a CPU went on."""
    weighty = replace(IDENTITY, model="owner/model", digest="0")
    monkeypatch.setattr(NameEncoder, "identity", weighty)
    out = tmp_path / "pack"

    def run(videos: Any, plan: Any, tell: Any) -> None:
        for video, dtype in zip(videos, ("float16", "float32", "float16"), strict=True):
            made = encode_video(NameEncoder(), video, plan)
            write_part(plan.parts, video, replace(made, dtype=dtype))
            tell(video, 1.0, "")

    videos = found(tmp_path, "a", "bb", "ccc")
    extract(videos, NameEncoder(), name_plan(parts_folder(out)), out, run, untold)
    assert FeaturePack(out).identity.dtype == "float16+float32"
    assert FeaturePack(out).identity == weighty
    report = json.loads((out / REPORT).read_text())
    assert report["encoder"]["dtype"] == "float16+float32"


def test_files_that_changed_are_read_again(tmp_path: Path) -> None:
    out = tmp_path / "pack"
    plan, (same, changed) = name_plan(parts_folder(out)), named(tmp_path, "a", "b")
    plan.parts.mkdir()
    in_process([same, changed], plan, untold)
    changed = replace(changed, changed_ns=1)
    asked = []

    def run(videos: Any, plan: Any, tell: Any) -> None:
        asked.extend(videos)
        in_process(videos, plan, tell)

    extract(Found((same, changed)), NameEncoder(), plan, out, run, untold)
    assert asked == [changed]
    assert list(tmp_path.iterdir()) == [out]


def test_bad_options(cli: Cli, folder: Path, tmp_path: Path) -> None:
    line = ("extract", folder, "--encoder", "builtin", "--out", tmp_path / "pack")
    assert "--workers" in cli(*line, "--workers", "0").one_line()
    assert "--timeout" in cli(*line, "--timeout", "0").one_line()
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
    videos = Found(named(tmp_path, "a"), ("/my: films: Permission denied",))
    plan = name_plan(parts_folder(out))
    made = extract(videos, NameEncoder(), plan, out, in_process, untold)
    assert made.skipped == (("/my: films", "Permission denied"),)

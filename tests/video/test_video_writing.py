"""Files that are written, and clips cut out of others."""

import errno
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from tests.video.numbered_videos import (
    COLOURS,
    count_frames,
    every,
    grey,
    make_video,
    quadrant_image,
    shown,
)

from demr.errors import DemrError, InputError, VideoError
from demr.video import reading as video
from demr.video.reading import iter_frames, probe_video
from demr.video.writing import VideoWriter, cut_clip

# --- what is written --------------------------------------------------------------------------


def test_writer_refuses(tmp_path: Path) -> None:
    for width, height, fps in ((63, 48, 10.0), (64, 0, 10.0), (64, 48, 0.0), (64, 48, math.nan)):
        with pytest.raises(VideoError):
            VideoWriter(tmp_path / "v.mp4", width, height, fps)
    with (
        pytest.raises(VideoError, match="expected frames of shape"),
        VideoWriter(tmp_path / "v.mp4", 64, 48, 10) as writer,
    ):
        writer.write(np.zeros((48, 62, 3), np.uint8))
    with pytest.raises(VideoError, match="got none"), VideoWriter(tmp_path / "v.mp4", 64, 48, 10):
        pass
    with (
        pytest.raises(VideoError, match="can be written"),
        VideoWriter(tmp_path / "no" / "folder" / "v.mp4", 64, 48, 10),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_writer_leaves_nothing_after_an_error_and_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"before")

    def failing() -> None:
        with VideoWriter(path, 64, 48, 10) as writer:
            writer.write(grey(0, 48, 64))
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    with VideoWriter(path, 64, 48, 29.97) as writer:
        writer.write(grey(3, 48, 64))
    assert shown(path, [0.0]) == [3]
    assert list(tmp_path.iterdir()) == [path]


def test_writer_keeps_colours(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with VideoWriter(path, 64, 48, 8, crf=5) as writer:
        writer.write(quadrant_image(48, 64))
    rgb = next(iter_frames(path, [0.0])).rgb.astype(int)
    for (y, x), name in (((12, 16), "R"), ((12, 48), "G"), ((36, 16), "B"), ((36, 48), "W")):
        assert np.abs(rgb[y, x] - COLOURS[name]).max() <= 6


FULL_DISK = """
    import resource, signal, sys
    import numpy as np
    from demr.errors import VideoError
    from demr.video import VideoWriter, cut_clip
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    source, out = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    rng = np.random.default_rng(0)
    def write():
        with VideoWriter(out, 128, 96, 10, crf=5) as writer:
            for _ in range(int(sys.argv[2].count("many")) * 60 + 6):
                writer.write(rng.integers(0, 255, (96, 128, 3), np.uint8))
    for job in (write, lambda: cut_clip(source, 0, 3, out)):
        try:
            job()
        except VideoError as error:
            assert "full disk" in str(error), error
        else:
            raise SystemExit("no error")
"""


@pytest.mark.parametrize("name", ["few.mp4", "many.mp4"])
def test_a_file_that_cannot_grow_leaves_nothing(tmp_path: Path, name: str) -> None:
    """A size limit fails the same calls as a full disk, in the kernel and not in a mock."""
    source = tmp_path / "source.mp4"
    rng = np.random.default_rng(0)
    with VideoWriter(source, 128, 96, 10, crf=5) as writer:
        for _ in range(30):
            writer.write(rng.integers(0, 255, (96, 128, 3), np.uint8))
    folder = tmp_path / "out"
    folder.mkdir()
    command = [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(source), str(folder / name)]
    paths = os.pathsep.join([str(Path(video.__file__).parents[2]), *sys.path])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert list(folder.iterdir()) == []


def test_no_space_left_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(VideoError, match="full disk"),
        VideoWriter(tmp_path / "v.mp4", 64, 48, 10) as writer,
    ):
        writer.write(grey(0, 48, 64))
    assert list(tmp_path.iterdir()) == []


# --- clips ------------------------------------------------------------------------------------


def test_cut_shows_what_the_source_shows(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.mp4"
    cut_clip(plain, 1.03, 2.5, out)
    assert probe_video(out).duration_s == pytest.approx(1.47, abs=0.002)
    times = [k / 50 + 0.003 for k in range(73)]
    assert shown(out, times) == shown(plain, [1.03 + t for t in times])


def test_cut_keeps_a_variable_rate(tmp_path: Path) -> None:
    pts = [0, 60, 600, 630, 660, 1500, 2400]
    path = make_video(tmp_path / "v.mp4", pts)
    out = tmp_path / "c.mp4"
    cut_clip(path, 0.5, 3.0, out)
    assert probe_video(out).duration_s == pytest.approx(2.5, abs=0.002)
    times = [0.0, 0.49, 0.51, 0.54, 0.56, 0.59, 0.61, 1.99, 2.01, 2.45]
    assert shown(out, times) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("keyint", ["10", "250"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_late_cut_seeks_to_the_same_frames(tmp_path: Path, suffix: str, keyint: str) -> None:
    options = {"crf": "5", "preset": "veryfast", "g": keyint, "bf": "3"}
    images = [grey(k % 50, 48, 64) for k in range(200)]
    path = make_video(tmp_path / f"v{suffix}", every(10, 200), options=options, images=images)
    out = tmp_path / "c.mp4"
    cut_clip(path, 14.25, 16.0, out)
    times = [k / 20 + 0.013 for k in range(34)]
    assert shown(out, times) == shown(path, [14.25 + t for t in times])
    assert probe_video(out).duration_s == pytest.approx(1.75, abs=0.01)


def test_a_late_cut_decodes_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"crf": "5", "preset": "veryfast", "g": "10"}
    images = [grey(k % 50, 48, 64) for k in range(300)]
    path = make_video(tmp_path / "v.mp4", every(10, 300), options=options, images=images)
    seen = count_frames(monkeypatch)
    cut_clip(path, 25.0, 26.0, tmp_path / "c.mp4")
    assert len(seen) < 50


def test_cut_to_the_end_and_past_it(plain: Path, tmp_path: Path) -> None:
    cut_clip(plain, 3.5, 99.0, tmp_path / "c.mp4")
    assert probe_video(tmp_path / "c.mp4").duration_s == pytest.approx(0.5, abs=0.002)
    assert shown(tmp_path / "c.mp4", [0.0, 0.45]) == [35, 39]
    with pytest.raises(VideoError, match=r"longer than 4\.5"):
        cut_clip(plain, 4.5, 5.0, tmp_path / "d.mp4")
    assert not (tmp_path / "d.mp4").exists()


def test_cut_of_full_range_keeps_levels(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", every(10, 10), pix_fmt="yuvj420p")
    cut_clip(path, 0.2, 0.8, tmp_path / "c.mp4")
    assert shown(tmp_path / "c.mp4", [0.05, 0.55]) == shown(path, [0.25, 0.75])


def test_cut_overwrites_only_when_told(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.mp4"
    out.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists"):
        cut_clip(plain, 0.0, 1.0, out)
    assert out.read_bytes() == b"mine"
    cut_clip(plain, 0.0, 1.0, out, overwrite=True)
    assert shown(out, [0.05]) == [0]
    for start_s, end_s in ((1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (0.0, math.nan)):
        with pytest.raises(DemrError, match="0 <= start < end"):
            cut_clip(plain, start_s, end_s, tmp_path / "d.mp4")
    assert list(tmp_path.iterdir()) == [out]

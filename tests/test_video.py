"""Frames at exact times from the odd files that users have; every frame carries its number."""

import errno
import math
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demr import video, video_source
from demr.errors import DemrError, InputError, VideoError
from demr.video import (
    DamagedVideoWarning,
    Frame,
    VideoWriter,
    cut_clip,
    iter_frames,
    probe_video,
)

CLOCK = Fraction(1, 600)
STEP = 4  # grey levels between neighbouring frames: far above the coding error


def grey(index: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.full((height, width, 3), 20 + STEP * index, np.uint8)


def number(frame: Frame) -> int:
    """The index that `grey` painted into the pixels."""
    return round((float(frame.rgb.mean()) - 20) / STEP)


def make_video(
    path: Path,
    pts: Sequence[int],
    *,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    images: Sequence[npt.NDArray[np.uint8]] | None = None,
    with_audio: bool = False,
) -> Path:
    """Write frame k at ``pts[k] * CLOCK`` seconds."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, 10, options or {"crf": "5", "preset": "veryfast"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = CLOCK
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", 16000) if with_audio else None
        for index, ticks in enumerate(pts):
            image = images[index] if images is not None else grey(index, size[1], size[0])
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = ticks, CLOCK
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            write_sound(container, sound, pts[-1] * CLOCK)
    return path


def write_sound(
    container: av.container.OutputContainer, stream: av.AudioStream, length_s: Fraction
) -> None:
    for index in range(int(length_s * 16000 / 1024) + 1):
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = 16000, index * 1024
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def every(fps: int, count: int) -> list[int]:
    return [index * (600 // fps) for index in range(count)]


def shown(path: Path, times: Sequence[float]) -> list[int]:
    return [number(frame) for frame in iter_frames(path, times)]


def last_at_or_before(pts_s: Sequence[float], time_s: float) -> int:
    """The obvious loop that the streaming code must agree with."""
    best = 0
    for index, start in enumerate(pts_s):
        if start <= time_s:
            best = index
    return best


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames at 10 a second, written by `VideoWriter`."""
    path = tmp_path_factory.mktemp("plain") / "plain.mp4"
    with VideoWriter(path, 64, 48, 10) as writer:
        for index in range(40):
            writer.write(grey(index, 48, 64))
    return path


# --- what is read -----------------------------------------------------------------------------


def test_written_file_is_probed_as_written(plain: Path) -> None:
    info = probe_video(plain)
    assert info.duration_s == pytest.approx(4.0)
    assert (info.width, info.height, info.rotation_deg) == (64, 48, 0)
    assert info.fps == pytest.approx(10.0)
    assert info.codec == "h264"
    assert info.path == plain


def test_frame_shown_is_the_last_that_has_started(plain: Path) -> None:
    times = [-1.0, 0.0, 0.05, 0.0999, 0.1001, 0.35, 2.0001, 3.95, 4.5, 1e6]
    frames = list(iter_frames(plain, times))
    assert [number(frame) for frame in frames] == [0, 0, 0, 0, 1, 3, 20, 39, 39, 39]
    assert [frame.time_s for frame in frames] == times
    assert [round(frame.pts_s, 6) for frame in frames[-4:]] == [2.0, 3.9, 3.9, 3.9]


def test_a_slow_video_asked_often_shares_arrays(tmp_path: Path) -> None:
    path = make_video(tmp_path / "slow.mp4", every(1, 4))
    frames = list(iter_frames(path, [k / 8 for k in range(32)]))
    assert [number(frame) for frame in frames] == [k // 8 for k in range(32)]
    assert frames[0].rgb is frames[7].rgb
    assert frames[7].rgb is not frames[8].rgb


def test_only_asked_frames_are_converted(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    convert = video._Converter.__call__

    def counted(self: video._Converter, frame: av.VideoFrame) -> video.Pixels:
        calls.append(frame.pts)
        return convert(self, frame)

    monkeypatch.setattr(video._Converter, "__call__", counted)
    assert len(list(iter_frames(plain, [0.0, 0.01, 1.05, 1.06, 3.0]))) == 5
    assert len(calls) == 3


def test_yielded_frames_stay_as_they_were(plain: Path) -> None:
    frames = list(iter_frames(plain, [k / 10 + 0.01 for k in range(40)]))
    assert [number(frame) for frame in frames] == list(range(40))


def test_endless_times_and_early_stop(plain: Path) -> None:
    def forever() -> Iterator[float]:
        k = 0
        while True:
            yield k / 10
            k += 1

    frames = iter_frames(plain, forever())
    assert number(next(frames)) == 0
    frames.close()  # type: ignore[attr-defined]
    assert list(iter_frames(plain, [])) == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(
    gaps=st.lists(st.integers(1, 900), min_size=0, max_size=12),
    times=st.lists(st.floats(-1, 20, allow_nan=False), max_size=12),
    b_frames=st.sampled_from(["0", "3"]),
)
def test_any_variable_rate_agrees_with_the_slow_loop(
    gaps: list[int], times: list[float], b_frames: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("vfr") / "v.mp4"
    pts = [0, *np.cumsum(gaps, dtype=int).tolist()]
    make_video(path, pts, options={"crf": "5", "preset": "veryfast", "bf": b_frames})
    pts_s = [ticks / 600 for ticks in pts]
    # Exactly on a boundary the container's clock decides; step off it by less than a tick.
    times = sorted(t + 1e-4 for t in times)
    assert shown(path, times) == [last_at_or_before(pts_s, t) for t in times]


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        (".mkv", "libx264", {"crf": "5", "bf": "3"}),
        (".webm", "libvpx-vp9", {"crf": "10", "b": "0", "cpu-used": "8"}),
        (".mov", "libx264", {"crf": "5", "bf": "3"}),
        (".avi", "mpeg4", {"qscale": "1", "b": "4000000"}),
        (".ts", "libx264", {"crf": "5", "bf": "2"}),
    ],
)
def test_other_containers(tmp_path: Path, suffix: str, codec: str, options: dict[str, str]) -> None:
    path = tmp_path / f"v{suffix}"
    clock_pts = every(10, 20)
    make_video(path, clock_pts, codec=codec, options=options)
    assert shown(path, [0.0, 0.15, 0.95, 1.85, 1.95]) == [0, 1, 9, 18, 19]
    assert probe_video(path).duration_s == pytest.approx(2.0, abs=0.11)


def test_start_time_is_subtracted(tmp_path: Path) -> None:
    for name, first in (("late.mkv", 3000), ("late.ts", 1200), ("below.mkv", -1800)):
        muxer = {"avoid_negative_ts": "disabled"} if first < 0 else {}
        path = make_video(tmp_path / name, [first + t for t in every(10, 20)], muxer=muxer)
        assert shown(path, [0.0, 0.15, 1.95]) == [0, 1, 19], name
        assert next(iter_frames(path, [0.0])).pts_s == 0.0


def test_no_timestamps_count_at_the_average_rate(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.h264", every(10, 20), options={"crf": "5", "bf": "0"})
    info = probe_video(path)
    assert info.duration_s == pytest.approx(20 / info.fps, rel=0.06)
    assert shown(path, [(k + 0.5) / info.fps for k in range(20)]) == list(range(20))


def test_one_frame_lasts_a_frame(tmp_path: Path) -> None:
    for suffix in (".mp4", ".mkv"):
        path = make_video(tmp_path / f"one{suffix}", [0])
        info = probe_video(path)
        assert info.duration_s >= 1 / info.fps > 0
        assert shown(path, [0.0, 0.5, 10.0]) == [0, 0, 0]


def test_duration_is_the_videos_not_the_sounds(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 10)
        sound = container.add_stream("aac", 16000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(10):
            frame = av.VideoFrame.from_ndarray(grey(index, 48, 64), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        write_sound(container, sound, Fraction(5))
    assert probe_video(path).duration_s == pytest.approx(1.0, abs=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shown(path, [0.0, 0.95, 4.0]) == [0, 9, 9]


def test_a_lying_duration_is_counted_instead(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mp4", every(10, 40))
    data = bytearray(path.read_bytes())
    media = data.index(b"mdhd")
    data[media + 20 : media + 24] = (7).to_bytes(4, "big")  # version 0: duration in media clock
    path.write_bytes(data)
    assert probe_video(path).duration_s == pytest.approx(4.0, abs=0.11)
    assert shown(path, [0.0, 3.95]) == [0, 39]


# --- size and orientation ---------------------------------------------------------------------

QUADRANTS = np.array([["R", "G"], ["B", "W"]])
COLOURS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": (255, 255, 255)}


def quadrant_image(height: int, width: int) -> npt.NDArray[np.uint8]:
    image = np.zeros((height, width, 3), np.uint8)
    for row in range(2):
        for column in range(2):
            rows = slice(row * height // 2, (row + 1) * height // 2)
            columns = slice(column * width // 2, (column + 1) * width // 2)
            image[rows, columns] = COLOURS[QUADRANTS[row, column]]
    return image


def quadrants(rgb: npt.NDArray[np.uint8]) -> list[list[str]]:
    height, width = rgb.shape[:2]
    names = {tuple(c > 128 for c in colour): name for name, colour in COLOURS.items()}
    return [
        [names[tuple(c > 128 for c in rgb[y, x].tolist())] for x in (width // 4, 3 * width // 4)]
        for y in (height // 4, 3 * height // 4)
    ]


def quadrant_video(path: Path, rotation: int) -> Path:
    images = [quadrant_image(48, 64)] * 12
    return make_video(path, every(10, 12), rotation=rotation, images=images)


@pytest.mark.parametrize(("rotation", "turns"), [(0, 0), (90, 1), (180, 2), (-90, 3)])
def test_rotation_is_applied(tmp_path: Path, rotation: int, turns: int) -> None:
    path = quadrant_video(tmp_path / "r.mp4", rotation)
    info = probe_video(path)
    frame = next(iter_frames(path, [0.3]))
    assert quadrants(frame.rgb) == np.rot90(QUADRANTS, turns).tolist()
    assert frame.rgb.shape == ((48, 64, 3) if turns % 2 == 0 else (64, 48, 3))
    assert (info.height, info.width) == frame.rgb.shape[:2]
    assert info.rotation_deg == 90 * turns
    assert frame.rgb.flags.c_contiguous
    # Only a height: the width keeps the upright aspect.
    small = next(iter_frames(path, [0.3], height=24))
    assert small.rgb.shape == ((24, 32, 3) if turns % 2 == 0 else (24, 18, 3))
    assert quadrants(small.rgb) == quadrants(frame.rgb)


def test_rotation_survives_a_cut(tmp_path: Path) -> None:
    for turns, rotation in enumerate((0, 90, 180, -90)):
        path = quadrant_video(tmp_path / f"r{turns}.mp4", rotation)
        out = tmp_path / f"cut{turns}.mp4"
        cut_clip(path, 0.2, 0.8, out)
        info = probe_video(out)
        assert info.rotation_deg == 0
        assert (info.height, info.width) == ((48, 64) if turns % 2 == 0 else (64, 48))
        rgb = next(iter_frames(out, [0.3])).rgb
        assert quadrants(rgb) == np.rot90(QUADRANTS, turns).tolist()


def test_a_mirrored_picture_is_mirrored_back(tmp_path: Path) -> None:
    images = [quadrant_image(48, 64)] * 3
    path = tmp_path / "m.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(0, hflip=True)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert quadrants(next(iter_frames(path, [0.0])).rgb) == QUADRANTS[:, ::-1].tolist()


def test_sizes(plain: Path) -> None:
    def shape(height: int | None = None, width: int | None = None) -> tuple[int, ...]:
        return next(iter_frames(plain, [1.0], height=height, width=width)).rgb.shape

    assert shape(height=12) == (12, 16, 3)
    assert shape(width=32) == (24, 32, 3)
    assert shape(height=9, width=11) == (9, 11, 3)
    assert shape(height=96) == (96, 128, 3)
    assert shape(height=1) == (1, 1, 3)


def test_shrinking_averages_all_pixels(tmp_path: Path) -> None:
    # Columns of 0 and 255 in turn: any sampler that skips pixels sees one of the two.
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::2] = 255
    path = make_video(tmp_path / "v.mp4", [0], size=(64, 64), images=[image])
    small = next(iter_frames(path, [0.0], height=8)).rgb.astype(float)
    assert abs(small.mean() - 127.5) < 8
    assert small.std() < 8


def test_odd_sizes_and_ten_bits(tmp_path: Path) -> None:
    odd = make_video(tmp_path / "odd.mp4", every(10, 8), size=(63, 47), pix_fmt="yuv444p")
    assert next(iter_frames(odd, [0.0])).rgb.shape == (47, 63, 3)
    assert shown(odd, [0.05, 0.75]) == [0, 7]
    cut_clip(odd, 0.2, 0.6, tmp_path / "cut.mp4")
    assert probe_video(tmp_path / "cut.mp4").width == 62
    assert shown(tmp_path / "cut.mp4", [0.05, 0.35]) == [2, 5]
    deep = make_video(tmp_path / "deep.mp4", every(10, 8), pix_fmt="yuv420p10le")
    assert shown(deep, [0.05, 0.75]) == [0, 7]
    cut_clip(deep, 0.2, 0.6, tmp_path / "deepcut.mp4")
    assert shown(tmp_path / "deepcut.mp4", [0.05, 0.35]) == [2, 5]


def test_frames_large_enough_for_several_threads(tmp_path: Path) -> None:
    options = {"crf": "20", "preset": "ultrafast", "g": "20", "bf": "2"}
    path = make_video(tmp_path / "v.mp4", every(10, 100)[::2], size=(400, 300), options=options)
    times = [k / 5 + 0.05 for k in range(50)]
    # Unscaled: shrinking darkens by up to two levels, which is half a step of the numbers.
    assert shown(path, times) == list(range(50))
    small = list(iter_frames(path, times, height=30))
    assert [round(f.pts_s * 5) for f in small] == list(range(50))
    assert all(abs(float(f.rgb.mean()) - 20 - STEP * k) <= 3 for k, f in enumerate(small))
    cut_clip(path, 7.25, 8.45, tmp_path / "c.mp4")
    assert shown(tmp_path / "c.mp4", [0.0, 0.2, 1.1]) == [36, 37, 41]


# --- what cannot be read ----------------------------------------------------------------------


def bad_files(folder: Path) -> dict[str, Path]:
    files = {name: folder / name for name in ("missing.mp4", "text.mp4", "empty.mp4", "notes.txt")}
    files["text.mp4"].write_text("this is no video\n" * 50, encoding="utf-8")
    files["notes.txt"].write_text("nor is this\n" * 50, encoding="utf-8")
    files["empty.mp4"].touch()
    files["noise.mp4"] = folder / "noise.mp4"
    files["noise.mp4"].write_bytes(np.random.default_rng(0).bytes(20_000))
    files["folder.mp4"] = folder / "folder.mp4"
    files["folder.mp4"].mkdir()
    files["pipe.mp4"] = folder / "pipe.mp4"
    os.mkfifo(files["pipe.mp4"])
    files["dangling.mp4"] = folder / "dangling.mp4"
    files["dangling.mp4"].symlink_to(folder / "nowhere.mp4")
    files["sound.mp4"] = folder / "sound.mp4"
    with av.open(str(files["sound.mp4"]), "w") as container:
        write_sound(container, container.add_stream("aac", 16000), Fraction(1))
    files["picture.png"] = folder / "picture.png"
    frame = av.VideoFrame.from_ndarray(quadrant_image(48, 64), format="rgb24")
    frame.save(files["picture.png"])
    files["playlist.mp4"] = folder / "playlist.mp4"
    files["playlist.mp4"].write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")
    whole = make_video(folder / "whole.mp4", every(10, 40))
    files["cut.mp4"] = folder / "cut.mp4"  # the index, at the end, is lost
    files["cut.mp4"].write_bytes(whole.read_bytes()[:-600])
    files["zero\0byte.mp4"] = folder / "zero\0byte.mp4"
    return files


def test_bad_files_give_one_line(tmp_path: Path) -> None:
    for name, path in bad_files(tmp_path).items():
        for use in (probe_video, lambda p: list(iter_frames(p, [0.0])), _cut_nowhere):
            with pytest.raises(VideoError) as caught:
                use(path)
            line = str(caught.value)
            assert "\n" not in line, name
            assert "expected" in line, name
            assert "got" in line, name
    assert not (tmp_path / "never.mp4").exists()


def _cut_nowhere(path: Path) -> None:
    cut_clip(path, 0.0, 1.0, path.parent / "never.mp4")


def test_bad_files_fail_at_the_call_not_at_the_first_frame(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no such file"):
        iter_frames(tmp_path / "missing.mp4", [0.0])


def test_bad_arguments(plain: Path) -> None:
    with pytest.raises(InputError, match="never decrease"):
        list(iter_frames(plain, [1.0, 0.5]))
    with pytest.raises(InputError):
        list(iter_frames(plain, [math.nan]))
    with pytest.raises(InputError, match="height"):
        iter_frames(plain, [0.0], height=0)


def test_odd_names(tmp_path: Path, plain: Path) -> None:
    for name in ("a b.mp4", 'it\'s "q".mp4', "élan 🎬.mp4", "-x.mp4", "a%03d.mp4", "c:d.mp4"):
        path = tmp_path / name
        path.write_bytes(plain.read_bytes())
        assert shown(path, [1.05]) == [10], name
        cut_clip(path, 1.0, 2.0, tmp_path / f"cut {name}")
        assert shown(tmp_path / f"cut {name}", [0.05]) == [10], name


# --- damage -----------------------------------------------------------------------------------


def noisy_video(path: Path, muxer: dict[str, str]) -> Path:
    rng = np.random.default_rng(0)
    images = [
        np.clip(grey(k, 48, 64) + rng.integers(-3, 4, (48, 64, 3)), 0, 255).astype(np.uint8)
        for k in range(40)
    ]
    options = {"crf": "5", "preset": "veryfast", "g": "5"}
    return make_video(path, every(10, 40), options=options, muxer=muxer, images=images)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_cut_off_data_gives_the_good_part_and_a_warning(tmp_path: Path, suffix: str) -> None:
    whole = noisy_video(
        tmp_path / f"w{suffix}", {"movflags": "faststart"} if suffix == ".mp4" else {}
    )
    path = tmp_path / f"cut{suffix}"
    data = whole.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    times = [k / 10 + 0.05 for k in range(40)]
    with pytest.warns(DamagedVideoWarning, match="good until"):
        good = shown(path, times)
    assert 15 <= len(good) < 32
    assert good == list(range(len(good)))
    if suffix == ".mp4":
        assert probe_video(path).duration_s == pytest.approx(len(good) / 10, abs=0.31)
    with pytest.warns(DamagedVideoWarning):
        cut_clip(path, 1.0, 4.0, tmp_path / "c.mp4")
    assert shown(tmp_path / "c.mp4", [0.05])[0] == 10


def test_a_damaged_middle_is_skipped(tmp_path: Path) -> None:
    path = noisy_video(tmp_path / "v.mp4", {"movflags": "faststart"})
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 8
    middle = start + (len(data) - start) * 4 // 10
    width = (len(data) - start) // 10
    data[middle : middle + width] = b"\xff" * width
    path.write_bytes(data)
    times = [k / 10 + 0.05 for k in range(40)]
    with pytest.warns(DamagedVideoWarning, match="unreadable"):
        frames = shown(path, times)
    assert len(frames) == 40
    assert frames[:12] == list(range(12))
    assert frames[-10:] == list(range(30, 40))


def test_no_warning_without_damage(plain: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown(plain, [0.0, 3.95, 9.0])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_damage_never_escapes_as_another_error(
    data: st.DataObject, plain: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = bytearray(plain.read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "f.mp4"
    path.write_bytes(raw[: data.draw(st.integers(1, len(raw)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedVideoWarning)
        try:
            assert probe_video(path).duration_s > 0
            last = -math.inf
            for frame in iter_frames(path, [k / 5 for k in range(25)]):
                assert frame.pts_s >= last
                last = frame.pts_s
        except VideoError:
            pass


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
    paths = os.pathsep.join([str(Path(video.__file__).parents[1]), *sys.path])
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


# --- sparse sampling --------------------------------------------------------------------------


def count_frames(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times of all frames that are decoded from now on."""
    seen: list[float] = []
    frames = video_source.Source.frames

    def counted(self: video_source.Source) -> Iterator[tuple[float, av.VideoFrame]]:
        for item in frames(self):
            seen.append(item[0])
            yield item

    monkeypatch.setattr(video_source.Source, "frames", counted)
    return seen


def noise_video(path: Path, count: int, options: dict[str, str], codec: str) -> Path:
    """Every frame is its own noise, so that one decoded from a wrong reference shows."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(count)]
    return make_video(path, every(10, count), options=options, images=images, codec=codec)


X264 = {"crf": "30", "preset": "veryfast"}


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        (".mp4", "libx264", X264 | {"g": "40", "bf": "3"}),
        (".mp4", "libx264", X264 | {"g": "40", "bf": "3", "x264-params": "open-gop=1"}),
        (".mp4", "libx264", X264 | {"g": "300"}),
        (".mov", "libx264", X264 | {"g": "25", "bf": "0"}),
        (".mkv", "libx264", X264 | {"g": "40", "bf": "3"}),
        (".ts", "libx264", X264 | {"g": "40", "bf": "3"}),
        (".avi", "libx264", X264 | {"g": "40", "bf": "0"}),
        (".webm", "libvpx-vp9", {"crf": "40", "b": "0", "g": "40", "cpu-used": "8"}),
        (".mp4", "libx265", {"crf": "30", "preset": "ultrafast", "x265-params": "keyint=40"}),
    ],
)
def test_sparse_times_show_the_pixels_that_reading_everything_shows(
    tmp_path: Path, suffix: str, codec: str, options: dict[str, str]
) -> None:
    path = noise_video(tmp_path / f"v{suffix}", 300, options, codec)
    # Asked for every tenth of a second, nothing is ever worth a jump.
    every_frame = [frame.rgb for frame in iter_frames(path, [k / 10 + 0.05 for k in range(300)])]
    assert len(every_frame) == 300
    rng = np.random.default_rng(1)
    for gap in (9, 23, 61, 140):
        asked = np.unique(np.minimum(np.cumsum(rng.integers(1, 2 * gap, 600 // gap)), 299))
        frames = list(iter_frames(path, [k / 10 + 0.05 for k in asked]))
        for place, frame in zip(asked.tolist(), frames, strict=True):
            # AVI keeps no times; they are counted, and the delay of the encoder is lost.
            assert frame.pts_s == pytest.approx(place / 10, abs=0.1 if suffix == ".avi" else 0.002)
            np.testing.assert_array_equal(frame.rgb, every_frame[place])


@pytest.mark.parametrize(("keyint", "most"), [("20", 100), ("300", 300)])
def test_sparse_times_decode_little_where_keyframes_allow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keyint: str, most: int
) -> None:
    path = noise_video(tmp_path / "v.mp4", 300, X264 | {"g": keyint, "bf": "2"}, "libx264")
    seen = count_frames(monkeypatch)
    assert len(list(iter_frames(path, [0.0, 7.3, 15.9, 28.2]))) == 4
    # Three jumps of at most a group of pictures and the reordering, or every frame once.
    assert len(seen) <= most


def test_a_lying_index_costs_time_and_no_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = noise_video(tmp_path / "v.mp4", 300, X264 | {"g": "20"}, "libx264")
    times = [k / 10 + 0.05 for k in (0, 60, 61, 130, 131, 280)]
    right = [frame.rgb for frame in iter_frames(path, times)]
    step = 600 // 10 * 20  # ticks between two keyframes

    def lie(shift: int) -> None:
        real = video_source.Source._seeked

        def seek(self: video_source.Source, to_s: float | None = None) -> object:
            moved = None if to_s is None else to_s + shift * step * float(CLOCK)
            return real(self, moved)

        monkeypatch.setattr(video_source.Source, "_seeked", seek)

    for shift in (2, -4):
        with monkeypatch.context():
            lie(shift)
            found = [frame.rgb for frame in iter_frames(path, times)]
        monkeypatch.undo()
        for one, other in zip(found, right, strict=True):
            np.testing.assert_array_equal(one, other)


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


# --- a real phone video -----------------------------------------------------------------------


@pytest.mark.data
def test_real_video() -> None:
    folder = os.environ.get("DEMR_DATA")
    path = Path(folder or "", "samples", "charades.mp4")
    if not folder or not path.exists():
        pytest.skip("DEMR_DATA does not name a folder with samples/charades.mp4")
    info = probe_video(path)
    assert info.duration_s == pytest.approx(30.7, abs=0.05)
    assert (info.width, info.height, info.codec) == (480, 270, "h264")
    assert info.fps == pytest.approx(15.0, abs=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frames = list(iter_frames(path, [k / 4 for k in range(122)], height=90))
    assert len(frames) == 122
    assert all(frame.rgb.shape == (90, 160, 3) for frame in frames)
    assert all(0 <= frame.time_s - frame.pts_s < 0.2 for frame in frames)

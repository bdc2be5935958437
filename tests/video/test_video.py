"""Frames at exact times, of the right size and way up; every frame carries its number."""

import os
import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.video.numbered_videos import (
    QUADRANTS,
    STEP,
    every,
    grey,
    last_at_or_before,
    make_video,
    number,
    quadrant_image,
    quadrant_video,
    quadrants,
    shown,
    write_sound,
)

from demr.video import Pixels, Video, cut_clip, iter_frames, probe_video
from demr.video import reading as video

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

    def counted(self: video._Converter, frame: av.VideoFrame) -> Pixels:
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


# --- facts and frames of one opening ----------------------------------------------------------


def test_a_video_is_opened_once_for_facts_and_frames(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, rows = probe_video(plain), list(iter_frames(plain, [0.05, 1.05, 3.95], height=24))
    opened = []
    real = av.open

    def counted(path: str, *others: Any, **options: Any) -> Any:
        opened.append(path)
        return real(path, *others, **options)

    monkeypatch.setattr(av, "open", counted)
    with Video(plain) as film:
        assert film.info == facts
        frames = list(film.frames([0.05, 1.05, 3.95], height=24))
    assert [frame.pts_s for frame in frames] == [row.pts_s for row in rows]
    for frame, row in zip(frames, rows, strict=True):
        np.testing.assert_array_equal(frame.rgb, row.rgb)
    assert opened == [str(plain)]
    with pytest.raises(RuntimeError, match="once"):
        film.frames([0.0])

"""Containers, codecs and clocks that users have."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from tests.video.numbered_videos import every, grey, make_video, shown

from demr.errors import VideoError
from demr.video import source as video_source
from demr.video.reading import iter_frames, probe_video


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        (".mkv", "libx264", {"crf": "5", "bf": "3"}),
        (".webm", "libvpx-vp9", {"crf": "10", "b": "0", "cpu-used": "8"}),
        (".mov", "libx264", {"crf": "5", "bf": "3"}),
        (".avi", "mpeg4", {"qscale": "1", "b": "4000000"}),
        (".ts", "libx264", {"crf": "5", "bf": "2"}),
        (".mp4", "libx265", {"crf": "5", "x265-params": "bframes=3:log-level=none"}),
        (".mkv", "libx265", {"crf": "5", "x265-params": "bframes=3:log-level=none"}),
        (".mp4", "libvpx-vp9", {"crf": "10", "b": "0", "cpu-used": "8"}),
        (".webm", "libsvtav1", {"crf": "20", "preset": "12"}),
        (".mp4", "libsvtav1", {"crf": "20", "preset": "12"}),
        (".avi", "libx264", {"crf": "5", "bf": "0"}),
        (".mov", "prores_ks", {}),
    ],
)
def test_other_containers(tmp_path: Path, suffix: str, codec: str, options: dict[str, str]) -> None:
    path = tmp_path / f"v{suffix}"
    clock_pts = every(10, 20)
    pix_fmt = "yuv422p10le" if codec == "prores_ks" else "yuv420p"
    make_video(path, clock_pts, codec=codec, options=options, pix_fmt=pix_fmt)
    assert shown(path, [0.0, 0.15, 0.95, 1.85, 1.95]) == [0, 1, 9, 18, 19]
    info = probe_video(path)
    assert info.duration_s == pytest.approx(2.0, abs=0.11)
    names = {"libx264": "h264", "libx265": "hevc", "libvpx-vp9": "vp9", "libsvtav1": "av1"}
    assert info.codec == names.get(codec, codec.removesuffix("_ks"))


def test_start_time_is_subtracted(tmp_path: Path) -> None:
    for name, first in (("late.mkv", 3000), ("late.ts", 1200), ("below.mkv", -1800)):
        muxer = {"avoid_negative_ts": "disabled"} if first < 0 else {}
        path = make_video(tmp_path / name, [first + t for t in every(10, 20)], muxer=muxer)
        assert shown(path, [0.0, 0.15, 1.95]) == [0, 1, 19], name
        assert next(iter_frames(path, [0.0])).pts_s == 0.0


@pytest.mark.parametrize("b_frames", ["0", "3"])
def test_no_timestamps_count_at_the_average_rate(tmp_path: Path, b_frames: str) -> None:
    path = make_video(tmp_path / "v.h264", every(10, 20), options={"crf": "5", "bf": b_frames})
    info = probe_video(path)
    assert info.duration_s == pytest.approx(20 / info.fps, rel=0.06)
    assert shown(path, [(k + 0.5) / info.fps for k in range(20)]) == list(range(20))


def test_one_frame_lasts_a_frame(tmp_path: Path) -> None:
    for suffix in (".mp4", ".mkv"):
        path = make_video(tmp_path / f"one{suffix}", [0])
        info = probe_video(path)
        assert info.duration_s >= 1 / info.fps > 0
        assert shown(path, [0.0, 0.5, 10.0]) == [0, 0, 0]


def test_b_frames_in_avi(tmp_path: Path) -> None:
    # The reader guesses times of display here, in the order of decoding.
    options = {"crf": "5", "bf": "3"}
    path = make_video(tmp_path / "v.avi", range(20), options=options, clock=Fraction(1, 10))
    assert shown(path, [k / 10 + 0.05 for k in range(20)]) == list(range(20))


def test_a_gap_in_the_timestamps_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "v.mp4", every(10, 40))
    decoded = video_source.Source._decoded

    def forgetful(self: video_source.Source) -> Iterator[av.VideoFrame]:
        for index, frame in enumerate(decoded(self)):
            if 10 <= index < 30:
                frame.pts = None
            yield frame

    monkeypatch.setattr(video_source.Source, "_decoded", forgetful)
    assert shown(path, [k / 10 + 0.05 for k in range(40)]) == list(range(40))


def test_what_an_edit_list_cuts_away_is_not_shown_and_not_counted(tmp_path: Path) -> None:
    # Three seconds below zero: players begin at zero.
    path = make_video(tmp_path / "v.mp4", [t - 1800 for t in every(10, 40)])
    assert shown(path, [0.0, 0.15, 0.95, 3.0]) == [30, 31, 39, 39]
    assert probe_video(path).duration_s == pytest.approx(1.0)


def moving_picture(path: Path, codec: str, pix_fmt: str, count: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(grey(index, 48, 64), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


PICTURES = [("gif", "gif", "gray"), ("avif", "libsvtav1", "yuv420p"), ("apng", "apng", "rgb24")]


@pytest.mark.parametrize(("suffix", "codec", "pix_fmt"), PICTURES)
def test_pictures_that_move_are_videos_and_stills_are_not(
    tmp_path: Path, suffix: str, codec: str, pix_fmt: str
) -> None:
    path = moving_picture(tmp_path / f"v.{suffix}", codec, pix_fmt, 20)
    assert shown(path, [0.05, 1.05, 9.0]) == [0, 10, 19]
    assert probe_video(path).duration_s == pytest.approx(2.0, abs=0.11)
    still = moving_picture(tmp_path / f"s.{suffix}", codec, pix_fmt, 1)
    with pytest.raises(VideoError, match="picture"):
        probe_video(still)


# Weights of red and blue in luma, and FFmpeg's number of the matrix.
MATRICES = {"bt601": (0.299, 0.114, 6), "bt709": (0.2126, 0.0722, 1), "bt2020": (0.2627, 0.0593, 9)}


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("matrix", MATRICES)
def test_colours_follow_the_matrix_that_the_file_names(
    tmp_path: Path, matrix: str, bits: int
) -> None:
    """BT.2020 with 10 bits carries PQ tags, as HDR does; its curve is left as it is."""
    red, green, blue = 200 / 255, 60 / 255, 90 / 255
    of_red, of_blue, code = MATRICES[matrix]
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    u, v = (blue - luma) / (2 * (1 - of_blue)), (red - luma) / (2 * (1 - of_red))
    levels = [(16 + 219 * luma), 128 + 224 * u, 128 + 224 * v]
    path = tmp_path / "v.mp4"
    pix_fmt, dtype = ("yuv420p", np.uint8) if bits == 8 else ("yuv420p10le", np.uint16)
    with av.open(str(path), "w") as container:
        options = {"crf": "5", "preset": "ultrafast", "x265-params": "log-level=none"}
        stream = container.add_stream("libx264" if bits == 8 else "libx265", 10, options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        context = stream.codec_context
        context.colorspace, context.color_range = code, 1
        if (matrix, bits) == ("bt2020", 10):
            context.color_primaries, context.color_trc = 9, 16
        for index in range(3):
            frame = av.VideoFrame(64, 48, pix_fmt)
            for plane, level in zip(frame.planes, levels, strict=True):
                size = plane.buffer_size // np.dtype(dtype).itemsize
                plane.update(np.full(size, round(level * 2 ** (bits - 8)), dtype).tobytes())
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for height in (48, 24):
        rgb = next(iter_frames(path, [0.15], height=height)).rgb
        assert np.abs(rgb[height // 2, height // 2] - np.array([200.0, 60.0, 90.0])).max() <= 3.0

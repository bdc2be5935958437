"""Clocks that jump, rates that nobody names, and lengths that nothing bears out."""

import struct
import warnings
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from tests.video.numbered_videos import every, grey, make_video, shown

from demr.errors import VideoError
from demr.video.damage import DamagedVideoWarning
from demr.video.reading import iter_frames, probe_video

TS_HOUR = 90000 * 3600


def part(path: Path, first: int, count: int, **options: object) -> Path:
    """Frames ``first`` to ``first + count`` at 10 a second, times from 0 on."""
    images = [grey(first + k, 48, 64) for k in range(count)]
    return make_video(path, every(10, count), images=images, **options)  # type: ignore[arg-type]


def quietly(path: Path, times: Sequence[float]) -> tuple[list[int], float, str]:
    """Numbers of the frames shown, the length in seconds, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DamagedVideoWarning)
        numbers, length_s = shown(path, times), probe_video(path).duration_s
    return numbers, length_s, " ".join(str(warning.message) for warning in caught)


def with_clock(source: Path, out: Path, late: Callable[[float], int]) -> Path:
    """A copy of an MPEG-TS file; ``late`` gives the ticks to add, by the place in the file."""
    data = bytearray(source.read_bytes())

    def add(at: int, by: int) -> None:
        b = data[at : at + 5]
        ticks = (b[0] >> 1 & 7) << 30 | b[1] << 22 | b[2] >> 1 << 15 | b[3] << 7 | b[4] >> 1
        ticks = (ticks + by) % (1 << 33)
        data[at] = b[0] & 0xF1 | ticks >> 29 & 0xE
        data[at + 1], data[at + 2] = ticks >> 22 & 255, ticks >> 14 & 254 | 1
        data[at + 3], data[at + 4] = ticks >> 7 & 255, ticks << 1 & 254 | 1

    for packet in range(0, len(data), 188):
        begin = packet + 4 + (1 + data[packet + 4] if data[packet + 3] & 0x20 else 0)
        starts = data[packet + 1] & 0x40 and data[begin : begin + 3] == b"\0\0\1"
        if starts and 0xC0 <= data[begin + 3] <= 0xEF:
            by = late(packet / len(data))
            if data[begin + 7] & 0x80:
                add(begin + 9, by)
            if data[begin + 7] & 0x40:
                add(begin + 14, by)
    out.write_bytes(data)
    return out


MIDDLES = [k / 10 + 0.05 for k in range(45)]


@pytest.mark.parametrize("suffix", [".ts", ".m2ts"])
@pytest.mark.parametrize("with_audio", [False, True])
def test_joined_parts_are_put_end_to_end(tmp_path: Path, suffix: str, with_audio: bool) -> None:
    data = b""
    for index in range(3):
        data += part(
            tmp_path / f"{index}{suffix}", 15 * index, 15, with_audio=with_audio
        ).read_bytes()
    path = tmp_path / f"v{suffix}"
    path.write_bytes(data)
    numbers, length_s, warned = quietly(path, MIDDLES)
    assert numbers == list(range(45))
    assert length_s == pytest.approx(4.5, abs=0.01)
    assert "its clock jumps (at 1.50, 3.00 s)" in warned
    assert "damaged" not in warned
    assert probe_video(path).fps == pytest.approx(10)
    # Far apart, alone, and cut off.
    assert shown(path, [0.05, 2.95, 4.45]) == [0, 29, 44]


@pytest.mark.parametrize("late", [20, -3, 36_000, -36_000])
@pytest.mark.parametrize("with_audio", [False, True])
def test_time_without_data_is_closed_in_mpeg_ts(
    tmp_path: Path, late: int, with_audio: bool
) -> None:
    source = part(tmp_path / "v.ts", 0, 45, with_audio=with_audio)
    path = with_clock(
        source, tmp_path / "j.ts", lambda place: 11 * TS_HOUR + (90000 * late if place > 0.5 else 0)
    )
    numbers, length_s, warned = quietly(path, MIDDLES)
    assert numbers == list(range(45))
    assert length_s == pytest.approx(4.5, abs=0.01)
    assert "its clock jumps" in warned


def test_a_clock_that_wraps_around_does_not_jump(tmp_path: Path) -> None:
    source = part(tmp_path / "v.ts", 0, 45)
    path = with_clock(source, tmp_path / "w.ts", lambda _: (1 << 33) - 90000 * 3)
    numbers, length_s, warned = quietly(path, MIDDLES)
    assert (numbers, warned) == (list(range(45)), "")
    assert length_s == pytest.approx(4.5, abs=0.01)


def test_a_pause_that_sound_fills_stays(tmp_path: Path) -> None:
    path = tmp_path / "v.ts"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 10, {"tune": "zerolatency", "crf": "5"})
        sound = container.add_stream("aac", 16000)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        heard = 0
        for index, pts in enumerate([*range(20), *range(220, 240)]):
            while heard * 1024 < pts * 1600:
                silence = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1024), np.float32), "fltp", "mono"
                )
                silence.sample_rate, silence.pts = 16000, heard * 1024
                container.mux(sound.encode(silence))
                heard += 1
            frame = av.VideoFrame.from_ndarray(grey(index, 48, 64), format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        container.mux(sound.encode(None))
    numbers, length_s, warned = quietly(path, [1.95, 12.0, 22.05, 23.95])
    assert (numbers, warned) == ([19, 19, 20, 39], "")
    assert length_s == pytest.approx(24.0, abs=0.1)


@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video"])
@pytest.mark.parametrize("form", ["mpeg", "vob"])
@pytest.mark.parametrize("b_frames", ["0", "2"])
def test_mpeg_ps_is_exact_at_every_frame(
    tmp_path: Path, codec: str, form: str, b_frames: str
) -> None:
    path = tmp_path / "v.mpg"
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, 25, {"bf": b_frames, "g": "12", "b": "900000"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(50):
            frame = av.VideoFrame.from_ndarray(grey(index, 48, 64), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert probe_video(path).duration_s == pytest.approx(2.0, abs=0.001)
    assert shown(path, [(k + 0.5) / 25 for k in range(50)]) == list(range(50))
    for index in range(0, 50, 7):
        assert shown(path, [(index + 0.5) / 25]) == [index]


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        (".h264", "libx264", {"crf": "5", "bf": "2"}),
        (".hevc", "libx265", {"crf": "5", "x265-params": "log-level=none"}),
        (".m4v", "mpeg4", {"b": "4000000"}),
        (".m2v", "mpeg2video", {"b": "4000000"}),
        (".ivf", "libvpx", {"b": "4000000"}),
    ],
)
@pytest.mark.parametrize("fps", [24, 60])
def test_raw_streams_have_the_rate_that_they_name(
    tmp_path: Path, suffix: str, codec: str, options: dict[str, str], fps: int
) -> None:
    path = tmp_path / f"v{suffix}"
    form = {".m2v": "mpeg2video"}.get(suffix)
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, fps, options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(36):
            frame = av.VideoFrame.from_ndarray(grey(index, 48, 64), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    numbers, length_s, warned = quietly(path, [(k + 0.5) / fps for k in range(36)])
    assert (numbers, warned) == (list(range(36)), "")
    assert length_s == pytest.approx(36 / fps)


def test_a_rate_that_nobody_names_is_told(tmp_path: Path) -> None:
    path = make_video(
        tmp_path / "v.mjpeg", every(10, 20), codec="mjpeg", pix_fmt="yuvj420p", options={}
    )
    _, length_s, warned = quietly(path, [0.0])
    assert length_s == pytest.approx(20 / 25)
    assert "it names no frame rate; 25 a second were assumed" in warned


def with_steps(path: Path, old: int, new: int) -> None:
    """Change every time from a frame to the next that an mp4 lists with so many ticks."""
    data = bytearray(path.read_bytes())
    begin = data.index(b"stts") + 8
    for entry in range(int.from_bytes(data[begin : begin + 4], "big")):
        place = begin + 8 + 8 * entry
        if int.from_bytes(data[place : place + 4], "big") == old:
            data[place : place + 4] = new.to_bytes(4, "big")
    path.write_bytes(data)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_ten_frames_do_not_last_a_month(tmp_path: Path, suffix: str) -> None:
    pts = [k * 250_000 for k in range(10)] if suffix == ".mkv" else [k * 10 for k in range(10)]
    path = make_video(tmp_path / f"v{suffix}", pts, clock=Fraction(1))
    if suffix == ".mp4":
        with_steps(path, 10 * 16384, (1 << 31) - 1)
        assert b"\x7f\xff\xff\xff" in path.read_bytes()
    numbers, length_s, warned = quietly(path, [0.0, 5000.0])
    assert numbers[0] == 0
    assert length_s < 3 * 3600
    assert "too little for its length" in warned


@pytest.mark.parametrize("is_edited", [True, False])
def test_one_false_step_in_an_mp4_is_closed(tmp_path: Path, is_edited: bool) -> None:
    pts = [*range(20), *range(25, 45)]
    path = make_video(tmp_path / "v.mp4", pts, clock=Fraction(1, 10), options={"bf": "0"})
    data = path.read_bytes()
    with_steps(path, 6 * 1024, (1 << 31) - 1)
    assert data != path.read_bytes()
    if not is_edited:
        path.write_bytes(path.read_bytes().replace(b"edts", b"free"))
    numbers, length_s, warned = quietly(path, MIDDLES[:40])
    # Behind the step the edit list leaves nothing in.
    count = 20 if is_edited else 40
    assert numbers[:count] == list(range(count))
    assert length_s == pytest.approx(count / 10, abs=0.11)
    assert "too little for its length" in warned


def test_a_picture_may_stay_for_half_an_hour(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.mkv", [600 * t for t in (0, 10, 1810, 1820)])
    numbers, _, warned = quietly(path, [5.0, 1800.0, 1815.0])
    assert (numbers, warned) == ([0, 1, 2], "")


def test_a_tick_of_days_is_no_clock(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.y4m", every(10, 10), codec="wrapped_avframe", options={})
    header, _, rest = path.read_bytes().partition(b"\n")
    rate = next(word for word in header.split() if word.startswith(b"F"))
    path.write_bytes(header.replace(rate, b"F1:1000000") + b"\n" + rest)
    numbers, length_s, warned = quietly(path, [(k + 0.5) / 25 for k in range(10)])
    assert numbers == list(range(10))
    assert length_s == pytest.approx(10 / 25)
    assert "its times cannot be; 25 frames a second were assumed" in warned


@pytest.mark.parametrize("suffix", [".avi", ".ivf", ".y4m", ".mp4"])
def test_a_clock_of_billions_of_frames_a_second_is_none(tmp_path: Path, suffix: str) -> None:
    codec = {".avi": "mpeg4", ".ivf": "libvpx", ".y4m": "wrapped_avframe"}.get(suffix, "libx264")
    path = make_video(tmp_path / f"v{suffix}", every(10, 20), codec=codec, options={"b": "4000000"})
    data = bytearray(path.read_bytes())
    most = (1 << 31) - 1
    if suffix == ".avi":
        begin = data.index(b"strh") + 28
        data[begin : begin + 8] = struct.pack("<II", 1, most)
    elif suffix == ".ivf":
        data[16:24] = struct.pack("<II", most, 1)
    elif suffix == ".y4m":
        header, _, rest = bytes(data).partition(b"\n")
        rate = next(word for word in header.split() if word.startswith(b"F"))
        data = bytearray(header.replace(rate, b"F2000000000:1") + b"\n" + rest)
    else:
        begin = data.index(b"mdhd") + 16
        data[begin : begin + 4] = struct.pack(">I", most)
    path.write_bytes(data)
    fps = probe_video(path).fps
    numbers, length_s, warned = quietly(path, [(k + 0.5) / fps for k in range(20)])
    assert numbers == list(range(20))
    assert length_s == pytest.approx(20 / fps)
    assert f"its times cannot be; {fps:g} frames a second were assumed" in warned


def test_frames_that_avi_leaves_out_on_purpose_are_not_missing(tmp_path: Path) -> None:
    pts = [*every(10, 20), *(2400 + t for t in every(10, 20))]
    path = make_video(tmp_path / "v.avi", pts, codec="mpeg4", options={"b": "4000000"})
    numbers, length_s, warned = quietly(path, [1.95, 3.5, 4.05, 5.95])
    assert (numbers, warned) == ([19, 19, 20, 39], "")
    assert length_s == pytest.approx(6.0, abs=0.1)


def test_frames_of_gigabytes_are_refused(tmp_path: Path) -> None:
    path = make_video(tmp_path / "v.y4m", [0, 60], codec="wrapped_avframe", options={})
    data = path.read_bytes().replace(b"W64 H48", b"W60000 H40000")
    assert b"W60000" in data
    path.write_bytes(data)
    with pytest.raises(VideoError):
        list(iter_frames(path, [0.0]))


def test_times_are_those_of_the_frames_and_not_of_the_join(tmp_path: Path) -> None:
    # A part with B-frames and one without differ in how late frames are shown.
    first = part(tmp_path / "a.ts", 0, 15, options={"crf": "5", "bf": "3"})
    second = part(tmp_path / "b.ts", 15, 30, options={"crf": "5", "bf": "0"})
    path = tmp_path / "v.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.warns(DamagedVideoWarning) as caught:
        starts = [frame.pts_s for frame in iter_frames(path, MIDDLES)]
    warned = " ".join(str(warning.message) for warning in caught)
    assert warned.endswith("its clock jumps (at 1.50 s), and the parts were put end to end")
    np.testing.assert_allclose(starts, np.arange(45) / 10, atol=1e-6)

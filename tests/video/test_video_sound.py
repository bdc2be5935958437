"""The sound of clips: there, and in step with their frames, whatever the file."""

import math
import warnings
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tests.video.numbered_videos import every, make_video
from tests.video.sounding_videos import (
    BEEPS_S,
    FPS,
    LASTS_S,
    SECONDS,
    beeps_of,
    flashes_of,
    heard,
    make_sounding,
)

from demr.video.damage import DamagedVideoWarning
from demr.video.writing import cut_clip

VARIABLE = [0, 40, 80, 1000, 1200, 2000, 3400, 3600, 6200, 6400, 8800, 9000, 9960]


@pytest.mark.parametrize(
    ("name", "sound"),
    [
        ("v.mp4", {}),
        ("v.mp4", {"layout": "mono", "rate": 22050}),
        ("v.mp4", {"layout": "5.1"}),
        ("v.mp4", {"pts": VARIABLE}),
        ("v.mp4", {"late_s": 2.0}),
        ("v.mp4", {"codec": "libmp3lame"}),
        ("v.mov", {"codec": "pcm_s16le"}),
        ("v.mkv", {"codec": "libopus"}),
        ("v.mkv", {"codec": "libopus", "late_s": 2.0}),
        ("v.mkv", {"codec": "pcm_s16le", "layout": "7.1"}),
        ("v.mkv", {"codec": "flac", "layout": "6.1"}),
        ("v.mkv", {"codec": "flac", "rate": 192_000}),
        ("v.mkv", {"codec": "flac", "rate": 37_800}),
        ("v.mkv", {"codec": "pcm_s16le", "rate": 8000, "layout": "mono"}),
        ("v.mkv", {"codec": "ac3", "layout": "5.1"}),
        ("v.webm", {"codec": "libopus", "video_codec": "libvpx"}),
        ("v.avi", {"codec": "pcm_s16le"}),
        ("v.ts", {"codec": "mp2"}),
        ("v.flv", {}),
    ],
    ids=str,
)
def test_beeps_are_heard_when_flashes_are_seen(
    tmp_path: Path, name: str, sound: dict[str, Any]
) -> None:
    source = make_sounding(tmp_path / name, **sound)
    for number, (start_s, end_s) in enumerate(((0.0, 10.0), (3.0, 7.0), (8.5, 99.0))):
        clip = tmp_path / f"clip{number}.mp4"
        with warnings.catch_warnings():
            warnings.simplefilter("error", DamagedVideoWarning)
            cut_clip(source, start_s, end_s, clip)
        wanted = [beep - start_s for beep in BEEPS_S if start_s <= beep < end_s]
        assert flashes_of(clip) == pytest.approx(wanted, abs=0.002)
        known = [beep for beep in wanted if beep + start_s >= sound.get("late_s", 0.0)]
        found = beeps_of(clip)
        # MP3 in mp4 carries its encoder's delay of 25 ms.
        near = 0.03 if sound.get("codec") == "libmp3lame" else 0.006
        assert [start for start, _ in found] == pytest.approx(known, abs=near)
        assert [end - start for start, end in found] == pytest.approx(
            [LASTS_S] * len(known), abs=0.006
        )
        samples, rate, begin = heard(clip)
        length = begin + samples.shape[1] / rate
        assert length <= min(end_s, SECONDS) - start_s + 0.15


def test_layout_and_loudness_are_kept(tmp_path: Path) -> None:
    source = make_sounding(tmp_path / "v.mkv", codec="flac", layout="5.1", rate=44_100)
    cut_clip(source, 0.5, 1.5, tmp_path / "c.mp4")
    with av.open(str(tmp_path / "c.mp4")) as container:
        (stream,) = container.streams.audio
        context = stream.codec_context
        assert (context.name, context.layout.name, context.sample_rate) == ("aac", "5.1", 44_100)
    samples, rate, _ = heard(tmp_path / "c.mp4")
    beep = samples[:, round(0.55 * rate) : round(0.65 * rate)]
    level = np.sqrt((beep**2).mean(axis=1))
    # Every second channel is half as loud; the fourth is for low tones only, and 1 kHz is none.
    assert level[[0, 2, 4]] == pytest.approx(0.5 / math.sqrt(2), rel=0.1)
    assert level[[1, 5]] == pytest.approx(0.25 / math.sqrt(2), rel=0.1)


def test_a_beep_cut_in_two_begins_at_once(tmp_path: Path) -> None:
    source = make_sounding(tmp_path / "v.mkv", codec="flac")
    cut_clip(source, 1.1, 3.5, tmp_path / "c.mp4")
    (first, second) = beeps_of(tmp_path / "c.mp4")
    assert first == pytest.approx((0.0, 0.1), abs=0.006)
    assert second == pytest.approx((2.3, 2.4), abs=0.006)


def test_sound_that_ends_early_leaves_the_rest_silent(tmp_path: Path) -> None:
    source = make_sounding(tmp_path / "v.mp4", sound_s=4.0)
    cut_clip(source, 3.0, 7.0, tmp_path / "c.mp4")
    assert len(beeps_of(tmp_path / "c.mp4")) == 1
    assert len(flashes_of(tmp_path / "c.mp4")) == 2
    cut_clip(source, 8.0, 9.0, tmp_path / "d.mp4")
    assert len(flashes_of(tmp_path / "d.mp4")) == 1


def test_a_hole_in_the_sound_is_silence(tmp_path: Path) -> None:
    """What follows damage stays in step."""
    source = make_sounding(tmp_path / "v.ts", codec="mp2")
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        audio = container.streams.audio[0]
        hole = [p.pos for p in container.demux(audio) if p.pts and 4.2 < p.pts * p.time_base < 5.2]
    for begin in hole:
        assert begin is not None
        data[begin + 20 : begin + 180] = bytes(160)
    source.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedVideoWarning)
        cut_clip(source, 0.0, 10.0, tmp_path / "c.mp4")
    assert [start for start, _ in beeps_of(tmp_path / "c.mp4")] == pytest.approx(BEEPS_S, abs=0.006)


def test_a_video_without_sound_has_clips_without(plain: Path, tmp_path: Path) -> None:
    cut_clip(plain, 1.0, 2.0, tmp_path / "c.mp4")
    with av.open(str(tmp_path / "c.mp4")) as container:
        assert not container.streams.audio


def test_a_sound_that_nobody_decodes_is_told(tmp_path: Path) -> None:
    source = make_sounding(tmp_path / "v.mkv", codec="flac")
    data = source.read_bytes()
    assert data.count(b"A_FLAC") == 1
    source.write_bytes(data.replace(b"A_FLAC", b"A_NONE"))
    with pytest.warns(DamagedVideoWarning, match="its sound cannot be decoded"):
        cut_clip(source, 1.0, 2.0, tmp_path / "c.mp4")
    assert flashes_of(tmp_path / "c.mp4") == [0.0]
    with av.open(str(tmp_path / "c.mp4")) as container:
        assert not container.streams.audio


def test_where_the_clock_jumps_a_clip_is_silent_and_says_so(tmp_path: Path) -> None:
    part = make_sounding(tmp_path / "v.ts", codec="mp2").read_bytes()
    source = tmp_path / "joined.ts"
    source.write_bytes(part + part)
    with pytest.warns(DamagedVideoWarning, match="a clip of it has no sound"):
        cut_clip(source, 10.5, 14.0, tmp_path / "c.mp4")
    assert flashes_of(tmp_path / "c.mp4") == pytest.approx([0.5, 2.9], abs=0.05)
    with av.open(str(tmp_path / "c.mp4")) as container:
        assert not container.streams.audio


def test_the_sound_of_a_turned_video_is_kept(tmp_path: Path) -> None:
    source = make_sounding(tmp_path / "v.mp4", codec="aac")
    turned = tmp_path / "turned.mp4"
    data = bytearray(source.read_bytes())
    # The matrix of the first track's header: a quarter turn.
    upright = b"".join(n.to_bytes(4, "big") for n in (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30))
    turn = b"".join(
        n.to_bytes(4, "big", signed=True) for n in (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    )
    place = data.index(upright, data.index(b"tkhd"))
    data[place : place + 36] = turn
    turned.write_bytes(data)
    cut_clip(turned, 3.0, 7.0, tmp_path / "c.mp4")
    with av.open(str(tmp_path / "c.mp4")) as container:
        video = container.streams.video[0]
        assert (video.width, video.height) == (48, 64)
    assert [start for start, _ in beeps_of(tmp_path / "c.mp4")] == pytest.approx(
        [0.4, 3.2], abs=0.006
    )


def test_a_clip_of_one_frame(tmp_path: Path) -> None:
    source = make_sounding(tmp_path / "v.mkv", codec="libopus")
    cut_clip(source, 1.0, 1.0 + 1 / FPS, tmp_path / "c.mp4")
    samples, rate, begin = heard(tmp_path / "c.mp4")
    assert begin + samples.shape[1] / rate == pytest.approx(1 / FPS, abs=0.03)


def test_numbered_frames_have_no_sound(tmp_path: Path) -> None:
    make_video(tmp_path / "v.mkv", every(10, 20))
    cut_clip(tmp_path / "v.mkv", 0.5, 1.0, tmp_path / "c.mp4")
    assert (tmp_path / "c.mp4").exists()

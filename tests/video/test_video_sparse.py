"""Times far apart: the same frames as reading everything, for less work."""

from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from tests.video.numbered_videos import (
    CLOCK,
    X264,
    count_frames,
    every,
    last_at_or_before,
    make_video,
    noise_video,
    shown,
)

from demr.video import source as video_source
from demr.video.reading import iter_frames


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


@pytest.mark.parametrize(
    ("suffix", "codec", "options", "size"),
    [
        (".mp4", "libx264", X264 | {"g": "300", "bf": "3"}, (64, 48)),
        (".mp4", "libx264", X264 | {"g": "30", "bf": "3", "x264-params": "open-gop=1"}, (64, 48)),
        (".mp4", "libx264", X264 | {"g": "300", "bf": "3"}, (400, 304)),
        (".mkv", "libx264", X264 | {"g": "300", "bf": "4", "b-pyramid": "none"}, (64, 48)),
        (".ts", "libx264", X264 | {"g": "300", "bf": "3"}, (64, 48)),
        (".mov", "mpeg4", {"b": "1000000", "g": "300", "bf": "2"}, (64, 48)),
        (
            ".mp4",
            "libx265",
            {"x265-params": "keyint=300:bframes=3:scenecut=0:b-adapt=0:log-level=none"},
            (64, 48),
        ),
        (".webm", "libvpx", {"b": "1000000", "g": "300", "cpu-used": "8"}, (64, 48)),
        (".webm", "libvpx-vp9", {"crf": "40", "b": "0", "g": "300", "cpu-used": "8"}, (64, 48)),
        (".mp4", "libsvtav1", {"crf": "50", "preset": "10", "g": "300"}, (400, 304)),
    ],
)
def test_passing_over_frames_changes_no_pixel(
    tmp_path: Path, suffix: str, codec: str, options: dict[str, str], size: tuple[int, int]
) -> None:
    """Against a plain reading by PyAV, at a variable rate."""
    rng = np.random.default_rng(2)
    count = 80
    images = [rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8) for _ in range(count)]
    pts = np.cumsum(rng.integers(1, 4, count) * 30).tolist()
    path = make_video(
        tmp_path / f"v{suffix}", pts, size=size, codec=codec, options=options, images=images
    )
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
        plain = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in decoded]
        kinds = [frame.pict_type for frame in decoded]
        assert codec in {"libvpx", "libvpx-vp9", "libsvtav1"} or PictureType.B in kinds
    assert len(plain) == count
    starts_s = [time_s - plain[0][0] for time_s, _ in plain]
    # Often less than what is worth a jump, sometimes more.
    times = np.cumsum(rng.uniform(0.1, 1.2, 12))
    for asked in (times[times < starts_s[-1]], [*times[:3], 99.0]):
        frames = list(iter_frames(path, asked))
        assert len(frames) == len(asked)
        for time_s, frame in zip(asked, frames, strict=True):
            place = last_at_or_before(starts_s, time_s)
            assert frame.pts_s == pytest.approx(starts_s[place], abs=1e-6)
            np.testing.assert_array_equal(frame.rgb, plain[place][1])


def test_frames_that_no_other_needs_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = X264 | {"g": "300", "bf": "3", "b-pyramid": "none"}
    path = noise_video(tmp_path / "v.mp4", 200, options, "libx264")
    seen = count_frames(monkeypatch)
    assert len(list(iter_frames(path, [0.05, 7.05, 14.05, 19.95]))) == 4
    # Of four frames three are B-frames; some are kept around each asked-for time.
    assert 50 <= len(seen) < 50 + 4 * 15


def test_the_start_of_a_frame_is_its_own(tmp_path: Path) -> None:
    # 25 frames a second: as products of rounded numbers many of these would lie a hair late.
    path = make_video(tmp_path / "v.mp4", every(25, 50))
    times = [k / 25 for k in range(50)]
    assert any(k * 768 * (1 / 19200) > k / 25 for k in range(50))
    assert shown(path, times) == list(range(50))


def test_a_reference_that_an_edit_list_cuts_away_stands_for_no_frame(tmp_path: Path) -> None:
    options = X264 | {"g": "300", "bf": "3", "b-pyramid": "none"}
    path = noise_video(tmp_path / "v.mp4", 41, options, "libx264")
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 12
    assert int.from_bytes(data[place : place + 4], "big") == 4100
    # The film ends in the middle of three B-frames, before what they refer to.
    data[place : place + 4] = (3450).to_bytes(4, "big")
    path.write_bytes(data)
    with av.open(str(path)) as container:
        *_, last = container.decode(video=0)
    assert last.pict_type == PictureType.B
    (frame,) = iter_frames(path, [60.0])
    assert frame.pts_s == pytest.approx(last.time)
    np.testing.assert_array_equal(frame.rgb, last.to_ndarray(format="rgb24"))

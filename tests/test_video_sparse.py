"""Times far apart: the same frames as reading everything, for less work."""

from pathlib import Path

import numpy as np
import pytest
from tests.video_files import (
    CLOCK,
    X264,
    count_frames,
    noise_video,
)

from demr import video_source
from demr.video import (
    iter_frames,
)


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

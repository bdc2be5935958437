"""Containers, codecs and clocks that users have."""

from pathlib import Path

import pytest
from tests.video_files import (
    every,
    make_video,
    shown,
)

from demr.video import (
    iter_frames,
    probe_video,
)


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

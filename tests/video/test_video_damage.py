"""Files that are no video, and videos that are broken."""

import math
import os
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.video.numbered_videos import (
    X264,
    every,
    make_video,
    noise_video,
    noisy_video,
    quadrant_image,
    shown,
    write_sound,
)

from demr.errors import InputError, VideoError
from demr.video.damage import DamagedVideoWarning
from demr.video.reading import iter_frames, probe_video
from demr.video.writing import cut_clip

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
    frame.save(str(files["picture.png"]))
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


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        (".mkv", "libx264", X264 | {"g": "10"}),
        (".webm", "libvpx-vp9", {"crf": "30", "b": "0", "g": "10", "cpu-used": "8"}),
        (".ts", "libx264", X264 | {"g": "10"}),
    ],
)
def test_a_damaged_middle_is_reported_by_every_container(
    tmp_path: Path, suffix: str, codec: str, options: dict[str, str]
) -> None:
    path = noise_video(tmp_path / f"v{suffix}", 60, options, codec)
    times = [k / 10 + 0.05 for k in range(60)]
    whole = [frame.rgb for frame in iter_frames(path, times)]
    data = bytearray(path.read_bytes())
    begin, end = len(data) * 4 // 10, len(data) // 2
    data[begin:end] = b"\xff" * (end - begin)
    path.write_bytes(data)
    with pytest.warns(DamagedVideoWarning, match="unreadable") as caught:
        found = [frame.rgb for frame in iter_frames(path, times)]
    good_s = float(str(caught[0].message).partition("good until ")[2].split()[0])
    assert 1.0 <= good_s <= 2.6
    same = [bool((a == b).all()) for a, b in zip(found, whole, strict=True)]
    # What is cut short may still decode, into something.
    assert all(same[: round(good_s * 10) - 1])
    assert all(same[45:])
    assert not all(same)


def test_a_hole_in_avi_is_told(tmp_path: Path) -> None:
    path = noise_video(tmp_path / "v.avi", 60, {"b": "4000000", "g": "10"}, "mpeg4")
    times = [k / 10 + 0.05 for k in range(60)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(iter_frames(path, times))) == 60
    data = bytearray(path.read_bytes())
    begin, end = len(data) * 4 // 10, len(data) * 5 // 10
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)
    with pytest.warns(DamagedVideoWarning) as caught:
        found = {frame.pts_s for frame in iter_frames(path, times)}
    lost_s = 6.0 - len(found) / 10
    assert 0.4 <= lost_s <= 1.0
    assert f"{lost_s:.2f} s of 6.00 s are missing" in str(caught[0].message)


@pytest.mark.parametrize("with_audio", [False, True])
def test_a_pause_is_no_damage(tmp_path: Path, with_audio: bool) -> None:
    pts = [*every(10, 20), *(6000 + t for t in every(10, 20))]
    path = make_video(tmp_path / "v.mkv", pts, with_audio=with_audio)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shown(path, [1.95, 9.0, 10.05, 11.95]) == [19, 19, 20, 39]


def test_a_closed_folder_gives_one_line(tmp_path: Path, plain: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    path = folder / "v.mp4"
    path.write_bytes(plain.read_bytes())
    folder.chmod(0)
    is_root = os.geteuid() == 0
    # To the superuser no folder is closed.
    if is_root:
        os.seteuid(65534)
    try:
        with pytest.raises(VideoError, match="Permission denied") as caught:
            probe_video(path)
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o700)
    assert "\n" not in str(caught.value)

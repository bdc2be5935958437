"""Finding videos in folders, and naming them."""

import os
from pathlib import Path

import pytest

from demr.errors import InputError
from demr.extraction.videos import VideoFile, find_videos


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_folders_are_searched_for_videos(tmp_path: Path) -> None:
    touch(
        *(tmp_path / name for name in ("b.mp4", "a/c.MKV", "a/deep/d.webm", "note.txt")),
        *(tmp_path / name for name in ("._b.mp4", ".cache/e.mp4", "a/none")),
    )
    found = find_videos([tmp_path])
    assert [(video.vid, video.path) for video in found.videos] == [
        ("b", tmp_path / "b.mp4"),
        ("c", tmp_path / "a/c.MKV"),
        ("d", tmp_path / "a/deep/d.webm"),
    ]
    assert {video.size for video in found.videos} == {1}
    assert found.closed == ()


def test_a_named_file_is_taken_whatever_its_suffix(tmp_path: Path) -> None:
    touch(tmp_path / "film.dat", tmp_path / "b.mp4")
    # Once, although it is named and lies in a folder that is named.
    found = find_videos([tmp_path / "film.dat", tmp_path / "b.mp4", tmp_path])
    assert [video.vid for video in found.videos] == ["b", "film"]


def test_a_folder_named_in_several_ways_is_searched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "x/a.mp4", tmp_path / "x/deep/b.mp4")
    (tmp_path / "link").symlink_to("x")
    monkeypatch.chdir(tmp_path / "x")
    names = ("link", "x/../x", "x", "x/deep", "x/a.mp4")
    found = find_videos([Path(), *(tmp_path / name for name in names), Path("../x/a.mp4")])
    assert [(video.vid, video.path) for video in found.videos] == [
        ("a", tmp_path / "x/a.mp4"),
        ("b", tmp_path / "x/deep/b.mp4"),
    ]


def test_equal_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("x/talk.mp4", "y/talk.mp4", "x/talk.mkv", "x/song.mp4")))
    names = [video.vid for video in find_videos([tmp_path]).videos]
    assert names == ["song", "x/talk.mkv", "x/talk.mp4", "y/talk.mp4"]
    # Two sources, each with its own talk.mp4: only the whole paths differ.
    names = [video.vid for video in find_videos([tmp_path / "x", tmp_path / "y"]).videos]
    first, second = str(tmp_path / "x/talk.mp4"), str(tmp_path / "y/talk.mp4")
    assert sorted(names) == sorted(["song", "talk.mkv", first, second])


def test_odd_names(tmp_path: Path) -> None:
    odd = ["a 'b' \"c\".mp4", "🎬 film.mp4", "-x.mp4", "new\nline.mp4", "été.mp4"]
    touch(*(tmp_path / name for name in odd))
    for name in (b"/\xff.mp4", b"/\xfe.mp4"):
        touch(Path(os.fsdecode(os.fsencode(tmp_path) + name)))
    found = find_videos([tmp_path])
    assert {video.vid for video in found.videos} == {Path(name).stem for name in odd} | {
        r"\xfe",
        r"\xff",
    }
    for video in found.videos:
        assert video.path.exists()
        video.vid.encode("utf-8")


def test_links_are_followed_to_files_and_not_round_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").symlink_to(tmp_path / "a.mp4")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere")
    (tmp_path / "again").symlink_to(tmp_path, target_is_directory=True)
    found = find_videos([tmp_path])
    assert [(video.vid, video.size) for video in found.videos] == [("a", 1), ("b", 1), ("gone", 0)]


def test_nothing_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected a video or a folder, got nothing"):
        find_videos([tmp_path / "nowhere"])
    touch(tmp_path / "note.txt")
    with pytest.raises(InputError, match=r"expected videos \(.*\.mp4.*got none; check the path"):
        find_videos([tmp_path])


def test_a_folder_that_may_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "closed/b.mp4")
    scan = os.scandir

    def deny(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    # As root, who may read everything, tests cannot close a folder.
    monkeypatch.setattr(os, "scandir", deny)
    found = find_videos([tmp_path])
    assert [video.vid for video in found.videos] == ["a"]
    assert found.closed == (f"{tmp_path / 'closed'}: Permission denied",)
    with pytest.raises(InputError, match=r"got none, and .*closed: Permission denied"):
        find_videos([tmp_path / "closed"])


def test_a_named_file_in_a_closed_folder_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "closed/b.mp4")
    look = Path.stat

    def deny(path: Path, **options: bool) -> os.stat_result:
        if path.parent.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return look(path, **options)

    monkeypatch.setattr(Path, "stat", deny)
    found = find_videos([tmp_path / "closed/b.mp4", tmp_path / "a.mp4"])
    assert [video.vid for video in found.videos] == ["a"]
    assert found.closed == (f"{tmp_path / 'closed/b.mp4'}: Permission denied",)


def test_the_key_of_a_video_changes_with_its_file() -> None:
    files = [
        VideoFile("a", Path("/a.mp4"), 5, 1),
        VideoFile("b", Path("/a.mp4"), 5, 1),
        VideoFile("a", Path("/b.mp4"), 5, 1),
        VideoFile("a", Path("/a.mp4"), 6, 1),
        VideoFile("a", Path("/a.mp4"), 5, 2),
    ]
    assert len({video.key for video in files}) == 5
    assert files[0].key == VideoFile("a", Path("/a.mp4"), 5, 1).key

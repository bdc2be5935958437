"""Several videos and folders in one search: what is a video, what is skipped, best first."""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demr.cli.search import split_words
from demr.shapes import demo_scene, render_scene

Cli = Callable[..., Any]
# In the first and third demo, and not in the second.
QUERY = "the cyan square moves to the right"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos, two of one name, beside what is none."""
    folder = tmp_path_factory.mktemp("videos")
    for seed, name in ((2, "a.mp4"), (0, "in/b [final].mp4"), (1, "in/deep/a.mp4")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        render_scene(demo_scene(seed), folder / name, width=320, height=180, fps=8)
    (folder / "notes.txt").write_text("no video")
    return folder


@pytest.fixture
def damaged(folder: Path, tmp_path: Path) -> Path:
    """The same with two files that are no videos."""
    copy = tmp_path / "damaged"
    shutil.copytree(folder, copy)
    (copy / "broken[b].mp4").write_text("This is no video.\n" * 20)
    (copy / "in" / "empty.mkv").touch()
    return copy


@pytest.mark.parametrize(
    ("words", "videos"),
    [
        (["talk", "a dog"], 1),
        (["talk.mp4", "a dog"], 1),
        (["talk.mp4", "b.MKV", "a dog"], 2),
        (["talk.mp4", "a dog", "b.mp4"], 1),
        (["talk.mp4", "the dog jumps."], 1),
        (["talk.mp4", "dogs", "a dog"], 2),
        (["talk.mp4", "dogs/", "a dog"], 2),
        (["talk.mp4", "notes.txt", "a dog"], 2),
        (["talk.mp4", "no folder", "a dog"], 1),
        (["talk.mp4", "https://example.com/b", "a dog"], 2),
        (["talk.mp4", "see https://example.com/b"], 1),
        (["talk.mp4", "x" * 5000], 1),
        (["talk.mp4", "a\0b"], 1),
        (["talk.mp4", ""], 1),
        (["talk.mp4", "\udcff dog"], 1),
        (["a dog"], 1),
        (["talk.mp4", "b.webm", "c.ts"], 3),
    ],
)
def test_videos_and_sentences_are_told_apart(
    words: list[str], videos: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dogs").mkdir()
    Path("notes.txt").touch()
    assert split_words(words) == (words[:videos], words[videos:])


def test_a_sentence_that_is_a_file_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b.mp4").touch()
    split_words(["a.mp4", "a dog", "b.mp4"])
    assert "warning: b.mp4 stands behind a sentence" in capsys.readouterr().err


def test_json_is_an_array_with_the_best_video_first(folder: Path, cli: Cli) -> None:
    one = json.loads(cli("search", folder / "in" / "b [final].mp4", QUERY, "a zebra", "--json").out)
    done = cli("search", folder, QUERY, "a zebra", "--json")
    assert (done.code, done.err, done.out.count("\n")) == (0, "", 1)
    found = json.loads(done.out)
    assert [list(video) for video in found] == [list(one)] * 3
    names = [os.path.relpath(video["video"], folder) for video in found]
    assert sorted(names) == ["a.mp4", "in/b [final].mp4", "in/deep/a.mp4"]
    # Each query has its own order.
    for number in range(2):
        answers = [video["answers"][number] for video in found]
        ranked = sorted(answers, key=lambda answer: answer["rank"])
        assert [answer["rank"] for answer in ranked] == [1, 2, 3]
        keys = [
            (("found", "uncertain", "not in this video").index(a["verdict"]), -(a["present"] or 0))
            for a in ranked
        ]
        assert keys == sorted(keys)
    assert found[0]["answers"][0]["rank"] == 1
    assert {video["answers"][0].pop("rank") for video in found} == {1, 2, 3}
    alone = found[names.index("in/b [final].mp4")]
    assert alone["answers"][0] == one["answers"][0]


def test_a_folder_of_one_video_is_an_array_too(folder: Path, cli: Cli) -> None:
    (found,) = json.loads(cli("search", folder / "in" / "deep", QUERY, "--json").out)
    assert found["video"] == str(folder / "in" / "deep" / "a.mp4")


def test_csv_names_the_video(folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    done = cli("search", "in", "a.mp4", QUERY, "a zebra", "--csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert next(iter(rows[0])) == "video"
    assert {row["video"] for row in rows} == {"a.mp4", "in/b [final].mp4", "in/deep/a.mp4"}
    assert [row["query"] for row in rows] == sorted((row["query"] for row in rows), reverse=True)
    present = [float(row["present"] or 0) for row in rows if row["query"] == QUERY]
    assert present == sorted(present, reverse=True)


def test_the_table_names_videos_and_those_without(
    folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    done = cli("search", folder, QUERY, "a zebra gallops", "--top", 2)
    assert done.code == 0
    first, second, *_ = (line for line in done.out.splitlines() if "found" in line)
    assert QUERY in first
    # The shorter name where it is enough.
    for line in (first, second):
        assert " b [final].mp4 " in line or str(folder) in line


def test_what_is_broken_is_skipped_and_named(damaged: Path, cli: Cli) -> None:
    done = cli("search", damaged, QUERY, "--json")
    assert done.code == 1
    assert len(json.loads(done.out)) == 3
    lines = done.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"demr: skipped {damaged}/broken[b].mp4: expected a readable video")
    assert lines[1].startswith(f"demr: skipped {damaged}/in/empty.mkv: ")


def test_where_nothing_can_be_read(tmp_path: Path, cli: Cli) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    done = cli("search", tmp_path, QUERY)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1].startswith("demr: 2 videos: expected at least one")
    (tmp_path / "none").mkdir()
    assert "expected videos" in cli("search", tmp_path / "none", QUERY).one_line()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["{folder}", "missing.mp4", QUERY], "missing.mp4: expected a video or a folder"),
        (["{folder}", "https://example.com/b.mp4", QUERY], "expected a file of this machine"),
        (["ftp://example.com/b.mp4", QUERY], "got a URL; download it first"),
        (["file:///talks/b.mp4", QUERY], "file:///talks/b.mp4: expected a file"),
        (["", QUERY], "expected the path of a video"),
        (["{folder}", "{folder}"], "none after the videos"),
        (["{folder}", QUERY, "--srt"], "expected one video, which subtitles belong to"),
        (["{folder}/a.mp4", "{folder}/in", QUERY, "--srt"], "got 2 videos"),
    ],
)
def test_what_is_refused_before_a_video_is_read(
    folder: Path, cli: Cli, words: list[str], expected: str
) -> None:
    filled = [word.replace("{folder}", str(folder)) for word in words]
    assert expected in cli("search", *filled).one_line()


def test_a_video_named_twice_is_read_once(folder: Path, cli: Cli) -> None:
    video = folder / "a.mp4"
    done = cli("search", video, folder / "in" / ".." / "a.mp4", folder, QUERY, "--json")
    assert done.code == 0
    assert len(json.loads(done.out)) == 3


def test_clips_are_of_the_moments_in_the_table(folder: Path, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "clips"
    arguments = ("search", folder, QUERY, "--top", 2, "--json", "--save-clips", out)
    done = cli(*arguments)
    assert done.code == 0, done.err
    saved = sorted(path.name for path in out.iterdir())
    assert len(saved) == 2
    assert any(name.startswith("b [final]-01-") for name in saved)
    assert "expected a folder without clips" in cli(*arguments).one_line()


def test_a_page_of_several_videos(folder: Path, cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "new" / "answers.html"
    done = cli("search", folder, QUERY, "--html", page)
    assert (done.code, done.err) == (0, f"{page}\n")
    text = page.read_text(encoding="utf-8")
    assert text.count("<video ") == 2
    assert f"No moment in {folder / 'a.mp4'}." in text
    for name, words in ((folder / "a.mp4", "another name"), (tmp_path / "new", "a folder")):
        assert f"got {words}" in cli("search", folder, QUERY, "--html", name).one_line()


def test_subtitles_leave_the_notes_to_stderr(folder: Path, cli: Cli) -> None:
    done = cli("search", folder / "a.mp4", "a zebra gallops", "--srt")
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("note: the model was never trained on: zebra, gallops")

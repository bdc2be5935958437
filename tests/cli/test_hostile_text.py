"""Queries and file names that look like markup, or like commands to a terminal."""

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
QUERY = "a giraffe [/b] dances"


@pytest.fixture
def bracketed(world: Path, tmp_path: Path) -> Path:
    """A video whose path closes a tag that nobody opened, and whose name has one."""
    source = next((world / "videos").glob("iid*.mp4"))
    folder = tmp_path / "talk["
    folder.mkdir()
    return Path(shutil.copy(source, folder / "b] [final].mp4"))


def test_search_prints_queries_as_they_are(
    run: Path, bracketed: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = cli("search", bracketed, QUERY, "circle [red]x[/red] \x1b[2J", "--model", run)
    assert (done.code, done.err) == (0, "")
    assert QUERY in done.out
    assert r"circle [red]x[/red] \x1b[2J" in done.out
    assert "\x1b" not in done.out
    # The note on words that the model was never trained on.
    assert f"note on '{QUERY}'" in done.out


def test_what_the_encoding_lacks_becomes_a_question_mark(
    run: Path, bracketed: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for option in ("--csv", "--srt", "--top=1"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            done = cli("search", bracketed, "a 🦒 \udcff circle", "--model", run, option)
        stream.flush()
        assert done.code == 0
        assert all(line.startswith("note: ") for line in done.err.splitlines())
        printed = stream.buffer.getvalue()
        assert b"circle" in printed or option == "--srt"


def test_complaints_are_one_line_whatever_a_file_is_called(cli: Cli, tmp_path: Path) -> None:
    line = cli("search", tmp_path / "a\nb\x1b[2J[" / "b].mp4", "a circle").one_line()
    assert r"a b\x1b[2J[/b].mp4" in line

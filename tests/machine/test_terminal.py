import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from demr.machine.terminal import clock, console, plain, printable, shortened, status


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0:00.0"), (9.94, "0:09.9"), (59.96, "1:00.0"), (3599.96, "1:00:00.0"), (-1, "0:00.0")],
)
def test_clock_carries_after_rounding(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@given(st.floats(0, 360_000))
def test_clock_is_within_half_a_tenth(seconds: float) -> None:
    total = 0.0
    for part in clock(seconds).split(":"):
        total = total * 60 + float(part)
    assert abs(total - seconds) <= 0.05 + 1e-6


@given(st.text(st.characters(exclude_categories=())))
def test_printable_text_is_one_line_that_any_utf8_stream_takes(text: str) -> None:
    shown = printable(text)
    assert len(shown.encode().splitlines()) <= 1
    assert len(shown.splitlines()) <= 1
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)
    assert printable(shown) == shown


def test_printable_keeps_what_letters_and_emoji_are_made_of() -> None:
    for text in ("👩‍🚀 dances", "می‌خواهم", "e\u0301", "a\u00a0b"):
        assert printable(text) == text


@pytest.mark.parametrize("text", ["a [/b] c", "[red]x[/red]", ":smile: 12 'x'", "[link=x]"])
def test_strings_are_printed_as_they_are(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    console().print(text)
    console(stderr=True).print(text)
    assert capsys.readouterr() == (f"{text}\n", f"{text}\n")
    stream = io.StringIO()
    Console(file=stream).print(plain(text))
    assert stream.getvalue() == f"{text}\n"


def test_status_takes_any_file_name() -> None:
    with status("reading talk[/b].mp4") as tell:
        tell("reading [/i] at 0:10")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u200bb", r"a\u200bb"),
        ("a\u200db", r"a\u200db"),
        ("\ufeffa\u00ad\u200e\u061c", r"\ufeffa\xad\u200e\u061c"),
        ("a\U000e0041b", r"a\U000e0041b"),
        ("é\u200d\u202ee", r"é\u200d\u202ee"),
    ],
)
def test_what_has_no_width_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text(st.characters(exclude_categories=()), max_size=300), st.integers(3, 100))
def test_shortened_text_keeps_both_ends(text: str, most: int) -> None:
    short = shortened(text, most)
    assert len(short) <= most
    whole = printable(text)
    if len(whole) <= most:
        assert short == whole
    elif len(text) <= most:
        half = (most - 1) // 2
        assert short == f"{whole[:half]}…{whole[len(whole) - half :]}"


def test_strings_in_tables_and_lines_of_consoles_are_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = Table("a [/b]\x1b[2J")
    table.add_row("c [/d]\x07\u202e")
    console().print(table, "e [/f]\x1b]0;title\x07")
    printed = capsys.readouterr().out
    assert r"a [/b]\x1b[2J" in printed
    assert r"c [/d]\x07\u202e" in printed
    assert r"e [/f]\x1b]0;title\x07" in printed
    assert "\x1b" not in printed
    assert "\x07" not in printed

"""What commands show and ask for while they work, and text of others as a terminal may show it."""

from __future__ import annotations

import io
import os
import re
import sys
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Any, Final

from demr.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.text import Text

# Control characters move the cursor or start commands of the terminal, separators break lines,
# direction marks turn round what follows them, what has no width hides in other text, and no
# encoding carries half a surrogate pair.
_NEVER: Final = (
    r"\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    r"\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f"
)
# Joiners belong to Persian, to the scripts of India and to emoji, with such signs on both sides.
_SCRIPT: Final = rf"[^\x00-\x7f\u200c\u200d{_NEVER}]"
_UNPRINTABLE: Final = re.compile(
    rf"[{_NEVER}]|(?<!{_SCRIPT})[\u200c\u200d]|[\u200c\u200d](?!{_SCRIPT})"
)
# A line that people read; what is left out of a longer one is its middle.
_LONGEST_LINE: Final = 480


def printable(text: str) -> str:
    r"""Return text on one line, with escapes in place of what a terminal or a page would obey.

    >>> printable("a\x1b[31mred\u202e\n [/b] 🦒")
    'a\\x1b[31mred\\u202e\\n [/b] 🦒'
    """
    if text.isprintable():
        return text
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shortened(text: str, most: int = _LONGEST_LINE) -> str:
    """Return printable text with its middle left out where it is too long to be read.

    >>> shortened("/very/long/path/of/a/video.mp4", 15)
    '/very/l…deo.mp4'
    """
    # Escapes are longer than what they stand for, but never shorter.
    text = printable(_without_middle(text, 2 * most))
    return _without_middle(text, most)


def _without_middle(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[:half]}…{text[len(text) - half :]}"


def plain(text: str, style: str = "") -> Text:
    """Return text for tables and lines of rich, which takes square brackets in a string for markup.

    Args:
        text: Anything, such as a query or a file name; see :func:`printable`.
        style: Of the whole text.
    """
    from rich.text import Text

    return Text(printable(text), style=style)


def console(*, stderr: bool = False, soft_wrap: bool = False) -> Console:
    """A console that prints strings as they are: no markup, emoji codes or colours of numbers.

    Control characters in strings are escaped, line ends too: what has several lines is printed
    line by line, or as a ``Text``. A reader that has gone is no error.
    """
    from rich.console import Console

    class PlainConsole(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(text), **options)

        def on_broken_pipe(self) -> None:
            _silence(self.file)

    return PlainConsole(
        stderr=stderr, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False
    )


def open_closed_streams() -> None:
    """Let no file that is opened later become the standard output of C libraries, or the input.

    A standard stream that was closed when the program began reads as empty and takes everything,
    and what the encoding of an output lacks becomes a question mark.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free is this one.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def say(*lines: str, stderr: bool = False) -> None:
    """Print lines, each as one whatever names of files and words of users are in it.

    Raises:
        OSError: If the disk is full; a reader that has gone is no error.
    """
    write_text("".join(f"{printable(line)}\n" for line in lines), stderr=stderr)


def complain(line: str) -> None:
    """Print one line of at most 500 characters about what went wrong on stderr, if it can be."""
    with suppress(OSError):
        write_text(f"demr: {shortened(line)}\n", stderr=True)


def write_text(text: str, *, stderr: bool = False) -> None:
    """Print text as it is, such as JSON, at once.

    Raises:
        OSError: If the disk is full; a reader that has gone is no error.
    """
    stream = sys.stderr if stderr else sys.stdout
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        # The reader (head, less) has seen enough; the work goes on, and ends as it would have.
        _silence(stream)


def end_output() -> None:
    """Bring out what is still in the buffers, so that the interpreter's end cannot fail on it.

    Raises:
        OSError: If the disk is full.
    """
    failed: OSError | None = None
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            _silence(stream)
        except OSError as error:
            _silence(stream)
            failed = error
    if failed is not None:
        raise failed


def _silence(stream: IO[str]) -> None:
    """Let a stream that cannot be written to any more lead nowhere."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def status(text: str) -> Iterator[Callable[[str], None]]:
    """Show on stderr what is being done; the block gets a function to show the next step."""
    with console(stderr=True).status(plain(text)) as spinner:
        yield lambda text: spinner.update(plain(text))


def need_extra(extra: str, *modules: str) -> None:
    """Make sure that optional packages are here.

    Raises:
        InputError: If one is not.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise InputError(
            f"this command without {', '.join(missing)}",
            expected=f"the packages of the extra '{extra}'",
            got="an installation without them",
            remedy=f"pip install 'demr[{extra}]' (from a clone: make install)",
        )


def clock(seconds: float) -> str:
    """Return a time as minutes, seconds and tenths, with hours where there are any.

    >>> clock(59.96), clock(125.32), clock(3725.0)
    ('1:00.0', '2:05.3', '1:02:05.0')
    """
    tenths = round(max(seconds, 0.0) * 10)
    minutes, rest = divmod(tenths, 600)
    text = f"{rest // 10:02d}.{rest % 10}"
    if minutes < 60:
        return f"{minutes}:{text}"
    return f"{minutes // 60}:{minutes % 60:02d}:{text}"


def counted(number: int, what: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "video"), counted(0, "clip"), counted(12, "file")
    ('1 video', '0 clips', '12 files')
    """
    return f"{number} {what}" + ("" if number == 1 else "s")

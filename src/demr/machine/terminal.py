"""What commands show and ask for while they work, and text of others as a terminal may show it."""

from __future__ import annotations

import re
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from demr.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.text import Text

# Control characters move the cursor or start commands of the terminal, separators break lines,
# direction overrides turn round what follows them, and no encoding carries half a surrogate pair.
_UNPRINTABLE: Final = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Return text on one line, with escapes in place of what a terminal or a page would obey.

    >>> printable("a\x1b[31mred\u202e\n [/b] 🦒")
    'a\\x1b[31mred\\u202e\\n [/b] 🦒'
    """
    if text.isprintable():
        return text
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def plain(text: str, style: str = "") -> Text:
    """Return text for tables and lines of rich, which takes square brackets in a string for markup.

    Args:
        text: Anything, such as a query or a file name; see :func:`printable`.
        style: Of the whole text.
    """
    from rich.text import Text

    return Text(printable(text), style=style)


def console(*, stderr: bool = False, soft_wrap: bool = False) -> Console:
    """A console that prints strings as they are: no markup, emoji codes or colours of numbers."""
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False)


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

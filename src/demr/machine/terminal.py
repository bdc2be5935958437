"""What commands show and ask for while they work."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from demr.errors import InputError


def status(text: str) -> Any:
    """A line that says what is being done, while it is; for people, on stderr."""
    from rich.console import Console

    return Console(stderr=True).status(text)


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

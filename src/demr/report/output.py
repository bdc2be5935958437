"""Files that a report leaves behind, and text of others in pictures and in Markdown."""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING, Final

from demr.errors import InputError
from demr.machine.files import atomic_path
from demr.machine.terminal import printable

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

# An underscore inside a word is only one.
_MARKDOWN: Final = re.compile(r"[\\`*\[\]<>|$~]|(?<!\w)_|_(?!\w)|^(?=#)")


def write_output(path: Path, content: bytes) -> None:
    """Write a file under another name and move it into place, so that no half file is ever seen.

    Raises:
        InputError: If the folder or the file cannot be written; an older file stays as it was.
    """
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise InputError(
            str(path),
            expected="a file that can be written",
            got=error.strerror or str(error),
            remedy="name a writable folder with enough free space",
        ) from error


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, whatever letters are in it.

    Raises:
        InputError: As :func:`write_output` does.
    """
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # Letters that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        figure.savefig(stream, format="png")
    write_output(path, stream.getvalue())


def figure_text(text: str) -> str:
    r"""Return text as matplotlib draws it: a dollar begins no formula, a label is never hidden.

    >>> figure_text("$x_"), figure_text("_a")
    ('\\$x_', ' _a')
    """
    shown = printable(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def markdown(text: str) -> str:
    r"""Return text as Markdown shows it, on one line and in one cell.

    >>> markdown("a|b [c](d)"), markdown("lambda_geom=0.1, + RFF")
    ('a\\|b \\[c\\](d)', 'lambda_geom=0.1, + RFF')
    """
    return _MARKDOWN.sub(lambda found: f"\\{found[0]}", printable(text))

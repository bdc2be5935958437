"""What a table of features is, and the errors that all its published forms share."""

import textwrap
from collections.abc import Sequence

from demr.errors import FeatureError
from demr.machine.arrays import ArrayHeader


def check_table(header: ArrayHeader, where: str) -> tuple[int, int]:
    """Rows and columns of a table of numbers.

    Raises:
        FeatureError: If it is none.
    """
    shape, kind = header.shape, header.dtype.kind
    if len(shape) != 2 or 0 in shape or kind not in "fiu":
        raise FeatureError(
            where,
            expected="a table of numbers, clips by features",
            got=f"{header.dtype} of shape {shape}",
            remedy="extract this video again",
        )
    return shape[0], shape[1]


def only_array(names: Sequence[str], where: str) -> str:
    """The array called ``features``, or the only one there is.

    Raises:
        FeatureError: If there is neither.
    """
    if "features" in names:
        return "features"
    if len(names) != 1:
        raise FeatureError(
            where,
            expected="an array called 'features', or a single one",
            got=textwrap.shorten(", ".join(names) or "none", 100, placeholder=" ..."),
            remedy="name the folder of this stream alone",
        )
    return names[0]


def damaged(where: str, error: BaseException) -> FeatureError:
    """The error of a library at a damaged file, in one line."""
    return FeatureError(
        where,
        expected="a readable file of features",
        got=textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ..."),
        remedy="fetch or extract it again",
    )

"""What can be asked: checks of arguments before a video is read or a model is loaded."""

import os
from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path

from demr.errors import InputError

LONGEST_QUERY_WORDS = 77


def check_queries(queries: Sequence[str], top: int) -> None:
    """Reject a search that asks for nothing, or what cannot be asked.

    Raises:
        InputError: If there is no query, one is no text, has no word or too many, or ``top`` is
            not a whole number from 1 on.
    """
    if not isinstance(queries, list | tuple):
        raise wrong_value(
            "query", "a sentence, or a list of sentences", queries, "describe the moment"
        )
    if not queries:
        raise InputError(
            "queries", expected="at least one", got="an empty list", remedy="ask something"
        )
    check_count("top (--top)", top)
    for text in queries:
        check_query(text)


def check_query(query: str) -> None:
    """Reject what cannot be asked.

    Raises:
        InputError: If the query is no text, holds no word or is longer than encoders read.
    """
    if not isinstance(query, str):
        raise wrong_value("query", "a sentence", query, "describe each moment in a string")
    words = query.split()
    if not any(map(str.isalnum, query)):
        raise InputError(
            "query",
            expected="a sentence",
            got=f"no word in {query[:20]!r}" if words else "an empty one",
            remedy="describe the moment",
        )
    if len(words) > LONGEST_QUERY_WORDS:
        raise InputError(
            f"query '{' '.join(words[:6])} ...'",
            expected=f"at most {LONGEST_QUERY_WORDS} words",
            got=f"{len(words)}",
            remedy="describe one moment in one sentence",
        )


def check_count(name: str, value: int) -> None:
    """Reject what counts nothing.

    Raises:
        InputError: If it is not a whole number from 1 on.
    """
    if not _is_number(value, Integral) or value < 1:
        raise wrong_value(name, "a whole number, at least 1", value, "try 5, or leave it out")


def check_level(level: float) -> None:
    """Reject what is no coverage of intervals.

    Raises:
        InputError: If it is not a number between 0 and 1.
    """
    if _is_number(level, Real) and 0 < level < 1:
        return
    is_percent = _is_number(level, Real) and 1 < level < 100
    remedy = f"write {level / 100:g} for {level:g} %" if is_percent else "try 0.9"
    raise wrong_value("level (--level)", "a number between 0 and 1", level, remedy)


def check_path(
    path: str | os.PathLike[str], what: str = "video", example: str = "talk.mp4"
) -> Path:
    """Reject what cannot name a file.

    Args:
        path: Given by the user.
        what: It is, for the error.
        example: Of a path.

    Raises:
        InputError: If it is neither text nor a path, or empty.
    """
    if isinstance(path, str) and path:
        return Path(path)
    if isinstance(path, os.PathLike):
        named = os.fspath(path)
        if isinstance(named, str):
            return Path(named)
    raise wrong_value(what, f"the path of a {what}", path, f"name one, such as '{example}'")


def check_encoder(encoder: object) -> None:
    """Reject what is no encoder.

    Raises:
        InputError: If it is not an object with an identity that encodes videos and queries.
    """
    if isinstance(encoder, type) or not (
        hasattr(encoder, "identity") and hasattr(encoder, "encode_video")
    ):
        remedy = "make one with demr.encoders.get_encoder('clip')"
        raise wrong_value("encoder", "an encoder", encoder, remedy)


def _is_number(value: object, kind: type) -> bool:
    # A bool counts as a number in Python, and as a mistake here.
    return isinstance(value, kind) and not isinstance(value, bool)


def wrong_value(subject: str, expected: str, value: object, remedy: str) -> InputError:
    """The error to raise where an argument has another type, or a value that cannot be."""
    if _is_number(value, Real):
        got = str(value)
    else:
        text = value if isinstance(value, str) and value else repr(value)
        got = f"{text[:60]} ({type(value).__name__})"
    return InputError(subject, expected=expected, got=got, remedy=remedy)

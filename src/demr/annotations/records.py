"""Records of queries as they stand in a file: its text, lines and numbers, and what is broken."""

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from demr.errors import AnnotationError
from demr.machine.reading import read_records

Qid = int | str
# A record, where it stood (for messages), and the ending of its qid if it has none.
Located = tuple[str, str, Mapping[str, Any]]

T = TypeVar("T")

_SHOWN = 80  # characters of a faulty value that a message repeats
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # what spreadsheets call "Unicode text"
_VIDEO_ENDINGS = (
    ".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts",
    ".webm", ".wmv",
)  # fmt: skip


def read_text(source: Path, kind: str = "queries") -> str:
    """The text of a UTF-8 file, gzipped or not.

    Args:
        source: The file.
        kind: What it should hold, for the message.

    Raises:
        AnnotationError: If it cannot be read or is no such text.
    """
    try:
        data = read_records(source)
        return data.decode("utf-16" if data[:2] in _UTF_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        place, got = f"{source}:{line}", f"byte 0x{data[error.start]:02x}"
        raise AnnotationError(
            place, expected="UTF-8 text", got=got, remedy="is this the right file?"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AnnotationError(
            str(source), expected=f"a file of {kind}", got=reason, remedy="check path and download"
        ) from error


def json_lines(source: Path, text: str) -> Iterator[Located]:
    """Records of JSON Lines alone; empty lines are skipped.

    Raises:
        AnnotationError: If a line is no JSON object.
    """
    for number_, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{source}:{number_}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise broken(place, "one JSON object a line", repr(line.strip())) from error
        if not isinstance(record, dict):
            raise broken(place, "one JSON object a line", repr(line.strip()))
        yield place, str(number_), record


def broken(place: str, expected: str, got: str) -> AnnotationError:
    """The error of one damaged record; a long value is shortened."""
    shown = got if len(got) <= _SHOWN else got[:_SHOWN] + "..."
    return AnnotationError(place, expected=expected, got=shown, remedy="correct the record")


def number(place: str, name: str, value: object) -> float:
    """A finite number.

    Raises:
        AnnotationError: If it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise broken(place, f"a number as {name}", repr(value))
    try:
        result = float(value)
    except OverflowError:  # JSON's whole numbers know no bound
        result = math.inf
    if not math.isfinite(result):
        raise broken(place, f"a finite number as {name}", str(result))
    return result


def member(place: str, record: object, key: str, kind: type[Any]) -> Any:
    """The value under a key of an object.

    Raises:
        AnnotationError: If it is missing or of another kind.
    """
    if not isinstance(record, dict):
        raise broken(place, f"an object with the key {key!r}", repr(record))
    if key not in record:
        raise broken(place, f"the key {key!r}", ", ".join(map(str, record)) or "nothing")
    if not isinstance(record[key], kind):
        what = {"dict": "an object", "list": "a list", "str": "text"}[kind.__name__]
        raise broken(place, f"{what} under {key!r}", repr(record[key]))
    return record[key]


class ByQid(Generic[T]):
    """What belongs to a qid; a number and its digits are one qid.

    Lists are made where a qid is shared alone: one for every query takes the garbage collector a
    tenth of the time of reading.
    """

    def __init__(self) -> None:
        self._first: dict[str, T] = {}
        self._others: dict[str, list[T]] = {}

    def add(self, qid: Qid, item: T) -> Sequence[T]:
        """Take an item, and give those of its qid that came before."""
        key = str(qid)
        if key not in self._first:
            self._first[key] = item
            return ()
        known = self.get(qid)
        self._others.setdefault(key, []).append(item)
        return known

    def get(self, qid: Qid) -> Sequence[T]:
        """Items of a qid, in the order they came."""
        key = str(qid)
        return (self._first[key], *self._others.get(key, ())) if key in self._first else ()


def video_name(text: str) -> str:
    """What a video is called: the name of its file without the ending, as extraction calls it.

    >>> video_name("s01-d01.avi"), video_name("AO8RW"), video_name("v1.2")
    ('s01-d01', 'AO8RW', 'v1.2')
    """
    stem, dot, ending = text.rpartition(".")
    return stem if stem and dot + ending.lower() in _VIDEO_ENDINGS else text

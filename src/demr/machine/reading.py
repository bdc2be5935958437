"""Files that others wrote, read: regular files alone, and no more bytes than were bargained for.

A pipe without a writer waits for ever, ``/dev/zero`` never ends, and a few kilobytes of gzip can
hold a thousand times as much. What is refused is an :class:`OSError`, which callers turn into
their own error of one line, as they do with a missing file.
"""

import errno
import gzip
import io
import os
import re
import stat
from pathlib import Path
from typing import IO, BinaryIO

from demr.machine.memory import memory_left, readable_size

SETTINGS_BYTES = 64 << 20
"""More than any file of settings has: the largest published tokenizers are half of it."""

_GZIP = b"\x1f\x8b"
_PIECE = 1 << 20
# Text becomes objects of Python: lists of small numbers take ten times as much as their JSON.
_TEXT_SHARE = 16
# What a shell hands down: a pipe, a here-document, a process substitution.
_INHERITED = re.compile(r"/dev/(?:stdin|fd/\d+)|/proc/self/fd/\d+", re.ASCII)
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_regular(path: Path) -> None:
    """Refuse what is no regular file, before a library opens it.

    Raises:
        OSError: If it is missing, a folder, a pipe, a socket or a device.
    """
    mode = _stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    for is_kind, name in _KINDS:
        if is_kind(mode):
            raise OSError(f"{name}, no regular file")


def check_regular_tree(folder: Path) -> None:
    """Refuse a folder in which anything but regular files and folders lies.

    For libraries that open files of a folder by names of their own.

    Raises:
        OSError: If there is such a thing, or the folder is missing.
    """
    for path in sorted(folder.iterdir()):
        if not path.exists() or path.is_dir():
            continue  # a link to nothing is missing to whoever asks for it
        try:
            check_regular(path)
        except OSError as error:
            raise OSError(f"{path.name} is {error}") from error


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: If it is none, or cannot be read.
    """
    check_regular(path)
    # Something else may have come to lie there since: opening a pipe must not wait either.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError("no regular file")
    return os.fdopen(handle, "rb")


def read_bytes(path: Path, most: int = SETTINGS_BYTES) -> bytes:
    """Read a whole file: a regular one, or a pipe that the shell handed down.

    Args:
        path: The file; ``/dev/stdin`` and ``/dev/fd/N`` may be pipes.
        most: Bytes that are read at most.

    Raises:
        OSError: If it is no such file, is larger, or cannot be read.
    """
    if _INHERITED.fullmatch(str(path)) and not _is_endless(path):
        with path.open("rb") as stream:
            return _read_pieces(stream, most)
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise _too_large(size, most)
        # No more than was there: files of /proc say that they are empty, and some never end.
        return stream.read(size)


def read_text(path: Path, most: int = SETTINGS_BYTES, encoding: str = "utf-8") -> str:
    """Read a whole text file, as :func:`read_bytes` does.

    Raises:
        OSError: If it is no regular file, is larger, or cannot be read.
        UnicodeDecodeError: If it is no such text.
    """
    return read_bytes(path, most).decode(encoding)


def read_records(path: Path) -> bytes:
    """Read a file of records, gzipped or not: as much as memory can hold once it is parsed.

    Raises:
        OSError: If it is no regular file, is larger, or cannot be read.
        EOFError: If a gzipped file is cut short.
        zlib.error: If one is damaged.
    """
    most = memory_left() // _TEXT_SHARE
    data = read_bytes(path, most)
    return gunzip(data, most) if data[:2] == _GZIP else data


def gunzip(data: bytes, most: int) -> bytes:
    """Unpack gzip piece by piece, and stop where it becomes too much.

    Args:
        data: One gzip file or several, one behind the other.
        most: Bytes that may come out.

    Raises:
        OSError: If more come out.
        EOFError: If it is cut short.
        zlib.error: If it is damaged.
    """
    # The size in its last bytes is no size where a download was cut short.
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
        return _read_pieces(stream, most)


def _read_pieces(stream: IO[bytes] | gzip.GzipFile, most: int) -> bytes:
    """All of a stream whose length nobody knows."""
    pieces, size = [], 0
    while piece := stream.read(_PIECE):
        pieces.append(piece)
        size += len(piece)
        if size > most:
            raise _too_large(size, most)
    return b"".join(pieces)


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except ValueError as error:  # a NUL, or half of a surrogate pair
        raise OSError("a path that no file can have") from error


def _is_endless(path: Path) -> bool:
    """Whether it is something endless; a terminal ends, and so does the empty device."""
    mode = _stat(path).st_mode
    if not stat.S_ISCHR(mode):
        return stat.S_ISBLK(mode) or stat.S_ISDIR(mode)
    if path.samefile(os.devnull):
        return False
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return not os.isatty(handle)
    finally:
        os.close(handle)


def _too_large(size: int, most: int) -> OSError:
    return OSError(f"{readable_size(size)} or more, where {readable_size(most)} can be read")

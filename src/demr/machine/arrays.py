"""Arrays of others in ``.npy`` and ``.npz``: known before they are read, never unpickled.

What an array takes in memory stands in its header, and what a compressed one unpacks to in the
directory of the archive: a file of some kilobytes may promise terabytes, and nothing of those is
read or reserved.
"""

import io
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from demr.machine.memory import memory_left, readable_size
from demr.machine.reading import open_regular

UNREADABLE_ARRAYS = (
    OSError, ValueError, TypeError, EOFError, LookupError, ArithmeticError, RuntimeError,
    MemoryError, AttributeError, SyntaxError,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
)  # fmt: skip
"""What NumPy, h5py and the modules under them raise at a damaged or foreign array file."""

# An array is converted, scaled or joined to others before it is stored: copies of it.
_SHARE = 4
_ZIP = b"PK\x03\x04"
# What numpy.savez writes. Others may reserve gigabytes before they unpack a byte.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class ArrayHeader:
    """What is known of an array without reading it.

    Attributes:
        shape: Its dimensions.
        dtype: Its type.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


def readable_memory() -> int:
    """Bytes of numbers that memory holds, with room to work on them."""
    return memory_left() // _SHARE


def check_memory(nbytes: int) -> None:
    """Refuse to read what memory cannot hold, with room to work on it.

    Raises:
        OSError: If it cannot.
    """
    most = readable_memory()
    if nbytes > most:
        raise OSError(
            f"{readable_size(nbytes)} of numbers, where {readable_size(most)} can be read"
        )


def check_loadable(path: Path) -> None:
    """Refuse a file of weights that memory cannot hold, packed or unpacked.

    Raises:
        OSError: If it cannot, or it is no regular file.
        zipfile.BadZipFile: If it begins as an archive, as torch writes it, and is none.
    """
    most = memory_left()
    with open_regular(path) as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        if size <= most and stream.read(4) == _ZIP:
            with zipfile.ZipFile(stream) as archive:
                size = max(size, sum(info.file_size for info in archive.infolist()))
    if size > most:
        raise OSError(f"{readable_size(size)} of weights, where {readable_size(most)} are left")


class ArrayFile:
    """An open ``.npz``, or an ``.npy`` with one array; the content decides, not the name.

    Args:
        path: The file.

    Attributes:
        names: Of its arrays; that of an ``.npy`` is ``arr_0``.

    Raises:
        UNREADABLE_ARRAYS: If it is neither.
    """

    def __init__(self, path: Path) -> None:
        self._stream = open_regular(path)
        try:
            self._archive = self._open_archive()
        except BaseException:
            self._stream.close()
            raise
        self.names: tuple[str, ...] = ("arr_0",)
        if self._archive is not None:
            self.names = tuple(name.removesuffix(".npy") for name in self._archive.namelist())

    def _open_archive(self) -> zipfile.ZipFile | None:
        magic = self._stream.read(len(npy.MAGIC_PREFIX))
        self._stream.seek(0)
        return None if magic == npy.MAGIC_PREFIX else zipfile.ZipFile(self._stream)

    def header(self, name: str) -> ArrayHeader:
        """Shape and type of an array, checked against the bytes that are there.

        Raises:
            UNREADABLE_ARRAYS: If there is no such array, or its header is damaged or untrue.
        """
        with self._open(name) as (stream, size):
            return _header(stream, size)

    def read(self, name: str) -> NDArray[Any]:
        """Read an array.

        Raises:
            UNREADABLE_ARRAYS: If it is damaged, no plain numbers or text, or more than memory
                holds.
        """
        check_memory(self.header(name).nbytes)
        with self._open(name) as (stream, _):
            array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
            return array

    @contextmanager
    def _open(self, name: str) -> Iterator[tuple[IO[bytes], int]]:
        """An array's bytes, and how many there are."""
        if self._archive is None:
            size = self._stream.seek(0, io.SEEK_END)
            self._stream.seek(0)
            yield self._stream, size
            return
        known = self._archive.NameToInfo
        info = known[f"{name}.npy" if f"{name}.npy" in known else name]
        if info.compress_type not in _METHODS:
            raise ValueError(f"{info.filename} compressed in a way that numpy.savez does not have")
        with self._archive.open(info) as stream:
            yield stream, info.file_size

    def __enter__(self) -> Self:
        """Leave it open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._stream.close()


def _header(stream: IO[bytes], size: int) -> ArrayHeader:
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = npy.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = npy.read_array_header_2_0(stream)
    else:
        raise ValueError(f"version {version} of the format, known are 1.0 and 2.0")
    if dtype.hasobject:
        raise ValueError("pickled objects")
    header = ArrayHeader(shape, dtype)
    if min(shape, default=0) < 0 or header.nbytes > size - stream.tell():
        raise ValueError(f"{dtype} of shape {shape} announced, {readable_size(size)} there")
    return header

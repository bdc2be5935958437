"""Features in an HDF5 file, out of which nothing leads to other files.

The format can point at other files in three ways: links to them, tables whose numbers lie in them,
and tables put together of theirs. A pack made of such a file would hold whatever its author
wished to have of this machine, so all three are refused, before the library opens what they name.
"""

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demr.errors import FeatureError
from demr.features.tables import check_table, damaged, only_array
from demr.machine.arrays import UNREADABLE_ARRAYS, ArrayHeader, check_memory, readable_memory
from demr.machine.reading import check_regular

# Links to links within the file, and room for what compressing adds to a piece that resists it.
_LINKS, _SLACK = 16, 1 << 20
# Bytes that one byte of DEFLATE can unpack to, at the most; the other ways stay below a tenth.
_DEFLATE, _MOST_UNPACKED = 1, 1032


class Hdf5Features:
    """A table, or a group that holds one, for each video.

    Args:
        path: The file.

    Attributes:
        vids: Names of the videos.

    Raises:
        FeatureError: If h5py is not installed, or the file is damaged.
    """

    faults: tuple[FeatureError, ...] = ()
    vids: tuple[str, ...]

    def __init__(self, path: Path) -> None:
        try:
            import h5py
        except ImportError as error:
            raise FeatureError(
                str(path),
                expected="the package h5py to read HDF5 with",
                got="an installation without it",
                remedy="pip install 'demr[train]'",
            ) from error
        self._path = path
        self._library: Any = h5py
        try:
            check_regular(path)
            self._file: Any = h5py.File(path, "r")
            self.vids = tuple(self._file)
        except UNREADABLE_ARRAYS as error:
            raise damaged(str(path), error) from error

    def shape(self, vid: str) -> tuple[int, int]:
        """Rows and columns of a video's table; nothing of it is read.

        Raises:
            FeatureError: If the file is damaged, or holds no single table of its own.
        """
        return self._table(vid)[1]

    def rows(self, vid: str) -> NDArray[Any]:
        """Features of a video, ``(L, D)``.

        Raises:
            FeatureError: If the file is damaged, or holds no single table of its own, or the table
                is larger than memory.
        """
        table, _ = self._table(vid)
        try:
            check_memory(_size(table))
            _check_pieces(table)
            return np.asarray(table)
        except UNREADABLE_ARRAYS as error:
            raise damaged(f"{self._path}: {vid}", error) from error

    def _table(self, vid: str) -> tuple[Any, tuple[int, int]]:
        where = f"{self._path}: {vid}"
        try:
            entry = self._follow(self._file, vid)
            if isinstance(entry, self._library.Group):
                entry = self._follow(entry, only_array(list(entry), where))
            if not isinstance(entry, self._library.Dataset):
                raise ValueError(f"a {type(entry).__name__}")
            if entry.is_virtual or entry.external:
                raise self._leads_out(vid, "a table whose numbers lie in other files")
            return entry, check_table(ArrayHeader(entry.shape or (), entry.dtype), where)
        except UNREADABLE_ARRAYS as error:
            raise damaged(where, error) from error

    def _follow(self, group: Any, name: str) -> Any:
        """What a name stands for, link by link; the library would open other files on its way."""
        steps = _steps(name)
        followed = 0
        while steps:
            step = steps.pop(0)
            link = group.get(step, getlink=True)
            if isinstance(link, self._library.SoftLink):
                followed += 1
                if followed > _LINKS:
                    raise ValueError(f"a circle of links at {name}")
                steps = _steps(link.path) + steps
                group = self._file if link.path.startswith("/") else group
            elif isinstance(link, self._library.HardLink):
                group = group[step]
            elif link is None:
                raise ValueError(f"nothing under {name}")
            else:
                raise self._leads_out(name, "a link to another file")
            if steps and not isinstance(group, self._library.Group):
                raise ValueError(f"nothing under {name}")
        return group

    def _leads_out(self, name: str, got: str) -> FeatureError:
        return FeatureError(
            f"{self._path}: {name}",
            expected="features that lie in this file",
            got=got,
            remedy="copy the tables themselves into one file",
        )


def _steps(path: str) -> list[str]:
    return [step for step in path.split("/") if step not in ("", ".")]


def _size(table: Any) -> int:
    """Bytes that reading a table takes: the table, and the largest piece it is stored in.

    Raises:
        ValueError: If more is stored than it can hold: a piece may then unpack to anything.
    """
    item, pieces = int(table.dtype.itemsize), table.chunks
    whole: int = math.prod(table.shape) * item
    if pieces is None:
        return whole
    padded = math.prod(-(-n // p) * p for n, p in zip(table.shape, pieces, strict=True))
    stored = table.id.get_storage_size()
    if stored > 2 * padded * item + _SLACK:
        raise ValueError(f"{stored} bytes stored for {padded * item} bytes of numbers")
    piece: int = math.prod(pieces) * item
    return whole + piece


def _check_pieces(table: Any) -> None:
    """Refuse pieces that would unpack to more than memory holds; the library unpacks them whole.

    Raises:
        ValueError: If there is one.
        zlib.error: If one is damaged.
    """
    plan = table.id.get_create_plist()
    packed = [plan.get_filter(index)[0] for index in range(plan.get_nfilters())].count(_DEFLATE)
    if packed > 1:
        raise ValueError("pieces that are compressed twice")
    most = readable_memory() // _MOST_UNPACKED
    if not packed or table.id.get_storage_size() <= most:
        return
    large: list[Any] = []
    table.id.chunk_iter(lambda piece: large.append(piece) if piece.size > most else None)
    limit = 2 * math.prod(table.chunks) * int(table.dtype.itemsize) + _SLACK
    for piece in large:
        mask, stored = table.id.read_direct_chunk(piece.chunk_offset)
        if not mask and len(zlib.decompressobj().decompress(stored, limit)) == limit:
            raise ValueError(f"a piece of {len(stored)} bytes that unpacks to {limit} or more")

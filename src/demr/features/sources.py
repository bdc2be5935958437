"""Feature files as others publish them, video by video.

Understood: a folder with one ``<vid>.npz`` (or ``.npy``) a video, as Moment-DETR, UniVTG and
lighthouse publish them; one HDF5 file with a table a video; and shards of whole numbers with a
scale and a mean for each dimension. Nothing is unpickled, and the size of a table is known before
it is read.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from demr.errors import FeatureError
from demr.features.hdf5 import Hdf5Features
from demr.features.tables import check_table, damaged, only_array
from demr.machine.arrays import UNREADABLE_ARRAYS, ArrayFile, ArrayHeader

_SHARD_KEYS = frozenset({"q", "scale", "mean", "start", "vid"})


class FeatureSource(Protocol):
    """One stream of features of many videos."""

    @property
    def vids(self) -> Collection[str]:
        """Names of the videos."""
        ...

    @property
    def faults(self) -> Sequence[FeatureError]:
        """Damaged files of several videos, whose names nobody knows."""
        ...

    def shape(self, vid: str) -> tuple[int, int]:
        """Rows and columns of a video's table; nothing of it is read.

        Raises:
            FeatureError: If the file is damaged or holds no single table.
        """
        ...

    def rows(self, vid: str) -> NDArray[Any]:
        """Features of a video, ``(L, D)``.

        Raises:
            FeatureError: If the file is damaged, or larger than memory.
        """
        ...


def open_source(path: Path) -> FeatureSource:
    """Open whatever form of features lies at a path.

    Raises:
        FeatureError: If it is none that is understood.
    """
    if path.is_dir():
        arrays = [file for file in sorted(path.iterdir()) if file.suffix in (".npz", ".npy")]
        files = {file.stem: file for file in arrays}
        if not files:
            raise _unknown(path, "a folder without .npz or .npy files")
        if len(files) < len(arrays):
            raise _unknown(path, f"{len(arrays) - len(files)} videos both as .npz and as .npy")
        return QuantizedShards(arrays) if _are_shards(arrays) else FeatureFolder(files)
    if path.suffix in (".h5", ".hdf5"):
        return Hdf5Features(path)
    raise _unknown(path, "a file" if path.exists() else "nothing")


def _are_shards(files: Sequence[Path]) -> bool:
    """What the first file is that can be read."""
    for file in files:
        try:
            with ArrayFile(file) as arrays:
                return set(arrays.names) >= _SHARD_KEYS
        except UNREADABLE_ARRAYS:
            continue  # reported when its video is asked for
    return False


class FeatureFolder:
    """One file a video.

    Args:
        files: Video -> file.
    """

    faults: tuple[FeatureError, ...] = ()

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    @property
    def vids(self) -> Collection[str]:
        """Names of the videos."""
        return self._files.keys()

    def shape(self, vid: str) -> tuple[int, int]:
        """Rows and columns of a video's table; nothing of it is read.

        Raises:
            FeatureError: If the file is damaged or holds no single table.
        """
        file = self._files[vid]
        try:
            with ArrayFile(file) as arrays:
                return check_table(arrays.header(only_array(arrays.names, str(file))), str(file))
        except UNREADABLE_ARRAYS as error:
            raise damaged(str(file), error) from error

    def rows(self, vid: str) -> NDArray[Any]:
        """Features of a video, ``(L, D)``.

        Raises:
            FeatureError: If the file is damaged, or larger than memory.
        """
        file = self._files[vid]
        try:
            with ArrayFile(file) as arrays:
                return arrays.read(only_array(arrays.names, str(file)))
        except UNREADABLE_ARRAYS as error:
            raise damaged(str(file), error) from error


class QuantizedShards:
    """``x = q * scale + mean``; ``start`` is the row at which each video begins.

    Args:
        shards: Files, in the order in which their videos are to be asked for: one table at a time
            is held.
    """

    def __init__(self, shards: Iterable[Path]) -> None:
        self._where: dict[str, tuple[Path, int, int]] = {}
        self._widths: dict[Path, int] = {}
        self._twice: dict[str, FeatureError] = {}
        self._path: Path | None = None
        self._arrays: tuple[NDArray[Any], ...] = ()
        faults = []
        for shard in shards:
            try:
                self._add(shard)
            except UNREADABLE_ARRAYS as error:
                faults.append(damaged(str(shard), error))
            except FeatureError as error:
                faults.append(error)
        self.faults = tuple(faults)

    def _add(self, shard: Path) -> None:
        with ArrayFile(shard) as arrays:
            vids = arrays.read("vid").astype(str).tolist()
            start = arrays.read("start")
            rows, width = check_table(arrays.header("q"), str(shard))
            _check_scales([arrays.header(name) for name in ("scale", "mean")], width)
        if start.dtype.kind not in "iu" or start.shape != (len(vids) + 1,):
            raise ValueError(
                f"'start' with {start.dtype} of shape {start.shape} for {len(vids)} videos"
            )
        bounds = start.tolist()
        for vid, (low, high) in zip(vids, pairwise(bounds), strict=True):
            if not 0 <= low < high <= rows:
                raise ValueError(f"video {vid} in rows {low} to {high} of {rows}")
        self._widths[shard] = width
        for vid, (low, high) in zip(vids, pairwise(bounds), strict=True):
            first = self._where.setdefault(vid, (shard, low, high))
            if first != (shard, low, high):
                self._twice[vid] = _twice(shard, vid, first[0])

    @property
    def vids(self) -> Collection[str]:
        """Names of the videos."""
        return self._where.keys()

    def shape(self, vid: str) -> tuple[int, int]:
        """Rows and columns of a video's table; nothing of it is read.

        Raises:
            FeatureError: If it is there twice.
        """
        if vid in self._twice:
            raise self._twice[vid]
        shard, low, high = self._where[vid]
        return high - low, self._widths[shard]

    def rows(self, vid: str) -> NDArray[Any]:
        """Features of a video, ``(L, D)``.

        Raises:
            FeatureError: If its shard is damaged, or larger than memory.
        """
        shard, low, high = self._where[vid]
        if shard != self._path:
            # One shard at a time: videos are asked for in the order of the shards.
            self._path, self._arrays = None, ()
            try:
                with ArrayFile(shard) as arrays:
                    self._arrays = tuple(arrays.read(name) for name in ("q", "scale", "mean"))
            except UNREADABLE_ARRAYS as error:
                raise damaged(str(shard), error) from error
            self._path = shard
        whole, scale, mean = self._arrays
        table: NDArray[Any] = whole[low:high].astype(np.float32) * scale + mean
        return table


def _twice(shard: Path, vid: str, first: Path) -> FeatureError:
    return FeatureError(
        str(shard),
        expected="every video once in all shards",
        got=f"{vid} again, first in {first.name}",
        remedy="remove one of the two",
    )


def _check_scales(headers: Sequence[ArrayHeader], width: int) -> None:
    for header in headers:
        if header.shape not in ((width,), (1, width), ()) or header.dtype.kind not in "fiu":
            raise ValueError(f"{width} dimensions, scaled by {header.dtype} of {header.shape}")


def _unknown(path: Path, got: str) -> FeatureError:
    return FeatureError(
        str(path),
        expected="a folder of .npz or .npy files, or an HDF5 file (.h5, .hdf5)",
        got=got,
        remedy="check the path; demr import features --help",
    )

"""Feature files as others publish them, and their way into a feature pack.

Understood: a folder with one ``<vid>.npz`` (or ``.npy``) a video, as Moment-DETR, UniVTG and
lighthouse publish them; one HDF5 file with a table a video; and shards of whole numbers with a
scale and a mean for each dimension. Nothing is unpickled.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from demr.encoders.base import EncoderIdentity, VideoFeatures
from demr.errors import FeatureError
from demr.features.pack import FeaturePackWriter
from demr.features.prepare import align_streams
from demr.machine.files import UNREADABLE_ARRAYS

_SHARD_KEYS = frozenset({"q", "scale", "mean", "start", "vid"})


class FeatureSource(Protocol):
    """One stream of features of many videos."""

    @property
    def vids(self) -> Collection[str]:
        """Names of the videos."""
        ...

    def rows(self, vid: str) -> NDArray[Any]:
        """Features of one of them, ``(L, D)``.

        Raises:
            FeatureError: If the file is damaged or holds no single table.
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
        first = next(iter(files.values()))
        if first.suffix == ".npz":
            try:
                sharded = _is_shard(first)
            except UNREADABLE_ARRAYS as error:
                raise _damaged(first, error) from error
            if sharded:
                return _QuantizedShards(list(files.values()))
        return _Folder(files)
    if path.suffix in (".h5", ".hdf5"):
        return _Hdf5(path)
    raise _unknown(path, "a file" if path.exists() else "nothing")


def _is_shard(file: Path) -> bool:
    loaded = np.load(file)
    if isinstance(loaded, np.ndarray):
        return False
    with loaded:
        return set(loaded.files) >= _SHARD_KEYS


class _Folder:
    """One file a video."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files

    @property
    def vids(self) -> Collection[str]:
        return self._files.keys()

    def rows(self, vid: str) -> NDArray[Any]:
        file = self._files[vid]
        try:
            # What is in a file decides, not its name.
            loaded = np.load(file)
            if isinstance(loaded, np.ndarray):
                return _table(loaded, file)
            with loaded:
                return _table(loaded[_only(loaded.files, file)], file)
        except UNREADABLE_ARRAYS as error:
            raise _damaged(file, error) from error


class _Hdf5:
    """A table, or a group that holds one, for each video."""

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
        try:
            self._file: Any = h5py.File(path, "r")
        except OSError as error:
            raise _damaged(path, error) from error
        self._group = h5py.Group
        self._vids = tuple(self._file)

    @property
    def vids(self) -> Collection[str]:
        return self._vids

    def rows(self, vid: str) -> NDArray[Any]:
        try:
            entry = self._file[vid]
            if isinstance(entry, self._group):
                entry = entry[_only(list(entry), self._path)]
            return _table(np.asarray(entry), self._path)
        except UNREADABLE_ARRAYS as error:
            raise _damaged(self._path, error) from error


class _QuantizedShards:
    """``x = q * scale + mean``; ``start`` is the row at which each video begins."""

    def __init__(self, shards: Iterable[Path]) -> None:
        self._where: dict[str, tuple[Path, int, int]] = {}
        self._path: Path | None = None
        self._table: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)
        for shard in shards:
            try:
                with np.load(shard) as arrays:
                    vids = arrays["vid"].astype(str).tolist()
                    start = arrays["start"].tolist()
                for vid, low, high in zip(vids, start[:-1], start[1:], strict=True):
                    known = self._where.setdefault(vid, (shard, int(low), int(high)))
                    if known != (shard, int(low), int(high)):
                        raise _twice(shard, vid, known[0])
            except UNREADABLE_ARRAYS as error:
                raise _damaged(shard, error) from error

    @property
    def vids(self) -> Collection[str]:
        return self._where.keys()

    def rows(self, vid: str) -> NDArray[Any]:
        shard, low, high = self._where[vid]
        if shard != self._path:
            # One shard at a time: videos are asked for in the order of the shards.
            try:
                with np.load(shard) as arrays:
                    self._table = arrays["q"].astype(np.float32) * arrays["scale"] + arrays["mean"]
            except UNREADABLE_ARRAYS as error:
                raise _damaged(shard, error) from error
            self._path = shard
        return _table(self._table[low:high], shard)


@dataclass(frozen=True)
class FeatureImport:
    """Outcome of an import.

    Attributes:
        identity: Encoder they are stored under.
        videos: Videos stored.
        clips: Clips stored, all videos together.
        cut: Videos whose streams differed by a row or two and were cut to the shortest.
        unused: Videos with features but without a query, left out.
    """

    identity: EncoderIdentity
    videos: int
    clips: int
    cut: int
    unused: int

    def summary(self) -> str:
        """One line with all that is not zero."""
        streams = " + ".join(f"{name} {dims}" for name, dims in self.identity.streams)
        parts = [f"{self.videos} videos, {self.clips} clips of {self.identity.clip_s:g} s"]
        parts.append(f"{self.identity.spec} ({streams})")
        if self.cut:
            parts.append(f"{self.cut} videos with streams a row apart, cut to the shortest")
        if self.unused:
            parts.append(f"{self.unused} videos without a query left out")
        return ", ".join(parts)


def import_features(
    streams: Mapping[str, Path],
    durations_s: Mapping[str, float],
    out: Path,
    *,
    name: str,
    version: str,
    clip_s: float,
    text_dim: int,
    normalization: Literal["l2", "none"],
) -> FeatureImport:
    """Bring published features into a feature pack, the whole pack or nothing.

    Args:
        streams: Name of each stream -> where its files are, in the order of concatenation.
        durations_s: Length in seconds of every annotated video.
        out: Folder to create.
        name: Name of the encoder that made them.
        version: Its version.
        clip_s: Seconds between two rows.
        text_dim: Width of a token of the queries' features.
        normalization: What a model must do with each stream's rows.

    Raises:
        FeatureError: If a stream lacks a video, two streams or a stream and a duration differ by
            more than two rows, a width changes, a number is not finite, or a file is damaged; each
            names the video or file.
    """
    sources = {stream: open_source(path) for stream, path in streams.items()}
    for stream, source in sources.items():
        _check_complete(f"stream {stream} in {streams[stream]}", source, durations_s)
    # In the order of shards, if there are any: they are read one after the other.
    ordered = sorted(sources.values(), key=lambda source: not isinstance(source, _QuantizedShards))
    vids = [vid for vid in ordered[0].vids if vid in durations_s]
    if not vids:
        raise FeatureError(
            str(out), expected="at least one annotated video", got="none", remedy="add annotations"
        )
    dims = {stream: source.rows(vids[0]).shape[1] for stream, source in sources.items()}
    identity = EncoderIdentity(name, version, clip_s, tuple(dims.items()), text_dim, normalization)
    clips = cut = 0
    with FeaturePackWriter(out, identity) as writer:
        for vid in vids:
            tables = {stream: source.rows(vid) for stream, source in sources.items()}
            _check_widths(tables, dims, vid, vids[0])
            features = align_streams(tables, vid)
            cut += len({len(table) for table in tables.values()}) > 1
            clips += len(features)
            writer.add(VideoFeatures(vid, durations_s[vid], clip_s, features))
    known = set().union(*(source.vids for source in sources.values()))
    return FeatureImport(identity, len(vids), clips, cut, len(known - set(durations_s)))


def _check_complete(subject: str, source: FeatureSource, durations_s: Mapping[str, float]) -> None:
    missing = sorted(set(durations_s) - set(source.vids))
    if missing:
        raise FeatureError(
            subject,
            expected=f"features of all {len(durations_s)} annotated videos",
            got=f"{len(missing)} without, such as {missing[0]}",
            remedy="fetch them, or drop their queries from the annotations",
        )


def _check_widths(
    tables: Mapping[str, NDArray[Any]], dims: Mapping[str, int], vid: str, first: str
) -> None:
    for stream, table in tables.items():
        if table.shape[1] != dims[stream]:
            raise FeatureError(
                f"stream {stream} of video {vid}",
                expected=f"{dims[stream]} columns, as video {first} has",
                got=str(table.shape[1]),
                remedy="keep the features of different encoders in different folders",
            )


def _only(names: list[str], file: Path) -> str:
    """The array called ``features``, or the only one there is."""
    if "features" in names:
        return "features"
    if len(names) != 1:
        raise FeatureError(
            str(file),
            expected="an array called 'features', or a single one",
            got=", ".join(names) or "none",
            remedy="name the folder of this stream alone",
        )
    return names[0]


def _table(array: NDArray[Any], file: Path) -> NDArray[Any]:
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiu":
        raise FeatureError(
            str(file),
            expected="a table of numbers, clips by features",
            got=f"{array.dtype} of shape {array.shape}",
            remedy="extract this video again",
        )
    return array


def _unknown(path: Path, got: str) -> FeatureError:
    return FeatureError(
        str(path),
        expected="a folder of .npz or .npy files, or an HDF5 file (.h5, .hdf5)",
        got=got,
        remedy="check the path; demr import features --help",
    )


def _twice(shard: Path, vid: str, first: Path) -> FeatureError:
    return FeatureError(
        str(shard),
        expected="every video once in all shards",
        got=f"{vid} again, first in {first.name}",
        remedy="remove one of the two",
    )


def _damaged(path: Path, error: Exception) -> FeatureError:
    return FeatureError(
        str(path),
        expected="a readable file of features",
        got=f"{type(error).__name__}: {error}",
        remedy="fetch or extract it again",
    )

"""Feature packs: sharded safetensors in float16 with an index, written once, read by mapping."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from demr.encoders.base import EncoderIdentity, VideoFeatures
from demr.errors import FeatureError
from demr.features.prepare import check_storable
from demr.features.shards import TENSOR, FeatureShard, file_sha256
from demr.machine.documents import format_version, read_json
from demr.machine.files import atomic_folder
from demr.machine.memory import memory_left

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACK_VERSION = 1
# Rows of a shard: 370 MB of SlowFast and CLIP.
_SHARD_ROWS = 65_536
# An index becomes objects of Python, which take several times as much as its text.
_INDEX_SHARE = 16


class FeaturePackWriter:
    """Write a feature pack: sharded safetensors in float16 with an index.

    The pack appears under its name only when the ``with`` block ends without an error.

    Args:
        path: Folder to create.
        identity: The encoder whose features are stored.
        within: Folder to write in until then, on the same disk; by default the pack's parent.

    Attributes:
        identity: Stored when the block ends; what it was computed in may be known only then.

    Raises:
        FeatureError: If the folder exists already.
    """

    def __init__(
        self, path: Path, identity: EncoderIdentity, *, within: Path | None = None
    ) -> None:
        if path.exists():
            raise FeatureError(
                str(path),
                expected="a new folder for the feature pack",
                got="an existing one",
                remedy="choose another folder or remove this one",
            )
        self._path = path
        self.identity = identity
        self._making = atomic_folder(path, within=within)
        self._temporary = path
        self._rows: list[NDArray[np.float16]] = []
        self._pending = 0
        self._shard = 0
        self._videos: dict[str, dict[str, float | int]] = {}
        self._checksums: dict[str, str] = {}

    def add(self, video: VideoFeatures) -> None:
        """Append one video.

        Raises:
            FeatureError: If the video is there already, its features do not fit the encoder or
                the range of float16, or the disk is full.
        """
        if video.vid in self._videos:
            raise FeatureError(
                f"video {video.vid}",
                expected="every video once",
                got="a second time",
                remedy="give the videos different names",
            )
        check_storable(video, self.identity)
        self._videos[video.vid] = {
            "shard": self._shard,
            "row": self._pending,
            "rows": len(video.features),
            "duration_s": video.duration_s,
        }
        self._rows.append(video.features.astype(np.float16))
        self._pending += len(video.features)
        if self._pending >= _SHARD_ROWS:
            self._flush()

    def add_text(self, name: str, text: str) -> None:
        """Put a text file beside the features.

        Raises:
            FeatureError: If the disk is full.
        """
        with self._disk_errors():
            (self._temporary / name).write_text(text, encoding="utf-8")

    def _flush(self) -> None:
        if self._rows:
            name = self._temporary / f"video-{self._shard:05d}.safetensors"
            with self._disk_errors():
                save_file({TENSOR: np.concatenate(self._rows)}, name)
                self._checksums[name.name] = file_sha256(name)
            self._rows, self._pending, self._shard = [], 0, self._shard + 1

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise FeatureError(
                str(self._path),
                expected="room to store the features",
                got=f"{type(error).__name__}: {error}",
                remedy="free disk space or choose another folder; nothing was left behind",
            ) from error

    def _finish(self) -> None:
        self._flush()
        index = {
            "version": PACK_VERSION,
            "encoder": self.identity.to_dict(),
            "videos": self._videos,
            "sha256": self._checksums,
        }
        self.add_text("index.json", json.dumps(index))

    def __enter__(self) -> Self:
        """Start writing.

        Raises:
            FeatureError: If nothing can be written there.
        """
        with self._disk_errors():
            self._temporary = self._making.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Publish the pack, or remove what was written if an error came."""
        if kind is None:
            try:
                self._finish()
            except BaseException as failed:
                self._making.__exit__(type(failed), failed, failed.__traceback__)
                raise
            with self._disk_errors():
                self._making.__exit__(None, None, None)
        else:
            self._making.__exit__(kind, error, trace)


@dataclass(frozen=True)
class _Entry:
    """Where a pack keeps a video: rows ``row`` to ``row + rows`` of a shard."""

    shard: Path
    row: int
    rows: int
    duration_s: float


def _entry(folder: Path, stored: Any) -> _Entry:
    shard, row, rows = (stored[key] for key in ("shard", "row", "rows"))
    if not all(type(number) is int and number >= 0 for number in (shard, row, rows)):
        raise ValueError(f"shard {shard!r}, row {row!r}, rows {rows!r}"[:120])
    duration_s = float(stored["duration_s"])
    if not 0 < duration_s < float("inf"):
        raise ValueError(f"a duration of {duration_s:g} s")
    return _Entry(folder / f"video-{shard:05d}.safetensors", row, rows, duration_s)


@dataclass(frozen=True)
class ShardState:
    """What reading a shard whole has shown.

    Attributes:
        path: The file.
        has_checksum: Whether the pack has one for it; packs of older versions have none. Without
            one, numbers are finite and where the index expects them, but may be others.
        error: What is wrong with it, on one line; empty if nothing is.
    """

    path: Path
    has_checksum: bool
    error: str = ""


class FeaturePack:
    """Stored features; shards are memory-mapped, so opening reads only the index.

    Args:
        path: Folder written by :class:`FeaturePackWriter`, or a folder of such folders made by
            one encoder.

    Raises:
        FeatureError: If the folder is no pack, of a newer version, mixes encoders, or has a video
            twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        folders = [path] if (path / "index.json").exists() else sorted(path.glob("*/index.json"))
        folders = [folder if folder == path else folder.parent for folder in folders]
        self._videos: dict[str, _Entry] = {}
        self._shards: dict[Path, FeatureShard] = {}
        self._checksums: dict[Path, str] = {}
        identities = [self._read_index(folder) for folder in folders or [path]]
        # One without a digest fits any, and so does not show whether the others fit each other.
        self.identity = max(identities, key=lambda identity: identity.digest != "")
        for other in identities:
            if not other.fits(self.identity):
                raise FeatureError(
                    str(path),
                    expected=f"packs of one encoder, {self.identity}",
                    got=f"also {other}",
                    remedy="keep the features of different encoders in different folders",
                )

    def _read_index(self, folder: Path) -> EncoderIdentity:
        try:
            index = read_json(folder / "index.json", memory_left() // _INDEX_SHARE)
            version = format_version(index, "version", PACK_VERSION)
            if version > PACK_VERSION:
                raise FeatureError(
                    str(folder),
                    expected=f"feature pack version {PACK_VERSION} or older",
                    got=f"version {version}",
                    remedy="upgrade demr",
                )
            identity = EncoderIdentity.from_dict(index["encoder"])
            videos = {vid: _entry(folder, entry) for vid, entry in index["videos"].items()}
            checksums = {
                folder / str(name): str(sha) for name, sha in index.get("sha256", {}).items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise FeatureError(
                str(folder),
                expected="a folder with a feature pack (index.json and shards)",
                got=f"{type(error).__name__}: {error}",
                remedy="extract or import the features again",
            ) from error
        twice = sorted(self._videos.keys() & videos.keys())
        if twice:
            raise FeatureError(
                str(folder),
                expected="every video in one pack alone",
                got=f"{twice[0]} in {self._videos[twice[0]].shard.parent.name} as well",
                remedy="keep one of the two",
            )
        self._videos |= videos
        self._checksums |= checksums
        return identity

    @property
    def vids(self) -> tuple[str, ...]:
        """Names of the stored videos."""
        return tuple(self._videos)

    def __contains__(self, vid: object) -> bool:
        return vid in self._videos

    def __len__(self) -> int:
        return len(self._videos)

    def __getitem__(self, vid: str) -> VideoFeatures:
        """One video; its features are a read-only float16 view into the memory-mapped shard.

        Raises:
            FeatureError: If the video or its shard is missing or damaged.
        """
        entry = self._videos.get(vid)
        if entry is None:
            raise FeatureError(
                f"video {vid}",
                expected=f"one of the {len(self)} videos of {self.path}",
                got="no features",
                remedy="extract this video or drop its queries",
            )
        rows = self._open(entry.shard).rows(entry.row, entry.rows)
        return VideoFeatures(vid, entry.duration_s, self.identity.clip_s, rows)

    def _open(self, path: Path) -> FeatureShard:
        shard = self._shards.get(path)
        if shard is None:
            shard = self._shards[path] = FeatureShard(path, self.identity.video_dim)
        return shard

    def check_shards(self) -> Iterator["ShardState"]:
        """Read every shard whole and compare it with what was packed."""
        stored: dict[Path, list[_Entry]] = {}
        for entry in self._videos.values():
            stored.setdefault(entry.shard, []).append(entry)
        for path, entries in stored.items():
            checksum = self._checksums.get(path)
            try:
                self._check(path, entries, checksum)
            except (FeatureError, OSError) as error:
                yield ShardState(path, checksum is not None, str(error))
            else:
                yield ShardState(path, checksum is not None)

    def _check(self, path: Path, entries: list["_Entry"], checksum: str | None) -> None:
        shard, end = self._open(path), 0
        for entry in sorted(entries, key=lambda entry: entry.row):
            if entry.row < end:
                raise shard.damaged(f"an index in which videos share row {entry.row}")
            end = entry.row + entry.rows
            rows = shard.rows(entry.row, entry.rows)
            if checksum is None and not np.isfinite(rows).all():
                raise shard.damaged(f"NaN or infinity in rows {entry.row} to {end}")
        if checksum is not None and file_sha256(path) != checksum:
            raise shard.damaged("other bytes than were packed: the checksum differs")

    def __iter__(self) -> Iterator[VideoFeatures]:
        for vid in self._videos:
            yield self[vid]

"""Features of videos and queries: align, normalise, store. The only place that does.

Training and inference both call :func:`prepare_video` and :func:`prepare_query`, so what the
model was trained on and what it is asked about cannot differ.
"""

import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import Tensor

from demr.encoders.base import EncoderIdentity, QueryFeatures, VideoFeatures, clip_count
from demr.errors import FeatureError
from demr.feature_shards import TENSOR, FeatureShard
from demr.files import sync

PACK_VERSION = 1
ALIGN_ROWS = 2
_SHARD_ROWS = 65_536
# Torch shares larger pieces among threads: waiting for a busy core takes longer than a video.
_PIECE = 32_767
_LARGEST = float(np.finfo(np.float16).max)


def clip_spans(duration_s: float, clip_s: float, count: int | None = None) -> NDArray[np.float64]:
    """Start and end of each clip in seconds, ``(L, 2)``; the last one ends with the video."""
    count = clip_count(duration_s, clip_s) if count is None else count
    start = np.arange(count) * clip_s
    return np.stack([start, np.minimum(start + clip_s, duration_s)], axis=1)


def align_streams(streams: dict[str, NDArray[Any]], vid: str) -> NDArray[np.float32]:
    """Concatenate feature streams of one video, cutting all to the shortest.

    Args:
        streams: Name -> ``(L_i, D_i)``, in the order of concatenation.
        vid: Named in errors.

    Returns:
        ``(min L_i, sum D_i)``.

    Raises:
        FeatureError: If two streams differ by more than 2 rows.
    """
    rows = {name: len(stream) for name, stream in streams.items()}
    shortest = min(rows.values())
    if max(rows.values()) - shortest > ALIGN_ROWS:
        raise FeatureError(
            f"features of {vid}",
            expected=f"streams within {ALIGN_ROWS} rows of each other",
            got=", ".join(f"{count} of {name}" for name, count in rows.items()),
            remedy="extract the streams again with the same clip length",
        )
    return np.concatenate(
        [np.asarray(stream[:shortest], np.float32) for stream in streams.values()], axis=1
    )


def span_fractions(duration_s: float, clip_s: float, count: int) -> Tensor:
    """Start and end of each clip as fractions of the duration, ``(L, 2)`` float32."""
    return torch.from_numpy(clip_spans(duration_s, clip_s, count) / duration_s).float()


def prepare_video(video: VideoFeatures, identity: EncoderIdentity) -> tuple[Tensor, Tensor]:
    """Turn raw clip features into the model's input.

    Args:
        video: Raw features; up to 2 rows more or fewer than the duration has clips.
        identity: The encoder that made them.

    Returns:
        Input ``(L, Dv + 2)`` (normalised stream by stream, then the clip's start and end as
        fractions of the duration) and those fractions ``(L, 2)``.

    Raises:
        FeatureError: On a wrong width, clip length or number of rows, or values that are not
            finite.
    """
    given = np.asarray(video.features)
    if given.ndim != 2 or given.shape[1] != identity.video_dim or not len(given):
        raise FeatureError(
            f"features of {video.vid}",
            expected=f"a table of clips by {identity.video_dim} ({identity.spec})",
            got=f"shape {given.shape}",
            remedy=f"extract them with --encoder {identity.spec}",
        )
    if video.clip_s != identity.clip_s or not 0 < video.duration_s < math.inf:
        raise FeatureError(
            f"features of {video.vid}",
            expected=f"clips of {identity.clip_s:g} s ({identity.spec}) and a duration above 0 s",
            got=f"clips of {video.clip_s:g} s and {video.duration_s:g} s",
            remedy=f"extract them with --encoder {identity.spec}",
        )
    wanted = clip_count(video.duration_s, video.clip_s)
    if abs(len(given) - wanted) > ALIGN_ROWS:
        raise FeatureError(
            f"features of {video.vid}",
            expected=f"{wanted} rows for {video.duration_s:g} s in clips of {video.clip_s:g} s",
            got=f"{len(given)} rows",
            remedy="check the duration and the clip length of these features",
        )
    features = as_float32(given[:wanted])
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise FeatureError(
            f"features of {video.vid}",
            expected="finite numbers",
            got=f"NaN or infinity in row {row}",
            remedy="extract this video again",
        )
    fractions = span_fractions(video.duration_s, video.clip_s, len(features))
    # Filled in place: copies of whole videos were most of the work.
    inputs = torch.empty(len(features), identity.video_dim + fractions.shape[1])
    filled = inputs.numpy()
    filled[:, identity.video_dim :] = fractions
    if identity.normalization == "l2":
        offsets = np.cumsum([0, *(dim for _, dim in identity.streams)])
        for low, high in itertools.pairwise(offsets):
            stream = features[:, low:high]
            np.divide(stream, _norm(stream), out=filled[:, low:high])
    else:
        filled[:, : identity.video_dim] = features
    return inputs, fractions


def prepare_query(query: QueryFeatures, identity: EncoderIdentity) -> Tensor:
    """Turn raw token features into the model's input, ``(T, Dt)``.

    Raises:
        FeatureError: On a wrong width or values that are not finite.
    """
    features = np.asarray(query.features, np.float32)
    if features.ndim != 2 or features.shape[1] != identity.text_dim or not len(features):
        raise FeatureError(
            f"features of query {query.query!r}",
            expected=f"tokens by {identity.text_dim} ({identity.spec})",
            got=f"shape {features.shape}",
            remedy=f"encode it with {identity.spec}",
        )
    if not np.isfinite(features).all():
        raise FeatureError(
            f"features of query {query.query!r}",
            expected="finite numbers",
            got="NaN or infinity",
            remedy="encode it again",
        )
    return torch.from_numpy(
        features / _norm(features) if identity.normalization == "l2" else features
    )


def as_float32(features: NDArray[Any]) -> NDArray[np.float32]:
    """The same numbers in single precision; from float16, as packs give them, always a copy."""
    if features.dtype != np.float16:
        return np.asarray(features, np.float32)
    # Torch converts 20 times as fast as NumPy, but warns of arrays that are read-only, which the
    # views of a pack are; copying them first costs little.
    half = torch.from_numpy(features.copy())
    single = torch.empty(half.shape)
    for part, into in zip(*(t.view(-1).split(_PIECE) for t in (half, single)), strict=True):
        into.copy_(part)
    converted: NDArray[np.float32] = single.numpy()
    return converted


def _norm(x: NDArray[np.float32]) -> NDArray[np.float32]:
    # As numpy.linalg.norm computes it, to the bit, without its copy of the whole table.
    length: NDArray[np.float32] = np.sqrt(np.add.reduce(x * x, axis=-1, keepdims=True))
    return np.maximum(length, 1e-6)


def check_storable(video: VideoFeatures, identity: EncoderIdentity) -> None:
    """Reject what a pack of this encoder cannot hold.

    Raises:
        FeatureError: If features do not fit the encoder, or the range of float16.
    """
    prepare_video(video, identity)
    if np.abs(video.features).max() > _LARGEST:
        raise FeatureError(
            f"features of {video.vid}",
            expected=f"values within {_LARGEST:g}, the range of float16",
            got=f"{np.abs(video.features).max():g}",
            remedy="scale the features before storing them",
        )


class FeaturePackWriter:
    """Write a feature pack: sharded safetensors in float16 with an index.

    The pack appears under its name only when the ``with`` block ends without an error.

    Args:
        path: Folder to create.
        identity: The encoder whose features are stored.
        within: Folder to write in until then, on the same disk; the one that the pack comes to
            lie in, if None. What a killed process leaves there is hidden and of the pack's name.

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
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self.identity = identity
        within = within or path.parent
        self._temporary = Path(tempfile.mkdtemp(dir=within, prefix=f".{path.name}."))
        self._rows: list[NDArray[np.float16]] = []
        self._pending = 0
        self._shard = 0
        self._videos: dict[str, dict[str, float | int]] = {}

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
            file = self._temporary / name
            file.write_text(text, encoding="utf-8")
            sync(file)

    def _flush(self) -> None:
        if self._rows:
            name = self._temporary / f"video-{self._shard:05d}.safetensors"
            with self._disk_errors():
                save_file({TENSOR: np.concatenate(self._rows)}, name)
                name.chmod(0o644)  # safetensors makes files that only their owner can read
                sync(name)
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

    def _publish(self) -> None:
        self._flush()
        index = {
            "version": PACK_VERSION,
            "encoder": self.identity.to_dict(),
            "videos": self._videos,
        }
        self.add_text("index.json", json.dumps(index))
        with self._disk_errors():
            # mkdtemp made it private; a pack is shared like any other data.
            self._temporary.chmod(0o755)
            sync(self._temporary)
            self._temporary.rename(self._path)
            sync(self._path.parent)

    def __enter__(self) -> Self:
        """Start writing."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Publish the pack, or remove what was written if an error came."""
        try:
            if kind is None:
                self._publish()
        finally:
            # After the renaming there is no such folder any more.
            shutil.rmtree(self._temporary, ignore_errors=True)


@dataclass(frozen=True)
class _Entry:
    """Where a pack keeps a video: rows ``row`` to ``row + rows`` of a shard."""

    shard: Path
    row: int
    rows: int
    duration_s: float


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
        identities = [self._read_index(folder) for folder in folders or [path]]
        # One without a digest fits any: it cannot say whether the others fit each other.
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
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            version = int(index["version"])
            if version > PACK_VERSION:
                raise FeatureError(
                    str(folder),
                    expected=f"feature pack version {PACK_VERSION} or older",
                    got=f"version {version}",
                    remedy="upgrade demr",
                )
            identity = EncoderIdentity.from_dict(index["encoder"])
            videos = {
                vid: _Entry(
                    folder / f"video-{int(entry['shard']):05d}.safetensors",
                    int(entry["row"]),
                    int(entry["rows"]),
                    float(entry["duration_s"]),
                )
                for vid, entry in index["videos"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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
        shard = self._shards.get(entry.shard)
        if shard is None:
            shard = FeatureShard(entry.shard, self.identity.video_dim)
            self._shards[entry.shard] = shard
        rows = shard.rows(entry.row, entry.rows)
        return VideoFeatures(vid, entry.duration_s, self.identity.clip_s, rows)

    def __iter__(self) -> Iterator[VideoFeatures]:
        for vid in self._videos:
            yield self[vid]


def feature_statistics(
    videos: Iterable[VideoFeatures],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of every raw feature over all clips, ``(Dv,)`` each."""
    count, total, square = 0, 0.0, 0.0
    for video in videos:
        features = as_float32(video.features).astype(np.float64)
        count += len(features)
        total = total + features.sum(axis=0)
        square = square + (features**2).sum(axis=0)
    mean = np.asarray(total) / max(count, 1)
    variance = np.maximum(np.asarray(square) / max(count, 1) - mean**2, 0)
    return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)

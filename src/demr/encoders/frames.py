"""From video files to clip features by networks that read frames: decode, embed, assemble.

The three steps are apart so that they can run in different places: :func:`read_blocks` decodes
and needs no weights, :func:`embed_block` runs a network and needs no file, :class:`Assembly` puts
the rows where they belong. What stands together in a block is fixed by the list of files alone,
so that the same list gives the same bits wherever it is worked on.
"""

import math
import queue
import threading
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, stack

from demr.encoders.base import Encoder, VideoFeatures, clip_count
from demr.errors import VideoError
from demr.video.reading import Video, VideoInfo, probe_video
from demr.video.source import DamagedVideoWarning

# Blocks that may wait for the network; each can be tens of megabytes.
_AHEAD = 2


class FrameStream(Protocol):
    """One stream of clip features, which a network makes of some frames of each clip.

    Attributes:
        name: As it stands in an identity.
        dims: Of a row.
        batch: Clips that the network reads at once.
    """

    name: str
    dims: int
    batch: int

    def times(self, video: VideoInfo) -> NDArray[np.float64]:
        """When the frames of each clip are shown, ``(L, K)`` seconds, each row in order.

        A time before the video shows its first frame, one behind it the last.
        """
        ...

    def prepare(self, rgb: NDArray[np.uint8]) -> Tensor:
        """Resize and crop a frame ``(H, W, 3)`` to uint8 ``(3, H', W')``; needs no weights."""
        ...

    def embed(self, clips: Tensor) -> NDArray[np.float32]:
        """Rows ``(N, dims)`` of prepared clips, uint8 ``(N, K, 3, H', W')``.

        Raises:
            ModelError: If the weights are damaged.
            FeatureError: If a row is not finite.
        """
        ...


@runtime_checkable
class FrameEncoder(Encoder, Protocol):
    """An encoder whose streams are all made of frames: decoding and networks can be parted."""

    @property
    def streams(self) -> tuple[FrameStream, ...]:
        """In the order of concatenation."""
        ...


class ReadsFrames:
    """Gives an encoder whose streams are all made of frames its ``encode_video``."""

    def encode_video(self: "FrameEncoder", path: str | Path) -> VideoFeatures:
        """Decode a video, once for all streams, and describe each of its clips.

        Args:
            path: Any video file. Where a damaged one stops early, clips that lack a frame are
                zeros.

        Raises:
            VideoError: If it cannot be decoded.
            ModelError: If weights are damaged.
            FeatureError: If a row is not finite.
        """
        streams, identity = self.streams, self.identity
        path = Path(path)
        probe_video(path)  # an error of its own kind, and at once
        made = Assembly(tuple(stream.dims for stream in streams), identity.clip_s)
        with closing(read_ahead([path], streams, identity.clip_s)) as parts:
            for part in parts:
                made.add(embed_block(part, streams) if isinstance(part, Block) else part)
        for note in made.closed[0].notes:
            warnings.warn(note, DamagedVideoWarning, stacklevel=2)
        return made.video(0, path.stem)


@dataclass(frozen=True)
class Opened:
    """A video of the list has been opened.

    Attributes:
        index: Its place in the list.
        duration_s: In seconds.
        clips: How many it has.
    """

    index: int
    duration_s: float
    clips: int


@dataclass(frozen=True)
class Closed:
    """No more comes of a video of the list.

    Attributes:
        index: Its place in the list.
        error: Why nothing can be made of it, on one line; empty if something can.
        notes: What was damaged.
    """

    index: int
    error: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """Prepared clips of one stream, of one or several videos.

    Attributes:
        stream: Its place in the encoder's order.
        videos: Whose clip each is, ``(N,)``.
        rows: Which clip of that video, ``(N,)``.
        pixels: uint8 ``(N, K, 3, H, W)``.
    """

    stream: int
    videos: NDArray[np.int64]
    rows: NDArray[np.int64]
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Rows:
    """What the network made of a block: float32 ``(N, D)``, and whose they are."""

    stream: int
    videos: NDArray[np.int64]
    rows: NDArray[np.int64]
    features: NDArray[np.float32]


Part = Opened | Closed | Block


def read_blocks(
    paths: Sequence[Path], streams: Sequence[FrameStream], clip_s: float
) -> Iterator[Part]:
    """Decode videos, each once for all streams.

    Args:
        paths: Files; one that cannot be decoded is closed with its error.
        streams: Of an encoder.
        clip_s: Length of a clip in seconds.

    Yields:
        For each video, in order, what was opened and closed, and between and behind them blocks
        as they fill: a video is whole when it is closed and the iteration has ended.
    """
    waiting = [_Waiting(index, stream.batch) for index, stream in enumerate(streams)]
    for index, path in enumerate(paths):
        notes: list[str] = []
        error = ""
        try:
            yield from _read_video(index, path, streams, clip_s, waiting, notes)
        except (VideoError, OSError) as failed:
            error = " ".join(str(failed).split())
            for stream in waiting:
                stream.forget(index)
        yield Closed(index, error, tuple(notes))
    for stream in waiting:
        yield from stream.flush()


def embed_block(block: Block, streams: Sequence[FrameStream]) -> Rows:
    """Run the network of a block's stream.

    Raises:
        ModelError: If its weights are damaged.
        FeatureError: If a row is not finite.
    """
    features = streams[block.stream].embed(torch.from_numpy(block.pixels))
    return Rows(block.stream, block.videos, block.rows, features)


@dataclass
class Assembly:
    """Features of a list of videos, as their rows arrive.

    Clips that no row came for, behind the place where a damaged file stops, stay zero.

    Attributes:
        dims: Of each stream.
        clip_s: Length of a clip in seconds.
        durations: In seconds, of the videos that were opened.
        tables: Their features, ``(L, D)`` float32.
        closed: What was said when a video was closed.
    """

    dims: tuple[int, ...]
    clip_s: float
    durations: dict[int, float] = field(default_factory=dict)
    tables: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    closed: dict[int, Closed] = field(default_factory=dict)
    _early: dict[int, list[Rows]] = field(default_factory=dict)

    def add(self, part: Opened | Closed | Rows) -> None:
        """Take in what :func:`read_blocks` said or :func:`embed_block` made, in any order."""
        if isinstance(part, Opened):
            self.durations[part.index] = part.duration_s
            empty = np.zeros((part.clips, sum(self.dims)), dtype=np.float32)
            self.tables.setdefault(part.index, empty)
            for rows in self._early.pop(part.index, []):
                self._fill(part.index, rows)
        elif isinstance(part, Closed):
            before = self.closed.get(part.index)
            if before is None or not before.error:
                self.closed[part.index] = part
        else:
            for index in np.unique(part.videos).tolist():
                if index in self.tables:
                    self._fill(index, part)
                else:
                    self._early.setdefault(index, []).append(part)

    def _fill(self, index: int, part: Rows) -> None:
        low = sum(self.dims[: part.stream])
        own = part.videos == index
        columns = slice(low, low + part.features.shape[1])
        self.tables[index][part.rows[own], columns] = part.features[own]

    def video(self, index: int, vid: str) -> VideoFeatures:
        """Features of a video that was closed without an error."""
        return VideoFeatures(vid, self.durations[index], self.clip_s, self.tables[index])


def encode_noting_damage(
    encoder: Encoder, path: str | Path
) -> tuple[VideoFeatures, tuple[str, ...]]:
    """Encode a video; warnings about damage in the file come back as notes.

    Raises:
        VideoError: If the file cannot be decoded.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DamagedVideoWarning)
        features = encoder.encode_video(path)
    damage = [str(w.message) for w in caught if issubclass(w.category, DamagedVideoWarning)]
    for warning in caught:
        if not issubclass(warning.category, DamagedVideoWarning):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    return features, tuple(damage)


def read_ahead(
    paths: Sequence[Path], streams: Sequence[FrameStream], clip_s: float
) -> Generator[Part]:
    """What :func:`read_blocks` yields, read by a thread while the network works."""
    parts: queue.Queue[Part | BaseException | None] = queue.Queue(_AHEAD)
    gone = threading.Event()

    def put(part: Part | BaseException | None) -> None:
        while not gone.is_set():
            try:
                return parts.put(part, timeout=0.1)
            except queue.Full:
                continue
        return None

    def read() -> None:
        try:
            for part in read_blocks(paths, streams, clip_s):
                put(part)
                if gone.is_set():
                    return
        except BaseException as error:  # noqa: BLE001  (raised again where it is waited for)
            put(error)
        else:
            put(None)

    thread = threading.Thread(target=copy_context().run, args=(read,), daemon=True)
    thread.start()
    try:
        while (part := parts.get()) is not None:
            if isinstance(part, BaseException):
                raise part
            yield part
    finally:
        gone.set()
        thread.join()


class _Waiting:
    """Prepared clips of one stream that wait for a full block."""

    def __init__(self, stream: int, batch: int) -> None:
        self._stream = stream
        self._batch = batch
        self._owners: list[tuple[int, int]] = []
        self._clips: list[Tensor] = []

    def add(self, video: int, row: int, clip: Tensor) -> Iterator[Block]:
        # Pictures of another size cannot stand in one tensor.
        if self._clips and self._clips[0].shape != clip.shape:
            yield from self.flush()
        self._owners.append((video, row))
        self._clips.append(clip)
        if len(self._clips) == self._batch:
            yield from self.flush()

    def flush(self) -> Iterator[Block]:
        if self._clips:
            owners = np.array(self._owners, dtype=np.int64)
            pixels = stack(self._clips).numpy()
            self._owners, self._clips = [], []
            yield Block(self._stream, owners[:, 0], owners[:, 1], pixels)

    def forget(self, video: int) -> None:
        """Drop what waits of a video that cannot be used."""
        kept = [place for place, (owner, _) in enumerate(self._owners) if owner != video]
        self._owners = [self._owners[place] for place in kept]
        self._clips = [self._clips[place] for place in kept]


def _read_video(
    index: int,
    path: Path,
    streams: Sequence[FrameStream],
    clip_s: float,
    waiting: Sequence[_Waiting],
    notes: list[str],
) -> Iterator[Part]:
    video = Video(path, notes.append)
    info = video.info
    yield Opened(index, info.duration_s, clip_count(info.duration_s, clip_s))
    wanted = _Wanted([stream.times(info) for stream in streams])
    # Prepared frames of clips that are not complete, by stream and row.
    begun: dict[tuple[int, int], list[Tensor]] = {}
    pictures: dict[int, Tensor] = {}
    shown_s = -math.inf
    for place, frame in enumerate(video.frames(wanted.times_s)):
        if frame.pts_s != shown_s:
            shown_s, pictures = frame.pts_s, {}
        for number, row in wanted.at(place):
            if number not in pictures:
                pictures[number] = streams[number].prepare(frame.rgb)
            gathered = begun.setdefault((number, row), [])
            gathered.append(pictures[number])
            if len(gathered) == wanted.frames[number]:
                yield from waiting[number].add(index, row, stack(begun.pop((number, row))))


class _Wanted:
    """Which clip of which stream wants a frame, in the order of time.

    Held as arrays: hours of video at sixteen frames a second are a million wishes.

    Attributes:
        times_s: When a frame is wanted, increasing, each once.
        frames: Of a clip, for each stream.
    """

    def __init__(self, tables: Sequence[NDArray[np.float64]]) -> None:
        self.frames = [table.shape[1] for table in tables]
        times = np.concatenate([table.ravel() for table in tables])
        # Stable: a clip's frames stay in their order where two show at one time.
        order = np.argsort(times, kind="stable")
        self.times_s, first = np.unique(times[order], return_index=True)
        self._first = np.append(first, len(order))
        self._streams = np.repeat(np.arange(len(tables)), [table.size for table in tables])[order]
        self._rows = np.concatenate(
            [np.repeat(np.arange(len(table)), table.shape[1]) for table in tables]
        )[order]

    def at(self, place: int) -> Iterator[tuple[int, int]]:
        """Stream and row of everyone who wants the frame at ``times_s[place]``."""
        own = slice(self._first[place], self._first[place + 1])
        return zip(self._streams[own].tolist(), self._rows[own].tolist(), strict=True)

"""From video files to clip features by networks that read frames: decode, embed, assemble.

:func:`read_blocks` decodes, a stream's ``embed`` runs its network on a block of clips at a time,
and the rows are put where they belong. A block holds clips of one video: how many pictures a
network reads at once moves the last bits of their features, and so a video's features depend on
that file alone, wherever and beside whatever else it is encoded.
"""

import math
import queue
import threading
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, stack

from demr.encoders.base import Encoder, VideoFeatures, clip_count
from demr.video.damage import DamagedVideoWarning
from demr.video.reading import Video, VideoInfo

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
    """An encoder whose streams are all made of frames."""

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
        streams, clip_s = self.streams, self.identity.clip_s
        notes: list[str] = []
        video = Video(path, notes.append)
        duration_s = video.info.duration_s
        ends = np.cumsum([stream.dims for stream in streams])
        features = np.zeros((clip_count(duration_s, clip_s), int(ends[-1])), np.float32)
        with closing(_read_ahead(read_blocks(video, streams))) as blocks:
            for block in blocks:
                rows = streams[block.stream].embed(torch.from_numpy(block.pixels))
                end = int(ends[block.stream])
                features[block.rows, end - rows.shape[1] : end] = rows
        for note in notes:
            warnings.warn(note, DamagedVideoWarning, stacklevel=2)
        return VideoFeatures(Path(path).stem, duration_s, clip_s, features)


@dataclass(frozen=True)
class Block:
    """Prepared clips of one stream of a video.

    Attributes:
        stream: Its place in the encoder's order.
        rows: Which clip each is, ``(N,)``.
        pixels: uint8 ``(N, K, 3, H, W)``.
    """

    stream: int
    rows: NDArray[np.int64]
    pixels: NDArray[np.uint8]


def read_blocks(video: Video, streams: Sequence[FrameStream]) -> Generator[Block]:
    """Decode a video once for all streams.

    Yields:
        Blocks of each stream's size as they fill, the last of each when the video ends. A clip
        that lacks a frame, behind the place where a damaged file stops, is in none.

    Raises:
        VideoError: If the file cannot be decoded.
    """
    waiting = [_Waiting(index, stream.batch) for index, stream in enumerate(streams)]
    wanted = _Wanted([stream.times(video.info) for stream in streams])
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
                yield from waiting[number].add(row, stack(begun.pop((number, row))))
    for stream in waiting:
        yield from stream.flush()


def encode_noting_damage(
    encoder: Encoder, path: str | Path
) -> tuple[VideoFeatures, tuple[str, ...]]:
    """Encode a video: how search, extraction and everything else opens one, and fails on it.

    Returns:
        Its features, and a note on each kind of damage that was met in the file.

    Raises:
        VideoError: Whatever is wrong with the file.
        ModelError: If weights are damaged.
        FeatureError: If a row is not finite.
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


def _read_ahead(blocks: Generator[Block]) -> Generator[Block]:
    """The same blocks, read by a thread while the network works."""
    ready: queue.Queue[Block | BaseException | None] = queue.Queue(_AHEAD)
    gone = threading.Event()

    def put(block: Block | BaseException | None) -> None:
        while not gone.is_set():
            try:
                return ready.put(block, timeout=0.1)
            except queue.Full:
                continue
        return None

    def read() -> None:
        try:
            with closing(blocks):
                for block in blocks:
                    put(block)
                    if gone.is_set():
                        return
        except BaseException as error:  # noqa: BLE001  (raised again where it is waited for)
            put(error)
        else:
            put(None)

    thread = threading.Thread(target=copy_context().run, args=(read,), daemon=True)
    thread.start()
    try:
        while (block := ready.get()) is not None:
            if isinstance(block, BaseException):
                raise block
            yield block
    finally:
        gone.set()
        thread.join()


class _Waiting:
    """Prepared clips of one stream that wait for a full block."""

    def __init__(self, stream: int, batch: int) -> None:
        self._stream = stream
        self._batch = batch
        self._rows: list[int] = []
        self._clips: list[Tensor] = []

    def add(self, row: int, clip: Tensor) -> Iterator[Block]:
        # Pictures of another size cannot stand in one tensor: a video may change its own.
        if self._clips and self._clips[0].shape != clip.shape:
            yield from self.flush()
        self._rows.append(row)
        self._clips.append(clip)
        if len(self._clips) == self._batch:
            yield from self.flush()

    def flush(self) -> Iterator[Block]:
        if self._clips:
            rows, clips = np.array(self._rows, dtype=np.int64), stack(self._clips).numpy()
            self._rows, self._clips = [], []
            yield Block(self._stream, rows, clips)


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

"""One unit of an extraction: encode its videos, store what became of them, read it again."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from demr.encoders import Encoder, EncoderIdentity, VideoFeatures
from demr.encoders.frames import (
    Assembly,
    Block,
    Closed,
    FrameEncoder,
    FrameStream,
    Opened,
    Rows,
    embed_block,
    encode_noting_damage,
    read_ahead,
)
from demr.errors import FeatureError, ModelError, VideoError
from demr.extraction.videos import Unit, VideoFile
from demr.features.prepare import check_storable
from demr.features.shards import TENSOR
from demr.machine.files import atomic_path


@dataclass(frozen=True)
class Outcome:
    """What became of one video.

    Attributes:
        vid: Its name.
        features: float16 ``(L, D)``; no rows where it was skipped.
        duration_s: In seconds; 0 where it was skipped.
        error: Why it was skipped, on one line; empty if it was not.
        notes: What was damaged in it.
        dtype: What it was computed in; empty where it was skipped.
    """

    vid: str
    features: NDArray[np.float16]
    duration_s: float
    error: str = ""
    notes: tuple[str, ...] = ()
    dtype: str = ""


@dataclass(frozen=True)
class Done:
    """A finished unit, as its worker tells it.

    Attributes:
        key: Of the unit.
        skipped: Path and reason of each video that could not be used.
    """

    key: str
    skipped: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Job:
    """What a worker needs to know; it travels to other processes and machines.

    Attributes:
        encoder: What to ask :func:`demr.encoders.get_encoder` for.
        device: Where networks run.
        identity: What that encoder has to be, as a plain dictionary.
        parts: Folder of the finished units.
    """

    encoder: str
    device: str
    identity: Mapping[str, Any]
    parts: Path

    def make_encoder(self) -> Encoder:
        """The encoder, on this machine.

        Raises:
            ModelError: If weights or versions here are not those of the machine that asked.
        """
        from demr.encoders import get_encoder

        encoder = get_encoder(self.encoder, device=self.device)
        wanted = EncoderIdentity.from_dict(self.identity)
        if encoder.identity != wanted:
            raise ModelError(
                f"encoder {self.encoder} of a worker",
                expected=f"{wanted}",
                got=f"{encoder.identity}",
                remedy="put the same weights and the same demr on all machines",
            )
        return encoder


Tell = Callable[[Unit, float, Done | None], None]
"""Called with a unit, the share of it that is done, and what it came to once it is finished."""


def encode_unit(encoder: Encoder, unit: Unit, tell: Callable[[float], None]) -> list[Outcome]:
    """Encode the videos of a unit; one that cannot be used comes to nothing but its error.

    Args:
        encoder: Any.
        unit: Decoded by a thread while the network works, if the encoder lets them be parted.
        tell: Called with the share of the unit that is done.

    Raises:
        ModelError: If weights are damaged.
    """
    gathering = Gathering(unit, encoder.identity, tell)
    if isinstance(encoder, FrameEncoder):
        streams = encoder.streams
        paths = [video.path for video in unit.videos]
        parts = read_ahead(paths, streams, encoder.identity.clip_s)
        try:
            for part in parts:
                for made in embed(part, streams) if isinstance(part, Block) else (part,):
                    gathering.add(made)
        finally:
            parts.close()
    else:
        for index, video in enumerate(unit.videos):
            gathering.put(index, *_encode_whole(encoder, video))
    return gathering.outcomes()


def embed(block: Block, streams: Sequence[FrameStream]) -> Iterator[Rows | Closed]:
    """Rows of a block; where they are of no use, video by video, so that the others stay.

    Raises:
        ModelError: If weights are damaged.
    """
    try:
        yield embed_block(block, streams)
    except FeatureError as error:
        videos = np.unique(block.videos)
        if len(videos) == 1:
            yield Closed(int(videos[0]), str(error))
            return
        for index in videos:
            own = block.videos == index
            yield from embed(
                Block(block.stream, block.videos[own], block.rows[own], block.pixels[own]), streams
            )


class Gathering:
    """Features of a unit's videos, as they come in.

    Args:
        unit: Whose videos.
        identity: Of the encoder.
        tell: Called with the share of the unit that is done.

    Attributes:
        dtype: What features are computed in; of the encoder, until somebody knows better.
    """

    def __init__(
        self, unit: Unit, identity: EncoderIdentity, tell: Callable[[float], None]
    ) -> None:
        self.dtype = identity.dtype
        self._unit = unit
        self._identity = identity
        self._tell = tell
        dims = tuple(dims for _, dims in identity.streams)
        self._made = Assembly(dims, identity.clip_s)
        self._done = 0.0

    def add(self, part: Opened | Closed | Rows) -> None:
        """Take in what was decoded or embedded."""
        self._made.add(part)
        if isinstance(part, Rows):
            for index in np.unique(part.videos):
                if int(index) in self._made.tables:
                    share = np.count_nonzero(part.videos == index) / len(
                        self._made.tables[int(index)]
                    )
                    self._advance(int(index), share / len(self._identity.streams))

    def put(self, index: int, video: VideoFeatures | None, closed: Closed) -> None:
        """Take in a video that was encoded as a whole."""
        if video is not None:
            self._made.durations[index] = video.duration_s
            self._made.tables[index] = np.asarray(video.features, np.float32)
        self._made.add(replace(closed, index=index))
        self._advance(index, 1.0)

    def outcomes(self) -> list[Outcome]:
        """What became of each video, in the unit's order."""
        return [self._outcome(index, video) for index, video in enumerate(self._unit.videos)]

    def _outcome(self, index: int, video: VideoFile) -> Outcome:
        closed = self._made.closed[index]
        if not closed.error:
            features = self._made.video(index, video.vid)
            try:
                check_storable(features, self._identity)
            except FeatureError as error:
                closed = replace(closed, error=str(error))
            else:
                half = features.features.astype(np.float16)
                return Outcome(video.vid, half, features.duration_s, "", closed.notes, self.dtype)
        return skipped_video(video, closed.error, self._identity)

    def _advance(self, index: int, share: float) -> None:
        self._done += self._unit.videos[index].size * share
        self._tell(min(self._done / max(self._unit.size, 1), 1.0))


def skipped_video(video: VideoFile, error: str, identity: EncoderIdentity) -> Outcome:
    """A video that could not be used."""
    return Outcome(video.vid, np.zeros((0, identity.video_dim), np.float16), 0.0, error)


def has_part(parts: Path, unit: Unit) -> bool:
    """Whether a unit is finished."""
    return _part(parts, unit).exists()


def write_part(parts: Path, unit: Unit, outcomes: Sequence[Outcome]) -> Done:
    """Store a finished unit.

    Raises:
        FeatureError: If the disk is full.
    """
    described = [
        {key: value for key, value in asdict(outcome).items() if key != "features"}
        | {"rows": len(outcome.features)}
        for outcome in outcomes
    ]
    with disk_errors(parts), atomic_path(_part(parts, unit)) as temporary:
        save_file(
            {TENSOR: np.concatenate([outcome.features for outcome in outcomes])},
            temporary,
            metadata={"videos": json.dumps(described)},
        )
    paths = {video.vid: str(video.path) for video in unit.videos}
    return Done(unit.key, tuple((paths[o.vid], o.error) for o in outcomes if o.error))


def read_part(parts: Path, unit: Unit) -> list[Outcome]:
    """Read a finished unit.

    Raises:
        FeatureError: If it is damaged.
    """
    path = _part(parts, unit)
    try:
        with safe_open(path, framework="numpy") as file:
            features = file.get_tensor(TENSOR)
            described = json.loads(file.metadata()["videos"])
        ends = np.cumsum([0, *(entry["rows"] for entry in described)])
        if ends[-1] != len(features):
            raise ValueError(f"{ends[-1]} rows described, {len(features)} there")
        return [
            Outcome(
                str(entry["vid"]),
                features[low : low + int(entry["rows"])],
                float(entry["duration_s"]),
                str(entry["error"]),
                tuple(map(str, entry["notes"])),
                str(entry["dtype"]),
            )
            for entry, low in zip(described, ends[:-1], strict=True)
        ]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise FeatureError(
            str(path),
            expected="a finished part of this extraction",
            got=f"{type(error).__name__}: {error}",
            remedy="remove this file and run the same command again",
        ) from error


def _part(parts: Path, unit: Unit) -> Path:
    return parts / f"unit-{unit.key}.safetensors"


def _encode_whole(encoder: Encoder, video: VideoFile) -> tuple[VideoFeatures | None, Closed]:
    try:
        features, notes = encode_noting_damage(encoder, video.path)
    except (VideoError, FeatureError, OSError) as error:
        return None, Closed(0, " ".join(str(error).split()))
    return features, Closed(0, "", notes)


@contextmanager
def disk_errors(parts: Path) -> Iterator[None]:
    """What the disk refuses, as one line that says what is kept."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise FeatureError(
            str(parts),
            expected="a folder with room for the features",
            got=f"{type(error).__name__}: {error}",
            remedy="free disk space or choose another --out; what is finished is kept there, "
            "and the same command goes on",
        ) from error

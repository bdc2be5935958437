"""What every encoder promises: an identity, clip features of a video, word features of queries."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from demr.errors import FeatureError

# A remainder shorter than this is rounding of a container's clock, not a clip.
_MIN_CLIP_S = 1e-3


@dataclass(frozen=True)
class EncoderIdentity:
    """Which encoder made features; stored with them, so that a mismatch is an error.

    Attributes:
        name: Name of the encoder, without the version.
        version: Changes whenever the same input gives other numbers.
        clip_s: Length of a clip in seconds.
        streams: Name and dimension of each video stream, in the order of concatenation.
        text_dim: Dimension of a token's features.
        normalization: What a model has to do with the raw features, per stream and token.
    """

    name: str
    version: str
    clip_s: float
    streams: tuple[tuple[str, int], ...]
    text_dim: int
    normalization: Literal["l2", "none"]

    @property
    def spec(self) -> str:
        """Name and version as users write them, such as ``builtin@1``."""
        return f"{self.name}@{self.version}"

    @property
    def video_dim(self) -> int:
        """Dimension of a clip's features, all streams together."""
        return sum(dims for _, dims in self.streams)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "version": self.version,
            "clip_s": self.clip_s,
            "streams": [[name, dims] for name, dims in self.streams],
            "text_dim": self.text_dim,
            "normalization": self.normalization,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EncoderIdentity":
        """Reverse of :meth:`to_dict`.

        Raises:
            FeatureError: If a key is missing or a value has the wrong type.
        """
        try:
            normalization = values["normalization"]
            if normalization not in ("l2", "none"):
                raise ValueError(f"normalization {normalization!r}")
            return cls(
                name=str(values["name"]),
                version=str(values["version"]),
                clip_s=float(values["clip_s"]),
                streams=tuple((str(name), int(dims)) for name, dims in values["streams"]),
                text_dim=int(values["text_dim"]),
                normalization=normalization,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FeatureError(
                "encoder identity",
                expected="name, version, clip_s, streams, text_dim and normalization (l2 or none)",
                got=f"{type(error).__name__} {error}",
                remedy="extract the features again",
            ) from error


@dataclass(frozen=True)
class VideoFeatures:
    """Raw clip features of one video.

    Attributes:
        vid: Name of the video.
        duration_s: Its duration in seconds.
        clip_s: Length of a clip in seconds; clip i begins at ``i * clip_s``.
        features: ``(L, video_dim)``, before any normalisation: float32 from an encoder, a
            read-only float16 view from a feature pack.
            :func:`demr.features.as_float32` makes them equal.
    """

    vid: str
    duration_s: float
    clip_s: float
    features: NDArray[np.float32] | NDArray[np.float16]


@dataclass(frozen=True)
class QueryFeatures:
    """Raw token features of one query.

    Attributes:
        query: The sentence as it was given.
        features: float32, ``(T, text_dim)``.
        words: The words of the query.
        token_word: int64, ``(T,)``; which word a token belongs to, -1 for a special token.
    """

    query: str
    features: NDArray[np.float32]
    words: tuple[str, ...]
    token_word: NDArray[np.int64]


class Encoder(Protocol):
    """A frozen encoder: no state that a call changes, equal input gives equal numbers."""

    @property
    def identity(self) -> EncoderIdentity:
        """What is stored beside the features."""
        ...

    def encode_video(self, path: str | Path) -> VideoFeatures:
        """Decode a video file and describe each of its clips."""
        ...

    def encode_queries(
        self, queries: Sequence[str], hidden: Sequence[Collection[int]] | None = None
    ) -> list[QueryFeatures]:
        """Describe each query token by token.

        Args:
            queries: Sentences.
            hidden: For each query the indices of words to hide before the encoder runs, so
                that a contextual encoder cannot leak them into their neighbours.
        """
        ...


def clip_count(duration_s: float, clip_s: float) -> int:
    """Number of clips of a video, the last one possibly shorter; at least 1.

    >>> clip_count(10.0, 2.0), clip_count(10.2, 2.0), clip_count(10.0005, 2.0), clip_count(0.0, 1.0)
    (5, 6, 5, 1)
    """
    return max(1, math.ceil((duration_s - _MIN_CLIP_S) / clip_s))

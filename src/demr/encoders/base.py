"""The interface of encoders: an identity, clip features of videos, token features of queries."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from demr.errors import FeatureError

CLIP_S = 2.0
"""Length of a clip in seconds where nothing else is asked for: QVHighlights'."""
# A remainder shorter than this is rounding of a container's clock, not a clip.
_MIN_CLIP_S = 1e-3
# Far beyond any encoder: a damaged file must not ask for more than a machine has.
_LONGEST_CLIP_S = 86_400.0
_WIDEST = 1_000_000


def _dims(value: object, what: str, least: int = 1) -> int:
    if type(value) is not int or not least <= value <= _WIDEST:
        raise ValueError(
            f"{what} of {str(value)[:40]} numbers, where {least} to {_WIDEST:,} can be"
        )
    return value


def _word(value: object, what: str) -> str:
    if not isinstance(value, str) or len(value) > 4096 or not value.isprintable():
        raise ValueError(f"{what} {str(value)[:40]!r}, which is no word")
    return value


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
        model: Where pretrained weights came from, an id of a hub or a path; empty without
            weights. Not compared: the same weights lie elsewhere on another machine.
        digest: Of the weight files and of the way pictures are prepared for them.
        dtype: What the features were computed in. Not compared: half precision moves them less
            than a stored pack, which is float16, rounds them, and features of an accelerator must
            serve a search without one.
    """

    name: str
    version: str
    clip_s: float
    streams: tuple[tuple[str, int], ...]
    text_dim: int
    normalization: Literal["l2", "none"]
    model: str = field(default="", compare=False)
    digest: str = ""
    dtype: str = field(default="float32", compare=False)

    @property
    def spec(self) -> str:
        """Name, version and model as users write them, such as ``builtin@1``."""
        return f"{self.name}@{self.version}" + (f":{self.model}" if self.model else "")

    @property
    def request(self) -> str:
        """The name by which :func:`demr.encoders.get_encoder` makes this very encoder again."""
        named = f"{self.name}:{self.model}" if self.model else self.name
        return named if self.name == "builtin" else f"{named},clip_s={self.clip_s!r}"

    def __str__(self) -> str:
        """All that is compared, for errors that name two identities."""
        streams = " + ".join(f"{name} {dims}" for name, dims in self.streams)
        weights = f", weights {self.digest}" if self.digest else ""
        return (
            f"{self.spec} (clips of {self.clip_s:g} s, {streams}, text {self.text_dim}, "
            f"normalisation {self.normalization}{weights})"
        )

    def fits(self, other: "EncoderIdentity") -> bool:
        """Whether features of both can be mixed.

        Features that others published come without a digest: they are imported under the name of
        their encoder, and fit whatever weights that has.
        """
        if self.digest and other.digest:
            return self == other
        return replace(self, digest="") == replace(other, digest="")

    @property
    def video_dim(self) -> int:
        """Dimension of a clip's features, all streams together."""
        return sum(dims for _, dims in self.streams)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "clip_s": self.clip_s,
            "streams": [[name, dims] for name, dims in self.streams],
            "text_dim": self.text_dim,
            "normalization": self.normalization,
        }
        if self.model:
            values |= {"model": self.model, "digest": self.digest, "dtype": self.dtype}
        return values

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
            streams = tuple(
                (_word(name, "stream"), _dims(dims, f"stream {name}"))
                for name, dims in values["streams"]
            )
            _dims(sum(dims for _, dims in streams), "all streams")
            clip_s = float(values["clip_s"])
            if not 0 < clip_s <= _LONGEST_CLIP_S or isinstance(values["clip_s"], bool):
                raise ValueError(f"clip_s {clip_s:g}, where clips last up to {_LONGEST_CLIP_S:g} s")
            return cls(
                name=_word(values["name"], "name"),
                version=_word(values["version"], "version"),
                clip_s=clip_s,
                streams=streams,
                text_dim=_dims(values["text_dim"], "text_dim", least=0),
                normalization=normalization,
                model=_word(values.get("model", ""), "model"),
                digest=_word(values.get("digest", ""), "digest"),
                dtype=_word(values.get("dtype", "float32"), "dtype"),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FeatureError(
                "encoder identity",
                expected="name, version, clip_s, streams, text_dim and normalization (l2 or none)",
                got=f"{type(error).__name__} {str(error)[:200]}",
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
            :func:`demr.features.prepare.as_float32` makes them equal.
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
        word_span: int64, ``(W, 2)``; where only this is known, the first token and the one behind
            the last between which each word's lie, equal where that is not known either.
    """

    query: str
    features: NDArray[np.float32]
    words: tuple[str, ...]
    token_word: NDArray[np.int64]
    word_span: NDArray[np.int64] | None = None


class Encoder(Protocol):
    """A frozen encoder: no state that a call changes, equal input gives equal numbers."""

    @property
    def identity(self) -> EncoderIdentity:
        """Stored beside the features."""
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


@runtime_checkable
class AlignedEncoder(Encoder, Protocol):
    """An encoder with one space for whole queries and clips: they can be compared untrained."""

    def embed_queries(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """One embedding a query, comparable by cosine with clip features, ``(N, video_dim)``."""
        ...


def clip_count(duration_s: float, clip_s: float) -> int:
    """Number of clips of a video, the last one possibly shorter; at least 1.

    >>> clip_count(10.0, 2.0), clip_count(10.2, 2.0), clip_count(10.0005, 2.0), clip_count(0.0, 1.0)
    (5, 6, 5, 1)
    """
    return max(1, math.ceil((duration_s - _MIN_CLIP_S) / clip_s))

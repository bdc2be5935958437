"""Raw features -> what the network reads: align, normalise, append positions.

Training and inference both call :func:`prepare_video` and :func:`prepare_query`, so what the
model was trained on and what it is asked about cannot differ.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demr.encoders.base import EncoderIdentity, QueryFeatures, VideoFeatures, clip_count
from demr.errors import FeatureError

# Extractors round the number of clips of a video differently, by a row or two.
ALIGN_ROWS = 2
# Torch shares larger pieces among threads, and waiting for a busy core takes longer than a video:
# 8 ms where all of its preparation takes a quarter of one.
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
    shortest = shortest_stream({name: len(stream) for name, stream in streams.items()}, vid)
    return np.concatenate(
        [np.asarray(stream[:shortest], np.float32) for stream in streams.values()], axis=1
    )


def shortest_stream(rows: Mapping[str, int], vid: str) -> int:
    """Rows of the shortest stream of a video, to which all are cut.

    Args:
        rows: Name of each stream -> its rows.
        vid: Named in errors.

    Raises:
        FeatureError: If two streams differ by more than 2 rows.
    """
    shortest = min(rows.values())
    if max(rows.values()) - shortest > ALIGN_ROWS:
        raise FeatureError(
            f"features of {vid}",
            expected=f"streams within {ALIGN_ROWS} rows of each other",
            got=", ".join(f"{count} of {name}" for name, count in rows.items()),
            remedy="extract the streams again with the same clip length",
        )
    return shortest


def span_fractions(duration_s: float, clip_s: float, count: int) -> Tensor:
    """Start and end of each clip as fractions of the duration, ``(L, 2)`` float32.

    [ours] The release counts in whole clips, a partial last one included, but multiplies what it
    predicts by the duration; and at clips of 2 s its centres are half a clip late.
    """
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
    fractions = span_fractions(video.duration_s, video.clip_s, _row_count(video, identity))
    # Filled in place: copies of whole videos were most of the work. And allocated before everything
    # that is freed at the end: otherwise the tensors that stay have holes of their size between
    # them.
    inputs = torch.empty(len(fractions), identity.video_dim + fractions.shape[1])
    features = _finite(video, len(fractions))
    filled = inputs.numpy()
    filled[:, identity.video_dim :] = fractions.numpy()
    if identity.normalization == "l2":
        offsets = np.cumsum([0, *(dim for _, dim in identity.streams)])
        for low, high in itertools.pairwise(offsets):
            stream = features[:, low:high]
            np.divide(stream, _norm(stream), out=filled[:, low:high])
    else:
        filled[:, : identity.video_dim] = features
    return inputs, fractions


def _row_count(video: VideoFeatures, identity: EncoderIdentity) -> int:
    """Rows that serve, one a clip, of features that fit the encoder and the duration."""
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
    return usable_rows(len(given), video.vid, video.duration_s, video.clip_s)


def usable_rows(rows: int, vid: str, duration_s: float, clip_s: float) -> int:
    """Rows that serve, one a clip: up to 2 more or fewer than the duration has clips.

    Raises:
        FeatureError: If there are more or fewer.
    """
    clips = clip_count(duration_s, clip_s)
    if abs(rows - clips) > ALIGN_ROWS:
        raise FeatureError(
            f"features of {vid}",
            expected=f"{clips} rows for {duration_s:g} s in clips of {clip_s:g} s",
            got=f"{rows} rows, which last {rows * clip_s:g} s",
            remedy="check the duration and the clip length of these features",
        )
    return min(rows, clips)


def _finite(video: VideoFeatures, count: int) -> NDArray[np.float32]:
    """The first rows of a video's features, where all their numbers are finite."""
    features = as_float32(np.asarray(video.features)[:count])
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise FeatureError(
            f"features of {video.vid}",
            expected="finite numbers",
            got=f"NaN or infinity in row {row}",
            remedy="extract this video again",
        )
    return features


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
    # As numpy.linalg.norm computes it, to the bit, without its copy of the whole table. (einsum
    # would be faster still, but differs in the last bit.)
    length: NDArray[np.float32] = np.sqrt(np.add.reduce(x * x, axis=-1, keepdims=True))
    return np.maximum(length, 1e-6)


def check_storable(video: VideoFeatures, identity: EncoderIdentity) -> None:
    """Reject what a pack of this encoder cannot hold.

    Raises:
        FeatureError: If features do not fit the encoder, or the range of float16.
    """
    with np.errstate(over="ignore"):  # of numbers that are refused below
        prepare_video(video, identity)
    if np.abs(video.features).max() > _LARGEST:
        raise FeatureError(
            f"features of {video.vid}",
            expected=f"values within {_LARGEST:g}, the range of float16",
            got=f"{np.abs(video.features).max():g}",
            remedy="scale the features before storing them",
        )


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

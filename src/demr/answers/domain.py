"""The domain of a model: what the videos it was trained on look like, and how far another is.

A model is sure of itself also where it has never been. How far a video lies outside the range of
the training features needs no label, and tells.

Single clips of another kind of video may look like training clips while their mean does not: two
people in plain shirts before a grey wall are coloured regions as any, but they are never alone,
never all at rest. So the range is that of clips and of means of many clips in a row. Whitened
distances (Mahalanobis, and the reconstruction error of principal components) were tried on the
embedded world's features: they tell less, as products of codes are far from normally distributed,
and videos that hold next to nothing lie near their centre.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scale = dict[str, Any]

# Clips in a row whose mean is looked at. A scale serves where most training videos are as long,
# and for videos that are.
_SCALES = (1, 10)
# The share of a scale's values that its range leaves out, and of videos that the edge does.
_LEFT_OUT = 1e-3
_LEAST_EDGE = 1e-3


def describe_domain(
    videos: Sequence[NDArray[np.floating]], held_out: Sequence[NDArray[np.floating]]
) -> dict[str, Any]:
    """What the features of training videos look like, for :func:`measure_strangeness`.

    Args:
        videos: Raw features of each training video, ``(L, Dv)``, float16 or float32.
        held_out: Likewise of other videos of the same kind. The range fits the training videos
            by construction, a few of them all the closer; only others show where its edge is.

    Returns:
        ``scales``: for each number of ``clips`` in a row the range (``low``, ``high``) that holds
        all but 1 in 1000 of their means in every dimension, and the share of values outside
        (``edge``) such that 1 video in 1000 is beyond it at any scale, of them all and of those
        that were held out.
    """
    scales = _ranges(videos, [c for c in _SCALES if 2 * _count(videos, c) >= len(videos)])
    # A video that is too short for a scale has no share of its own there.
    table = np.array([_shares(video, scales) for video in (*videos, *held_out)])
    edges = np.maximum([_edge(column, len(videos)) for column in table.T], _LEAST_EDGE)
    # Several scales have several chances to call a video strange.
    edges = edges * max(_edge(np.nanmax(table / edges, axis=1), len(videos)), 1.0)
    return {"scales": [s | {"edge": edge} for s, edge in zip(scales, edges.tolist(), strict=True)]}


def measure_strangeness(
    features: NDArray[np.floating],
    domain: Mapping[str, Any] | None,
    calibrated: Mapping[str, Any] | None = None,
) -> float:
    """How far a video lies outside the training data; at most 1 for all but 1 in 1000 like them.

    The share of feature values outside the training range, relative to the share that marks the
    edge of the training videos, at the scale where that is most. 0 if the model stores no domain.

    Args:
        features: Raw, ``(L, Dv)``.
        domain: Of the training videos.
        calibrated: Of other videos that the model was calibrated on: what is like these or like
            the training videos is not strange.

    Raises:
        ValueError: If the features are of another size than a domain.
    """
    if domain is None:
        return 0.0
    if calibrated is not None:
        return min(measure_strangeness(features, known) for known in (domain, calibrated))
    scales = domain["scales"]
    edges = np.array([scale["edge"] for scale in scales], np.float64)
    return float(np.nanmax(np.array(_shares(features, scales)) / edges))


def check_domain(domain: Any, video_dim: int | None = None) -> Mapping[str, Any] | None:
    """Check a stored domain, so that :func:`measure_strangeness` may rely on it.

    Args:
        domain: As it was read, or None. Models of demr 0.1 say ``low``, ``high`` and ``edge`` of
            single clips alone.
        video_dim: Raw features of a clip; None takes any number.

    Raises:
        KeyError, TypeError, ValueError: If a part is missing or no such number.
    """
    if domain is None:
        return None
    if not isinstance(domain, dict):
        raise TypeError("domain must be an object")
    scales = domain["scales"] if "scales" in domain else [domain | {"clips": 1}]
    if not isinstance(scales, list) or not all(isinstance(scale, dict) for scale in scales):
        raise TypeError("domain scales must be a list of objects")
    checked = []
    for scale in scales:
        video_dim = len(scale["low"]) if video_dim is None else video_dim
        clips = scale["clips"]
        if isinstance(clips, bool) or not isinstance(clips, int) or clips < 1:
            raise ValueError("domain clips must be a whole number above 0")
        low, high, edge = (np.asarray(scale[key], np.float64) for key in ("low", "high", "edge"))
        for key, values in (("low", low), ("high", high)):
            if values.shape != (video_dim,) or not np.isfinite(values).all():
                raise ValueError(f"domain {key} must be {video_dim} finite numbers")
        if edge.shape != () or not 0 < edge < np.inf:
            raise ValueError("domain edge must be a number above 0")
        # As numbers: in JSON they may have been strings.
        checked.append(
            {"clips": clips, "low": low.tolist(), "high": high.tolist(), "edge": float(edge)}
        )
    if not scales or scales[0]["clips"] != 1:
        raise ValueError("the first of domain scales must be that of single clips")
    return {"scales": checked}


def _means(features: NDArray[np.floating], clips: int) -> NDArray[np.float32]:
    """Means of so many clips in a row, half overlapping, ``(M, Dv)``; the clips for 1."""
    # Half precision would round the range itself, and a sum of many clips.
    table = np.asarray(features, np.float32)
    if clips == 1:
        return table
    starts = np.arange(0, len(table) - clips + 1, clips // 2)
    return np.stack([table[start : start + clips].mean(axis=0) for start in starts])


def _count(videos: Sequence[NDArray[np.floating]], clips: int) -> int:
    """How many videos have so many clips."""
    return sum(len(video) >= clips for video in videos)


def _ranges(videos: Sequence[NDArray[np.floating]], counts: Sequence[int]) -> list[Scale]:
    """The range of each scale over some videos."""
    scales = []
    for clips in counts:
        table = np.concatenate([_means(video, clips) for video in videos if len(video) >= clips])
        low, high = np.quantile(table, [_LEFT_OUT / 2, 1 - _LEFT_OUT / 2], axis=0)
        scales.append(
            {"clips": clips, "low": np.round(low, 4).tolist(), "high": np.round(high, 4).tolist()}
        )
    return scales


def _shares(features: NDArray[np.floating], scales: Sequence[Scale]) -> list[float]:
    """Share of a video's values outside the range, of each scale; NaN where it is too short."""
    shares = []
    for scale in scales:
        if len(features) < scale["clips"]:
            shares.append(np.nan)
            continue
        low, high = np.asarray(scale["low"]), np.asarray(scale["high"])
        values = _means(features, scale["clips"])
        slack = 0.01 * (high - low) + 1e-4
        shares.append(float(((values < low - slack) | (values > high + slack)).mean()))
    return shares


def _edge(values: NDArray[np.float64], trained: int) -> float:
    """What 1 video in 1000 exceeds; the first ``trained`` drew the range that they are held to."""
    parts = (values, values[trained:])
    known = [part[~np.isnan(part)] for part in parts]
    return max((float(np.quantile(part, 1 - _LEFT_OUT)) for part in known if len(part)), default=0)

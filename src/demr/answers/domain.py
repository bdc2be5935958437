"""The domain of a model: what the videos it was trained on look like, and how far another is.

A model is sure of itself also where it has never been. How far a video lies outside the range of
the training features needs no label, and tells.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def describe_domain(
    videos: Sequence[NDArray[np.floating]], held_out: Sequence[NDArray[np.floating]]
) -> dict[str, Any]:
    """What the features of training videos look like, for :func:`measure_strangeness`.

    Args:
        videos: Raw features of each training video, ``(L, Dv)``, float16 or float32.
        held_out: Likewise of other videos of the same kind. The range fits the training videos
            by construction, a few of them all the closer; only others show where its edge is.

    Returns:
        The range that holds all but 1 in 1000 values of every dimension, and the share of
        values outside it that 1 video in 1000 of them all reaches.
    """
    # Half precision would round the range itself.
    table = np.concatenate(videos, dtype=np.float32)
    low, high = np.quantile(table, [0.0005, 0.9995], axis=0)
    outside = [_outside(video, low, high) for video in (*videos, *held_out)]
    return {
        "low": np.round(low, 4).tolist(),
        "high": np.round(high, 4).tolist(),
        "edge": float(max(np.quantile(outside, 0.999), 1e-3)),
    }


def measure_strangeness(features: NDArray[np.floating], domain: Mapping[str, Any] | None) -> float:
    """How far a video lies outside the training data; at most 1 for all but 1 in 1000 like them.

    The share of feature values outside the training range, relative to the share that marks the
    edge of the training videos. 0 if the model stores no domain.
    """
    if domain is None:
        return 0.0
    share = _outside(features, np.asarray(domain["low"]), np.asarray(domain["high"]))
    return share / float(domain["edge"])


def check_domain(domain: Any, video_dim: int) -> Mapping[str, Any] | None:
    """Check a stored domain, so that :func:`measure_strangeness` may rely on it.

    Args:
        domain: As it was read, or None.
        video_dim: Raw features of a clip.

    Raises:
        KeyError, TypeError, ValueError: If a part is missing or no such number.
    """
    if domain is None:
        return None
    if not isinstance(domain, dict):
        raise TypeError("domain must be an object")
    low, high, edge = (np.asarray(domain[key], dtype=np.float64) for key in ("low", "high", "edge"))
    for key, values in (("low", low), ("high", high)):
        if values.shape != (video_dim,) or not np.isfinite(values).all():
            raise ValueError(f"domain {key} must be {video_dim} finite numbers")
    if edge.shape != () or not 0 < edge < np.inf:
        raise ValueError("domain edge must be a number above 0")
    return domain


def _outside(features: NDArray[np.floating], low: NDArray[Any], high: NDArray[Any]) -> float:
    features = np.asarray(features, np.float32)
    slack = 0.01 * (high - low) + 1e-4
    return float(((features < low - slack) | (features > high + slack)).mean())

"""Appearance and motion of a tracked object, as soft codes that a linear layer can read.

Every channel is non-negative and about 0..1. Opposite motions have a channel each, since a
product with another code would lose the sign.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from demr.encoders.builtin import objects as o
from demr.encoders.builtin.objects import ORDERS, Floats
from demr.encoders.builtin.tracking import Track

SAMPLES_PER_S = 8

# Values of named channels of the motion code, (n,) each; such channels with their activity.
Channels = dict[str, NDArray[np.generic]]
Part = tuple[Channels, NDArray[np.floating]]

HUE_BINS = 12
HUE_DIM = HUE_BINS + 2
# Spread (1 is a disc) at which the soft bins of the form code sit.
_SPREAD_KNOTS = np.array([1.0, 1.08, 1.22, 1.5])
SHAPE_DIM = 1 + len(ORDERS) + len(_SPREAD_KNOTS)
MOTIONS = (
    "left", "right", "up", "down",
    "far_left", "far_right", "far_up", "far_down",
    "swing_x", "swing_y", "turn_cw", "turn_ccw",
    "grow", "shrink", "grow_long", "shrink_long",
    "fade_in", "fade_out",
    "flicker", "recolour",
    "recolour_long", "appear", "vanish",
    "still", "active_first", "active_second", "present",
)  # fmt: skip
MOTION_DIM = len(MOTIONS)

# Below this strength a harmonic is what pixels and compression do to a disc.
_HARMONIC_FLOOR = 0.12


def hue_code(rows: Floats) -> Floats:
    """Soft circular histogram of hue, then brightness and strength of the colour.

    Args:
        rows: Regions, ``(n, COLUMNS)``.

    Returns:
        ``(n, HUE_DIM)``.
    """
    turn = np.arctan2(rows[:, o.HUE_SIN], rows[:, o.HUE_COS]) / (2 * np.pi) * HUE_BINS
    offset = np.abs((turn[:, None] - np.arange(HUE_BINS) + HUE_BINS / 2) % HUE_BINS - HUE_BINS / 2)
    code = np.zeros((len(rows), HUE_DIM), dtype=np.float32)
    code[:, :HUE_BINS] = np.maximum(1 - offset, 0)
    code[:, HUE_BINS] = np.clip((rows[:, o.LIGHT] - 0.25) / 0.5, 0, 1)
    code[:, HUE_BINS + 1] = np.clip(rows[:, o.CONTRAST] / 0.8, 0, 1)
    return code


def shape_code(harmonics: Floats, spread: Floats) -> Floats:
    """Share of each order of symmetry, and how far the form reaches out.

    Args:
        harmonics: Strength of each order, ``(n, len(ORDERS))``.
        spread: Moment of inertia over a disc's, ``(n,)``.

    Returns:
        ``(n, SHAPE_DIM)``: round, orders 2..6, soft bins of spread.
    """
    code = np.zeros((len(spread), SHAPE_DIM), dtype=np.float32)
    power = harmonics**2
    total = power.sum(axis=1) + _HARMONIC_FLOOR**2
    code[:, 0] = _HARMONIC_FLOOR**2 / total
    code[:, 1 : 1 + len(ORDERS)] = power / total[:, None]
    position = np.interp(np.log(spread), np.log(_SPREAD_KNOTS), np.arange(len(_SPREAD_KNOTS)))
    bins = np.abs(position[:, None] - np.arange(len(_SPREAD_KNOTS)))
    code[:, 1 + len(ORDERS) :] = np.maximum(1 - bins, 0)
    return code


@dataclass(frozen=True)
class TrackCodes:
    """Codes of one track for each sample from its first to its last sight.

    Attributes:
        first: Sample index of the first row.
        hue: ``(n, HUE_DIM)``.
        shape: ``(n, SHAPE_DIM)``.
        motion: ``(n, MOTION_DIM)``.
    """

    first: int
    hue: Floats
    shape: Floats
    motion: Floats


def describe_track(track: Track, camera: Floats, exposure: Floats, samples: int) -> TrackCodes:
    """Codes of a track.

    Args:
        track: The track.
        camera: Place of the background at every sample of the video, ``(S, 2)``.
        exposure: Mean lightness of every sample, ``(S,)``.
        samples: Number of samples that the video has; the arrays may be longer.
    """
    index, rows = track.index, track.rows
    first, last = int(index[0]), int(index[-1])
    time = np.arange(first, last + 1)
    nearest = _nearest(index, time)
    seen = np.zeros(len(time), dtype=bool)
    seen[index - first] = True
    place = np.stack(
        [
            np.interp(time, index, rows[:, column] - camera[index, axis])
            for axis, column in enumerate((o.X, o.Y))
        ]
    )
    contrast = np.interp(time, index, rows[:, o.CONTRAST])
    parts = (
        _translation(place),
        _rotation(_turn(index, rows, time)),
        _growth(np.interp(time, index, np.log(rows[:, o.AREA]))),
        _fade(contrast, exposure[first : last + 1]),
        _flicker(contrast, seen),
        _recolour(rows, nearest),
    )
    active = np.tanh(sum(activity for _, activity in parts))
    early = time % SAMPLES_PER_S < SAMPLES_PER_S // 2
    channels: Channels = {
        "still": 1 - active,
        "active_first": 2 * active * early,
        "active_second": 2 * active * ~early,
        "present": seen,
    }
    for part, _ in parts:
        channels |= part
    # What is there at the video's first or last sample neither came nor went.
    if first > 1:
        channels["appear"] = np.exp(-2 * ((time - first) / SAMPLES_PER_S))
    if last < samples - 2:
        channels["vanish"] = np.exp(-2 * ((last - time) / SAMPLES_PER_S))
    motion = np.zeros((len(time), MOTION_DIM), dtype=np.float32)
    for name, values in channels.items():
        motion[:, MOTIONS.index(name)] = values
    return TrackCodes(first, hue_code(rows)[nearest], _shape(index, rows, time), motion)


# The parts of the motion code follow: each has its channels, and an activity that is 0 at rest and
# in units that add up. A rate as large as its scale fills three quarters of its channel (tanh 1).


def _translation(place: NDArray[np.float64]) -> Part:
    """Where an object goes, soon and later, and swings; ``place`` is ``(2, n)`` in heights."""
    smooth = np.stack([_smooth(values) for values in place])
    near, far = _difference(smooth, 4), _difference(smooth, 12)
    channels: Channels = {}
    for axis, (plus, minus, swing) in enumerate(
        (("right", "left", "swing_x"), ("down", "up", "swing_y"))
    ):
        channels |= _both_ways(plus, minus, near[axis], 0.12)
        channels |= _both_ways(f"far_{plus}", f"far_{minus}", far[axis], 0.25)
        residual = place[axis] - _box(place[axis], 9)
        channels[swing] = np.tanh(np.sqrt(_box(residual**2, 9)) / 0.05)
    speed = np.hypot(*_difference(smooth, 1)) * (SAMPLES_PER_S / 2)
    return channels, speed / 0.15


def _rotation(turn: NDArray[np.float64]) -> Part:
    return _both_ways("turn_cw", "turn_ccw", turn, 0.8), np.abs(turn) / 1.0


def _growth(log_area: NDArray[np.float64]) -> Part:
    growth = _slope(log_area, 4)
    channels = _both_ways("grow", "shrink", growth, 0.15)
    channels |= _both_ways("grow_long", "shrink_long", _slope(log_area, 12), 0.06)
    return channels, np.abs(growth) / 0.2


def _fade(contrast: NDArray[np.float64], exposure: Floats) -> Part:
    # A change of exposure strengthens all colours; a fade changes one object alone.
    light = np.log(np.maximum(exposure, 0.02))
    fade = _slope(np.log(np.maximum(contrast, 0.02)) - light, 4)
    return _both_ways("fade_in", "fade_out", fade, 0.25), np.abs(fade) / 0.3


def _flicker(contrast: NDArray[np.float64], seen: NDArray[np.bool_]) -> Part:
    visible = np.where(seen, contrast, 0)
    step = np.abs(np.diff(visible, prepend=visible[:1])) / max(float(contrast.max()), 0.02)
    flicker = _box(np.where(step > 0.3, step, 0), 9) * 9
    return {"flicker": np.tanh(flicker / 2)}, flicker


def _recolour(rows: Floats, nearest: NDArray[np.int64]) -> Part:
    # Faint colour has a noisy hue: average with the strength of the colour.
    colour = rows[:, [o.HUE_COS, o.HUE_SIN]].T * rows[:, o.CONTRAST]
    hue = np.stack([_smooth(_smooth(values)) for values in colour])
    hue = (hue / np.maximum(np.hypot(*hue), 1e-3))[:, nearest]
    change = np.hypot(*_difference(hue, 4))
    channels: Channels = {
        "recolour": np.tanh(change / 0.3),
        "recolour_long": np.tanh(np.hypot(*_difference(hue, 12)) / 0.5),
    }
    return channels, change


def _both_ways(plus: str, minus: str, rate: NDArray[np.floating], scale: float) -> Channels:
    """A rate and its opposite, a channel each."""
    return {
        plus: np.tanh(np.maximum(rate, 0) / scale),
        minus: np.tanh(np.maximum(-rate, 0) / scale),
    }


def _shape(index: NDArray[np.int64], rows: Floats, time: NDArray[np.int64]) -> Floats:
    """Form code, averaged over some seconds and over whole, unhidden sights."""
    weight = np.where(rows[:, o.BORDER] > 0, 0.05, 1.0) * np.clip(rows[:, o.CONTRAST], 0.02, 1)
    around = np.array(
        [
            np.interp(time, index, values * weight)
            for values in (
                np.ones(len(rows)),
                rows[:, o.SPREAD],
                *_strength(rows).T,
            )
        ]
    )
    width = 8 * SAMPLES_PER_S + 1
    mean = np.stack([_box(values, width) for values in around])
    mean = mean[1:] / mean[0]
    return shape_code(mean[1:].T.astype(np.float32), np.maximum(mean[0], 0.5).astype(np.float32))


def _turn(index: NDArray[np.int64], rows: Floats, time: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rate of rotation in radians per second, positive clockwise on the screen."""
    strength = _strength(rows).mean(axis=0)
    # A higher order turns faster in phase and is the less noisy one at equal strength.
    best = int(np.argmax(strength))
    order = ORDERS[best]
    start = o.HARMONICS + 2 * best
    phase = rows[:, start].astype(np.float64) + 1j * rows[:, start + 1]
    step = np.zeros(len(time), dtype=np.complex128)
    amount = np.zeros(len(time))
    next_to = np.diff(index) == 1
    at = index[:-1][next_to] - index[0]
    step[at] = phase[1:][next_to] * np.conj(phase[:-1][next_to])
    amount[at] = np.abs(phase[:-1][next_to]) ** 2
    summed = _box(step.real, 8) + 1j * _box(step.imag, 8)
    total = _box(amount, 8) + 1e-6
    coherence = np.clip(np.abs(summed) / total, 0, 1) ** 2
    certainty = total / (total + _HARMONIC_FLOOR**2)
    rate: NDArray[np.float64] = np.angle(summed) / order * SAMPLES_PER_S * coherence * certainty
    return rate


def _strength(rows: Floats) -> Floats:
    parts = rows[:, o.HARMONICS :].reshape(len(rows), len(ORDERS), 2)
    return np.hypot(parts[..., 0], parts[..., 1])


def _nearest(index: NDArray[np.int64], time: NDArray[np.int64]) -> NDArray[np.int64]:
    """Row of the sight nearest to each sample."""
    after = np.clip(np.searchsorted(index, time), 0, len(index) - 1)
    before = np.maximum(after - 1, 0)
    return np.where(time - index[before] < index[after] - time, before, after)


def _padded(values: NDArray[np.floating], before: int, after: int) -> NDArray[np.floating]:
    width = [(0, 0)] * (values.ndim - 1) + [(before, after)]
    return np.pad(values, width, mode="edge")


def _box(values: NDArray[np.floating], width: int) -> NDArray[np.float64]:
    """Moving mean over ``width`` samples; the ends are repeated outwards."""
    before = (width - 1) // 2
    total = np.cumsum(_padded(values, before + 1, width - 1 - before), dtype=np.float64)
    return (total[width:] - total[:-width]) / width


def _smooth(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Weights 1 2 1."""
    return np.convolve(_padded(values, 1, 1), (0.25, 0.5, 0.25), mode="valid")


def _difference(values: NDArray[np.floating], reach: int) -> NDArray[np.floating]:
    """Change along the last axis from ``reach`` samples before to ``reach`` samples after."""
    wide = _padded(values, reach, reach)
    return wide[..., 2 * reach :] - wide[..., : -2 * reach]


def _slope(values: NDArray[np.floating], reach: int) -> NDArray[np.float64]:
    """Least-squares slope per second over ``2 * reach + 1`` samples."""
    weight = np.arange(reach, -reach - 1, -1, dtype=np.float64)
    weight *= SAMPLES_PER_S / np.sum(weight**2)
    return np.convolve(_padded(values, reach, reach), weight, mode="valid")

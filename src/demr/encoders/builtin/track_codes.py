"""What a tracked object looks like and does, as soft codes that a linear layer can read.

Every channel is non-negative and about 0..1. Opposite motions have a channel each, since a
product with another code could not tell them apart by sign.
"""

import numpy as np
from numpy.typing import NDArray

from demr.encoders.builtin import objects as o
from demr.encoders.builtin.objects import ORDERS, Floats
from demr.encoders.builtin.tracking import Track

SAMPLES_PER_S = 8

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


class TrackCodes:
    """Codes of one track for each sample from its first to its last sight.

    Args:
        track: The track.
        camera: Place of the background at every sample of the video, ``(S, 2)``.
        exposure: Mean lightness of every sample, ``(S,)``.
        samples: Number of samples that the video has; the arrays may be longer.

    Attributes:
        first: Sample index of the first row.
        hue: ``(n, HUE_DIM)``.
        shape: ``(n, SHAPE_DIM)``.
        motion: ``(n, MOTION_DIM)``.
    """

    def __init__(self, track: Track, camera: Floats, exposure: Floats, samples: int) -> None:
        index, rows = track.index, track.rows
        self.first = int(index[0])
        last = int(index[-1])
        time = np.arange(self.first, last + 1)
        seen = np.zeros(len(time), dtype=bool)
        seen[index - self.first] = True
        self.hue = hue_code(rows)[_nearest(index, time)]
        self.shape = self._shape(index, rows, time)
        place = np.stack(
            [
                np.interp(time, index, rows[:, column] - camera[index, axis])
                for axis, column in enumerate((o.X, o.Y))
            ]
        )
        log_area = np.interp(time, index, np.log(rows[:, o.AREA]))
        contrast = np.interp(time, index, rows[:, o.CONTRAST])
        self.motion = np.zeros((len(time), MOTION_DIM), dtype=np.float32)
        put = self._put
        smooth = np.stack([_smooth(values) for values in place])
        near = _difference(smooth, 4)
        far = _difference(smooth, 12)
        for axis, names in enumerate((("right", "left"), ("down", "up"))):
            put(names[0], np.tanh(np.maximum(near[axis], 0) / 0.12))
            put(names[1], np.tanh(np.maximum(-near[axis], 0) / 0.12))
            put("far_" + names[0], np.tanh(np.maximum(far[axis], 0) / 0.25))
            put("far_" + names[1], np.tanh(np.maximum(-far[axis], 0) / 0.25))
            residual = place[axis] - _box(place[axis], 9)
            swing = np.sqrt(_box(residual**2, 9))
            put("swing_x" if axis == 0 else "swing_y", np.tanh(swing / 0.05))
        turn = self._turn(index, rows, time)
        put("turn_cw", np.tanh(np.maximum(turn, 0) / 0.8))
        put("turn_ccw", np.tanh(np.maximum(-turn, 0) / 0.8))
        growth = _slope(log_area, 4)
        growth_long = _slope(log_area, 12)
        put("grow", np.tanh(np.maximum(growth, 0) / 0.15))
        put("shrink", np.tanh(np.maximum(-growth, 0) / 0.15))
        put("grow_long", np.tanh(np.maximum(growth_long, 0) / 0.06))
        put("shrink_long", np.tanh(np.maximum(-growth_long, 0) / 0.06))
        # A change of exposure strengthens all colours; a fade changes one object alone.
        light = np.log(np.maximum(exposure[self.first : last + 1], 0.02))
        fade = _slope(np.log(np.maximum(contrast, 0.02)) - light, 4)
        put("fade_in", np.tanh(np.maximum(fade, 0) / 0.25))
        put("fade_out", np.tanh(np.maximum(-fade, 0) / 0.25))
        visible = np.where(seen, contrast, 0)
        step = np.abs(np.diff(visible, prepend=visible[:1])) / max(float(contrast.max()), 0.02)
        flicker = _box(np.where(step > 0.3, step, 0), 9) * 9
        put("flicker", np.tanh(flicker / 2))
        # Faint colour has a noisy hue: average with the strength of the colour.
        colour = rows[:, [o.HUE_COS, o.HUE_SIN]].T * rows[:, o.CONTRAST]
        hue = np.stack([_smooth(_smooth(values)) for values in colour])
        hue = (hue / np.maximum(np.hypot(*hue), 1e-3))[:, _nearest(index, time)]
        recolour = np.hypot(*_difference(hue, 4))
        put("recolour", np.tanh(recolour / 0.3))
        put("recolour_long", np.tanh(np.hypot(*_difference(hue, 12)) / 0.5))
        age = (time - self.first) / SAMPLES_PER_S
        left = (last - time) / SAMPLES_PER_S
        if self.first > 1:
            put("appear", np.exp(-2 * age))
        if last < samples - 2:
            put("vanish", np.exp(-2 * left))
        speed = np.hypot(*_difference(smooth, 1)) * (SAMPLES_PER_S / 2)
        active = np.tanh(
            speed / 0.15
            + np.abs(turn) / 1.0
            + np.abs(growth) / 0.2
            + np.abs(fade) / 0.3
            + flicker
            + recolour
        )
        put("still", 1 - active)
        half = time % SAMPLES_PER_S < SAMPLES_PER_S // 2
        put("active_first", 2 * active * half)
        put("active_second", 2 * active * ~half)
        put("present", seen)

    def _put(self, name: str, values: NDArray[np.generic]) -> None:
        self.motion[:, MOTIONS.index(name)] = values

    @staticmethod
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
        return shape_code(
            mean[1:].T.astype(np.float32), np.maximum(mean[0], 0.5).astype(np.float32)
        )

    @staticmethod
    def _turn(
        index: NDArray[np.int64], rows: Floats, time: NDArray[np.int64]
    ) -> NDArray[np.float64]:
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

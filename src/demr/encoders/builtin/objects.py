"""Objects of a frame without a detector: regions of one colour.

A frame's background is its most common colour; what differs from it in chroma is foreground. The
hues of the foreground are cut at the valleys of their histogram, and connected pixels of one
hue make a region. Nothing here knows which colours or forms to expect.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]

# Orders of rotational symmetry that are measured: an order n is the strength of a form that
# repeats n times in a full turn.
ORDERS = (2, 3, 4, 5, 6)

# Columns of a region's row. Lengths are in heights of the frame, so that a video's size in pixels
# does not matter.
X, Y, AREA, CONTRAST, HUE_COS, HUE_SIN, LIGHT, SPREAD, BORDER = range(9)
HARMONICS = 9
COLUMNS = HARMONICS + 2 * len(ORDERS)

# The largest regions of a frame, and the strongest hues, so that confetti costs no more than a few
# objects.
_MAX_REGIONS = 12
_MAX_HUES = 8
_HUE_BINS = 72
# Chroma (0..255) by which a pixel has to differ from the background, whatever the noise.
_MIN_DEVIATION = 10.0
_NOISE_FACTOR = 5.0
# Width, in heights, over which the background may change its tint.
_TINT_REACH = 0.25
# Smaller regions, in shares of the frame and in pixels, are noise.
_MIN_AREA = 8e-4
_MIN_PIXELS = 6
# Samples for which one reference picture serves to follow the camera.
_REFERENCE_FRAMES = 80
# Squared gradient that keeps the camera still where the background has no texture.
_RIDGE = 0.02
# Columns of a frame's scene row: mean and spread of lightness, fine texture, mean chroma, share of
# foreground, place of the background in x and y (in heights).
LIGHTNESS, LIGHT_SPREAD, TEXTURE, CHROMA, FOREGROUND = range(5)
CAMERA = slice(5, 7)
SCENE_COLUMNS = 7


@dataclass(frozen=True)
class FrameObjects:
    """Regions and scene of a batch of frames.

    Attributes:
        regions: One array ``(n, COLUMNS)`` per frame.
        scene: ``(F, SCENE_COLUMNS)``.
    """

    regions: list[Floats]
    scene: Floats


class FrameAnalyser:
    """Finds regions in batches of consecutive frames of one video."""

    def __init__(self) -> None:
        self._reference: tuple[Floats, NDArray[np.bool_]] | None = None
        self._origin = np.zeros(2, dtype=np.float32)
        self._age = 0

    def analyse(self, frames: NDArray[np.uint8]) -> FrameObjects:
        """Regions and scene statistics of consecutive frames.

        Args:
            frames: uint8 RGB, ``(F, H, W, 3)``.
        """
        alpha, beta, light = _opponent(frames)
        deviation, chroma = _deviate_from_background(alpha, beta)
        foreground = deviation > 0
        scene = np.empty((len(frames), SCENE_COLUMNS), dtype=np.float32)
        scene[:, LIGHTNESS] = light.mean(axis=(1, 2)) / 255
        scene[:, LIGHT_SPREAD] = light.std(axis=(1, 2)) / 255
        scene[:, TEXTURE] = (
            np.abs(np.diff(light, axis=2)).mean(axis=(1, 2)) / 255 if light.shape[2] > 1 else 0
        )
        scene[:, CHROMA] = chroma / 255
        scene[:, FOREGROUND] = foreground.mean(axis=(1, 2))
        scene[:, CAMERA] = self._camera_place(light, foreground)
        return FrameObjects(_regions(alpha, beta, deviation, light), scene)

    def _camera_place(self, light: Floats, foreground: NDArray[np.bool_]) -> Floats:
        """Where the background lies, by least squares on the gradient of a reference picture.

        The reference serves for some seconds, so that errors do not add up from frame to frame.

        Returns:
            Place in heights of the frame, ``(F, 2)``; only differences mean something.
        """
        frames, height, width = light.shape
        if min(height, width) < 16:
            return np.zeros((frames, 2), dtype=np.float32)
        # Shadows and soft edges move with an object: keep away from it.
        hidden = (
            ndimage.maximum_filter(foreground.view(np.uint8), size=(1, 5, 5))[:, 2:-2, 2:-2] > 0
        )
        smooth = _blur(light)[:, 1:-1, 1:-1]
        if self._reference is None or self._reference[0].shape != smooth.shape[1:]:
            self._reference = (smooth[0], hidden[0])
        picture, covered = self._reference
        shift, count = _shift(smooth, picture, ~(hidden | covered))
        # Beyond two pixels the linear picture does not hold: a cut or a pan, not a shake.
        lost = (np.abs(shift).max(axis=1) > 2) | (count < 0.1 * picture.size)
        shift[lost] = 0
        place = (self._origin + shift / height).astype(np.float32)
        self._age += frames
        if lost[-1] or self._age >= _REFERENCE_FRAMES or np.abs(shift[-1]).max() > 1:
            self._reference = (smooth[-1], hidden[-1])
            self._origin = place[-1]
            self._age = 0
        return np.asarray(place)


def _shift(
    smooth: Floats, picture: Floats, free: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.floating]]:
    """Motion of the background against a reference picture (Lucas and Kanade's, once).

    Args:
        smooth: Blurred lightness, ``(F, H, W)``.
        picture: That of the reference, ``(H, W)``.
        free: Where the background can be seen in both, ``(F, H, W)``.

    Returns:
        Shift in pixels, x and y, ``(F, 2)``, and the number of pixels that it rests on, ``(F,)``.
    """
    level = np.maximum(smooth.mean(axis=(1, 2), keepdims=True), 1)
    # A change of exposure is not motion.
    change = smooth * (picture.mean() / level) - picture
    gradient_y, gradient_x = np.gradient(picture)
    typical = np.median(np.abs(change[:, ::3, ::3]), axis=(1, 2), keepdims=True)
    weight = (free & (np.abs(change) < 4 * typical + 1)).astype(np.float32)
    count = np.maximum(weight.sum(axis=(1, 2)), 1)
    change -= ((change * weight).sum(axis=(1, 2)) / count)[:, None, None]
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    products = np.stack(
        [gradient_x * gradient_x, gradient_x * gradient_y, gradient_y * gradient_y]
    ).reshape(3, -1)
    xx, xy, yy = (flat @ products.T).T + _RIDGE * count * np.array([[1.0], [0.0], [1.0]])
    change *= weight
    xt = change.reshape(len(change), -1) @ gradient_x.ravel()
    yt = change.reshape(len(change), -1) @ gradient_y.ravel()
    determinant = xx * yy - xy**2
    shift = -np.stack([yy * xt - xy * yt, xx * yt - xy * xt], axis=1) / determinant[:, None]
    return shift, count


def _opponent(frames: NDArray[np.uint8]) -> tuple[Floats, Floats, Floats]:
    """Opponent colours and lightness at half size; H.264 stores chroma no finer than that."""
    _, height, width, _ = frames.shape
    if min(height, width) >= 32:
        frames = frames[:, : height // 2 * 2, : width // 2 * 2]
        parts = frames.astype(np.uint16)
        parts = parts[:, 0::2] + parts[:, 1::2]
        parts = parts[:, :, 0::2] + parts[:, :, 1::2]
        scale = np.float32(0.25)
    else:
        parts = frames.astype(np.uint16)
        scale = np.float32(1)
    red, green, blue = (np.asarray(parts[..., i] * scale, dtype=np.float32) for i in range(3))
    alpha = np.asarray(red - (green + blue) * np.float32(0.5))
    beta = np.asarray((green - blue) * np.float32(np.sqrt(0.75)))
    light = np.float32(0.3) * red + np.float32(0.59) * green + np.float32(0.11) * blue
    return alpha, beta, light


def _deviate_from_background(alpha: Floats, beta: Floats) -> tuple[Floats, Floats]:
    """Distance of each pixel's chroma from the background's, 0 where it is within the noise.

    ``alpha`` and ``beta`` are shifted in place so that the background is their origin: the hue of
    a half transparent object is then the hue of the object.

    Returns:
        The distance ``(F, H, W)``, and the chroma of the background ``(F,)``.
    """
    step = max(1, min(alpha.shape[1:]) // 24)
    chroma = np.zeros(len(alpha), dtype=np.float32)
    for plane in (alpha, beta):
        sample = plane[:, ::step, ::step].reshape(len(plane), -1)
        centre = np.median(sample, axis=1)
        np.subtract(plane, centre[:, None, None], out=plane)
        chroma += centre**2
    threshold = _threshold(alpha, beta, step)
    if min(alpha.shape[1:]) >= 16:
        _subtract_tint(alpha, beta, threshold)
        threshold = _threshold(alpha, beta, step)
    deviation = np.sqrt(alpha**2 + beta**2)
    # Noise of one pixel passes, what its neighbours share stays.
    near = (
        ndimage.uniform_filter(deviation, size=(1, 3, 3)) if deviation.shape[1] > 8 else deviation
    )
    deviation[(near < threshold) | (deviation < threshold)] = 0
    return deviation, np.sqrt(chroma)


def _threshold(alpha: Floats, beta: Floats, step: int) -> Floats:
    """Distance from the background's chroma that noise does not reach, ``(F, 1, 1)``."""
    noise = [
        np.median(np.abs(plane[:, ::step, ::step]), axis=(1, 2), keepdims=True)
        for plane in (alpha, beta)
    ]
    threshold: Floats = np.clip(_NOISE_FACTOR * np.maximum(*noise), _MIN_DEVIATION, 80)
    return threshold


def _subtract_tint(alpha: Floats, beta: Floats, threshold: Floats) -> None:
    """Take slow changes of the background's tint away, in place.

    A wide moving mean over the background alone, of the batch's mean picture.
    """
    _, height, width = alpha.shape
    small = (slice(None), slice(None, None, 2), slice(None, None, 2))
    free = (alpha[small] ** 2 + beta[small] ** 2 < threshold**2).astype(np.float32)
    reach = max(3, int(_TINT_REACH * height / 2) | 1)
    share = _wide_mean(free.mean(axis=0), reach)
    for plane in (alpha, beta):
        tint = _wide_mean((plane[small] * free).mean(axis=0), reach) / (share + 0.05)
        full = tint.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
        np.subtract(plane, full, out=plane)


def _wide_mean(picture: Floats, reach: int) -> Floats:
    once = ndimage.uniform_filter(picture, reach, mode="nearest")
    return np.asarray(ndimage.uniform_filter(once, reach, mode="nearest"))


def _hue_modes(bins: NDArray[np.int64], weight: Floats) -> NDArray[np.int64]:
    """Which mode of the hue histogram each hue bin belongs to."""
    histogram = np.bincount(bins, weights=weight, minlength=_HUE_BINS)
    smooth = ndimage.gaussian_filter1d(histogram, 1.5, mode="wrap")
    peak = (smooth > np.roll(smooth, 1)) & (smooth >= np.roll(smooth, -1))
    peaks = np.flatnonzero(peak & (smooth > 0.01 * smooth.max()))
    if len(peaks) > _MAX_HUES:
        peaks = np.sort(peaks[np.argsort(-smooth[peaks])[:_MAX_HUES]])
    modes = np.zeros(_HUE_BINS, dtype=np.int64)
    if len(peaks) < 2:
        return modes
    cuts = []
    for first, second in zip(peaks, np.append(peaks[1:], peaks[0] + _HUE_BINS), strict=True):
        between = np.arange(first, second + 1)
        cuts.append(int(between[np.argmin(smooth[between % _HUE_BINS])]) % _HUE_BINS)
    for cut in cuts:
        modes[cut:] += 1
    return modes % len(cuts)


def _regions(alpha: Floats, beta: Floats, deviation: Floats, light: Floats) -> list[Floats]:
    """Rows of each frame's regions, ``(n, COLUMNS)``; planes are ``(F, H, W)``."""
    frames, height, width = deviation.shape
    pixels = _foreground(alpha, beta, deviation, light)
    label, count = _connected(pixels, deviation.shape)
    keep = _largest(label, count, pixels.frame, frames, height * width)
    # Numbered by frame, so that a frame's regions are neighbours in the table.
    frame_of = np.zeros(count + 1, dtype=np.int64)
    frame_of[label] = pixels.frame
    order = np.flatnonzero(keep)
    order = order[np.argsort(frame_of[order], kind="stable")]
    if not len(order):
        return [np.zeros((0, COLUMNS), dtype=np.float32)] * frames
    number = np.full(count + 1, -1)
    number[order] = np.arange(len(order))
    chosen = number[label] >= 0
    table = _describe(pixels.where(chosen), number[label[chosen]], len(order), (height, width))
    return np.split(table, np.searchsorted(frame_of[order], np.arange(1, frames)))


@dataclass(frozen=True)
class _Foreground:
    """Pixels of the foreground, each array ``(n,)``.

    Attributes:
        frame: Which frame each is in.
        row: Its place in the frame.
        column: Likewise.
        strength: Distance of its chroma from the background's.
        along: First opponent colour, from the background.
        across: The second.
        light: Its lightness.
    """

    frame: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    strength: Floats
    along: Floats
    across: Floats
    light: Floats

    def where(self, chosen: NDArray[np.bool_]) -> "_Foreground":
        return _Foreground(*(getattr(self, field.name)[chosen] for field in fields(self)))


def _foreground(alpha: Floats, beta: Floats, deviation: Floats, light: Floats) -> _Foreground:
    _, height, width = deviation.shape
    place = np.flatnonzero(deviation)
    frame, rest = np.divmod(place, height * width)
    row, column = np.divmod(rest, width)
    strength, along, across, lightness = (
        plane.ravel()[place] for plane in (deviation, alpha, beta, light)
    )
    return _Foreground(frame, row, column, strength, along, across, lightness)


def _connected(pixels: _Foreground, shape: tuple[int, ...]) -> tuple[NDArray[np.int32], int]:
    """Number of the region that each pixel belongs to, from 1, and of regions."""
    frames, height, width = shape
    if not len(pixels.frame):
        return np.zeros(0, dtype=np.int32), 0
    turn = np.arctan2(pixels.across, pixels.along) * np.float32(_HUE_BINS / (2 * np.pi))
    bins = np.floor(turn).astype(np.int64) % _HUE_BINS
    modes = _hue_modes(bins, pixels.strength)
    # Frames and hues side by side in one picture with empty seams: one call labels them all, and
    # neither two frames nor two hues grow together.
    hues = int(modes.max()) + 1
    row = (pixels.frame * (height + 1) + pixels.row) * hues + modes[bins]
    place = row * (width + 1) + pixels.column
    mosaic = np.zeros(frames * (height + 1) * hues * (width + 1), dtype=np.uint8)
    mosaic[place] = 1
    labelled, count = ndimage.label(
        mosaic.reshape(frames * (height + 1), hues * (width + 1)), structure=np.ones((3, 3))
    )
    return labelled.ravel()[place], count


def _largest(
    label: NDArray[np.int32], count: int, frame: NDArray[np.int64], frames: int, pixels: int
) -> NDArray[np.bool_]:
    """Which regions are large enough, and among the largest of their frame, ``(count + 1,)``."""
    size = np.bincount(label, minlength=count + 1)
    keep = size >= max(_MIN_PIXELS, _MIN_AREA * pixels)
    keep[0] = False
    candidates = np.flatnonzero(keep)
    if len(candidates) > _MAX_REGIONS:
        frame_of = np.zeros(count + 1, dtype=np.int64)
        frame_of[label] = frame
        ranked = candidates[np.lexsort((-size[candidates], frame_of[candidates]))]
        first = np.searchsorted(frame_of[ranked], np.arange(frames))
        rank = np.arange(len(ranked)) - first[frame_of[ranked]]
        keep[ranked[rank >= _MAX_REGIONS]] = False
    return keep


def _describe(
    pixels: _Foreground, region: NDArray[np.int64], count: int, size: tuple[int, int]
) -> Floats:
    """Rows of regions, ``(count, COLUMNS)``.

    Args:
        pixels: Those of all regions.
        region: Which region each belongs to, from 0.
        count: Number of regions.
        size: Rows and columns of a frame.
    """
    height, width = size
    strength = pixels.strength

    def total(values: NDArray[np.floating]) -> NDArray[np.float64]:
        return np.bincount(region, weights=values, minlength=count).astype(np.float64, copy=False)

    # The mean weighted by itself leans to a region's core, away from its blended edge; a pixel of
    # the edge then counts by how much of it the object covers.
    core = total(strength**2) / total(strength)
    cover = np.minimum(strength / core[region].astype(np.float32), 1)
    area = total(cover)
    x = total(cover * pixels.column) / area
    y = total(cover * pixels.row) / area
    radius = np.sqrt(area / np.pi)
    dx = ((pixels.column - x[region]) / radius[region]).astype(np.float32)
    dy = ((pixels.row - y[region]) / radius[region]).astype(np.float32)
    table = np.empty((count, COLUMNS), dtype=np.float32)
    table[:, X] = (x + 0.5 - width / 2) / height
    table[:, Y] = (y + 0.5) / height
    table[:, AREA] = area / height**2
    table[:, CONTRAST] = core / 255
    hue_cos, hue_sin = total(pixels.along * strength), total(pixels.across * strength)
    length = np.maximum(np.hypot(hue_cos, hue_sin), 1e-9)
    table[:, HUE_COS], table[:, HUE_SIN] = hue_cos / length, hue_sin / length
    table[:, LIGHT] = total(pixels.light * strength) / total(strength) / 255
    # 1 for a disc, more the further a form reaches out: moment of inertia over a disc's.
    squared = dx**2 + dy**2
    table[:, SPREAD] = 2 * total(cover * squared) / area
    edge_x = (pixels.column == 0) | (pixels.column == width - 1)
    edge_y = (pixels.row == 0) | (pixels.row == height - 1)
    table[:, BORDER] = total((edge_x | edge_y).astype(np.float32)) > 0
    table[:, HARMONICS:] = _harmonics(dx + 1j * dy, np.sqrt(squared), cover, total)
    return table


def _harmonics(
    point: NDArray[np.complexfloating],
    reach: Floats,
    cover: Floats,
    total: Callable[[NDArray[np.floating]], NDArray[np.float64]],
) -> NDArray[np.float64]:
    """Real and imaginary part of each order's symmetry, ``(count, 2 len(ORDERS))``.

    r^n exp(i n angle) is (dx + i dy)^n; divided by the mean of r^n it is within 0..1.
    """
    power = point.copy()
    parts = []
    for order in ORDERS:
        power = power * point
        norm = np.maximum(total(cover * reach**order), 1e-9)
        parts += [total(cover * power.real) / norm, total(cover * power.imag) / norm]
    return np.stack(parts, axis=1)


def _blur(planes: Floats) -> Floats:
    """3 x 3 binomial blur, one pixel lost on every side."""
    rows = planes[:, :-2] + 2 * planes[:, 1:-1] + planes[:, 2:]
    blurred: Floats = (rows[:, :, :-2] + 2 * rows[:, :, 1:-1] + rows[:, :, 2:]) / np.float32(16)
    return blurred

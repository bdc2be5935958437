"""Draws a scene: anti-aliased shapes with soft shadows on a textured, shaking, noisy picture.

Tuned for many small videos: every mask is cached by its quantised size, angle and sub-pixel
phase, only bounding boxes are drawn, and noise comes from one large tile at random offsets.
"""

import math
import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demr.shapes.script import ASPECT, Floats, Scene, States, stable_rng
from demr.video import VideoWriter

Image = NDArray[np.uint8]
Counts = NDArray[np.uint16]

_SHADOW = 0.34  # darkness of the shadow
_SHADOW_SHIFT = (0.010, 0.016)  # frame heights
_SHADOW_BLUR = 0.030
_CACHE_BYTES = 64 << 20


def render_scene(
    scene: Scene,
    path: str | os.PathLike[str],
    *,
    width: int = 192,
    height: int = 108,
    fps: float = 8,
    crf: int = 20,
    preset: str = "ultrafast",
) -> None:
    """Write the scene as an H.264 mp4 file.

    Args:
        scene: The script.
        path: Where the file goes.
        width: Pixels; the scene is 16:9 and is stretched to other ratios.
        height: Pixels.
        fps: Frames per second.
        crf: Constant rate factor of the encoder; smaller is better and larger on disk.
        preset: The encoder's trade of speed for size.

    Raises:
        VideoError: If the file cannot be written.
    """
    with VideoWriter(Path(path), width, height, fps, crf=crf, preset=preset) as writer:
        for frame in frames(scene, width, height, fps):
            writer.write(frame)


def frames(scene: Scene, width: int, height: int, fps: float) -> Iterator[Image]:
    """Yield the frames, each a new uint8 array ``(height, width, 3)``.

    Frame ``i`` shows the scene at ``i / fps`` seconds.
    """
    times_s = np.arange(max(1, round(scene.duration_s * fps))) / fps
    rng = stable_rng("look", scene.split, scene.seed, scene.name)
    shake = _shake(rng, times_s)
    gain = _drift(rng, times_s)
    # Sub-pixel steps of the shake; the larger the picture, the less they are seen.
    phases = 4 if width < 480 else 2 if width < 960 else 1
    margin = math.ceil(0.012 * width) + 1
    canvas = _background(rng, width, height, margin, phases)
    noise = _noise_tile(width, height) * np.float32(rng.uniform(2.0, 4.5))
    noise16 = np.rint(noise).astype(np.int16)
    tracks = [(actor.shape, actor.states(times_s)) for actor in scene.actors]
    # A shape is drawn over those that stand behind it: larger ones first.
    tracks.sort(key=lambda track: -float(track[1].radius[0]))
    painter = _Painter(height)
    steps = np.rint(shake * width * phases).astype(int)
    offsets = rng.integers(0, 33, (times_s.size, 2))
    for index in range(times_s.size):
        (whole_x, part_x), (whole_y, part_y) = (divmod(int(q), phases) for q in steps[index])
        top, left = margin - whole_y, margin - whole_x
        frame = canvas[part_y, part_x, top : top + height, left : left + width].copy()
        for shape, states in tracks:
            painter.draw(frame, shape, states, index, steps[index] / phases)
        x, y = offsets[index]
        yield _exposed(frame, gain[index], noise16[y : y + height, x : x + width])


def _exposed(frame: Image, gain: float, noise: NDArray[np.int16]) -> Image:
    """A frame times a gain, in steps of 1/128, plus noise."""
    bright = np.multiply(frame, np.uint16(round(128 * gain)), dtype=np.uint16)
    bright >>= 7
    mixed = bright.view(np.int16)
    mixed += noise
    np.clip(mixed, 0, 255, out=mixed)
    return mixed.astype(np.uint8)


def _shake(rng: np.random.Generator, times_s: Floats) -> Floats:
    """Offsets ``(T, 2)`` in frame widths, at most 1 %."""
    size = rng.uniform(0.002, 0.01)
    frequency = rng.uniform(0.08, 0.6, (4, 2))
    phase = rng.uniform(0, 2 * np.pi, (4, 2))
    waves = np.sin(2 * np.pi * times_s[:, None, None] * frequency + phase)
    return np.asarray(size * (waves * np.array([0.4, 0.3, 0.2, 0.1])[:, None]).sum(axis=1))


def _drift(rng: np.random.Generator, times_s: Floats) -> Floats:
    """Brightness factor ``(T,)`` within 15 % of 1."""
    size = rng.uniform(0.02, 0.15)
    period_s = rng.uniform(15, 60, 2)
    phase = rng.uniform(0, 2 * np.pi, 2)
    waves = np.sin(2 * np.pi * times_s[:, None] / period_s + phase)
    return np.asarray(1 + size * (waves * np.array([0.6, 0.4])).sum(axis=1))


def _background(
    rng: np.random.Generator, width: int, height: int, margin: int, phases: int
) -> Image:
    """Draw the wall behind the shapes once for every sub-pixel phase of the shake.

    Returns:
        uint8 array ``(phases, phases, height + 2 margin, width + 2 margin, 3)``.
    """
    level = rng.uniform(85, 165)
    tint = rng.normal(0, 5, 3)
    slope = rng.uniform(-22, 22, 2)
    grids = [
        rng.normal(0, size, (rows + 3, round(rows * ASPECT) + 4))
        for rows, size in ((3, 26.0), (9, 11.0), (30, 6.0))
    ]
    wash = rng.normal(0, 7, (3, 6, 8))  # slow changes of tint
    out = np.empty((phases, phases, height + 2 * margin, width + 2 * margin, 3), np.uint8)
    for part_y in range(phases):
        v = (np.arange(height + 2 * margin) - margin - part_y / phases + 0.5) / height
        for part_x in range(phases):
            u = (np.arange(width + 2 * margin) - margin - part_x / phases + 0.5) / width
            grey = level + slope[0] * (v[:, None] - 0.5) + slope[1] * (u - 0.5)
            for grid in grids:
                grey = grey + _spline(grid, v, u)
            for channel in range(3):
                picture = grey + tint[channel] + _spline(wash[channel], v, u)
                out[part_y, part_x, ..., channel] = np.clip(picture, 30, 215)
    return out


def _spline(grid: Floats, v: Floats, u: Floats) -> Floats:
    """Cubic B-spline surface through a grid, sampled on rows ``v`` and columns ``u`` of 0..1."""
    return _spline_weights(v, grid.shape[0]) @ grid @ _spline_weights(u, grid.shape[1]).T


def _spline_weights(at: Floats, knots: int) -> Floats:
    position = np.clip(at, 0, 1)[:, None] * (knots - 3) + 1
    distance = np.abs(position - np.arange(knots))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance) ** 3 / 6
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


@lru_cache(maxsize=4)
def _noise_tile(width: int, height: int) -> NDArray[np.float32]:
    rng = stable_rng("noise", width, height)
    shape = (height + 32, width + 32)
    tile = rng.standard_normal((*shape, 3), np.float32)
    # Sensors are noisier in brightness than in colour.
    tile *= np.float32(0.55)
    tile += np.float32(0.83) * rng.standard_normal((*shape, 1), np.float32)
    return tile


class _Painter:
    """Draws shapes into frames of one height and keeps the masks."""

    def __init__(self, height: int) -> None:
        self.height = height
        self.angle_step = 3.0 if height < 240 else 1.0
        self.masks: dict[tuple[str, int, int, int, int], tuple[Counts, Counts]] = {}
        self.bytes = 0

    def draw(self, frame: Image, shape: str, states: States, index: int, shake: Floats) -> None:
        """Blend one shape, at one of its states, into the frame.

        Args:
            frame: Drawn into.
            shape: Its name.
            states: The shape at all times.
            index: Which of these times.
            shake: Offset of the camera in pixels, x and y.
        """
        alpha = float(states.alpha[index])
        if alpha <= 0.004:
            return
        x = float(states.x[index]) / ASPECT * frame.shape[1] + shake[0]
        y = float(states.y[index]) * self.height + shake[1]
        quarter_x, quarter_y = round(4 * x), round(4 * y)
        keep, paint = self._mask(
            shape,
            round(4 * float(states.radius[index]) * self.height),
            0 if shape == "circle" else round(float(states.angle_deg[index]) / self.angle_step),
            quarter_x % 4,
            quarter_y % 4,
        )
        half = keep.shape[0] // 2
        left, top = quarter_x // 4 - half, quarter_y // 4 - half
        x0, y0 = max(left, 0), max(top, 0)
        x1 = min(left + keep.shape[1], frame.shape[1])
        y1 = min(top + keep.shape[0], frame.shape[0])
        if x1 <= x0 or y1 <= y0:
            return
        part = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        keep, paint = keep[part], paint[part]
        opacity = round(255 * alpha)
        if opacity < 255:
            keep = 256 - _scaled(256 - keep, opacity)
            paint = _scaled(paint, opacity)
        box = frame[y0:y1, x0:x1]
        mixed = np.multiply(box, keep, dtype=np.uint16)
        mixed += paint * np.rint(states.rgb[index]).astype(np.uint16)
        mixed >>= 8
        box[...] = mixed

    def _mask(
        self, shape: str, radius4: int, angle: int, part_x: int, part_y: int
    ) -> tuple[Counts, Counts]:
        key = (shape, radius4, angle, part_x, part_y)
        mask = self.masks.get(key)
        if mask is None:
            if self.bytes > _CACHE_BYTES:
                self.masks.clear()
                self.bytes = 0
            mask = self._draw_mask(*key)
            self.masks[key] = mask
            self.bytes += mask[0].nbytes * 2
        return mask

    def _draw_mask(
        self, shape: str, radius4: int, angle: int, part_x: int, part_y: int
    ) -> tuple[Counts, Counts]:
        """Return how much of the picture stays and how much colour comes, of 256, ``(N, N, 1)``."""
        radius = radius4 / 4
        blur = _SHADOW_BLUR * self.height
        half = math.ceil(radius * 1.25 + blur + _SHADOW_SHIFT[1] * self.height) + 1
        line: Floats = np.arange(-half, half + 1, dtype=np.float64) + 0.5
        x: Floats = line[None, :] - part_x / 4
        y: Floats = line[:, None] - part_y / 4
        turn = math.radians(angle * self.angle_step)
        cover = np.clip(0.5 - _distance(shape, x, y, radius, turn), 0, 1)
        shift_x, shift_y = (shift * self.height for shift in _SHADOW_SHIFT)
        depth = _distance(shape, x - shift_x, y - shift_y, radius, turn)
        soft = np.clip(0.5 - depth / blur, 0, 1)
        shadow = soft * soft * (3 - 2 * soft)
        light = np.clip(0.93 - 0.08 * y / radius, 0.82, 1.0)  # lit from above
        keep = np.rint(256 * (1 - cover) * (1 - _SHADOW * shadow)).astype(np.uint16)
        paint = np.floor((256 - np.rint(256 * (1 - cover))) * light).astype(np.uint16)
        return keep[..., None], paint[..., None]


def _scaled(counts: Counts, opacity: int) -> Counts:
    scaled: Counts = np.right_shift(counts * np.uint16(opacity), 8, dtype=np.uint16)
    return scaled


def _distance(shape: str, x: Floats, y: Floats, radius: float, turn: float) -> Floats:
    """Signed distance in pixels to the shape's outline, negative inside.

    Exact on the outline, which is all that anti-aliasing and a soft shadow need.
    """
    cos, sin = math.cos(turn), math.sin(turn)
    px, py = cos * x + sin * y, cos * y - sin * x
    if shape == "circle":
        return np.hypot(px, py) - radius
    if shape == "square":
        return _box(px, py, 0.84 * radius, 0.84 * radius)
    if shape == "bar":
        return _box(px, py, 1.16 * radius, 0.32 * radius)
    if shape == "cross":
        arm, half = 1.1 * radius, 0.34 * radius
        return np.minimum(_box(px, py, arm, half), _box(px, py, half, arm))
    if shape == "triangle":
        slope = math.cos(math.pi / 6) * np.abs(px) - 0.5 * py
        return np.maximum(slope, py) - 0.6 * radius
    if shape == "star":
        return _star(px, py, 1.2 * radius, 0.52 * radius)
    raise ValueError(f"unknown shape {shape!r}")


def _box(x: Floats, y: Floats, half_x: float, half_y: float) -> Floats:
    out_x, out_y = np.abs(x) - half_x, np.abs(y) - half_y
    outside = np.hypot(np.maximum(out_x, 0), np.maximum(out_y, 0))
    return np.asarray(outside + np.minimum(np.maximum(out_x, out_y), 0))


def _star(x: Floats, y: Floats, outer: float, inner: float) -> Floats:
    """Five points: fold the plane into a tenth, where the outline is one straight line."""
    angle = np.arctan2(x, -y)
    sector = 2 * math.pi / 5
    folded = np.abs((angle + sector / 2) % sector - sector / 2)
    length = np.hypot(x, y)
    along, across = length * np.cos(folded), length * np.sin(folded)
    tip_x, knee_x, knee_y = (
        outer,
        inner * math.cos(math.pi / 5),
        inner * math.sin(math.pi / 5),
    )
    edge = math.hypot(tip_x - knee_x, knee_y)
    return np.asarray((knee_y * (along - tip_x) + (tip_x - knee_x) * across) / edge)

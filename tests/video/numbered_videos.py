"""Videos for tests: every frame carries its number in its grey, or is its own noise."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from demr.video import source as video_source
from demr.video.reading import Frame, iter_frames

CLOCK = Fraction(1, 600)
STEP = 4  # grey levels between neighbouring frames: far above the coding error


def grey(index: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.full((height, width, 3), 20 + STEP * index, np.uint8)


def number(frame: Frame) -> int:
    """The index that `grey` painted into the pixels."""
    return round((float(frame.rgb.mean()) - 20) / STEP)


def make_video(
    path: Path,
    pts: Sequence[int],
    *,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    images: Sequence[npt.NDArray[np.uint8]] | None = None,
    with_audio: bool = False,
    clock: Fraction = CLOCK,
) -> Path:
    """Write frame k at ``pts[k] * clock`` seconds."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, 10, options or {"crf": "5", "preset": "veryfast"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = clock
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", 16000) if with_audio else None
        for index, ticks in enumerate(pts):
            image = images[index] if images is not None else grey(index, size[1], size[0])
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = ticks, clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            write_sound(container, sound, pts[-1] * clock)
    return path


def write_sound(
    container: av.container.OutputContainer, stream: av.AudioStream, length_s: Fraction
) -> None:
    for index in range(int(length_s * 16000 / 1024) + 1):
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = 16000, index * 1024
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def every(fps: int, count: int) -> list[int]:
    return [index * (600 // fps) for index in range(count)]


def shown(path: Path, times: Sequence[float]) -> list[int]:
    return [number(frame) for frame in iter_frames(path, times)]


QUADRANTS = np.array([["R", "G"], ["B", "W"]])
COLOURS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": (255, 255, 255)}


def quadrant_image(height: int, width: int) -> npt.NDArray[np.uint8]:
    image = np.zeros((height, width, 3), np.uint8)
    for row in range(2):
        for column in range(2):
            rows = slice(row * height // 2, (row + 1) * height // 2)
            columns = slice(column * width // 2, (column + 1) * width // 2)
            image[rows, columns] = COLOURS[QUADRANTS[row, column]]
    return image


def quadrants(rgb: npt.NDArray[np.uint8]) -> list[list[str]]:
    height, width = rgb.shape[:2]
    names = {tuple(c > 128 for c in colour): name for name, colour in COLOURS.items()}
    return [
        [names[tuple(c > 128 for c in rgb[y, x].tolist())] for x in (width // 4, 3 * width // 4)]
        for y in (height // 4, 3 * height // 4)
    ]


def quadrant_video(path: Path, rotation: int) -> Path:
    images = [quadrant_image(48, 64)] * 12
    return make_video(path, every(10, 12), rotation=rotation, images=images)


def noisy_video(path: Path, muxer: dict[str, str]) -> Path:
    rng = np.random.default_rng(0)
    images = [
        np.clip(grey(k, 48, 64) + rng.integers(-3, 4, (48, 64, 3)), 0, 255).astype(np.uint8)
        for k in range(40)
    ]
    options = {"crf": "5", "preset": "veryfast", "g": "5"}
    return make_video(path, every(10, 40), options=options, muxer=muxer, images=images)


def noise_video(path: Path, count: int, options: dict[str, str], codec: str) -> Path:
    """Every frame is its own noise, so that one decoded from a wrong reference shows."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(count)]
    return make_video(path, every(10, count), options=options, images=images, codec=codec)


# Left to itself, x264 takes noise for one cut after the other and writes no B-frames.
X264 = {"crf": "30", "preset": "veryfast", "sc_threshold": "0", "b_strategy": "0"}


def count_frames(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times of all frames that are decoded from now on."""
    seen: list[float] = []
    frames = video_source.Source.frames

    def counted(self: video_source.Source) -> Iterator[tuple[float, av.VideoFrame]]:
        for item in frames(self):
            seen.append(item[0])
            yield item

    monkeypatch.setattr(video_source.Source, "frames", counted)
    return seen


def last_at_or_before(pts_s: Sequence[float], time_s: float) -> int:
    """The obvious loop that the streaming code must agree with."""
    best = 0
    for index, start in enumerate(pts_s):
        if start <= time_s:
            best = index
    return best

"""The videos that decoding.py measures on: moving textures under grain, all frames numbered.

Every frame carries its number as 16 black or white cells along its top edge, in Gray code, so that
whoever decodes it, at whatever size, can tell which frame it is.
"""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
FPS = 30
CELLS = 16
CLIPS, CLIP_KINDS, CLIP_S = 1000, 24, 10
# Where a video is long, its first minute is encoded and its packets are repeated.
MINUTE = 60


def make_videos(folder: Path) -> None:
    """Write what is not there yet: a.mp4, b.mp4 and the folder c."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, size, keyint, minutes in (
        ("a", (640, 360), 250, 10),
        ("b", (1920, 1080), 60, 60),
    ):
        if not (folder / f"{name}.mp4").exists():
            minute = folder / f"{name}-minute.mp4"
            encode(minute, size, MINUTE * FPS, keyint, seed=ord(name))
            repeat(minute, folder / f"{name}.mp4", minutes)
            minute.unlink()
    make_clips(folder)


def make_clips(folder: Path) -> None:
    """Write the folder c, if it is not there yet."""
    clips = folder / "c"
    clips.mkdir(parents=True, exist_ok=True)
    for kind in range(CLIP_KINDS):
        kept = folder / f"kind-{kind:02d}.mp4"
        if not kept.exists():
            count = CLIP_S * FPS
            encode(kept, (640, 360), count, 250, seed=100 + kind, first=kind * count)
        for number in range(kind, CLIPS, CLIP_KINDS):
            if not (clips / f"{number:04d}.mp4").exists():
                os.link(kept, clips / f"{number:04d}.mp4")


def encode(
    path: Path, size: tuple[int, int], count: int, keyint: int, seed: int, first: int = 0
) -> None:
    """Render and encode with x264's settings for quality 23; appears whole or not at all."""
    width, height = size
    partial = path.with_name(f"partial-{path.name}")
    options = {"crf": "23", "preset": "veryfast", "g": str(keyint), "sc_threshold": "0"}
    with av.open(str(partial), "w") as container:
        stream = container.add_stream("libx264", FPS, options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index, rgb in enumerate(pictures(height, width, count, seed)):
            stamp(rgb, first + index)
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    partial.replace(path)


def pictures(height: int, width: int, count: int, seed: int) -> Iterator[Pixels]:
    """Yield frames: a texture that pans, six that move over it, and grain."""
    rng = np.random.default_rng(seed)
    wide = texture(height * 2, width * 2, rng)
    parts = [texture(height // 3, width // 5, rng) for _ in range(6)]
    places = rng.uniform(0, 1, (6, 2))
    rates = rng.uniform(0.2, 1.0, (6, 2))
    # A bank of grain, shifted at random: drawing it anew takes longer than encoding.
    grain = rng.normal(0, 2.0, (height * 2, width * 2, 1)).round().astype(np.int8).view(np.uint8)
    for index in range(count):
        time_s = index / FPS
        y = round((0.5 + 0.5 * np.sin(time_s / 7)) * (height - 1))
        x = round((0.5 + 0.5 * np.sin(time_s / 11 + 1)) * (width - 1))
        rgb = wide[y : y + height, x : x + width].copy()
        for part, place, rate in zip(parts, places, rates, strict=True):
            free = np.array([height - part.shape[0], width - part.shape[1]])
            top, left = (free * (0.5 + 0.5 * np.sin(6.28 * place + rate * time_s))).astype(int)
            rgb[top : top + part.shape[0], left : left + part.shape[1]] = part
        y, x = rng.integers(0, height), rng.integers(0, width)
        # Textures keep clear of black and white, so the wrapped sum is the sum.
        rgb += grain[y : y + height, x : x + width]
        yield rgb


def texture(height: int, width: int, rng: np.random.Generator) -> Pixels:
    """Noise whose spectrum falls as that of photographs does, ``(height, width, 3)``, 30 to 220."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    fall = 1 / np.maximum(np.hypot(fy * height, fx * width), 1) ** 1.2
    shape = (height, fx.shape[1])
    common, layers = rng.normal(size=(2, *shape)), []
    for _ in range(3):
        real, imaginary = (common + 0.4 * rng.normal(size=(2, *shape))) * fall
        layer = np.fft.irfft2(real + 1j * imaginary, (height, width))
        layers.append(125 + 40 * (layer - layer.mean()) / layer.std())
    return np.stack(layers, axis=-1).clip(30, 220).astype(np.uint8)


def stamp(rgb: Pixels, number: int) -> None:
    """Write a number below 65,536 along the top edge."""
    height, width = rgb.shape[:2]
    code = number ^ (number >> 1)
    for cell in range(CELLS):
        columns = slice(cell * width // CELLS, (cell + 1) * width // CELLS)
        rgb[: height // 12, columns] = 235 if code >> cell & 1 else 16


def read_stamp(rgb: Pixels) -> int:
    """The number that :func:`stamp` wrote, from a frame of any size."""
    height, width = rgb.shape[:2]
    middles = (2 * np.arange(CELLS) + 1) * width // (2 * CELLS)
    bits = np.packbits(rgb[height // 24, middles, 1] > 125, bitorder="little")
    code, number = int.from_bytes(bits.tobytes(), "little"), 0
    while code:
        number ^= code
        code >>= 1
    return number


def repeat(path: Path, out: Path, times: int) -> None:
    """Write the packets of a video of one minute, again and again."""
    partial = out.with_name(f"partial-{out.name}")
    with av.open(str(partial), "w") as container:
        stream = None
        for turn in range(times):
            with av.open(str(path)) as source:
                stream = stream or container.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.dts is None:
                        continue
                    shift = round(turn * MINUTE / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    container.mux(packet)
    partial.replace(out)

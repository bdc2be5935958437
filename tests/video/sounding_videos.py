"""Videos that flash and beep at the same times, and where clips of them do."""

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.video.frame import VideoFrame

from demr.video.sound import Samples

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.video.stream import VideoStream

# Flashes and beeps of 0.2 s, by their starts.
BEEPS_S = (1.0, 3.4, 6.2, 8.8)
LASTS_S = 0.2
FPS, SECONDS = 25, 10


def beeps(rate: int, channels: int, seconds: float = SECONDS) -> Samples:
    """A tone in the beeps, half as loud in every second channel; silence between."""
    times = np.arange(round(seconds * rate)) / rate
    loud = np.zeros_like(times)
    for start in BEEPS_S:
        loud[(times >= start) & (times < start + LASTS_S)] = 0.5
    tone = loud * np.sin(2 * np.pi * 1000 * times)
    return np.stack([tone * (0.5 if n % 2 else 1.0) for n in range(channels)]).astype(np.float32)


def make_sounding(
    path: Path,
    codec: str = "aac",
    rate: int = 48000,
    layout: str = "stereo",
    *,
    late_s: float = 0.0,
    sound_s: float = SECONDS,
    pts: list[int] | None = None,
    video_codec: str = "libx264",
    options: dict[str, str] | None = None,
) -> Path:
    """A video that is white while it beeps, and dark else.

    Args:
        path: Its suffix chooses the container.
        codec: Of the sound.
        rate: Of the sound.
        layout: Of the sound.
        late_s: How much later than the video the track of the sound begins; beeps stay in step.
        sound_s: When the sound ends.
        pts: Times of the frames in milliseconds; None for a constant rate.
        video_codec: Of the video.
        options: Of the container.
    """
    pts = pts or [round(1000 * n / FPS) for n in range(FPS * SECONDS)]
    with av.open(str(path), "w", options=options or {}) as out:
        video = cast("VideoStream", out.add_stream(video_codec, FPS))
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        sound = cast("AudioStream", out.add_stream(codec, rate, layout=layout))
        for time_ms in pts:
            is_white = any(s <= time_ms / 1000 + 1e-6 < s + LASTS_S for s in BEEPS_S)
            picture = np.full((48, 64, 3), 235 if is_white else 20, np.uint8)
            frame = VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        samples = beeps(rate, sound.codec_context.channels, sound_s)[:, round(late_s * rate) :]
        # Packed: PyAV cannot lay out eight planes.
        frame_s = AudioFrame.from_ndarray(samples.T.reshape(1, -1).copy(), "flt", layout)
        frame_s.sample_rate = rate
        frame_s.pts, frame_s.time_base = round(late_s * rate), Fraction(1, rate)
        out.mux(sound.encode(frame_s))
        out.mux(sound.encode(None))
    return path


def heard(path: Path) -> tuple[Samples, int, float]:
    """All samples of a file as they are played, their rate, and when the first one is."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    first = frames[0]
    assert first.pts is not None
    assert first.time_base is not None
    resampler = AudioResampler("flt", first.layout, first.sample_rate)
    packed = [part.to_ndarray() for frame in frames for part in resampler.resample(frame)]
    samples = np.concatenate(packed, axis=1).reshape(-1, first.layout.nb_channels).T
    return samples.astype(np.float32), first.sample_rate, float(first.pts * first.time_base)


def beeps_of(path: Path) -> list[tuple[float, float]]:
    """Start and end of each beep in a file, in seconds as a player plays it."""
    samples, rate, begin = heard(path)
    # A window of 4 ms of a tone of 1 kHz holds four waves.
    level = np.convolve(np.abs(samples).max(axis=0), np.ones(rate // 250) / (rate // 250), "same")
    loud = np.concatenate([[False], level > 0.15, [False]])
    edges = np.flatnonzero(np.diff(loud.astype(int)))
    return [
        (begin + start / rate, begin + end / rate)
        for start, end in zip(edges[::2], edges[1::2], strict=True)
    ]


def flashes_of(path: Path) -> list[float]:
    """When each flash begins, in seconds of the file's own clock."""
    starts, was_white = [], False
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            is_white = frame.to_ndarray(format="gray").mean() > 128
            if is_white and not was_white:
                assert frame.time is not None
                starts.append(frame.time)
            was_white = is_white
    return starts

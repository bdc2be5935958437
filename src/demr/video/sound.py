"""The sound of a stretch of a video, as samples in step with its frames."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError

from demr.errors import VideoError
from demr.video.damage import DamagedVideoWarning
from demr.video.opening import open_video
from demr.video.watchdog import decoder_call

Samples = npt.NDArray[np.float32]

# What AAC encodes as it is; others are resampled or mixed down.
_RATES = frozenset(
    (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
)
_OTHER_RATE = 48000
_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}
_OTHER_LAYOUT = "stereo"
# Decoders need what came before, and containers seek by their own rules.
_EARLY_S = 2.0
# Containers round times to milliseconds, which is no gap.
_JITTER_S = 0.02


class Sound:
    """The sound of a video from a time on, without gaps: silence where the file has none.

    Args:
        path: A video file.
        stream: Its sound, as the file is opened elsewhere.
        origin_s: When the first frame of its video starts, on the clock of the container.
        start_s: From when on, in seconds from the first frame.

    Attributes:
        rate: Samples a second, one that AAC takes.
        layout: Name of the channels' layout, one that AAC takes.
    """

    def __init__(self, path: Path, stream: AudioStream, origin_s: float, start_s: float) -> None:
        context = stream.codec_context
        self.path = path
        self.rate = context.sample_rate if context.sample_rate in _RATES else _OTHER_RATE
        self.layout = _LAYOUTS.get(context.channels, _OTHER_LAYOUT)
        self._index = stream.index
        self._from_s = origin_s + start_s
        self._chunks = self._read()
        self._waiting: list[Samples] = []
        # Samples that were made, and that were given out.
        self._made = self._given = 0
        self._is_over = False

    def until(self, seconds: float) -> Samples:
        """The samples that follow those of the call before, ``(N, channels)``.

        Args:
            seconds: Where they end, from the start; sooner where the file has no more.
        """
        wanted = round(seconds * self.rate)
        while self._made < wanted and not self._is_over:
            try:
                with decoder_call(self.path):
                    chunk = next(self._chunks, None)
            except VideoError as error:
                warnings.warn(
                    f"{self.path}: its sound ends early ({error.got})",
                    DamagedVideoWarning,
                    stacklevel=2,
                )
                chunk = None
            if chunk is None:
                self._is_over = True
            else:
                self._waiting.append(chunk)
                self._made += len(chunk)
        if not self._waiting:
            return np.zeros((0, 0), np.float32)
        whole = np.concatenate(self._waiting)
        count = max(wanted - self._given, 0)
        self._waiting = [whole[count:]]
        self._given += min(count, len(whole))
        return whole[:count]

    def _read(self) -> Iterator[Samples]:
        """Samples without gaps from the start on."""
        place = 0
        jitter = round(_JITTER_S * self.rate)
        for first, samples in self._placed():
            gap = first - place
            if gap > jitter:
                # A second at a time: a gap may be of hours.
                for begin in range(place, first, self.rate):
                    length = min(self.rate, first - begin)
                    yield np.zeros((length, samples.shape[1]), np.float32)
                place = first
            # Behind the place by jitter alone it goes on there; by more, it is heard already.
            begin = -gap if gap < -jitter else 0
            rest = samples[begin:]
            if len(rest):
                yield rest
                place += len(rest)

    def _placed(self) -> Iterator[tuple[int, Samples]]:
        """Decoded samples from the start on, each run with the place of its first sample."""
        before = 0
        for frame in self._resampled():
            # Packed: PyAV cannot lay out eight planes.
            packed: Samples = frame.to_ndarray()  # type: ignore[assignment]
            samples = packed.reshape(frame.samples, -1)
            if frame.pts is None or frame.time_base is None:
                first = before
            else:
                first = round((float(frame.pts * frame.time_base) - self._from_s) * self.rate)
            before = first + len(samples)
            if before > 0:
                yield max(first, 0), samples[max(-first, 0) :]

    def _resampled(self) -> Iterator[AudioFrame]:
        resampler: AudioResampler | None = None
        kind = None
        for frame in self._decoded():
            # A broadcast may change its sound on the way.
            if kind != (kind := (frame.format.name, frame.layout.name, frame.sample_rate)):
                if resampler is not None:
                    yield from resampler.resample(None)
                resampler = AudioResampler("flt", self.layout, self.rate)
            if resampler is not None:
                yield from resampler.resample(frame)
        if resampler is not None:
            yield from resampler.resample(None)

    def _decoded(self) -> Iterator[AudioFrame]:
        with open_video(self.path) as container:
            stream = cast("AudioStream", container.streams[self._index])
            frames = _frames(container, stream, self._from_s - _EARLY_S)
            first = next(frames, None)
            if first is not None and _time_s(first) <= self._from_s:
                yield first
                yield from frames
                return
        # The jump led nowhere, or too far.
        with open_video(self.path) as container:
            stream = cast("AudioStream", container.streams[self._index])
            yield from _frames(container, stream, None)


def sound_of(
    container: InputContainer, path: Path, origin_s: float | None, start_s: float
) -> Sound | None:
    """The sound of a video, by the stream that players choose; None where there is none.

    What cannot be decoded, or not be put in step, is none, and a :class:`DamagedVideoWarning`
    says so.

    Args:
        container: The open file.
        path: Of the file.
        origin_s: When its first frame starts, on its clock; None where that clock jumps.
        start_s: From when on the sound is wanted, in seconds from the first frame.
    """
    if not container.streams.audio:
        return None
    if origin_s is None:
        reason = "its clock jumps, and a clip of it has no sound"
        warnings.warn(f"{path}: {reason}", DamagedVideoWarning, stacklevel=2)
        return None
    stream = container.streams.best("audio")
    if isinstance(stream, AudioStream) and stream.codec_context is not None:
        context = stream.codec_context
        if context.sample_rate > 0 and context.channels > 0:
            return Sound(path, stream, origin_s, start_s)
    warnings.warn(f"{path}: its sound cannot be decoded", DamagedVideoWarning, stacklevel=2)
    return None


def _frames(
    container: InputContainer, stream: AudioStream, from_s: float | None
) -> Iterator[AudioFrame]:
    if from_s is not None and stream.time_base:
        try:
            container.seek(round(from_s / stream.time_base), stream=stream)
        except FFmpegError:
            return
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            frames = packet.decode()
        except FFmpegError:
            # A demuxer that failed ends its generator; a decoder goes on behind the damage.
            continue
        for frame in frames:
            if isinstance(frame, AudioFrame):
                yield frame


def _time_s(frame: AudioFrame) -> float:
    if frame.pts is None or frame.time_base is None:
        return math.inf
    return float(frame.pts * frame.time_base)

"""Frames and sound -> an mp4 file that appears whole or not at all; also cut out of a video."""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from demr.errors import InputError, VideoError
from demr.machine.files import temporary_folder
from demr.video.orientation import Orientation, Pixels, orientation_of
from demr.video.sound import Samples, Sound, sound_of
from demr.video.source import ONE_THREAD_PIXELS, Source

if TYPE_CHECKING:
    from av.audio.stream import AudioStream

# Bits a second and channel at which AAC is hardly told from what it was made of.
_SOUND_BITS = 96_000


class _Mp4:
    """An H.264 file in a temporary folder beside its place, moved there when it is whole."""

    def __init__(
        self, path: Path, size: tuple[int, int], rate: Fraction, options: dict[str, str]
    ) -> None:
        self.path = path
        self._folder = ExitStack()
        try:
            self.partial = self._folder.enter_context(temporary_folder(path.parent)) / "video.mp4"
            self.container = av.open(
                str(self.partial.absolute()), "w", format="mp4", options={"movflags": "faststart"}
            )
            self.stream = self.container.add_stream("libx264", rate, options)
        except (FFmpegError, OSError) as error:
            self.discard()
            raise self.failed(error) from None
        self.stream.width, self.stream.height = size
        self.stream.pix_fmt = "yuv420p"
        if size[0] * size[1] <= ONE_THREAD_PIXELS:
            self.stream.codec_context.thread_count = 1
        self.sound: AudioStream | None = None
        self._samples = 0

    def add_sound(self, rate: int, layout: str) -> None:
        """Give the file sound, as AAC, before it is started."""
        try:
            self.sound = self.container.add_stream("aac", rate, layout=layout, format="fltp")
        except (FFmpegError, OSError) as error:
            self.discard()
            raise self.failed(error) from None
        self.sound.codec_context.bit_rate = _SOUND_BITS * max(self.sound.codec_context.channels, 2)

    def encode_sound(self, samples: Samples | None) -> None:
        """Append samples ``(N, channels)``, or with None those still inside the encoder."""
        if self.sound is None:
            return
        frame = None
        if samples is not None:
            if not samples.size:
                return
            layout = self.sound.codec_context.layout.name
            packed = np.ascontiguousarray(samples).reshape(1, -1)
            frame = AudioFrame.from_ndarray(packed, "flt", layout)
            frame.sample_rate = self.sound.codec_context.sample_rate
            frame.pts, frame.time_base = self._samples, Fraction(1, frame.sample_rate)
            self._samples += len(samples)
        elif not self._samples:
            return
        try:
            self.container.mux(self.sound.encode(frame))
        except (FFmpegError, OSError) as error:
            raise self.failed(error) from None

    def start(self) -> None:
        """Create the file; the stream's settings are fixed from here on."""
        try:
            self.container.start_encoding()
        except (FFmpegError, OSError) as error:
            self.discard()
            raise self.failed(error) from None

    def encode(self, frame: VideoFrame | None, last_duration: int | None = None) -> None:
        """Append a frame, or with None the frames still inside the encoder.

        Args:
            frame: yuv420p, with its time set.
            last_duration: How long the last packet shows, in units of the encoder's clock.
        """
        try:
            packets = self.stream.encode(frame)
            if packets and last_duration is not None:
                packets[-1].duration = last_duration
            self.container.mux(packets)
        except (FFmpegError, OSError) as error:
            raise self.failed(error) from None

    def finish(self) -> None:
        try:
            self.container.close()
            # Only bytes that reached the disk count: some file systems report a full disk late.
            with self.partial.open("rb") as written:
                os.fsync(written.fileno())
            self.partial.replace(self.path)
            self._folder.close()
        except (FFmpegError, OSError) as error:
            raise self.failed(error) from None

    def discard(self) -> None:
        with suppress(FFmpegError, OSError, AttributeError):
            self.container.close()
        self._folder.close()

    def failed(self, error: FFmpegError | OSError) -> VideoError:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return VideoError(
            str(self.path),
            expected="a folder that can be written to, with free space",
            got="a full disk" if is_full else (error.strerror or str(error)),
            remedy="free some space" if is_full else "choose another place for the file",
        )


class VideoWriter:
    """Writes frames at a fixed rate as an H.264 (yuv420p) mp4 file.

    The file appears under its name, whole, when the ``with`` block ends well, replacing one that
    was there; after an error nothing is left behind.

    Args:
        path: Where the file goes.
        width: Even number of pixels.
        height: Even number of pixels.
        fps: Frames per second.
        crf: x264's constant quality: 0 lossless, 51 worst.
        preset: x264's trade of speed for size.

    Raises:
        VideoError: If size or rate cannot be encoded, no frame was written, or the folder cannot
            be written to or is full.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        width: int,
        height: int,
        fps: float,
        crf: int = 23,
        preset: str = "veryfast",
    ) -> None:
        self.path = Path(path)
        if min(width, height) < 2 or width % 2 or height % 2 or not 0 < fps <= 1000:
            raise VideoError(
                str(self.path),
                expected="an even width and height and a frame rate in (0, 1000]",
                got=f"{width}x{height} at {fps:g}",
                remedy="round the size to even numbers (yuv420p)",
            )
        self.width, self.height = width, height
        rate = Fraction(fps).limit_denominator(1001)
        self._time_base = 1 / rate
        self._count = 0
        self._reformatter = VideoReformatter()
        self._file = _Mp4(self.path, (width, height), rate, {"crf": str(crf), "preset": preset})

    def write(self, rgb: Pixels) -> None:
        """Append one frame.

        Args:
            rgb: ``(height, width, 3)`` uint8.

        Raises:
            VideoError: If the shape or type differs, or the disk is full.
        """
        if rgb.shape != (self.height, self.width, 3) or rgb.dtype != np.uint8:
            raise VideoError(
                str(self.path),
                expected=f"frames of shape ({self.height}, {self.width}, 3), uint8",
                got=f"{rgb.shape}, {rgb.dtype}",
                remedy="write frames of the size the file was opened with",
            )
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        frame = self._reformatter.reformat(frame, format="yuv420p", threads=1)
        frame.pts, frame.time_base = self._count, self._time_base
        self._file.encode(frame)
        self._count += 1

    def __enter__(self) -> Self:
        self._file.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is not None:
                return
            if self._count == 0:
                raise VideoError(
                    str(self.path), expected="frames", got="none", remedy="write at least one"
                )
            self._file.encode(None)
            self._file.finish()
        finally:
            self._file.discard()


def cut_clip(
    path: str | os.PathLike[str],
    start_s: float,
    end_s: float,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> None:
    """Write what a video shows in ``[start_s, end_s)`` as an H.264 mp4 file.

    Frames come upright, in their original size (an odd edge loses one pixel) and keep their
    times, so a variable frame rate stays one; the frame on screen at ``start_s`` opens the clip.
    Sound is encoded as AAC, in step to the sample; of several tracks the one that players choose.
    Where it cannot be decoded or put in step, a `DamagedVideoWarning` says so. The file appears
    whole or not at all.

    Args:
        path: A video file.
        start_s: Seconds from the first frame.
        end_s: Seconds; beyond the video's end means until its end.
        out: Where the clip goes; its folder must exist.
        overwrite: Whether a file at ``out`` may be replaced.

    Raises:
        InputError: If the times are not in order, or ``out`` exists.
        VideoError: If the video cannot be read, shows nothing then, or the disk is full.
    """
    target = Path(out)
    _check_cut(start_s, end_s, target, overwrite)
    source = Source(path)
    with source:
        clip: _Clip | None = None
        try:
            for frame, shown_s, until_s in _shown(source, start_s, end_s):
                if clip is None:
                    sound = sound_of(source.container, source.path, source.clock_start_s(), start_s)
                    clip = _Clip(target, frame, source.fps, sound)
                clip.write(frame, shown_s - start_s, until_s - start_s)
            if clip is None:
                raise VideoError(
                    str(path),
                    expected=f"a video longer than {start_s:g} s",
                    got=f"{source.end_s:.2f} s",
                    remedy="ask for an earlier clip",
                )
            clip.finish()
        finally:
            if clip is not None:
                clip.file.discard()


def _check_cut(start_s: float, end_s: float, target: Path, overwrite: bool) -> None:
    if not 0 <= start_s < end_s:
        raise InputError(
            "clip",
            expected="0 <= start < end",
            got=f"{start_s:g} to {end_s:g}",
            remedy="give the times in seconds",
        )
    if not overwrite and target.exists():
        raise InputError(
            str(target),
            expected="a new file",
            got="one that exists",
            remedy="choose another name or allow overwriting",
        )


def _shown(
    source: Source, start_s: float, end_s: float
) -> Iterator[tuple[VideoFrame, float, float]]:
    """Frames on screen in ``[start_s, end_s)``, from when and until when, in seconds."""
    source.wanted_s = start_s
    shown: tuple[float, VideoFrame] | None = None
    for pts_s, frame in source.frames():
        if shown is not None and pts_s > start_s:
            yield shown[1], shown[0], min(pts_s, end_s)
        shown = (pts_s, frame)
        if pts_s >= end_s:
            return
    if shown is None:
        raise source.no_frame()
    source.end_of_good_part()
    if source.end_s > start_s:
        yield shown[1], shown[0], min(source.end_s, end_s)


class _Clip:
    """Re-encodes decoded frames, turned upright, at any times."""

    clock = Fraction(1, 90000)

    def __init__(self, path: Path, frame: VideoFrame, fps: float, sound: Sound | None) -> None:
        self.orientation = orientation_of(frame)
        self.width, self.height = max(2, frame.width // 2 * 2), max(2, frame.height // 2 * 2)
        size = (self.width, self.height)
        if self.orientation.transpose:
            size = (self.height, self.width)
        rate = Fraction(fps).limit_denominator(1001)
        # Without B-frames packets come in order of display and the last one ends the clip.
        options = {"crf": "18", "preset": "veryfast", "bf": "0"}
        self.file = _Mp4(path, size, rate, options)
        context = self.file.stream.codec_context
        context.time_base = self.clock
        # The samples are passed on as they are, and so must be what they mean.
        context.color_range, context.colorspace = frame.color_range, frame.colorspace
        context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc
        self.sound = sound
        if sound is not None:
            self.file.add_sound(sound.rate, sound.layout)
        self.file.start()
        self.reformatter = VideoReformatter()
        self.last_pts = -1
        self.last_duration = 1

    def write(self, frame: VideoFrame, start_s: float, end_s: float) -> None:
        """Append a frame shown in ``[start_s, end_s)``, counted from the clip's start."""
        frame = self.reformatter.reformat(
            frame, width=self.width, height=self.height, format="yuv420p", threads=1
        )
        if self.orientation != Orientation():
            flat: Pixels = frame.to_ndarray().reshape(-1)  # type: ignore[assignment]
            luma, shape = self.width * self.height, (self.height // 2, self.width // 2)
            planes = (
                flat[:luma].reshape(self.height, self.width),
                flat[luma : luma + luma // 4].reshape(shape),
                flat[luma + luma // 4 :].reshape(shape),
            )
            turned = np.concatenate([self.orientation.upright(p).reshape(-1) for p in planes])
            width = self.file.stream.width
            frame = VideoFrame.from_ndarray(turned.reshape(-1, width), format="yuv420p")
        pts = max(round(max(start_s, 0.0) / self.clock), self.last_pts + 1)
        frame.pts, frame.time_base = pts, self.clock
        self.last_pts = pts
        self.last_duration = max(1, round(end_s / self.clock) - pts)
        self.file.encode(frame)
        if self.sound is not None:
            self.file.encode_sound(self.sound.until(end_s))

    def finish(self) -> None:
        self.file.encode(None, self.last_duration)
        self.file.encode_sound(None)
        self.file.finish()

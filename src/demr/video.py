"""A video file -> frames at exact times; frames -> a video file.

Times are in seconds from the first frame of the video stream, so a stream that starts late,
early or below zero reads the same. The frame shown at a time is the last one that starts at or
before it. Frames come upright: the display matrix that phones write is applied, mirroring
included. Pixels are taken as square: a sample aspect ratio other than 1 is not undone, since the
encoders here were trained, as the released ones were, on the stored samples.
"""

import errno
import math
import os
import stat
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.error import FFmpegError
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from demr.errors import InputError, VideoError

RgbImage = npt.NDArray[np.uint8]

# Below this many pixels a frame decodes in well under a millisecond and handing it between
# threads costs more than it saves, above all with several processes on the same cores.
_ONE_THREAD_PIXELS = 320 * 240
_FALLBACK_FPS = 25.0
# A stated duration beyond this is a corrupted header, not a recording.
_LONGEST_S = 30 * 24 * 3600.0


class DamagedVideoWarning(UserWarning):
    """Part of a video could not be decoded; the rest was used."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds, as far as its headers and first frame tell.

    Attributes:
        path: The file asked about.
        duration_s: Length of the video stream, in seconds; of the usable part where the file
            was cut off. Never 0: a single frame lasts ``1 / fps``.
        width: In pixels, upright.
        height: In pixels, upright.
        fps: Average frames per second.
        rotation_deg: 0, 90, 180 or 270, the counterclockwise turn that makes the stored frames
            upright. Frames from this module have it applied already.
        codec: FFmpeg's name of the codec, such as ``h264``.
    """

    path: Path
    duration_s: float
    width: int
    height: int
    fps: float
    rotation_deg: int
    codec: str


@dataclass(frozen=True, slots=True)
class Frame:
    """One asked-for moment of a video.

    Attributes:
        time_s: The time that was asked for.
        pts_s: When the frame shown at that time starts.
        rgb: Upright pixels ``(H, W, 3)``; shared by neighbours that show the same frame.
    """

    time_s: float
    pts_s: float
    rgb: RgbImage


@dataclass(frozen=True)
class _Orientation:
    """Right-angle part of a display matrix: transpose first, then mirror."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @property
    def rotation_deg(self) -> int:
        if self.transpose:
            return 270 if self.mirror_x else 90
        return 180 if self.mirror_x else 0

    def upright(self, rgb: RgbImage) -> RgbImage:
        if self.transpose:
            rgb = rgb.transpose(1, 0, 2)
        if self.mirror_x:
            rgb = rgb[:, ::-1]
        if self.mirror_y:
            rgb = rgb[::-1]
        return np.ascontiguousarray(rgb)


def probe_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Read a video's length, size and rate; decodes one frame.

    Raises:
        VideoError: If there is no video to decode.
    """
    source = _Source(path)
    with source.container:
        for _, frame in source.frames():
            orientation = _orientation(frame)
            width, height = frame.width, frame.height
            if orientation.transpose:
                width, height = height, width
            return VideoInfo(
                path=Path(path),
                duration_s=source.duration_s(),
                width=width,
                height=height,
                fps=source.fps,
                rotation_deg=orientation.rotation_deg,
                codec=source.stream.codec_context.name,
            )
    raise source.no_frame()


def iter_frames(
    path: str | os.PathLike[str],
    times_s: Iterable[float],
    *,
    height: int | None = None,
    width: int | None = None,
) -> Iterator[Frame]:
    """Yield the frame shown at each time, decoding the file once.

    Only frames that are shown at an asked-for time are converted to RGB, and each only once. A
    time before the first frame shows the first, one past the end the last. Where the file is
    damaged or cut off, the good part is yielded, the iteration stops early, and a
    `DamagedVideoWarning` says where.

    Args:
        path: A video file.
        times_s: Seconds from the first frame, never decreasing; may be an endless generator.
        height: Rows of the yielded (upright) frames; alone, the width keeps the aspect.
        width: Columns of the yielded (upright) frames; alone, the height keeps the aspect.

    Raises:
        VideoError: At the call, if the file cannot be read; later, if it holds no frame.
        InputError: If a time decreases or is not a number, or a size is not positive.
    """
    for name, size in (("height", height), ("width", width)):
        if size is not None and size < 1:
            raise InputError(
                name, expected="at least 1 pixel", got=str(size), remedy="give a positive size"
            )
    return _iter_source(_Source(path), times_s, height, width)


def _iter_source(
    source: "_Source", times_s: Iterable[float], height: int | None, width: int | None
) -> Iterator[Frame]:
    with source.container:
        times = _checked(times_s)
        time_s = next(times, None)
        if time_s is None:
            return
        frames = source.frames()
        first = next(frames, None)
        if first is None:
            raise source.no_frame()
        shown_pts, shown = first
        convert = _Converter(shown, height, width)
        rgb: RgbImage | None = None
        for pts_s, frame in frames:
            while time_s < pts_s:
                if rgb is None:
                    rgb = convert(shown)
                yield Frame(time_s, shown_pts, rgb)
                time_s = next(times, None)
                if time_s is None:
                    return
            shown_pts, shown, rgb = pts_s, frame, None
        end_s = source.end_of_good_part()
        while time_s is not None and time_s < end_s:
            if rgb is None:
                rgb = convert(shown)
            yield Frame(time_s, shown_pts, rgb)
            time_s = next(times, None)


def _checked(times_s: Iterable[float]) -> Iterator[float]:
    last = -math.inf
    for value in times_s:
        time_s = float(value)
        if not time_s >= last:
            raise InputError(
                "times_s",
                expected="times in seconds that never decrease",
                got=f"{time_s:g} after {last:g}",
                remedy="sort the times",
            )
        last = time_s
        yield time_s


class _Converter:
    """Turns decoded frames into upright RGB of one size, with one scaler for all."""

    def __init__(self, frame: VideoFrame, height: int | None, width: int | None) -> None:
        self.orientation = _orientation(frame)
        full_h, full_w = frame.height, frame.width
        if self.orientation.transpose:
            full_h, full_w = full_w, full_h
        if width is None:
            width = full_w if height is None else max(1, round(full_w * height / full_h))
            height = height or full_h
        elif height is None:
            height = max(1, round(full_h * width / full_w))
        self.is_upright = self.orientation == _Orientation()
        # Area averaging keeps small things visible that a point or a bilinear sample would step
        # over; going up it would leave blocks.
        shrinks = height < full_h or width < full_w
        self.interpolation = int(Interpolation.AREA if shrinks else Interpolation.BILINEAR)
        if self.orientation.transpose:
            height, width = width, height
        self.height, self.width = height, width
        self.reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> RgbImage:
        converted = self.reformatter.reformat(
            frame,
            width=self.width,
            height=self.height,
            format="rgb24",
            interpolation=self.interpolation,
            threads=1,
        )
        rgb: RgbImage = converted.to_ndarray()  # type: ignore[assignment]
        return rgb if self.is_upright else self.orientation.upright(rgb)


class _Source:
    """An opened file, its video stream, and what went wrong while decoding it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.container = _open(self.path)
        try:
            self.stream = self._video_stream()
            self._check_kind()
        except VideoError:
            self.container.close()
            raise
        context = self.stream.codec_context
        if context.width * context.height <= _ONE_THREAD_PIXELS:
            context.thread_count = 1
        else:
            context.thread_type = "AUTO"
        self.time_base = float(self.stream.time_base or Fraction(1, 90000))
        self.fps = self._fps()
        self.lost_packets = 0
        self.first_loss_s: float | None = None
        self.end_s = 0.0
        self.reason = "it holds no frame"

    def _video_stream(self) -> VideoStream:
        for stream in self.container.streams.video:
            is_cover = Disposition.attached_pic in stream.disposition
            if not is_cover and stream.codec_context is not None:
                return stream
        kinds = sorted({str(stream.type) for stream in self.container.streams})
        raise _error(self.path, f"a file without video (only {' and '.join(kinds) or 'nothing'})")

    def _check_kind(self) -> None:
        kind = self.container.format.name
        if kind.endswith("_pipe") or kind == "image2":
            raise _error(self.path, "a still picture")
        # FFmpeg draws plain text as a terminal session; nobody here means that.
        if kind == "tty":
            raise _error(self.path, "a text file")

    def _fps(self) -> float:
        for rate in (self.stream.average_rate, self.stream.guessed_rate, self.stream.base_rate):
            if rate is not None and 0 < rate <= 1000:
                return float(rate)
        return _FALLBACK_FPS

    def frames(self) -> Iterator[tuple[float, VideoFrame]]:
        """Yield ``(seconds from the first frame, frame)``, times never decreasing."""
        time_base, step_s = self.time_base, 1.0 / self.fps
        origin: int | None = None
        last_s = -step_s
        length_s = step_s
        for frame in self._decoded():
            pts = frame.pts
            if pts is None:
                # No clock at all (raw streams), or a gap in it: count at the average rate.
                pts_s = last_s + step_s
            else:
                if origin is None:
                    origin = pts - round(max(last_s + step_s, 0.0) / time_base)
                pts_s = max((pts - origin) * time_base, last_s, 0.0)
            last_s = pts_s
            length_s = frame.duration * time_base or step_s
            self.end_s = pts_s + length_s
            yield pts_s, frame

    def _decoded(self) -> Iterator[VideoFrame]:
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                if packet.is_corrupt:
                    self._lost("a damaged packet")
                frames = packet.decode()
            except FFmpegError as error:
                self._lost(_reason(error))
                # A demuxer that failed ends its generator; a decoder may recover at the next
                # keyframe, so the loop goes on and ends by itself.
                continue
            yield from frames

    def _lost(self, reason: str) -> None:
        self.reason = reason
        self.lost_packets += 1
        if self.first_loss_s is None:
            self.first_loss_s = self.end_s

    def stated_duration_s(self) -> float | None:
        """Duration of the video stream as its header states it, if it does sanely."""
        stream = self.stream
        stated = stream.duration * self.time_base if stream.duration else None
        if stated is None:
            stated = _clock(stream.metadata.get("DURATION", ""))
        return stated if stated is not None and 0 < stated < _LONGEST_S else None

    def duration_s(self) -> float:
        """Usable length in seconds: stream header, else container, else counted packets."""
        least_s = 1.0 / self.fps
        cut_s = self._cut_off_s()
        if cut_s is not None:
            return max(cut_s, least_s)
        stated = self.stated_duration_s()
        if stated is None and self.container.duration:
            stated = self.container.duration / av.time_base
        if stated is None or not 0 < stated < _LONGEST_S:
            stated = self._counted_duration_s()
        return max(stated, least_s)

    def _cut_off_s(self) -> float | None:
        """Start of the first sample whose bytes lie past the end of the file, if one does."""
        entries = self.stream.index_entries
        count = len(entries)
        size = self.path.stat().st_size
        if not count or entries[count - 1].pos + entries[count - 1].size <= size:
            return None
        low, high = 0, count - 1
        while low < high:
            middle = (low + high) // 2
            if entries[middle].pos + entries[middle].size > size:
                high = middle
            else:
                low = middle + 1
        return (entries[low].timestamp - entries[0].timestamp) * self.time_base

    def _counted_duration_s(self) -> float:
        with _open(self.path) as container:
            first, last, count = math.inf, -math.inf, 0
            with suppress(FFmpegError):
                for packet in container.demux(container.streams[self.stream.index]):
                    pts = packet.pts if packet.pts is not None else packet.dts
                    count += packet.size > 0
                    if pts is not None:
                        first = min(first, pts)
                        last = max(last, pts + (packet.duration or 0))
        by_clock = (last - first) * self.time_base if last > first else 0.0
        return by_clock if 0 < by_clock < _LONGEST_S else count / self.fps

    def end_of_good_part(self) -> float:
        """Seconds up to which frames may be shown; warns where something was lost.

        Returns:
            Infinity for a sound file, whose last frame stays on screen.
        """
        stated = self.stated_duration_s()
        missing_s = 0.0 if stated is None else stated - self.end_s
        is_cut = missing_s > max(0.25, 3.0 / self.fps)
        if is_cut or self.lost_packets:
            until_s = self.end_s if self.first_loss_s is None else self.first_loss_s
            lost = f"{self.lost_packets} packets unreadable" if self.lost_packets else ""
            rest = f"nothing after {self.end_s:.2f} s of {stated:.2f} s" if is_cut else ""
            warnings.warn(
                f"{self.path}: damaged video, frames are good until {until_s:.2f} s "
                f"({', '.join(filter(None, (lost, rest)))}); the good part was used",
                DamagedVideoWarning,
                stacklevel=3,
            )
        return self.end_s if is_cut else math.inf

    def no_frame(self) -> VideoError:
        return _error(self.path, f"no frame that decodes ({self.reason})")


def _open(path: Path) -> InputContainer:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        got = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise _error(path, got) from None
    # Opening a FIFO or a device would wait for a writer, perhaps for ever.
    if stat.S_ISDIR(status.st_mode):
        raise _error(path, "a directory")
    if not stat.S_ISREG(status.st_mode):
        raise _error(path, "a pipe, socket or device")
    if status.st_size == 0:
        raise _error(path, "an empty file")
    try:
        # The whitelist keeps a playlist in disguise from reaching the network.
        return av.open(
            str(path.absolute()),
            "r",
            metadata_errors="replace",
            options={"protocol_whitelist": "file"},
        )
    except FFmpegError as error:
        raise _error(path, _reason(error)) from None


def _error(path: Path, got: str) -> VideoError:
    return VideoError(
        str(path),
        expected="a readable video file (mp4, mkv, webm, mov, avi)",
        got=got,
        remedy="check the path and that a player shows the file",
    )


def _reason(error: FFmpegError) -> str:
    return (error.strerror or str(error) or type(error).__name__).strip()


def _clock(text: str) -> float | None:
    """Seconds of a Matroska ``HH:MM:SS.fraction`` tag."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None


def _orientation(frame: VideoFrame) -> _Orientation:
    try:
        matrix = bytes(frame.side_data[SideDataType.DISPLAYMATRIX])
    except KeyError:
        return _Orientation()
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].tolist()
    if abs(a) + abs(d) < abs(b) + abs(c):
        return _Orientation(transpose=True, mirror_x=c < 0, mirror_y=b < 0)
    return _Orientation(mirror_x=a < 0, mirror_y=d < 0)


class VideoWriter:
    """Writes frames at a fixed rate as an H.264 (yuv420p) mp4 file.

    The file appears under its name, whole, when the ``with`` block ends well; after an
    exception nothing is left.

    Args:
        path: Where the file goes; one that exists is replaced.
        width: Even number of pixels.
        height: Even number of pixels.
        fps: Frames per second.
        crf: x264's constant quality: 0 lossless, 51 worst.
        preset: x264's trade of speed for size.

    Raises:
        VideoError: If the size is odd or empty, or the disk is full or not writable.
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
        if width < 2 or height < 2 or width % 2 or height % 2:
            raise VideoError(
                str(self.path),
                expected="an even width and height (yuv420p)",
                got=f"{width}x{height}",
                remedy="round the size to even numbers",
            )
        if not 0 < fps <= 1000:
            raise VideoError(
                str(self.path),
                expected="a frame rate in (0, 1000]",
                got=f"{fps:g}",
                remedy="give frames per second",
            )
        self.width, self.height = width, height
        rate = Fraction(fps).limit_denominator(1001)
        self._time_base = 1 / rate
        self._rate = rate
        self._count = 0
        self._reformatter = VideoReformatter()
        self._partial = self.path.with_name(f".{self.path.stem[:40]}.{uuid.uuid4().hex}.mp4")
        self._options = {"crf": str(crf), "preset": preset}
        self._open()

    def _open(self) -> None:
        try:
            self._container = av.open(
                str(self._partial.absolute()), "w", format="mp4", options={"movflags": "faststart"}
            )
            stream = self._container.add_stream("libx264", self._rate, self._options)
            stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
            if self.width * self.height <= _ONE_THREAD_PIXELS:
                stream.codec_context.thread_count = 1
            self._stream = stream
        except (FFmpegError, OSError) as error:
            self._discard()
            raise self._failed(error) from None

    def write(self, rgb: RgbImage) -> None:
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
        self._encode(frame, self._count, self._time_base)
        self._count += 1

    def _encode(self, frame: VideoFrame, pts: int, time_base: Fraction) -> None:
        frame = self._reformatter.reformat(frame, format="yuv420p", threads=1)
        frame.pts, frame.time_base = pts, time_base
        try:
            self._container.mux(self._stream.encode(frame))
        except (FFmpegError, OSError) as error:
            raise self._failed(error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            if self._count == 0:
                raise VideoError(
                    str(self.path), expected="frames", got="none", remedy="write at least one"
                )
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._partial.replace(self.path)
        except (FFmpegError, OSError) as failure:
            raise self._failed(failure) from None
        finally:
            self._discard()

    def _discard(self) -> None:
        with suppress(FFmpegError, OSError, AttributeError):
            self._container.close()
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)

    def _failed(self, error: FFmpegError | OSError) -> VideoError:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return VideoError(
            str(self.path),
            expected="a folder that can be written to, with free space",
            got="a full disk" if is_full else (error.strerror or str(error)),
            remedy="free some space" if is_full else "choose another place for the file",
        )

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
from typing import Self, cast

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.error import FFmpegError
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from demr.errors import InputError, VideoError

Pixels = npt.NDArray[np.uint8]

# Below this many pixels a frame decodes in well under a millisecond and handing it between
# threads costs more than it saves, above all with several processes on the same cores.
_ONE_THREAD_PIXELS = 320 * 240
_FALLBACK_FPS = 25.0
# A jump costs about as much as decoding a few seconds of small video.
_SEEK_WORTH_S = 5.0
# A stated duration beyond this is a corrupted header, not a recording.
_LONGEST_S = 30 * 24 * 3600.0


class DamagedVideoWarning(UserWarning):
    """Part of a video could not be decoded; the rest was used."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file holds, as far as its headers and first frame tell.

    Attributes:
        path: The file asked about.
        duration_s: Length of the video stream, in seconds; of the usable part where an mp4 or
            mov was cut off (other containers do not tell). Never 0: a single frame lasts at
            least ``1 / fps``.
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
    rgb: Pixels


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

    def upright(self, pixels: Pixels) -> Pixels:
        """Turn ``(H, W)`` or ``(H, W, 3)`` pixels; the result is contiguous."""
        if self.transpose:
            pixels = pixels.swapaxes(0, 1)
        if self.mirror_x:
            pixels = pixels[:, ::-1]
        if self.mirror_y:
            pixels = pixels[::-1]
        return np.ascontiguousarray(pixels)


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
        rgb: Pixels | None = None
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
        interpolation = Interpolation.AREA if shrinks else Interpolation.BILINEAR
        if any(component.bits > 8 for component in frame.format.components):
            # Rounded down, 10-bit grey comes out two levels too dark. From 8 bits the mean loss is
            # 1.1 levels unscaled and 1.5 scaled; there the fast path is worth that (0.06 against
            # 0.43 ms a frame at 480x270, 0.11 against 0.15 ms when shrunk to 192x108).
            interpolation |= Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
        self.interpolation = int(interpolation)
        if self.orientation.transpose:
            height, width = width, height
        self.height, self.width = height, width
        self.reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> Pixels:
        converted = self.reformatter.reformat(
            frame,
            width=self.width,
            height=self.height,
            format="rgb24",
            interpolation=self.interpolation,
            threads=1,
        )
        rgb: Pixels = converted.to_ndarray()  # type: ignore[assignment]
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

    def frames(self, from_s: float = 0.0) -> Iterator[tuple[float, VideoFrame]]:
        """Yield ``(seconds from the first frame, frame)``, times never decreasing.

        Args:
            from_s: The first frame is always yielded; those after it may start as late as the
                keyframe before this time, so that a late clip need not decode all before it.
        """
        step_s = 1.0 / self.fps
        origin: int | None = None
        last_s = -step_s
        can_seek = from_s > _SEEK_WORTH_S
        has_seeked = False
        decoded = self._decoded()
        while True:
            frame = next(decoded, None)
            if frame is None:
                if not has_seeked:
                    return
                has_seeked, decoded = False, self._seeked(origin)
                continue
            pts = frame.pts
            if pts is None:
                # No clock at all (raw streams), or a gap in it: count at the average rate.
                pts_s = last_s + step_s
                can_seek = False
            else:
                if origin is None:
                    origin = pts - round((last_s + step_s) / self.time_base)
                pts_s = max((pts - origin) * self.time_base, last_s, 0.0)
            if has_seeked:
                has_seeked = False
                if pts_s > from_s:
                    # The index led past the target: nothing for it but all frames.
                    decoded = self._seeked(origin)
                    continue
            last_s = pts_s
            self.end_s = pts_s + (frame.duration * self.time_base or step_s)
            yield pts_s, frame
            if can_seek and origin is not None:
                decoded = self._seeked(origin, from_s)
                can_seek, has_seeked = False, True

    def _seeked(self, origin: int | None, to_s: float = 0.0) -> Iterator[VideoFrame]:
        # What broke on the way to a keyframe is read again or not wanted.
        self.lost_packets, self.first_loss_s = 0, None
        # One second early: some containers search in decoding order, before display.
        pts = (origin or 0) + round((to_s - 1.0) / self.time_base)
        with suppress(FFmpegError):
            self.container.seek(pts, stream=self.stream)
        return self._decoded()

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
            end_s = _clock(stream.metadata.get("DURATION", ""))
            stated = end_s - self._matroska_start_s() if end_s is not None else None
        return stated if stated is not None and self._is_sane(stated) else None

    def _matroska_start_s(self) -> float:
        # Matroska states where the video ends on its clock, not how long it is.
        is_matroska = self.container.format.name.startswith("matroska")
        return (self.stream.start_time or 0) * self.time_base if is_matroska else 0.0

    def _is_sane(self, stated_s: float) -> bool:
        whole_s = (self.container.duration or 0) / av.time_base
        if not 0 < stated_s < _LONGEST_S or (whole_s > 0 and stated_s > whole_s + 1.0):
            return False
        entries = self.stream.index_entries
        count = len(entries)
        indexed = entries[count - 1].timestamp - entries[0].timestamp if count else 0
        return indexed * self.time_base <= stated_s + 1.0

    def duration_s(self) -> float:
        """Usable length in seconds: stream header, else container, else counted packets."""
        least_s = 1.0 / self.fps
        cut_s = self._cut_off_s()
        if cut_s is not None:
            return max(cut_s, least_s)
        stated = self.stated_duration_s()
        if stated is None and self.container.duration:
            stated = self.container.duration / av.time_base - self._matroska_start_s()
        if stated is None or not self._is_sane(stated):
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
        is_cut = missing_s > max(0.5, 3.0 / self.fps)
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
    if isinstance(error, av.error.InvalidDataError):
        return "data that is no video, or whose index is missing"
    if isinstance(error, av.error.EOFError):
        return "a file that was cut off"
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
        # PyAV's type stub knows one kind of side data; the mapping holds all.
        matrix = bytes(cast("SideDataContainer", frame.side_data)[SideDataType.DISPLAYMATRIX])
    except KeyError:
        return _Orientation()
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].tolist()
    if abs(a) + abs(d) < abs(b) + abs(c):
        return _Orientation(transpose=True, mirror_x=c < 0, mirror_y=b < 0)
    return _Orientation(mirror_x=a < 0, mirror_y=d < 0)


class _Mp4:
    """An H.264 file under a temporary name in its final folder, renamed when it is whole."""

    def __init__(
        self, path: Path, size: tuple[int, int], rate: Fraction, options: dict[str, str]
    ) -> None:
        self.path = path
        self.partial = path.with_name(f".{path.stem[:40]}.{uuid.uuid4().hex}.mp4")
        try:
            self.container = av.open(
                str(self.partial.absolute()), "w", format="mp4", options={"movflags": "faststart"}
            )
            self.stream = self.container.add_stream("libx264", rate, options)
        except (FFmpegError, OSError) as error:
            self.discard()
            raise self.failed(error) from None
        self.stream.width, self.stream.height = size
        self.stream.pix_fmt = "yuv420p"
        if size[0] * size[1] <= _ONE_THREAD_PIXELS:
            self.stream.codec_context.thread_count = 1

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
        except (FFmpegError, OSError) as error:
            raise self.failed(error) from None

    def discard(self) -> None:
        with suppress(FFmpegError, OSError, AttributeError):
            self.container.close()
        with suppress(OSError):
            self.partial.unlink(missing_ok=True)

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
    Sound is dropped. The file appears whole or not at all.

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
    source = _Source(path)
    with source.container:
        clip: _Clip | None = None
        shown: tuple[float, VideoFrame] | None = None
        try:
            for pts_s, frame in source.frames(from_s=start_s):
                if shown is not None and pts_s > start_s:
                    clip = clip or _Clip(target, shown[1], source.fps)
                    clip.write(shown[1], shown[0] - start_s, min(pts_s, end_s) - start_s)
                shown = (pts_s, frame)
                if pts_s >= end_s:
                    break
            else:
                if shown is None:
                    raise source.no_frame()
                source.end_of_good_part()
                if source.end_s > start_s:
                    clip = clip or _Clip(target, shown[1], source.fps)
                    clip.write(shown[1], shown[0] - start_s, min(source.end_s, end_s) - start_s)
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


class _Clip:
    """Re-encodes decoded frames, turned upright, at times of their own."""

    clock = Fraction(1, 90000)

    def __init__(self, path: Path, frame: VideoFrame, fps: float) -> None:
        self.orientation = _orientation(frame)
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
        self.file.start()
        self.reformatter = VideoReformatter()
        self.last_pts = -1
        self.last_duration = 1

    def write(self, frame: VideoFrame, start_s: float, end_s: float) -> None:
        """Append a frame shown in ``[start_s, end_s)``, counted from the clip's start."""
        frame = self.reformatter.reformat(
            frame, width=self.width, height=self.height, format="yuv420p", threads=1
        )
        if self.orientation != _Orientation():
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

    def finish(self) -> None:
        self.file.encode(None, self.last_duration)
        self.file.finish()

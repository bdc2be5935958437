"""A video file -> frames at exact times.

Times are in seconds from the first frame of the video stream, so a stream that starts late,
early or below zero reads the same. The frame shown at a time is the last one that starts at or
before it. Frames come upright: the display matrix that phones write is applied, mirroring
included. Pixels are taken as square: a sample aspect ratio other than 1 is not undone, since the
encoders here were trained, as the released ones were, on the stored samples.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter

from demr.errors import InputError
from demr.video.orientation import Orientation, Pixels, orientation_of
from demr.video.source import Source
from demr.video.watchdog import decoder_call

# Hours are decoded inside encoders, which have no reason to know of progress bars.
_watcher: ContextVar[Callable[[float], None] | None] = ContextVar("watcher", default=None)


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a file, by its headers and first frame.

    Attributes:
        path: The file asked about.
        duration_s: Length of the video stream, in seconds; of the usable part where an mp4 or
            mov was cut off (other containers do not show it). Never 0: a single frame lasts at
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


class Video:
    """An opened video file: what it holds, and its frames.

    :func:`probe_video` and :func:`iter_frames` each open the file and decode its beginning; on
    short clips, doing so once for both is worth a tenth of the time.

    Args:
        path: A video file.
        damaged: Called with what was lost, in the place of a `DamagedVideoWarning`.

    Raises:
        VideoError: If the file cannot be read.
    """

    def __init__(
        self, path: str | os.PathLike[str], damaged: Callable[[str], None] | None = None
    ) -> None:
        self._source = Source(path, damaged)
        self._frames = self._source.frames()
        self._is_read = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.__exit__()

    @cached_property
    def _first(self) -> tuple[float, VideoFrame]:
        first = next(self._frames, None)
        if first is None:
            self._source.__exit__()
            raise self._source.no_frame()
        return first

    @cached_property
    def info(self) -> VideoInfo:
        """Length, size and rate; decodes one frame.

        Raises:
            VideoError: If there is no video to decode.
        """
        source, frame = self._source, self._first[1]
        orientation = orientation_of(frame)
        width, height = frame.width, frame.height
        if orientation.transpose:
            width, height = height, width
        return VideoInfo(
            path=source.path,
            duration_s=source.duration_s(),
            width=width,
            height=height,
            fps=source.fps,
            rotation_deg=orientation.rotation_deg,
            codec=source.stream.codec_context.codec.canonical_name,
        )

    def frames(
        self, times_s: Iterable[float], *, height: int | None = None, width: int | None = None
    ) -> Iterator[Frame]:
        """Yield the frame shown at each time, as :func:`iter_frames` does, then close the file.

        Raises:
            VideoError: If the file holds no frame.
            InputError: If a time decreases or is not a number, or a size is not positive.
            RuntimeError: If the frames were asked for before.
        """
        if self._is_read:
            raise RuntimeError("the frames of a Video are read once; open the file again")
        for name, size in (("height", height), ("width", width)):
            if size is not None and size < 1:
                raise InputError(
                    name, expected="at least 1 pixel", got=str(size), remedy="give a positive size"
                )
        self._is_read = True
        return self._shown(times_s, height, width)

    def _shown(
        self, times_s: Iterable[float], height: int | None, width: int | None
    ) -> Iterator[Frame]:
        watcher = _watcher.get()
        source = self._source
        with source:
            times = _checked(times_s) if watcher is None else _watched(_checked(times_s), watcher)
            time_s = next(times, None)
            if time_s is None:
                return
            source.wanted_s = time_s
            shown_pts, shown = self._first
            convert = _Converter(source.path, shown, height, width)
            rgb: Pixels | None = None
            for pts_s, frame in self._frames:
                while time_s < pts_s:
                    if rgb is None:
                        rgb = convert(shown)
                    yield Frame(time_s, shown_pts, rgb)
                    time_s = next(times, None)
                    if time_s is None:
                        source.report_known_loss()
                        return
                source.wanted_s = time_s
                shown_pts, shown, rgb = pts_s, frame, None
            end_s = source.end_of_good_part()
            while time_s is not None and time_s < end_s:
                if rgb is None:
                    rgb = convert(shown)
                yield Frame(time_s, shown_pts, rgb)
                time_s = next(times, None)


def probe_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Read a video's length, size and rate; decodes one frame.

    Raises:
        VideoError: If there is no video to decode.
    """
    with Video(path) as video:
        return video.info


@contextmanager
def watch_decoding(watcher: Callable[[float], None] | None) -> Iterator[None]:
    """Watch how far decoding has come, in whichever function it happens.

    Args:
        watcher: Called with the time of every frame that :func:`iter_frames` yields within the
            block, in seconds; None watches nothing.
    """
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def iter_frames(
    path: str | os.PathLike[str],
    times_s: Iterable[float],
    *,
    height: int | None = None,
    width: int | None = None,
    damaged: Callable[[str], None] | None = None,
) -> Iterator[Frame]:
    """Yield the frame shown at each time, decoding the file once.

    Only frames that are shown at an asked-for time are converted to RGB, and each only once. A
    time before the first frame shows the first, one past the end the last. Where the file is
    damaged or cut off, the good part is yielded, the iteration stops early, and a
    `DamagedVideoWarning` names the place. What lies between times far apart is jumped over where
    keyframes allow it, or decoded as far as other frames refer to it, and damage there goes
    unseen.

    Args:
        path: A video file.
        times_s: Seconds from the first frame, never decreasing; may be an endless generator.
        height: Rows of the yielded (upright) frames; alone, the width keeps the aspect.
        width: Columns of the yielded (upright) frames; alone, the height keeps the aspect.
        damaged: Called with what was lost, in the place of the warning.

    Raises:
        VideoError: At the call, if the file cannot be read; later, if it holds no frame.
        InputError: If a time decreases or is not a number, or a size is not positive.
    """
    return Video(path, damaged).frames(times_s, height=height, width=width)


def _watched(times_s: Iterable[float], watcher: Callable[[float], None]) -> Iterator[float]:
    for time_s in times_s:
        watcher(time_s)
        yield time_s


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

    def __init__(
        self, path: Path, frame: VideoFrame, height: int | None, width: int | None
    ) -> None:
        self.path = path
        self.orientation = orientation_of(frame)
        full_h, full_w = frame.height, frame.width
        if self.orientation.transpose:
            full_h, full_w = full_w, full_h
        if width is None:
            width = full_w if height is None else max(1, round(full_w * height / full_h))
            height = height or full_h
        elif height is None:
            height = max(1, round(full_h * width / full_w))
        self.is_upright = self.orientation == Orientation()
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
        with decoder_call(self.path):
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

"""An opened video file: its frames with their times, its length, and what is broken in it."""

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain, dropwhile
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from demr.errors import VideoError
from demr.video.opening import open_video, reason_of, video_error

if TYPE_CHECKING:
    from av.packet import Packet

# Below this many pixels a frame decodes in well under a millisecond and handing it between
# threads costs more than it saves, above all with several processes on the same cores.
ONE_THREAD_PIXELS = 320 * 240
_FALLBACK_FPS = 25.0
# A jump costs about as much as decoding a few seconds of small video.
_SEEK_WORTH_S = 5.0
# With an index it is known how many frames a jump saves, and it costs about this many.
_JUMP_WORTH_FRAMES = 12
# Frames are stored out of order by a few places at the most.
_REORDER_FRAMES = 4
# A stated duration beyond this is a corrupted header, not a recording.
_LONGEST_S = 30 * 24 * 3600.0


class DamagedVideoWarning(UserWarning):
    """Part of a video could not be decoded; the rest was used."""


@dataclass
class _Read:
    """State of the packets read since the last jump.

    Attributes:
        in_time_pts: Latest start of a frame that starts in time for the wanted one.
        last_pts: Latest start of any frame.
        dts: Of the last packet.
        end: Where in the file the last packet, of any stream, ends.
    """

    in_time_pts: int | None = None
    last_pts: int | None = None
    dts: int = -(1 << 63)
    end: int | None = None


class Source:
    """An opened file, its video stream, and what went wrong while decoding it.

    Attributes:
        wanted_s: Frames that end before this time are not needed; may grow while frames are read.
    """

    def __init__(
        self, path: str | os.PathLike[str], damaged: Callable[[str], None] | None = None
    ) -> None:
        self.path = Path(path)
        self._damaged = damaged or _warn_of_damage
        self.container = open_video(self.path)
        try:
            self.stream = self._video_stream()
            self._check_kind()
        except VideoError:
            self.container.close()
            raise
        context = self.stream.codec_context
        if context.width * context.height <= ONE_THREAD_PIXELS:
            context.thread_count = 1
        else:
            context.thread_type = "AUTO"
        self.time_base = self.stream.time_base or Fraction(1, 90000)
        self.fps = self._fps()
        self.lost_packets = 0
        self.first_loss_s: float | None = None
        self.end_s = 0.0
        self.reason = "it holds no frame"
        self.wanted_s = 0.0
        self._origin: int | None = None
        # AVI stores no times: what a packet shows, or where one is behind a jump, is not known.
        self._is_avi = self.container.format.name == "avi"
        self._has_clock = not self._is_avi
        self._is_matroska = self.container.format.name.startswith("matroska")

    def _video_stream(self) -> VideoStream:
        for stream in self.container.streams.video:
            is_cover = Disposition.attached_pic in stream.disposition
            if not is_cover and stream.codec_context is not None:
                return stream
        kinds = sorted({str(stream.type) for stream in self.container.streams})
        raise video_error(
            self.path, f"a file without video (only {' and '.join(kinds) or 'nothing'})"
        )

    def _check_kind(self) -> None:
        kind = self.container.format.name
        if kind.endswith("_pipe") or kind == "image2":
            raise video_error(self.path, "a still picture")
        # FFmpeg draws plain text as a terminal session; which is never meant here.
        if kind == "tty":
            raise video_error(self.path, "a text file")

    def _fps(self) -> float:
        for rate in (self.stream.average_rate, self.stream.guessed_rate, self.stream.base_rate):
            if rate is not None and 0 < rate <= 1000:
                return float(rate)
        return _FALLBACK_FPS

    def _seconds(self, ticks: int) -> float:
        # Rounded once: ticks times a rounded time base land beside the k / fps that is asked for.
        return ticks * self.time_base.numerator / self.time_base.denominator

    def frames(self) -> Iterator[tuple[float, VideoFrame]]:
        """Yield ``(seconds from the first frame, frame)``, times never decreasing.

        The first frame is always yielded. Frames that end before :attr:`wanted_s` may be left
        out: where a keyframe lies between here and there, the file is read from it on; and what
        no other frame refers to is not decoded.
        """
        step_s = 1.0 / self.fps
        last_s = -step_s
        can_jump = True
        decoded = self._decoded()
        while (frame := next(decoded, None)) is not None:
            last_s = max(self._start_s(frame, last_s + step_s), last_s, 0.0)
            self.end_s = last_s + (self._seconds(frame.duration) or step_s)
            yield last_s, frame
            target_s = self._worth_a_jump(last_s) if can_jump else None
            if target_s is not None:
                decoded, can_jump = self._jump(target_s, last_s)

    def _ticks(self, frame: VideoFrame) -> int | None:
        # In AVI the times of display are guesses, which B-frames lead astray.
        return frame.dts if self._is_avi else frame.pts

    def _start_s(self, frame: VideoFrame, counted_s: float) -> float:
        """When a frame starts; ``counted_s`` is where counting at the average rate puts it."""
        ticks = self._ticks(frame)
        if ticks is None:
            # No clock at all (raw streams), or a gap in it.
            self._has_clock = False
            return counted_s
        if self._origin is None:
            self._origin = ticks - round(counted_s / self.time_base)
        return self._seconds(ticks - self._origin)

    def _jump(self, target_s: float, last_s: float) -> tuple[Iterator[VideoFrame], bool]:
        """Read on from the keyframe before a time, or from the start if that leads nowhere.

        Returns:
            Frames that start after ``last_s``, and whether another jump may be tried.
        """
        origin = self._origin or 0

        def is_past(frame: VideoFrame) -> bool:
            # Frames without a time are passed over: it is not known what to count from.
            ticks = self._ticks(frame)
            return ticks is None or self._seconds(ticks - origin) <= last_s

        decoded = self._seeked(target_s)
        for frame in decoded:
            ticks = self._ticks(frame)
            if ticks is None:
                continue
            start_s = self._seconds(ticks - origin)
            if start_s <= last_s:
                # The jump led back, as it does where keyframes are far apart and not indexed:
                # another one would as well.
                return dropwhile(is_past, decoded), False
            if start_s <= self.wanted_s:
                return chain([frame], decoded), True
            break
        # Nothing decodes behind the jump, or the index led past the target: all frames, then.
        return dropwhile(is_past, self._seeked()), False

    def _worth_a_jump(self, here_s: float) -> float | None:
        """Where to jump to on the way to :attr:`wanted_s`, in seconds; None to go on reading."""
        origin = self._origin
        if origin is None or not self._has_clock:
            return None
        # B-frames come before the frames that they need: a keyframe just before the wanted time
        # may not be what shows it.
        before_s = self.wanted_s - _REORDER_FRAMES / self.fps
        if before_s - here_s < _REORDER_FRAMES / self.fps:
            return None
        keyframes = self._keyframes
        if not len(keyframes):
            # Without an index it takes a jump to know; one second early, as some containers
            # search in decoding order.
            far = self.wanted_s - here_s > _SEEK_WORTH_S
            return self.wanted_s - 1.0 if far else None
        # The index counts in decoding order, which runs ahead of display by some frames.
        place = int(np.searchsorted(keyframes, origin + before_s / self.time_base, "right")) - 1
        if place < 0:
            return None
        there_s = self._seconds(int(keyframes[place]) - origin)
        if there_s - here_s < _JUMP_WORTH_FRAMES / self.fps:
            return None
        # Not to the time of the keyframe: shown later than it is decoded, it would be passed by.
        return before_s

    @cached_property
    def _keyframes(self) -> npt.NDArray[np.int64]:
        """Timestamps of the indexed keyframes, rising; none where the container has no index."""
        entries = self.stream.index_entries
        times = [entry.timestamp for entry in entries if entry.is_keyframe]
        # A single entry, or an index that stops early, is no map of the file.
        stated = self.stated_duration_s()
        span_s = self._seconds(times[-1] - times[0]) if len(times) > 1 else 0.0
        if stated is None or span_s < stated / 2:
            return np.zeros(0, np.int64)
        return np.unique(np.array(times, np.int64))

    def _seeked(self, to_s: float | None = None) -> Iterator[VideoFrame]:
        if to_s is None:
            # From the start: what broke is read again.
            self.lost_packets, self.first_loss_s = 0, None
            pts = (self._origin or 0) - round(1 / self.time_base)
        else:
            pts = (self._origin or 0) + round(to_s / self.time_base)
        with suppress(FFmpegError):
            self.container.seek(pts, stream=self.stream)
        return self._decoded()

    def _decoded(self) -> Iterator[VideoFrame]:
        # All streams, where holes show only in their packets.
        packets = self.container.demux(*(() if self._is_matroska else (self.stream,)))
        context = self.stream.codec_context
        read = _Read()
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                is_behind_hole = self._is_behind_hole(packet, read)
                if packet.stream_index != self.stream.index:
                    continue
                if packet.is_corrupt or is_behind_hole:
                    self._lost("a damaged packet")
                ours = cast("Packet[VideoStream]", packet)
                is_passed = self._is_passed(ours, read)
                context.skip_frame = "NONREF" if is_passed else "DEFAULT"
                frames = ours.decode()
            except FFmpegError as error:
                self._lost(reason_of(error))
                # A demuxer that failed ends its generator; a decoder may recover at the next
                # keyframe, so the loop goes on and ends by itself.
                continue
            yield from frames

    def _is_passed(self, packet: "Packet[VideoStream]", read: _Read) -> bool:
        """Whether a later frame that starts in time for the wanted one is on its way already.

        Such a frame is left out if no other refers to it, which saves a quarter of the work for a
        frame every 2 s. The decoders of VP9 and AV1 do not know how: there only jumps save work.
        """
        if self._origin is None or packet.pts is None or packet.dts is None:
            return False
        if packet.dts < read.dts:
            # A clock set back: what comes now is later than what came before.
            read.in_time_pts = None
        read.dts = packet.dts
        if read.in_time_pts is not None and packet.pts < read.in_time_pts:
            return self._has_clock
        # What an edit list cuts away decodes, but does not show.
        starts_in_time = self._seconds(packet.pts - self._origin) <= self.wanted_s
        if starts_in_time and not packet.is_discard:
            read.in_time_pts = packet.pts
        return False

    def _is_behind_hole(self, packet: "Packet[Stream]", read: _Read) -> bool:
        """Whether a stretch of a Matroska file that no packet covers has swallowed frames.

        Its reader looks for the next sound cluster and raises nothing. A pause in a variable rate
        takes up no room in the file.
        """
        if not self._is_matroska or packet.pos is None or packet.pos < 0:
            return False
        begin, read.end = read.end, packet.pos + packet.size
        if packet.stream_index != self.stream.index or packet.pts is None:
            return False
        last, read.last_pts = read.last_pts, max(packet.pts, read.last_pts or packet.pts)
        whole_s = (self.container.duration or 0) / av.time_base
        if begin is None or last is None or whole_s <= 0:
            return False
        gap_s = self._seconds(packet.pts - last)
        usual = self.path.stat().st_size / whole_s * gap_s
        return gap_s > 3.0 / self.fps and packet.pos - begin > usual / 4

    def _lost(self, reason: str) -> None:
        self.reason = reason
        self.lost_packets += 1
        if self.first_loss_s is None:
            self.first_loss_s = self.end_s

    def stated_duration_s(self) -> float | None:
        """Duration of the video stream as its header states it, if it does sanely."""
        stream = self.stream
        stated = self._seconds(stream.duration) if stream.duration else None
        if stated is None:
            end_s = _clock(stream.metadata.get("DURATION", ""))
            stated = end_s - self._matroska_start_s() if end_s is not None else None
        return stated if stated is not None and self._is_sane(stated) else None

    def _matroska_start_s(self) -> float:
        # Matroska states where the video ends on its clock, not how long it is.
        return self._seconds(self.stream.start_time or 0) if self._is_matroska else 0.0

    def _is_sane(self, stated_s: float) -> bool:
        whole_s = (self.container.duration or 0) / av.time_base
        if not 0 < stated_s < _LONGEST_S or (whole_s > 0 and stated_s > whole_s + 1.0):
            return False
        entries = self.stream.index_entries
        count = len(entries)
        indexed = entries[count - 1].timestamp - entries[0].timestamp if count else 0
        return self._seconds(indexed) <= stated_s + 1.0

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
        return self._seconds(entries[low].timestamp - entries[0].timestamp)

    def _counted_duration_s(self) -> float:
        with open_video(self.path) as container:
            first, last, count = math.inf, -math.inf, 0
            with suppress(FFmpegError):
                for packet in container.demux(container.streams[self.stream.index]):
                    pts = packet.pts if packet.pts is not None else packet.dts
                    if packet.is_discard:
                        continue
                    count += packet.size > 0
                    if pts is not None:
                        first = min(first, pts)
                        last = max(last, pts + (packet.duration or 0))
        by_clock = (last - first) * float(self.time_base) if last > first else 0.0
        return by_clock if 0 < by_clock < _LONGEST_S else count / self.fps

    def end_of_good_part(self) -> float:
        """Seconds up to which frames may be shown; reports what was lost.

        Returns:
            Infinity for a sound file, whose last frame stays on screen.
        """
        stated = self.stated_duration_s()
        missing_s = 0.0 if stated is None else stated - self.end_s
        is_cut = missing_s > max(0.5, 3.0 / self.fps)
        self._report_loss(self.end_s if is_cut else None)
        return self.end_s if is_cut else math.inf

    def report_known_loss(self) -> None:
        """Report what was lost, where frames up to the end were not asked for."""
        self._report_loss(self._cut_off_s())

    def _report_loss(self, cut_s: float | None) -> None:
        if cut_s is None and not self.lost_packets:
            return
        until_s = cut_s if self.first_loss_s is None else self.first_loss_s
        losses = [f"{self.lost_packets} packets unreadable"] if self.lost_packets else []
        stated_s = self.stated_duration_s()
        if cut_s is not None:
            whole = "" if stated_s is None else f" of {stated_s:.2f} s"
            losses.append(f"nothing after {cut_s:.2f} s{whole}")
        self._damaged(
            f"{self.path}: damaged video, frames are good until {until_s:.2f} s "
            f"({', '.join(losses)}); the good part was used"
        )

    def no_frame(self) -> VideoError:
        """The error to raise where no frame could be decoded."""
        return video_error(self.path, f"no frame that decodes ({self.reason})")


def _warn_of_damage(message: str) -> None:
    warnings.warn(message, DamagedVideoWarning, stacklevel=4)


def _clock(text: str) -> float | None:
    """Seconds of a Matroska ``HH:MM:SS.fraction`` tag."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None

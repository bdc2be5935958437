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
from typing import TYPE_CHECKING, Self, cast

import numpy as np
from av.error import FFmpegError
from av.format import Flags
from av.video.frame import PictureType, VideoFrame

from demr.errors import VideoError
from demr.video.damage import Damage, DamagedVideoWarning
from demr.video.index import MOST_FPS, Index
from demr.video.opening import (
    MOST_PIXELS,
    has_flag,
    open_video,
    read_packets,
    reason_of,
    video_error,
)
from demr.video.streams import choose_stream
from demr.video.timeline import LONGEST_PICTURE_S, Timeline, is_doubtful, read_timeline
from demr.video.watchdog import decoder_call, decoder_gets_on

if TYPE_CHECKING:
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

# Below this many pixels a frame decodes in well under a millisecond and handing it between
# threads costs more than it saves, above all with several processes on the same cores.
ONE_THREAD_PIXELS = 320 * 240
_FALLBACK_FPS = 25.0
_COARSEST_TICK_S = 60
# A stated rate that differs from the usual step of the packets by more is none.
_ODD_RATE = 1.5
# A jump costs about as much as decoding a few seconds of small video.
_SEEK_WORTH_S = 5.0
# With an index it is known how many frames a jump saves, and it costs about this many.
_JUMP_WORTH_FRAMES = 12
# Frames are stored out of order by a few places at the most.
_REORDER_FRAMES = 4
# So many packets before a joint in MPEG-TS one is marked as damaged.
_JOINT_PACKETS = 2
# What lies between two packets of Matroska: headers of blocks and clusters.
_BETWEEN_PACKETS = 256


@dataclass
class _Read:
    """State of the packets read since the last jump.

    Attributes:
        in_time_pts: Latest start of a frame that starts in time for the wanted one.
        dts: Of the last packet.
        end: Where in the file the last packet, of any stream, ends.
        last_s: Latest start of any packet of any stream.
        is_behind_hole: Whether something was swallowed before the next packet of the video.
        corrupt: Not 0 if a packet was marked as damaged, which is told when this is counted to 1.
        corrupt_s: When that one shows.
    """

    in_time_pts: int | None = None
    dts: int = -(1 << 63)
    end: int | None = None
    last_s: float | None = None
    is_behind_hole: bool = False
    corrupt: int = 0
    corrupt_s: float = math.inf


class Source:
    """An opened file, its video stream, and what went wrong while decoding it.

    Attributes:
        wanted_s: Frames that end before this time are not needed; may grow while frames are read.
        end_s: When the last frame that was read ends.
    """

    def __init__(
        self, path: str | os.PathLike[str], damaged: Callable[[str], None] | None = None
    ) -> None:
        self.path = Path(path)
        self._damaged = damaged or _warn_of_damage
        with decoder_call(self.path):
            self.container = open_video(self.path)
            try:
                self.stream = choose_stream(self.container, self.path)
            except VideoError:
                self.container.close()
                raise
            self._index = Index(self.container, self.stream, self.path)
        context = self.stream.codec_context
        context.options = {"max_pixels": str(MOST_PIXELS)}
        if context.width * context.height <= ONE_THREAD_PIXELS:
            context.thread_count = 1
        else:
            context.thread_type = "AUTO"
        self.time_base = self.stream.time_base or Fraction(1, 90000)
        kind = self.container.format.name
        # AVI stores no times, only the order of its packets.
        self._is_avi = kind == "avi"
        self._is_matroska = kind.startswith("matroska")
        # Where a tick lasts minutes, or a frame less than a millisecond, no time can be believed.
        is_false = self.time_base > _COARSEST_TICK_S or self._index.is_too_fast
        self._is_raw = is_false or has_flag(self.container, Flags.no_timestamps)
        # Others lead a frame off the mark, or to a clock that was set back since.
        self._can_seek = not is_false and (self._is_matroska or kind.startswith("mov"))
        fps = self._index.fps(is_raw=self._is_raw)
        self.fps = fps or _FALLBACK_FPS
        self._notes: list[str] = []
        if is_false:
            self._notes.append(f"its times cannot be; {self.fps:g} frames a second were assumed")
        elif self._is_raw and fps is None:
            self._notes.append(f"it names no frame rate; {self.fps:g} a second were assumed")
        self.damage = Damage()
        self.end_s = 0.0
        self.wanted_s = 0.0
        self._origin: int | None = None
        self._has_clock = not self._is_avi and not self._is_raw

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with decoder_call(self.path):
            self.container.close()

    @cached_property
    def _timeline(self) -> Timeline | None:
        """What reading all packets shows; None where header and index can be believed."""
        if self._can_seek and not is_doubtful(self._index, self.path):
            return None
        with open_video(self.path) as container:
            stream = cast("VideoStream", container.streams[self.stream.index])
            size = self._index.size
            timeline = read_timeline(container, stream, self.fps, size, by_dts=self._is_avi)
        if timeline.note:
            self._notes.append(timeline.note)
        # Streams may name the ticks of their clock as their rate, or count fields.
        has_steps = timeline.step_s > 0 and not self._is_raw
        if has_steps and not 1 / _ODD_RATE < self.fps * timeline.step_s < _ODD_RATE:
            self.fps = min(1 / min(timeline.step_s, LONGEST_PICTURE_S), MOST_FPS)
        return timeline

    def _seconds(self, ticks: int) -> float:
        # Rounded once: ticks times a rounded time base land beside the k / fps that is asked for.
        return ticks * self.time_base.numerator / self.time_base.denominator

    def frames(self) -> Iterator[tuple[float, VideoFrame]]:
        """Yield ``(seconds from the first frame, frame)``, times never decreasing.

        The first frame is always yielded. Frames that end before :attr:`wanted_s` may be left
        out: where a keyframe lies between here and there, the file is read from it on; and what
        no other frame refers to is not decoded.

        Raises:
            VideoError: If the decoder fails on damage.
        """
        frames = self._frames()
        while True:
            with decoder_call(self.path):
                item = next(frames, None)
            if item is None:
                return
            yield item

    def _frames(self) -> Iterator[tuple[float, VideoFrame]]:
        if self._timeline is not None and self._timeline.times is not None:
            self._can_seek = False
        step_s = 1.0 / self.fps
        last_s = -step_s
        decoded = self._decoded()
        while (frame := next(decoded, None)) is not None:
            last_s = max(self._start_s(frame, last_s + step_s), last_s, 0.0)
            lasts_s = 0.0 if self._is_raw else self._seconds(frame.duration)
            self.end_s = last_s + min(lasts_s or step_s, LONGEST_PICTURE_S)
            yield last_s, frame
            target_s = self._worth_a_jump(last_s)
            if target_s is not None:
                decoded = self._jump(target_s, last_s)

    def _ticks(self, frame: VideoFrame) -> int | None:
        if self._is_raw:
            return None
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

    def _jump(self, target_s: float, last_s: float) -> Iterator[VideoFrame]:
        """Frames that start after ``last_s``, read on from the keyframe before a time.

        From the start, if that leads nowhere; then no other jump is tried.
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
                self._can_seek = False
                return dropwhile(is_past, decoded)
            # What the index calls a keyframe need not be one.
            if start_s <= self.wanted_s and frame.pict_type == PictureType.I:
                return chain([frame], decoded)
            break
        # Nothing decodes behind the jump, or the index led astray: all frames, then.
        self._can_seek = False
        return dropwhile(is_past, self._seeked())

    def _worth_a_jump(self, here_s: float) -> float | None:
        """Where to jump to on the way to :attr:`wanted_s`, in seconds; None to go on reading."""
        origin = self._origin
        if origin is None or not (self._can_seek and self._has_clock):
            return None
        # B-frames come before the frames that they need: a keyframe just before the wanted time
        # may not be what shows it.
        before_s = self.wanted_s - _REORDER_FRAMES / self.fps
        if before_s - here_s < _REORDER_FRAMES / self.fps:
            return None
        keyframes = self._index.keyframes
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

    def _seeked(self, to_s: float | None = None) -> Iterator[VideoFrame]:
        if to_s is None:
            # From the start: what broke is read again.
            self.damage = Damage()
            pts = (self._origin or 0) - round(1 / self.time_base)
        else:
            pts = (self._origin or 0) + round(to_s / self.time_base)
        with suppress(FFmpegError):
            self.container.seek(pts, stream=self.stream)
        return self._decoded()

    def _decoded(self) -> Iterator[VideoFrame]:
        # All streams, where holes show only in their packets.
        only = None if self._is_matroska else self.stream
        packets = read_packets(self.container, only, lambda error: self._lost(reason_of(error)))
        context = self.stream.codec_context
        read = _Read()
        count = -1
        for packet in packets:
            decoder_gets_on()
            if self._is_matroska:
                self._look_for_hole(packet, read)
            if packet.stream_index != self.stream.index:
                continue
            count += 1
            ours = cast("Packet[VideoStream]", packet)
            if self._timeline is not None:
                self._timeline.place(ours, count)
            is_joint = self._timeline is not None and count in self._timeline.joints
            self._note_damage(ours, read, is_joint=is_joint)
            if not packet.size:
                continue
            context.skip_frame = "NONREF" if self._is_passed(ours, read) else "DEFAULT"
            yield from self._decode(ours)
        if read.corrupt:
            self._lost("a damaged packet", read.corrupt_s)
        context.skip_frame = "DEFAULT"
        yield from self._decode(None)

    def _decode(self, packet: "Packet[VideoStream] | None") -> "list[VideoFrame]":
        try:
            return self.stream.decode(packet)
        except FFmpegError as error:
            # It may recover at the next keyframe.
            self._lost(reason_of(error), self._time_s(packet))
            return []

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

    def _note_damage(self, packet: "Packet[VideoStream]", read: _Read, *, is_joint: bool) -> None:
        if read.is_behind_hole or read.corrupt == 1:
            self._lost("a damaged packet", read.corrupt_s)
        read.is_behind_hole = False
        read.corrupt = max(0, read.corrupt - 1)
        if packet.is_corrupt:
            read.corrupt, read.corrupt_s = _JOINT_PACKETS + 1, self._time_s(packet)
        elif packet.is_keyframe and packet.dts is not None:
            # Where whole parts were joined one of the last packets is marked, too.
            is_next = is_joint or self._seconds(packet.dts - read.dts) < 1.5 / self.fps
            read.corrupt = 0 if is_next else min(read.corrupt, 1)
        self.damage.passed(self._time_s(packet))

    def _time_s(self, packet: "Packet[VideoStream] | None") -> float:
        """When a packet shows, as far as that is known, else the end of what was decoded."""
        if packet is None or packet.pts is None or self._origin is None:
            return self.end_s
        return self._seconds(packet.pts - self._origin)

    def _look_for_hole(self, packet: "Packet[Stream]", read: _Read) -> None:
        """Note whether a stretch of a Matroska file that no packet covers has swallowed some.

        Its reader looks for the next cluster and raises nothing. A pause takes up no room in the
        file, and sound goes on in it.
        """
        if packet.pos is None or packet.pos < 0 or packet.pts is None or packet.time_base is None:
            return
        sides = sum(side.data_size for side in packet.iter_sidedata())
        begin, read.end = read.end, packet.pos + packet.size + sides
        start_s = float(packet.pts * packet.time_base)
        last_s, read.last_s = read.last_s, max(start_s, read.last_s or start_s)
        if begin is None or last_s is None or not self._index.whole_s:
            return
        gap_s, gap = start_s - last_s, packet.pos - begin
        usual = self._index.size / self._index.whole_s * gap_s
        if gap_s > 3.0 / self.fps and gap > max(usual / 4, _BETWEEN_PACKETS):
            read.is_behind_hole = True

    def _lost(self, reason: str, here_s: float = math.inf) -> None:
        self.damage.add(reason, min(here_s, self.end_s))

    def duration_s(self) -> float:
        """Usable length in seconds: of its packets, where header and index are not believed."""
        with decoder_call(self.path):
            timeline = self._timeline
        if timeline is not None:
            by_clock_s = 0.0 if self._is_raw else timeline.duration_s
            length_s = by_clock_s or timeline.frames / self.fps
        else:
            length_s = self._index.cut_off_s or self._index.duration_s or 0.0
        return max(length_s, 1.0 / self.fps)

    @property
    def _whole_s(self) -> float | None:
        """How long the file should be, in seconds, if that is known."""
        timeline, stated_s = self._timeline, self._index.stated_s
        if timeline is None or (timeline.is_steady and stated_s is not None):
            return stated_s
        return None if self._is_raw else timeline.duration_s or None

    def end_of_good_part(self) -> float:
        """Seconds up to which frames may be shown; reports what was lost.

        Returns:
            Infinity for a sound file, whose last frame stays on screen.
        """
        whole_s = self._whole_s
        missing_s = 0.0 if whole_s is None else whole_s - self.end_s
        # AVI counts its frames, and what is lost in its middle is missing from the count.
        is_cut = missing_s > (3.0 / self.fps if self._is_avi else max(0.5, 3.0 / self.fps))
        if is_cut and self._is_avi:
            of = f"{missing_s:.2f} s of {whole_s:.2f} s"
            self._notes.append(f"{of} are missing, and what lies behind a hole is shown too early")
        self._report(self.end_s if is_cut and not self._is_avi else None)
        return self.end_s if is_cut else math.inf

    def report_known_loss(self) -> None:
        """Report what was lost, where frames up to the end were not asked for."""
        self._report(self._index.cut_off_s)

    def _report(self, cut_s: float | None) -> None:
        line = self.damage.line(cut_s, self._whole_s, self._notes)
        if line:
            self._damaged(f"{self.path}: {line}")

    def clock_start_s(self) -> float | None:
        """When the first frame that was read starts, on the clock of the file.

        None where that clock jumps, and other streams cannot be put beside the video by it.
        """
        if self._timeline is not None and self._timeline.note:
            return None
        # In AVI, which has none, frames were counted by when they are decoded.
        return 0.0 if self._is_avi else self._seconds(self._origin or 0)

    def no_frame(self) -> VideoError:
        """The error to raise where no frame could be decoded."""
        return video_error(self.path, f"no frame that decodes ({self.damage.reason})")


def _warn_of_damage(message: str) -> None:
    warnings.warn(message, DamagedVideoWarning, stacklevel=4)

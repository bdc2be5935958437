"""When the packets of a file are shown, where its own clock cannot be taken at its word.

Parts that were joined set the clock back, recordings let it jump, and a few patched bytes make a
picture last for weeks. Such files are read once before they are decoded, and the packets of the
video are put in a row: each part begins where the one before ended, and what lasts longer than the
file has data for is cut short.
"""

from array import array
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.error import FFmpegError
from av.format import Flags
from av.video.stream import VideoStream

from demr.video.index import Index
from demr.video.opening import has_flag, open_video, read_packets
from demr.video.watchdog import decoder_gets_on

if TYPE_CHECKING:
    from av.packet import Packet
    from av.stream import Stream

# Where clocks may jump, time without data is a jump if it is longer than this, and than so many
# usual steps: some videos are slow.
_PAUSE_S = 2.0
_PAUSE_STEPS = 10
# Everywhere, a picture may stay for an hour, and a video last an hour longer than it has data for:
# a second for each byte, but ten minutes for each frame.
LONGEST_PICTURE_S = 3600.0
_PER_FRAME_S = 600.0
# A longer step between two packets of a stream is a gap in it, too.
_SOUND_S = 1.0
# MPEG-1 and 2 have a fixed rate, unless films are shown at that of television.
_EVEN_CODECS = ("mpeg1video", "mpeg2video")
_EVEN_SHARE = 0.99
_EVEN_PACKETS = 31
_Ticks = npt.NDArray[np.int64]
_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Timeline:
    """The packets of a video in a row.

    Attributes:
        times: When each packet is shown and decoded, in the order of the file and in ticks; None
            where the file is right.
        duration_s: From the first frame to the end of the last; 0 where no packet has a time.
        frames: Packets that hold something.
        note: What was wrong with the clock and what was done about it; empty where it is right.
        is_steady: Whether it is right, and of a kind that does not jump.
    """

    times: tuple[_Ticks, _Ticks] | None
    duration_s: float
    frames: int
    note: str = ""
    is_steady: bool = False

    def place(self, packet: "Packet[VideoStream]", index: int) -> None:
        """Correct the times of a packet; ``index`` is its place among those of its stream."""
        if self.times is None or index >= len(self.times[0]):
            return
        if packet.pts is not None:
            packet.pts = int(self.times[0][index])
        if packet.dts is not None:
            packet.dts = int(self.times[1][index])


def is_doubtful(index: Index, path: Path) -> bool:
    """Whether a file states no sane length, or one for which it may have too little data."""
    length_s = index.duration_s
    if length_s is None or length_s <= LONGEST_PICTURE_S:
        return length_s is None
    with open_video(path) as container:
        stream = cast("VideoStream", container.streams[index.stream.index])
        with suppress(FFmpegError):
            # Matroska's index is read when it is first used.
            container.seek(0, stream=stream)
        starts_s = Index(container, stream, path).starts_s()
    longest_s = np.diff(np.append(starts_s, length_s)).max(initial=0.0)
    return length_s > LONGEST_PICTURE_S + index.size or longest_s > LONGEST_PICTURE_S


def read_timeline(
    container: InputContainer, stream: VideoStream, fps: float, size: int, *, by_dts: bool = False
) -> Timeline:
    """Read all packets of a file.

    Args:
        container: Opened for this.
        stream: Its video.
        fps: Frames per second, where packets do not say.
        size: Of the file, in bytes.
        by_dts: Whether frames are shown at the times of decoding.
    """
    tick_s = float(stream.time_base or Fraction(1, 90000))
    read = _read(container, stream, tick_s, max(1, round(1 / (fps * tick_s))), by_dts)
    if not read.has_times or has_flag(container, Flags.no_timestamps):
        return Timeline(None, 0.0, read.frames)
    may_jump = has_flag(container, Flags.ts_discont)
    packets = read
    if may_jump and stream.codec_context.codec.canonical_name in _EVEN_CODECS:
        packets = read.evened(1 / (fps * tick_s))
    shifts, jumps = packets.joined(_PAUSE_S / tick_s if may_jump else np.inf)
    starts = packets.pts + shifts
    first = int(starts[read.is_shown].min(initial=starts.max()))
    notes = []
    if len(jumps):
        places = ", ".join(f"{s:.2f}" for s in (starts[jumps[:3]] - first) * tick_s)
        more = f" and {len(jumps) - 3} more" if len(jumps) > 3 else ""
        notes.append(f"its clock jumps (at {places} s{more}), and the parts were put end to end")
    most = (LONGEST_PICTURE_S + min(size, _PER_FRAME_S * read.frames)) / tick_s
    cuts, end, longest = _cut_pauses(
        starts,
        int((starts + read.durations).max()),
        # Where the clock jumps it is not known when the sound is heard.
        np.zeros(0, np.int64) if len(jumps) else read.others,
        most,
        LONGEST_PICTURE_S / tick_s,
    )
    if longest is not None:
        shifts = shifts - cuts
        notes.append(
            f"it holds too little for its length, and pauses were cut to {longest * tick_s:.0f} s"
        )
    duration_s = float(end - first) * tick_s
    is_changed = packets is not read or notes
    return Timeline(
        (packets.pts + shifts, packets.dts + shifts) if is_changed else None,
        duration_s,
        read.frames,
        "; ".join(notes),
        is_steady=not notes and not may_jump,
    )


@dataclass(frozen=True)
class _Packets:
    """A video's packets in the order of the file, times in ticks of its clock.

    Attributes:
        pts, dts, durations: Filled in where the file does not give them.
        has_dts: Whether the file gives that time.
        is_key: Whether a packet is a keyframe.
        is_shown: Whether an edit list leaves it in.
        filled: How much time is filled between a packet and the one before, by sound or by bytes
            that cannot be read.
        others: When packets of other streams are due.
        frames: Packets that hold something.
        has_times: Whether the file gives any.
    """

    pts: _Ticks
    dts: _Ticks
    durations: _Ticks
    has_dts: _Flags
    is_key: _Flags
    is_shown: _Flags
    filled: _Ticks
    others: _Ticks
    frames: int
    has_times: bool

    def evened(self, step: float) -> "_Packets":
        """The same packets at the even steps that MPEG-1 and 2 prescribe, but for real gaps.

        Of the pictures that share a header one has its time, and FFmpeg may take another for it.
        """
        places = np.arange(len(self.dts))
        late = self.dts - step * places
        steps = np.diff(late) / step
        if not len(steps) or np.mean(np.abs(steps - np.round(steps)) < 0.1) < _EVEN_SHARE:
            return self
        around = np.pad(late, _EVEN_PACKETS // 2, mode="edge")
        level = np.median(np.lib.stride_tricks.sliding_window_view(around, _EVEN_PACKETS), axis=1)
        dts = np.round(level + step * places).astype(np.int64)
        # References are shown when the next one is decoded, the pictures between them at once.
        references = np.flatnonzero(self.pts != self.dts)
        pts = dts.copy()
        waits = np.diff(np.append(references, len(dts)))
        pts[references] += np.round(step * waits).astype(np.int64)
        return replace(self, pts=pts, dts=dts)

    def joined(self, pause: float) -> tuple[_Ticks, _Ticks]:
        """Put parts end to end.

        Args:
            pause: Time without data, in ticks, that is a jump of the clock.

        Returns:
            What to add to the times of each packet, and which packets begin a part.
        """
        known = np.flatnonzero(self.has_dts)
        befores, heres = known[:-1], known[1:]
        steps = np.diff(self.dts[known])
        usual = int(np.median(steps[steps > 0])) if (steps > 0).any() else int(self.durations[0])
        latest = np.maximum.accumulate(self.pts)
        # Frames that are not shown can share the time of another; keyframes are shown.
        is_back = (steps < 0) | (self.is_key[heres] & (self.pts[heres] <= latest[befores]))
        is_long = steps > max(pause, _PAUSE_STEPS * usual)
        suspects = np.flatnonzero(is_back | (is_long & (self.filled[heres] < steps // 2)))
        ends = self.pts + self.durations
        shifts = np.zeros_like(self.pts)
        shift, begin, jumps = 0, 0, []
        stops = np.append(heres[suspects[1:]], len(self.pts))
        for here, before, stop in zip(heres[suspects], befores[suspects], stops, strict=False):
            if self.is_key[here]:
                behind = int(ends[begin:here].max()) - int(self.pts[here:stop].min())
            else:
                # In mid-group frames of both sides are shown in turn: only decoding has an order.
                behind = int(self.dts[before]) + usual - int(self.dts[here])
            # A part that was cut off another and put back goes on with its clock.
            if abs(behind) > usual // 2:
                shift += behind
                jumps.append(int(here))
            shifts[here:stop] = shift
            begin = here
        return shifts, np.array(jumps, np.int64)


def _cut_pauses(
    starts: _Ticks, end: int, others: _Ticks, most: float, longest: float
) -> tuple[_Ticks, int, float | None]:
    """Shorten pauses until a video is no longer than it may be.

    Args:
        starts: Of its frames.
        end: Of its last frame.
        others: When packets of other streams are due: time that they fill is no pause.
        most: Ticks that the video may last.
        longest: Ticks that a pause may last.

    Returns:
        How much earlier each frame starts, the new end, and how long pauses are at the most; None
        where none was cut.
    """
    first = int(starts.min())
    others = others[(others > first) & (others < end)]
    marks = np.unique(np.concatenate([starts, others, [end]]))
    pauses = np.diff(marks)
    if pauses.max(initial=0) <= longest and end - first <= most:
        return np.zeros_like(starts), end, None
    while longest > 1 and np.minimum(pauses, longest).sum() > most:
        longest /= 2
    late = np.concatenate([[0], np.cumsum(pauses - np.minimum(pauses, int(longest)))])
    return late[np.searchsorted(marks, starts)], end - int(late[-1]), longest


def _read(
    container: InputContainer, stream: VideoStream, tick_s: float, step: int, by_dts: bool
) -> _Packets:
    rows, others = array("q"), array("q")
    gaps = _Gaps()
    next_dts, frames, has_times = 0, 0, False
    for count, packet in enumerate(read_packets(container)):
        if count % 256 == 0:
            decoder_gets_on()
        gaps.add(packet)
        dts, pts = packet.dts, packet.dts if by_dts else packet.pts
        if packet.stream_index != stream.index:
            if dts is not None and packet.time_base:
                others.append(round(float(dts * packet.time_base) / tick_s))
            continue
        has_times |= pts is not None or dts is not None
        frames += packet.size > 0
        next_dts = dts if dts is not None else next_dts if pts is None else pts
        is_ours = (dts is not None, packet.is_keyframe, not packet.is_discard)
        shown = next_dts if pts is None else pts
        rows.extend((shown, next_dts, packet.duration or step, *is_ours, *gaps.taken(tick_s)))
        next_dts += step
    table: _Ticks = np.array(rows, np.int64).reshape(-1, 8)
    has_dts, is_key, is_shown = table[:, 3:6].astype(bool).T
    # So long would the bytes that no packet covers take on average.
    unread = table[:, 7] * (len(table) * step / max(1, gaps.end))
    return _Packets(
        pts=table[:, 0],
        dts=table[:, 1],
        durations=table[:, 2],
        has_dts=has_dts,
        is_key=is_key,
        is_shown=is_shown,
        filled=table[:, 6] + unread.astype(np.int64),
        others=np.array(others, np.int64),
        frames=frames,
        has_times=has_times,
    )


class _Gaps:
    """What lies between two packets of the video: sound, and bytes that no packet covers."""

    def __init__(self) -> None:
        self._last_s: dict[int, float] = {}
        self._heard_s: dict[int, float] = defaultdict(float)
        self._uncovered = 0
        self.end = 0

    def add(self, packet: "Packet[Stream]") -> None:
        """Look at the next packet of any stream."""
        if packet.pos is not None and packet.pos >= 0:
            self._uncovered += max(0, packet.pos - self.end)
            self.end = max(self.end, packet.pos + packet.size)
        if packet.dts is not None and packet.time_base:
            now_s, index = float(packet.dts * packet.time_base), packet.stream_index
            step_s = now_s - self._last_s.get(index, now_s)
            self._last_s[index] = now_s
            if 0 < step_s < _SOUND_S:
                self._heard_s[index] += step_s

    def taken(self, tick_s: float) -> tuple[int, int]:
        """Ticks of sound and uncovered bytes since the last call."""
        heard, uncovered = max(self._heard_s.values(), default=0.0), self._uncovered
        self._heard_s.clear()
        self._uncovered = 0
        return round(heard / tick_s), uncovered

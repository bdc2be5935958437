"""When the packets of a file are shown, where its own clock cannot be taken at its word.

Parts that were joined set the clock back, recordings let it jump, and a few patched bytes make a
picture last for weeks. Such files are read once before they are decoded, and the packets of the
video are put in a row: each part begins where the one before ended, and what lasts longer than the
file has data for is cut short.
"""

from array import array
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

# Where clocks may jump, time without data is a jump if it is longer than this, and than so many
# usual steps: some videos are slow.
_PAUSE_S = 2.0
_PAUSE_STEPS = 10
# Everywhere, a picture may stay for an hour, and a video last an hour longer than it has data for:
# a second for each byte, but ten minutes for each frame.
LONGEST_PICTURE_S = 3600.0
_PER_FRAME_S = 600.0
# A longer step between two packets of a stream is a gap in it, too.
_SOUND_S = 0.25
# MPEG-1 and 2 have a fixed rate, unless films are shown at that of television.
_EVEN_CODECS = ("mpeg1video", "mpeg2video")
_EVEN_SHARE = 0.99
# The last frame of a slow video may have been meant for less than a usual step.
_LAST_S = 0.4
# By so many frames FFmpeg may be wrong.
_SLIPS = 2.5
# Of the steps of a video with an even rate that is damaged.
_EVEN_SHARE_OF_DAMAGED = 0.9
# Ticks that can be added up.
_FAR = 1 << 55
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
        step_s: From a packet to the next, mostly; 0 where no packet has a time.
        joints: Places of the packets that begin a part behind a jump of the clock.
    """

    times: tuple[_Ticks, _Ticks] | None
    duration_s: float
    frames: int
    note: str = ""
    is_steady: bool = False
    step_s: float = 0.0
    joints: frozenset[int] = frozenset()

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
    step = max(1, round(1 / (fps * tick_s)))
    read = _read(container, stream, tick_s, step, by_dts)
    if not read.has_times or has_flag(container, Flags.no_timestamps):
        return Timeline(None, 0.0, read.frames)
    may_jump = has_flag(container, Flags.ts_discont)
    packets = read.without_strays(_PAUSE_S / tick_s)
    notes = ["single packets with false times were put between their neighbours"]
    notes = notes if packets is not read else []
    if may_jump and stream.codec_context.codec.canonical_name in _EVEN_CODECS:
        packets = packets.evened(1 / (fps * tick_s))
    if may_jump:
        # No such container states how long a frame lasts; what is said is a guess.
        packets = replace(
            packets, durations=np.full_like(packets.pts, min(packets.usual, int(_LAST_S / tick_s)))
        )
    shifts, jumps = packets.joined(_PAUSE_S / tick_s if may_jump else np.inf)
    starts = packets.pts + shifts
    first = int(starts[read.is_shown].min(initial=starts.max()))
    if len(jumps):
        at = _listed((starts[jumps] - first) * tick_s)
        notes.append(f"its clock jumps (at {at} s), and the parts were put end to end")
    # AVI has an entry for each frame that was left out on purpose.
    missing = packets.missing(shifts, jumps) if not by_dts else jumps[:0]
    if len(missing):
        notes.append(f"frames are missing (from {_listed((missing - first) * tick_s)} s on)")
    most = (LONGEST_PICTURE_S + min(size, _PER_FRAME_S * read.frames)) / tick_s
    # Where the clock jumps it is not known when the sound is heard.
    others = np.zeros(0, np.int64) if len(jumps) else read.others.ticks
    end = int((starts + packets.durations)[read.is_shown].max(initial=first))
    longest = LONGEST_PICTURE_S / tick_s
    step = packets.usual if packets.usual <= longest else step
    cuts, end = _cut_pauses(starts, end, others, most, longest, step)
    if cuts is not None:
        shifts = shifts - cuts
        notes.append("it holds too little for its length, and its pauses were cut short")
    is_changed = packets.pts is not read.pts or len(jumps) or cuts is not None
    return Timeline(
        (packets.pts + shifts, packets.dts + shifts) if is_changed else None,
        float(end - first) * tick_s,
        read.frames,
        "; ".join(notes),
        is_steady=not is_changed and not may_jump,
        step_s=packets.usual * tick_s,
        joints=frozenset(jumps.tolist()),
    )


def _listed(times_s: npt.NDArray[np.floating]) -> str:
    more = f" and {len(times_s) - 3} more" if len(times_s) > 3 else ""
    return ", ".join(f"{time_s:.2f}" for time_s in times_s[:3]) + more


@dataclass(frozen=True)
class _Packets:
    """A video's packets in the order of the file, times in ticks of its clock.

    Attributes:
        pts, dts, durations: Filled in where the file does not give them.
        has_dts: Whether the file gives that time.
        is_key: Whether a packet is a keyframe.
        is_shown: Whether an edit list leaves it in.
        ends: Where in the file each packet, and all before it, ends.
        unread: How much time the bytes before a packet that no other covers would last.
        others: Packets of other streams, in the order of the file.
        frames: Packets that hold something.
        has_times: Whether the file gives any.
    """

    pts: _Ticks
    dts: _Ticks
    durations: _Ticks
    has_dts: _Flags
    is_key: _Flags
    is_shown: _Flags
    ends: _Ticks
    unread: _Ticks
    others: "_Others"
    frames: int
    has_times: bool

    @property
    def usual(self) -> int:
        """From a packet to the next, mostly."""
        steps = np.diff(self.dts)
        return int(np.median(steps[steps > 0])) if (steps > 0).any() else int(self.durations[0])

    def without_strays(self, far: float) -> "_Packets":
        """The same packets, but for times of single ones that lie ``far`` from all around them."""
        before, dts, after = self.dts[:-2], self.dts[1:-1], self.dts[2:]
        is_far = (dts - after > far) | (before - dts > far)
        is_close = (after >= before) & (after - before <= 4 * self.usual)
        strays = 1 + np.flatnonzero(is_far & is_close)
        if not len(strays):
            return self
        mended = self.dts.copy()
        mended[strays] = (self.dts[strays - 1] + self.dts[strays + 1]) // 2
        pts = self.pts.copy()
        pts[strays] = mended[strays] + int(np.median(self.pts - self.dts))
        return replace(self, dts=mended, pts=pts)

    def missing(self, shifts: _Ticks, jumps: _Ticks) -> _Ticks:
        """When frames end behind which others are missing, in a video of an even rate.

        Between parts (``jumps`` begin them) none is: they may differ in how long before it is shown
        a frame is decoded.
        """
        dts, usual = self.dts + shifts, self.usual
        steps = np.diff(dts)
        if not len(steps) or np.mean(np.abs(steps - usual) <= usual / 4) < _EVEN_SHARE_OF_DAMAGED:
            return np.zeros(0, np.int64)
        gaps = np.setdiff1d(np.flatnonzero(steps >= 3 * usual), jumps - 1)
        silent = [gap for gap in gaps.tolist() if self.heard(gap, gap + 1) < steps[gap] // 2]
        return np.sort(dts[silent] + usual)

    def heard(self, before: int, here: int) -> int:
        """How much sound lies between two packets in the file, in ticks."""
        # Not between them as they are read: the last before a pause ends when the next one begins.
        begin, end = np.searchsorted(self.others.ends, self.ends[[before, here]])
        streams, ticks = self.others.streams[begin:end], self.others.ticks[begin:end]
        steps = [np.diff(ticks[streams == stream]) for stream in np.unique(streams)]
        return max((int(s[(s > 0) & (s < self.others.most)].sum()) for s in steps), default=0)

    def evened(self, step: float) -> "_Packets":
        """The same packets at the even steps that MPEG-1 and 2 prescribe, but for real gaps.

        Of the pictures that share a header one has its time, and FFmpeg may take another for it.
        """
        places = np.arange(len(self.dts))
        late = self.dts - step * places
        steps = np.diff(late) / step
        if not len(steps) or np.mean(np.abs(steps - np.round(steps)) < 0.1) < _EVEN_SHARE:
            return self
        level, levels = float(late[0]), []
        for one in late.tolist():
            level = one if abs(one - level) > _SLIPS * step else level
            levels.append(level)
        dts = np.round(np.array(levels) + step * places).astype(np.int64)
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
        usual = self.usual
        latest = np.maximum.accumulate(self.pts)
        # Frames that are not shown can share the time of another; keyframes are shown.
        is_back = (steps < 0) | (self.is_key[heres] & (self.pts[heres] <= latest[befores]))
        is_long = steps > max(pause, _PAUSE_STEPS * usual)
        for gap in np.flatnonzero(is_long & ~is_back):
            filled = self.heard(befores[gap], heres[gap]) + self.unread[heres[gap]]
            is_long[gap] = filled < steps[gap] // 2
        suspects = np.flatnonzero(is_back | is_long)
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
    starts: _Ticks, end: int, others: _Ticks, most: float, longest: float, step: int
) -> tuple[_Ticks | None, int]:
    """Shorten pauses until a video is no longer than it may be.

    Args:
        starts: Of its frames.
        end: Of its last frame.
        others: When packets of other streams are due: time that they fill is no pause.
        most: Ticks that the video may last.
        longest: Ticks that a pause may last; one that is longer becomes a ``step``.
        step: Ticks that a frame is shown at the least.

    Returns:
        How much earlier each frame starts, None if all stay, and the new end.
    """
    first = int(starts.min())
    others = others[(others > first) & (others < end)]
    marks = np.unique(np.concatenate([starts, others, [end]]))
    pauses = np.diff(marks)
    kept = np.where(pauses > longest, np.minimum(pauses, step), pauses)
    while kept.sum() > most and longest > step:
        longest /= 2
        kept = np.minimum(kept, int(longest))
    late = np.concatenate([[0], np.cumsum(pauses - kept)])
    if not late[-1]:
        return None, end
    return late[np.searchsorted(marks, starts)], end - int(late[-1])


@dataclass(frozen=True)
class _Others:
    """Packets of other streams in the order of the file.

    Attributes:
        streams: Which.
        ticks: When each is due, by the clock of the video.
        ends: Where in the file each ends.
        most: From a packet to the next of the same stream, in ticks, without a gap.
    """

    streams: _Ticks
    ticks: _Ticks
    ends: _Ticks
    most: float


def _read(
    container: InputContainer, stream: VideoStream, tick_s: float, step: int, by_dts: bool
) -> _Packets:
    rows, others = array("q"), array("q")
    next_dts, frames, end, covered, uncovered, has_times = 0, 0, 0, 0, 0, False
    for count, packet in enumerate(read_packets(container)):
        if count % 256 == 0:
            decoder_gets_on()
        if packet.pos is not None and packet.pos >= 0:
            end = packet.pos + packet.size
            uncovered += max(0, packet.pos - covered)
            covered = max(covered, end)
        dts = _bounded(packet.dts)
        pts = dts if by_dts else _bounded(packet.pts)
        if packet.stream_index != stream.index:
            if dts is not None and packet.time_base:
                ticks = round(min(_FAR, max(-_FAR, float(dts * packet.time_base) / tick_s)))
                others.extend((packet.stream_index, ticks, end))
            continue
        has_times |= pts is not None or dts is not None
        frames += packet.size > 0
        next_dts = dts if dts is not None else next_dts if pts is None else pts
        is_ours = (dts is not None, packet.is_keyframe, not packet.is_discard)
        shown = next_dts if pts is None else pts
        lasts = min(packet.duration or step, _FAR)
        rows.extend((shown, next_dts, lasts, *is_ours, end, uncovered))
        next_dts, uncovered = next_dts + step, 0
    table: _Ticks = np.array(rows, np.int64).reshape(-1, 8)
    has_dts, is_key, is_shown = table[:, 3:6].astype(bool).T
    # So long would bytes that no packet covers last on average.
    unread = table[:, 7] * (len(table) * step / max(1, covered))
    beside: _Ticks = np.array(others, np.int64).reshape(-1, 3)
    beside = beside[np.argsort(beside[:, 2], kind="stable")]
    return _Packets(
        pts=table[:, 0],
        dts=table[:, 1],
        durations=table[:, 2],
        has_dts=has_dts,
        is_key=is_key,
        is_shown=is_shown,
        ends=table[:, 6],
        unread=unread.astype(np.int64),
        others=_Others(beside[:, 0], beside[:, 1], beside[:, 2], _SOUND_S / tick_s),
        frames=frames,
        has_times=has_times,
    )


def _bounded(ticks: int | None) -> int | None:
    return None if ticks is None else max(-_FAR, min(_FAR, ticks))

"""What the header and the index of a file state about its video, as far as they can be believed."""

from functools import cached_property
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.video.stream import VideoStream

# A stated duration beyond this is a corrupted header, not a recording.
_LONGEST_S = 30 * 24 * 3600.0
# A picture may stay for an hour.
_LEAST_FPS = 1 / 3600
MOST_FPS = 1000
"""Frames a second beyond which a rate is a mistake, and so are the times that follow it."""
_Ticks = npt.NDArray[np.int64]


class Index:
    """Header and index of an opened file.

    Args:
        container: The file.
        stream: Its video.
        path: Where it lies.

    Attributes:
        stream: The video.
        whole_s: Duration of the file as stated, in seconds; 0 if it is not.
        size: Of the file, in bytes.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, path: Path) -> None:
        self.stream = stream
        self._entries = stream.index_entries
        self._tick_s = float(stream.time_base) if stream.time_base else 1 / 90000
        self.whole_s = (container.duration or 0) / av.time_base
        self._is_matroska = container.format.name.startswith("matroska")
        self.size = path.stat().st_size

    @property
    def is_too_fast(self) -> bool:
        """Whether frames follow each other faster than any camera takes them."""
        rate = self.stream.average_rate or self.stream.guessed_rate
        return rate is not None and rate > MOST_FPS

    def fps(self, *, is_raw: bool) -> float | None:
        """Frames a second; None if no rate is named that can be.

        Args:
            is_raw: Whether the times of the packets say nothing about it.
        """
        stream, context = self.stream, self.stream.codec_context
        rates = [stream.average_rate, stream.guessed_rate, stream.base_rate]
        if is_raw:
            # Their readers fall back on a rate of their own. MPEG-4 states how fine its clock is.
            is_fine = context.codec.canonical_name == "mpeg4"
            rates = [stream.guessed_rate if context.framerate and is_fine else context.framerate]
        for rate in rates:
            if rate is not None and _LEAST_FPS <= rate <= MOST_FPS:
                return float(rate)
        return None

    @cached_property
    def stated_s(self) -> float | None:
        """Duration of the video stream, if its header states a sane one, in seconds."""
        stream = self.stream
        stated = stream.duration * self._tick_s if stream.duration else None
        if stated is None:
            end_s = _clock(stream.metadata.get("DURATION", ""))
            stated = end_s - self._matroska_start_s if end_s is not None else None
        return stated if stated is not None and self._is_sane(stated) else None

    @property
    def duration_s(self) -> float | None:
        """Duration of the stream, else of the file; None if neither is stated sanely."""
        stated = self.stated_s
        if stated is None and self.whole_s:
            stated = self.whole_s - self._matroska_start_s
        return stated if stated is not None and self._is_sane(stated) else None

    @property
    def _matroska_start_s(self) -> float:
        # Matroska states where the video ends on its clock, not how long it is.
        return (self.stream.start_time or 0) * self._tick_s if self._is_matroska else 0.0

    def _is_sane(self, stated_s: float) -> bool:
        if not 0 < stated_s < _LONGEST_S or 0 < self.whole_s < stated_s - 1.0:
            return False
        return self._span_s <= stated_s + 1.0

    @property
    def _span_s(self) -> float:
        count = len(self._entries)
        if not count:
            return 0.0
        return (self._entries[count - 1].timestamp - self._entries[0].timestamp) * self._tick_s

    @property
    def cut_off_s(self) -> float | None:
        """Start of the first sample whose bytes lie past the end of the file, if one does."""
        entries = self._entries
        count = len(entries)
        if not count or entries[count - 1].pos + entries[count - 1].size <= self.size:
            return None
        low, high = 0, count - 1
        while low < high:
            middle = (low + high) // 2
            if entries[middle].pos + entries[middle].size > self.size:
                high = middle
            else:
                low = middle + 1
        return (entries[low].timestamp - entries[0].timestamp) * self._tick_s

    @cached_property
    def keyframes(self) -> _Ticks:
        """Timestamps of keyframes, rising; none where the file lists too few of them."""
        times = [entry.timestamp for entry in self._entries if entry.is_keyframe]
        # A single entry, or an index that stops early, is no map of the file.
        span_s = (times[-1] - times[0]) * self._tick_s if len(times) > 1 else 0.0
        if self.stated_s is None or span_s < self.stated_s / 2:
            return np.zeros(0, np.int64)
        return np.unique(np.array(times, np.int64))

    def starts_s(self) -> npt.NDArray[np.float64]:
        """When the listed frames start, in seconds from the first."""
        times = np.array([entry.timestamp for entry in self._entries], np.int64)
        return np.asarray((times - times[:1]) * self._tick_s, np.float64)


def _clock(text: str) -> float | None:
    """Seconds of a Matroska ``HH:MM:SS.fraction`` tag."""
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None

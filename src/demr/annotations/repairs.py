"""Counts of what reading a file of queries had to repair."""

from collections import Counter
from dataclasses import dataclass, field

from demr.machine.terminal import printable

_KEYS, _SHOWN = 8, 30  # keys that a summary names, and characters of one
ROUNDING_S = 0.05  # what one decimal of a second, or half a frame, can be off


@dataclass
class RepairReport:
    """What was repaired while a file was read, and how it was understood; every field is a count.

    Args:
        queries: Annotations returned.
        swapped: Windows with start and end exchanged.
        clipped: Windows that leave the video by more than ``ROUNDING_S``, cut to it.
        trimmed: The same for windows that leave it by less: two sources rounded differently.
        after_end: Windows dropped because they start at or after the end of the video.
        zero_length: Windows dropped because they have no length.
        emptied: Queries that lost every window by this; their windows are unknown now, as
            the moment is in the video.
        unknown: Queries that came without windows (null or no such key).
        absent: Queries without a moment: an empty list of windows, ``[[0, 0]]`` without clips.
        tidied: Queries with surplus blanks or line breaks removed.
        repeated: Records dropped because the same qid came before with the same content.
        shared_qids: Records under the qid of another one, of which one is absent.
        named: Queries without a qid, named after video and line.
        null_queries: Records without a sentence, dropped.
        guessed_durations: Videos whose file states no duration; their last window's end is taken.
        framed_videos: Videos whose times are frames, turned into seconds.
        merged_rows: Rows of a table that add a window to a query above them.
        disagreed: Queries whose annotators marked different windows; the one that agrees best with
            all of them is taken.
        whole_videos: Queries whose moment is the whole video, by HiREST's ``clip: false``.
        further_keys: Keys without a meaning here -> records that have them; kept as they are.
    """

    queries: int = 0
    swapped: int = 0
    clipped: int = 0
    trimmed: int = 0
    after_end: int = 0
    zero_length: int = 0
    emptied: int = 0
    unknown: int = 0
    absent: int = 0
    tidied: int = 0
    repeated: int = 0
    shared_qids: int = 0
    named: int = 0
    null_queries: int = 0
    guessed_durations: int = 0
    framed_videos: int = 0
    merged_rows: int = 0
    disagreed: int = 0
    whole_videos: int = 0
    further_keys: Counter[str] = field(default_factory=Counter)

    def summary(self) -> str:
        """One line with the counts that are not zero."""
        dropped = [
            text
            for count, text in (
                (self.after_end, f"{self.after_end} dropped: start after the end"),
                (self.zero_length, f"{self.zero_length} dropped: zero length"),
            )
            if count
        ]
        notes = [
            text
            for count, text in (
                (self.clipped, f"{self.clipped} windows clipped to the duration"),
                (self.trimmed, f"{self.trimmed} trimmed by at most {ROUNDING_S} s"),
                (self.swapped, f"{self.swapped} windows reversed: start and end swapped"),
                (len(dropped), ", ".join(dropped)),
                (self.emptied, f"{self.emptied} queries left without a window: unknown"),
                (self.unknown, f"{self.unknown} queries without windows: unknown"),
                (self.absent, f"{self.absent} absent"),
                (self.tidied, f"{self.tidied} queries with surplus blanks tidied"),
                (self.repeated, f"{self.repeated} exact repetitions dropped"),
                (self.shared_qids, f"{self.shared_qids} share a qid with a query they negate"),
                (self.named, f"{self.named} queries without a qid named"),
                (self.null_queries, f"{self.null_queries} records without a sentence dropped"),
                (
                    self.guessed_durations,
                    f"{self.guessed_durations} videos without a duration: last window's end taken",
                ),
                (self.framed_videos, f"{self.framed_videos} videos timed in frames: in seconds"),
                (self.merged_rows, f"{self.merged_rows} rows are further windows of a query"),
                (
                    self.disagreed,
                    f"{self.disagreed} queries whose annotators differ: the best agreed on taken",
                ),
                (self.whole_videos, f"{self.whole_videos} moments are the whole video"),
                (len(self.further_keys), self._kept()),
            )
            if count
        ]
        return f"{self.queries} queries" + (": " + ", ".join(notes) if notes else ", no repairs")

    def _kept(self) -> str:
        names = sorted(self.further_keys)
        shown = [f"{printable(key[:_SHOWN])} ({self.further_keys[key]})" for key in names[:_KEYS]]
        more = [f"{len(names) - _KEYS} more"] if len(names) > _KEYS else []
        return "further keys kept: " + ", ".join([*shown, *more])

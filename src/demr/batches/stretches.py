"""Videos longer than a model reads at once: overlapping stretches of clips.

Attention costs the square of the number of clips, and a model that was trained on minutes knows
nothing of hours. To the model a stretch is a video of its own, with positions, fractions and a
duration of its own. A clip's prediction is taken from one stretch: the one in which it lies most
centrally.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor

from demr.batches.batch import Item
from demr.encoders.base import VideoFeatures
from demr.features.prepare import span_fractions

# Where nothing else is known of a model. Above the longest videos that the recipes' data sets are
# known for (TACoS: 701 clips), so that none of them is cut; attention over so many still fits.
MAX_CLIPS = 1000


@dataclass(frozen=True)
class Stretch:
    """Neighbouring clips that are read at once; the indices are those of the whole video.

    Attributes:
        start: First clip.
        stop: One past the last.
        core_start: First clip whose prediction is taken from this stretch.
        core_stop: One past the last of those.
    """

    start: int
    stop: int
    core_start: int
    core_stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def start_s(self, clip_s: float) -> float:
        """Where it begins in the video, in seconds."""
        return self.start * clip_s

    def duration_s(self, whole_s: float, clips: int, clip_s: float) -> float:
        """Its length in seconds; the last one ends with the video.

        Args:
            whole_s: Duration of the video in seconds.
            clips: Clips of the video.
            clip_s: Length of a clip in seconds.
        """
        end_s = whole_s if self.stop == clips else self.stop * clip_s
        return end_s - self.start_s(clip_s)


def plan_stretches(clips: int, max_clips: int) -> tuple[Stretch, ...]:
    """Cover a video with stretches of equal length, each clip's prediction taken from one.

    A video that is longer than the limit gets stretches of just that length, spread evenly, whose
    neighbours share at least half (:func:`shared_clips`). The core of one ends and that of the next
    begins in the middle of what they share, so a moment of at most that many clips lies whole in a
    stretch whose core holds some of them. Every clip is read about twice: the price of that.

    Args:
        clips: Clips of the video.
        max_clips: Clips to read at once.

    Returns:
        One stretch if the video fits, from the video's first clip to its last.

    Raises:
        ValueError: If either number is below 1.

    >>> [(s.start, s.stop, s.core_start, s.core_stop) for s in plan_stretches(10, 6)]
    [(0, 6, 0, 4), (2, 8, 4, 6), (4, 10, 6, 10)]
    """
    if clips < 1 or max_clips < 1:
        raise ValueError(f"need at least one clip, of a video and at once: {clips}, {max_clips}")
    if clips <= max_clips:
        return (Stretch(0, clips, 0, clips),)
    shared = shared_clips(max_clips)
    count = -(-(clips - shared) // (max_clips - shared))
    starts = [round(index * (clips - max_clips) / (count - 1)) for index in range(count)]
    # Of equal stretches the one with the nearer middle; a tie goes to the earlier.
    changes = [(a + b + max_clips + 1) // 2 for a, b in pairwise(starts)]
    bounds = [0, *changes, clips]
    return tuple(
        Stretch(start, start + max_clips, bounds[index], bounds[index + 1])
        for index, start in enumerate(starts)
    )


def shared_clips(max_clips: int) -> int:
    """Clips that neighbouring stretches share at least.

    Half a stretch: training videos seldom hold a moment that takes more than half of them, so few
    moments are longer than what is shared.
    """
    return max_clips // 2


def cut_item(item: Item, stretch: Stretch, clip_s: float, video: Tensor | None = None) -> Item:
    """The part of an item that a stretch reads, as an item of its own, without targets.

    Args:
        item: One query against a whole video.
        stretch: Of its clips.
        clip_s: Length of a clip in seconds.
        video: The clips as :func:`cut_video` gave them, to be shared with other queries.

    Returns:
        The item itself if the stretch is the whole video.
    """
    clips = len(item.video)
    if len(stretch) == clips:
        return item
    duration_s = stretch.duration_s(item.duration_s, clips, clip_s)
    return replace(
        item,
        video=cut_video(item, stretch, clip_s) if video is None else video,
        span_norm=span_fractions(duration_s, clip_s, len(stretch)),
        duration_s=duration_s,
        first_clip=item.first_clip + stretch.start,
        targets=None,
    )


def cut_video(item: Item, stretch: Stretch, clip_s: float) -> Tensor:
    """An item's clips within a stretch, with the fractions of the stretch appended, ``(l, Dv)``."""
    if len(stretch) == len(item.video):
        return item.video
    duration_s = stretch.duration_s(item.duration_s, len(item.video), clip_s)
    fractions = span_fractions(duration_s, clip_s, len(stretch))
    part = item.video[stretch.start : stretch.stop].clone()
    part[:, -fractions.shape[1] :] = fractions
    return part


def cut_features(video: VideoFeatures, stretch: Stretch, clips: int) -> VideoFeatures:
    """The raw features of a stretch, as of a video of its own.

    Args:
        video: The whole video.
        stretch: Of its clips.
        clips: Clips of the video; its features may have a row or two more.
    """
    return replace(
        video,
        duration_s=stretch.duration_s(video.duration_s, clips, video.clip_s),
        features=video.features[stretch.start : stretch.stop],
    )


def windows_within(
    windows_s: Sequence[tuple[float, float]], start_s: float, duration_s: float, clip_s: float
) -> list[tuple[float, float]]:
    """What a stretch shows of windows, as fractions of the stretch.

    Args:
        windows_s: In seconds of the whole video.
        start_s: Where the stretch begins.
        duration_s: How long it is.
        clip_s: Length of a clip; of a window that is cut at least half of one must be seen.
    """
    seen = []
    for start, end in windows_s:
        inside = max(start - start_s, 0.0), min(end - start_s, duration_s)
        length = inside[1] - inside[0]
        if length >= 0 and length >= min(clip_s / 2, end - start):
            seen.append((inside[0] / duration_s, inside[1] / duration_s))
    return seen


def holding(
    stretches: Sequence[Stretch], window_s: tuple[float, float], clip_s: float
) -> list[Stretch]:
    """The stretches that hold a window whole; where none does, the one that holds most of it.

    Args:
        stretches: Of one video, in order.
        window_s: Start and end in seconds.
        clip_s: Length of a clip in seconds.
    """
    start, end = window_s[0] / clip_s, window_s[1] / clip_s
    # The last stretch may end with a part of a clip, or a hair before the annotated duration.
    last = stretches[-1].stop
    whole = [s for s in stretches if s.start <= start and min(end, last) <= s.stop]
    return whole or [max(stretches, key=lambda s: min(end, s.stop) - max(start, s.start))]

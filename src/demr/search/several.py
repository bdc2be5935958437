"""Several videos and the same sentences: which video answers a sentence best."""

import math
from collections.abc import Sequence

from demr.search.result import Answer, SearchResult

_ORDER = ("found", "uncertain", "not in this video")


def rank_videos(results: Sequence[SearchResult], number: int) -> list[SearchResult]:
    """Searches of several videos for the same sentences, the surest of one sentence first.

    The verdict counts first, then the probability that the moment is in the video, where that is
    known, then how well the clips of the best moment fit the sentence. Scores of moments are no
    help: they compare moments of one video.

    Args:
        results: A search of each video.
        number: Which of the sentences, from 0.
    """
    return sorted(results, key=lambda result: _doubt(result, result.answers[number]))


def order_videos(results: Sequence[SearchResult]) -> list[SearchResult]:
    """Searches of several videos, the one with the surest answer to any sentence first."""
    return sorted(
        results, key=lambda result: min(_doubt(result, answer) for answer in result.answers)
    )


def _doubt(result: SearchResult, answer: Answer) -> tuple[int, float, float]:
    present = -1.0 if answer.present is None else answer.present
    return _ORDER.index(answer.verdict), -present, -_similarity(result, answer)


def _similarity(result: SearchResult, answer: Answer) -> float:
    """Mean saliency inside the best moment; of the whole video where there is none."""
    values = answer.saliency
    if answer.moments:
        best = answer.moments[0]
        first = min(int(best.start / result.clip_s), max(len(values) - 1, 0))
        behind = max(math.ceil(best.end / result.clip_s), first + 1)
        values = values[first:behind]
    return sum(values) / len(values) if values else -math.inf

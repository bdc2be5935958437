"""A query's proposals as one distribution over windows; its answer has the highest expected IoU.

``q(s, e) = sum_i w_i T_i(s) T_i(e)``: T_i is the predictive Student-t of a boundary of proposal i,
and ``w_i`` is proportional to ``p_i^g / length_i``, since a moment of n clips is proposed n times.
The answer is the window W with the highest ``O(W) = sum_i w_i E[IoU(W, (s, e))]``. Nothing is
suppressed: the mass that an answer explains is taken away, and the search repeats.

Expectations are sums over a few quantiles of both boundaries. Draws that start after they end are
no windows, so the others share their weight; draws outside the video end at its ends.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray

from demr.answers.proposals import (
    Proposals,
    check_proposals,
    different,
    heaviest,
    mixture_weights,
    neighbourhoods,
    predictive,
    student_quantile,
    unusable,
)

FloatArray = NDArray[np.float64]
Integers = NDArray[np.int64]
# Equally likely starts and ends of each proposal, (B, N, K), and how many pairs are windows.
Draws = tuple[FloatArray, FloatArray, FloatArray]

# Chosen on validation queries of the embedded world and of the timeline track (docs/log.md): the
# power g of the foreground probability, and a factor on the scale of the Student-t. Heads that
# are trained for the likelihood are too wide for the middle of the distribution, which decides.
POWER, SPREAD = 1.5, 0.7
# A window is answered with instead of the centre of its moment where it overlaps so much more.
# Where the mixture is sharp, centres are nearer the truth than the quadrature tells (mean IoU of
# the embedded world 88.1 instead of 87.3); where it is wide, hedging counts.
_WORTH = 0.03
# Equally likely quantiles of a boundary, a pair of which is a window of the expectation.
_NODES, _NODES_OF_A_STEP = 3, 5
# Proposals of least weight that make up so much of the mass are left out. O errs by no more.
_LEFT_OUT = 1e-3
# Of more proposals a few that differ are candidates, and what overlaps none is forgotten.
_MOST = 128
# Numbers in a table of windows and proposals that are worked on at once: they fit a cache.
_BLOCK = 1 << 14
# Of long videos a window at a time, so that memory is that of their answer.
_MOST_AT_ONCE = 1 << 20
# Windows are as good as each other within rounding; of those the earliest is taken.
_TIE = 1e-9
_LEAST_WIDTH = 1e-9
# An expected overlap that is no answer any more.
_NOTHING = 1e-6
# Probabilities whose quantiles every moment has: both ends of central intervals, and the median.
PROBABILITIES = (0.005, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975, 0.995)
# Cells of probability; a boundary is its quantiles at their middles, those above among them.
_HALF = (0.0, 0.01, 0.04, 0.06, 0.14, 0.2, 0.3, 0.4, 0.46)
_EDGES = np.array([*_HALF, *(1 - edge for edge in _HALF[::-1])])
_MIDDLES, _CELLS = (_EDGES[1:] + _EDGES[:-1]) / 2, np.diff(_EDGES)
# Of these the starts and ends whose 25 pairs refine a window; 49 or 81 gave the same IoU.
_GRID = [3, 4, 5, 6, 7]
# So many proposals choose among them, those that the window explains most of.
_AGREEING = 24


@dataclass(frozen=True)
class Moments:
    """A query's answers, best first; M rows.

    Attributes:
        window_s: Start and end in seconds, inside the video, ``(M, 2)``.
        overlap: Expected IoU with a draw of the whole mixture, ``(M,)``. Several true moments
            share it.
        share: Mass of the mixture that the moment explains, ``(M,)``.
        count: How many moments the clips that agree with it say there are, ``(M,)``: the sum of
            ``p_i / n_i`` over what it explains, ``n_i`` the clips of a proposal's window. About 1
            where every clip of a moment is sure.
        right: Probability of an IoU of at least 0.5 with a draw of the whole mixture, ``(M,)``.
        aleatoric: Variance of start and end, seconds squared, ``(M, 2)``: the mean over the
            proposals of the moment.
        epistemic: Likewise, ``(M, 2)``: the mean, and the variance of their locations.
        quantile_s: Of start and end inside the moment at :data:`PROBABILITIES`, ``(M, 2, P)``.
    """

    window_s: FloatArray
    overlap: FloatArray
    share: FloatArray
    count: FloatArray
    right: FloatArray
    aleatoric: FloatArray
    epistemic: FloatArray
    quantile_s: FloatArray

    def __len__(self) -> int:
        return len(self.window_s)


@dataclass(frozen=True)
class Mixture:
    """Mixtures of B queries of N proposals at most, in fractions of each video's duration.

    Rows past a query's proposals have no weight.

    Attributes:
        weight: Sums to 1 a query, ``(B, N)``.
        count: Moments that each proposal stands for, see :class:`Moments`, ``(B, N)``.
        loc: Start and end, ``(B, N, 2)``.
        scale: Of the Student-t, ``(B, N, 2)``.
        dof: Its degrees of freedom, above 2, ``(B, N, 2)``.
        aleatoric: Variance, ``(B, N, 2)``.
        epistemic: Likewise.
    """

    weight: FloatArray
    count: FloatArray
    loc: FloatArray
    scale: FloatArray
    dof: FloatArray
    aleatoric: FloatArray
    epistemic: FloatArray

    def draws(self, nodes: int = _NODES) -> Draws:
        """So many of each boundary, see :data:`Draws`."""
        probability = (np.arange(nodes) + 0.5) / nodes
        starts, ends = np.moveaxis(self.quantiles(probability), 2, 0)
        windows = (ends[..., None, :] > starts[..., None]).sum(axis=(-1, -2))
        return starts, ends, np.maximum(windows, 1.0)

    def quantiles(self, probability: FloatArray) -> FloatArray:
        """Of every boundary, inside the video, ``(B, N, 2, K)``."""
        away = self.scale[..., None] * student_quantile(self.dof, probability)
        result: FloatArray = np.clip(self.loc[..., None] + away, 0, 1)
        return result


def answer(
    proposals: Sequence[Proposals],
    *,
    top: int = 10,
    power: float = POWER,
    spread: float = SPREAD,
) -> list[Moments]:
    """The windows of highest expected overlap with each query's truth.

    Queries do not depend on each other: they are worked on together because that is faster.

    Args:
        proposals: One record a query.
        top: Moments a query; fewer where nothing is left.
        power: Of the foreground probability in the weights.
        spread: Factor on the scales of the Student-t.

    Raises:
        InputError: If a query has no proposal, a number that is not finite, or one outside the
            range of its kind.
    """
    if not proposals:
        return []
    table = _Table.of(proposals, power, spread)
    answers: dict[int, Moments] = {}
    for queries in table.blocks():
        mixture, candidates = table.padded(queries)
        found = _search(mixture, candidates, top)
        for row, query in enumerate(queries.tolist()):
            answers[query] = _in_seconds(found, row, proposals[query].duration_s)
    return [answers[query] for query in range(len(proposals))]


def expected_iou(windows: FloatArray, draws: Draws) -> FloatArray:
    """Expected IoU of windows with each proposal's draws, ``(B, C, N)``, for ``(B, C, 2)``.

    Where two windows share anything, their union is the hull, so one division a pair of draws
    does; a reversed draw or one that shares nothing has a negative part in common, taken as 0.
    """
    starts, ends, count = draws
    a, b = windows[:, :, None, 0], windows[:, :, None, 1]
    # A window without length shares nothing, and must not divide nothing by nothing.
    hull_end = np.maximum(b, a + _LEAST_WIDTH)
    total = np.zeros((*windows.shape[:2], count.shape[1]))
    if total.size > _MOST_AT_ONCE and windows.shape[1] > 1:
        parts = (windows[:, i : i + 1] for i in range(windows.shape[1]))
        return np.concatenate([expected_iou(part, draws) for part in parts], axis=1)
    shared, hull = np.empty_like(total), np.empty_like(total)
    nodes = range(starts.shape[2])
    latest = [np.maximum(a, starts[:, None, :, k]) for k in nodes]
    earliest = [np.minimum(a, starts[:, None, :, k]) for k in nodes]
    for end in np.moveaxis(ends[:, None], 3, 0):
        first_end, last_end = np.minimum(b, end), np.maximum(hull_end, end)
        for k in nodes:
            np.subtract(first_end, latest[k], out=shared)
            np.maximum(shared, 0, out=shared)
            np.subtract(last_end, earliest[k], out=hull)
            shared /= hull
            total += shared
    total /= count[:, None]
    return total


def _search(mixture: Mixture, candidates: FloatArray, top: int) -> dict[str, FloatArray]:
    """Find ``top`` windows of every query, one after the other.

    Args:
        mixture: Of B queries.
        candidates: Windows to begin from, ``(B, C, 2)``; empty ones fill the rows.
        top: How many.

    Returns:
        Fields of :class:`Moments` in fractions, ``(B, top, ...)``, and ``left``, the expected
        overlap with what the moments before have left over, ``(B, top)``.
    """
    draws, more = mixture.draws(), mixture.draws(_NODES_OF_A_STEP)
    boundaries = _Boundaries.of(mixture)
    of_candidates = expected_iou(candidates, draws)
    rest = mixture.weight
    found = []
    for _ in range(top):
        window, agrees, left = _best(candidates, of_candidates, rest)
        quantiles = boundaries.quantiles(rest * agrees)
        hedged = _refine(quantiles, rest * agrees, rest, draws)
        centre = _centre(mixture, rest * agrees**3, window)
        windows = np.stack([centre, window, hedged], axis=1)
        window, agrees, left = _best(windows, expected_iou(windows, draws), rest, _WORTH)
        # Squared: what overlaps an answer by half is more often the same moment than another one.
        remains = (1 - agrees) ** 2
        explained = 1 - remains
        found.append(
            {
                "window_s": window,
                "overlap": _dot(agrees, mixture.weight),
                "share": _dot(explained, mixture.weight),
                "count": _dot(explained, mixture.count),
                "right": _right(mixture, window, more),
                "quantile_s": quantiles,
                **_variances(mixture, rest * agrees),
                "left": left,
            }
        )
        rest = rest * remains
    return {name: np.stack([place[name] for place in found], axis=1) for name in found[0]}


def _best(
    windows: FloatArray, agrees: FloatArray, weight: FloatArray, worth: float = _TIE
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The best of C windows: itself, its expected IoU with each proposal, their weighted sum.

    The first, unless others are better by the share ``worth``; of those the best, and of several
    that are as good within rounding the first, so that a batch changes no answer.
    """
    overlap = (agrees @ weight[..., None])[..., 0]
    best = (overlap >= overlap.max(axis=1, keepdims=True) * (1 - _TIE)).argmax(axis=1)
    row = np.arange(len(best))
    best = np.where(overlap[row, best] > overlap[:, 0] * (1 + worth), best, 0)
    return windows[row, best], agrees[row, best], overlap[row, best]


def _centre(mixture: Mixture, part: FloatArray, window: FloatArray) -> FloatArray:
    """Precision-weighted means of the boundaries of what has the weights ``(B, N)``, ``(B, 2)``.

    The proposals of one moment are measurements of the same two boundaries, each boundary by
    those that know it: a clip at the start does not see the end, and its scale says so. A window
    that explains nothing is its own centre.
    """
    most = part.max(axis=1)[:, None]
    relative = np.divide(part, most, out=np.zeros_like(part), where=most > 0)
    weight = relative[..., None] / np.maximum(mixture.scale, _LEAST_WIDTH) ** 2
    total = weight.sum(axis=1)
    mean = np.einsum("bnk,bnk->bk", weight, mixture.loc)
    return np.sort(np.divide(mean, total, out=window.copy(), where=most > 0), axis=1)


def _refine(quantiles: FloatArray, part: FloatArray, rest: FloatArray, draws: Draws) -> FloatArray:
    """The best pair of quantiles of start and end for the proposals that matter most, ``(B, 2)``.

    Args:
        quantiles: Of the part, ``(B, 2, P)``.
        part: Weights of what a window to begin from explains, ``(B, N)``.
        rest: Weights of what is left.
        draws: Of all proposals.
    """
    most = np.argsort(-part, axis=1, kind="stable")[:, :_AGREEING]
    near = tuple(np.take_along_axis(values, most[..., None], axis=1) for values in draws[:2])
    count = np.take_along_axis(draws[2], most, axis=1)
    levels = quantiles[..., _GRID]
    starts, ends = np.repeat(levels[:, 0], len(_GRID), 1), np.tile(levels[:, 1], len(_GRID))
    grid = np.stack([starts, np.maximum(starts, ends)], axis=-1)
    of_grid = expected_iou(grid, (near[0], near[1], count))
    return _best(grid, of_grid, np.take_along_axis(rest, most, axis=1))[0]


def _right(mixture: Mixture, window: FloatArray, draws: Draws) -> FloatArray:
    """Probability of an IoU of at least 0.5 of one window a query, ``(B,)``."""
    starts, ends, count = draws
    a, b = window[:, 0, None, None, None], window[:, 1, None, None, None]
    start, end = starts[..., None], ends[:, :, None]
    shared = np.minimum(b, end) - np.maximum(a, start)
    right = 2 * shared >= np.maximum(np.maximum(b, a + _LEAST_WIDTH), end) - np.minimum(a, start)
    return _dot(right.sum(axis=(-1, -2)) / count, mixture.weight)


def _variances(mixture: Mixture, weight: FloatArray) -> dict[str, FloatArray]:
    """Aleatoric and epistemic variance of what has the weights ``(B, N)``, ``(B, 2)`` each."""
    part = weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)
    means = {
        name: np.einsum("bn,bnk->bk", part, getattr(mixture, name))
        for name in ("aleatoric", "epistemic", "loc")
    }
    away = mixture.loc - means.pop("loc")[:, None]
    means["epistemic"] += np.einsum("bn,bnk->bk", part, away**2)
    return means


@dataclass(frozen=True)
class _Boundaries:
    """Quantiles of all proposals' boundaries in order, so that weights alone give a mixture's.

    Attributes:
        value: Rising, ``(B, 2, M)``.
        proposal: Which one each is of, ``(B, 2, M)``.
        probability: That a boundary lies in the cell, ``(B, 2, M)``.
    """

    value: FloatArray
    proposal: Integers
    probability: FloatArray

    @classmethod
    def of(cls, mixture: Mixture) -> Self:
        """Sort the middles of the cells."""
        count = mixture.weight.shape[1]
        value = mixture.quantiles(_MIDDLES).swapaxes(1, 2).reshape(-1, 2, count * len(_MIDDLES))
        order = np.argsort(value, axis=2, kind="stable")
        return cls(
            np.take_along_axis(value, order, axis=2),
            order // len(_CELLS),
            _CELLS[order % len(_CELLS)],
        )

    def quantiles(self, weight: FloatArray) -> FloatArray:
        """Of the mixture whose proposals have these weights ``(B, N)``, ``(B, 2, P)``."""
        batch, _, cells = self.value.shape
        rows = np.arange(batch)[:, None, None]
        below = np.cumsum(weight[rows, self.proposal] * self.probability, axis=2)
        below /= np.maximum(below[..., -1:], 1e-300)
        # One search in all rows, each of them 2 above the one before.
        shift = 2.0 * np.arange(2 * batch)[:, None]
        rising = (below.reshape(-1, cells) + shift).ravel()
        at = np.searchsorted(rising, (np.array(PROBABILITIES) - _TIE + shift).ravel()).reshape(
            batch, 2, -1
        )
        place = np.minimum(at - cells * np.arange(2 * batch).reshape(batch, 2, 1), cells - 1)
        return np.take_along_axis(self.value, place, axis=2)


def _in_seconds(found: dict[str, FloatArray], row: int, duration_s: float) -> Moments:
    """One query's moments, as far as anything was left for them."""
    count = max(int((found["left"][row] > _NOTHING).sum()), 1)
    unit = {"window_s": 1, "quantile_s": 1, "aleatoric": 2, "epistemic": 2}
    return Moments(
        **{
            f.name: found[f.name][row, :count] * duration_s ** unit.get(f.name, 0)
            for f in fields(Moments)
        }
    )


def _dot(a: FloatArray, b: FloatArray) -> FloatArray:
    result: FloatArray = np.einsum("bn,bn->b", a, b)
    return result


@dataclass(frozen=True)
class _Table:
    """Proposals of all queries one under another, those of least weight left out.

    Attributes:
        columns: Fields of :class:`Mixture`, ``(T,)`` and ``(T, 2)``; a query's rows by start.
        size: Rows of each query, ``(Q,)``.
    """

    columns: dict[str, FloatArray]
    size: Integers

    @classmethod
    def of(cls, proposals: Sequence[Proposals], power: float, spread: float) -> Self:
        """Weigh, prune and sort; see :func:`answer`."""
        size = np.array([len(one) for one in proposals])
        if not size.all():
            raise unusable(int(size.argmin()), "at least one proposal", "none")
        query = np.repeat(np.arange(len(size)), size)
        columns = {
            name: np.concatenate([getattr(one, name) for one in proposals])
            for name in ("window_norm", "nu", "alpha", "beta", "foreground")
        }
        check_proposals(query, columns)
        window = columns["window_norm"] = np.clip(columns["window_norm"], 0, 1)
        # In clips; a window shorter than a clip was still proposed by one.
        clips = np.array([one.clip_idx.max() + 1 for one in proposals])[query]
        length = np.maximum((window[:, 1] - window[:, 0]) * clips, 1.0)
        columns["count"] = columns["foreground"] / length
        columns["weight"] = mixture_weights(columns.pop("foreground"), length, power, query, size)
        keep = heaviest(columns["weight"], query, size, _LEFT_OUT)
        keep = keep[np.lexsort((window[keep, 1], window[keep, 0], query[keep]))]
        columns, query = {name: column[keep] for name, column in columns.items()}, query[keep]
        columns = predictive(columns, spread)
        kept = np.bincount(query, minlength=len(size))
        if kept.max() > _MOST:
            near = neighbourhoods(columns, kept, _MOST)
            columns = {name: column[near] for name, column in columns.items()}
            kept = np.bincount(query[near], minlength=len(size))
        return cls(columns, kept)

    def blocks(self) -> Iterator[Integers]:
        """Queries that are worked on together: of similar size, so that little is padded."""
        order = np.argsort(self.size, kind="stable")
        cost = self.size[order] * np.minimum(np.maximum(self.size[order], len(_GRID) ** 2), _MOST)
        first = 0
        for last in range(1, len(order) + 1):
            if last == len(order) or (last + 1 - first) * cost[last] > _BLOCK:
                yield order[first:last]
                first = last

    def padded(self, queries: Integers) -> tuple[Mixture, FloatArray]:
        """The mixtures of some queries, and the windows to begin from, ``(B, C, 2)``."""
        first = np.cumsum(self.size) - self.size
        place = np.arange(self.size[queries].max())
        there = place < self.size[queries][:, None]
        # Rows past a query's are its last one again, without weight.
        row = first[queries][:, None] + np.minimum(place, self.size[queries][:, None] - 1)
        table = {name: column[row] for name, column in self.columns.items()}
        table["weight"] = np.where(there, table["weight"], 0)
        table["count"] = np.where(there, table["count"], 0)
        candidates = table["loc"]
        if len(place) > _MOST:  # a query that is alone in its block
            candidates = candidates[:, different(candidates[0], table["weight"][0])]
        return Mixture(**table), candidates

"""Proposals: decode, rank, suppress, fuse. Windows, scores and uncertainty stay one record."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from demr.annotations.windows import suppress, window_iou
from demr.errors import InputError

Ranking = Literal["score", "uncertainty", "fusion", "voting"]
# A proposal has a vote on the boundaries of a selected one that it overlaps by this much.
_VOTING_IOU = 0.3
# Windows that overlap a better one by more are absorbed by it (the release's value).
NMS_IOU = 0.7
# Windows to begin a search from in a long video, which overlap by less than the above.
_CANDIDATES = 64
FloatArray = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Proposals:
    """Candidate moments of one query, one row each; slicing slices every field.

    Attributes:
        window_norm: Predicted ``(start, end)`` as fractions of the duration, ``(N, 2)``; no start
            comes after its end, so that column 0 of every field is about the start.
        foreground: Foreground probability, ``(N,)``.
        nu: NIG parameter for start and end, ``(N, 2)``.
        alpha: NIG parameter for start and end, ``(N, 2)``.
        beta: NIG parameter for start and end, in squared fractions, ``(N, 2)``.
        clip_idx: The clip that made the proposal, ``(N,)``.
        score: What the rows are ranked by, ``(N,)``.
        duration_s: Duration of the video in seconds.
    """

    window_norm: FloatArray
    foreground: FloatArray
    nu: FloatArray
    alpha: FloatArray
    beta: FloatArray
    clip_idx: NDArray[np.int64]
    score: FloatArray
    duration_s: float

    def __post_init__(self) -> None:
        """Check that every field has one row a proposal.

        Raises:
            ValueError: If the shapes disagree, or a window is reversed.
        """
        count = len(self.window_norm)
        for name in ("window_norm", "nu", "alpha", "beta"):
            if getattr(self, name).shape != (count, 2):
                raise ValueError(f"{name} must be ({count}, 2), is {getattr(self, name).shape}")
        for name in ("foreground", "clip_idx", "score"):
            if getattr(self, name).shape != (count,):
                raise ValueError(f"{name} must be ({count},), is {getattr(self, name).shape}")
        if reversed_rows := np.flatnonzero(
            self.window_norm[:, 0] > self.window_norm[:, 1]
        ).tolist():
            raise ValueError(f"window {reversed_rows[0]} ends before it starts")

    def __len__(self) -> int:
        return len(self.window_norm)

    def __getitem__(self, keep: slice | NDArray[Any]) -> Self:
        """Select rows of every field alike."""
        rows = (f.name for f in fields(self) if f.name != "duration_s")
        return self.replace(**{name: getattr(self, name)[keep] for name in rows})

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields exchanged."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**(values | changes))

    @property
    def window_s(self) -> FloatArray:
        """Windows in seconds, inside the video, ``(N, 2)``."""
        return np.clip(self.window_norm, 0, 1) * self.duration_s

    @property
    def aleatoric(self) -> FloatArray:
        """Aleatoric variance in seconds squared, ``(N, 2)``."""
        return self.beta / (self.alpha - 1) * self.duration_s**2

    @property
    def epistemic(self) -> FloatArray:
        """Epistemic variance in seconds squared, ``(N, 2)``."""
        return self.aleatoric / self.nu

    @property
    def evidence(self) -> FloatArray:
        """``2 nu + alpha``, ``(N, 2)``."""
        return 2 * self.nu + self.alpha

    @property
    def scale_s(self) -> FloatArray:
        """Scale of the predictive Student-t in seconds, ``(N, 2)``."""
        variance = self.beta * (1 + self.nu) / (self.nu * self.alpha)
        return np.sqrt(variance) * self.duration_s


def rank(proposals: Proposals, tau: float = 0.0) -> Proposals:
    """Order by foreground probability, lowered where the epistemic uncertainty is high.

    The score is ``p * exp(-tau * z)`` with ``z`` the log epistemic uncertainty, standardised
    over the proposals of the query; ``tau = 0`` ranks by probability alone.
    """
    score = proposals.foreground
    if tau and len(proposals) > 1:
        log_eu = np.log(proposals.epistemic.mean(axis=1) + 1e-12)
        z = (log_eu - log_eu.mean()) / max(float(log_eu.std()), 1e-6)
        score = score * np.exp(-tau * z)
    order = np.argsort(-score, kind="stable")
    return proposals.replace(score=score)[order]


def select(
    proposals: Proposals,
    *,
    ranking: Ranking = "score",
    tau: float = 0.0,
    disagreement: float = 1.0,
    iou: float = NMS_IOU,
    before: int = 1000,
    after: int = 10,
) -> Proposals:
    """Rank, then suppress or fuse overlapping proposals.

    Args:
        proposals: All proposals of a query.
        ranking: ``score`` drops what overlaps a better proposal; ``uncertainty`` does the same
            in the order that ``tau`` gives; ``fusion`` merges it into the better one instead;
            ``voting`` drops it like ``score``, but every overlapping proposal first has a vote
            on the boundaries, see :func:`_vote`.
        tau: See :func:`rank`; unused with ``score`` and ``voting``.
        disagreement: See :func:`_vote`; unused without ``voting``.
        iou: Windows that overlap a selected one by more are suppressed by it.
        before: Proposals that may be selected, the best ones. All that overlap a selected one are
            merged or vote: in a long video the best thousand may be spread over hundreds of
            moments, and each needs the votes of its weaker clips too.
        after: Proposals returned.
    """
    ranked = rank(proposals, 0.0 if ranking in ("score", "voting") else tau)
    owner = suppress(ranked.window_s, iou, after, before)
    keep = np.flatnonzero(owner == np.arange(len(ranked)))
    if ranking == "fusion":
        return _fuse(ranked, owner, keep)
    return _vote(ranked, keep, disagreement) if ranking == "voting" else ranked[keep]


def _vote(ranked: Proposals, keep: NDArray[np.int64], disagreement: float) -> Proposals:
    """Move boundaries of selected proposals to the precision-weighted mean of the neighbours'.

    A clip near the start of a moment knows the start and not the end, and its predictive scale
    says so. Weights are foreground probability over squared scale, for each boundary by itself.

    Neighbours see the same evidence, so adding theirs up, as fusion does, would count it many
    times: aleatoric uncertainty and alpha stay the selected proposal's. But where voters differ,
    the location is uncertain, whatever each of them says by itself. By the law of total variance
    the weighted variance of their votes is added to the epistemic uncertainty, that is, nu falls:
    ``nu = beta / ((alpha - 1) (EU + disagreement * spread))``.

    That law asks for ``disagreement`` 1. But voters are clips of one video under one network: they
    share most of their mistakes, and differ by less than each of them is wrong. How much less is
    a matter of validation.
    """
    selected = ranked[keep]
    votes = window_iou(selected.window_s, ranked.window_s) >= _VOTING_IOU
    votes[np.arange(len(keep)), keep] = True
    # Of a long video few have a vote on anything.
    voters = np.flatnonzero(votes.any(axis=0))
    votes, neighbours = votes[:, voters], ranked[voters]
    weight = neighbours.foreground[:, None] / np.maximum(neighbours.scale_s, 1e-9) ** 2
    weight = np.maximum(weight, 1e-300)
    total = votes.astype(np.float64) @ weight
    window_norm = _ordered(
        (votes @ (weight * neighbours.window_norm)) / total, selected.window_norm
    )
    # Around the mean, so that no difference of two large squares is left.
    offset = neighbours.window_norm[None] - window_norm[:, None]
    spread = np.einsum("kn,nb,knb->kb", votes, weight, offset**2) / total
    aleatoric = selected.beta / (selected.alpha - 1)
    nu = selected.nu / (1 + selected.nu * disagreement * spread / aleatoric)
    return selected.replace(window_norm=window_norm, nu=nu)


def _fuse(ranked: Proposals, owner: NDArray[np.int64], keep: NDArray[np.int64]) -> Proposals:
    """Merge every selected proposal with what it absorbed, by normal-inverse-gamma summation.

    ``nu`` and ``alpha`` add (1/2 more ``alpha`` for each further member), the location is the
    nu-weighted mean, and ``beta`` grows by the disagreement (Ma et al. 2021, arXiv:2111.08456).
    Members weigh in with their foreground probability, relative to the best one: a clip that
    hardly belongs to the moment has little to say about its boundaries. Members of equal
    probability are summed exactly as in the paper.
    """
    selected = ranked[keep]
    loc, nu, alpha, beta = (np.empty((len(keep), 2)) for _ in range(4))
    for row, index in enumerate(keep):
        members = ranked[owner == index]
        best = float(members.foreground.max())
        # Probabilities that underflowed to zero leave nothing to weigh by.
        relative = members.foreground / best if best > 0 else np.ones(len(members))
        weight = relative[:, None]
        evidence = weight * members.nu
        nu[row] = evidence.sum(axis=0)
        loc[row] = (evidence * members.window_norm).sum(axis=0) / nu[row]
        extra = weight.sum(axis=0) - 1
        alpha[row] = (weight * members.alpha).sum(axis=0) + extra / 2
        spread = (evidence * (members.window_norm - loc[row]) ** 2).sum(axis=0)
        beta[row] = (weight * members.beta).sum(axis=0) + spread / 2
    return selected.replace(
        window_norm=_ordered(loc, selected.window_norm), nu=nu, alpha=alpha, beta=beta
    )


def _ordered(moved: FloatArray, unmoved: FloatArray) -> FloatArray:
    """Moved windows; where start and end would change places, the unmoved one.

    Each boundary is averaged by itself. Where neighbours contradict each other so much that the
    start comes after the end, their mean is a window that none of them proposed, and the
    uncertainty of its start would be that of an end.
    """
    crossed = moved[:, :1] > moved[:, 1:]
    result: FloatArray = np.where(crossed, unmoved, moved)
    return result


def mixture_weights(
    foreground: FloatArray, length: FloatArray, power: float, query: Integers, size: Integers
) -> FloatArray:
    """``p^power / length``, summing to 1 a query; probabilities that are all 0 count alike.

    Args:
        foreground: Probabilities of all queries' proposals, ``(T,)``.
        length: In clips, above 0, ``(T,)``: a moment of n clips is proposed n times.
        power: Above 0.
        query: Of each row, rising, ``(T,)``.
        size: Rows of each query, ``(Q,)``.
    """
    first = np.cumsum(size) - size
    with np.errstate(divide="ignore"):
        log_p = np.log(foreground)
    none = np.isneginf(np.maximum.reduceat(log_p, first))
    log_weight = np.where(none[query], 0, power * log_p) - np.log(length)
    # Relative to the best, so that small probabilities do not vanish.
    weight: FloatArray = np.exp(log_weight - np.maximum.reduceat(log_weight, first)[query])
    weight /= np.add.reduceat(weight, first)[query]
    return weight


def heaviest(weight: FloatArray, query: Integers, size: Integers, left_out: float) -> Integers:
    """Rows of all but the lightest proposals, which have a mass of at most ``left_out`` a query."""
    order = np.lexsort((weight, query))
    total = np.cumsum(weight[order])
    before = np.concatenate([[0.0], total])[np.cumsum(size) - size]
    result: Integers = order[total - before[query] > left_out]
    return result


def predictive(columns: dict[str, FloatArray], spread: float) -> dict[str, FloatArray]:
    """Fields of :class:`~demr.answers.mixture.Mixture` for the parameters of each proposal."""
    nu, alpha, beta = (columns[name] for name in ("nu", "alpha", "beta"))
    # Past a thousand durations they say no more, and sums of them stay finite.
    with np.errstate(over="ignore"):
        scale = np.minimum(spread * np.sqrt(beta * (1 + 1 / nu) / alpha), 1e3)
        aleatoric = np.minimum(beta / (alpha - 1), 1e6)
        epistemic = np.minimum(beta / (alpha - 1) / nu, 1e6)
    return {
        "weight": columns["weight"],
        "count": columns["count"],
        "loc": columns["window_norm"],
        "scale": scale,
        "dof": 2 * alpha,
        "aleatoric": aleatoric,
        "epistemic": epistemic,
    }


def neighbourhoods(
    columns: Mapping[str, FloatArray], size: Integers, most: int
) -> NDArray[np.bool_]:
    """Rows that long videos keep, ``(T,)``: those that overlap a window to begin from.

    Others would add to no expected overlap. So time grows with the length of a video, not with
    its square.

    Args:
        columns: As :func:`predictive` gives them.
        size: Rows of each query, ``(Q,)``.
        most: Queries of no more rows keep them all.
    """
    near = np.ones(size.sum(), np.bool_)
    # A draw lies about two scales from its location at most; three keep a margin.
    low, high = (columns["loc"] + [-3, 3] * columns["scale"]).T
    for last, count in zip(np.cumsum(size), size, strict=True):
        if count > most:
            rows = slice(last - count, last)
            window = columns["loc"][rows]
            near[rows] = False
            for start, end in window[different(window, columns["weight"][rows])]:
                near[rows] |= (low[rows] <= end) & (high[rows] >= start)
    return near


def different(window: FloatArray, weight: FloatArray) -> Integers:
    """Rows of the heaviest windows that differ, in the order of rows."""
    order = np.argsort(-weight, kind="stable")
    owner = suppress(window[order], NMS_IOU, _CANDIDATES)
    return np.sort(order[owner == np.arange(len(order))])


def student_quantile(dof: FloatArray, probability: FloatArray) -> FloatArray:
    """Quantiles of the standard Student-t of at least 2 degrees of freedom.

    Interpolated in ``2 / dof``, in which they are smooth: to 1e-4 of the quantile.

    Args:
        dof: ``(...)``.
        probability: ``(K,)``, symmetric around 1/2.

    Returns:
        ``(..., K)``.
    """
    at, table = _student_table(tuple(probability.tolist()))
    result = np.empty((*dof.shape, len(probability)))
    inverse = np.clip(2 / dof, 0, 1)
    half = (len(probability) + 1) // 2
    for k in range(half):
        values = np.interp(inverse, at, table[k])
        result[..., k], result[..., -1 - k] = values, -values
    if len(probability) % 2:
        result[..., half - 1] = 0
    return result


@cache
def _student_table(probability: tuple[float, ...]) -> tuple[FloatArray, FloatArray]:
    from scipy import special

    at = np.linspace(0, 1, 513)
    lower = np.array(probability[: (len(probability) + 1) // 2])[:, None]
    finite = special.stdtrit(2 / at[1:], lower)
    return at, np.concatenate([special.ndtri(lower), finite], axis=1)


def check_proposals(query: Integers, columns: Mapping[str, FloatArray]) -> None:
    """Check that every number of many queries' proposals is finite and of its range.

    Args:
        query: Of each row, ``(T,)``.
        columns: Fields of :class:`Proposals`, ``(T,)`` or ``(T, 2)``.

    Raises:
        InputError: Naming the first query that has another.
    """
    limits = {"nu": (0, np.inf), "alpha": (1, np.inf), "beta": (0, np.inf)}
    for name, column in columns.items():
        low, high = limits.get(name, (-np.inf, np.inf))
        good = np.isfinite(column) & (column > low) & (column < high)
        if name == "foreground":
            good &= (column >= 0) & (column <= 1)
        if not good.all():
            bad = np.argwhere(~good)[0]
            expected = "probabilities" if name == "foreground" else f"finite numbers above {low}"
            raise unusable(int(query[bad[0]]), f"{name}: {expected}", str(column[tuple(bad)]))


def unusable(query: int, expected: str, got: str) -> InputError:
    """The complaint about proposals that no answer can be made of."""
    return InputError(
        f"proposals of query {query}",
        expected=expected,
        got=got,
        remedy="predict it again; if the weights have diverged, train with a lower learning rate",
    )

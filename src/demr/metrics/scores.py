"""Proper scores of mixtures of Student-t's and of intervals, and how far coverage can be trusted.

A mixture has a weighted Student-t for every entry of the last axis; one Student-t is a mixture of
one. Weights are divided by their sum, so that a weight of zero fills shorter mixtures up.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from demr.metrics.uncertainty import distance_student_t, nll_student_t

FloatArray = npt.NDArray[np.float64]

# Central intervals of these levels make up the quantile calibration error: torch-uncertainty's.
QUANTILE_LEVELS: tuple[float, ...] = tuple(np.linspace(0.05, 0.95, 15).tolist())
# Tails of fewer degrees of freedom are too heavy for the quadrature; evidential ones have over 2.
LEAST_DOF = 1.05

# Gauss-Lobatto nodes, which hold the ends of a panel, and a cut that is not in its middle: with
# Gauss-Legendre's and halves, a narrow component beside an end or the middle lies between the same
# nodes of a panel and of its halves, and both agree on a wrong area.
_POLYNOMIAL = np.polynomial.Legendre.basis(9)
_NODES = np.r_[-1.0, np.sort(np.real(_POLYNOMIAL.deriv().roots())), 1.0]
_NODE_WEIGHTS = 2 / (90 * _POLYNOMIAL(_NODES) ** 2)
_CUT = 0.42
_MOST_CUTS = 90
_MOST_AT_ONCE = 1 << 20  # values of the distribution function in memory together
_NEWTON_STEPS = 100


@dataclass(frozen=True)
class _Mixture:
    """Checked parameters, one mixture a row, ``(N, K)`` each, and the shape callers gave."""

    loc: FloatArray
    scale: FloatArray
    dof: FloatArray
    weight: FloatArray
    shape: tuple[int, ...]

    def cdf(self, x: FloatArray, rows: npt.NDArray[np.int64], sign: FloatArray) -> FloatArray:
        """Probability below ``x``, ``(P, n)``, of the mixtures of ``rows``, ``(P,)``.

        Above it where ``sign``, ``(P,)``, is -1: far out on the right 1 - F has lost its digits.
        """
        z = (x[..., None] - self.loc[rows, None]) / self.scale[rows, None]
        below = special.stdtr(self.dof[rows, None], sign[:, None, None] * z)
        result: FloatArray = np.einsum("pnk,pk->pn", below, self.weight[rows])
        return result


def nll_mixture(
    truth: npt.ArrayLike,
    loc: npt.ArrayLike,
    scale: npt.ArrayLike,
    dof: npt.ArrayLike,
    weight: npt.ArrayLike,
) -> FloatArray:
    """Negative log-density of a mixture of Student-t's.

    Args:
        truth: ``(...)``.
        loc: Location of each component, ``(..., K)``; broadcast, like all that follow.
        scale: Positive.
        dof: Degrees of freedom, positive.
        weight: At least 0, not all 0.

    Returns:
        ``(...)``, in nats.

    Raises:
        ValueError: If a parameter is not finite or leaves its range.
    """
    y, mixture = _checked(truth, loc, scale, dof, weight)
    with np.errstate(divide="ignore"):
        log_weight = np.log(mixture.weight)
    nll = nll_student_t(y[:, None], mixture.loc, mixture.scale, mixture.dof)
    return np.asarray(-special.logsumexp(log_weight - nll, axis=-1)).reshape(mixture.shape)


def cdf_mixture(
    value: npt.ArrayLike,
    loc: npt.ArrayLike,
    scale: npt.ArrayLike,
    dof: npt.ArrayLike,
    weight: npt.ArrayLike,
) -> FloatArray:
    """Probability that a mixture of Student-t's lies below a value.

    At the truth this is the probability integral transform, uniform where the mixture is right.
    Arguments and errors are those of :func:`nll_mixture`.
    """
    x, mixture = _checked(value, loc, scale, dof, weight)
    return mixture.cdf(x[:, None], np.arange(len(x)), np.ones(len(x))).reshape(mixture.shape)


def quantile_mixture(
    prob: npt.ArrayLike,
    loc: npt.ArrayLike,
    scale: npt.ArrayLike,
    dof: npt.ArrayLike,
    weight: npt.ArrayLike,
) -> FloatArray:
    """Value below which a mixture of Student-t's lies with a probability.

    Newton's method, held inside the quantiles of the single components; the probability at the
    result is right to 1e-10, or the result to its last digits.

    Args:
        prob: Strictly between 0 and 1, ``(...)``.
        loc: As of :func:`nll_mixture`, likewise those that follow.
        scale: Positive.
        dof: Positive.
        weight: At least 0, not all 0.

    Raises:
        ValueError: If a parameter is not finite or leaves its range.
    """
    p, mixture = _checked(prob, loc, scale, dof, weight)
    if not ((p > 0) & (p < 1)).all():
        raise ValueError("every probability must lie strictly between 0 and 1")
    each = mixture.loc + mixture.scale * special.stdtrit(mixture.dof, p[:, None])
    used = mixture.weight > 0
    low = np.where(used, each, np.inf).min(axis=1)
    high = np.where(used, each, -np.inf).max(axis=1)
    x: FloatArray = (low + high) / 2
    rows = np.arange(len(x))
    for _ in range(_NEWTON_STEPS):
        above = mixture.cdf(x[rows, None], rows, np.ones(len(rows)))[:, 0] - p[rows]
        low[rows] = np.where(above < 0, x[rows], low[rows])
        high[rows] = np.where(above > 0, x[rows], high[rows])
        width = high[rows] - low[rows]
        rough = (np.abs(above) > 1e-10) & (width > 1e-14 * (1 + np.abs(x[rows])))
        rows, above = rows[rough], above[rough]
        if not rows.size:
            break
        parts = (x[rows, None], mixture.loc[rows], mixture.scale[rows], mixture.dof[rows])
        density = (mixture.weight[rows] * np.exp(-nll_student_t(*parts))).sum(axis=1)
        step = x[rows] - above / np.maximum(density, 1e-300)
        inside = (step > low[rows]) & (step < high[rows])
        x[rows] = np.where(inside, step, (low[rows] + high[rows]) / 2)
    return x.reshape(mixture.shape)


def crps_mixture(
    truth: npt.ArrayLike,
    loc: npt.ArrayLike,
    scale: npt.ArrayLike,
    dof: npt.ArrayLike,
    weight: npt.ArrayLike,
    *,
    tolerance: float = 1e-9,
) -> FloatArray:
    """Continuous ranked probability score of a mixture of Student-t's.

    It is ``E|X - y| - E|X - X'| / 2``. The first term is a weighted sum of closed forms. The second
    is the integral of ``F (1 - F)``, which has none where components differ: it is taken by
    Gauss-Lobatto quadrature over panels that are cut in two until that moves a panel by no more
    than ``tolerance`` times the mixture's size (mean deviation of locations plus mean scale). The
    whole error is a few times that: below 1e-7 of the size against every reference tried.

    Args:
        truth: ``(...)``.
        loc: As of :func:`nll_mixture`, likewise those that follow.
        scale: Positive.
        dof: Above 1.05.
        weight: At least 0, not all 0.
        tolerance: Of the quadrature, at least 1e-11: rounding hides what is less.

    Returns:
        ``(...)``, in the unit of ``truth``; 0 is best.

    Raises:
        ValueError: If a parameter is not finite or leaves its range.

    Reference:
        Gneiting and Raftery 2007, Strictly Proper Scoring Rules, Prediction, and Estimation,
        equation 21.
    """
    if not tolerance >= 1e-11:
        raise ValueError(f"tolerance must be at least 1e-11, got {tolerance}")
    y, mixture = _checked(truth, loc, scale, dof, weight, least_dof=LEAST_DOF)
    distance = distance_student_t(y[:, None], mixture.loc, mixture.scale, mixture.dof)
    to_truth = (mixture.weight * distance).sum(axis=1)
    score: FloatArray = to_truth - _half_difference(mixture, tolerance)
    return score.reshape(mixture.shape)


def _half_difference(mixture: _Mixture, tolerance: float) -> FloatArray:
    """Half the mean distance of two draws, the integral of ``F (1 - F)``, of each mixture."""
    used = mixture.weight > 0
    reach = 4 * mixture.scale
    low = np.where(used, mixture.loc - reach, np.inf).min(axis=1)
    high = np.where(used, mixture.loc + reach, -np.inf).max(axis=1)
    center, half = (low + high) / 2, (high - low) / 2
    mean = (mixture.weight * mixture.loc).sum(axis=1, keepdims=True)
    size = (mixture.weight * (np.abs(mixture.loc - mean) + mixture.scale)).sum(axis=1)
    # x = center + half sinh(v): tails x^-dof become exp(-(dof - 1) v), which ends where it is
    # below any tolerance.
    heaviest = np.where(used, mixture.dof, np.inf).min(axis=1)
    end = np.minimum(36 / np.minimum(heaviest - 1, 6), 700)
    inner = np.linspace(-1, 1, 5) * 1.5
    outer = np.array([0.12, 0.35, 1.0])[None] * (end[:, None] - 1.5) + 1.5
    edges = np.concatenate([-outer[:, ::-1], np.tile(inner, (len(end), 1)), outer], axis=1)

    def panel(rows: npt.NDArray[np.int64], a: FloatArray, b: FloatArray) -> FloatArray:
        values = np.empty(len(rows))
        step = max(1, _MOST_AT_ONCE // (len(_NODES) * mixture.loc.shape[1]))
        for first in range(0, len(rows), step):
            part = slice(first, first + step)
            row, mid, arm = rows[part], (a[part] + b[part]) / 2, (b[part] - a[part]) / 2
            v = mid[:, None] + arm[:, None] * _NODES
            x = center[row, None] + half[row, None] * np.sinh(v)
            beyond = mixture.cdf(x, row, np.where(mid > 0, -1.0, 1.0))
            area = (beyond * (1 - beyond) * np.cosh(v)) @ _NODE_WEIGHTS
            values[part] = half[row] * arm * area
        return values

    rows = np.repeat(np.arange(len(edges)), edges.shape[1] - 1)
    a, b = edges[:, :-1].ravel(), edges[:, 1:].ravel()
    whole, total = panel(rows, a, b), np.zeros(len(edges))
    for cut in range(_MOST_CUTS):
        middle = a + _CUT * (b - a)
        left, right = panel(rows, a, middle), panel(rows, middle, b)
        rough = np.abs(left + right - whole) > tolerance * size[rows]
        rough &= cut + 1 < _MOST_CUTS
        total += np.bincount(rows[~rough], (left + right)[~rough], minlength=len(total))
        if not rough.any():
            break
        rows = np.tile(rows[rough], 2)
        a, b = np.concatenate([a[rough], middle[rough]]), np.concatenate([middle[rough], b[rough]])
        whole = np.concatenate([left[rough], right[rough]])
    return total


def interval_score(
    low: npt.ArrayLike, high: npt.ArrayLike, truth: npt.ArrayLike, level: float
) -> FloatArray:
    """Winkler's interval score, elementwise, arguments broadcast: least for the true quantiles.

    The width, and ``2 / (1 - level)`` times the distance of a truth that lies outside.

    Args:
        low: Lower ends of central intervals.
        high: Upper ends.
        truth: What came true.
        level: What the intervals promise, strictly between 0 and 1.

    Returns:
        In the unit of ``truth``; 0 is best.

    Raises:
        ValueError: If the level leaves 0..1 or an interval ends before it begins.

    Reference:
        Winkler 1972; Gneiting and Raftery 2007, section 6.2.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie strictly between 0 and 1, got {level}")
    lower, upper, y = (np.asarray(x, dtype=np.float64) for x in (low, high, truth))
    if (lower > upper).any():
        raise ValueError("no interval may end before it begins")
    outside = np.maximum(lower - y, 0) + np.maximum(y - upper, 0)
    return np.asarray(upper - lower + 2 / (1 - level) * outside)


def coverage_width_curve(
    low: npt.ArrayLike, high: npt.ArrayLike, truth: npt.ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Coverage and mean width of intervals of several levels: one is worth nothing by itself.

    Args:
        low: Lower ends, ``(levels, ...)``.
        high: Upper ends, likewise.
        truth: ``(...)``.

    Returns:
        Share of truths inside (ends included) and mean width, ``(levels,)`` each.

    Raises:
        ValueError: If shapes differ or nothing is given.
    """
    lower, upper, y = (np.asarray(x, dtype=np.float64) for x in (low, high, truth))
    if lower.shape != upper.shape or lower.shape[1:] != y.shape or not lower.size:
        raise ValueError(f"shapes differ: {lower.shape}, {upper.shape}, {y.shape}")
    inside = ((lower <= y) & (y <= upper)).reshape(len(lower), -1)
    return inside.mean(axis=1), (upper - lower).reshape(len(lower), -1).mean(axis=1)


def quantile_calibration_error(
    pit: npt.ArrayLike, *, levels: npt.ArrayLike = QUANTILE_LEVELS
) -> float:
    """How far central intervals are from covering what they promise, on average over levels.

    The central interval of level a holds a truth whose probability integral transform u has
    ``|2 u - 1| <= a``; of each level the coverage's distance from it counts.

    Args:
        pit: Probability below each truth (:func:`cdf_mixture`), 0..1, any shape.
        levels: Of the intervals, 0..1; 15 from 0.05 to 0.95 as in torch-uncertainty.

    Returns:
        0..1; 0 is best, and about 0.4 / sqrt(N) is chance for N truths of a perfect prediction.

    Raises:
        ValueError: If nothing is given or a number leaves 0..1.
    """
    u, promised = np.ravel(np.asarray(pit, float)), np.ravel(np.asarray(levels, float))
    for name, values in (("pit", u), ("levels", promised)):
        if not values.size or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name} must be at least one number in 0..1")
    covered = np.mean(np.abs(2 * u - 1) <= promised[:, None], axis=1)
    return float(np.abs(covered - promised).mean())


def worst_slab_coverage(
    covered: npt.ArrayLike,
    covariates: npt.ArrayLike,
    *,
    share: float = 0.1,
    directions: int = 1000,
    search_share: float = 0.25,
    seed: int = 0,
) -> float:
    """Least coverage of a slab of the covariates that holds at least a share of the queries.

    A slab is ``a <= v x <= b`` for a direction v. The slab of least coverage is sought on one part
    of the queries and its coverage is measured on the others, since the worst of many is bad by
    chance alone. Covariates are standardised, so that random directions favour none.

    Args:
        covered: Whether each truth lies in its interval, ``(N,)``.
        covariates: ``(N, C)``.
        share: Least share of the queries in a slab, above 0, at most 1.
        directions: How many random ones are tried, beside the axes.
        search_share: Share of the queries on which the slab is sought, 0..1. With 1 the slab's
            coverage there is returned, which is too low by chance.
        seed: Of directions and parts.

    Returns:
        0..1; NaN where the slab holds none of the other queries.

    Raises:
        ValueError: If shapes differ, nothing is given, or a number leaves its range.

    Reference:
        Cauchois, Gupta and Duchi 2021, Knowing what You Know, section 4; the two parts are those
        of Romano, Sesia and Candes 2020, Classification with Valid and Adaptive Coverage.
    """
    hit, x = np.asarray(covered, dtype=np.float64), np.asarray(covariates, dtype=np.float64)
    if hit.ndim != 1 or x.ndim != 2 or len(x) != len(hit) or not x.size:
        raise ValueError(f"covered must be (N,) and covariates (N, C), got {hit.shape}, {x.shape}")
    if not np.isfinite(x).all() or not np.isin(hit, (0, 1)).all():
        raise ValueError("covered must be true or false, and every covariate finite")
    if not 0 < share <= 1 or not 0 < search_share <= 1 or directions < 0:
        raise ValueError("share and search_share lie above 0 and at most at 1, directions from 0")
    greatest = np.abs(x).max(axis=0)
    x = x / np.where(greatest > 0, greatest, 1)  # first, so that no square overflows
    spread = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1)
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((directions, x.shape[1]))
    lines = np.concatenate([np.eye(x.shape[1]), drawn])
    lines /= np.linalg.norm(lines, axis=1, keepdims=True)
    order = rng.permutation(len(hit))
    cut = max(1, round(search_share * len(hit)))
    searched, held_out = order[:cut], order[cut:]
    slabs = [_worst_slab(x[searched] @ line, hit[searched], share) for line in lines]
    coverage, low, high = (np.array(column) for column in zip(*slabs, strict=True))
    worst = int(coverage.argmin())
    if not held_out.size:
        return float(coverage[worst])
    place = x[held_out] @ lines[worst]
    inside = (low[worst] <= place) & (place <= high[worst])
    return float(hit[held_out][inside].mean()) if inside.any() else float("nan")


def _worst_slab(place: FloatArray, hit: FloatArray, share: float) -> tuple[float, float, float]:
    """Coverage and ends of the worst interval on a line that holds at least a share of the points.

    The least mean of a run of at least n points by Dinkelbach's iteration: the run of least sum
    over ``hit - mean`` has a lower mean, until none has. Points at the same place stay together.
    """
    order = np.argsort(place, kind="stable")
    place, hit = place[order], hit[order]
    count = len(hit)
    least = max(1, int(np.ceil(share * count - 1e-9)))
    cut = np.flatnonzero(np.r_[True, np.diff(place) > 0, True])  # where a slab may begin or end
    # For each end, the last beginning that leaves enough points.
    last = np.searchsorted(cut, cut - least, side="right") - 1
    ends = np.flatnonzero(last >= 0)
    last = last[ends]
    summed = np.r_[0, hit.cumsum()][cut]
    first_row, last_row = 0, len(cut) - 1
    mean = summed[-1] / count
    while True:
        value = summed - mean * cut
        highest = np.maximum.accumulate(value)
        gain = value[ends] - highest[last]
        best = int(gain.argmin())
        if gain[best] >= -1e-9:
            break
        last_row = int(ends[best])
        first_row = int(value[: last[best] + 1].argmax())
        mean = (summed[last_row] - summed[first_row]) / (cut[last_row] - cut[first_row])
    return float(mean), float(place[cut[first_row]]), float(place[cut[last_row] - 1])


def _checked(
    value: npt.ArrayLike,
    loc: npt.ArrayLike,
    scale: npt.ArrayLike,
    dof: npt.ArrayLike,
    weight: npt.ArrayLike,
    *,
    least_dof: float = 0.0,
) -> tuple[FloatArray, _Mixture]:
    """One value a mixture, ``(N,)``, and the mixtures."""
    given = np.asarray(value, np.float64)[..., None]
    parts = (given, *(np.asarray(x, np.float64) for x in (loc, scale, dof, weight)))
    arrays = np.broadcast_arrays(*parts)
    if not arrays[0].shape[-1]:
        raise ValueError(f"a mixture needs at least one component, got shape {arrays[0].shape}")
    for name, values in zip(("value", "loc", "scale", "dof", "weight"), arrays, strict=True):
        if not np.isfinite(values).all():
            raise ValueError(f"every {name} must be finite")
    y, m, s, nu, w = (values.reshape(-1, values.shape[-1]) for values in arrays)
    if not (s > 0).all():
        raise ValueError("every scale must be positive")
    if not (nu > least_dof).all():
        raise ValueError(f"there must be more than {least_dof:g} degrees of freedom everywhere")
    total = w.sum(axis=-1, keepdims=True)
    if (w < 0).any() or not (total > 0).all():
        raise ValueError("weights must be at least 0, and not all 0")
    return y[:, 0], _Mixture(m, s, nu, w / total, arrays[0].shape[:-1])

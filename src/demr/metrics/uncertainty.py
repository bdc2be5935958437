"""How well uncertainty knows the error: ranking, rejection, probability and interval metrics."""

import numpy as np
import numpy.typing as npt
from scipy import special

FloatArray = npt.NDArray[np.float64]


def uncertainty_metrics(
    error: npt.ArrayLike,
    aleatoric: npt.ArrayLike,
    epistemic: npt.ArrayLike,
    evidence: npt.ArrayLike | None = None,
    *,
    scale: npt.ArrayLike | None = None,
    bins: int = 10,
) -> dict[str, float]:
    """Agreement of error with each measure of uncertainty.

    The measures are ``EU`` (epistemic), ``AU`` (aleatoric), ``AU+EU`` (the predictive variance,
    which unlike EU alone the likelihood identifies), ``-evidence`` and ``scale`` (of the
    Student-t: where its tails are heavy, the variance says little about the usual error).

    Args:
        error: Of each answer, at least 0, ``(N,)``: mean boundary error or 1 - IoU.
        aleatoric: ``(N,)``, variances in one unit with ``epistemic``.
        epistemic: ``(N,)``.
        evidence: ``(N,)``; None leaves it out.
        scale: Likewise.
        bins: For the consistency.

    Returns:
        For each measure m: ``spearman/m`` (ties share their mean rank; NaN if either side is
        constant or N < 2), ``AURC/m`` (mean error over all coverages, the unit of ``error``),
        ``AUSE/m`` (AURC above that of ordering by the error itself, divided by the mean error;
        both are means over the N coverages, where some libraries integrate by trapezoids, which
        differs by half of the curve's ends over N),
        ``consistency/m`` (share of pairs of equal-mass bins whose mean errors are ordered as
        their uncertainties; ties count half, 0.5 is chance).

    Raises:
        ValueError: If shapes differ, N is 0, or a number is not finite or an error negative.
    """
    err = _vector(error, "error")
    if err.min() < 0:
        raise ValueError(f"error[{int(err.argmin())}] must be at least 0, got {err.min()}")
    au = _vector(aleatoric, "aleatoric", err.size)
    eu = _vector(epistemic, "epistemic", err.size)
    measures = {"EU": eu, "AU": au, "AU+EU": au + eu}
    if evidence is not None:
        measures["-evidence"] = -_vector(evidence, "evidence", err.size)
    if scale is not None:
        measures["scale"] = _vector(scale, "scale", err.size)
    oracle = float(risk_coverage_curve(err, err)[1].mean())
    mean_error = float(err.mean())
    metrics = {}
    for name, measure in measures.items():
        area = float(risk_coverage_curve(err, measure)[1].mean())
        metrics[f"spearman/{name}"] = spearman(err, measure)
        metrics[f"AURC/{name}"] = area
        metrics[f"AUSE/{name}"] = (area - oracle) / mean_error if mean_error > 0 else 0.0
        _, binned, _ = consistency_bins(err, measure, bins=bins)
        metrics[f"consistency/{name}"] = _ordered_share(binned)
    return metrics


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Rank correlation; ties share their mean rank.

    Returns:
        -1..1, or NaN if a side is constant or shorter than 2: no order, no correlation.

    Raises:
        ValueError: If shapes differ, nothing is given, or a number is not finite.
    """
    first = _vector(a, "a")
    x = _mean_ranks(first)
    y = _mean_ranks(_vector(b, "b", first.size))
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 0 else float("nan")


def risk_coverage_curve(
    error: npt.ArrayLike, uncertainty: npt.ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Mean error of the k most certain answers, for k = 1..N.

    Answers of equal uncertainty enter with their mean error, which is what a random order
    among them gives on average: a constant uncertainty has a flat curve.

    Returns:
        Coverage k/N and risk, each ``(N,)``.

    Raises:
        ValueError: If shapes differ, nothing is given, or a number is not finite.
    """
    err = _vector(error, "error")
    measure = _vector(uncertainty, "uncertainty", err.size)
    _, group, count = np.unique(measure, return_inverse=True, return_counts=True)
    mean = np.bincount(group, weights=err) / count
    kept = np.arange(1, err.size + 1)
    return kept / err.size, np.repeat(mean, count).cumsum() / kept


def consistency_bins(
    error: npt.ArrayLike, uncertainty: npt.ArrayLike, *, bins: int = 10
) -> tuple[FloatArray, FloatArray, npt.NDArray[np.int64]]:
    """Mean error against mean uncertainty in bins of equal mass.

    Equal uncertainties are never parted, so there may be fewer bins than asked for.

    Returns:
        Mean uncertainty (rising), mean error and count of each non-empty bin, ``(M,)`` each.

    Raises:
        ValueError: If shapes differ, nothing is given, a number is not finite, or bins < 1.
    """
    err = _vector(error, "error")
    measure = _vector(uncertainty, "uncertainty", err.size)
    count, mean_uncertainty, mean_error = _bin_means(_mass_bins(measure, bins), measure, err)
    return mean_uncertainty, mean_error, count


def auroc(score_positive: npt.ArrayLike, score_negative: npt.ArrayLike) -> float:
    """Probability that a positive scores above a negative; ties count half.

    Raises:
        ValueError: If a side is empty or a score is not finite.

    >>> auroc([3, 2], [2, 1])
    0.875
    """
    positive = _vector(score_positive, "score_positive")
    negative = _vector(score_negative, "score_negative")
    ranks = _mean_ranks(np.concatenate([positive, negative]))
    above = ranks[: positive.size].sum() - positive.size * (positive.size + 1) / 2
    return float(above / (positive.size * negative.size))


def brier(prob: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Mean squared difference of a probability and what came true (0 or 1)."""
    p, y = _probabilities(prob, label)
    return float(np.mean((p - y) ** 2))


def ece(
    prob: npt.ArrayLike,
    label: npt.ArrayLike,
    *,
    bins: int = 10,
    adaptive: bool = False,
) -> float:
    """Expected calibration error of probabilities of a binary event.

    Args:
        prob: ``(N,)``, 0..1.
        label: ``(N,)``, 0 or 1.
        bins: How many; of equal width over 0..1, closed on the left, the last on both sides.
        adaptive: Bins of equal mass instead; equal probabilities are never parted.

    Returns:
        Mean over answers of ``|mean probability - share that came true|`` of their bin.

    Raises:
        ValueError: If shapes differ, nothing is given, a probability leaves 0..1, a label is
            neither 0 nor 1, or bins < 1.
    """
    p, y = _probabilities(prob, label)
    if adaptive:
        index = _mass_bins(p, bins)
    else:
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins}")
        index = np.minimum((p * bins).astype(np.int64), bins - 1)
    count, mean_prob, share = _bin_means(index, p, y)
    return float((count * np.abs(mean_prob - share)).sum() / p.size)


def interval_coverage(
    low: npt.ArrayLike, high: npt.ArrayLike, truth: npt.ArrayLike
) -> dict[str, float]:
    """Share of true boundaries inside their intervals (ends included).

    Args:
        low: Lower ends for start and end, ``(N, 2)``.
        high: Upper ends, ``(N, 2)``.
        truth: True start and end, ``(N, 2)``.

    Returns:
        Fractions 0..1: ``start``, ``end``, their ``mean`` (a boundary drawn at random) and
        ``joint`` (both at once). An interval of level 0.9 promises ``start`` and ``end`` each,
        not ``joint``.

    Raises:
        ValueError: If shapes differ, nothing is given, or a truth is not finite.
    """
    lower, upper, true = _pairs(low, "low"), _pairs(high, "high"), _pairs(truth, "truth")
    if not lower.shape == upper.shape == true.shape:
        raise ValueError(f"shapes differ: {lower.shape}, {upper.shape}, {true.shape}")
    if not np.isfinite(true).all():
        row = int(np.flatnonzero(~np.isfinite(true).all(axis=1))[0])
        raise ValueError(f"truth[{row}] must be finite, got {true[row].tolist()}")
    inside = (lower <= true) & (true <= upper)
    start, end = inside.mean(axis=0).tolist()
    return {
        "start": start,
        "end": end,
        "mean": (start + end) / 2,
        "joint": float(inside.all(axis=1).mean()),
    }


def interval_width(low: npt.ArrayLike, high: npt.ArrayLike) -> dict[str, float]:
    """Mean width of intervals of ``start``, of ``end`` and of both (``mean``), in their unit.

    Args:
        low: ``(N, 2)``.
        high: ``(N, 2)``.

    Raises:
        ValueError: If shapes differ or nothing is given.
    """
    lower, upper = _pairs(low, "low"), _pairs(high, "high")
    if lower.shape != upper.shape:
        raise ValueError(f"shapes differ: {lower.shape}, {upper.shape}")
    start, end = (upper - lower).mean(axis=0).tolist()
    return {"start": start, "end": end, "mean": (start + end) / 2}


def nll_student_t(
    truth: npt.ArrayLike, loc: npt.ArrayLike, scale: npt.ArrayLike, dof: npt.ArrayLike
) -> FloatArray:
    """Negative log-density of Student's t, elementwise, arguments broadcast.

    Raises:
        ValueError: If a scale or a number of degrees of freedom is not positive.
    """
    z, s, nu = _standardise(truth, loc, scale, dof, least_dof=0.0)
    # betaln keeps the two log-gammas from cancelling at many degrees of freedom.
    log_norm = special.betaln(0.5, nu / 2) + 0.5 * np.log(nu) + np.log(s)
    # z**2 overflows for a hopeless residual; logaddexp of logarithms does not.
    with np.errstate(divide="ignore"):
        log_square = 2 * np.log(np.abs(z)) - np.log(nu)
    result: FloatArray = log_norm + (nu + 1) / 2 * np.logaddexp(0.0, log_square)
    return result


def crps_student_t(
    truth: npt.ArrayLike, loc: npt.ArrayLike, scale: npt.ArrayLike, dof: npt.ArrayLike
) -> FloatArray:
    """Continuous ranked probability score of Student's t, elementwise, arguments broadcast.

    In the unit of ``truth``; 0 is best. Closed form.

    Raises:
        ValueError: If a scale is not positive or there is at most 1 degree of freedom (the
            score is then infinite).

    Reference:
        Jordan et al. 2019, Evaluating Probabilistic Forecasts with scoringRules, appendix A.
    """
    distance = distance_student_t(truth, loc, scale, dof)
    _, s, nu = _standardise(truth, loc, scale, dof, least_dof=1.0)
    log_ratio = special.betaln(0.5, nu - 0.5) - 2 * special.betaln(0.5, nu / 2)
    result: FloatArray = distance - s * (2 * np.sqrt(nu) / (nu - 1) * np.exp(log_ratio))
    return result


def distance_student_t(
    truth: npt.ArrayLike, loc: npt.ArrayLike, scale: npt.ArrayLike, dof: npt.ArrayLike
) -> FloatArray:
    """Mean distance of a Student-t from the truth, elementwise, arguments broadcast.

    In the unit of ``truth``; the first half of the score, which a mixture's has, too.

    Raises:
        ValueError: If a scale is not positive or there is at most 1 degree of freedom (the
            distance is then infinite).
    """
    z, s, nu = _standardise(truth, loc, scale, dof, least_dof=1.0)
    below = special.stdtr(nu, z)
    tail = 1.0 + z**2 / nu
    log_norm = special.betaln(0.5, nu / 2) + 0.5 * np.log(nu)
    density = np.exp(-log_norm - (nu + 1) / 2 * np.log(tail))
    result: FloatArray = s * (z * (2 * below - 1) + 2 * density * tail * nu / (nu - 1))
    return result


def _standardise(
    truth: npt.ArrayLike,
    loc: npt.ArrayLike,
    scale: npt.ArrayLike,
    dof: npt.ArrayLike,
    *,
    least_dof: float,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    y, m, s, nu = np.broadcast_arrays(
        *(np.asarray(x, dtype=np.float64) for x in (truth, loc, scale, dof))
    )
    if not (s > 0).all():
        raise ValueError("every scale must be positive")
    if not (nu > least_dof).all():
        raise ValueError(f"there must be more than {least_dof:g} degrees of freedom everywhere")
    return (y - m) / s, s, nu


def _vector(values: npt.ArrayLike, name: str, size: int | None = None) -> FloatArray:
    out = np.asarray(values, dtype=np.float64)
    if out.ndim != 1 or out.size == 0:
        raise ValueError(f"{name} must be a list of at least one number, got shape {out.shape}")
    if size is not None and out.size != size:
        raise ValueError(f"{name} must have {size} entries, got {out.size}")
    bad = np.flatnonzero(~np.isfinite(out))
    if bad.size:
        raise ValueError(f"{name}[{bad[0]}] must be finite, got {out[bad[0]]}")
    return out


def _pairs(values: npt.ArrayLike, name: str) -> FloatArray:
    out = np.asarray(values, dtype=np.float64)
    if out.ndim != 2 or out.shape[1] != 2 or not len(out):
        raise ValueError(f"{name} must be (N, 2) with N >= 1, got {out.shape}")
    return out


def _probabilities(prob: npt.ArrayLike, label: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    p = _vector(prob, "prob")
    y = _vector(label, "label", p.size)
    bad = np.flatnonzero((p < 0) | (p > 1))
    if bad.size:
        raise ValueError(f"prob[{bad[0]}] must lie in 0..1, got {p[bad[0]]}")
    bad = np.flatnonzero((y != 0) & (y != 1))
    if bad.size:
        raise ValueError(f"label[{bad[0]}] must be 0 or 1, got {y[bad[0]]}")
    return p, y


def _mean_ranks(values: FloatArray) -> FloatArray:
    # As scipy.stats.rankdata, whose module takes half a second to import.
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: FloatArray = (count.cumsum() - (count - 1) / 2)[group]
    return ranks


def _mass_bins(values: FloatArray, bins: int) -> npt.NDArray[np.int64]:
    """Bin of each value by its mean rank, so that equal values share a bin."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    share = (_mean_ranks(values) - 0.5) / values.size
    return np.minimum((share * bins).astype(np.int64), bins - 1)


def _bin_means(
    index: npt.NDArray[np.int64], a: FloatArray, b: FloatArray
) -> tuple[npt.NDArray[np.int64], FloatArray, FloatArray]:
    count = np.bincount(index)
    kept = count > 0
    total_a, total_b = np.bincount(index, weights=a), np.bincount(index, weights=b)
    size = count[kept].astype(np.int64)
    return size, total_a[kept] / size, total_b[kept] / size


def _ordered_share(values: FloatArray) -> float:
    """Share of pairs i < j with ``values[i] < values[j]``, ties half; NaN without a pair."""
    i, j = np.triu_indices(values.size, k=1)
    if not i.size:
        return float("nan")
    return float(np.mean((np.sign(values[j] - values[i]) + 1) / 2))

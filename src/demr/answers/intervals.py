"""Intervals of start and end that contain the truth as often as their level says."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy import special

from demr.answers.presence import (
    LEAST_POINTS,
    FloatArray,
    Standardizer,
    checked_covariates,
    finite,
    floats,
    linear,
    numbers,
)
from demr.errors import InputError

LEVELS: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.99)
LEAST_POINTS_FOR_COVARIATES = 100
FOLDS = 5
Integers = npt.NDArray[np.int64]
# That the intervals hold at least as often as they say, over the draw of the calibration queries.
CONFIDENCE = 0.95
# Finer than any frame: keeps the logarithm of an exact hit finite without moving a quantile.
LEAST_RESIDUAL_S = 1e-3


@dataclass(frozen=True)
class IntervalCalibrator:
    """Intervals of start and end that contain the truth as often as their level says.

    The Student-t interval of the NIG predictive distribution is multiplied by a factor that
    depends on covariates: evidential moments order errors well, but their size is off, and a
    confidently wrong moment is off by a different factor than a right one. The factor's
    logarithm is a linear quantile regression, followed by a conformal shift that makes the
    coverage of a boundary at least the level with 95 % confidence. Approximately: the shift is
    cross-fitted, and that queries of one video resemble each other is allowed for by how much
    they do (:func:`effective_count`).

    Attributes:
        scaler: Of the covariates.
        levels: At which factors were fitted, rising; a level that the labels could not support
            is not among them.
        weights: ``[level][boundary][1 + C]``, intercept first.
        shift: ``[level][boundary]``, added to the regression.
        bounds: ``[level][boundary]``, least and greatest log factor the regression may give:
            those seen in fitting.
        points: Number of queries it was fitted on.

    Reference:
        Romano et al. 2019, Conformalized Quantile Regression, arXiv:1905.03222; cross-fitted
        as Vovk 2015, arXiv:1208.0806, so that every query serves both purposes.
    """

    scaler: Standardizer
    levels: tuple[float, ...]
    weights: tuple[tuple[tuple[float, ...], ...], ...]
    shift: tuple[tuple[float, ...], ...]
    bounds: tuple[tuple[tuple[float, float], ...], ...]
    points: int

    @classmethod
    def fit(
        cls,
        residual: npt.ArrayLike,
        scale: npt.ArrayLike,
        dof: npt.ArrayLike,
        covariates: npt.ArrayLike,
        names: Sequence[str],
        videos: Sequence[str] | None = None,
        *,
        levels: Sequence[float] = LEVELS,
        seed: int = 0,
    ) -> Self:
        """Fit on queries whose truth is known, wrong answers included.

        With fewer than 100 queries covariates are ignored: one factor for all, by the conformal
        quantile alone. Where there are too few for a level with 95 % confidence (90 % of fewer
        than 29), the level holds on average over calibrations; where there are too few for that
        (90 % of fewer than 9), it is not fitted.

        Args:
            residual: True minus predicted start and end, seconds, ``(N, 2)``.
            scale: Scales of the predictive Student-t, seconds, ``(N, 2)``.
            dof: Its degrees of freedom, ``(N, 2)``.
            covariates: What may tell a good answer from a bad one, ``(N, C)``.
            names: Of the C covariates.
            videos: Name of each query's video, ``(N,)``; None if each is about another one.
            levels: Between 0 and 1, rising.
            seed: Of the folds.

        Raises:
            InputError: Fewer than 10 queries, all about one video, a wrong shape, a
                number that is not finite, a scale that is not positive, or levels that do not
                rise inside 0..1.
        """
        levels = tuple(float(level) for level in levels)
        _check_levels(levels)
        error, spread, freedom = _checked_residuals(residual, scale, dof)
        n = len(error)
        x = checked_covariates(covariates, names, n)
        scaler = Standardizer.fit(x, names)
        z = scaler.transform(x)
        video = _video_ids(videos, n)
        # Whole videos are held out: a query is predicted too well from others about its video.
        fold = (np.random.default_rng(seed).permutation(video.max() + 1) % FOLDS)[video]
        flat = n < LEAST_POINTS_FOR_COVARIATES or len(np.unique(fold)) < FOLDS
        log_error = np.log(np.maximum(error, LEAST_RESIDUAL_S))
        fitted, weights, shifts, bounds = [], [], [], []
        for level in levels:
            ratio = log_error - _log_half_width(spread, freedom, level)
            fits = [_fit_boundary(z, ratio[:, b], level, video, fold, flat=flat) for b in (0, 1)]
            known = [fit for fit in fits if fit is not None]
            if len(known) < len(fits):
                break  # higher levels ask for more still
            fitted.append(level)
            weights.append(tuple(floats(w) for w, _ in known))
            shifts.append(tuple(s for _, s in known))
            bounds.append(
                tuple((float(ratio[:, b].min()), float(ratio[:, b].max())) for b in (0, 1))
            )
        if not fitted:
            raise _too_few(f"labels enough for {levels[0]:.0%}", f"{n} queries")
        return cls(scaler, tuple(fitted), tuple(weights), tuple(shifts), tuple(bounds), n)

    def fits_level(self, level: float) -> bool:
        """Whether the level lies among those that were fitted."""
        return self.levels[0] <= level <= self.levels[-1]

    def check_level(self, level: float) -> None:
        """Refuse a level that was not fitted: nothing is known of how wide it would have to be.

        Raises:
            InputError: If the level is outside the fitted ones.
        """
        if not self.fits_level(level):
            low, high = self.levels[0], self.levels[-1]
            raise InputError(
                "interval level",
                expected=f"a number between {low:g} and {high:g}, which {self.points} labelled "
                "queries support",
                got=f"{level:g}",
                remedy="choose such a level, or calibrate on more labelled videos",
            )

    def interval(
        self,
        loc: npt.ArrayLike,
        scale: npt.ArrayLike,
        dof: npt.ArrayLike,
        covariates: npt.ArrayLike,
        level: float,
    ) -> tuple[FloatArray, FloatArray]:
        """Central interval of each boundary; it is not cut at the video's ends.

        Between fitted levels the log factor is interpolated. A higher level never gives a narrower
        interval.

        Args:
            loc: Predicted start and end, seconds, ``(N, 2)``.
            scale: ``(N, 2)``, seconds.
            dof: ``(N, 2)``.
            covariates: ``(N, C)``, in the order of fitting.
            level: Between the least and the greatest of ``levels``.

        Returns:
            Lower and upper ends, ``(N, 2)`` each.

        Raises:
            InputError: If the level is outside the fitted ones.
            ValueError: If a shape is wrong or a covariate is NaN.
        """
        self.check_level(level)
        z = self.scaler.transform(covariates)
        m, s, nu = (np.asarray(v, dtype=np.float64) for v in (loc, scale, dof))
        if not m.shape == s.shape == nu.shape == (len(z), 2):
            raise ValueError(
                f"loc, scale and dof must be ({len(z)}, 2), got {m.shape}, {s.shape}, {nu.shape}"
            )
        base = np.stack([_log_half_width(s, nu, fitted) for fitted in self.levels])
        raw = np.stack([self._log_factor(z, index) for index in range(len(self.levels))])
        # Regressions of neighbouring levels may cross; the wider of the two is kept.
        known = np.maximum.accumulate(base + raw, axis=0)
        wanted = _log_half_width(s, nu, level)
        upper = int(np.searchsorted(self.levels, level))
        if self.levels[upper] == level:
            log_half = known[upper]
        else:
            # Weighted by the uncalibrated width, this is linear between the two known widths,
            # hence monotone in the level.
            weight = (wanted - base[upper - 1]) / (base[upper] - base[upper - 1])
            log_half = known[upper - 1] + weight * (known[upper] - known[upper - 1])
        half = np.exp(log_half)
        return m - half, m + half

    def _log_factor(self, z: FloatArray, index: int) -> FloatArray:
        """Log factor of both boundaries at a fitted level, ``(N, 2)``."""
        bounds = np.array(self.bounds[index])
        line = linear(z, np.array(self.weights[index]).T)
        held = np.clip(line, bounds[:, 0], bounds[:, 1])
        result: FloatArray = held + np.array(self.shift[index])
        return result

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "covariates": self.scaler.to_dict(),
            "levels": list(self.levels),
            "weights": [[list(w) for w in level] for level in self.weights],
            "shift": [list(level) for level in self.shift],
            "bounds": [[list(pair) for pair in level] for level in self.bounds],
            "points": self.points,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`.

        Raises:
            InputError, KeyError, TypeError, ValueError: If it is damaged.
        """
        scaler = Standardizer.from_dict(data["covariates"])
        levels = floats(numbers(data, "levels", (len(data["levels"]),)))
        _check_levels(levels)
        k = len(levels)
        weights = numbers(data, "weights", (k, 2, 1 + len(scaler.names)))
        bounds = numbers(data, "bounds", (k, 2, 2))
        return cls(
            scaler,
            levels,
            tuple(tuple(floats(w) for w in level) for level in weights),
            tuple(floats(level) for level in numbers(data, "shift", (k, 2))),
            tuple(tuple((float(a), float(b)) for a, b in level) for level in bounds),
            int(data["points"]),
        )


def _checked_residuals(
    residual: npt.ArrayLike, scale: npt.ArrayLike, dof: npt.ArrayLike
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Absolute residuals, scales and degrees of freedom, ``(N, 2)`` each.

    Raises:
        InputError: Fewer than 10, a wrong shape, a number that is not finite, or one that is not
            positive where it has to be.
    """
    error = np.abs(finite(residual, "residuals"))
    n = len(error)
    if n < LEAST_POINTS:
        raise _too_few(f"at least {LEAST_POINTS} queries with known windows", str(n))
    spread = finite(scale, "scales", (n, 2))
    freedom = finite(dof, "degrees of freedom", (n, 2))
    if error.shape != (n, 2) or not (spread > 0).all() or not (freedom > 0).all():
        raise InputError(
            "interval calibration",
            expected="(N, 2) residuals, positive scales and degrees of freedom",
            got=f"{error.shape}, least scale {spread.min():g}, least {freedom.min():g}",
            remedy="pass the predictive distribution of each boundary",
        )
    return error, spread, freedom


def _video_ids(videos: Sequence[str] | None, n: int) -> Integers:
    """Id of each query's video, ``(n,)``, from 0 on.

    Raises:
        InputError: If there is not a name a query, or all queries are about one video.
    """
    video = np.unique(np.arange(n) if videos is None else videos, return_inverse=True)[1]
    if video.shape != (n,):
        raise InputError(
            "videos", expected=f"{n} names", got=f"{video.shape}", remedy="pass one a query"
        )
    if video.max() == 0:
        # Queries of one video resemble each other: they count as one.
        raise _too_few("queries about at least 2 videos", f"{n} about one")
    return video


def _too_few(expected: str, got: str) -> InputError:
    return InputError(
        "labels for interval calibration",
        expected=expected,
        got=got,
        remedy="label more queries, about more videos",
    )


def _fit_boundary(
    z: FloatArray, ratio: FloatArray, level: float, video: Integers, fold: Integers, *, flat: bool
) -> tuple[FloatArray, float] | None:
    """Weights ``(1 + C,)`` and conformal shift of one boundary; None if too few for the level.

    The shift is the finite-sample quantile of what held-out regressions leave over. One split
    would spend half of the data on it; with K folds every query is held out once, and the
    regression on all queries differs little from those on (K-1)/K of them.
    """
    n, covariates = z.shape
    if flat:
        factor = _conformal_quantile(ratio, level, video)
        return None if factor is None else (np.append(factor, np.zeros(covariates)), 0.0)
    left = np.empty(n)
    low, high = ratio.min(), ratio.max()
    for k in range(FOLDS):
        held = fold == k
        line = linear(z[held], _quantile_regression(z[~held], ratio[~held], level))
        left[held] = ratio[held] - np.clip(line, low, high)
    shift = _conformal_quantile(left, level, video)
    return None if shift is None else (_quantile_regression(z, ratio, level), shift)


def _quantile_regression(z: FloatArray, y: FloatArray, level: float) -> FloatArray:
    """Exact minimiser of the pinball loss: intercept and weights, ``(1 + C,)``.

    Solved as the dual linear program (one bounded variable a point, one equality a weight);
    the weights are its multipliers. Directions without variance get weight 0, so constant and
    collinear covariates (AU + EU and EU at a constant nu) do no harm.

    Reference:
        Koenker 2005, Quantile Regression, section 6.2.
    """
    from scipy.optimize import linprog

    centre = z.mean(axis=0)
    _, singular, directions = np.linalg.svd(z - centre, full_matrices=False)
    varying = singular > 1e-6 * max(1.0, float(singular.max(initial=0.0)))
    basis = directions[varying].T
    design = np.column_stack([np.ones(len(z)), (z - centre) @ basis])
    solved = linprog(
        -y, A_eq=design.T, b_eq=(1.0 - level) * design.sum(axis=0), bounds=(0, 1), method="highs"
    )
    if solved.status != 0:
        # The constant fit is always feasible, and the conformal shift keeps the coverage.
        return np.append(np.quantile(y, level), np.zeros(z.shape[1]))
    multipliers = -np.asarray(solved.eqlin.marginals, dtype=np.float64)
    slope = basis @ multipliers[1:]
    return np.append(multipliers[0] - centre @ slope, slope)


def _conformal_quantile(values: FloatArray, level: float, video: Integers) -> float | None:
    """The smallest of the values that is large enough with the confidence of CONFIDENCE.

    The share of new values below the k-th smallest of n varies with the n that were drawn, as
    Beta(k, n + 1 - k). The usual rank, ``ceil((n + 1) level)``, makes its mean the level, so that
    every other calibration covers less than it says. Here k is the least one for which the share
    reaches the level with 95 % confidence; the usual one if there are too few for that, and None
    if there are too few even for it. n counts independent queries, see :func:`effective_count`.

    Reference:
        Vovk 2012, Conditional validity of inductive conformal predictors, arXiv:1209.2673.
    """
    ordered = np.sort(values)
    n = len(ordered)
    below = values <= ordered[min(math.ceil(level * n), n) - 1]
    independent = int(
        effective_count(below, video) + 1e-6
    )  # floats may fall short of a whole number
    rank = _least_rank(independent, level) or math.ceil((independent + 1) * level - 1e-9)
    if rank > independent:
        return None
    return float(ordered[math.ceil(rank * n / independent - 1e-9) - 1])


def effective_count(hit: npt.NDArray[np.bool_], video: Integers) -> float:
    """As how many independent queries those of a few videos count, for a share of hits.

    A share over queries varies with the draw of the videos as one over so many independent
    queries would: the number of queries divided by the design effect, the variance of the share
    with videos as units over the binomial one.

    Args:
        hit: One a query, ``(N,)``.
        video: Id of each query's video, ``(N,)``, from 0 on.

    Returns:
        Between 1 and N; N where every video has one query.

    Reference:
        Kish 1965, Survey Sampling, section 5.4.

    >>> effective_count(np.array([True, True, False, False]), np.array([0, 0, 1, 1]))
    2.0
    """
    n = len(hit)
    if video.max() == 0:
        return 1.0
    away = hit - hit.mean()
    binomial = float(away @ away)
    if binomial == 0:
        return float(n)
    clustered = float((np.bincount(video, weights=away) ** 2).sum())
    return n / max(clustered / binomial, 1.0)


def _least_rank(n: int, level: float) -> int:
    """Least k with P(Beta(k, n + 1 - k) >= level) >= CONFIDENCE; 0 if there is none."""
    # That probability is P(Binomial(n, level) <= k - 1), which rises with k.
    enough = special.bdtr(np.arange(n, dtype=np.float64), n, level) >= CONFIDENCE
    return int(np.argmax(enough)) + 1 if enough.any() else 0


def _log_half_width(scale: FloatArray, dof: FloatArray, level: float) -> FloatArray:
    """Log half width of the Student-t's central interval."""
    quantile = special.stdtrit(dof, (1.0 + level) / 2)
    result: FloatArray = np.log(scale) + np.log(quantile)
    return result


def _check_levels(levels: Sequence[float]) -> None:
    inside = all(0.0 < level < 1.0 for level in levels)
    if not levels or not inside or any(a >= b for a, b in pairwise(levels)):
        raise InputError(
            "interval levels",
            expected="rising numbers between 0 and 1",
            got=str(list(levels)),
            remedy="write 0.9 for 90 percent",
        )

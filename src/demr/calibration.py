"""From a model's raw uncertainty to intervals that cover and a presence one can believe.

Fitted on validation queries (or on fifty labels of one's own) after training; the network is
not touched. Saved beside the weights as ``calibration.json``.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy import special

from demr.errors import InputError, ModelError
from demr.files import atomic_path

FloatArray = npt.NDArray[np.float64]

FORMAT_VERSION = 1
LEVELS: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)
LEAST_POINTS = 10
LEAST_POINTS_FOR_COVARIATES = 100
FOLDS = 5
# Finer than any frame: keeps the logarithm of an exact hit finite without moving a quantile.
LEAST_RESIDUAL_S = 1e-3


@dataclass(frozen=True)
class Standardizer:
    """Shifts covariates to mean 0 and deviation 1, held inside the range seen in fitting.

    Outside that range a linear model only guesses, and its exponential would guess wildly.

    Attributes:
        names: Of the C covariates.
        mean: Of each.
        std: Of each; 0 marks a constant, which is mapped to 0.
        low: Least standardised value seen, of each.
        high: Greatest.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def fit(cls, covariates: FloatArray, names: Sequence[str]) -> Self:
        """Measure ``(N, C)`` finite numbers."""
        mean = covariates.mean(axis=0)
        std = covariates.std(axis=0)
        # A constant column may have a deviation of rounding size.
        std = np.where(std > 1e-9 * (1.0 + np.abs(mean)), std, 0.0)
        z = _standardise(covariates, mean, std)
        return cls(
            tuple(names),
            _floats(mean),
            _floats(std),
            _floats(z.min(axis=0)),
            _floats(z.max(axis=0)),
        )

    def transform(self, covariates: npt.ArrayLike) -> FloatArray:
        """Standardise and clip ``(N, C)``.

        Raises:
            ValueError: If the shape is wrong or a number is NaN. Infinity is clipped.
        """
        x = np.asarray(covariates, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.names):
            raise ValueError(f"covariates must be (N, {len(self.names)}), got {x.shape}")
        bad = np.argwhere(np.isnan(x))
        if bad.size:
            row, column = bad[0].tolist()
            raise ValueError(f"covariate {self.names[column]!r} of row {row} is NaN")
        z = _standardise(x, np.array(self.mean), np.array(self.std))
        return np.clip(z, np.array(self.low), np.array(self.high))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {k: list(getattr(self, k)) for k in ("names", "mean", "std", "low", "high")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: If it is damaged.
        """
        names = tuple(str(name) for name in data["names"])
        mean, std, low, high = (
            _floats(_numbers(data, key, (len(names),))) for key in ("mean", "std", "low", "high")
        )
        return cls(names, mean, std, low, high)


@dataclass(frozen=True)
class IntervalCalibrator:
    """Intervals of start and end that contain the truth as often as their level says.

    The Student-t interval of the NIG predictive distribution is multiplied by a factor that
    depends on covariates: evidential moments order errors well, but their size is off, and a
    confidently wrong moment is off by a different factor than a right one. The factor's
    logarithm is a linear quantile regression, followed by a conformal shift.

    Attributes:
        scaler: Of the covariates.
        levels: At which factors were fitted, rising.
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
        *,
        levels: Sequence[float] = LEVELS,
        seed: int = 0,
    ) -> Self:
        """Fit on queries whose truth is known, wrong answers included.

        With fewer than 100 queries covariates are ignored: one factor for all, by the conformal
        quantile alone. Where the level asks for more points than there are (95 % of 10), the
        largest factor seen is used.

        Args:
            residual: True minus predicted start and end, seconds, ``(N, 2)``.
            scale: Scales of the predictive Student-t, seconds, ``(N, 2)``.
            dof: Its degrees of freedom, ``(N, 2)``.
            covariates: What may tell a good answer from a bad one, ``(N, C)``.
            names: Of the C covariates.
            levels: Between 0 and 1, rising.
            seed: Of the folds.

        Raises:
            InputError: Fewer than 10 queries, a wrong shape, a number that is not finite, a
                scale that is not positive, or levels that do not rise inside 0..1.
        """
        levels = tuple(float(level) for level in levels)
        _check_levels(levels)
        error = np.abs(_finite(residual, "residuals"))
        n = len(error)
        if n < LEAST_POINTS:
            raise InputError(
                "labels for interval calibration",
                expected=f"at least {LEAST_POINTS} queries with known windows",
                got=str(n),
                remedy="label more queries",
            )
        spread = _finite(scale, "scales", (n, 2))
        freedom = _finite(dof, "degrees of freedom", (n, 2))
        if error.shape != (n, 2) or not (spread > 0).all() or not (freedom > 0).all():
            raise InputError(
                "interval calibration",
                expected="(N, 2) residuals, positive scales and degrees of freedom",
                got=f"{error.shape}, least scale {spread.min():g}, least {freedom.min():g}",
                remedy="pass the predictive distribution of each boundary",
            )
        x = _covariates(covariates, names, n)
        scaler = Standardizer.fit(x, names)
        z = scaler.transform(x)
        fold = np.random.default_rng(seed).permutation(n) % FOLDS
        flat = n < LEAST_POINTS_FOR_COVARIATES
        log_error = np.log(np.maximum(error, LEAST_RESIDUAL_S))
        weights, shifts, bounds = [], [], []
        for level in levels:
            ratio = log_error - _log_half_width(spread, freedom, level)
            fits = [_fit_boundary(z, ratio[:, b], level, fold, flat=flat) for b in (0, 1)]
            weights.append(tuple(_floats(w) for w, _ in fits))
            shifts.append(tuple(s for _, s in fits))
            bounds.append(
                tuple((float(ratio[:, b].min()), float(ratio[:, b].max())) for b in (0, 1))
            )
        return cls(scaler, levels, tuple(weights), tuple(shifts), tuple(bounds), n)

    def interval(
        self,
        loc: npt.ArrayLike,
        scale: npt.ArrayLike,
        dof: npt.ArrayLike,
        covariates: npt.ArrayLike,
        level: float,
    ) -> tuple[FloatArray, FloatArray]:
        """Central interval of each boundary; it is not cut at the video's ends.

        Between fitted levels the log factor is interpolated, outside them it is that of the
        nearest. A higher level never gives a narrower interval.

        Args:
            loc: Predicted start and end, seconds, ``(N, 2)``.
            scale: ``(N, 2)``, seconds.
            dof: ``(N, 2)``.
            covariates: ``(N, C)``, in the order of fitting.
            level: Between 0 and 1.

        Returns:
            Lower and upper ends, ``(N, 2)`` each.

        Raises:
            InputError: If the level is not between 0 and 1.
            ValueError: If a shape is wrong or a covariate is NaN.
        """
        if not 0.0 < level < 1.0:
            raise InputError(
                "interval level",
                expected="a number between 0 and 1",
                got=f"{level:g}",
                remedy="write 0.9 for 90 percent",
            )
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
        if upper == 0:
            log_half = wanted + known[0] - base[0]
        elif upper == len(self.levels):
            log_half = wanted + known[-1] - base[-1]
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
        line = _line(z, np.array(self.weights[index]).T)
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
        levels = _floats(_numbers(data, "levels", (len(data["levels"]),)))
        _check_levels(levels)
        k = len(levels)
        weights = _numbers(data, "weights", (k, 2, 1 + len(scaler.names)))
        bounds = _numbers(data, "bounds", (k, 2, 2))
        return cls(
            scaler,
            levels,
            tuple(tuple(_floats(w) for w in level) for level in weights),
            tuple(_floats(level) for level in _numbers(data, "shift", (k, 2))),
            tuple(tuple((float(a), float(b)) for a, b in level) for level in bounds),
            int(data["points"]),
        )


@dataclass(frozen=True)
class PresenceCalibrator:
    """Probability that a moment is in the video: logistic regression on covariates.

    Attributes:
        scaler: Of the covariates.
        weights: Intercept, then one weight a covariate, then (if ``quadratic``) one for each
            product of two covariates, squares included.
        quadratic: Whether products are used.
        points: Number of queries it was fitted on.
    """

    scaler: Standardizer
    weights: tuple[float, ...]
    quadratic: bool
    points: int

    @classmethod
    def fit(
        cls,
        covariates: npt.ArrayLike,
        label: npt.ArrayLike,
        names: Sequence[str],
        *,
        l2: float = 1e-3,
        quadratic: bool = False,
    ) -> Self:
        """Fit on present and absent queries; as many of each make 0.5 the even bet.

        Args:
            covariates: ``(N, C)``.
            label: 1 or True where the moment is in the video, ``(N,)``.
            names: Of the C covariates.
            l2: Weight of the squared weights (the intercept is free) against the mean
                log-loss; keeps separable data finite.
            quadratic: Add products of covariates.

        Raises:
            InputError: Fewer than 10 queries, one kind alone, a label that is neither 0 nor 1,
                a wrong shape or a number that is not finite.
        """
        y = _finite(label, "labels")
        if y.ndim != 1 or y.size < LEAST_POINTS or set(np.unique(y).tolist()) != {0.0, 1.0}:
            kinds = f"{int(np.sum(y == 1))} of 1, {int(np.sum(y == 0))} of 0 in shape {y.shape}"
            raise InputError(
                "labels for presence calibration",
                expected=f"at least {LEAST_POINTS}, each 1 (present) or 0 (absent), both kinds",
                got=kinds,
                remedy="label more queries, absent ones too",
            )
        x = _covariates(covariates, names, y.size)
        scaler = Standardizer.fit(x, names)
        design = _design(scaler.transform(x), quadratic=quadratic)
        return cls(scaler, _floats(_logistic(design, y, l2)), quadratic, int(y.size))

    def probability(self, covariates: npt.ArrayLike) -> FloatArray:
        """Probability of presence, ``(N,)``, for covariates ``(N, C)``.

        Raises:
            ValueError: If the shape is wrong or a covariate is NaN.
        """
        design = _design(self.scaler.transform(covariates), quadratic=self.quadratic)
        result: FloatArray = special.expit(_line(design, np.array(self.weights)))
        return result

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "covariates": self.scaler.to_dict(),
            "weights": list(self.weights),
            "quadratic": self.quadratic,
            "points": self.points,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`.

        Raises:
            KeyError, TypeError, ValueError: If it is damaged.
        """
        scaler = Standardizer.from_dict(data["covariates"])
        quadratic = bool(data["quadratic"])
        columns = _design(np.zeros((1, len(scaler.names))), quadratic=quadratic).shape[1]
        weights = _floats(_numbers(data, "weights", (1 + columns,)))
        return cls(scaler, weights, quadratic, int(data["points"]))


@dataclass(frozen=True)
class Calibration:
    """All that is fitted on validation after training; ``calibration.json`` of a run folder.

    Attributes:
        interval: Of the boundaries; None if not fitted.
        presence: Of the moment; None if not fitted.
        tau: Weight of the standardised log epistemic uncertainty in the ranking.
        ranking: ``score``, ``uncertainty`` or ``fusion``.
        thresholds: Named limits of ``present``, from which verdicts are made.
    """

    interval: IntervalCalibrator | None = None
    presence: PresenceCalibrator | None = None
    tau: float = 0.0
    ranking: str = "score"
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the format's version."""
        return {
            "version": FORMAT_VERSION,
            "interval": None if self.interval is None else self.interval.to_dict(),
            "presence": None if self.presence is None else self.presence.to_dict(),
            "tau": self.tau,
            "ranking": self.ranking,
            "thresholds": dict(self.thresholds),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`; the version is :meth:`load`'s to check.

        Raises:
            InputError, KeyError, TypeError, ValueError: If it is damaged.
        """
        interval, presence = data["interval"], data["presence"]
        thresholds = data["thresholds"]
        if not isinstance(data["ranking"], str) or not isinstance(thresholds, dict):
            raise TypeError("ranking must be a word and thresholds an object")
        return cls(
            None if interval is None else IntervalCalibrator.from_dict(interval),
            None if presence is None else PresenceCalibrator.from_dict(presence),
            float(_numbers(data, "tau", ())),
            data["ranking"],
            {str(name): float(_numbers(thresholds, name, ())) for name in thresholds},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file whole or not at all; what was there stays until then.

        Raises:
            ModelError: If it cannot be written, or holds a number that is not finite.
        """
        target = Path(path)
        try:
            text = json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
        except ValueError as error:
            raise ModelError(
                f"calibration for {target}",
                expected="finite numbers",
                got=str(error),
                remedy="fit the calibration again",
            ) from error
        try:
            with atomic_path(target) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ModelError(
                str(target),
                expected="a place that can be written",
                got=error.strerror or str(error),
                remedy="free space or choose another folder; the old file is unchanged",
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file written by :meth:`save`.

        Raises:
            ModelError: If it is missing, damaged, or of a newer format.
        """
        target = Path(path)
        try:
            data = json.loads(target.read_text(encoding="utf-8"), parse_constant=_no_constant)
            if not isinstance(data, dict):
                raise TypeError("not a JSON object")
            version = data["version"]
            if isinstance(version, bool) or not isinstance(version, int) or version < 1:
                raise ValueError(f"version {version!r}")
        except OSError as error:
            raise ModelError(
                str(target),
                expected="a calibration file",
                got=error.strerror or str(error),
                remedy="run demr calibrate",
            ) from error
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise _damaged(target, error) from error
        if version > FORMAT_VERSION:
            raise ModelError(
                str(target),
                expected=f"calibration format {FORMAT_VERSION} or older",
                got=f"format {version}",
                remedy="update demr",
            )
        try:
            return cls.from_dict(data)
        except (
            InputError,
            AttributeError,
            LookupError,
            OverflowError,
            TypeError,
            ValueError,
        ) as error:
            raise _damaged(target, error) from error


def _fit_boundary(
    z: FloatArray, ratio: FloatArray, level: float, fold: npt.NDArray[np.int64], *, flat: bool
) -> tuple[FloatArray, float]:
    """Weights ``(1 + C,)`` and conformal shift of one boundary at one level.

    The shift is the finite-sample quantile of what held-out regressions leave over. One split
    would spend half of the data on it; with K folds every query is held out once, and the
    regression on all queries differs little from those on (K-1)/K of them.
    """
    n, covariates = z.shape
    if flat:
        constant = np.zeros(1 + covariates)
        constant[0] = _conformal_quantile(ratio, level)
        return constant, 0.0
    left = np.empty(n)
    low, high = ratio.min(), ratio.max()
    for k in range(FOLDS):
        held = fold == k
        line = _line(z[held], _quantile_regression(z[~held], ratio[~held], level))
        left[held] = ratio[held] - np.clip(line, low, high)
    return _quantile_regression(z, ratio, level), _conformal_quantile(left, level)


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
    kept = singular > 1e-6 * max(1.0, float(singular.max(initial=0.0)))
    basis = directions[kept].T
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


def _conformal_quantile(values: FloatArray, level: float) -> float:
    """The ``ceil((n + 1) level)``-th smallest value, or the largest if there are too few."""
    # The subtraction keeps a product such as 20 * 0.95 from being rounded up past 19.
    rank = math.ceil((len(values) + 1) * level - 1e-9)
    return float(np.sort(values)[min(rank, len(values)) - 1])


def _logistic(design: FloatArray, label: FloatArray, l2: float) -> FloatArray:
    from scipy.optimize import minimize

    sign = 2.0 * label - 1.0

    def loss(w: FloatArray) -> tuple[float, FloatArray]:
        margin = sign * _line(design, w)
        slope = -sign * special.expit(-margin) / len(sign)
        gradient = np.append(slope.sum(), design.T @ slope + l2 * w[1:])
        return float(np.logaddexp(0.0, -margin).mean() + 0.5 * l2 * w[1:] @ w[1:]), gradient

    start = np.zeros(1 + design.shape[1])
    solved = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9},
    )
    return np.asarray(solved.x, dtype=np.float64)


def _design(z: FloatArray, *, quadratic: bool) -> FloatArray:
    if not quadratic:
        return z
    i, j = np.triu_indices(z.shape[1])
    return np.column_stack([z, z[:, i] * z[:, j]])


def _line(z: FloatArray, weights: FloatArray) -> FloatArray:
    """``intercept + z @ slope``; weights ``(1 + C,)`` or ``(1 + C, K)``."""
    result: FloatArray = weights[0] + z @ weights[1:]
    return result


def _log_half_width(scale: FloatArray, dof: FloatArray, level: float) -> FloatArray:
    """Log half width of the Student-t's central interval."""
    quantile = special.stdtrit(dof, (1.0 + level) / 2)
    result: FloatArray = np.log(scale) + np.log(quantile)
    return result


def _standardise(x: FloatArray, mean: FloatArray, std: FloatArray) -> FloatArray:
    varies = std > 0
    z = np.zeros_like(x)
    z[:, varies] = (x[:, varies] - mean[varies]) / std[varies]
    return z


def _check_levels(levels: Sequence[float]) -> None:
    inside = all(0.0 < level < 1.0 for level in levels)
    if not levels or not inside or any(a >= b for a, b in pairwise(levels)):
        raise InputError(
            "interval levels",
            expected="rising numbers between 0 and 1",
            got=str(list(levels)),
            remedy="write 0.9 for 90 percent",
        )


def _finite(values: npt.ArrayLike, name: str, shape: tuple[int, ...] | None = None) -> FloatArray:
    out = np.asarray(values, dtype=np.float64)
    if shape is not None and out.shape != shape:
        raise InputError(
            name, expected=f"shape {shape}", got=f"{out.shape}", remedy="pass one row a query"
        )
    bad = np.argwhere(~np.isfinite(out))
    if bad.size:
        raise InputError(
            f"{name} of query {int(bad[0][0])}",
            expected="finite numbers",
            got=str(out[tuple(bad[0])]),
            remedy="leave the query out",
        )
    return out


def _covariates(values: npt.ArrayLike, names: Sequence[str], n: int) -> FloatArray:
    out = _finite(values, "covariates")
    if out.shape != (n, len(names)):
        raise InputError(
            "covariates",
            expected=f"shape {(n, len(names))}, one column for each of {', '.join(names)}",
            got=f"{out.shape}",
            remedy="pass one row a query",
        )
    return out


def _floats(values: npt.ArrayLike) -> tuple[float, ...]:
    return tuple(np.asarray(values, dtype=np.float64).tolist())


def _numbers(data: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> FloatArray:
    out = np.asarray(data[key], dtype=np.float64)
    if out.shape != shape or not np.isfinite(out).all():
        raise ValueError(f"{key} must be finite numbers of shape {shape}")
    return out


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(
        str(path),
        expected="a calibration file as demr writes it",
        got=f"a damaged one ({type(error).__name__}: {error})",
        remedy="run demr calibrate again",
    )

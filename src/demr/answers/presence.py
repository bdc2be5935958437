"""Probability that the moment a query describes is in the video at all, from its covariates.

Covariates are what may tell a good answer from a bad one; they are checked and standardised here,
for intervals too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy import special

from demr.errors import InputError

FloatArray = npt.NDArray[np.float64]
LEAST_POINTS = 10
# What the best of S stretches without the moment gains in log odds, over log S.
_CHANCE = 0.3


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
            floats(mean),
            floats(std),
            floats(z.min(axis=0)),
            floats(z.max(axis=0)),
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
            floats(numbers(data, key, (len(names),))) for key in ("mean", "std", "low", "high")
        )
        return cls(names, mean, std, low, high)


def linear(z: FloatArray, weights: FloatArray) -> FloatArray:
    """``intercept + z @ slope``; weights ``(1 + C,)`` or ``(1 + C, K)``."""
    result: FloatArray = weights[0] + z @ weights[1:]
    return result


def finite(values: npt.ArrayLike, name: str, shape: tuple[int, ...] | None = None) -> FloatArray:
    """Return numbers with one row a query.

    Raises:
        InputError: If one is not finite, or the shape is not the one named.
    """
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


def checked_covariates(values: npt.ArrayLike, names: Sequence[str], n: int) -> FloatArray:
    """Return covariates of ``n`` queries, ``(n, C)``.

    Raises:
        InputError: If one is not finite, or the shape is another.
    """
    out = finite(values, "covariates")
    if out.shape != (n, len(names)):
        raise InputError(
            "covariates",
            expected=f"shape {(n, len(names))}, one column for each of {', '.join(names)}",
            got=f"{out.shape}",
            remedy="pass one row a query",
        )
    return out


def floats(values: npt.ArrayLike) -> tuple[float, ...]:
    """Return plain numbers, for a record that is stored as JSON."""
    return tuple(np.asarray(values, dtype=np.float64).tolist())


def numbers(data: Mapping[str, Any], key: str, shape: tuple[int, ...]) -> FloatArray:
    """Read the numbers of a key of such a record.

    Raises:
        KeyError, TypeError, ValueError: If they are missing, not finite, or of another shape.
    """
    out = np.asarray(data[key], dtype=np.float64)
    if out.shape != shape or not np.isfinite(out).all():
        raise ValueError(f"{key} must be finite numbers of shape {shape}")
    return out


def _standardise(x: FloatArray, mean: FloatArray, std: FloatArray) -> FloatArray:
    varies = std > 0
    z = np.zeros_like(x)
    z[:, varies] = (x[:, varies] - mean[varies]) / std[varies]
    return z


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
        y = finite(label, "labels")
        if y.ndim != 1 or y.size < LEAST_POINTS or set(np.unique(y).tolist()) != {0.0, 1.0}:
            kinds = f"{int(np.sum(y == 1))} of 1, {int(np.sum(y == 0))} of 0 in shape {y.shape}"
            raise InputError(
                "labels for presence calibration",
                expected=f"at least {LEAST_POINTS}, each 1 (present) or 0 (absent), both kinds",
                got=kinds,
                remedy="label more queries, absent ones too",
            )
        x = checked_covariates(covariates, names, y.size)
        scaler = Standardizer.fit(x, names)
        design = _design(scaler.transform(x), quadratic=quadratic)
        return cls(scaler, floats(_logistic(design, y, l2)), quadratic, int(y.size))

    def probability(self, covariates: npt.ArrayLike) -> FloatArray:
        """Probability of presence, ``(N,)``, for covariates ``(N, C)``.

        Raises:
            ValueError: If the shape is wrong or a covariate is NaN.
        """
        design = _design(self.scaler.transform(covariates), quadratic=self.quadratic)
        result: FloatArray = special.expit(linear(design, np.array(self.weights)))
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
        weights = floats(numbers(data, "weights", (1 + columns,)))
        return cls(scaler, weights, quadratic, int(data["points"]))


def somewhere(probability: FloatArray) -> float:
    """Probability that a moment is in a video, from that of each of its stretches.

    The surest stretch speaks for the video, but of many stretches one is sure by chance: of S
    values with an exponential tail the highest is higher by a multiple of log S. So its log odds
    fall by ``0.3 log S``, measured on the embedded world (docs/scale.md). Were all stretches
    independent and their odds exact, it would be ``log S`` in full, as it is of a mean of odds;
    tried, that calls nearly all moments in hours absent, as most stretches hold nothing that
    resembles a query, and neighbours share half of what they see.

    Args:
        probability: Of each stretch, ``(S,)``.

    >>> round(somewhere(np.array([0.9, 0.1])), 4)  # odds 9 by 2 ** 0.3
    0.8797
    """
    return float(lower_for_chance(probability.max(), len(probability)))


def lower_for_chance(probability: npt.ArrayLike, stretches: int) -> FloatArray:
    """Lower probabilities of what was chosen from so many stretches; see :func:`somewhere`."""
    if stretches == 1:
        return np.asarray(probability, np.float64)
    # An exact 1 is rounding, and infinite odds could not be lowered.
    surest = special.logit(np.clip(probability, 1e-12, 1 - 1e-12))
    return np.asarray(special.expit(surest - _CHANCE * np.log(stretches)))


def _logistic(design: FloatArray, label: FloatArray, l2: float) -> FloatArray:
    from scipy.optimize import minimize

    sign = 2.0 * label - 1.0

    def loss(w: FloatArray) -> tuple[float, FloatArray]:
        margin = sign * linear(design, w)
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

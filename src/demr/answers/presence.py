"""Probability that the moment a query describes is in the video at all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy import special

from demr.answers.covariates import (
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

# What the best of S stretches without the moment gains in log odds, over log S.
_CHANCE = 0.3


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

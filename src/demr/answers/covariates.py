"""What may tell a good answer from a bad one, made comparable: checked and standardised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from demr.errors import InputError

FloatArray = npt.NDArray[np.float64]
LEAST_POINTS = 10


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

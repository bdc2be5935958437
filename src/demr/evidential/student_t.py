"""The predictive Student-t's likelihood without lost digits, and its scipy functions.

The textbook likelihood subtracts numbers of the order of ``alpha log(alpha)``, which in float32
leaves errors above 1. Here it is rearranged so that no such difference is left, and plain float32
would do, save where a likelihood or gradient passes through zero. Those few elementwise
operations therefore run in float64 on CPUs and CUDA (:func:`widen`), where their cost disappears
beside any network's, and in float32 on devices that may lack it. What callers see is float32.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import ArrayLike as NumPyLike
from torch import Tensor

ArrayLike = Tensor | NumPyLike

# Euler numbers E_2, E_4, ...: they make the coefficients of `_gamma_ratio`'s series.
_EULER = (-1.0, 5.0, -61.0, 1385.0, -50521.0, 2702765.0, -199360981.0, 19391512145.0)
_SERIES = tuple(-euler / (k * 4.0 ** (2 * k + 1)) for k, euler in enumerate(_EULER, start=1))

_STEPS = 6

# Beyond this |t|, log1p(t^2) equals 2 log|t| to the last bit of float64, and t^2 has not yet
# overflowed float32.
_LARGE_T = 1e9


def negative_log_likelihood(residual: Tensor, nu: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Minus the predictive log density, free of large differences.

    With ``W = 2 beta (1 + nu)`` and ``q = W / nu``, the textbook's
    ``-alpha log W + (alpha + 1/2) log(nu r^2 + W)`` is
    ``(alpha + 1/2) log1p(r^2 / q) + 1/2 log W``, and what is left of the two log-gammas is
    ``-1/2 log(alpha)`` and small terms. All that is of the size of ``alpha log(alpha)`` is gone.
    """
    # 1 + 1/nu and not exp(log(1 + nu) - log(nu)), whose gradient cancels at large nu.
    q = 2 * beta * (1 + nu.reciprocal())
    t = residual / q.sqrt()
    # log1p(t^2) without overflow. Both branches get harmless arguments where they lose, because
    # the gradient runs through both.
    large = t.abs() > _LARGE_T
    log_tail = torch.where(
        large,
        2 * torch.where(large, t, torch.ones_like(t)).abs().log(),
        torch.where(large, torch.zeros_like(t), t).square().log1p(),
    )
    ratio, correction = _gamma_ratio(alpha)
    return (alpha + 0.5) * log_tail + 0.5 * (math.pi * q / ratio).log() - correction


def _gamma_ratio(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Split ``lgamma(alpha + 1/2) - lgamma(alpha)`` into ``1/2 log(ratio) + correction``.

    Both log-gammas grow like ``alpha log(alpha)`` and their difference like ``1/2 log(alpha)``,
    so neither they nor their derivatives are subtracted. Around ``x = alpha - 1/4`` the
    asymptotic series of the difference holds even powers only,

        1/2 log(x) - sum_k E_2k / (k 4^(2k+1) x^(2k)),    E_2k the Euler numbers,

    and ``Gamma(z + 1) = z Gamma(z)`` first moves alpha up to where it converges: each step
    divides the quotient of the gammas by ``1 + 1 / (2 alpha)``. Six steps and eight terms give
    1e-15 for alpha >= 1, and every derivative is a sum of terms of one sign, to leading order.

    Returns:
        ``ratio``, not yet in the logarithm so that the caller can take one of a quotient, and
        ``correction``.
    """
    shift = torch.ones_like(alpha)
    for step in range(_STEPS):
        shift = shift * (1 + 0.5 / (alpha + step))
    shifted = alpha + (_STEPS - 0.25)
    inverse = shifted.reciprocal()  # squared afterwards: the square of alpha could overflow
    u = inverse * inverse
    correction = torch.zeros_like(u)
    for coefficient in reversed(_SERIES):
        correction = (correction + coefficient) * u
    return shifted / (shift * shift), correction


def widen(tensor: Tensor) -> Tensor:
    """Cast to float64 where the device surely has it."""
    return tensor.double() if tensor.device.type in {"cpu", "cuda"} else tensor


def as_tensor(value: ArrayLike, like: Tensor, name: str) -> Tensor:
    """Observations, masks or probabilities as a tensor on the device of a prediction.

    Args:
        value: A tensor, a NumPy array, a number, or lists of numbers.
        like: Gives the device.
        name: Of the argument, for the message.

    Raises:
        TypeError: If it is nothing of that.
    """
    if isinstance(value, Tensor):
        return value
    try:
        return torch.as_tensor(value, device=like.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name} must be a tensor, an array or numbers, got {type(value).__name__}"
        ) from error


class _Elementwise(torch.autograd.Function):
    """A scipy function of two arguments, in float64, as a constant; also under ``vmap``."""

    @staticmethod
    def forward(function: Callable[..., Any], df: Tensor, argument: Tensor) -> Tensor:
        # To the CPU before float64: some devices have none.
        arrays = (tensor.detach().cpu().double().numpy() for tensor in (df, argument))
        return torch.as_tensor(function(*arrays)).to(device=df.device, dtype=df.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del inputs
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, None, None]:
        del ctx, gradients
        return None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        function: Callable[..., Any],
        df: Tensor,
        argument: Tensor,
    ) -> tuple[Tensor, int]:
        """The mapped dimension comes first, and only those behind it broadcast."""
        moved = [
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in ((df, in_dims[1]), (argument, in_dims[2]))
        ]
        most = max(tensor.dim() for tensor in moved)
        padded = [
            tensor.reshape(len(tensor), *[1] * (most - tensor.dim()), *tensor.shape[1:])
            for tensor in moved
        ]
        return _Elementwise.apply(function, *padded), 0  # type: ignore[no-untyped-call]


def through_scipy(function: Callable[..., Any], df: Tensor, argument: Tensor) -> Tensor:
    """Evaluate a scipy function of the degrees of freedom, in float64, as a constant."""
    result: Tensor = _Elementwise.apply(function, df, argument)  # type: ignore[no-untyped-call]
    return result

"""Random predictions, and the losses as functions of one signature."""

from collections.abc import Callable

import torch
from torch import Tensor

from demr.evidential import (
    AnchoredGeom,
    NormalInverseGamma,
    der_regularizer,
    geom_regularizer,
    nig_nll,
)

Loss = Callable[[NormalInverseGamma, Tensor, Tensor | None], Tensor]


def rank_regularizer(nig: NormalInverseGamma, target: Tensor, mask: Tensor | None = None) -> Tensor:
    return geom_regularizer(nig, target, mask, error_scale="rank")


def anchored_regularizer(
    nig: NormalInverseGamma, target: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The first batch that an `AnchoredGeom` sees: all that it remembers is this."""
    value: Tensor = AnchoredGeom(memory=100_000)(nig, target, mask)
    return value


LOSSES: list[Loss] = [
    nig_nll,
    der_regularizer,
    geom_regularizer,
    rank_regularizer,
    anchored_regularizer,
]
PARAMETERS = ("loc", "nu", "alpha", "beta")


def random_nig(*shape: int, dtype: torch.dtype = torch.float64) -> NormalInverseGamma:
    """Leaf parameters of mixed sizes, the same for the same shape."""
    generator = torch.Generator().manual_seed(7)
    loc, nu, alpha, beta = torch.rand(4, *shape, dtype=torch.float64, generator=generator).to(dtype)
    leaves = [loc, 0.1 + 3 * nu, 1.05 + 4 * alpha, 0.01 + beta]
    return NormalInverseGamma(*(leaf.requires_grad_() for leaf in leaves))


def random_target(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(8))


def leaves_of(nig: NormalInverseGamma) -> list[Tensor]:
    return [getattr(nig, name) for name in PARAMETERS]


def gradients(loss: Tensor, nig: NormalInverseGamma) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, leaves_of(nig), allow_unused=True))


def wide_grid() -> list[Tensor]:
    """Corners and decades (where gradients vanish exactly), and random points between."""
    residual = torch.tensor([0.0, 1e-6, 1e-4, 1e-2, 0.1, 0.5, 1.0])
    decades = torch.logspace(-6, 6, 7)
    excess = torch.tensor([1e-5, 1e-3, 0.1, 0.5, 1, 2, 3, 7, 10, 100, 1e3, 1e4, 1e5, 1e6])
    grid = torch.meshgrid(residual, decades, 1 + excess, decades, indexing="ij")
    u = torch.rand(4, 20_000, generator=torch.Generator().manual_seed(0))
    points = (u[0], 10 ** (12 * u[1] - 6), 1 + 10 ** (11 * u[2] - 5), 10 ** (12 * u[3] - 6))
    return [torch.cat([a.flatten(), b]) for a, b in zip(grid, points, strict=True)]

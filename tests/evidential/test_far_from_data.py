"""What the package's docstring says of inputs unlike the training data, on the usual toy curve."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from demr.evidential import (
    EvidentialHead,
    NormalInverseGamma,
    der_regularizer,
    geom_regularizer,
    nig_nll,
)

Regularizer = Callable[[NormalInverseGamma, Tensor], Tensor]
_SCALE = 64.0


class _Curve(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = (nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.body, self.value, self.evidence = (
            nn.Sequential(*sizes),
            nn.Linear(64, 1),
            EvidentialHead(64),
        )

    def forward(self, x: Tensor) -> NormalInverseGamma:
        hidden = self.body(x / 4)
        nig: NormalInverseGamma = self.evidence(hidden, self.value(hidden))
        return nig


def cubes(seed: int) -> tuple[Tensor, Tensor]:
    """Y = x^3 with noise of deviation 3, seen from -4 to 4."""
    torch.manual_seed(seed)
    x = torch.empty(1000, 1).uniform_(-4, 4)
    return x, (x**3 + 3 * torch.randn_like(x)) / _SCALE


def waves(seed: int) -> tuple[Tensor, Tensor]:
    """Y = sin(x) with noise of deviation 0.1, seen from -3 to 3."""
    torch.manual_seed(seed)
    x = torch.empty(1000, 1).uniform_(-3, 3)
    return x, x.sin() + 0.1 * torch.randn_like(x)


def trained(
    regularizer: Regularizer | None, weight: float, data: tuple[Tensor, Tensor], steps: int = 1000
) -> _Curve:
    x, y = data
    net = _Curve()
    adam = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(steps):
        rows = torch.randint(0, len(x), (128,))
        nig = net(x[rows])
        loss = nig_nll(nig, y[rows])
        if regularizer is not None:
            loss = loss + weight * regularizer(nig, y[rows])
        adam.zero_grad()
        loss.backward()
        adam.step()
    return net


@pytest.mark.parametrize(
    ("regularizer", "weight"),
    [
        (None, 0.0),
        (der_regularizer, 0.01),
        (geom_regularizer, 0.01),
        (partial(geom_regularizer, error_scale="rank"), 0.01),
    ],
    ids=["none", "DER", "Geom", "Geom of ranks"],
)
def test_no_regularizer_gives_ignorance_far_from_the_data(
    regularizer: Regularizer | None, weight: float
) -> None:
    net = trained(regularizer, weight, cubes(0))
    with torch.no_grad():
        near, far = net(torch.tensor([[0.0]])), net(torch.tensor([[10.0]]))
    error = abs(float(far.loc) * _SCALE - 1000.0)
    inside, outside = (float(nig.epistemic.sqrt()) * _SCALE for nig in (near, far))
    # The network is wrong by hundreds, and hardly less sure of itself than inside.
    assert error > 200
    assert outside < 3 * inside
    assert outside < error / 100


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("curve", "limit"), [(cubes, 4.0), (waves, 3.0)])
def test_a_density_gives_it_and_changes_nothing_inside(
    curve: Callable[[int], tuple[Tensor, Tensor]], limit: float, seed: int
) -> None:
    x, y = curve(seed)
    net = trained(geom_regularizer if seed else None, 0.01, (x, y), steps=500)
    inside = torch.linspace(-limit, limit, 401)[:, None]
    outside = torch.tensor([[-2 * limit], [2 * limit]])
    with torch.no_grad():
        before, loc = net(inside).epistemic.sqrt(), net(inside).loc
        net.evidence.fit_density(net.body(x / 4))
        after, far = net(inside).epistemic.sqrt(), net(outside).epistemic.sqrt()
    assert torch.equal(net(inside).loc, loc)
    assert float(after.median()) == pytest.approx(float(before.median()), rel=0.03)
    # In deviations; in variances it is the square.
    assert float(far.min()) > 20 * float(after.median())

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


def trained(regularizer: Regularizer | None, weight: float) -> _Curve:
    """A network of y = x^3 with noise of deviation 3, seen from -4 to 4."""
    torch.manual_seed(0)
    net = _Curve()
    x = torch.empty(1000, 1).uniform_(-4, 4)
    y = (x**3 + 3 * torch.randn_like(x)) / _SCALE
    adam = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(1000):
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
    net = trained(regularizer, weight)
    with torch.no_grad():
        near, far = net(torch.tensor([[0.0]])), net(torch.tensor([[10.0]]))
    error = abs(float(far.loc) * _SCALE - 1000.0)
    inside, outside = (float(nig.epistemic.sqrt()) * _SCALE for nig in (near, far))
    # The network is wrong by hundreds, and hardly less sure of itself than inside.
    assert error > 200
    assert outside < 3 * inside
    assert outside < error / 100

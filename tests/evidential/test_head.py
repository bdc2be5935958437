"""The layer that predicts the evidence."""

import math

import pytest
import torch
from tests.evidential.nig_samples import LOSSES, PARAMETERS

from demr.evidential import EvidentialHead, geom_regularizer, nig_nll


def test_head_is_one_linear_layer_and_softplus() -> None:
    torch.manual_seed(0)
    head = EvidentialHead(8, targets=2)
    x, loc = torch.randn(4, 5, 8), torch.rand(4, 5, 2)
    nig = head(x, loc)
    assert sum(p.numel() for p in head.parameters()) == 8 * 6 + 6
    raw = x @ head.linear.weight.T + head.linear.bias
    nu, excess, beta = (torch.log1p(raw.exp()) + head.eps).chunk(3, dim=-1)
    torch.testing.assert_close(nig.nu, nu)
    torch.testing.assert_close(nig.alpha, 1 + excess)
    torch.testing.assert_close(nig.beta, beta)
    assert torch.equal(nig.loc, loc)


@pytest.mark.parametrize("targets", [1, 3, 4, 7])
def test_a_head_has_three_numbers_for_each_of_its_targets(targets: int) -> None:
    torch.manual_seed(0)
    head = EvidentialHead(2, targets=targets)
    with torch.no_grad():
        head.linear.weight.zero_()
        # softplus(-100) is nothing: what is left is eps, 1e-6 unless one asks for more.
        head.linear.bias.copy_(torch.cat([torch.zeros(targets), torch.full((2 * targets,), -100)]))
    # What padding holds is not looked at.
    nig = head(torch.zeros(5, 2), torch.full((5, targets), math.nan))
    torch.testing.assert_close(nig.nu, torch.full((5, targets), math.log(2) + 1e-6))
    for name in ("excess", "beta"):
        torch.testing.assert_close(getattr(nig, name), torch.full((5, targets), 1e-6))


@pytest.mark.parametrize("features", [torch.float32, torch.bfloat16])
def test_head_stays_float32_under_autocast(features: torch.dtype) -> None:
    torch.manual_seed(0)
    head = EvidentialHead(8, targets=2)
    x, loc = torch.randn(4, 8).to(features), torch.rand(4, 2).to(features)
    outside = head(x, loc)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16  # it is on
        inside = head(x, loc)
        losses = [loss(inside, torch.zeros(4, 2), None) for loss in LOSSES]
    for name in (*PARAMETERS, "excess"):
        assert getattr(inside, name).dtype == torch.float32
        assert torch.equal(getattr(inside, name), getattr(outside, name))
    for loss, value in zip(LOSSES, losses, strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, loss(outside, torch.zeros(4, 2), None))
    assert EvidentialHead(8).bfloat16()(x.bfloat16(), loc[:, :1]).nu.dtype == torch.float32
    assert EvidentialHead(8).double()(x.double(), loc[:, :1]).nu.dtype == torch.float64


def test_head_survives_extreme_features() -> None:
    head = EvidentialHead(1)
    with torch.no_grad():
        head.linear.weight.fill_(1.0)
        head.linear.bias.zero_()
    x = torch.tensor([[-1e4], [-12.0], [0.0], [1e4]], requires_grad=True)
    nig = head(x, torch.zeros(4, 1))
    assert (nig.alpha > 1).all()
    assert nig.variance.isfinite().all()
    value = nig_nll(nig, torch.full((4, 1), 0.5))
    (gradient,) = torch.autograd.grad(value, x)
    assert value.isfinite()
    assert gradient.isfinite().all()
    # softplus(-12) = 6.144e-6 in all three: nothing of alpha - 1 is lost on the way.
    small = math.log1p(math.exp(-12.0)) + head.eps
    assert nig.epistemic[1].item() == pytest.approx(1 / small, rel=1e-5)


def test_head_refuses_what_cannot_work() -> None:
    with pytest.raises(ValueError, match=r"loc must have shape \(4, 1\)"):
        EvidentialHead(8)(torch.zeros(4, 8), torch.zeros(4))
    with pytest.raises(ValueError, match="eps must be at least"):
        EvidentialHead(8, eps=1e-8)


def test_training_learns_the_noise() -> None:
    """A tiny regression: the aleatoric uncertainty finds a known noise level."""
    torch.manual_seed(0)
    x = torch.rand(512, 1)
    y = 2 * x + 0.1 * torch.randn(512, 1)
    head, line = EvidentialHead(1), torch.nn.Linear(1, 1)
    optimizer = torch.optim.Adam([*head.parameters(), *line.parameters()], lr=0.05)
    for _ in range(300):
        nig = head(x, line(x))
        loss = nig_nll(nig, y) + 0.01 * geom_regularizer(nig, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert nig.stddev.mean().item() == pytest.approx(0.1, rel=0.15)

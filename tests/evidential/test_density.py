"""What features look like, how far others are, and what that leaves of the evidence."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from demr.evidential import EvidentialHead, nig_nll
from demr.evidential.density import Density


def normal(rows: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, generator=generator)


def fitted(features: Tensor, held_out: Tensor | None = None) -> Density:
    density = Density(features.shape[-1])
    density.fit(features, held_out)
    return density


def test_strangeness_by_hand() -> None:
    # 0, 1, 2 ... 999, of which 512 are kept. The edge is that of 500 to whom the others are held:
    # most lie 1 from the nearest, and 95 % at most 3.
    density = fitted(torch.arange(1000.0)[:, None])
    kept = {round(float(k)) for k in _raw(density)}
    assert len(kept) == 512
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).tolist()
    assert kept == set(order[:512])
    near = sorted(min(abs(p - k) for k in order[:500]) for p in order[500:])
    # The floor: 2 % of what two numbers are usually apart, sqrt(2) deviations.
    edge = max(near[int(0.95 * 500)], 0.02 * np.std(order[:500]) * math.sqrt(2))
    for number in (-50.0, 500.5, 1400.0):
        away = min(abs(number - k) for k in kept)
        found = float(density.strangeness(torch.tensor([number]))[0])
        assert found == pytest.approx(away / edge, rel=1e-3, abs=2e-3)


def _raw(density: Density) -> Tensor:
    """The kept features as they were given."""
    assert density.bank is not None
    assert density.scale is not None
    assert density.axes is not None
    assert density.centre is not None
    return (density.bank / density.scale) @ density.axes.T + density.centre


def test_resemblance_is_one_inside_and_falls_with_a_power_outside() -> None:
    density = fitted(torch.arange(1000.0)[:, None])
    assert density.power == 2
    far = torch.tensor([[2000.0], [3000.0], [1e5]])
    strange = density.strangeness(far)
    torch.testing.assert_close(density(far), strange**-2, rtol=1e-5, atol=0)
    inside = torch.arange(100.0)[:, None] * 9.99
    usual = density.strangeness(inside)
    torch.testing.assert_close(density(inside), (1 + usual**8) ** -0.25)
    assert bool((density(inside).median() > 0.99).all())


def test_the_power_is_the_dimension_that_features_fill() -> None:
    for size, least, most in ((1, 2, 2), (3, 2, 4.5), (8, 4, 10), (60, 12, 16)):
        generator = torch.Generator().manual_seed(0)
        density = fitted(torch.rand(4000, size, generator=generator))
        assert least <= float(density._part("power", torch.zeros(1))) <= most
        strange = density.strangeness(torch.full((1, size), 30.0))
        found = density(torch.full((1, size), 30.0))
        torch.testing.assert_close(found, strange ** -density._part("power", strange))
        # Inside it is 1 all the same.
        inside = density(torch.rand(2000, size, generator=generator))
        assert float(inside.median()) > 0.97


def test_one_in_a_thousand_is_doubtful() -> None:
    density = fitted(normal(4000, 8), normal(4000, 8, 1))
    doubt = density.doubt(normal(20_000, 8, 2))
    assert float((doubt > 1).float().mean()) < 4e-3
    assert (density.doubt(normal(20, 8, 3) * 5) > 1).all()


def test_most_features_lie_within_the_edge() -> None:
    for size, rows in ((2, 3000), (64, 3000), (128, 3000), (200, 120)):
        density = fitted(normal(rows, size))
        share = (density.strangeness(normal(4000, size, 1)) <= 1).float().mean()
        # Of few features in many dimensions too; of many in few the edge is the least one.
        assert float(share) > 0.9
        assert (density.strangeness(normal(50, size, 2) * 4) > 1).all() or size == 2


def test_the_gap_between_clusters_is_strange_and_so_is_what_lies_beside_a_plane() -> None:
    clusters = torch.cat([normal(500, 8) - 20, normal(500, 8, 1) + 20])
    assert fitted(clusters).strangeness(torch.zeros(8)) > 2.5
    plane = torch.cat([normal(2000, 80), torch.zeros(2000, 20)], dim=1)
    off = torch.cat([normal(10, 80, 3), torch.full((10, 20), 2.0)], dim=1)
    density = fitted(plane)
    assert density.axes is not None
    assert density.axes.shape == (100, 64)
    assert (density.strangeness(off) > 1.2).all()


def test_held_out_features_move_the_edge_outwards_only() -> None:
    close, wide = normal(2000, 4), normal(2000, 4, 1) * 3
    inside = fitted(close).strangeness(wide)
    assert (inside > 1).float().mean() > 0.5
    assert float((fitted(close, wide).strangeness(wide) <= 1).float().mean()) > 0.9
    torch.testing.assert_close(
        fitted(close, close[:5]).strangeness(wide), fitted(close).strangeness(wide)
    )


def test_repeated_features_have_an_edge_and_unknown_ones_are_strange() -> None:
    words = normal(100, 16)
    shown = words[torch.randint(0, 90, (5000,), generator=torch.Generator().manual_seed(0))]
    density = fitted(shown)
    assert density.strangeness(words[:90]).max() < 0.1
    assert density.strangeness(words[90:]).min() > 5
    density.fit(shown, rows=20)
    assert density.bank is not None
    assert len(density.bank) == 20


def test_a_constant_dimension_is_no_division_by_zero() -> None:
    features = torch.cat([normal(500, 3), torch.full((500, 1), 7.0)], dim=1)
    density = fitted(features)
    assert density(features).isfinite().all()
    moved = features + torch.tensor([0.0, 0.0, 0.0, 5.0])
    assert (density.strangeness(moved) > 1).all()


@pytest.mark.parametrize(
    ("features", "held_out", "message"),
    [
        (torch.ones(100, 3), None, "all of these are equal"),
        (torch.full((100, 3), 1e20), None, "all of these are equal"),
        (torch.zeros(100, 3), None, "all of these are equal"),
        (torch.rand(3, 3), None, "at least 4 features, got 3"),
        (torch.rand(0, 3), None, "at least 4 features, got 0"),
        (torch.rand(50, 4), None, r"must be \(\.\.\., 3\), got shape \(50, 4\)"),
        (torch.tensor(1.0), None, r"must be \(\.\.\., 3\), got shape \(\)"),
        (torch.tensor([[1.0, 2.0, math.nan]] * 9), None, "got 9 of 9 that are not"),
        (torch.tensor([[1.0, 2.0, math.inf]] + [[0.0] * 3] * 9), None, "got 1 of 10"),
        (torch.rand(50, 3), torch.full((5, 3), math.nan), "held-out features must be finite"),
        (torch.rand(50, 3), torch.rand(5, 2), r"held-out features must be \(\.\.\., 3\)"),
    ],
)
def test_what_no_density_can_be_fitted_to(
    features: Tensor, held_out: Tensor | None, message: str
) -> None:
    head = EvidentialHead(3)
    with pytest.raises(ValueError, match=message) as caught:
        head.fit_density(features, held_out)
    assert "\n" not in str(caught.value)
    assert not head.density.fitted
    with pytest.raises(TypeError, match="features must be a tensor"):
        head.fit_density("nonsense")


def test_a_density_that_was_not_fitted_says_so_and_changes_nothing() -> None:
    head = EvidentialHead(4)
    with pytest.raises(ValueError, match="call fit"):
        head.strangeness(torch.zeros(2, 4))
    assert sorted(head.state_dict()) == ["linear.bias", "linear.weight"]
    head.fit_density(normal(50, 4))
    with pytest.raises(ValueError, match=r"features must be \(\.\.\., 4\), got \(2, 3\)"):
        head.strangeness(torch.zeros(2, 3))


def test_evidence_is_multiplied_by_the_resemblance() -> None:
    torch.manual_seed(0)
    head = EvidentialHead(6, targets=2)
    inside, loc = normal(900, 6), torch.rand(5, 7, 2)
    x = normal(35, 6, 1).view(5, 7, 6) * torch.tensor([1.0, 1, 3, 10, 30])[:, None, None]
    plain = head(x, loc)
    head.fit_density(inside.view(30, 30, 6).numpy())
    found, half = head(x, loc), head(x, loc, torch.full((7, 1), 0.5))
    share = head.density(x)
    torch.testing.assert_close(found.nu - head.eps, (plain.nu - head.eps) * share)
    torch.testing.assert_close(half.nu - head.eps, (plain.nu - head.eps) * share / 2)
    assert (share[4:] < 0.1).all()
    for name in ("loc", "alpha", "beta", "aleatoric"):
        assert torch.equal(getattr(found, name), getattr(plain, name))
    # One by one as all together.
    torch.testing.assert_close(head(x[1, 2][None], loc[1, 2][None]).nu[0], found.nu[1, 2])
    torch.testing.assert_close(head(x[1, 2], loc[1, 2]).nu, found.nu[1, 2])
    assert head.strangeness(x).shape == (5, 7)


@pytest.mark.parametrize("size", [5, 70])
@pytest.mark.parametrize("far", [1e3, 1e8, 1e20, 1e30])
def test_nothing_overflows_however_far(far: float, size: int) -> None:
    head = EvidentialHead(size)
    head.fit_density(normal(300, size))
    with torch.no_grad():
        head.linear.weight.zero_()
    x = (normal(4, size, 1) * far).requires_grad_()
    nig = head(x, torch.zeros(4, 1))
    value = nig_nll(nig, torch.ones(4, 1))
    (gradient,) = torch.autograd.grad(value, x)
    assert nig.variance.isfinite().all()
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert (nig.nu < 1e-4).all()


def test_nan_in_one_place_stays_there() -> None:
    head = EvidentialHead(5)
    head.fit_density(normal(300, 5))
    x = normal(3, 5, 1)
    x[1] = math.nan
    nig = head(x, torch.zeros(3, 1))
    assert nig.nu.isfinite()[:, 0].tolist() == [True, False, True]


def test_gradients_in_double_precision() -> None:
    torch.manual_seed(0)
    for size in (3, 70):  # with and without something beside the components
        head = EvidentialHead(size, targets=2).double()
        head.fit_density(normal(400, size).double())
        for scale in (0.8, 1.5, 4.0):
            x = (normal(6, size, 1).double() * scale).requires_grad_()
            loc = torch.rand(6, 2, dtype=torch.float64)
            assert torch.autograd.gradcheck(lambda x, h=head, y=loc: h(x, y).epistemic.log(), x)
            assert torch.autograd.gradcheck(head.density, x)
            assert torch.autograd.gradcheck(head.strangeness, x)


def test_it_is_stored_with_the_weights() -> None:
    torch.manual_seed(0)
    head = EvidentialHead(6, targets=2)
    head.fit_density(normal(2000, 6))
    state, x, loc = copy.deepcopy(head.state_dict()), normal(9, 6, 1) * 3, torch.rand(9, 2)
    assert state["density.bank"].shape == (512, 6)
    assert all(value.dtype == torch.float32 for value in state.values())
    for assign in (False, True):
        again = EvidentialHead(6, targets=2)
        again.load_state_dict(state, assign=assign)
        assert torch.equal(again(x, loc).nu, head(x, loc).nu)
    # A state of before is that of a head without; so is a copy of either.
    plain = EvidentialHead(6, targets=2).state_dict()
    again.load_state_dict(plain)
    assert not again.density.fitted
    assert copy.deepcopy(head).density.fitted


@pytest.mark.parametrize(
    "change",
    [
        {"density.bank": None},
        {"density.centre": torch.zeros(5)},
        {"density.axes": torch.zeros(6)},
        {"density.bank": torch.zeros(512, 7)},
        {"density.bank": torch.zeros(0, 6)},
        {"density.bank": torch.zeros(4097, 6)},
        {"density.scale": torch.zeros(7)},
    ],
)
def test_a_state_that_holds_no_density(change: dict[str, Any]) -> None:
    head = EvidentialHead(6)
    head.fit_density(normal(2000, 6))
    state = {k: v for k, v in {**head.state_dict(), **change}.items() if v is not None}
    with pytest.raises(ValueError, match="density of shapes that fit no density"):
        EvidentialHead(6).load_state_dict(state)


@pytest.mark.parametrize("features", [torch.float32, torch.bfloat16, torch.float16])
def test_under_autocast_it_is_what_it_is_without(features: torch.dtype) -> None:
    torch.manual_seed(0)
    head = EvidentialHead(8, targets=2)
    head.fit_density(normal(900, 8).to(features))
    x, loc = (normal(40, 8, 1) * 2).to(features), torch.rand(40, 2)
    outside = head(x, loc)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head(x, loc)
    assert inside.nu.dtype == torch.float32
    assert torch.equal(inside.nu, outside.nu)
    exact = copy.deepcopy(head).double()(x.double(), loc.double()).nu
    torch.testing.assert_close(outside.nu.double(), exact, rtol=2e-3, atol=1e-6)


def test_fitting_is_a_function_of_the_features_alone() -> None:
    first, second = fitted(normal(900, 8)), Density(8)
    torch.manual_seed(5)
    second.fit(normal(100, 8, 9))
    second.fit(normal(900, 8))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert torch.rand(1) == _after_seed_5()


def _after_seed_5() -> Tensor:
    torch.manual_seed(5)
    return torch.rand(1)

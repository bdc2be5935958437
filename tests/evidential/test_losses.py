"""The losses against hand-worked numbers, float64 and finite differences."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.evidential.nig_samples import (
    LOSSES,
    Loss,
    gradients,
    leaves_of,
    random_nig,
    random_target,
    rank_regularizer,
    wide_grid,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from demr.evidential import (
    NormalInverseGamma,
    der_regularizer,
    geom_regularizer,
    geom_terms,
    nig_nll,
)


def test_geom_hand_worked() -> None:
    # Evidence 7, 3, 4: bars 1, 0, 1/4. Errors 0.3, 0.1, 0.2: bars 1, 0, 1/2.
    # Squared distances from the line: 1, 1 and (1/4 + 1/2 - 1)^2 = 1/16, over 3.
    nig = NormalInverseGamma(
        torch.tensor([0.0, 0.5, 1.0]), torch.tensor([2.0, 0.5, 1.0]), torch.tensor([3.0, 2, 2]), 0.1
    )
    target = torch.tensor([0.3, 0.4, 1.2])
    torch.testing.assert_close(geom_regularizer(nig, target), torch.tensor(2.0625 / 3))


def test_float32_losses_agree_with_float64() -> None:
    residual, nu, alpha, beta = (leaf[-20_000:] for leaf in wide_grid())
    for loss in LOSSES:
        results = []
        for dtype in (torch.float32, torch.float64):
            leaves = [p.to(dtype).requires_grad_() for p in (0 * nu, nu, alpha, beta)]
            value = loss(NormalInverseGamma(*leaves), residual.to(dtype), None)
            grads = torch.autograd.grad(value, leaves, allow_unused=True)
            results.append([value, *filter(torch.is_tensor, grads)])
        for low, high in zip(*results, strict=True):
            torch.testing.assert_close(low.double(), high, rtol=1e-4, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss: Loss) -> None:
    target, mask = random_target(4, 2), torch.tensor([True, True, False, True])
    nig = random_nig(4, 2)

    def run(loc: Tensor, nu: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        return loss(NormalInverseGamma(loc, nu, alpha, beta), target, mask)

    if loss in (geom_regularizer, rank_regularizer):
        # Its errors and extrema are constants to the gradient, which finite differences would
        # move: hold them by checking against the same loss with frozen bars.
        phi, delta = nig.evidence[mask], (target - nig.loc)[mask].abs()
        low, span = phi.min().detach(), (phi.max() - phi.min()).detach()
        bar = ((delta - delta.min()) / (delta.max() - delta.min())).detach()
        if loss is rank_regularizer:
            bar = delta.flatten().argsort().argsort().view_as(delta).double() / (delta.numel() - 1)
        frozen = geom_terms((phi - low) / span, bar).mean()
        torch.testing.assert_close(run(*leaves_of(nig)), frozen)
        expected = torch.autograd.grad(frozen, [nig.nu, nig.alpha])
        actual = torch.autograd.grad(run(*leaves_of(nig)), [nig.nu, nig.alpha])
        for mine, theirs in zip(actual, expected, strict=True):
            torch.testing.assert_close(mine, theirs)
        return
    assert gradcheck(run, leaves_of(nig))
    assert gradgradcheck(run, leaves_of(nig))


def test_geom_gradient_changes_sign_at_the_line_and_ders_never() -> None:
    phi, delta = torch.meshgrid(
        torch.linspace(0, 1, 11, dtype=torch.float64),
        torch.linspace(0, 1, 11, dtype=torch.float64),
        indexing="ij",
    )
    phi = phi.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(geom_terms(phi, delta).sum(), phi)
    line = (delta + phi - 1).detach()
    torch.testing.assert_close(gradient, 2 * line)
    assert (gradient[line < -1e-9] < 0).all()  # descent raises evidence below the line
    assert (gradient[line > 1e-9] > 0).all()  # and lowers it above

    nig, target = random_nig(30), random_target(30)
    span = (nig.evidence.max() - nig.evidence.min()).item()
    (geom,) = torch.autograd.grad(geom_regularizer(nig, target), nig.alpha)
    (der,) = torch.autograd.grad(der_regularizer(nig, target), nig.alpha)
    error = (target - nig.loc).abs().detach()
    phi_bar = (nig.evidence.detach() - nig.evidence.min().item()) / span
    delta_bar = (error - error.min()) / (error.max() - error.min())
    torch.testing.assert_close(geom, 2 * (phi_bar + delta_bar - 1) / span / 30)
    assert (geom < 0).any()
    assert (geom > 0).any()
    torch.testing.assert_close(der, error / 30)


def test_which_loss_reaches_which_parameter() -> None:
    nig, target = random_nig(5, 2), random_target(5, 2)
    reached = {
        loss.__name__: [
            g is not None and bool(g.any()) for g in gradients(loss(nig, target, None), nig)
        ]
        for loss in LOSSES
    }
    assert reached == {
        "nig_nll": [True, True, True, True],
        "der_regularizer": [True, True, True, False],
        "geom_regularizer": [False, True, True, False],
        "rank_regularizer": [False, True, True, False],
        "anchored_regularizer": [False, True, True, False],
    }


@pytest.mark.parametrize("loss", LOSSES)
def test_mask_equals_selecting(loss: Loss) -> None:
    nig, target = random_nig(3, 4, 2), random_target(3, 4, 2)
    mask = torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) > 0.4
    masked, selected = loss(nig, target, mask), loss(nig[mask], target[mask], None)
    torch.testing.assert_close(masked, selected)
    torch.testing.assert_close(loss(nig, target, mask[..., None].expand(3, 4, 2)), selected)
    for a, b in zip(gradients(masked, nig), gradients(selected, nig), strict=True):
        torch.testing.assert_close(a, b)


@settings(deadline=None, max_examples=40)
@given(
    loss=st.sampled_from(LOSSES),
    garbage=st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e38]),
    holes=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_garbage_under_the_mask_changes_nothing(
    loss: Loss, garbage: float, holes: list[bool]
) -> None:
    mask = ~torch.tensor(holes)
    nig, target = random_nig(6, 2, dtype=torch.float32), random_target(6, 2).float()
    clean = loss(nig, target, mask)
    clean_gradients = gradients(clean, nig)
    dirty_leaves = [
        leaf.detach().masked_fill(~mask[:, None], garbage).requires_grad_()
        for leaf in leaves_of(nig)
    ]
    dirty_nig = NormalInverseGamma(*dirty_leaves, validate_args=False)
    dirty = loss(dirty_nig, target.masked_fill(~mask[:, None], garbage), mask)
    assert torch.equal(clean, dirty)
    for a, b in zip(clean_gradients, gradients(dirty, dirty_nig), strict=True):
        assert (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))


@pytest.mark.parametrize("loss", LOSSES)
def test_no_valid_entry_is_zero_with_zero_gradient(loss: Loss) -> None:
    nig = random_nig(3, 2, dtype=torch.float32)
    target = torch.full((3, 2), math.nan)
    value = loss(nig, target, torch.zeros(3, dtype=torch.bool))
    assert value.item() == 0.0
    assert value.requires_grad
    for gradient in gradients(value, nig):
        assert gradient is None or not gradient.any()

    empty = random_nig(0, 2, dtype=torch.float32)
    assert loss(empty, torch.zeros(0, 2), None).item() == 0.0


def test_ranked_errors_by_hand() -> None:
    # Evidence 2 nu + alpha: 4, 6, 8, 12 -> 0, 1/4, 1/2, 1. Errors 0.9, 0.1, 0.1, 0.3: the two
    # equal ones share the places 0 and 1, so the ranks are 3, 1/2, 1/2, 2 of 3.
    nu = torch.tensor([1.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    alpha = torch.tensor([2.0, 4.0, 4.0, 6.0], dtype=torch.float64)
    target = torch.tensor([0.9, 0.1, -0.1, 0.3], dtype=torch.float64)
    nig = NormalInverseGamma(torch.zeros_like(target), nu, alpha, 1.0)
    by_hand = (0.0**2 + (0.25 + 1 / 6 - 1) ** 2 + (0.5 + 1 / 6 - 1) ** 2 + (2 / 3) ** 2) / 4
    value = geom_regularizer(nig, target, error_scale="rank")
    assert value.item() == pytest.approx(by_hand)
    # A hundred times the largest error changes nothing, where min-max would change everything.
    target[0] = 90.0
    assert geom_regularizer(nig, target, error_scale="rank").item() == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="error_scale must be"):
        geom_regularizer(nig, target, error_scale="minmax")  # type: ignore[arg-type]


def test_doubt_raises_the_error_that_geom_sees() -> None:
    # Evidence 2 nu + alpha of 4, 6 and 10; errors of 0, 1 and 4.
    nig = NormalInverseGamma(
        torch.zeros(3), torch.tensor([1.0, 2.0, 4.0]), torch.full((3,), 2.0), torch.ones(3)
    )
    target = torch.tensor([0.0, 1.0, 4.0])
    phi, delta = (0.0, 1 / 3, 1.0), (0.0, 0.25, 1.0)
    doubt = torch.tensor([0.5, 0.2, 0.7])
    # 1 - (1 - 0)(1 - 0.5), 1 - (1 - 0.25)(1 - 0.2), and 1, which no doubt can raise.
    seen = (0.5, 0.4, 1.0)
    plain = sum((p + d - 1) ** 2 for p, d in zip(phi, delta, strict=True)) / 3
    doubted = sum((p + d - 1) ** 2 for p, d in zip(phi, seen, strict=True)) / 3
    assert geom_regularizer(nig, target).item() == pytest.approx(plain)
    assert geom_regularizer(nig, target, doubt=torch.zeros(3)).item() == pytest.approx(plain)
    assert geom_regularizer(nig, target, doubt=doubt).item() == pytest.approx(doubted)
    # One doubt an item holds for all of its entries.
    table = nig.map_parameters(lambda parameter: parameter[:, None].expand(3, 2))
    both = geom_regularizer(table, target[:, None].expand(3, 2), doubt=doubt)
    assert both.item() == pytest.approx(doubted)


@pytest.mark.parametrize("geom_regularizer", [geom_regularizer, rank_regularizer])
@pytest.mark.parametrize("constant", ["evidence", "error", "both", "single entry"])
def test_geom_of_a_constant_batch_is_zero(constant: str, geom_regularizer: Loss) -> None:
    nig, target = random_nig(5), random_target(5)
    loc, nu, alpha, beta = leaves_of(nig)
    if constant in {"evidence", "both"}:
        nu, alpha = (torch.full_like(p, 2.0).requires_grad_() for p in (nu, alpha))
    if constant in {"error", "both"}:
        target, loc = torch.full_like(target, 0.25), torch.zeros_like(loc).requires_grad_()
    if constant == "single entry":
        loc, nu, alpha, beta, target = (p[:1] for p in (loc, nu, alpha, beta, target))
    value = geom_regularizer(NormalInverseGamma(loc, nu, alpha, beta), target, None)
    assert value.item() == 0.0
    for gradient in torch.autograd.grad(value, [nu, alpha]):
        assert not gradient.any()


@pytest.mark.parametrize("loss", [nig_nll, der_regularizer, geom_regularizer])
def test_unreduced_values_have_the_mean(loss: Callable[..., Tensor]) -> None:
    nig, target = random_nig(3, 4, 2), random_target(3, 4, 2)
    mask = torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) > 0.4
    each = loss(nig, target, mask, reduction="none")
    assert each.shape == (3, 4, 2)
    assert not each[~mask].any()
    torch.testing.assert_close(each[mask].mean(), loss(nig, target, mask))
    whole = loss(nig, target, reduction="none")
    torch.testing.assert_close(whole.mean(), loss(nig, target))
    if loss is nig_nll:
        torch.testing.assert_close(whole, -nig.log_prob(target))
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'none', got 'sum'"):
        loss(nig, target, reduction="sum")


def test_shapes_and_types_are_checked() -> None:
    nig, target = random_nig(3, 2), random_target(3, 2)
    for loss in LOSSES:
        with pytest.raises(ValueError, match=r"target must have shape \(3, 2\), got \(3,\)"):
            loss(nig, target[:, 0], None)
        with pytest.raises(ValueError, match="mask must have the leading dimensions"):
            loss(nig, target, torch.ones(2, dtype=torch.bool))
        with pytest.raises(ValueError, match="mask must have the leading dimensions"):
            loss(nig, target, torch.ones(3, 2, 1, dtype=torch.bool))
        with pytest.raises(TypeError, match="mask must be bool"):
            loss(nig, target, torch.ones(3))


@pytest.mark.parametrize("shape", [(4, 3), (5, 3), (3,), (4, 5, 1)])
def test_a_mask_of_other_dimensions_is_refused(shape: tuple[int, ...]) -> None:
    nig = random_nig(4, 5)
    with pytest.raises(ValueError, match="leading dimensions"):
        der_regularizer(
            nig, torch.zeros(4, 5, dtype=nig.loc.dtype), torch.ones(shape, dtype=torch.bool)
        )


def test_arrays_are_taken_as_tensors_are() -> None:
    """Targets mostly come as NumPy arrays; the prediction's device and dtype count."""
    nig = NormalInverseGamma(torch.tensor([0.4, 0.6]), 1.0, 2.0, 0.01)
    target, mask = torch.tensor([0.5, 0.3]), torch.tensor([True, False])
    for loss in (nig_nll, der_regularizer, geom_regularizer):
        expected = loss(nig, target, mask)
        for same in (target.numpy(), target.double().numpy(), target.tolist()):
            found = loss(nig, same, mask.numpy())
            assert found.dtype == torch.float32
            torch.testing.assert_close(found, expected)
        with pytest.raises(TypeError, match="target must be a tensor, an array or numbers"):
            loss(nig, "0.5", mask)
        with pytest.raises(TypeError, match="mask must be bool"):
            loss(nig, target, np.array([1, 0]))
        with pytest.raises(ValueError, match="target must have shape"):
            loss(nig, np.zeros((3,)))
    for read in (nig.log_prob, nig.cdf, nig.icdf):
        torch.testing.assert_close(read(target.numpy()), read(target))


def test_one_entry_alone_cannot_be_put_in_order() -> None:
    nig = NormalInverseGamma(torch.tensor([0.4]), 1.0, 2.0, 0.01)
    with pytest.warns(UserWarning, match="of one entry alone it is 0"):
        assert geom_regularizer(nig, torch.tensor([0.5])) == 0
    two = NormalInverseGamma(torch.tensor([0.4, 0.6]), torch.tensor([1.0, 2.0]), 2.0, 0.01)
    assert geom_regularizer(two, torch.tensor([0.5, 0.6]), torch.tensor([True, False])) == 0
    # Evidence 0 and 1, errors 1 and 0: both lie on the line.
    assert geom_regularizer(two, torch.tensor([0.6, 0.6])) == 0
    # Errors 0 and 1 instead: (0 + 0 - 1)^2 and (1 + 1 - 1)^2.
    assert geom_regularizer(two, torch.tensor([0.4, 0.9])) == 1

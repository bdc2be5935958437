"""The evidential module against torch's Student-t, hand-worked numbers and float64."""

import doctest
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import StudentT

import demr.evidential as evidential_module
from demr.evidential import (
    EvidentialHead,
    NormalInverseGamma,
    der_regularizer,
    geom_regularizer,
    geom_terms,
    nig_nll,
)

Loss = Callable[[NormalInverseGamma, Tensor, Tensor | None], Tensor]


def rank_regularizer(nig: NormalInverseGamma, target: Tensor, mask: Tensor | None = None) -> Tensor:
    return geom_regularizer(nig, target, mask, error_scale="rank")


LOSSES: list[Loss] = [nig_nll, der_regularizer, geom_regularizer, rank_regularizer]
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


# --- values ---------------------------------------------------------------------------------


def test_log_prob_is_torchs_student_t() -> None:
    nig, y = random_nig(50, 3), random_target(50, 3)
    reference = StudentT(
        2 * nig.alpha, nig.loc, (nig.beta * (1 + nig.nu) / (nig.nu * nig.alpha)).sqrt()
    ).log_prob(y)
    torch.testing.assert_close(nig.log_prob(y), reference, rtol=1e-12, atol=1e-12)
    theirs = nig.predictive().log_prob(y)
    torch.testing.assert_close(theirs, reference, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(nig_nll(nig, y), -reference.mean(), rtol=1e-12, atol=1e-12)


def test_hand_worked_numbers() -> None:
    # First entry: q = 2 * 0.5 * (1 + 1/2) = 1.5, t^2 = 0.09 / 1.5 = 0.06, and
    #   3.5 ln 1.06 + 1/2 ln(1.5 pi) + ln Gamma(3) - ln Gamma(3.5)
    #   = 0.2039411 + 0.7750975 + 0.6931472 - 1.2009736 = 0.4712122.
    # Second: q = 2 * 0.2 * (1 + 1/0.5) = 1.2, t^2 = 0.01 / 1.2 = 1/120, and
    #   2.5 ln(121/120) + 1/2 ln(1.2 pi) + ln Gamma(2) - ln Gamma(2.5)
    #   = 0.0207470 + 0.6635257 + 0 - 0.2846829 = 0.3995898.
    loc, nu = torch.tensor([0.2, 0.7]), torch.tensor([2.0, 0.5])
    alpha, beta = torch.tensor([3.0, 2.0]), torch.tensor([0.5, 0.2])
    nig, y = NormalInverseGamma(loc, nu, alpha, beta), torch.tensor([0.5, 0.6])
    torch.testing.assert_close(
        nig.log_prob(y), -torch.tensor([0.4712122, 0.3995898]), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(nig_nll(nig, y), torch.tensor(0.4354010), rtol=0, atol=1e-6)
    torch.testing.assert_close(nig.aleatoric, torch.tensor([0.25, 0.2]))
    torch.testing.assert_close(nig.epistemic, torch.tensor([0.125, 0.4]))
    torch.testing.assert_close(nig.variance, torch.tensor([0.375, 0.6]))
    torch.testing.assert_close(nig.stddev, torch.tensor([0.375, 0.6]).sqrt())
    torch.testing.assert_close(nig.evidence, torch.tensor([7.0, 3.0]))
    # The mean of 0.3 * 7 and 0.1 * 3.
    torch.testing.assert_close(der_regularizer(nig, y), torch.tensor(1.2))


def test_geom_hand_worked() -> None:
    # Evidence 7, 3, 4: bars 1, 0, 1/4. Errors 0.3, 0.1, 0.2: bars 1, 0, 1/2.
    # Squared distances from the line: 1, 1 and (1/4 + 1/2 - 1)^2 = 1/16, over 3.
    nig = NormalInverseGamma(
        torch.tensor([0.0, 0.5, 1.0]), torch.tensor([2.0, 0.5, 1.0]), torch.tensor([3.0, 2, 2]), 0.1
    )
    target = torch.tensor([0.3, 0.4, 1.2])
    torch.testing.assert_close(geom_regularizer(nig, target), torch.tensor(2.0625 / 3))


def test_variance_is_the_predictive_variance() -> None:
    nig = random_nig(20)
    torch.testing.assert_close(nig.variance, nig.predictive().variance)
    torch.testing.assert_close(nig.mean, nig.predictive().mean)


def test_residual_gradient_is_not_damped() -> None:
    # (alpha + 1/2) 2 nu r / (nu r^2 + W) = 2.5 * 0.2 / (0.01 + 0.04); with the release's softplus
    # around the denominator it would be 2.5 * 0.2 * sigmoid(0.05) / softplus(0.05) = 0.357.
    loc = torch.tensor(0.0, requires_grad=True)
    nig_nll(NormalInverseGamma(loc, 1.0, 2.0, 0.01), torch.tensor(0.1)).backward()
    assert loc.grad is not None
    assert loc.grad.item() == pytest.approx(-10.0, rel=1e-6)


def test_far_residual_overflows_nothing() -> None:
    loc = torch.tensor([0.0, 1e30, 3.0], requires_grad=True)
    nig = NormalInverseGamma(loc, 1.0, 2.0, torch.tensor([1e-6, 1e-6, 1e-30]))
    nll = nig_nll(nig, torch.tensor([1e25, 0.0, 3.0]))
    (gradient,) = torch.autograd.grad(nll, loc)
    assert nll.isfinite()
    assert gradient.isfinite().all()


# --- precision ------------------------------------------------------------------------------


def reference_nll(
    r: Tensor, nu: Tensor, alpha: Tensor, beta: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Value and gradients (residual, nu, alpha, beta) in float64, by closed forms.

    The textbook's own gradients lose up to 1 % in float64 where they nearly vanish.
    """
    r, nu, alpha, beta = r.double(), nu.double(), alpha.double(), beta.double()
    z = r**2 * nu / (2 * beta * (1 + nu))
    w = 2 * beta * (1 + nu)
    value = (
        0.5 * (math.pi / nu).log()
        - alpha * w.log()
        + (alpha + 0.5) * (nu * r**2 + w).log()
        + torch.lgamma(alpha)
        - torch.lgamma(alpha + 0.5)
    )
    pull = (alpha * z - 0.5) / (1 + z)
    digammas = torch.digamma(alpha) - torch.digamma(alpha + 0.5)
    return value, [
        (2 * alpha + 1) * nu * r / (nu * r**2 + w),
        pull / (nu * (1 + nu)),
        z.log1p() + digammas,
        -pull / beta,
    ]


def wide_grid() -> list[Tensor]:
    """Corners and decades (where gradients vanish exactly), and random points between."""
    residual = torch.tensor([0.0, 1e-6, 1e-4, 1e-2, 0.1, 0.5, 1.0])
    decades = torch.logspace(-6, 6, 7)
    excess = torch.tensor([1e-5, 1e-3, 0.1, 0.5, 1, 2, 3, 7, 10, 100, 1e3, 1e4, 1e5, 1e6])
    grid = torch.meshgrid(residual, decades, 1 + excess, decades, indexing="ij")
    u = torch.rand(4, 20_000, generator=torch.Generator().manual_seed(0))
    points = (u[0], 10 ** (12 * u[1] - 6), 1 + 10 ** (11 * u[2] - 5), 10 ** (12 * u[3] - 6))
    return [torch.cat([a.flatten(), b]) for a, b in zip(grid, points, strict=True)]


@pytest.mark.parametrize("device_has_float64", [True, False])
def test_float32_agrees_with_float64(
    device_has_float64: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not device_has_float64:
        monkeypatch.setattr(evidential_module, "_widen", lambda tensor: tensor)
    residual, nu, alpha, beta = (leaf.requires_grad_() for leaf in wide_grid())
    value = -NormalInverseGamma(torch.zeros_like(nu), nu, alpha, beta).log_prob(residual)
    assert value.dtype == torch.float32
    computed = torch.autograd.grad(value.sum(), [residual, nu, alpha, beta])
    with torch.no_grad():
        expected, expected_gradients = reference_nll(residual, nu, alpha, beta)
        # Near its zeros the reference is itself a difference of terms of these sizes: at
        # alpha = 1e6 its two digammas, 13.8 each, leave an error of 5e-9 of them. Exact
        # arithmetic (40 digits) sides with the code under test there.
        sizes = [0 * nu, 0.5 / (nu * (1 + nu)), 0.5 / alpha, 0.5 / beta]
        noise = 1e-8 if device_has_float64 else 1e-6
        small = 1e-8 if device_has_float64 else 1e-6
        assert ((value - expected).abs() <= 1e-4 * expected.abs() + small).all()
        for mine, theirs, size in zip(computed, expected_gradients, sizes, strict=True):
            assert mine.isfinite().all()
            assert ((mine - theirs).abs() <= 1e-4 * theirs.abs() + noise * size).all()


def test_variances_keep_their_digits() -> None:
    _, nu, alpha, beta = wide_grid()
    nig = NormalInverseGamma(0.0, nu, alpha, beta)
    aleatoric = beta.double() / (alpha.double() - 1)
    torch.testing.assert_close(nig.aleatoric.double(), aleatoric, rtol=1e-6, atol=0)
    torch.testing.assert_close(nig.epistemic.double(), aleatoric / nu.double(), rtol=1e-6, atol=0)


def test_from_excess_is_not_quantised_by_alpha() -> None:
    excess = torch.tensor(1.05e-5)
    exact = NormalInverseGamma.from_excess(0.0, 2.0, excess, 0.3)
    rounded = NormalInverseGamma(0.0, 2.0, 1 + excess, 0.3)
    assert exact.aleatoric.item() == pytest.approx(0.3 / 1.05e-5, rel=1e-6)
    assert rounded.aleatoric.item() != pytest.approx(0.3 / 1.05e-5, rel=1e-4)
    assert exact.expand((2,))[0].detach().excess == excess


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


# --- gradients ------------------------------------------------------------------------------


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
    }


def test_likelihood_does_not_identify_nu() -> None:
    nu = torch.tensor([0.2, 1.0, 30.0], dtype=torch.float64)
    nig = NormalInverseGamma(0.1, nu, 2.5, 0.4 * nu / (1 + nu))
    log_prob = nig.log_prob(torch.tensor(0.7, dtype=torch.float64))
    torch.testing.assert_close(log_prob, log_prob[:1].expand(3))
    torch.testing.assert_close(nig.variance, nig.variance[:1].expand(3))


# --- masks ----------------------------------------------------------------------------------


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


def test_geom_compares_errors_in_the_unit_it_is_given() -> None:
    nig = NormalInverseGamma(
        torch.zeros(3), torch.tensor([1.0, 2.0, 4.0]), torch.full((3,), 2.0), torch.ones(3)
    )
    target = torch.tensor([0.1, 0.2, 0.3])
    # In units of 30, 5 and 20: errors of 3, 1 and 6, against evidence of 4, 6 and 10.
    phi, delta = (0.0, 1 / 3, 1.0), (0.4, 0.0, 1.0)
    expected = sum((p + d - 1) ** 2 for p, d in zip(phi, delta, strict=True)) / 3
    unit = torch.tensor([30.0, 5.0, 20.0])
    assert geom_regularizer(nig, target, unit=unit).item() == pytest.approx(expected)
    phi, delta = (0.0, 1 / 3, 1.0), (0.5, 0.0, 1.0)
    expected = sum((p + d - 1) ** 2 for p, d in zip(phi, delta, strict=True)) / 3
    ranked = geom_regularizer(nig, target, unit=unit, error_scale="rank")
    assert ranked.item() == pytest.approx(expected)


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
    table = nig._map(lambda parameter: parameter[:, None].expand(3, 2))
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


# --- the distribution -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"), [("nu", 0.0), ("alpha", 1.0), ("beta", -1.0), ("loc", math.nan)]
)
def test_parameters_out_of_range_are_refused(name: str, value: float) -> None:
    good = {"loc": 0.0, "nu": 1.0, "alpha": 2.0, "beta": 1.0}
    with pytest.raises(ValueError, match=f"parameter {name}"):
        NormalInverseGamma(**{**good, name: value}, validate_args=True)


def test_parameters_broadcast_and_are_promoted() -> None:
    nig = NormalInverseGamma(torch.zeros(3, 1, dtype=torch.bfloat16), torch.ones(2), 2, 0.5)
    assert nig.batch_shape == (3, 2)
    assert nig.event_shape == ()
    assert {p.dtype for p in (nig.loc, nig.nu, nig.alpha, nig.beta)} == {torch.float32}
    assert nig.log_prob(torch.zeros(5, 3, 2)).shape == (5, 3, 2)
    assert NormalInverseGamma(0, 1, 2, 3).loc.dtype == torch.get_default_dtype()


def test_expand_index_detach_pickle() -> None:
    nig, y = random_nig(3, 2), random_target(3, 2)
    log_prob = nig.log_prob(y)
    torch.testing.assert_close(nig.expand((4, 3, 2)).log_prob(y), log_prob.expand(4, 3, 2))
    torch.testing.assert_close(nig[1:, 0].log_prob(y[1:, 0]), log_prob[1:, 0])
    keep = torch.tensor([2, 0])
    torch.testing.assert_close(nig[keep].variance, nig.variance[keep])
    assert nig[..., 1].batch_shape == (3,)
    assert not nig.detach().variance.requires_grad
    assert nig.variance.requires_grad
    again = pickle.loads(pickle.dumps(nig.detach()))  # noqa: S301
    torch.testing.assert_close(again.variance, nig.variance.detach())


def test_samples_have_the_mean_and_variance() -> None:
    torch.manual_seed(0)
    nig = NormalInverseGamma(
        torch.tensor([0.3, -2.0]),
        torch.tensor([0.5, 8.0]),
        torch.tensor([6.0, 20.0]),
        torch.tensor([0.2, 30.0]),
    )
    samples = nig.sample(torch.Size([200_000]))
    assert samples.shape == (200_000, 2)
    torch.testing.assert_close(samples.mean(0), nig.mean, rtol=0.01, atol=0)
    torch.testing.assert_close(samples.var(0), nig.variance, rtol=0.02, atol=0)


def test_samples_carry_gradients() -> None:
    torch.manual_seed(0)
    nig = random_nig(3)
    samples = nig.rsample(torch.Size([20_000]))
    # d E[y] / d loc = 1; d Var[y] / d beta = Var / beta.
    (slope,) = torch.autograd.grad(samples.mean(0).sum(), nig.loc, retain_graph=True)
    torch.testing.assert_close(slope, torch.ones(3, dtype=torch.float64))
    (slope,) = torch.autograd.grad(samples.var(0).sum(), nig.beta)
    torch.testing.assert_close(slope, (samples.var(0) / nig.beta).detach(), rtol=1e-3, atol=0)
    assert not nig.sample().requires_grad


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_credible_interval_covers_its_level(level: float) -> None:
    torch.manual_seed(0)
    nig = NormalInverseGamma(
        torch.tensor([0.3, -2.0, 5.0]),
        torch.tensor([0.5, 8.0, 1e-3]),
        torch.tensor([1.01, 2.5, 1e5]),
        torch.tensor([0.2, 30.0, 1e-4]),
    )
    low, high = nig.credible_interval(level)
    n = 50_000
    samples = nig.sample(torch.Size([n]))
    covered = ((samples >= low) & (samples <= high)).double().mean(0)
    assert (covered - level).abs().max() < 4 * math.sqrt(level * (1 - level) / n)
    torch.testing.assert_close((low + high) / 2, nig.loc)


def test_quantiles_invert_the_distribution_function() -> None:
    nig = random_nig(4)
    probability = torch.tensor([0.01, 0.25, 0.5, 0.999], dtype=torch.float64)
    quantile = nig.icdf(probability)
    torch.testing.assert_close(nig.cdf(quantile), probability)
    low, high = nig.credible_interval(0.9)
    torch.testing.assert_close(nig.cdf(high) - nig.cdf(low), torch.full_like(low, 0.9))
    # Student-t with 2 degrees of freedom has the closed form (2p - 1) / sqrt(2 p (1 - p)).
    near = NormalInverseGamma.from_excess(0.0, 1.0, 1e-6, 0.5)
    assert near.credible_interval(0.8)[1].item() == pytest.approx(0.8 / math.sqrt(0.18), rel=1e-5)
    # And ever more degrees of freedom give the normal's 1.6448536.
    far = NormalInverseGamma(0.0, 1.0, 1e6, 0.5e6)
    assert far.credible_interval(0.9)[1].item() == pytest.approx(1.6448536, rel=1e-5)
    for level in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="level must lie between 0 and 1"):
            nig.credible_interval(level)


# --- the head -------------------------------------------------------------------------------


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


def test_docstrings_run() -> None:
    results = doctest.testmod(evidential_module)
    assert results.attempted > 5
    assert results.failed == 0

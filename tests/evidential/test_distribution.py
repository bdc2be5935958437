"""The distribution against torch's Student-t, hand-worked numbers and float64."""

import doctest
import math
import pickle

import pytest
import torch
from tests.evidential.nig_samples import gradients, random_nig, random_target, wide_grid
from torch import Tensor
from torch.distributions import StudentT

from demr import evidential
from demr.evidential import NormalInverseGamma, der_regularizer, nig_nll, student_t
from demr.evidential import distribution as distribution_module
from demr.evidential import head as head_module
from demr.evidential import losses as losses_module


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


@pytest.mark.parametrize("residual", [1e8, 1e9, 1e10, 1e15])
def test_far_residuals_have_the_likelihood_of_torchs_student_t(residual: float) -> None:
    loc, nu, alpha, beta = torch.tensor([0.0, 2.0, 1.5, 0.3], dtype=torch.float64)
    nig = NormalInverseGamma(loc, nu, alpha, beta)
    value = torch.tensor(residual, dtype=torch.float64)
    expected = StudentT(2 * alpha, loc, (beta * (1 + nu) / (nu * alpha)).sqrt()).log_prob(value)
    torch.testing.assert_close(nig.log_prob(value), expected, rtol=1e-12, atol=0)


def test_the_series_has_eulers_numbers() -> None:
    # By their recurrence: sum over k of binomial(2n, 2k) E_2k is 0 for every n above 0.
    euler = [1, *map(int, student_t._EULER)]
    for n in range(1, len(euler)):
        assert sum(math.comb(2 * n, 2 * k) * euler[k] for k in range(n + 1)) == 0


@pytest.mark.parametrize("alpha", [1.0, 1.25, 1.5, 2.0, 3.0, 4.5])
def test_the_quotient_of_gammas_keeps_its_digits(alpha: float) -> None:
    ratio, correction = student_t._gamma_ratio(torch.tensor(alpha, dtype=torch.float64))
    expected = math.lgamma(alpha + 0.5) - math.lgamma(alpha)
    assert 0.5 * math.log(ratio.item()) + correction.item() == pytest.approx(expected, abs=3e-15)


def test_garbage_is_refused_where_arguments_are_validated() -> None:
    nothing = torch.tensor(math.nan)
    checked = NormalInverseGamma(0.0, 1.0, 2.0, 1.0, validate_args=True)
    with pytest.raises(ValueError, match="Expected value argument"):
        checked.log_prob(nothing)
    unchecked = NormalInverseGamma(nothing, 1.0, 2.0, 1.0, validate_args=False)
    assert unchecked.log_prob(torch.tensor(0.0)).isnan()
    assert unchecked.predictive().log_prob(torch.tensor(0.0)).isnan()


def test_far_residual_overflows_nothing() -> None:
    loc = torch.tensor([0.0, 1e30, 3.0], requires_grad=True)
    nig = NormalInverseGamma(loc, 1.0, 2.0, torch.tensor([1e-6, 1e-6, 1e-30]))
    nll = nig_nll(nig, torch.tensor([1e25, 0.0, 3.0]))
    (gradient,) = torch.autograd.grad(nll, loc)
    assert nll.isfinite()
    assert gradient.isfinite().all()


def test_likelihood_does_not_identify_nu() -> None:
    nu = torch.tensor([0.2, 1.0, 30.0], dtype=torch.float64)
    nig = NormalInverseGamma(0.1, nu, 2.5, 0.4 * nu / (1 + nu))
    log_prob = nig.log_prob(torch.tensor(0.7, dtype=torch.float64))
    torch.testing.assert_close(log_prob, log_prob[:1].expand(3))
    torch.testing.assert_close(nig.variance, nig.variance[:1].expand(3))


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


@pytest.mark.parametrize("device_has_float64", [True, False])
def test_float32_agrees_with_float64(
    device_has_float64: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not device_has_float64:
        monkeypatch.setattr(distribution_module, "widen", lambda tensor: tensor)
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


def test_the_same_evidence_about_another_estimate() -> None:
    nig, loc = random_nig(4, 2), random_target(4, 2)
    moved = nig.with_loc(loc)
    torch.testing.assert_close(moved.log_prob(loc + 1), nig.log_prob(nig.loc + 1))
    assert moved.loc is not nig.loc
    # The losses reach the evidence alone, by errors of the other estimate.
    reached = [g is not None for g in gradients(nig_nll(moved, random_target(4, 2)), nig)]
    assert reached == [False, True, True, True]
    tiny = NormalInverseGamma.from_excess(0.3, 1.0, 1.05e-5, 0.1)
    assert tiny.with_loc(torch.tensor(2.0)).excess == tiny.excess


def test_rescaled_predictions_are_in_original_units() -> None:
    nig, y = random_nig(50, 2), random_target(50, 2)
    scale, shift = torch.tensor([[3.0, 0.01], [-7.0, 100.0]], dtype=torch.float64)
    there = nig.rescale(scale, shift)
    torch.testing.assert_close(there.log_prob(y * scale + shift), nig.log_prob(y) - scale.log())
    torch.testing.assert_close(there.mean, nig.mean * scale + shift)
    torch.testing.assert_close(there.aleatoric, nig.aleatoric * scale**2)
    torch.testing.assert_close(there.epistemic, nig.epistemic * scale**2)
    torch.testing.assert_close(there.evidence, nig.evidence)
    for mine, theirs in zip(there.credible_interval(0.9), nig.credible_interval(0.9), strict=True):
        torch.testing.assert_close(mine, theirs * scale + shift)
    # Digits of alpha - 1 survive, and the way back leads where it came from.
    tiny = NormalInverseGamma.from_excess(0.3, 1.0, 1.05e-5, 0.1)
    assert tiny.rescale(60.0).excess == tiny.excess
    back = there.rescale(1 / scale, -shift / scale)
    torch.testing.assert_close(back.loc, nig.loc)
    torch.testing.assert_close(back.beta, nig.beta)


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


def test_docstrings_run() -> None:
    for module, least in (
        (distribution_module, 8),
        (head_module, 3),
        (losses_module, 4),
        (evidential, 8),
    ):
        results = doctest.testmod(module)
        assert results.attempted >= least
        assert results.failed == 0


@pytest.mark.parametrize("in_dims", [(0, 0), (1, 1), (0, None), (None, 0)])
def test_quantiles_and_probabilities_under_vmap(in_dims: tuple[int | None, int | None]) -> None:
    loc = torch.linspace(0.1, 0.9, 6).reshape(2, 3)
    value = torch.linspace(0.15, 0.8, 6).reshape(2, 3)
    loc = loc if in_dims[0] is not None else loc[0]
    value = value if in_dims[1] is not None else value[0]

    def make(loc: torch.Tensor) -> NormalInverseGamma:
        return NormalInverseGamma(loc, 1.5, 2.5, 0.02, validate_args=False)

    for name in ("cdf", "icdf"):

        def read(loc: torch.Tensor, value: torch.Tensor, name: str = name) -> torch.Tensor:
            result: torch.Tensor = getattr(make(loc), name)(value)
            return result

        found = torch.func.vmap(read, in_dims=in_dims)(loc, value)
        rows = range(2 if in_dims != (1, 1) else 3)
        for row in rows:
            parts = [
                part if dim is None else part.select(dim, row)
                for part, dim in zip((loc, value), in_dims, strict=True)
            ]
            torch.testing.assert_close(found[row], read(parts[0], parts[1]))
    low, high = torch.func.vmap(lambda x: torch.stack(make(x).credible_interval(0.9)))(
        torch.tensor([0.2, 0.7])
    ).unbind(1)
    torch.testing.assert_close(low[1], make(torch.tensor(0.7)).credible_interval(0.9)[0])
    assert (high > low).all()


def test_the_gradient_of_a_quantile_reaches_location_and_scale_alone() -> None:
    loc = torch.tensor([0.4], requires_grad=True)
    alpha = torch.tensor([2.0], requires_grad=True)
    nig = NormalInverseGamma(loc, 1.0, alpha, 0.01)
    nig.icdf(torch.tensor([0.9])).sum().backward()
    assert loc.grad is not None
    assert loc.grad.item() == 1
    assert not nig.cdf(torch.tensor([0.5])).requires_grad

"""Evidential regression with the Normal-Inverse-Gamma distribution.

A network that regresses ``y`` predicts, beside its estimate ``loc``, three numbers that say how
far to trust it: ``nu`` and ``alpha`` count virtual observations (of the mean and of the spread),
``beta`` scales the spread. One forward pass then gives the noise in the data (aleatoric), the
model's ignorance (epistemic) and a predictive Student-t with credible intervals.

This module needs nothing but torch (and scipy where a quantile is asked for) and serves any
regression: depth, pose, tables, moment boundaries.

Numerics: the textbook likelihood subtracts numbers of the order of ``alpha log(alpha)``, which in
float32 leaves errors above 1. Here it is rearranged so that no such difference is left, and plain
float32 would do, save where a likelihood or gradient passes through zero. Those few elementwise
operations therefore run in float64 on CPUs and CUDA, where their cost disappears beside any
network's, and in float32 on devices that may lack it. What comes in and goes out is float32.

References:
    Amini et al. 2020, arXiv:1910.02600 (the distribution, its likelihood, the first regulariser);
    DEMR, arXiv:2512.00953 (the Geom-regulariser); Meinert et al. 2023, arXiv:2205.10060 (why
    ``nu`` is set by the regulariser and not by the likelihood).
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, StudentT, constraints
from torch.nn import functional

__all__ = [
    "EvidentialHead",
    "NormalInverseGamma",
    "der_regularizer",
    "geom_regularizer",
    "geom_terms",
    "nig_nll",
]

# Euler numbers E_2, E_4, ...: they make the coefficients of `_gamma_ratio`'s series.
_EULER = (-1.0, 5.0, -61.0, 1385.0, -50521.0, 2702765.0, -199360981.0, 19391512145.0)
_SERIES = tuple(-euler / (k * 4.0 ** (2 * k + 1)) for k, euler in enumerate(_EULER, start=1))

_STEPS = 6

# Beyond this |t|, log1p(t^2) equals 2 log|t| to the last bit of float64, and t^2 has not yet
# overflowed float32.
_LARGE_T = 1e9


class NormalInverseGamma(Distribution):
    r"""Evidence about a Gaussian's mean and variance, and the prediction that follows from it.

    The unknown mean and variance have the prior ``mu ~ N(loc, sigma2 / nu)`` and
    ``sigma2 ~ InverseGamma(alpha, beta)``. As a `torch.distributions.Distribution` it is the
    distribution of the *observation* ``y ~ N(mu, sigma2)`` with both integrated out: a Student-t
    with ``2 alpha`` degrees of freedom, location ``loc`` and scale
    ``sqrt(beta (1 + nu) / (nu alpha))``. `log_prob`, `sample`, `mean`, `variance`, `cdf` and
    `credible_interval` all speak of that one.

    Precision: parameters of half precision are promoted to float32. In float32, values and
    gradients agree with float64 *at the same float32 parameters* within 1e-4 relative for ``nu``
    and ``beta`` in 1e-6 ... 1e6, ``alpha - 1`` in 1e-5 ... 1e6 and residuals from 0 to 1. "The
    same parameters" matters: float32 holds ``alpha`` near 1 in steps of 1.2e-7, so whoever rounds
    ``1 + 1e-5`` has lost up to 0.6 % of ``alpha - 1``, and with it of every variance, before this
    class sees it. `from_excess` takes ``alpha - 1`` itself and loses nothing; `EvidentialHead`
    uses it. On devices without float64 the error near a zero of a value or gradient is 1e-6 of
    the terms that cancel there.

    Args:
        loc: Predicted value (called gamma in the papers).
        nu: Virtual observations of the mean, > 0.
        alpha: Half the degrees of freedom, > 1 (so that the variance exists).
        beta: Scale of the variance, > 0, in units of ``loc`` squared.
        validate_args: Whether to check the above; None follows torch's default.
            All parameters broadcast to one shape.

    Raises:
        ValueError: If a parameter is outside its range and arguments are validated.

    Example:
        >>> import torch
        >>> from demr.evidential import NormalInverseGamma, nig_nll
        >>> nig = NormalInverseGamma(loc=torch.tensor([0.4, 0.6]), nu=1.0, alpha=2.0, beta=0.01)
        >>> nig.aleatoric, nig.epistemic, nig.evidence
        (tensor([0.0100, 0.0100]), tensor([0.0100, 0.0100]), tensor([4., 4.]))
        >>> low, high = nig.credible_interval(0.9)
        >>> print(f"{low[0]:.3f} ... {high[0]:.3f}")
        0.187 ... 0.613
        >>> print(f"{nig_nll(nig, torch.tensor([0.5, 0.6])):.4f}")
        -1.0428
        >>> nig[0].batch_shape, nig.expand((3, 2)).batch_shape
        (torch.Size([]), torch.Size([3, 2]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real,
        "nu": constraints.positive,
        "alpha": constraints.greater_than(1.0),
        "beta": constraints.positive,
    }
    support: ClassVar[constraints.Constraint] = constraints.real
    has_rsample = True

    loc: Tensor
    nu: Tensor
    alpha: Tensor
    beta: Tensor
    excess: Tensor
    """``alpha - 1``, exact where `from_excess` was given it."""

    def __init__(
        self,
        loc: Tensor | float,
        nu: Tensor | float,
        alpha: Tensor | float,
        beta: Tensor | float,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.nu, self.alpha, self.beta = _promote(loc, nu, alpha, beta)
        self.excess = self.alpha - 1
        super().__init__(self.loc.shape, validate_args=validate_args)

    @classmethod
    def from_excess(
        cls,
        loc: Tensor | float,
        nu: Tensor | float,
        excess: Tensor | float,
        beta: Tensor | float,
        *,
        validate_args: bool | None = None,
    ) -> Self:
        """Build from ``alpha - 1`` instead of alpha, keeping its digits where it is small.

        Args:
            loc: As in the constructor.
            nu: As in the constructor.
            excess: ``alpha - 1``, > 0; at least 1.2e-7 in float32, for ``1 + excess`` to exceed 1.
            beta: As in the constructor.
            validate_args: As in the constructor.
        """
        loc, nu, excess, beta = _promote(loc, nu, excess, beta)
        nig = cls(loc, nu, 1 + excess, beta, validate_args=validate_args)
        nig.excess = excess
        return nig

    def _map(self, change: Callable[[Tensor], Tensor], instance: Self | None = None) -> Self:
        """Apply one change to every parameter; no second validation."""
        new = cast(
            "Self",
            self._get_checked_instance(NormalInverseGamma, instance),  # type: ignore[no-untyped-call]
        )
        for name in ("loc", "nu", "alpha", "beta", "excess"):
            setattr(new, name, change(getattr(self, name)))
        Distribution.__init__(new, new.loc.shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """Return the same distribution over a larger batch, without copying."""
        return self._map(lambda parameter: parameter.expand(batch_shape), _instance)

    def __getitem__(self, index: Any) -> Self:
        """Return the entries that a tensor's ``[index]`` would select, whole."""
        return self._map(lambda parameter: parameter[index])

    def detach(self) -> Self:
        """Return the same distribution cut off from the graph."""
        return self._map(Tensor.detach)

    @property
    def aleatoric(self) -> Tensor:
        """Expected variance of the observations around their mean, ``beta / (alpha - 1)``."""
        return self.beta / self.excess

    @property
    def epistemic(self) -> Tensor:
        """Variance of the mean itself, ``beta / (nu (alpha - 1))``."""
        return self.aleatoric / self.nu

    @property
    def evidence(self) -> Tensor:
        """Total virtual observations, ``2 nu + alpha``."""
        return 2 * self.nu + self.alpha

    @property
    def mean(self) -> Tensor:
        """Mean of the prediction, ``loc``."""
        return self.loc

    @property
    def mode(self) -> Tensor:
        """Mode of the prediction, ``loc``."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Variance of the prediction, aleatoric + epistemic."""
        return self.aleatoric + self.epistemic

    @property
    def scale(self) -> Tensor:
        """Scale of the predictive Student-t (smaller than `stddev`, which its tails widen)."""
        return (self.beta * (1 + self.nu.reciprocal()) / self.alpha).sqrt()

    @property
    def df(self) -> Tensor:
        """Degrees of freedom of the predictive Student-t, ``2 alpha``."""
        return 2 * self.alpha

    def predictive(self) -> StudentT:
        """Return the predictive distribution as torch's own Student-t.

        Prefer this class's `log_prob`: torch's loses digits at large alpha in float32.
        """
        return StudentT(self.df, self.loc, self.scale, validate_args=self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of observations under the predictive Student-t.

        Args:
            value: Observations; broadcast with the batch shape.
        """
        if self._validate_args:
            self._validate_sample(value)
        wide = self._map(_widen)
        log_prob = -_negative_log_likelihood(_widen(value) - wide.loc, wide)
        return log_prob.to(self.loc.dtype)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw observations, differentiable with respect to all four parameters."""
        return self.predictive().rsample(sample_shape)

    @torch.no_grad()
    def cdf(self, value: Tensor) -> Tensor:
        """Probability of an observation at or below ``value`` (by scipy; carries no gradient)."""
        from scipy.special import stdtr

        return _through_scipy(stdtr, self.df, (value - self.loc) / self.scale)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles of the prediction.

        The standard quantile comes from scipy and is a constant to the gradient, which reaches
        ``loc`` and the scale alone.

        Args:
            value: Probabilities between 0 and 1; broadcast with the batch shape.
        """
        return self.loc + self.scale * self._standard_quantile(value)

    def credible_interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Return the central interval that holds an observation with the given probability.

        Args:
            level: Between 0 and 1, exclusive; 0.9 leaves 5 % on either side.

        Returns:
            Low and high ends, each of the batch shape; gradients as in `icdf`.

        Raises:
            ValueError: If the level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        upper = torch.tensor(0.5 + level / 2, dtype=torch.float64)
        half_width = self.scale * self._standard_quantile(upper)
        return self.loc - half_width, self.loc + half_width

    def _standard_quantile(self, probability: Tensor) -> Tensor:
        from scipy.special import stdtrit

        return _through_scipy(stdtrit, self.df, probability)


class EvidentialHead(nn.Module):
    """One linear layer from features to the evidence about each target.

    The value itself (``loc``) is predicted elsewhere and passed in. Computed in float32 (float64
    if the weights are) even under autocast, the linear layer included: bfloat16 holds ``alpha``
    near 1 in steps of 0.008, coarser than the ``alpha - 1`` that the variances divide by.

    Args:
        in_features: Size D of the features.
        targets: Number of regressed values per feature vector.
        eps: Added to nu, alpha - 1 and beta; what keeps variances finite.

    Raises:
        ValueError: If ``eps`` is too small for ``1 + eps`` to exceed 1 in float32.

    Example:
        >>> head = EvidentialHead(in_features=16, targets=2)
        >>> nig = head(torch.randn(4, 75, 16), loc=torch.rand(4, 75, 2))
        >>> nig.variance.shape
        torch.Size([4, 75, 2])
    """

    def __init__(self, in_features: int, targets: int = 1, *, eps: float = 1e-6) -> None:
        super().__init__()
        if eps < torch.finfo(torch.float32).eps:
            raise ValueError(f"eps must be at least 1.2e-7 so that alpha exceeds 1, got {eps}")
        self.targets = targets
        self.eps = eps
        self.linear = nn.Linear(in_features, 3 * targets)

    def forward(self, x: Tensor, loc: Tensor) -> NormalInverseGamma:
        """Predict the evidence.

        The parameters are valid by construction and not checked again, so padding may hold
        anything, and no device has to be waited for.

        Args:
            x: Features, ``(..., D)``.
            loc: Predicted values, ``(..., targets)``.

        Returns:
            A distribution of ``loc``'s shape.

        Raises:
            ValueError: If ``loc`` does not have one value per feature vector and target.
        """
        if loc.shape != (*x.shape[:-1], self.targets):
            raise ValueError(
                f"loc must have shape {(*x.shape[:-1], self.targets)} "
                f"for features {tuple(x.shape)}, got {tuple(loc.shape)}"
            )
        weight, bias = self.linear.weight, self.linear.bias
        dtype = torch.promote_types(weight.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            raw = functional.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))
            positive = functional.softplus(raw) + self.eps
            nu, excess, beta = positive.chunk(3, dim=-1)
            return NormalInverseGamma.from_excess(
                loc.to(dtype), nu, excess, beta, validate_args=False
            )

    def extra_repr(self) -> str:
        """Describe the head in a printed module."""
        return f"targets={self.targets}, eps={self.eps}"


def nig_nll(nig: NormalInverseGamma, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean negative log-likelihood over valid entries.

    Its gradient reaches all four parameters. It depends on nu through ``beta (1 + nu) / nu``
    alone, so that alone it cannot tell aleatoric from epistemic uncertainty.

    Args:
        nig: Prediction.
        target: Observed values, of the prediction's shape.
        mask: Bool, True = valid; None: all are. May lack trailing dimensions: ``(B, L)`` for
            ``(B, L, 2)``. What invalid entries hold, NaN included, changes nothing.

    Returns:
        Scalar; 0 if no entry is valid.

    Raises:
        ValueError: If the shapes disagree.
        TypeError: If the mask is not bool.

    Reference:
        Amini et al. 2020, arXiv:1910.02600, eq. 8. Unlike the DEMR release, no softplus inside
        the logarithm: it cuts the gradient of a residual of 0.1 (nu 1, alpha 2, beta 0.01) from
        10.0 to 0.36.
    """
    wide, residual, valid = _select(nig, target, mask)
    return _mean(_negative_log_likelihood(residual, wide), valid, nig.loc.dtype)


def der_regularizer(nig: NormalInverseGamma, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of error times evidence over valid entries: the original regulariser.

    Its gradient on the evidence is the error, never negative: it lowers evidence everywhere. The
    error is not detached, as in the original, so ``loc`` is pulled too, the harder the more
    evidence there is.

    Args:
        nig: As in `nig_nll`.
        target: As in `nig_nll`.
        mask: As in `nig_nll`.

    Returns:
        Scalar; 0 if no entry is valid.

    Raises:
        ValueError: If the shapes disagree.
        TypeError: If the mask is not bool.

    Reference:
        Amini et al. 2020, arXiv:1910.02600, eq. 9.
    """
    wide, residual, valid = _select(nig, target, mask)
    return _mean(residual.abs() * wide.evidence, valid, nig.loc.dtype)


def geom_terms(phi_bar: Tensor, delta_bar: Tensor) -> Tensor:
    """Squared distance from the line where evidence and error add up to 1, unreduced.

    The gradient with respect to ``phi_bar`` is ``2 (delta_bar + phi_bar - 1)``: below the line
    evidence is raised, above it lowered.

    Args:
        phi_bar: Evidence, scaled to 0 ... 1.
        delta_bar: Absolute error, scaled to 0 ... 1.
    """
    return (phi_bar + delta_bar - 1).square()


def geom_regularizer(
    nig: NormalInverseGamma,
    target: Tensor,
    mask: Tensor | None = None,
    eps: float = 1e-8,
    *,
    error_scale: Literal["min-max", "rank"] = "min-max",
    doubt: Tensor | None = None,
    unit: Tensor | None = None,
) -> Tensor:
    """Mean of `geom_terms` over valid entries: little evidence where errors are large.

    Evidence and error are scaled by the extrema of the batch's *valid* entries. Errors and
    extrema are constants to the gradient, so it reaches nu and alpha alone, never ``loc``. Under
    data-parallel training the batch is that of one process.

    Args:
        nig: As in `nig_nll`.
        target: As in `nig_nll`.
        mask: As in `nig_nll`.
        eps: Where evidence or error spans no more than this over the batch, there is nothing to
            put in order, and the whole term is 0. (The DEMR release scales over padding too, and
            divides by zero on a constant batch.)
        error_scale: How errors become 0 ... 1. ``"min-max"`` is the paper's. With heavy-tailed
            errors one outlier then sends all others to nearly 0, and the term asks for nearly the
            same evidence everywhere; ``"rank"`` takes an error's place among the batch's errors
            (ties share the mean of theirs), so that small errors are told apart as well.
        doubt: What is known against the input itself, 0 (nothing) to 1 (it says nothing), with
            leading dimensions of ``loc``. Not in the paper, which knows errors alone: a
            prediction from ruined input may come out right, and deserves no more evidence for it.
            Error and doubt combine as ``1 - (1 - error) (1 - doubt)``.
        unit: What 1 of ``loc`` is worth in each item, with leading dimensions of ``loc``: errors
            are compared in this unit (seconds, say, where ``loc`` is a fraction of a duration).
            None compares them as they are, as the paper does.

    Returns:
        Scalar; 0 if fewer than two entries are valid.

    Raises:
        ValueError: If the shapes disagree, or for an unknown ``error_scale``.
        TypeError: If the mask is not bool.

    Reference:
        DEMR, arXiv:2512.00953.
    """
    if error_scale not in ("min-max", "rank"):
        raise ValueError(f"error_scale must be 'min-max' or 'rank', got {error_scale!r}")
    wide, residual, valid = _select(nig, target, mask)
    phi = 2 * wide.nu + wide.excess  # the evidence less 1, which the scaling takes away anyway
    delta = residual.abs().detach()
    if unit is not None:
        delta = delta * _leading(unit, delta)
    if phi.numel() == 0:
        return _mean(phi, valid, nig.loc.dtype)
    phi_bar, phi_spans = _min_max(phi, valid, eps)
    delta_bar, delta_spans = _min_max(delta, valid, eps)
    if error_scale == "rank":
        delta_bar = _ranks(delta, valid)
    if doubt is not None:
        delta_bar = 1 - (1 - delta_bar) * (1 - _leading(doubt, delta_bar))
    terms = geom_terms(phi_bar, delta_bar)
    terms = torch.where(phi_spans & delta_spans, terms, torch.zeros_like(terms))
    return _mean(terms, valid, nig.loc.dtype)


def _leading(values: Tensor, like: Tensor) -> Tensor:
    """Give values of the leading dimensions the ones that are missing."""
    return values[(...,) + (None,) * (like.dim() - values.dim())].to(like)


def _negative_log_likelihood(residual: Tensor, nig: NormalInverseGamma) -> Tensor:
    """Minus the predictive log density, free of large differences.

    With ``W = 2 beta (1 + nu)`` and ``q = W / nu``, the textbook's
    ``-alpha log W + (alpha + 1/2) log(nu r^2 + W)`` is
    ``(alpha + 1/2) log1p(r^2 / q) + 1/2 log W``, and what is left of the two log-gammas is
    ``-1/2 log(alpha)`` and small terms. All that is of the size of ``alpha log(alpha)`` is gone.
    """
    # 1 + 1/nu and not exp(log(1 + nu) - log(nu)), whose gradient cancels at large nu.
    q = 2 * nig.beta * (1 + nig.nu.reciprocal())
    t = residual / q.sqrt()
    # log1p(t^2) without overflow. Both branches get harmless arguments where they lose, because
    # the gradient runs through both.
    large = t.abs() > _LARGE_T
    log_tail = torch.where(
        large,
        2 * torch.where(large, t, torch.ones_like(t)).abs().log(),
        torch.where(large, torch.zeros_like(t), t).square().log1p(),
    )
    ratio, correction = _gamma_ratio(nig.alpha)
    return (nig.alpha + 0.5) * log_tail + 0.5 * (math.pi * q / ratio).log() - correction


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


def _widen(tensor: Tensor) -> Tensor:
    """Cast to float64 where the device surely has it."""
    return tensor.double() if tensor.device.type in {"cpu", "cuda"} else tensor


def _promote(*values: Tensor | float) -> tuple[Tensor, ...]:
    """Bring parameters to one shape, one device and one dtype of at least float32."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    dtype = torch.float32 if tensors else torch.get_default_dtype()
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    device = tensors[0].device if tensors else None
    same = [
        value.to(dtype)
        if isinstance(value, Tensor)
        else torch.tensor(value, dtype=dtype, device=device)
        for value in values
    ]
    return tuple(torch.broadcast_tensors(*same))


def _select(
    nig: NormalInverseGamma, target: Tensor, mask: Tensor | None
) -> tuple[NormalInverseGamma, Tensor, Tensor | None]:
    """Return prediction and residuals, widened and invalid entries tamed, and the full mask.

    Invalid entries are replaced *before* anything is computed from them: a NaN that is only
    multiplied by zero afterwards comes back through the gradient. Shapes stay static.
    """
    shape = nig.loc.shape
    if target.shape != shape:
        raise ValueError(f"target must have shape {tuple(shape)}, got {tuple(target.shape)}")
    wide, target = nig._map(_widen), _widen(target)
    if mask is None:
        return wide, target - wide.loc, None
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool (True = valid), got {mask.dtype}")
    missing = len(shape) - mask.dim()
    if missing < 0 or any(m not in (1, n) for m, n in zip(mask.shape, shape, strict=False)):
        raise ValueError(
            f"mask must have the leading dimensions of {tuple(shape)}, got {tuple(mask.shape)}"
        )
    valid = mask[(...,) + (None,) * missing].expand(shape)
    tame = wide._map(lambda parameter: torch.where(valid, parameter, torch.ones_like(parameter)))
    return tame, torch.where(valid, target, torch.ones_like(target)) - tame.loc, valid


def _mean(values: Tensor, valid: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Mean over valid entries; 0, still attached to the graph, if there is none."""
    if valid is None:
        return (values.sum() / max(values.numel(), 1)).to(dtype)
    total = torch.where(valid, values, torch.zeros_like(values)).sum()
    return (total / valid.sum().clamp(min=1)).to(dtype)


def _min_max(values: Tensor, valid: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """Scale to 0 ... 1 by detached extrema of valid entries; also whether they span over eps."""
    fixed = values.detach()
    low = (fixed if valid is None else fixed.masked_fill(~valid, math.inf)).amin()
    high = (fixed if valid is None else fixed.masked_fill(~valid, -math.inf)).amax()
    spans = high - low > eps
    span = torch.where(spans, high - low, torch.ones_like(low))
    low = torch.where(spans, low, torch.zeros_like(low))
    return (values - low) / span, spans


def _ranks(values: Tensor, valid: Tensor | None) -> Tensor:
    """Place of each valid value among the valid ones, from 0 to 1; ties share their mean."""
    placed = values if valid is None else values.masked_fill(~valid, math.inf)
    ordered = placed.flatten().sort().values
    before = torch.searchsorted(ordered, values.contiguous())
    through = torch.searchsorted(ordered, values.contiguous(), right=True)
    count = torch.tensor(values.numel(), device=values.device) if valid is None else valid.sum()
    return (before + through - 1).to(values.dtype) / 2 / (count - 1).clamp(min=1)


def _through_scipy(function: Callable[..., Any], df: Tensor, argument: Tensor) -> Tensor:
    """Evaluate a scipy function of the degrees of freedom, in float64, as a constant."""
    # To the CPU before float64: some devices have none.
    arrays = (tensor.detach().cpu().double().numpy() for tensor in (df, argument))
    return torch.as_tensor(function(*arrays)).to(device=df.device, dtype=df.dtype)

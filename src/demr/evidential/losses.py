"""Losses of evidential regression: the likelihood and the two regularisers of its evidence.

Both regularisers see training inputs alone, and so neither lowers the evidence far from them.
"""

import math
import warnings
from typing import Literal

import torch
from torch import Tensor

from demr.evidential.distribution import NormalInverseGamma
from demr.evidential.student_t import ArrayLike, as_tensor, negative_log_likelihood, widen


def nig_nll(nig: NormalInverseGamma, target: ArrayLike, mask: ArrayLike | None = None) -> Tensor:
    """Mean negative log-likelihood over valid entries.

    Its gradient reaches all four parameters. It depends on nu through ``beta (1 + nu) / nu``
    alone, so that alone it cannot tell aleatoric from epistemic uncertainty.

    Args:
        nig: Prediction.
        target: Observed values, of the prediction's shape; a tensor or an array.
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
    terms = negative_log_likelihood(residual, wide.nu, wide.alpha, wide.beta)
    return _mean(terms, valid, nig.loc.dtype)


def der_regularizer(
    nig: NormalInverseGamma, target: ArrayLike, mask: ArrayLike | None = None
) -> Tensor:
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
    target: ArrayLike,
    mask: ArrayLike | None = None,
    eps: float = 1e-8,
    *,
    error_scale: Literal["min-max", "rank"] = "min-max",
    doubt: Tensor | None = None,
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

    Returns:
        Scalar; 0 if fewer than two entries are valid, as there is nothing to put in order. Of a
        prediction of one entry alone a warning says so.

    Raises:
        ValueError: If the shapes disagree, or for an unknown ``error_scale``.
        TypeError: If the mask is not bool.

    Reference:
        DEMR, arXiv:2512.00953.
    """
    if error_scale not in ("min-max", "rank"):
        raise ValueError(f"error_scale must be 'min-max' or 'rank', got {error_scale!r}")
    if nig.loc.numel() == 1:
        # An error would end a training at its first batch of one.
        warnings.warn(
            "geom_regularizer orders the entries of a batch: of one entry alone it is 0 and "
            "teaches nothing; drop such batches, or take larger ones",
            stacklevel=2,
        )
    wide, residual, valid = _select(nig, target, mask)
    phi = 2 * wide.nu + wide.excess  # the evidence less 1, which the scaling takes away anyway
    delta = residual.abs().detach()
    if phi.numel() == 0:
        return _mean(phi, valid, nig.loc.dtype)
    phi_bar, phi_spans = _min_max(phi, valid, eps)
    delta_bar, delta_spans = _min_max(delta, valid, eps)
    if error_scale == "rank":
        delta_bar = _ranks(delta, valid)
    if doubt is not None:
        # In this form exact where there is no doubt.
        delta_bar = delta_bar + (1 - delta_bar) * _leading(doubt, delta_bar)
    terms = geom_terms(phi_bar, delta_bar)
    terms = torch.where(phi_spans & delta_spans, terms, torch.zeros_like(terms))
    return _mean(terms, valid, nig.loc.dtype)


def _leading(values: Tensor, like: Tensor) -> Tensor:
    """Give values of the leading dimensions the ones that are missing."""
    return values[(...,) + (None,) * (like.dim() - values.dim())].to(like)


def _select(
    nig: NormalInverseGamma, target: ArrayLike, mask: ArrayLike | None
) -> tuple[NormalInverseGamma, Tensor, Tensor | None]:
    """Return prediction and residuals, widened and invalid entries tamed, and the full mask.

    Invalid entries are replaced *before* anything is computed from them: a NaN that is only
    multiplied by zero afterwards comes back through the gradient. Shapes stay static.
    """
    shape = nig.loc.shape
    target = as_tensor(target, nig.loc, "target")
    mask = None if mask is None else as_tensor(mask, nig.loc, "mask")
    if target.shape != shape:
        raise ValueError(f"target must have shape {tuple(shape)}, got {tuple(target.shape)}")
    wide, target = nig.map_parameters(widen), widen(target)
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
    tame = wide.map_parameters(
        lambda parameter: torch.where(valid, parameter, torch.ones_like(parameter))
    )
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

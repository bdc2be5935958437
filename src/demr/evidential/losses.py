"""Losses of evidential regression: the likelihood and the regularisers of its evidence.

`der_regularizer` is the first one's of the literature, `geom_regularizer` the DEMR paper's, and
`AnchoredGeom` that one with a scale. All see training inputs alone, and so none lowers the
evidence far from them.
"""

import math
import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from demr.evidential.distribution import NormalInverseGamma
from demr.evidential.student_t import ArrayLike, as_tensor, negative_log_likelihood, widen

Reduction = Literal["mean", "none"]


def nig_nll(
    nig: NormalInverseGamma,
    target: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    reduction: Reduction = "mean",
) -> Tensor:
    """Mean negative log-likelihood over valid entries.

    Its gradient reaches all four parameters. It depends on nu through ``beta (1 + nu) / nu``
    alone, so that alone it cannot tell aleatoric from epistemic uncertainty.

    Args:
        nig: Prediction.
        target: Observed values, of the prediction's shape; a tensor or an array.
        mask: Bool, True = valid; None: all are. May lack trailing dimensions: ``(B, L)`` for
            ``(B, L, 2)``. What invalid entries hold, NaN included, changes nothing.
        reduction: ``"mean"``, or ``"none"`` for every entry's own value.

    Returns:
        Scalar; 0 if no entry is valid. With ``"none"`` of the prediction's shape, 0 where invalid.

    Raises:
        ValueError: If the shapes disagree, or for an unknown ``reduction``.
        TypeError: If the mask is not bool.

    Reference:
        Amini et al. 2020, arXiv:1910.02600, eq. 8. Unlike the DEMR release, no softplus inside
        the logarithm: it cuts the gradient of a residual of 0.1 (nu 1, alpha 2, beta 0.01) from
        10.0 to 0.36.
    """
    wide, residual, valid = _select(nig, target, mask)
    terms = negative_log_likelihood(residual, wide.nu, wide.alpha, wide.beta)
    return _reduce(terms, valid, nig.loc.dtype, reduction)


def der_regularizer(
    nig: NormalInverseGamma,
    target: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    reduction: Reduction = "mean",
) -> Tensor:
    """Mean of error times evidence over valid entries: the original regulariser.

    Its gradient on the evidence is the error, never negative: it lowers evidence everywhere. The
    error is not detached, as in the original, so ``loc`` is pulled too, the harder the more
    evidence there is.

    Args:
        nig: As in `nig_nll`.
        target: As in `nig_nll`.
        mask: As in `nig_nll`.
        reduction: As in `nig_nll`.

    Returns:
        As `nig_nll`.

    Raises:
        ValueError: If the shapes disagree, or for an unknown ``reduction``.
        TypeError: If the mask is not bool.

    Reference:
        Amini et al. 2020, arXiv:1910.02600, eq. 9.
    """
    wide, residual, valid = _select(nig, target, mask)
    return _reduce(residual.abs() * wide.evidence, valid, nig.loc.dtype, reduction)


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
    reduction: Reduction = "mean",
) -> Tensor:
    """Mean of `geom_terms` over valid entries: little evidence where errors are large.

    Evidence and error are scaled by the extrema of the batch's *valid* entries. Errors and
    extrema are constants to the gradient, so it reaches nu and alpha alone, never ``loc``. Under
    data-parallel training the batch is that of one process.

    Warning:
        This is the paper's form, kept as the baseline: nothing in it anchors the evidence. Its
        bars have no unit and its extrema are constants to the gradient, so the evidence of a whole
        batch may grow for ever, and the likelihood cannot tell. On pure noise nu went from 1.7 to
        31 (weight 0.01) and from 3.4 to 38 (weight 1) in 4,000 steps, on UCI's kin8nm from 11 to
        1,680, the epistemic over the aleatoric variance down to 6e-4; over nine UCI sets evidence
        ordered errors hardly better than without it (Spearman +0.01 to +0.07, by rank +0.19), and
        a weight of 0.1 or more harmed the likelihood. `AnchoredGeom` has the same line and
        gradient, and a scale.

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
        reduction: As in `nig_nll`.

    Returns:
        As `nig_nll`; 0 if fewer than two entries are valid, as there is nothing to put in order.
        Of a prediction of one entry alone a warning says so.

    Raises:
        ValueError: If the shapes disagree, or for an unknown ``error_scale`` or ``reduction``.
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
        return _reduce(phi, valid, nig.loc.dtype, reduction)
    phi_bar, phi_spans = _min_max(phi, valid, eps)
    delta_bar, delta_spans = _min_max(delta, valid, eps)
    if error_scale == "rank":
        delta_bar = _ranks(delta, valid)
    terms = geom_terms(phi_bar, _doubted(delta_bar, doubt))
    terms = torch.where(phi_spans & delta_spans, terms, torch.zeros_like(terms))
    return _reduce(terms, valid, nig.loc.dtype, reduction)


class AnchoredGeom(nn.Module):
    """The Geom-regulariser with a scale: the same line and gradient, and evidence that stays put.

    Error and evidence each get a scale of their own before `geom_terms` compares them:

    - the error is its **rank** among the last ``memory`` errors, 0 (the least) to 1, so that
      neither its unit nor an outlier matters, nor how many entries a batch has: one will do;
    - the evidence ``Phi = 2 nu + alpha`` becomes ``Phi / (Phi + typical_evidence)``.

    What it asks for can be written down. For inputs that look alike to the network, x, the term is
    least where ``E[Phi / (Phi + Phi_0) | x] = 1 - E[rank | x]``: evidence falls with the expected
    rank of the error. Where x says nothing about the error, the expected rank is 1/2 and the
    evidence ``Phi_0``, whatever the number of steps (`geom_regularizer`'s grows for ever). The
    likelihood does not know nu apart from beta, so this, and not the data, sets the *level* of nu,
    and with it how AU + EU is shared out; the *order* of the evidence is learned from the errors.

    Errors are constants to the gradient, so it reaches nu and alpha alone, never ``loc``. Ranks
    are of *training* errors: of a network that learnt its training set by heart they say little
    about new inputs. Fit the head to data that the rest of the network has not seen then, or give
    the losses the estimates of a network that has not (`NormalInverseGamma.with_loc`): of six UCI
    sets ``docs/uci.md`` has what either does.

    The memory is a buffer: it is saved and restored with the module, follows it to its device,
    and a resumed training goes on as if it had not stopped. In ``eval()`` mode errors are ranked
    and not remembered. Data-parallel processes rank by the first one's memory, which is a sample
    of the errors of all. Cast to bfloat16, the memory ranks errors that differ by less than
    0.4 % as equal.

    Args:
        targets: How many memories there are. 1: all entries of a prediction share one, as they
            should where their errors are in one unit, start and end of a moment say. Otherwise
            that of the prediction's last dimension: each of these targets is ranked by itself.
        typical_evidence: ``Phi_0``, the evidence of an input whose error is as likely among the
            larger half as among the smaller. Above 1, as ``2 nu + alpha`` is never less.
        memory: Errors remembered for each target. Of 4,096 a rank is uncertain by 0.008 at most;
            entries that err alike, neighbouring clips say, count as fewer. More reach further
            back, to errors that the network no longer makes.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> regularizer = AnchoredGeom()
        >>> nig = NormalInverseGamma(torch.zeros(4, 1), 1.0, 2.0, 0.1)
        >>> y = torch.tensor([[0.1], [0.4], [0.2], [0.3]])
        >>> print(f"{regularizer(nig, y):.4f}")
        0.1240
    """

    errors: Tensor
    """The last errors, ``(targets, memory)``, the newest last; -1 where there is none yet."""

    def __init__(
        self, targets: int = 1, *, typical_evidence: float = 10.0, memory: int = 4096
    ) -> None:
        super().__init__()
        if targets < 1 or memory < 1:
            raise ValueError(f"targets and memory must be at least 1, got {targets} and {memory}")
        if not 1 < typical_evidence < math.inf:
            raise ValueError(f"typical_evidence must be above 1 and finite, got {typical_evidence}")
        self.targets = targets
        self.typical_evidence = typical_evidence
        self.register_buffer("errors", torch.full((targets, memory), -1.0))

    def forward(
        self,
        nig: NormalInverseGamma,
        target: ArrayLike,
        mask: ArrayLike | None = None,
        *,
        doubt: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """Remember the errors of a batch, and say how far its evidence is from the line.

        Args:
            nig: As in `nig_nll`.
            target: As in `nig_nll`.
            mask: As in `nig_nll`; errors of invalid entries are not remembered.
            doubt: As in `geom_regularizer`; not remembered either.
            reduction: As in `nig_nll`.

        Returns:
            As `nig_nll`.

        Raises:
            ValueError: If the shapes disagree, or for an unknown ``reduction``.
            TypeError: If the mask is not bool.
        """
        wide, residual, valid = _select(nig, target, mask)
        if self.targets > 1 and residual.shape[-1:] != (self.targets,):
            raise ValueError(
                f"the prediction's last dimension must be the {self.targets} targets, got "
                f"{tuple(residual.shape)}"
            )
        with torch.no_grad():
            rows = self._by_target(residual.abs().to(self.errors.dtype))
            # An error that is not finite ends a training, and must not stay in its checkpoint.
            known = rows.isfinite()
            if self.training:
                self._remember(rows, known if valid is None else known & self._by_target(valid))
            rank = self._rank(rows).T.reshape(residual.shape).to(residual.dtype)
        phi = wide.evidence
        terms = geom_terms(phi / (phi + self.typical_evidence), _doubted(rank, doubt))
        return _reduce(terms, valid, nig.loc.dtype, reduction)

    def _by_target(self, values: Tensor) -> Tensor:
        return values.reshape(-1, self.targets).T.contiguous()

    def _remember(self, errors: Tensor, keep: Tensor) -> None:
        """Append the errors to keep, of ``(targets, N)``, and drop the oldest."""
        size = self.errors.shape[1]
        total = keep.sum(dim=1, keepdim=True)
        old = (torch.arange(size, device=errors.device) - total).expand(self.targets, -1)
        new = torch.where(keep, size - total + keep.cumsum(dim=1) - 1, -1)
        # What finds no place goes to a column of its own, which is cut off again.
        place = torch.cat([old, new], dim=1)
        place = torch.where(place < 0, size, place)
        moved = self.errors.new_full((self.targets, size + 1), -1.0)
        moved = moved.scatter(1, place, torch.cat([self.errors, errors], dim=1))
        self.errors.copy_(moved[:, :size])

    def _rank(self, errors: Tensor) -> Tensor:
        """Share of the remembered errors below each, ``(targets, N)``; equal ones count half."""
        empty = (self.errors < 0).sum(dim=1, keepdim=True)
        filled = self.errors.shape[1] - empty
        ordered = self.errors.sort(dim=1).values
        below = torch.searchsorted(ordered, errors) - empty
        through = torch.searchsorted(ordered, errors, right=True) - empty
        # Of integers the quotient is float32, on every device.
        return torch.where(filled > 0, (below + through) / (2 * filled), 0.5)

    def extra_repr(self) -> str:
        """Describe the regulariser in a printed module."""
        return (
            f"targets={self.targets}, typical_evidence={self.typical_evidence}, "
            f"memory={self.errors.shape[1]}"
        )


def _doubted(error: Tensor, doubt: Tensor | None) -> Tensor:
    """``1 - (1 - error) (1 - doubt)``, in a form that is exact where there is no doubt."""
    if doubt is None:
        return error
    # A doubt has leading dimensions of the errors, and gets the ones that are missing.
    leading = doubt[(...,) + (None,) * (error.dim() - doubt.dim())].to(error)
    return error + (1 - error) * leading


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


def _reduce(
    values: Tensor, valid: Tensor | None, dtype: torch.dtype, reduction: Reduction
) -> Tensor:
    """Mean over valid entries, or each; 0, still attached to the graph, where there is none."""
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction must be 'mean' or 'none', got {reduction!r}")
    if valid is not None:
        values = torch.where(valid, values, torch.zeros_like(values))
    if reduction == "none":
        return values.to(dtype)
    if valid is None:
        return (values.sum() / max(values.numel(), 1)).to(dtype)
    return (values.sum() / valid.sum().clamp(min=1)).to(dtype)


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

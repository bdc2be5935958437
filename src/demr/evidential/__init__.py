"""Evidential regression: a value, how noisy the data are and how far to trust the estimate.

It imports torch (and scipy where a quantile is asked for) but nothing of :mod:`demr`, and serves
any regression: depth, pose, tables, moment boundaries. Begin with :class:`NormalInverseGamma` in
``distribution.py``, then ``head.py``, ``density.py`` and ``losses.py``; ``student_t.py`` keeps the
digits.

A network that regresses ``y`` predicts, beside its estimate ``loc``, three numbers that say how
far to trust it: ``nu`` and ``alpha`` count virtual observations (of the mean and of the spread),
``beta`` scales the spread. One forward pass then gives aleatoric and epistemic uncertainty and a
predictive Student-t with credible intervals.

The losses alone make no alarm for inputs unlike the training data: there epistemic uncertainty
often *shrinks*. Trained on ``y = x^3`` with noise of deviation 3, seen from -4 to 4, the epistemic
deviation at 0 and at 10, where the estimate is off by 700 and more, is 1.6 and 0.53 without a
regulariser, 2.1 and 0.61 with DER, 0.21 and 0.35 with Geom, 1.4 and 0.44 with Geom of ranks
(``tests/evidential/test_far_from_data.py``): no term of the losses is ever evaluated there. That
is a known property of evidential regression (Meinert et al. 2023), not of this implementation.
`EvidentialHead.fit_density`, called once after the training, is the remedy: evidence falls with
the distance from the training features (``density.py``). The median deviation at twice the range
of the data is then 73 to 650 times the one inside (x^3 and sin(x), three seeds, without a
regulariser, with DER and with Geom), and what is said inside moves by less than 1 %.

Example:
    For a table, ``x`` of shape (N, 8), and targets ``y`` of shape (N, 1), mean 0 and deviation 1:

    >>> import torch
    >>> x, y = torch.randn(64, 8), torch.randn(64, 1)
    >>> body = torch.nn.Sequential(torch.nn.Linear(8, 50), torch.nn.ReLU())
    >>> value, head, regularizer = torch.nn.Linear(50, 1), EvidentialHead(50), AnchoredGeom()
    >>> hidden = body(x)
    >>> nig = head(hidden, value(hidden))
    >>> loss = nig_nll(nig, y) + regularizer(nig, y)  # to be minimised over all parameters
    >>> in_seconds = nig.rescale(12.5, 80.0)  # targets had the mean 80 s and the deviation 12.5 s

References:
    Amini et al. 2020, arXiv:1910.02600 (the distribution, its likelihood, the first regulariser);
    DEMR, arXiv:2512.00953 (the Geom-regulariser); Meinert et al. 2023, arXiv:2205.10060 (why
    ``nu`` is set by the regulariser and not by the likelihood).
"""

from demr.evidential.distribution import NormalInverseGamma
from demr.evidential.head import EvidentialHead
from demr.evidential.losses import (
    AnchoredGeom,
    der_regularizer,
    geom_regularizer,
    geom_terms,
    nig_nll,
)

__all__ = [
    "AnchoredGeom",
    "EvidentialHead",
    "NormalInverseGamma",
    "der_regularizer",
    "geom_regularizer",
    "geom_terms",
    "nig_nll",
]

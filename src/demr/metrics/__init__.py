"""The field's retrieval and highlight metrics, and measures of uncertainty, on NumPy alone.

It imports :mod:`demr.annotations` for the overlap of windows, and no torch. Begin with
:func:`retrieval_metrics` in ``retrieval.py``; ``uncertainty.py`` scores distributions, intervals
and probabilities.
"""

from demr.metrics.retrieval import (
    discounted_recall,
    highlight_metrics,
    iou_matrix,
    retrieval_metrics,
    saliency_truth,
)
from demr.metrics.uncertainty import (
    auroc,
    brier,
    consistency_bins,
    crps_student_t,
    ece,
    interval_coverage,
    interval_width,
    nll_student_t,
    risk_coverage_curve,
    spearman,
    uncertainty_metrics,
)

__all__ = [
    "auroc",
    "brier",
    "consistency_bins",
    "crps_student_t",
    "discounted_recall",
    "ece",
    "highlight_metrics",
    "interval_coverage",
    "interval_width",
    "iou_matrix",
    "nll_student_t",
    "retrieval_metrics",
    "risk_coverage_curve",
    "saliency_truth",
    "spearman",
    "uncertainty_metrics",
]

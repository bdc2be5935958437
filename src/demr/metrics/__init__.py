"""The field's retrieval and highlight metrics, and measures of uncertainty, on NumPy alone.

It imports :mod:`demr.annotations` for the overlap of windows, and no torch. Begin with
:func:`retrieval_metrics` in ``retrieval.py``; ``uncertainty.py`` holds uncertainty against error,
``scores.py`` scores distributions and intervals, ``rejection.py`` answers to absent queries.
"""

from demr.metrics.rejection import generalized_miou, rejection_f1
from demr.metrics.retrieval import (
    discounted_recall,
    highlight_metrics,
    iou_matrix,
    retrieval_metrics,
    saliency_truth,
)
from demr.metrics.scores import (
    cdf_mixture,
    coverage_width_curve,
    crps_mixture,
    interval_score,
    nll_mixture,
    quantile_calibration_error,
    quantile_mixture,
    worst_slab_coverage,
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
    "cdf_mixture",
    "consistency_bins",
    "coverage_width_curve",
    "crps_mixture",
    "crps_student_t",
    "discounted_recall",
    "ece",
    "generalized_miou",
    "highlight_metrics",
    "interval_coverage",
    "interval_score",
    "interval_width",
    "iou_matrix",
    "nll_mixture",
    "nll_student_t",
    "quantile_calibration_error",
    "quantile_mixture",
    "rejection_f1",
    "retrieval_metrics",
    "risk_coverage_curve",
    "saliency_truth",
    "spearman",
    "uncertainty_metrics",
    "worst_slab_coverage",
]

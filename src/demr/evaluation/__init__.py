"""Predictions held against annotations: every number that a table shows.

It imports :mod:`demr.answers` and :mod:`demr.metrics`. Begin with ``measuring.py``.
"""

from demr.evaluation.measuring import (
    Measured,
    PredictionWarning,
    evaluate_predictions,
    is_scored,
    measure,
)
from demr.evaluation.predictions import (
    PredictionRecord,
    read_predictions,
    to_records,
    write_predictions,
)
from demr.evaluation.uncertainty import (
    error_bins,
    interval_metrics,
    presence_metrics,
    uncertainty_of,
)

__all__ = [
    "Measured",
    "PredictionRecord",
    "PredictionWarning",
    "error_bins",
    "evaluate_predictions",
    "interval_metrics",
    "is_scored",
    "measure",
    "presence_metrics",
    "read_predictions",
    "to_records",
    "uncertainty_of",
    "write_predictions",
]

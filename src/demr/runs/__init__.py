"""A run folder: its config, its data, its model, and what is fitted and measured afterwards.

It imports everything below, and no Lightning. Begin with ``config.py`` and ``data.py``.
"""

from typing import TYPE_CHECKING

from demr.machine.lazy import import_on_use

if TYPE_CHECKING:
    from demr.runs.balance import balance_run, measure_balance
    from demr.runs.calibrating import calibrate_model, calibrate_run
    from demr.runs.config import TrainConfig, load_config, parse_config
    from demr.runs.data import RunData, open_data
    from demr.runs.evaluating import evaluate_run
    from demr.runs.folder import load_run
    from demr.runs.predicting import SplitPredictions, predict_split
    from demr.runs.splits import check_splits, hold_out

__all__ = [
    "RunData",
    "SplitPredictions",
    "TrainConfig",
    "balance_run",
    "calibrate_model",
    "calibrate_run",
    "check_splits",
    "evaluate_run",
    "hold_out",
    "load_config",
    "load_run",
    "measure_balance",
    "open_data",
    "parse_config",
    "predict_split",
]

__getattr__ = import_on_use(
    __name__,
    {
        "balance": (
            "balance_run",
            "measure_balance",
        ),
        "calibrating": (
            "calibrate_model",
            "calibrate_run",
        ),
        "config": (
            "TrainConfig",
            "load_config",
            "parse_config",
        ),
        "data": (
            "RunData",
            "open_data",
        ),
        "evaluating": ("evaluate_run",),
        "folder": ("load_run",),
        "predicting": (
            "SplitPredictions",
            "predict_split",
        ),
        "splits": (
            "check_splits",
            "hold_out",
        ),
    },
)

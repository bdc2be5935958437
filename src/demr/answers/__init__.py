"""What the network says -> proposals -> ranked moments, calibrated intervals and presence.

It imports :mod:`demr.network` and what lies below. Begin with ``proposals.py``, then
``answering.py``.
"""

from typing import TYPE_CHECKING

from demr.machine.lazy import import_on_use

if TYPE_CHECKING:
    from demr.answers.calibration import Calibration
    from demr.answers.domain import describe_domain, measure_strangeness
    from demr.answers.fitting import fit_calibration, load_calibration
    from demr.answers.inference import RawPrediction, predict, predict_dataset
    from demr.answers.intervals import IntervalCalibrator
    from demr.answers.judging import Familiarity, Judgement, Verdict, judge
    from demr.answers.predictions import Prediction, rank_all, rank_moments
    from demr.answers.presence import PresenceCalibrator
    from demr.answers.pretrained import Pretrained, find_model, load_pretrained, save_pretrained
    from demr.answers.proposals import Proposals, Ranking, select

__all__ = [
    "Calibration",
    "Familiarity",
    "IntervalCalibrator",
    "Judgement",
    "Prediction",
    "PresenceCalibrator",
    "Pretrained",
    "Proposals",
    "Ranking",
    "RawPrediction",
    "Verdict",
    "describe_domain",
    "find_model",
    "fit_calibration",
    "judge",
    "load_calibration",
    "load_pretrained",
    "measure_strangeness",
    "predict",
    "predict_dataset",
    "rank_all",
    "rank_moments",
    "save_pretrained",
    "select",
]

__getattr__ = import_on_use(
    __name__,
    {
        "calibration": ("Calibration",),
        "domain": (
            "describe_domain",
            "measure_strangeness",
        ),
        "fitting": (
            "fit_calibration",
            "load_calibration",
        ),
        "inference": (
            "RawPrediction",
            "predict",
            "predict_dataset",
        ),
        "intervals": ("IntervalCalibrator",),
        "judging": (
            "Familiarity",
            "Judgement",
            "Verdict",
            "judge",
        ),
        "predictions": (
            "Prediction",
            "rank_all",
            "rank_moments",
        ),
        "presence": ("PresenceCalibrator",),
        "pretrained": (
            "Pretrained",
            "find_model",
            "load_pretrained",
            "save_pretrained",
        ),
        "proposals": (
            "Proposals",
            "Ranking",
            "select",
        ),
    },
)

"""What is said of a query's moments: presence, verdict, intervals, and what limits the trust.

The only place that decides it: a search, an evaluation and an export of predictions all ask here,
so that what is measured is what users are told.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from demr.answers.calibration import Calibration
from demr.answers.predictions import Prediction
from demr.answers.presence import somewhere

FloatArray = NDArray[np.float64]
Verdict = Literal["found", "uncertain", "not in this video"]

# What intervals promise unless a search asks for another level.
DEFAULT_LEVEL = 0.9
FEW_LABELS_NOTE = (
    f"no intervals: {{points}} labelled queries are too few for {DEFAULT_LEVEL:.0%}; "
    "calibrate on more labelled videos"
)
UNCALIBRATED_NOTE = "presence is not calibrated: no absent queries were available"


@dataclass(frozen=True)
class Familiarity:
    """How far a video and a query lie from what a model was trained on.

    Attributes:
        strangeness: Of the video; 1 is the edge of the training data, see
            :func:`demr.answers.domain.measure_strangeness`.
        unknown_words: Words of the query that training never showed.
    """

    strangeness: float = 0.0
    unknown_words: tuple[str, ...] = ()


FAMILIAR = Familiarity()


@dataclass(frozen=True)
class Judgement:
    """What is said of one query's moments.

    Attributes:
        present: Probability that the moment is in the video; where presence is not calibrated,
            the best moment's foreground probability.
        calibrated: Whether presence is calibrated.
        verdict: ``found``, ``uncertain`` or ``not in this video``.
        intervals: Lower and upper end for start and end of every moment, ``(N, 2, 2)``, seconds,
            inside the video; NaN for a moment that none were calibrated for.
        notes: What limits the trust, in plain words.
    """

    present: float
    calibrated: bool
    verdict: Verdict
    intervals: FloatArray
    notes: tuple[str, ...]


def judge(
    predictions: Sequence[Prediction],
    calibration: Calibration,
    familiarity: Sequence[Familiarity] | None = None,
    *,
    level: float = DEFAULT_LEVEL,
) -> list[Judgement]:
    """Judge predictions, each by itself.

    Args:
        predictions: One a query.
        calibration: Fitted for the model that made them.
        familiarity: One a query; None where every video and word is like the training's.
        level: Coverage of the intervals.

    Raises:
        InputError: If intervals were fitted, but not for this level.
    """
    if familiarity is None:
        familiarity = [FAMILIAR] * len(predictions)
    calibrated = presence_probability(calibration, predictions)
    return [
        _judge(prediction, calibration, known, present, bounds)
        for prediction, known, present, bounds in zip(
            predictions,
            familiarity,
            [None] * len(predictions) if calibrated is None else calibrated.tolist(),
            _intervals(predictions, calibration, level),
            strict=True,
        )
    ]


def _judge(
    prediction: Prediction,
    calibration: Calibration,
    known: Familiarity,
    calibrated: float | None,
    intervals: FloatArray,
) -> Judgement:
    notes = []
    if calibration.interval is not None and np.isnan(intervals[0]).any():
        notes.append(FEW_LABELS_NOTE.format(points=calibration.interval.points))
    present = calibrated
    if present is None:
        present = float(prediction.moments.foreground[0])
        notes.append(UNCALIBRATED_NOTE)
    if known.strangeness > 1:
        # Calibrated on videos like the training ones; the further from them, the less the
        # model's confidence says about this video.
        present /= known.strangeness
        notes.append(
            "this video looks unlike anything the model was trained on"
            f" ({known.strangeness:.1f} times beyond its edge)"
        )
    if known.unknown_words:
        notes.append(f"the model was never trained on: {', '.join(known.unknown_words)}")
    verdict = _verdict(present, calibration)
    # A model that has never met an absent query knows neither what one looks like nor what a
    # present one does not.
    if calibrated is None or (verdict == "found" and known.unknown_words):
        verdict = "uncertain"
    return Judgement(present, calibrated is not None, verdict, intervals, tuple(notes))


def _verdict(present: float, calibration: Calibration) -> Verdict:
    if calibration.presence is None:
        return "uncertain"
    if present >= calibration.thresholds["found"]:
        return "found"
    return "uncertain" if present > calibration.thresholds["absent"] else "not in this video"


def presence_probability(
    calibration: Calibration, predictions: Sequence[Prediction]
) -> FloatArray | None:
    """Calibrated probability that each query's moment is in its video, ``(N,)``, or None.

    In a long video every stretch has a chance of a false alarm, so its best moment alone would
    say "found" to everything sooner or later; see :func:`~demr.answers.presence.somewhere`.
    """
    if calibration.presence is None:
        return None
    tables = [p.presence[None] if p.stretches is None else p.stretches for p in predictions]
    if not tables:
        return np.empty(0)
    every = calibration.presence.probability(np.concatenate(tables))
    parts = np.split(every, np.cumsum([len(table) for table in tables])[:-1])
    return np.array([somewhere(part) for part in parts])


def _intervals(
    predictions: Sequence[Prediction], calibration: Calibration, level: float
) -> list[FloatArray]:
    """Intervals of all moments of all predictions, ``(N, 2, 2)`` each.

    The first moment of a query and the further ones are off by different amounts, so each kind
    has a calibration of its own.
    """
    bounds = [np.full((len(p.moments), 2, 2), np.nan) for p in predictions]
    first, further = calibration.interval, calibration.further
    if first is not None and level != DEFAULT_LEVEL:
        # A level that somebody asked for is refused where it was never fitted. Where it is the
        # usual one, and for further moments, which often have too few labels for a high one,
        # moments go without.
        first.check_level(level)
    for fitted, rows in ((first, slice(0, 1)), (further, slice(1, None))):
        if fitted is None or not fitted.fits_level(level) or not predictions:
            continue
        low, high = fitted.interval(
            np.concatenate([p.moments.window_s[rows] for p in predictions]),
            np.concatenate([p.moments.scale_s[rows] for p in predictions]),
            np.concatenate([p.dof[rows] for p in predictions]),
            np.concatenate([p.covariates[rows] for p in predictions]),
            level,
        )
        table = np.stack([low, high], axis=-1)
        counts = [len(b[rows]) for b in bounds]
        for prediction, bound, part in zip(
            predictions, bounds, np.split(table, np.cumsum(counts)[:-1]), strict=True
        ):
            bound[rows] = np.clip(part, 0, prediction.moments.duration_s)
    return bounds

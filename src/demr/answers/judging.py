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
from demr.answers.presence import lower_for_chance, somewhere

FloatArray = NDArray[np.float64]
Verdict = Literal["found", "uncertain", "not in this video"]

# What intervals promise unless a search asks for another level.
DEFAULT_LEVEL = 0.9
FEW_LABELS_NOTE = (
    f"no intervals: {{points}} labelled queries are too few for {DEFAULT_LEVEL:.0%}; "
    "calibrate on more labelled videos"
)
UNCALIBRATED_NOTE = "presence is not calibrated: no absent queries were available"
UNSURE_NOTE = "moments have no confidence: run demr calibrate on labels with absent queries"
ELSEWHERE = "search with --encoder clip"
STRANGE_NOTE = (
    "this video looks unlike anything the model was trained on ({strangeness:.1f} times beyond its "
    f"edge), so it cannot judge: {ELSEWHERE}, or label such videos and run demr calibrate"
)
WORDS_NOTE = (
    "the model was never trained on: {words}; it cannot judge: "
    f"use other words, {ELSEWHERE}, or label such queries and run demr calibrate"
)
NOWHERE_NOTE = "it is probably in this video, but no moment is sure enough to be named"
# Where confidence was not fitted, moments of at least this share of the best score are told.
LEAST_SHARE = 0.5


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
        present: Probability that the moment is in the video; None where the model cannot judge
            the video or the words, or presence is not calibrated.
        verdict: ``found``, ``uncertain`` or ``not in this video``; ``found`` only with a moment.
        intervals: Lower and upper end for start and end of every moment, ``(N, 2, 2)``, seconds,
            inside the video; NaN for a moment that none were calibrated for.
        confidence: Probability that a moment is a true one (IoU of at least 0.5), ``(N,)``; NaN
            where it is not known.
        listed: Rows of the moments that are told to people, best first, ``(M,)``. What is less
            likely than the lower threshold is no moment, whatever its rank.
        moment_verdicts: Of those, ``found`` or ``uncertain``, never surer than ``verdict``.
        notes: What limits the trust, in plain words.
    """

    present: float | None
    verdict: Verdict
    intervals: FloatArray
    confidence: FloatArray
    listed: NDArray[np.int64]
    moment_verdicts: tuple[Verdict, ...]
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
        _judge(*each, calibration)
        for each in zip(
            predictions,
            familiarity,
            [None] * len(predictions) if calibrated is None else calibrated.tolist(),
            _intervals(predictions, calibration, level),
            _confidences(predictions, calibration),
            strict=True,
        )
    ]


def _judge(
    prediction: Prediction,
    known: Familiarity,
    present: float | None,
    intervals: FloatArray,
    confidence: FloatArray,
    calibration: Calibration,
) -> Judgement:
    verdict: Verdict = "uncertain" if present is None else _verdict(present, calibration)
    if present is not None:
        # A moment can be right only where there is one.
        confidence = np.minimum(confidence, present)
    listed = _listed(prediction, confidence, calibration)
    unfamiliar = _unfamiliar(known)
    if unfamiliar:
        # Whatever was calibrated, was on videos and queries like the training's. What the model
        # makes of others is a guess, and no more than one is worth a look.
        intervals, confidence = np.full_like(intervals, np.nan), np.full_like(confidence, np.nan)
        present, verdict, listed, notes = None, "uncertain", listed[listed == 0], unfamiliar
    else:
        notes = _uncalibrated(intervals, confidence, present, calibration)
        if verdict == "not in this video":
            listed = listed[:0]
        elif verdict == "found" and not len(listed):
            verdict = "uncertain"
            notes.append(NOWHERE_NOTE)
    return Judgement(
        present,
        verdict,
        intervals,
        confidence,
        listed,
        tuple(_moment_verdict(value, verdict, calibration) for value in confidence[listed]),
        tuple(notes),
    )


def _unfamiliar(known: Familiarity) -> list[str]:
    """Why the model cannot judge, and what helps; nothing where it can."""
    notes = []
    if known.strangeness > 1:
        notes.append(STRANGE_NOTE.format(strangeness=known.strangeness))
    if known.unknown_words:
        notes.append(WORDS_NOTE.format(words=", ".join(known.unknown_words)))
    return notes


def _uncalibrated(
    intervals: FloatArray, confidence: FloatArray, present: float | None, calibration: Calibration
) -> list[str]:
    notes = []
    if calibration.interval is not None and np.isnan(intervals[0]).any():
        notes.append(FEW_LABELS_NOTE.format(points=calibration.interval.points))
    if present is None:
        notes.append(UNCALIBRATED_NOTE)
    elif np.isnan(confidence[0]):
        notes.append(UNSURE_NOTE)
    return notes


def _verdict(probability: float, calibration: Calibration) -> Verdict:
    if probability >= calibration.thresholds["found"]:
        return "found"
    return "uncertain" if probability > calibration.thresholds["absent"] else "not in this video"


def _moment_verdict(confidence: float, of_query: Verdict, calibration: Calibration) -> Verdict:
    if of_query != "found" or np.isnan(confidence):
        return "uncertain"
    return _verdict(confidence, calibration)


def _listed(
    prediction: Prediction, confidence: FloatArray, calibration: Calibration
) -> NDArray[np.int64]:
    """Rows of the moments that are likely enough, none of which repeats a better one."""
    rows = prediction.distinct
    sure = confidence[rows]
    score = prediction.moments.score[rows]
    enough = np.where(
        np.isnan(sure),
        score >= LEAST_SHARE * score[0],
        sure > calibration.thresholds.get("absent", 0.0),
    )
    return rows[enough]


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


def _confidences(predictions: Sequence[Prediction], calibration: Calibration) -> list[FloatArray]:
    """Probability that each moment is a true one, ``(N,)`` each; NaN where it was not fitted."""
    tables = [np.full(len(p.moments), np.nan) for p in predictions]
    kinds = (
        (calibration.confidence, slice(0, 1)),
        (calibration.further_confidence, slice(1, None)),
    )
    for fitted, rows in kinds:
        if fitted is None or not predictions:
            continue
        every = fitted.probability(np.concatenate([p.covariates[rows] for p in predictions]))
        counts = [len(table[rows]) for table in tables]
        parts = np.split(every, np.cumsum(counts)[:-1])
        for prediction, table, part in zip(predictions, tables, parts, strict=True):
            stretches = 1 if prediction.stretches is None else len(prediction.stretches)
            table[rows] = lower_for_chance(part, stretches)
    return tables


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

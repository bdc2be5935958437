"""Fit a calibration on queries whose truth is known: the ranking, the intervals, presence."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from demr.annotations.annotations import Annotation
from demr.annotations.windows import RIGHT_IOU, assign_truths, iou, true_windows, window_iou
from demr.answers.calibration import Calibration, check_counts
from demr.answers.inference import RawPrediction
from demr.answers.intervals import IntervalCalibrator
from demr.answers.predictions import COVARIATES, Prediction, rank_moments
from demr.answers.presence import LEAST_POINTS, PresenceCalibrator
from demr.answers.proposals import Ranking, select
from demr.errors import ModelError
from demr.metrics.uncertainty import nll_student_t

FloatArray = NDArray[np.float64]
TAUS = (0.0, 0.05, 0.1, 0.2, 0.4)
FIRST, FURTHER = slice(0, 1), slice(1, None)
LEAST_OF_A_KIND = 5
DISAGREEMENTS = (1.0, 2.0, 4.0, 8.0, 16.0)
# Between these two probabilities a search says "uncertain", of a query and of each moment.
THRESHOLDS = {"found": 0.6, "absent": 0.4}


def fit_calibration(
    raw: Sequence[RawPrediction],
    annotations: Sequence[Annotation],
    *,
    ranking: str = "auto",
    disagreement: float | None = 1.0,
    seed: int = 0,
    former: Calibration | None = None,
) -> Calibration:
    """Choose the ranking and fit intervals, presence and confidence, all on validation queries.

    Without absent queries presence and the confidence of moments cannot be fitted: those of
    ``former`` are kept, if it has them, together with the ranking they were fitted under, since
    their covariates are the top moments'.

    Args:
        raw: The model's predictions for ``annotations``.
        annotations: Queries to fit on; presence needs absent ones too.
        ranking: ``auto`` takes the one with the best mean IoU.
        disagreement: Weight of the voters' spread where the ranking is ``voting``; None takes the
            one of :data:`DISAGREEMENTS` with the best likelihood.
        seed: Of the calibration's folds and of the balance of present and absent queries.
        former: Calibration of the same model, to fall back on.

    Raises:
        InputError: If there are too few queries to calibrate on.
    """
    pairs = [(r, a) for r, a in zip(raw, annotations, strict=True) if a.windows_s]
    present_raw, truth = [r for r, _ in pairs], [a for _, a in pairs]
    absent_raw = [r for r, a in zip(raw, annotations, strict=True) if a.windows_s == ()]
    check_counts(len(pairs), len(absent_raw))
    if absent_raw or former is None or former.presence is None:
        chosen = _choose_ranking(present_raw, truth, ranking, disagreement)
    else:
        chosen = cast("Ranking", former.ranking), former.tau, former.disagreement
    best, tau, weight = chosen

    def ranked(of: Sequence[RawPrediction]) -> list[Prediction]:
        return [rank_moments(r, ranking=best, tau=tau, disagreement=weight) for r in of]

    present = ranked(present_raw)
    kept = Calibration() if former is None or former.presence is None else former
    presence, confidence = kept.presence, (kept.confidence, kept.further_confidence)
    if absent_raw:
        absent = ranked(absent_raw)
        presence = _fit_presence(present, absent, seed)
        balanced = _balanced(present, truth, absent, seed)
        confidence = (_fit_confidence(balanced, FIRST), _fit_confidence(balanced, FURTHER))
    return Calibration(
        interval=_fit_intervals(present, truth, FIRST, seed),
        further=_fit_intervals(present, truth, FURTHER, seed),
        presence=presence,
        confidence=confidence[0],
        further_confidence=confidence[1],
        tau=tau,
        ranking=best,
        thresholds=THRESHOLDS,
        disagreement=weight,
    )


def _choose_ranking(
    raw: Sequence[RawPrediction],
    truth: Sequence[Annotation],
    ranking: str,
    disagreement: float | None,
) -> tuple[Ranking, float, float]:
    """Ranking, tau and the weight of the voters' spread."""
    options: list[tuple[Ranking, float]] = [("score", 0.0)]
    options += [("uncertainty", tau) for tau in TAUS if tau] + [("fusion", tau) for tau in TAUS]
    options.append(("voting", 0.0))
    if ranking != "auto":
        options = [option for option in options if option[0] == ranking]
    best, tau = max(options, key=lambda option: _mean_iou(raw, truth, *option))
    if best != "voting":
        return best, tau, 1.0
    if disagreement is None:
        disagreement = min(DISAGREEMENTS, key=lambda d: _voting_nll(raw, truth, d))
    return best, tau, disagreement


def _fit_intervals(
    predictions: Sequence[Prediction], truth: Sequence[Annotation], ranks: slice, seed: int
) -> IntervalCalibrator | None:
    """Calibrate the intervals of moments of some ranks; None where too few have a true window."""
    rows, residual, videos = [], [], []
    for prediction, annotation in zip(predictions, truth, strict=True):
        windows = prediction.moments.window_s
        given, true = assign_truths(windows, annotation.windows_s or ())
        for row, window in list(zip(given.tolist(), true, strict=True))[ranks]:
            rows.append((prediction, row))
            residual.append(window - windows[row])
            videos.append(annotation.vid)
    if len(rows) < LEAST_POINTS or (ranks.start and len(set(videos)) < 2):
        return None
    return IntervalCalibrator.fit(
        np.array(residual),
        np.array([p.moments.scale_s[row] for p, row in rows]),
        np.array([p.dof[row] for p, row in rows]),
        np.array([p.covariates[row] for p, row in rows]),
        COVARIATES,
        videos,
        seed=seed,
    )


def _fit_presence(
    present: Sequence[Prediction], absent: Sequence[Prediction], seed: int
) -> PresenceCalibrator:
    """Fit presence on as many present as absent queries, so that 0.5 is the even bet."""
    count = min(len(absent), len(present))
    generator = np.random.default_rng(seed)
    rows = [present[i].presence for i in generator.permutation(len(present))[:count]]
    # A stretch is judged by itself, and of a long video without the moment any is an example.
    for prediction in (absent[i] for i in generator.permutation(len(absent))[:count]):
        stretches = prediction.stretches
        rows.append(
            prediction.presence if stretches is None else generator.choice(stretches, axis=0)
        )
    return PresenceCalibrator.fit(np.array(rows), np.arange(2 * count) < count, COVARIATES)


def _balanced(
    present: Sequence[Prediction],
    truth: Sequence[Annotation],
    absent: Sequence[Prediction],
    seed: int,
) -> list[tuple[Prediction, Sequence[tuple[float, float]]]]:
    """As many present as absent queries with their true windows, as presence is fitted on."""
    count = min(len(absent), len(present))
    generator = np.random.default_rng(seed)
    drawn = generator.permutation(len(present))[:count]
    return [(present[i], truth[i].windows_s or ()) for i in drawn] + [
        (absent[i], ()) for i in generator.permutation(len(absent))[:count]
    ]


def _fit_confidence(
    queries: Sequence[tuple[Prediction, Sequence[tuple[float, float]]]], ranks: slice
) -> PresenceCalibrator | None:
    """Fit how likely moments of some ranks are true ones; None if nearly all or none of them are.

    Of each query's distinct moments in order, each with a true window of its own: the second
    moment is right where it is another true one.
    """
    rows, labels = [], []
    for prediction, truths in queries:
        distinct = prediction.distinct
        windows = prediction.moments.window_s[distinct]
        right = np.zeros(len(distinct), dtype=bool)
        given, true = assign_truths(windows, truths)
        right[given] = iou(windows[given], true) >= RIGHT_IOU
        rows.append(prediction.covariates[distinct[ranks]])
        labels.append(right[ranks])
    covariates, label = np.concatenate(rows), np.concatenate(labels)
    if min(label.sum(), len(label) - label.sum()) < LEAST_OF_A_KIND:
        return None
    return PresenceCalibrator.fit(covariates, label, COVARIATES)


def _voting_nll(
    raw: Sequence[RawPrediction], annotations: Sequence[Annotation], disagreement: float
) -> float:
    """Mean negative log-likelihood of the true boundaries under the top moments."""
    tops = [select(r.proposals, ranking="voting", disagreement=disagreement, after=1) for r in raw]
    window = np.array([top.window_s[0] for top in tops])
    true = true_windows(window, [a.windows_s or () for a in annotations])
    scale = np.array([top.scale_s[0] for top in tops])
    dof = np.array([2 * top.alpha[0] for top in tops])
    return float(np.mean(nll_student_t(true, window, scale, dof)))


def _mean_iou(
    raw: Sequence[RawPrediction], annotations: Sequence[Annotation], ranking: Ranking, tau: float
) -> float:
    tops = [select(r.proposals, ranking=ranking, tau=tau, after=1) for r in raw]
    return float(
        np.mean(
            [
                window_iou(t.window_s[:1], np.asarray(a.windows_s)).max()
                for t, a in zip(tops, annotations, strict=True)
            ]
        )
    )


def load_calibration(path: Path) -> Calibration:
    """Read a calibration whose covariates are those that are collected here.

    Raises:
        ModelError: If it is missing, damaged, or was fitted on other covariates.
    """
    calibration = Calibration.load(path)
    for part in (
        calibration.interval,
        calibration.further,
        calibration.presence,
        calibration.confidence,
        calibration.further_confidence,
    ):
        if part is not None and part.scaler.names != COVARIATES:
            raise ModelError(
                str(path),
                expected=f"a calibration on {', '.join(COVARIATES)}",
                got=f"one on {', '.join(part.scaler.names)}",
                remedy="run demr calibrate again, on queries with absent ones",
            )
    return calibration

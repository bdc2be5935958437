"""Fit a calibration on queries whose truth is known: the ranking, the intervals, presence."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from demr.annotations.annotations import Annotation
from demr.annotations.windows import true_windows, window_iou
from demr.answers.answering import COVARIATES, answer, boundary_residual
from demr.answers.calibration import Calibration, check_counts
from demr.answers.inference import RawPrediction
from demr.answers.intervals import IntervalCalibrator
from demr.answers.presence import PresenceCalibrator
from demr.answers.proposals import Ranking, select
from demr.metrics.uncertainty import nll_student_t

TAUS = (0.0, 0.05, 0.1, 0.2, 0.4)


DISAGREEMENTS = (1.0, 2.0, 4.0, 8.0, 16.0)


# Between these two probabilities a search says "uncertain".
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
    """Choose the ranking and fit intervals and presence, all on validation queries.

    Without absent queries presence cannot be fitted: that of ``former`` is kept, if it has one,
    together with the ranking it was fitted under, since its covariates are the top moment's.

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
    present_raw, present = [r for r, _ in pairs], [a for _, a in pairs]
    absent_raw = [r for r, a in zip(raw, annotations, strict=True) if a.windows_s == ()]
    check_counts(len(present), len(absent_raw))
    presence = None if absent_raw or former is None else former.presence
    options: list[tuple[Ranking, float]] = [("score", 0.0)]
    options += [("uncertainty", tau) for tau in TAUS if tau] + [("fusion", tau) for tau in TAUS]
    options.append(("voting", 0.0))
    if ranking != "auto":
        options = [option for option in options if option[0] == ranking]
    if presence is not None and former is not None:
        kept: Ranking = former.ranking  # type: ignore[assignment]
        options = [(kept, former.tau)]
    best = max(options, key=lambda option: _mean_iou(present_raw, present, *option))
    if presence is not None and former is not None:
        disagreement = former.disagreement
    elif best[0] != "voting":
        disagreement = 1.0
    elif disagreement is None:
        disagreement = min(DISAGREEMENTS, key=lambda d: _voting_nll(present_raw, present, d))
    predict = partial(answer, ranking=best[0], tau=best[1], disagreement=disagreement)
    predictions = [predict(r) for r in present_raw]
    interval = IntervalCalibrator.fit(
        boundary_residual(predictions, present),
        np.array([p.moments.scale_s[0] for p in predictions]),
        np.array([p.dof[0] for p in predictions]),
        np.array([p.presence for p in predictions]),
        COVARIATES,
        seed=seed,
    )
    absent = [predict(r) for r in absent_raw]
    if absent:
        count = min(len(absent), len(predictions))
        generator = np.random.default_rng(seed)
        chosen = [predictions[i] for i in generator.permutation(len(predictions))[:count]]
        rows = [p.presence for p in chosen]
        # A stretch is judged by itself, and of a long video without the moment any is an example.
        for prediction in (absent[i] for i in generator.permutation(len(absent))[:count]):
            stretches = prediction.stretches
            rows.append(
                prediction.presence if stretches is None else generator.choice(stretches, axis=0)
            )
        presence = PresenceCalibrator.fit(np.array(rows), np.arange(2 * count) < count, COVARIATES)
    return Calibration(
        interval=interval,
        presence=presence,
        tau=best[1],
        ranking=best[0],
        thresholds=THRESHOLDS,
        disagreement=disagreement,
    )


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

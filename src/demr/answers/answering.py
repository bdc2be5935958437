"""Run a model over annotated queries, calibrate it on validation, and measure it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demr.annotations.annotations import Annotation
from demr.annotations.windows import suppress, true_windows, window_iou
from demr.answers.calibration import Calibration
from demr.answers.inference import RawPrediction
from demr.answers.presence import somewhere
from demr.answers.proposals import NMS_IOU, Proposals, Ranking, select
from demr.errors import ModelError

FloatArray = NDArray[np.float64]

COVARIATES = (
    "top logit",
    "gap to next",
    "log AU+EU",
    "log EU",
    "saliency contrast",
    # Not in the paper: how sure the clips are that propose the same moment, and its length. With
    # them validation AUROC of absent queries rises by 0.004.
    "median logit",
    "log duration",
    "log length",
)
# A clip proposes the same moment where its window overlaps it by this much.
_SAME_IOU = 0.5
# Moments that may rival the top one. Fixed: what is calibrated on ten holds for a list of one.
_RIVALS = 10
_SPARE = 4


@dataclass(frozen=True)
class Prediction:
    """A query's answer: ranked moments and what their uncertainty is based on.

    Attributes:
        moments: Selected proposals, best first.
        covariates: :data:`COVARIATES` of every moment, ``(N, 8)``; in a long video those that
            depend on the video are of the stretch that the moment is from.
        saliency: ``(L,)``.
        stretches: Covariates of the top moment of every stretch of a long video, each as of a
            video of its own, ``(S, 8)``; None if the video was read at once.
    """

    moments: Proposals
    covariates: FloatArray
    saliency: FloatArray
    stretches: FloatArray | None = None

    @property
    def presence(self) -> FloatArray:
        """Covariates of the top moment, ``(8,)``."""
        result: FloatArray = self.covariates[0]
        return result

    @property
    def dof(self) -> FloatArray:
        """Degrees of freedom of the predictive Student-t, ``(N, 2)``."""
        return 2 * self.moments.alpha


def answer(
    raw: RawPrediction,
    *,
    ranking: Ranking = "score",
    tau: float = 0.0,
    disagreement: float = 1.0,
    top: int = 10,
) -> Prediction:
    """Rank a query's proposals and collect the covariates of its calibration.

    Args:
        raw: What the model says.
        ranking: See :func:`~demr.answers.proposals.select`.
        tau: See :func:`~demr.answers.proposals.rank`.
        disagreement: See :func:`~demr.answers.proposals.select`.
        top: Moments to return; the covariates do not depend on it.
    """
    # Boundaries that move by votes or fusion may end up on each other: more are selected than are
    # returned, and of those that came to overlap the better one stays.
    pick = partial(select, ranking=ranking, tau=tau, disagreement=disagreement)
    moments = pick(raw.proposals, after=_SPARE * max(top, _RIVALS))
    surroundings, stretches = np.tile(_surroundings(raw, moments), (len(moments), 1)), None
    if raw.part_of_clip is not None:
        # A stretch is judged as the videos that the calibration was fitted on: by itself.
        tops = [pick(part.proposals, after=_SPARE * _RIVALS) for part in raw.parts]
        around = np.array([_surroundings(*pair) for pair in zip(raw.parts, tops, strict=True)])
        stretches = np.concatenate(
            [
                _covariates(part, best[:1], own[None])
                for part, best, own in zip(raw.parts, tops, around, strict=True)
            ]
        )
        surroundings = around[raw.part_of_clip[moments.clip_idx]]
    covariates = _covariates(raw, moments, surroundings)
    owner = suppress(moments.window_s, NMS_IOU, top)
    keep = np.flatnonzero(owner == np.arange(len(moments)))
    return Prediction(moments[keep], covariates[keep], raw.saliency, stretches)


def _surroundings(raw: RawPrediction, moments: Proposals) -> FloatArray:
    """What the covariates of moments owe to the video: best rival, contrast, log duration."""
    rivals = moments[:_RIVALS]
    disjoint = window_iou(rivals.window_s[:1], rivals.window_s)[0] == 0
    disjoint[0] = False  # an empty window does not even overlap itself
    following = float(rivals.foreground[disjoint].max(initial=0.0))
    contrast = float(raw.saliency.max() - raw.saliency.mean())
    return np.array([following, contrast, np.log(moments.duration_s)])


def _covariates(raw: RawPrediction, moments: Proposals, surroundings: FloatArray) -> FloatArray:
    """:data:`COVARIATES` of moments, ``(N, 8)``, given their :func:`_surroundings`, ``(N, 3)``."""
    variance = (moments.aleatoric + moments.epistemic).mean(axis=1)
    log_variance = np.log(np.maximum(variance, 1e-12))
    log_eu = np.log(np.maximum(moments.epistemic.mean(axis=1), 1e-12))
    logit = _logit(moments.foreground)
    windows = moments.window_s
    every = _logit(raw.proposals.foreground)
    same = window_iou(windows, raw.proposals.window_s) >= _SAME_IOU
    median = [
        float(np.median(every[row])) if row.any() else own
        for row, own in zip(same, logit.tolist(), strict=True)
    ]
    columns = (
        logit,
        moments.foreground - surroundings[:, 0],
        log_variance,
        log_eu,
        surroundings[:, 1],
        np.array(median),
        surroundings[:, 2],
        np.log(np.maximum(windows[:, 1] - windows[:, 0], 0.1)),
    )
    return np.stack(columns, axis=1)


def presence_probability(
    calibration: Calibration, predictions: Sequence[Prediction]
) -> FloatArray | None:
    """Probability that each query's moment is in its video, ``(N,)``; None if not calibrated.

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


def _logit(probability: FloatArray) -> FloatArray:
    p = np.clip(probability, 1e-6, 1 - 1e-6)
    result: FloatArray = np.log(p / (1 - p))
    return result


def load_calibration(path: Path) -> Calibration:
    """Read a calibration whose covariates are those that are collected here.

    Raises:
        ModelError: If it is missing, damaged, or was fitted on other covariates.
    """
    calibration = Calibration.load(path)
    for part in (calibration.interval, calibration.presence):
        if part is not None and part.scaler.names != COVARIATES:
            raise ModelError(
                str(path),
                expected=f"a calibration on {', '.join(COVARIATES)}",
                got=f"one on {', '.join(part.scaler.names)}",
                remedy="run demr calibrate again, on queries with absent ones",
            )
    return calibration


def apply_calibration(
    raw: Sequence[RawPrediction], calibration: Calibration, top: int = 10
) -> list[Prediction]:
    """Answer every query with the ranking the calibration chose."""
    ranking: Ranking = calibration.ranking  # type: ignore[assignment]
    return [
        answer(
            r,
            ranking=ranking,
            tau=calibration.tau,
            disagreement=calibration.disagreement,
            top=top,
        )
        for r in raw
    ]


def boundary_residual(
    predictions: Sequence[Prediction], annotations: Sequence[Annotation]
) -> FloatArray:
    """True minus predicted start and end of every top moment, in seconds, ``(N, 2)``."""
    window = np.array([p.moments.window_s[0] for p in predictions]).reshape(-1, 2)
    residual: FloatArray = true_windows(window, [a.windows_s or () for a in annotations]) - window
    return residual

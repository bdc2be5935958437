"""Raw predictions of a query -> ranked moments, and the covariates of their calibration."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from demr.annotations.windows import distinct_rows, suppress, window_iou
from demr.answers.calibration import Calibration
from demr.answers.inference import RawPrediction
from demr.answers.proposals import NMS_IOU, Proposals, Ranking, select

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
# Moments of a query that are calibrated on and evaluated.
RANKED = 10
# Boundaries that move by votes or fusion may end up on each other: so many times more moments are
# selected than are returned, and of those that came to overlap the better one stays.
_SPARE = 4


@dataclass(frozen=True)
class Prediction:
    """A query's ranked moments, and what their calibration is based on.

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
    def distinct(self) -> NDArray[np.int64]:
        """Rows of the moments that do not repeat a better one, best first, ``(M,)``."""
        return distinct_rows(self.moments.window_s)

    @property
    def dof(self) -> FloatArray:
        """Degrees of freedom of the predictive Student-t, ``(N, 2)``."""
        return 2 * self.moments.alpha


def rank_moments(
    raw: RawPrediction,
    *,
    ranking: Ranking = "score",
    tau: float = 0.0,
    disagreement: float = 1.0,
    top: int = RANKED,
) -> Prediction:
    """Rank a query's proposals and collect the covariates of their calibration.

    Args:
        raw: What the network says.
        ranking: See :func:`~demr.answers.proposals.select`.
        tau: See :func:`~demr.answers.proposals.rank`.
        disagreement: See :func:`~demr.answers.proposals.select`.
        top: Moments to return; the covariates do not depend on it.
    """
    pick = partial(select, ranking=ranking, tau=tau, disagreement=disagreement)
    moments = pick(raw.proposals, after=_SPARE * max(top, _RIVALS))
    if raw.part_of_clip is None:
        context, stretches = np.tile(_video_context(raw, moments), (len(moments), 1)), None
    else:
        # A stretch is judged as the videos that the calibration was fitted on: by itself.
        tops = [pick(part.proposals, after=_SPARE * _RIVALS) for part in raw.parts]
        contexts = np.array([_video_context(*pair) for pair in zip(raw.parts, tops, strict=True)])
        stretches = np.concatenate(
            [
                _covariates(part, best[:1], of_part[None])
                for part, best, of_part in zip(raw.parts, tops, contexts, strict=True)
            ]
        )
        context = contexts[raw.part_of_clip[moments.clip_idx]]
    covariates = _covariates(raw, moments, context)
    absorbed_by = suppress(moments.window_s, NMS_IOU, top)
    keep = np.flatnonzero(absorbed_by == np.arange(len(moments)))
    return Prediction(moments[keep], covariates[keep], raw.saliency, stretches)


def rank_all(
    raw: Sequence[RawPrediction], calibration: Calibration, top: int = RANKED
) -> list[Prediction]:
    """:func:`rank_moments` of every query, with the ranking that the calibration chose."""
    ranking: Ranking = calibration.ranking  # type: ignore[assignment]
    return [
        rank_moments(
            one,
            ranking=ranking,
            tau=calibration.tau,
            disagreement=calibration.disagreement,
            top=top,
        )
        for one in raw
    ]


def _video_context(raw: RawPrediction, moments: Proposals) -> FloatArray:
    """What covariates of moments depend on in the video: best rival, contrast, log duration."""
    rivals = moments[:_RIVALS]
    disjoint = window_iou(rivals.window_s[:1], rivals.window_s)[0] == 0
    disjoint[0] = False  # an empty window does not even overlap itself
    following = float(rivals.foreground[disjoint].max(initial=0.0))
    contrast = float(raw.saliency.max() - raw.saliency.mean())
    return np.array([following, contrast, np.log(moments.duration_s)])


def _covariates(raw: RawPrediction, moments: Proposals, context: FloatArray) -> FloatArray:
    """:data:`COVARIATES` of moments, ``(N, 8)``, given their :func:`_video_context`, ``(N, 3)``."""
    variance = (moments.aleatoric + moments.epistemic).mean(axis=1)
    log_variance = np.log(np.maximum(variance, 1e-12))
    log_eu = np.log(np.maximum(moments.epistemic.mean(axis=1), 1e-12))
    logit = _logit(moments.foreground)
    windows = moments.window_s
    every = _logit(raw.proposals.foreground)
    same = window_iou(windows, raw.proposals.window_s) >= _SAME_IOU
    median = [
        float(np.median(every[row])) if row.any() else alone
        for row, alone in zip(same, logit.tolist(), strict=True)
    ]
    columns = (
        logit,
        moments.foreground - context[:, 0],
        log_variance,
        log_eu,
        context[:, 1],
        np.array(median),
        context[:, 2],
        np.log(np.maximum(windows[:, 1] - windows[:, 0], 0.1)),
    )
    return np.stack(columns, axis=1)


def _logit(probability: FloatArray) -> FloatArray:
    p = np.clip(probability, 1e-6, 1 - 1e-6)
    result: FloatArray = np.log(p / (1 - p))
    return result

"""Run a model over annotated queries, calibrate it on validation, and measure it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from demr.annotations import Annotation
from demr.calibration import (
    Calibration,
    IntervalCalibrator,
    PresenceCalibrator,
    check_counts,
)
from demr.dataset import MomentDataset, sequential_batches
from demr.errors import ModelError
from demr.files import atomic_path
from demr.inference import RawPrediction, predict
from demr.metrics import retrieval_metrics
from demr.model import DemrModel
from demr.presence import somewhere
from demr.proposals import NMS_IOU, Proposals, Ranking, select, suppress
from demr.stretches import MAX_CLIPS
from demr.uncertainty_metrics import (
    auroc,
    brier,
    consistency_bins,
    crps_student_t,
    ece,
    interval_coverage,
    interval_width,
    nll_student_t,
    uncertainty_metrics,
)
from demr.windows import true_windows, window_iou

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
TAUS = (0.0, 0.05, 0.1, 0.2, 0.4)
DISAGREEMENTS = (1.0, 2.0, 4.0, 8.0, 16.0)
# Moments that may rival the top one. Fixed: what is calibrated on ten holds for a list of one.
_RIVALS = 10
_SPARE = 4
# Between these two probabilities a search says "uncertain".
THRESHOLDS = {"found": 0.6, "absent": 0.4}


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


def run_model(
    model: DemrModel,
    dataset: MomentDataset,
    *,
    device: torch.device | None = None,
    batch_size: int = 128,
    max_clips: int = MAX_CLIPS,
) -> list[RawPrediction]:
    """Predict every item of a dataset, in its order, in float32.

    Args:
        model: In evaluation mode.
        dataset: Queries and features.
        device: Where to run; the model is moved there.
        batch_size: Items at once.
        max_clips: Clips to read at once; of longer videos stretches are read, as in a search.
    """
    device = torch.device("cpu") if device is None else device
    model = model.to(device).eval()
    results: dict[int, RawPrediction] = {}
    for indices in sequential_batches(dataset, batch_size):
        items = [dataset[index] for index in indices]
        said = predict(model, items, dataset.clip_s, max_clips=max_clips, device=device)
        results |= zip(indices, said, strict=True)
    return [results[index] for index in range(len(dataset))]


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
        ranking: See :func:`~demr.proposals.select`.
        tau: See :func:`~demr.proposals.rank`.
        disagreement: See :func:`~demr.proposals.select`.
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
    say "found" to everything sooner or later; see :func:`~demr.presence.somewhere`.
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


def boundary_residual(
    predictions: Sequence[Prediction], annotations: Sequence[Annotation]
) -> FloatArray:
    """True minus predicted start and end of every top moment, in seconds, ``(N, 2)``."""
    window = np.array([p.moments.window_s[0] for p in predictions]).reshape(-1, 2)
    residual: FloatArray = true_windows(window, [a.windows_s or () for a in annotations]) - window
    return residual


def is_scored(annotation: Annotation) -> bool:
    """Whether an answer can be right or wrong: a vague query has no single moment."""
    return annotation.kind != "vague"


def quick_metrics(
    proposals: Sequence[Proposals], annotations: Sequence[Annotation]
) -> dict[str, float]:
    """Cheap numbers for choosing a checkpoint: recall, mean IoU, presence, and their mean."""
    present_score, absent_score, overlap = [], [], []
    for record, annotation in zip(proposals, annotations, strict=True):
        if annotation.windows_s is None or not is_scored(annotation):
            continue
        best = int(record.foreground.argmax())
        if not annotation.windows_s:
            absent_score.append(record.foreground[best])
            continue
        present_score.append(record.foreground[best])
        window = record.window_s[best][None]
        overlap.append(window_iou(window, np.asarray(annotation.windows_s)).max())
    iou = np.asarray(overlap)
    metrics = {
        "R1@0.5": float((iou >= 0.5).mean() * 100) if len(iou) else 0.0,
        "R1@0.7": float((iou >= 0.7).mean() * 100) if len(iou) else 0.0,
        "mIoU": float(iou.mean() * 100) if len(iou) else 0.0,
    }
    if absent_score and present_score:
        metrics["AUROC"] = float(auroc(present_score, absent_score)) * 100
    # Finding moments and knowing when there is none count the same.
    metrics["quality"] = float(np.mean([metrics["mIoU"], metrics.get("AUROC", metrics["mIoU"])]))
    return metrics


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


def measure(
    predictions: Sequence[Prediction],
    annotations: Sequence[Annotation],
    calibration: Calibration,
    *,
    level: float = 0.9,
) -> dict[str, float]:
    """All numbers of one split.

    Retrieval and uncertainty are measured on the queries whose moment is present; uncertainty
    on the top moment of each, wrong ones included, against the true window of highest IoU.

    Returns:
        Percentages for recall, IoU and mAP; fractions 0..1 for coverage and probabilities.
    """
    pairs = [(p, a) for p, a in zip(predictions, annotations, strict=True) if a.windows_s]
    absent = [p for p, a in zip(predictions, annotations, strict=True) if a.windows_s == ()]
    metrics: dict[str, float] = {"absent_queries": float(len(absent))}
    if pairs:
        present, truth = [p for p, _ in pairs], [a for _, a in pairs]
        metrics |= retrieval_metrics(
            [np.column_stack([p.moments.window_s, p.moments.score]) for p in present],
            [np.asarray(a.windows_s) for a in truth],
        )
        metrics |= _measure_uncertainty(present, truth, calibration, level)
    if pairs and absent and calibration.presence is not None:
        every = presence_probability(calibration, [*present, *absent])
        positive, negative = np.split(np.asarray(every), [len(present)])
        metrics["presence/AUROC"] = float(auroc(positive, negative))
        probability = np.concatenate([positive, negative])
        label = np.arange(len(probability)) < len(positive)
        metrics["presence/brier"] = float(brier(probability, label))
        metrics["presence/ECE"] = float(ece(probability, label))
        metrics["presence/AUROC of top probability"] = float(
            auroc([p.presence[0] for p in present], [p.presence[0] for p in absent])
        )
    return metrics


def _measure_uncertainty(
    present: Sequence[Prediction],
    truth: Sequence[Annotation],
    calibration: Calibration,
    level: float,
) -> dict[str, float]:
    residual = boundary_residual(present, truth)
    window = np.array([p.moments.window_s[0] for p in present])
    aleatoric = np.array([p.moments.aleatoric[0] for p in present])
    epistemic = np.array([p.moments.epistemic[0] for p in present])
    evidence = np.array([p.moments.evidence[0] for p in present])
    scale = np.array([p.moments.scale_s[0] for p in present])
    dof = np.array([p.dof[0] for p in present])
    error = np.abs(residual).mean(axis=1)
    means = (aleatoric.mean(axis=1), epistemic.mean(axis=1), evidence.mean(axis=1))
    metrics = {
        f"uncertainty/{name}": value for name, value in uncertainty_metrics(error, *means).items()
    }
    overlap = np.array(
        [
            window_iou(w[None], np.asarray(a.windows_s)).max()
            for w, a in zip(window, truth, strict=True)
        ]
    )
    metrics |= {
        f"uncertainty/1-IoU/{name}": value
        for name, value in uncertainty_metrics(1 - overlap, *means).items()
        if name.startswith("spearman")
    }
    metrics["uncertainty/mean error s"] = float(error.mean())
    nu = np.array([p.moments.nu[0] for p in present])
    for quantile in (0.05, 0.5, 0.95):
        metrics[f"uncertainty/nu q{quantile:g}"] = float(np.quantile(nu, quantile))
    duration = np.array([a.duration_s for a in truth])[:, None]
    # Clipped, as rounding may put a moment that ends with the video a hair beyond it.
    true = np.clip(window + residual, 0, duration)
    metrics["uncertainty/NLL"] = float(np.mean(nll_student_t(true, window, scale, dof)))
    metrics["uncertainty/CRPS s"] = float(np.mean(crps_student_t(true, window, scale, dof)))
    if calibration.interval is not None:
        low, high = calibration.interval.interval(
            window, scale, dof, np.array([p.presence for p in present]), level
        )
        # Neither the truth nor a search's printed interval lies outside the video.
        low, high = np.clip(low, 0, duration), np.clip(high, 0, duration)
        metrics |= {
            f"interval/coverage {k}": v for k, v in interval_coverage(low, high, true).items()
        }
        metrics |= {f"interval/width {k} s": v for k, v in interval_width(low, high).items()}
    return metrics


def error_bins(
    predictions: Sequence[Prediction], annotations: Sequence[Annotation], *, bins: int = 10
) -> dict[str, list[float]]:
    """Evidence and uncertainty against the error they ought to follow.

    Top moments of the present queries are put in bins of equal mass by their mean boundary
    error; start and end are averaged first.

    Returns:
        ``error s`` (mean of a bin in seconds, rising) and, of the same length, geometric means of
        ``evidence`` and of the standard deviations ``EU s``, ``AU s`` and ``AU+EU s`` in seconds;
        empty lists without a present query.
    """
    names = ("evidence", "EU s", "AU s", "AU+EU s")
    pairs = [(p, a) for p, a in zip(predictions, annotations, strict=True) if a.windows_s]
    if not pairs:
        return {name: [] for name in ("error s", *names)}
    present = [p for p, _ in pairs]
    error = np.abs(boundary_residual(present, [a for _, a in pairs])).mean(axis=1)
    aleatoric, epistemic, evidence = (
        np.array([getattr(p.moments, name)[0].mean() for p in present])
        for name in ("aleatoric", "epistemic", "evidence")
    )
    deviations = (np.sqrt(variance) for variance in (epistemic, aleatoric, aleatoric + epistemic))
    result: dict[str, list[float]] = {}
    for name, values in zip(names, (evidence, *deviations), strict=True):
        # By error, with the roles of error and uncertainty exchanged.
        of_bin, mean, _ = consistency_bins(np.log(np.maximum(values, 1e-12)), error, bins=bins)
        result["error s"], result[name] = of_bin.tolist(), np.exp(mean).tolist()
    return result


def prediction_lines(
    predictions: Sequence[Prediction],
    annotations: Sequence[Annotation],
    calibration: Calibration,
    level: float,
) -> list[str]:
    """JSON lines in the field's submission format, with demr's own keys beside them."""
    lines = []
    presence: list[float | None] = [None] * len(predictions)
    probability = presence_probability(calibration, predictions)
    if probability is not None:
        presence = probability.tolist()
    for prediction, annotation, present in zip(predictions, annotations, presence, strict=True):
        moments = prediction.moments
        windows = np.column_stack([moments.window_s, moments.score])
        row: dict[str, Any] = {
            "qid": annotation.qid,
            "query": annotation.query,
            "vid": annotation.vid,
            "pred_relevant_windows": np.round(windows, 4).tolist(),
            "pred_saliency_scores": np.round(prediction.saliency, 4).tolist(),
            "aleatoric": np.round(np.sqrt(moments.aleatoric), 4).tolist(),
            "epistemic": np.round(np.sqrt(moments.epistemic), 4).tolist(),
            "evidence": np.round(moments.evidence, 4).tolist(),
            "present": None if present is None else round(present, 4),
        }
        if calibration.interval is not None:
            low, high = calibration.interval.interval(
                moments.window_s, moments.scale_s, prediction.dof, prediction.covariates, level
            )
            bounds = np.clip(np.stack([low, high], axis=-1), 0, moments.duration_s)
            row["intervals"] = np.round(bounds, 3).tolist()
        lines.append(json.dumps(row, ensure_ascii=False))
    return lines


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON atomically; NaN becomes null."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(k): clean(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [clean(v) for v in value]
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        return value

    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(clean(values), indent=1) + "\n", encoding="utf-8")

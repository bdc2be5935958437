"""Every number of a split, from its predictions and annotations."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from demr.annotations.annotations import Annotation
from demr.annotations.windows import window_iou
from demr.answers.answering import Prediction, boundary_residual, presence_probability
from demr.answers.calibration import Calibration
from demr.answers.proposals import Proposals
from demr.metrics.retrieval import retrieval_metrics
from demr.metrics.uncertainty import (
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

"""How well the uncertainty of prediction records knows their errors, and whether intervals hold."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from demr.annotations.annotations import Annotation
from demr.annotations.windows import (
    RIGHT_IOU,
    assign_truths,
    distinct_rows,
    iou,
    true_windows,
)
from demr.evaluation.predictions import PredictionRecord
from demr.metrics.rejection import generalized_miou, rejection_f1
from demr.metrics.scores import (
    cdf_mixture,
    coverage_width_curve,
    interval_score,
    quantile_calibration_error,
    quantile_mixture,
    worst_slab_coverage,
)
from demr.metrics.uncertainty import (
    auroc,
    brier,
    consistency_bins,
    crps_student_t,
    ece,
    interval_coverage,
    interval_width,
    nll_student_t,
    risk_coverage_curve,
    uncertainty_metrics,
)

FloatArray = npt.NDArray[np.float64]
Pairs = Sequence[tuple[PredictionRecord, Annotation]]

INTERVAL_LEVEL = 0.9  # of the intervals in prediction files
# Levels of the Student-t's central intervals whose coverage and width are told.
STUDENT_T_LEVELS = (0.5, 0.8, 0.9, 0.95)
REJECTED = "not in this video"  # the verdict of prediction files
LEAST_PRESENT = 0.4  # what benchmarks of absent queries reject at: arXiv:2605.02623
SUREST = 0.8  # share of the queries that is left where the least sure fifth is discarded
# A tenth of 250 boundaries: less says nothing of a slab.
_LEAST_FOR_SLABS = 250
_SLAB_DIRECTIONS = 100


def uncertainty_of(pairs: Pairs) -> dict[str, float]:
    """Uncertainty of the first window of each present query against its error.

    Args:
        pairs: Predictions of at least one window, and annotations of present queries.

    Returns:
        ``uncertainty/mean error s``: mean boundary error of the first window, wrong ones included,
        against the true window of highest IoU. Where all predictions carry their deviations,
        ``uncertainty/METRIC/MEASURE`` of :func:`~demr.metrics.uncertainty.uncertainty_metrics`,
        likewise ``uncertainty/1-IoU/...`` against 1 - IoU, ``R1@0.5 of the surest 80 %/MEASURE``
        (by the score, too), and quantiles of ``nu``; with their Student-t ``uncertainty/NLL``,
        ``uncertainty/CRPS s`` and ``uncertainty/quantile calibration error`` of the boundaries,
        ``uncertainty/coverage LEVEL`` and ``uncertainty/width LEVEL s`` of its central intervals.
        Empty without pairs.
    """
    if not pairs:
        return {}
    window, truth = _first_windows(pairs)
    error = np.abs(truth - window).mean(axis=1)
    metrics = {"uncertainty/mean error s": float(error.mean())}
    overlap = iou(window, truth)
    measures = _measures(pairs)
    if measures is not None:
        for prefix, wrong in (("uncertainty/", error), ("uncertainty/1-IoU/", 1 - overlap)):
            found = uncertainty_metrics(
                wrong,
                measures["aleatoric"],
                measures["epistemic"],
                measures.get("evidence"),
                scale=measures.get("scale"),
            )
            metrics |= _prefixed(prefix, found)
        metrics |= _surest(pairs, overlap, measures)
        nu = np.asarray(_first(pairs, "nu"))
        for quantile in (0.05, 0.5, 0.95):
            metrics[f"uncertainty/nu q{quantile:g}"] = float(np.quantile(nu, quantile))
    return metrics | _student_t_metrics(pairs, window, truth)


def _measures(pairs: Pairs) -> dict[str, FloatArray] | None:
    """Means over start and end of what measures uncertainty, as ``uncertainty_metrics`` asks."""
    aleatoric, epistemic = _first(pairs, "aleatoric"), _first(pairs, "epistemic")
    if aleatoric is None or epistemic is None:
        return None
    measures = {"aleatoric": aleatoric**2, "epistemic": epistemic**2}
    for name in ("evidence", "scale"):
        if (values := _first(pairs, name)) is not None:
            measures[name] = values
    return {name: values.mean(axis=1) for name, values in measures.items()}


def _surest(pairs: Pairs, overlap: FloatArray, measures: dict[str, FloatArray]) -> dict[str, float]:
    """R1@0.5 where the least sure fifth of the queries is not answered."""
    by = {
        "EU": measures["epistemic"],
        "AU+EU": measures["aleatoric"] + measures["epistemic"],
        "score": -np.array([p.windows[0, 2] for p, _ in pairs]),
    }
    wrong = (overlap < RIGHT_IOU).astype(np.float64)
    left = max(round(SUREST * len(pairs)), 1) - 1
    return {
        f"uncertainty/R1@{RIGHT_IOU:g} of the surest {100 * SUREST:.0f} %/{name}": float(
            100 * (1 - risk_coverage_curve(wrong, measure)[1][left])
        )
        for name, measure in by.items()
    }


def _student_t_metrics(pairs: Pairs, window: FloatArray, truth: FloatArray) -> dict[str, float]:
    scale, alpha = _first(pairs, "scale"), _first(pairs, "alpha")
    if scale is None or alpha is None:
        return {}
    duration = _durations(pairs)
    inside = np.clip(truth, 0, duration)
    student_t = (window, scale, 2 * alpha)
    one = [part[..., None] for part in student_t]  # a mixture of one component
    pit = cdf_mixture(inside, one[0], one[1], one[2], 1.0)
    metrics = {
        "uncertainty/NLL": float(np.mean(nll_student_t(inside, *student_t))),
        "uncertainty/CRPS s": float(np.mean(crps_student_t(inside, *student_t))),
        "uncertainty/quantile calibration error": quantile_calibration_error(pit),
    }
    tail = (1 - np.array(STUDENT_T_LEVELS)[:, None, None]) / 2
    half = quantile_mixture(1 - tail, one[0], one[1], one[2], 1.0) - window
    low, high = (np.clip(window + side * half, 0, duration) for side in (-1, 1))
    curve = coverage_width_curve(low, high, inside)
    for level, coverage, width in zip(STUDENT_T_LEVELS, *curve, strict=True):
        metrics[f"uncertainty/coverage {level:g}"] = float(coverage)
        metrics[f"uncertainty/width {level:g} s"] = float(width)
    return metrics


def interval_metrics(pairs: Pairs) -> dict[str, float]:
    """Coverage and width of the intervals of present queries.

    Intervals and truths are cut at the end of the video that was looked at: sources differ by
    seconds about how long a video is, and no boundary was predicted beyond what was seen.

    Returns:
        ``interval/coverage ...`` and ``interval/width ... s`` of first windows that have an
        interval, ``interval/winkler s`` (:func:`~demr.metrics.scores.interval_score` at 0.9, the
        level of prediction files), ``interval/worst slab`` (coverage of boundaries in the slab of
        place, length, duration and width where it is least,
        :func:`~demr.metrics.scores.worst_slab_coverage`), ``interval/without`` where some have none
        (the model cannot judge their video or words), and ``interval/further ...`` of those of the
        windows after them that were given a true window of their own
        (:func:`~demr.annotations.windows.assign_truths`), with their number.
    """
    if not pairs:
        return {}
    metrics: dict[str, float] = {}
    first = [
        (p, a) for p, a in pairs if p.intervals is not None and not np.isnan(p.intervals[0]).any()
    ]
    if first:
        given = np.array([p.intervals[0] for p, _ in first if p.intervals is not None])
        window, truth = _first_windows(first)
        metrics |= _prefixed("interval/", _coverage(given, truth, _durations(first)))
        metrics |= _interval_scores(given, window, truth, _durations(first))
        if len(first) < len(pairs):
            metrics["interval/without"] = float(len(pairs) - len(first))
    bounds, truths, durations = [], [], []
    for (prediction, annotation), duration in zip(pairs, _durations(pairs), strict=True):
        if prediction.intervals is None:
            continue
        rows, given = assign_truths(prediction.windows[:, :2], annotation.windows_s or ())
        for row, truth_of_row in list(zip(rows.tolist(), given, strict=True))[1:]:
            if not np.isnan(prediction.intervals[row]).any():
                bounds.append(prediction.intervals[row])
                truths.append(truth_of_row)
                durations.append(duration)
    if bounds:
        found = _coverage(np.array(bounds), np.array(truths), np.array(durations))
        metrics |= _prefixed("interval/further ", found)
        metrics["interval/further moments"] = float(len(bounds))
    return metrics


def _interval_scores(
    bounds: FloatArray, window: FloatArray, truth: FloatArray, duration_s: FloatArray
) -> dict[str, float]:
    low, high = (np.clip(bounds[..., side], 0, duration_s) for side in (0, 1))
    inside = np.clip(truth, 0, duration_s)
    score = interval_score(low, high, inside, INTERVAL_LEVEL)
    metrics = {"interval/winkler s": float(score.mean())}
    covered = ((low <= inside) & (inside <= high)).ravel()
    if len(covered) >= _LEAST_FOR_SLABS:
        # Start and end are rows of their own with the same length and duration.
        place = np.clip(window, 0, duration_s)
        alike = np.repeat(np.c_[place[:, 1] - place[:, 0], duration_s], 2, axis=0)
        covariates = np.c_[place.ravel(), (high - low).ravel(), alike]
        metrics["interval/worst slab"] = worst_slab_coverage(
            covered, covariates, directions=_SLAB_DIRECTIONS
        )
    return metrics


def presence_metrics(pairs: Pairs) -> dict[str, float]:
    """Whether present queries are told from absent ones.

    Returns:
        ``presence/AUROC of score`` by the score of the first window; ``presence/Rej-F1`` and
        ``presence/G-mIoU@K`` (:mod:`demr.metrics.rejection`) of predictions that can reject: by the
        verdict ``not in this video``; without a verdict, by ``present`` of at most 0.4 or by having
        no windows; of the predictions that carry ``present`` ``presence/AUROC``,
        ``presence/brier`` and ``presence/ECE``, and ``presence/not judged``, the number of those
        that carry a verdict without it: the model cannot judge them. Empty where queries are all
        present or all absent.
    """
    label = np.array([bool(a.windows_s) for _, a in pairs], dtype=bool)
    if not _both_kinds(label):
        return {}
    metrics = _rejection_metrics(pairs, ~label)
    if all(len(p.windows) for p, _ in pairs):
        score = np.array([p.windows[0, 2] for p, _ in pairs])
        metrics["presence/AUROC of score"] = auroc(score[label], score[~label])
    judged = [p.present is not None for p, _ in pairs]
    label = label[judged]
    if _both_kinds(label):
        probability = np.array([p.present for p, _ in pairs if p.present is not None])
        metrics |= {
            "presence/AUROC": auroc(probability[label], probability[~label]),
            "presence/brier": brier(probability, label),
            "presence/ECE": ece(probability, label),
        }
    if unjudged := sum(p.present is None and p.verdict is not None for p, _ in pairs):
        metrics["presence/not judged"] = float(unjudged)
    return metrics


def _rejection_metrics(pairs: Pairs, absent: npt.NDArray[np.bool_]) -> dict[str, float]:
    if all(p.verdict is None and p.present is None for p, _ in pairs):
        return {}  # predictions of a model that always answers
    rejected = [_is_rejected(p) for p, _ in pairs]
    told = [
        p.windows[:0, :2] if reject else p.windows[:, :2]
        for (p, _), reject in zip(pairs, rejected, strict=True)
    ]
    truths = [np.asarray(a.windows_s or (), np.float64).reshape(-1, 2) for _, a in pairs]
    overlaps = _prefixed("presence/", generalized_miou(told, truths))
    return {"presence/Rej-F1": rejection_f1(rejected, absent)} | overlaps


def _is_rejected(prediction: PredictionRecord) -> bool:
    if prediction.verdict is not None:
        return prediction.verdict == REJECTED
    unlikely = prediction.present is not None and prediction.present <= LEAST_PRESENT
    return unlikely or not len(prediction.windows)


def confidence_metrics(pairs: Pairs) -> dict[str, float]:
    """Whether windows are true ones as often as their confidence says.

    A window is right where it overlaps a true one of its own with an IoU of at least 0.5
    (:func:`~demr.annotations.windows.assign_truths`). Windows that repeat a better one are left
    out, as a search does not tell of them.

    Returns:
        ``confidence/ECE`` of first windows and ``confidence/further ECE`` of those after them,
        with ``confidence/AUROC`` and ``confidence/further AUROC`` where some are right and some
        wrong. Empty where no window carries a confidence.
    """
    metrics = {}
    judged = [
        _confidence_and_hits(p, a) for p, a in pairs if p.confidence is not None and len(p.windows)
    ]
    for name, ranks in (("confidence/", slice(0, 1)), ("confidence/further ", slice(1, None))):
        if not sum(len(sure[ranks]) for sure, _ in judged):
            continue
        every = np.concatenate([sure[ranks] for sure, _ in judged])
        label = np.concatenate([hit[ranks] for _, hit in judged])
        every, label = every[~np.isnan(every)], label[~np.isnan(every)]
        if not len(every):
            continue
        metrics[f"{name}ECE"] = ece(every, label)
        if _both_kinds(label):
            metrics[f"{name}AUROC"] = auroc(every[label], every[~label])
    return metrics


def _confidence_and_hits(
    prediction: PredictionRecord, annotation: Annotation
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Of each distinct window its confidence, and whether it is a true one."""
    windows = prediction.windows[:, :2]
    rows = distinct_rows(windows)
    hit = np.zeros(len(rows), dtype=bool)
    given, true = assign_truths(windows[rows], annotation.windows_s or ())
    hit[given] = iou(windows[rows][given], true) >= RIGHT_IOU
    return np.asarray(prediction.confidence)[rows], hit


def _both_kinds(label: npt.NDArray[np.bool_]) -> bool:
    return bool(len(label)) and bool(label.any()) and not bool(label.all())


def error_bins(
    records: Sequence[PredictionRecord], annotations: Sequence[Annotation], *, bins: int = 10
) -> dict[str, list[float]]:
    """Evidence and uncertainty against the error they ought to follow.

    First windows of the present queries are put in bins of equal mass by their mean boundary
    error; start and end are averaged first.

    Args:
        records: Predictions with deviations and ``alpha``.
        annotations: Their queries, in the same order.
        bins: How many.

    Returns:
        ``error s`` (mean of a bin in seconds, rising) and, of the same length, geometric means of
        ``evidence`` and of the standard deviations ``EU s``, ``AU s`` and ``AU+EU s`` in seconds;
        empty lists without a present query.
    """
    names = ("evidence", "EU s", "AU s", "AU+EU s")
    pairs = [(p, a) for p, a in zip(records, annotations, strict=True) if a.windows_s]
    if not pairs:
        return {name: [] for name in ("error s", *names)}
    window, truth = _first_windows(pairs)
    error = np.abs(truth - window).mean(axis=1)
    aleatoric, epistemic = (
        (np.asarray(_first(pairs, name)) ** 2).mean(axis=1) for name in ("aleatoric", "epistemic")
    )
    evidence = np.asarray(_first(pairs, "evidence")).mean(axis=1)
    deviations = (np.sqrt(variance) for variance in (epistemic, aleatoric, aleatoric + epistemic))
    result: dict[str, list[float]] = {}
    for name, values in zip(names, (evidence, *deviations), strict=True):
        # By error, with the roles of error and uncertainty exchanged.
        of_bin, mean, _ = consistency_bins(np.log(np.maximum(values, 1e-12)), error, bins=bins)
        result["error s"], result[name] = of_bin.tolist(), np.exp(mean).tolist()
    return result


def _first_windows(pairs: Pairs) -> tuple[FloatArray, FloatArray]:
    """First windows and the true ones of highest IoU, ``(N, 2)`` each, in seconds."""
    window = np.array([p.windows[0, :2] for p, _ in pairs])
    return window, true_windows(window, [a.windows_s or () for _, a in pairs])


def _first(pairs: Pairs, name: str) -> FloatArray | None:
    """A field of all first windows; None if a prediction lacks it."""
    values = [getattr(prediction, name) for prediction, _ in pairs]
    return None if any(v is None for v in values) else np.array([v[0] for v in values])


def _durations(pairs: Pairs) -> FloatArray:
    """Length of each video as it was looked at; as annotated where that is not said, ``(N, 1)``."""
    return np.array([[a.duration_s if p.duration_s is None else p.duration_s] for p, a in pairs])


def _coverage(bounds: FloatArray, truth: FloatArray, duration_s: FloatArray) -> dict[str, float]:
    low, high = (np.clip(bounds[..., side], 0, duration_s) for side in (0, 1))
    coverage = interval_coverage(low, high, np.clip(truth, 0, duration_s))
    return {f"coverage {key}": value for key, value in coverage.items()} | {
        f"width {key} s": value for key, value in interval_width(low, high).items()
    }


def _prefixed(prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    return {prefix + name: value for name, value in metrics.items()}

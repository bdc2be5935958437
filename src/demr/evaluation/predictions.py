"""Files of predictions, of demr or of others -> metrics; needs neither a model nor torch."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from demr.annotations.annotations import (
    ANNOTATORS,
    Annotation,
    read_annotations_with_report,
    saliency_votes,
)
from demr.annotations.formats import broken, json_lines, read_text
from demr.annotations.repairs import RepairReport
from demr.annotations.windows import true_windows
from demr.errors import AnnotationError
from demr.metrics.retrieval import (
    discounted_recall,
    highlight_metrics,
    retrieval_metrics,
    saliency_truth,
)
from demr.metrics.uncertainty import auroc, brier, ece, interval_coverage, interval_width, spearman

FloatArray = npt.NDArray[np.float64]

CLIP_S = 2.0  # QVHighlights and TVSum score clips of two seconds
_CLIPS_OFF = 2  # published saliency is often a clip or two short; more is another clip length
_BOTH = "predictions and annotations"
_NO_WINDOWS = np.zeros((0, 3))


class PredictionWarning(UserWarning):
    """Something about the predictions that changes what the metrics mean."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model answered to one query. Compared by identity, as arrays are.

    Attributes:
        qid: Name of the query in the annotations.
        windows: Start and end in seconds and score, the best first, ``(K, 3)``; ``K`` may be 0.
        vid: Name of the video, if given.
        query: The sentence, if given.
        saliency: Score of every clip, any scale, ``(L,)``.
        intervals: Lower and upper end for start and end of every window, ``(K, 2, 2)``, seconds.
        aleatoric: Standard deviation of start and end, ``(K, 2)``, seconds.
        epistemic: The same of what the model does not know.
        present: Probability that the moment is in the video.
        place: File and line, for messages.
    """

    qid: str
    windows: FloatArray
    vid: str | None = None
    query: str | None = None
    saliency: FloatArray | None = None
    intervals: FloatArray | None = None
    aleatoric: FloatArray | None = None
    epistemic: FloatArray | None = None
    present: float | None = None
    place: str = "prediction"


@dataclass(frozen=True)
class Comparison:
    """Metrics, and what a reader of them should know about the input.

    Attributes:
        metrics: As :func:`compare` describes.
        notes: One line each, with counts.
    """

    metrics: dict[str, float]
    notes: tuple[str, ...]


def read_predictions(path: str | os.PathLike[str]) -> list[Prediction]:
    """Read JSON Lines in the field's submission form, plain or gzipped.

    Keys: ``qid``, and ``pred_relevant_windows`` or ``pred_saliency_scores`` or both; optional
    ``vid`` and ``query``, and demr's own ``intervals``, ``aleatoric``, ``epistemic`` and
    ``present``. Other keys are ignored; null is the same as a missing key.

    Raises:
        AnnotationError: If the file cannot be read, holds no prediction, a value has another
            shape or is not finite, or a qid occurs twice; names the file and the line.
    """
    source = Path(path)
    predictions: dict[str, Prediction] = {}
    for place, _, record in json_lines(source, read_text(source, "predictions")):
        prediction = _prediction(place, record)
        known = predictions.setdefault(prediction.qid, prediction)
        if known is not prediction:
            raise AnnotationError(
                place,
                expected="one prediction a query",
                got=f"qid {prediction.qid!r} again, first at {known.place}",
                remedy="remove one of the two",
            )
    if not predictions:
        raise AnnotationError(
            str(source), expected="at least one prediction", got="none", remedy="check the file"
        )
    return list(predictions.values())


def evaluate_predictions(
    predictions: str | os.PathLike[str], annotations: str | os.PathLike[str]
) -> dict[str, float]:
    """Measure a file of predictions against a file of annotations; see :func:`compare`.

    Every note is given as a :class:`PredictionWarning`.

    Raises:
        AnnotationError: If a file is damaged or the two do not belong together.
    """
    answered = read_predictions(predictions)
    asked, report = read_annotations_with_report(annotations)
    try:
        comparison = compare(answered, asked)
    except AnnotationError as error:
        if error.subject != _BOTH:
            raise
        raise AnnotationError(
            f"{predictions} and {annotations}",
            expected=error.expected,
            got=error.got,
            remedy=error.remedy,
        ) from error
    for note in (*_repairs(report), *comparison.notes):
        warnings.warn(note, PredictionWarning, stacklevel=2)
    return comparison.metrics


def compare(
    predictions: Sequence[Prediction], annotations: Sequence[Annotation], *, clip_s: float = CLIP_S
) -> Comparison:
    """Measure predictions against annotations, joined by qid.

    Args:
        predictions: At most one a query. Those for other queries are ignored.
        annotations: Queries of one split. Those without a prediction count as misses; those whose
            windows are unknown only serve the highlight metrics.
        clip_s: Length of the clips that saliency was annotated for, in seconds.

    Returns:
        Always: ``queries_without_predictions`` and, where windows are known, everything of
        :func:`~demr.metrics.retrieval.retrieval_metrics` and
        :func:`~demr.metrics.retrieval.discounted_recall`, and ``absent_queries``. With saliency on
        both sides: ``highlights/...`` of :func:`~demr.metrics.retrieval.highlight_metrics`. With
        demr's own keys in all joined predictions: ``interval/coverage ...`` and ``interval/width
        ... s`` of the first window, wrong ones included; ``uncertainty/spearman/...`` of its mean
        boundary error with the variances; and ``presence/AUROC``, ``presence/brier`` and
        ``presence/ECE`` where queries of both kinds were answered.

    Raises:
        AnnotationError: If nothing joins, a joined prediction names another video, or the
            annotations say nothing to compare with.
    """
    answers = {prediction.qid: prediction for prediction in predictions}
    joined = [(answers[a.qid], a) for a in annotations if a.qid in answers]
    _check(joined, predictions, annotations)
    notes: list[str] = []
    asked = {annotation.qid for annotation in annotations}
    _note(
        notes,
        [p.qid for p in predictions if p.qid not in asked],
        "predictions for queries that the annotations do not have: ignored",
    )
    unanswered = [a.qid for a in annotations if a.qid not in answers]
    _note(
        notes,
        unanswered,
        f"of {len(annotations)} annotated queries without a prediction: counted as misses",
    )
    metrics: dict[str, float] = {}
    known = [a for a in annotations if a.windows_s is not None]
    unknown = [a.qid for a in annotations if a.windows_s is None]
    if known:
        _note(notes, unknown, "queries whose windows are unknown: left out")
        _note(
            notes,
            [p.qid for p, a in joined if a.windows_s and not len(p.windows)],
            "predictions without windows: counted as misses",
        )
        _note(
            notes,
            _flat([p for p, _ in joined]),
            "predictions with windows of no length or reversed: they overlap nothing",
        )
        windows = [answers[a.qid].windows if a.qid in answers else _NO_WINDOWS for a in known]
        truths = [np.reshape(np.asarray(a.windows_s, np.float64), (-1, 2)) for a in known]
        metrics |= retrieval_metrics(windows, truths)
        metrics |= discounted_recall(windows, truths, [a.duration_s for a in known])
        metrics["absent_queries"] = metrics.pop("queries_without_truth")
        metrics |= _boundaries([(p, a) for p, a in joined if a.windows_s and len(p.windows)])
        metrics |= _presence([(p, a) for p, a in joined if a.windows_s is not None])
    metrics["queries_without_predictions"] = float(len(unanswered))
    metrics |= _highlights(answers, annotations, clip_s, notes)
    return Comparison(metrics, tuple(notes))


def _check(
    joined: Sequence[tuple[Prediction, Annotation]],
    predictions: Sequence[Prediction],
    annotations: Sequence[Annotation],
) -> None:
    if not annotations or not predictions:
        got = f"{len(predictions)} and {len(annotations)}"
        raise AnnotationError(
            _BOTH, expected="at least one of each", got=got, remedy="choose another split"
        )
    if not joined:
        raise AnnotationError(
            _BOTH,
            expected="at least one query in both",
            got=f"no common qid (such as {predictions[0].qid!r} and {annotations[0].qid!r})",
            remedy="choose the annotations that were predicted",
        )
    if not any(a.windows_s is not None or a.saliency for a in annotations):
        raise AnnotationError(
            _BOTH,
            expected="annotations with windows or saliency",
            got=f"{len(annotations)} queries without (a test split whose answers are not public)",
            remedy="choose another split",
        )
    for prediction, annotation in joined:
        if prediction.vid not in (None, annotation.vid):
            # Many data sets number their queries from 0: equal qids of two splits mean nothing.
            raise AnnotationError(
                prediction.place,
                expected=f"the video {annotation.vid} of query {annotation.qid!r}",
                got=str(prediction.vid),
                remedy="choose the annotations that were predicted",
            )


def _flat(predictions: Sequence[Prediction]) -> list[str]:
    """Names of queries whose answers hold a window that does not end after its start."""
    table = np.concatenate([p.windows for p in predictions])
    owner = np.repeat(np.arange(len(predictions)), [len(p.windows) for p in predictions])
    return [predictions[index].qid for index in np.unique(owner[table[:, 1] <= table[:, 0]])]


def _boundaries(pairs: Sequence[tuple[Prediction, Annotation]]) -> dict[str, float]:
    """Intervals and uncertainties of every first window against the true one nearest to it."""
    if not pairs:
        return {}
    window = np.array([p.windows[0, :2] for p, _ in pairs])
    truth = true_windows(window, [a.windows_s or () for _, a in pairs])
    error = np.abs(truth - window).mean(axis=1)
    metrics = {"mean boundary error s": float(error.mean())}
    intervals = [p.intervals[0] for p, _ in pairs if p.intervals is not None]
    if len(intervals) == len(pairs):
        low, high = np.moveaxis(np.array(intervals), 2, 0)
        coverage, width = interval_coverage(low, high, truth), interval_width(low, high)
        metrics |= {f"interval/coverage {key}": value for key, value in coverage.items()}
        metrics |= {f"interval/width {key} s": value for key, value in width.items()}
    deviations = [
        (p.aleatoric[0], p.epistemic[0])
        for p, _ in pairs
        if p.aleatoric is not None and p.epistemic is not None
    ]
    if len(deviations) == len(pairs):
        aleatoric, epistemic = (np.array(deviations) ** 2).mean(axis=2).T
        for name, variance in (
            ("EU", epistemic),
            ("AU", aleatoric),
            ("AU+EU", aleatoric + epistemic),
        ):
            metrics[f"uncertainty/spearman/{name}"] = spearman(error, variance)
    return metrics


def _presence(pairs: Sequence[tuple[Prediction, Annotation]]) -> dict[str, float]:
    present = [p.present for p, _ in pairs if p.present is not None]
    label = np.array([bool(a.windows_s) for _, a in pairs])
    if len(present) < len(pairs) or label.all() or not label.any():
        return {}
    probability = np.array(present)
    return {
        "presence/AUROC": auroc(probability[label], probability[~label]),
        "presence/brier": brier(probability, label),
        "presence/ECE": ece(probability, label),
    }


def _highlights(
    answers: Mapping[str, Prediction],
    annotations: Sequence[Annotation],
    clip_s: float,
    notes: list[str],
) -> dict[str, float]:
    scored = [a for a in annotations if a.saliency and a.duration_s >= clip_s]
    given = {
        a.qid: saliency
        for a in scored
        if a.qid in answers and (saliency := answers[a.qid].saliency) is not None
    }
    if not given:
        return {}
    clips = {a.qid: int(a.duration_s / clip_s) for a in scored}
    off = [qid for qid, saliency in given.items() if abs(len(saliency) - clips[qid]) > _CLIPS_OFF]
    if 2 * len(off) > len(given):
        _note(
            notes,
            off,
            f"predictions whose saliency is not for clips of {clip_s:g} s: no highlight metrics",
        )
        return {}
    _note(
        notes,
        off,
        f"predictions whose saliency is more than {_CLIPS_OFF} clips off: cut or filled with 0",
    )
    _note(
        notes,
        [a.qid for a in scored if a.qid in answers and a.qid not in given],
        "predictions without saliency: counted as misses",
    )
    annotators = {len(one) for a in scored if a.saliency_votes for one in a.saliency_votes.values()}
    if len(annotators) > 1:
        notes.append("queries were scored by different numbers of annotators: no highlight metrics")
        return {}
    count = annotators.pop() if annotators else ANNOTATORS
    truths = []
    for annotation in scored:
        table = saliency_votes(annotation, count)
        truths.append(
            saliency_truth(annotation.duration_s, list(table), list(table.values()), clip_s=clip_s)
        )
    found = highlight_metrics([given.get(a.qid, np.zeros(0)) for a in scored], truths)
    return {f"highlights/{key}": value for key, value in found.items()}


def _repairs(report: RepairReport) -> list[str]:
    mended = (report.swapped, report.clipped, report.after_end, report.zero_length, report.repeated)
    return [f"annotations: {report.summary()}"] if any(mended) else []


def _note(notes: list[str], qids: Sequence[str], text: str) -> None:
    if qids:
        notes.append(f"{len(qids)} {text} (such as {qids[0]!r})")


def _prediction(place: str, record: Mapping[str, Any]) -> Prediction:
    qid = record.get("qid")
    if isinstance(qid, bool) or not isinstance(qid, int | str) or qid == "":
        raise broken(place, "text or a whole number as qid", repr(qid))
    windows, saliency = record.get("pred_relevant_windows"), record.get("pred_saliency_scores")
    if windows is None and saliency is None:
        keys = ", ".join(record)
        raise broken(place, "the key pred_relevant_windows or pred_saliency_scores", keys)
    table = (
        _NO_WINDOWS
        if windows is None
        else _array(
            place, "pred_relevant_windows", windows, (None, 3), "[[start, end, score], ...]"
        )
    )
    rows = len(table)
    own = {
        key: None if record.get(key) is None else _array(place, key, record[key], shape, form)
        for key, shape, form in (
            ("pred_saliency_scores", (None,), "one score a clip"),
            ("intervals", (rows, 2, 2), f"[[low, high], [low, high]] for {rows} windows"),
            ("aleatoric", (rows, 2), f"[start, end] for {rows} windows"),
            ("epistemic", (rows, 2), f"[start, end] for {rows} windows"),
        )
    }
    intervals = own["intervals"]
    if intervals is not None and (intervals[..., 0] > intervals[..., 1]).any():
        raise broken(place, "intervals of [low, high]", "low above high")
    for key in ("aleatoric", "epistemic"):
        deviation = own[key]
        if deviation is not None and (deviation < 0).any():
            raise broken(place, f"standard deviations of at least 0 as {key}", str(deviation.min()))
    present = record.get("present")
    if present is not None and (
        isinstance(present, bool) or not isinstance(present, int | float) or not 0 <= present <= 1
    ):
        raise broken(place, "a probability in 0..1 as present", repr(present))
    return Prediction(
        qid=str(qid),
        windows=table,
        vid=None if record.get("vid") is None else str(record["vid"]),
        query=None if record.get("query") is None else str(record["query"]),
        saliency=own["pred_saliency_scores"],
        intervals=intervals,
        aleatoric=own["aleatoric"],
        epistemic=own["epistemic"],
        present=None if present is None else float(present),
        place=place,
    )


def _array(
    place: str, key: str, value: object, shape: tuple[int | None, ...], form: str
) -> FloatArray:
    """The value as numbers of a shape; None in the shape stands for any number of rows."""
    if value == [] and not shape[0]:
        return np.zeros((0, *(size or 0 for size in shape[1:])))
    try:
        table = np.array(value)
    except ValueError as error:  # rows of different lengths
        raise broken(place, f"{form} under {key}", repr(value)) from error
    fits = table.ndim == len(shape) and all(
        size in (None, found) for size, found in zip(shape, table.shape, strict=True)
    )
    if not fits or table.dtype.kind not in "iuf":  # no text, null, true or false among them
        raise broken(place, f"{form} under {key}", repr(value))
    numbers: FloatArray = table.astype(np.float64, copy=False)
    finite = np.isfinite(numbers)
    if not finite.all():
        bad = int(np.flatnonzero(~finite.reshape(len(numbers), -1).all(axis=1))[0])
        raise broken(place, f"finite numbers under {key}", f"{numbers[bad].tolist()} at {bad}")
    return numbers

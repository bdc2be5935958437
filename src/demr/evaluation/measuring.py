"""Every number of a split, from prediction records and annotations; needs neither model nor torch.

A run's own predictions and a file of anyone's go the same way, so the same predictions have the
same numbers under the same names.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from demr.annotations.annotations import (
    ANNOTATORS,
    Annotation,
    read_annotations_with_report,
    saliency_votes,
)
from demr.annotations.repairs import RepairReport
from demr.errors import AnnotationError
from demr.evaluation.predictions import PredictionRecord, read_predictions
from demr.evaluation.uncertainty import interval_metrics, presence_metrics, uncertainty_of
from demr.metrics.retrieval import (
    discounted_recall,
    highlight_metrics,
    retrieval_metrics,
    saliency_truth,
)

FloatArray = npt.NDArray[np.float64]

CLIP_S = 2.0  # QVHighlights and TVSum score clips of two seconds
_CLIPS_OFF = 2  # published saliency is often a clip or two short; more is another clip length
_BOTH = "predictions and annotations"
_NO_WINDOWS = np.zeros((0, 3))


class PredictionWarning(UserWarning):
    """Something about the predictions that changes what the metrics mean."""


@dataclass(frozen=True)
class Measured:
    """Metrics, and what a reader of them should know about the input.

    Attributes:
        metrics: As :func:`measure` describes.
        notes: One line each, with counts.
    """

    metrics: dict[str, float]
    notes: tuple[str, ...]


def is_scored(annotation: Annotation) -> bool:
    """Whether a prediction can be right or wrong: a vague query has no single moment."""
    return annotation.kind != "vague"


def evaluate_predictions(
    predictions: str | os.PathLike[str], annotations: str | os.PathLike[str]
) -> dict[str, float]:
    """Measure a file of predictions against a file of annotations; see :func:`measure`.

    Every note is given as a :class:`PredictionWarning`.

    Raises:
        AnnotationError: If a file is damaged or the two do not belong together.
    """
    records = read_predictions(predictions)
    queries, report = read_annotations_with_report(annotations)
    try:
        measured = measure(records, queries)
    except AnnotationError as error:
        if error.subject != _BOTH:
            raise
        raise AnnotationError(
            f"{predictions} and {annotations}",
            expected=error.expected,
            got=error.got,
            remedy=error.remedy,
        ) from error
    for note in (*_repairs(report), *measured.notes):
        warnings.warn(note, PredictionWarning, stacklevel=2)
    return measured.metrics


def measure(
    predictions: Sequence[PredictionRecord],
    annotations: Sequence[Annotation],
) -> Measured:
    """Measure predictions against annotations, joined by qid.

    Args:
        predictions: At most one a query. Those for other queries are ignored.
        annotations: Queries of one split. Vague ones (:func:`is_scored`) are left out; those
            without a prediction count as misses; those whose windows are unknown only serve the
            highlight metrics.

    Returns:
        Always ``queries_without_predictions``. Where windows are known, everything of
        :func:`~demr.metrics.retrieval.retrieval_metrics` and
        :func:`~demr.metrics.retrieval.discounted_recall`, ``absent_queries``, and of the first
        window of every present query, wrong ones included, ``uncertainty/mean error s``. With
        demr's own keys in all joined predictions, what
        :func:`~demr.evaluation.uncertainty.uncertainty_of` and
        :func:`~demr.evaluation.uncertainty.interval_metrics` give, and where queries of both kinds
        were answered :func:`~demr.evaluation.uncertainty.presence_metrics`. With saliency on both
        sides ``highlights/...`` of :func:`~demr.metrics.retrieval.highlight_metrics`.

    Raises:
        AnnotationError: If nothing joins, a joined prediction names another video, or the
            annotations say nothing to compare with.
    """
    annotations = [annotation for annotation in annotations if is_scored(annotation)]
    by_qid = {prediction.qid: prediction for prediction in predictions}
    joined = [(by_qid[a.qid], a) for a in annotations if a.qid in by_qid]
    _check(joined, predictions, annotations)
    notes: list[str] = []
    annotated = {annotation.qid for annotation in annotations}
    _note(
        notes,
        [p.qid for p in predictions if p.qid not in annotated],
        "predictions for queries that the annotations do not have: ignored",
    )
    missing = [a.qid for a in annotations if a.qid not in by_qid]
    _note(
        notes,
        missing,
        f"of {len(annotations)} annotated queries without a prediction: counted as misses",
    )
    metrics: dict[str, float] = {}
    if any(a.windows_s is not None for a in annotations):
        metrics |= _windows(by_qid, annotations, notes)
        labelled = [(p, a) for p, a in joined if a.windows_s is not None]
        present = [(p, a) for p, a in labelled if a.windows_s and len(p.windows)]
        metrics |= uncertainty_of(present) | interval_metrics(present)
        metrics |= presence_metrics(labelled)
    metrics["queries_without_predictions"] = float(len(missing))
    metrics |= _highlights(by_qid, annotations, notes)
    return Measured(metrics, tuple(notes))


def _windows(
    by_qid: Mapping[str, PredictionRecord], annotations: Sequence[Annotation], notes: list[str]
) -> dict[str, float]:
    known = [a for a in annotations if a.windows_s is not None]
    joined = [(by_qid[a.qid], a) for a in annotations if a.qid in by_qid]
    unknown = [a.qid for a in annotations if a.windows_s is None]
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
    windows = [by_qid[a.qid].windows if a.qid in by_qid else _NO_WINDOWS for a in known]
    truths = [np.reshape(np.asarray(a.windows_s, np.float64), (-1, 2)) for a in known]
    metrics = retrieval_metrics(windows, truths)
    metrics |= discounted_recall(windows, truths, [a.duration_s for a in known])
    metrics["absent_queries"] = metrics.pop("queries_without_truth")
    return metrics


def _check(
    joined: Sequence[tuple[PredictionRecord, Annotation]],
    predictions: Sequence[PredictionRecord],
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


def _flat(predictions: Sequence[PredictionRecord]) -> list[str]:
    """Names of queries whose predictions hold a window that does not end after its start."""
    table = np.concatenate([p.windows for p in predictions])
    owner = np.repeat(np.arange(len(predictions)), [len(p.windows) for p in predictions])
    return [predictions[index].qid for index in np.unique(owner[table[:, 1] <= table[:, 0]])]


def _highlights(
    by_qid: Mapping[str, PredictionRecord],
    annotations: Sequence[Annotation],
    notes: list[str],
) -> dict[str, float]:
    # A model predicts saliency for the clips that it was annotated for.
    clip_s = next((p.clip_s for p in by_qid.values() if p.clip_s is not None), CLIP_S)
    scored = [a for a in annotations if a.saliency and a.duration_s >= clip_s]
    given = {
        a.qid: saliency
        for a in scored
        if a.qid in by_qid and (saliency := by_qid[a.qid].saliency) is not None
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
        [a.qid for a in scored if a.qid in by_qid and a.qid not in given],
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

"""Every number of a split, from prediction records and annotations; needs neither model nor torch.

A run's own predictions and a file of anyone's go the same way, so the same predictions have the
same numbers under the same names.
"""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from demr.annotations.annotations import (
    ANNOTATORS,
    Annotation,
    Window,
    read_annotations_with_report,
    saliency_votes,
    tidy_query,
)
from demr.annotations.records import ByQid, Qid, video_name
from demr.annotations.repairs import RepairReport
from demr.errors import AnnotationError
from demr.evaluation.predictions import PredictionRecord, read_predictions
from demr.evaluation.uncertainty import (
    confidence_metrics,
    interval_metrics,
    presence_metrics,
    uncertainty_of,
)
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
# A query and what was predicted for it, if anything.
Joined = Sequence[tuple[PredictionRecord | None, Annotation]]


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
    predictions: str | os.PathLike[str],
    annotations: str | os.PathLike[str],
    *,
    thresholds: Sequence[float] = (),
    unclipped: bool = False,
) -> dict[str, float]:
    """Measure a file of predictions against a file of annotations; see :func:`measure`.

    Every note is given as a :class:`PredictionWarning`.

    Args:
        predictions: In the field's submission form.
        annotations: In any form that is read.
        thresholds: As of :func:`measure`.
        unclipped: Likewise.

    Raises:
        AnnotationError: If a file is damaged or the two do not belong together.
    """
    records = read_predictions(predictions)
    queries, report = read_annotations_with_report(annotations)
    try:
        measured = measure(records, queries, thresholds=thresholds, unclipped=unclipped)
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
    *,
    thresholds: Sequence[float] = (),
    unclipped: bool = False,
) -> Measured:
    """Measure predictions against annotations, joined by qid (and video, where a qid is shared).

    Args:
        predictions: At most one a query. Those for other queries are ignored.
        annotations: Queries of one split. Vague ones (:func:`is_scored`) are left out; those
            without a prediction count as misses; those whose windows are unknown only serve the
            highlight metrics.
        thresholds: IoU of further ``R1@t`` and ``R5@t``, each in 0..1.
        unclipped: Take true windows as they were annotated, past the end of the video, too, for
            recall and precision: some published figures were measured so.

    Returns:
        Always ``queries_without_predictions``. Where windows are known, everything of
        :func:`~demr.metrics.retrieval.retrieval_metrics` and
        :func:`~demr.metrics.retrieval.discounted_recall`, ``absent_queries``, and of the first
        window of every present query, wrong ones included, ``uncertainty/mean error s``. With
        demr's own keys in all joined predictions, what
        :func:`~demr.evaluation.uncertainty.uncertainty_of` and
        :func:`~demr.evaluation.uncertainty.interval_metrics` and
        :func:`~demr.evaluation.uncertainty.confidence_metrics` give, and where queries of both
        kinds were answered :func:`~demr.evaluation.uncertainty.presence_metrics`. With saliency on
        both sides ``highlights/...`` of :func:`~demr.metrics.retrieval.highlight_metrics`.

    Raises:
        AnnotationError: If nothing joins, a joined prediction names another video, or the
            annotations say nothing to compare with.
    """
    annotations = [annotation for annotation in annotations if is_scored(annotation)]
    pairs = _join(predictions, annotations)
    _check(pairs, predictions, unclipped)
    notes = _notes_on_joining(pairs, predictions)
    metrics: dict[str, float] = {}
    if any(_truth(a, unclipped) is not None for a in annotations):
        metrics |= _windows(pairs, thresholds, unclipped, notes)
        labelled = [(p, a) for p, a in pairs if p is not None and a.windows_s is not None]
        present = [(p, a) for p, a in labelled if a.windows_s and len(p.windows)]
        metrics |= uncertainty_of(present) | interval_metrics(present)
        metrics |= presence_metrics(labelled) | confidence_metrics(labelled)
    metrics["queries_without_predictions"] = float(sum(p is None for p, _ in pairs))
    metrics |= _highlights(pairs, notes)
    return Measured(metrics, tuple(notes))


def _join(
    predictions: Sequence[PredictionRecord], annotations: Sequence[Annotation]
) -> list[tuple[PredictionRecord | None, Annotation]]:
    """The prediction of every query: of its qid, and of its video where others share the qid.

    A number and its digits are one qid: some tools write the one, some the other.
    """
    by_qid: ByQid[PredictionRecord] = ByQid()
    for prediction in predictions:
        by_qid.add(prediction.qid, prediction)
    queries = Counter([str(annotation.qid) for annotation in annotations])
    pairs: list[tuple[PredictionRecord | None, Annotation]] = []
    for annotation in annotations:
        candidates = by_qid.get(annotation.qid)
        if len(candidates) > 1 or queries[str(annotation.qid)] > 1:
            candidates = [p for p in candidates if _is_for(p, annotation)]
        pairs.append((candidates[0] if candidates else None, annotation))
    return pairs


def _is_for(prediction: PredictionRecord, annotation: Annotation) -> bool:
    """Whether a prediction names the video of a query, and no other sentence.

    Raises:
        AnnotationError: If it names no video, so that it could be for either.
    """
    if prediction.vid is None:
        raise AnnotationError(
            prediction.place,
            expected=f"the video beside qid {prediction.qid!r}, which several queries share",
            got="no vid",
            remedy="write the vid of every prediction",
        )
    return _is_of_video(prediction.vid, annotation) and not _is_other_query(prediction, annotation)


def _is_other_query(prediction: PredictionRecord, annotation: Annotation) -> bool:
    return prediction.query is not None and tidy_query(prediction.query) != annotation.query


def _is_of_video(vid: str, annotation: Annotation) -> bool:
    return vid == annotation.vid or video_name(vid) == video_name(annotation.vid)


def _notes_on_joining(pairs: Joined, predictions: Sequence[PredictionRecord]) -> list[str]:
    notes: list[str] = []
    used = {id(p) for p, _ in pairs}
    _note(
        notes,
        [p.qid for p in predictions if id(p) not in used],
        "predictions for queries that the annotations do not have: ignored",
    )
    missing = [a.qid for p, a in pairs if p is None]
    _note(
        notes,
        missing,
        f"of {len(pairs)} annotated queries without a prediction: counted as misses",
    )
    _note(
        notes,
        [a.qid for p, a in pairs if p is not None and _is_other_query(p, a)],
        "predictions whose query reads otherwise in the annotations",
    )
    _note(
        notes,
        [a.qid for p, a in pairs if p is not None and type(p.qid) is not type(a.qid)],
        "qids are numbers in one file and text in the other: joined all the same, which the "
        "field's evaluator does not",
    )
    return notes


def _windows(
    pairs: Joined, thresholds: Sequence[float], unclipped: bool, notes: list[str]
) -> dict[str, float]:
    joined = [(p, a) for p, a in pairs if p is not None]
    known = [(p, a) for p, a in pairs if _truth(a, unclipped) is not None]
    unknown = [a.qid for _, a in pairs if _truth(a, unclipped) is None]
    _note(notes, unknown, "queries whose windows are unknown: left out")
    _note(
        notes,
        [p.qid for p, a in joined if a.windows_s and not len(p.windows)],
        "predictions without windows: counted as misses",
    )
    flat, unsorted = _odd([p for p, _ in joined])
    _note(notes, flat, "predictions with windows of no length or reversed: they overlap nothing")
    _note(
        notes,
        unsorted,
        "predictions whose windows are not sorted by score: recall (R1, R5, mIoU) takes them in "
        "the order given and mAP by score, as the field does",
    )
    windows = [_NO_WINDOWS if p is None else p.windows for p, _ in known]
    truths = [_array(_truth(a, unclipped)) for _, a in known]
    metrics = retrieval_metrics(windows, truths, thresholds=thresholds)
    metrics |= discounted_recall(windows, truths, [a.duration_s for _, a in known])
    metrics["absent_queries"] = metrics.pop("queries_without_truth")
    if not unclipped and any(a.annotated_s for _, a in pairs):
        notes.append(_moved_by_clipping(pairs, metrics))
    return metrics


def _truth(annotation: Annotation, unclipped: bool) -> tuple[Window, ...] | None:
    if unclipped and annotation.annotated_s is not None:
        return annotation.annotated_s
    return annotation.windows_s


def _array(windows: Sequence[Window] | None) -> FloatArray:
    return np.asarray(windows, np.float64).reshape(-1, 2)


def _moved_by_clipping(pairs: Joined, metrics: dict[str, float]) -> str:
    """How far the numbers lie from those with true windows as they were annotated."""
    known = [(p, a, truth) for p, a in pairs if (truth := _truth(a, True)) is not None]
    first = [_NO_WINDOWS if p is None else p.windows[:1] for p, _, _ in known]
    given = retrieval_metrics(first, [_array(truth) for _, _, truth in known], max_predictions=1)
    count = sum(a.annotated_s is not None for _, a, _ in known)
    moved = ", ".join(
        f"{key} {given[key]:.2f} instead of {metrics[key]:.2f}"
        for key in ("R1@0.5", "R1@0.7", "mIoU")
    )
    return (
        f"the true windows of {count} queries are clipped to the duration of the video; as "
        f"annotated (--unclipped): {moved}"
    )


def _check(pairs: Joined, predictions: Sequence[PredictionRecord], unclipped: bool) -> None:
    if not pairs or not predictions:
        got = f"{len(predictions)} and {len(pairs)}"
        raise AnnotationError(
            _BOTH, expected="at least one of each", got=got, remedy="choose another split"
        )
    joined = [(p, a) for p, a in pairs if p is not None]
    if not joined:
        raise AnnotationError(
            _BOTH,
            expected="at least one query in both",
            got=f"no common qid (such as {predictions[0].qid!r} and {pairs[0][1].qid!r})",
            remedy="choose the annotations that were predicted",
        )
    with_saliency = any(a.saliency and p and p.saliency is not None for p, a in pairs)
    if not with_saliency and all(_truth(a, unclipped) is None for _, a in pairs):
        outside = any(a.annotated_s for _, a in pairs)
        why = (
            "all windows lie past the end of their video"
            if outside
            else "a test split whose answers are not public"
        )
        raise AnnotationError(
            _BOTH,
            expected="annotations with windows, or saliency in both",
            got=f"{len(pairs)} queries without ({why})",
            remedy="choose another split" + (", or try --unclipped" if outside else ""),
        )
    for prediction, annotation in joined:
        if prediction.vid is not None and not _is_of_video(prediction.vid, annotation):
            # Many data sets number their queries from 0: equal qids of two splits mean nothing.
            raise AnnotationError(
                prediction.place,
                expected=f"the video {annotation.vid} of query {annotation.qid!r}",
                got=str(prediction.vid),
                remedy="choose the annotations that were predicted",
            )


def _odd(predictions: Sequence[PredictionRecord]) -> tuple[list[Qid], list[Qid]]:
    """Queries with a window that does not end after its start; with one that a better one follows.

    Only the first ten windows of a query count anywhere, but all are looked at.
    """
    table = np.concatenate([p.windows for p in predictions])
    owner = np.repeat(np.arange(len(predictions)), [len(p.windows) for p in predictions])
    flat = owner[table[:, 1] <= table[:, 0]]
    rises = (table[1:, 2] > table[:-1, 2]) & (owner[1:] == owner[:-1])
    named = [[predictions[i].qid for i in np.unique(rows)] for rows in (flat, owner[1:][rises])]
    return named[0], named[1]


def _highlights(pairs: Joined, notes: list[str]) -> dict[str, float]:
    # A model predicts saliency for the clips that it was annotated for.
    lengths = (p.clip_s for p, _ in pairs if p is not None and p.clip_s is not None)
    clip_s = next(lengths, CLIP_S)
    scored = [(p, a) for p, a in pairs if a.saliency and a.duration_s >= clip_s]
    given = [(p.saliency, a) for p, a in scored if p is not None and p.saliency is not None]
    if not given:
        return {}
    off = [
        a.qid
        for saliency, a in given
        if abs(len(saliency) - int(a.duration_s / clip_s)) > _CLIPS_OFF
    ]
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
        [a.qid for p, a in scored if p is not None and p.saliency is None],
        "predictions without saliency: counted as misses",
    )
    annotators: set[int] = set()
    for _, annotation in scored:
        annotators.update(map(len, (annotation.saliency_votes or {}).values()))
    if len(annotators) > 1:
        notes.append("queries were scored by different numbers of annotators: no highlight metrics")
        return {}
    count = annotators.pop() if annotators else ANNOTATORS
    truths, predicted = [], []
    for prediction, annotation in scored:
        table = saliency_votes(annotation, count)
        truths.append(
            saliency_truth(annotation.duration_s, list(table), list(table.values()), clip_s=clip_s)
        )
        saliency = None if prediction is None else prediction.saliency
        predicted.append(np.zeros(0) if saliency is None else saliency)
    found = highlight_metrics(predicted, truths)
    return {f"highlights/{key}": value for key, value in found.items()}


def _repairs(report: RepairReport) -> list[str]:
    mended = (report.swapped, report.clipped, report.after_end, report.zero_length, report.repeated)
    return [f"annotations: {report.summary()}"] if any(mended) else []


def _note(notes: list[str], qids: Sequence[Qid], text: str) -> None:
    if qids:
        notes.append(f"{len(qids)} {text} (such as {qids[0]!r})")

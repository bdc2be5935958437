"""Predictions as records: in memory and as lines of a file, in the field's submission form.

What a model predicted and what a file says become the same record, rounded in the same way, so
that measuring either gives the same numbers. Needs no torch.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from demr.annotations.annotations import Annotation
from demr.annotations.records import ByQid, Qid, broken, json_lines, read_text
from demr.errors import AnnotationError
from demr.machine.files import atomic_path

if TYPE_CHECKING:
    from demr.answers.judging import Judgement
    from demr.answers.predictions import Prediction

FloatArray = npt.NDArray[np.float64]

_NO_WINDOWS = np.zeros((0, 3))
# Microseconds, and as much of other numbers as moves no metric.
_DECIMALS = 6
# What is given for start and end of every window, and what it lies above; deviations may be 0.
_OF_BOUNDS = {"aleatoric": None, "epistemic": None, "scale": 0.0, "alpha": 1.0}


@dataclass(frozen=True, eq=False)
class PredictionRecord:
    """What was predicted for one query. Compared by identity, as arrays are.

    Attributes:
        qid: Name of the query in the annotations, a number or text as there.
        windows: Start and end in seconds and score, the best first, ``(K, 3)``; ``K`` may be 0.
        vid: Name of the video, if given.
        query: The sentence, if given.
        duration_s: Length of the video that was looked at, if given; sources differ by seconds.
        clip_s: Length of the clips that saliency was predicted for, if given.
        saliency: Score of every clip, any scale, ``(L,)``.
        intervals: Lower and upper end for start and end of every window, ``(K, 2, 2)``, seconds;
            NaN where a window has none.
        aleatoric: Standard deviation of start and end, ``(K, 2)``, seconds.
        epistemic: The same of what the model does not know.
        scale: Scale of the predictive Student-t of start and end, ``(K, 2)``, seconds.
        alpha: NIG parameter of start and end, half its degrees of freedom, ``(K, 2)``.
        confidence: Probability that a window is a true one (IoU of at least 0.5), ``(K,)``; NaN
            where it is not known.
        present: Probability that the moment is in the video; None where it is not known.
        verdict: What a search says: ``found``, ``uncertain`` or ``not in this video``. A search
            tells of the likely windows alone; all are here, for evaluators.
        place: File and line, for messages.
    """

    qid: Qid
    windows: FloatArray
    vid: str | None = None
    query: str | None = None
    duration_s: float | None = None
    clip_s: float | None = None
    saliency: FloatArray | None = None
    intervals: FloatArray | None = None
    aleatoric: FloatArray | None = None
    epistemic: FloatArray | None = None
    scale: FloatArray | None = None
    alpha: FloatArray | None = None
    confidence: FloatArray | None = None
    present: float | None = None
    verdict: str | None = None
    place: str = "prediction"

    @property
    def nu(self) -> FloatArray | None:
        """NIG parameter of start and end, ``(K, 2)``: the ratio of the two variances."""
        if self.aleatoric is None or self.epistemic is None:
            return None
        result: FloatArray = (self.aleatoric / np.maximum(self.epistemic, 1e-300)) ** 2
        return result

    @property
    def evidence(self) -> FloatArray | None:
        """``2 nu + alpha``, ``(K, 2)``."""
        nu = self.nu
        return None if nu is None or self.alpha is None else 2 * nu + self.alpha

    def to_line(self) -> str:
        """One JSON line: the field's keys, demr's own beside them; what is not known is left out.

        A window without an interval or confidence has null in its place; ``present`` is null where
        it is not known: the model cannot judge, or presence is not calibrated.
        """
        arrays = {
            "pred_relevant_windows": self.windows,
            "pred_saliency_scores": self.saliency,
            "aleatoric": self.aleatoric,
            "epistemic": self.epistemic,
            "scale": self.scale,
            "alpha": self.alpha,
        }
        row: dict[str, Any] = {"qid": self.qid, "query": self.query, "vid": self.vid}
        row |= {"duration": self.duration_s, "clip_s": self.clip_s}
        row |= {key: None if array is None else array.tolist() for key, array in arrays.items()}
        if self.intervals is not None:
            row["intervals"] = [
                None if np.isnan(pair).any() else pair.tolist() for pair in self.intervals
            ]
        if self.confidence is not None:
            row["confidence"] = [None if np.isnan(p) else p for p in self.confidence.tolist()]
        row = {key: value for key, value in row.items() if value is not None}
        return json.dumps(
            row | {"present": self.present, "verdict": self.verdict}, ensure_ascii=False
        )


def to_records(
    predictions: Sequence["Prediction"],
    judgements: Sequence["Judgement"],
    annotations: Sequence[Annotation],
    clip_s: float,
) -> list[PredictionRecord]:
    """Put predictions, what is said of them, and the queries they are for together.

    Args:
        predictions: One a query.
        judgements: Likewise.
        annotations: Likewise.
        clip_s: Length of a clip in seconds.
    """
    return [
        _to_record(clip_s, *each) for each in zip(predictions, judgements, annotations, strict=True)
    ]


def _to_record(
    clip_s: float, prediction: "Prediction", judgement: "Judgement", annotation: Annotation
) -> PredictionRecord:
    moments = prediction.moments
    without = bool(np.isnan(judgement.intervals).all())
    unsure = bool(np.isnan(judgement.confidence).all())
    return PredictionRecord(
        qid=annotation.qid,
        windows=_rounded(np.column_stack([moments.window_s, moments.score])),
        vid=annotation.vid,
        query=annotation.query,
        duration_s=round(moments.duration_s, _DECIMALS),
        clip_s=clip_s,
        saliency=_rounded(prediction.saliency),
        intervals=None if without else _rounded(judgement.intervals),
        aleatoric=_significant(np.sqrt(moments.aleatoric)),
        epistemic=_significant(np.sqrt(moments.epistemic)),
        scale=_significant(moments.scale_s),
        alpha=_significant(moments.alpha),
        confidence=None if unsure else _rounded(judgement.confidence),
        present=None if judgement.present is None else round(judgement.present, _DECIMALS),
        verdict=judgement.verdict,
    )


def _rounded(values: FloatArray) -> FloatArray:
    return np.asarray(np.round(np.asarray(values, np.float64), _DECIMALS), np.float64)


def _significant(values: FloatArray) -> FloatArray:
    """Nine significant digits: deviations of a hopeless and of a sure moment differ by decades."""
    return np.array([float(f"{value:.9g}") for value in values.ravel()]).reshape(values.shape)


def write_predictions(path: Path, records: Sequence[PredictionRecord]) -> None:
    """Write records as JSON lines, whole or not at all.

    Raises:
        OSError: If the disk is full or the folder cannot be written.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(record.to_line() + "\n" for record in records)


def read_predictions(path: str | os.PathLike[str]) -> list[PredictionRecord]:
    """Read JSON Lines in the field's submission form, plain or gzipped.

    Keys: ``qid``, and ``pred_relevant_windows`` or ``pred_saliency_scores`` or both; optional
    ``vid`` and ``query``, and demr's own of :class:`PredictionRecord`. Other keys are ignored;
    null is the same as a missing key.

    Raises:
        AnnotationError: If the file cannot be read, holds no prediction, a value has another
            shape or is not finite, or a query occurs twice; names the file and the line.
    """
    source = Path(path)
    predictions: list[PredictionRecord] = []
    by_qid: ByQid[PredictionRecord] = ByQid()
    for place, _, record in json_lines(source, read_text(source, "predictions")):
        prediction = _parse(place, record)
        for other in by_qid.add(prediction.qid, prediction):
            if not _are_apart(prediction, other):
                raise AnnotationError(
                    place,
                    expected="one prediction a query",
                    got=f"qid {prediction.qid!r} again, first at {other.place}",
                    remedy="remove one of the two",
                )
        predictions.append(prediction)
    if not predictions:
        raise AnnotationError(
            str(source), expected="at least one prediction", got="none", remedy="check the file"
        )
    return predictions


def _are_apart(one: PredictionRecord, other: PredictionRecord) -> bool:
    """Whether two predictions under a qid are for two queries: benchmarks of absence have such."""
    if None in (one.vid, other.vid):
        return False
    return (one.vid, one.query) != (other.vid, other.query)


def _parse(place: str, record: Mapping[str, Any]) -> PredictionRecord:
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
    scores = None
    if saliency is not None:
        scores = _array(place, "pred_saliency_scores", saliency, (None,), "one score a clip")
    arrays = {
        key: _array(place, key, record[key], (rows, 2), f"[start, end] for {rows} windows")
        for key in _OF_BOUNDS
        if record.get(key) is not None
    }
    for key, least in _OF_BOUNDS.items():
        values = arrays.get(key)
        if values is None:
            continue
        if least is None and (values < 0).any():
            raise broken(place, f"standard deviations of at least 0 as {key}", str(values.min()))
        if least is not None and (values <= least).any():
            raise broken(place, f"numbers above {least:g} as {key}", str(values.min()))
    present = record.get("present")
    if present is not None and (
        isinstance(present, bool) or not isinstance(present, int | float) or not 0 <= present <= 1
    ):
        raise broken(place, "a probability in 0..1 as present", repr(present))
    return PredictionRecord(
        qid=qid,
        windows=table,
        vid=None if record.get("vid") is None else str(record["vid"]),
        query=None if record.get("query") is None else str(record["query"]),
        duration_s=_parse_seconds(place, "duration", record.get("duration")),
        clip_s=_parse_seconds(place, "clip_s", record.get("clip_s")),
        saliency=scores,
        intervals=_parse_intervals(place, record.get("intervals"), rows),
        aleatoric=arrays.get("aleatoric"),
        epistemic=arrays.get("epistemic"),
        scale=arrays.get("scale"),
        alpha=arrays.get("alpha"),
        confidence=_parse_confidence(place, record.get("confidence"), rows),
        present=None if present is None else float(present),
        verdict=None if record.get("verdict") is None else str(record["verdict"]),
        place=place,
    )


def _parse_seconds(place: str, key: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise broken(place, f"a number of seconds as {key}", repr(value))
    return float(value)


def _parse_intervals(place: str, value: object, rows: int) -> FloatArray | None:
    """Intervals of every window; a window that has none says null."""
    if value is None:
        return None
    form = f"[[low, high], [low, high]] for {rows} windows"
    if not isinstance(value, list) or len(value) != rows:
        raise broken(place, f"{form} under intervals", repr(value))
    known = [index for index, pair in enumerate(value) if pair is not None]
    pairs = _array(place, "intervals", [value[i] for i in known], (len(known), 2, 2), form)
    if (pairs[..., 0] > pairs[..., 1]).any():
        raise broken(place, "intervals of [low, high]", "low above high")
    intervals = np.full((rows, 2, 2), np.nan)
    intervals[known] = pairs
    return intervals


def _parse_confidence(place: str, value: object, rows: int) -> FloatArray | None:
    """Confidence of every window; a window that has none says null."""
    if value is None:
        return None
    form = f"a probability in 0..1 for {rows} windows"
    if not isinstance(value, list) or len(value) != rows:
        raise broken(place, f"{form} under confidence", repr(value))
    known = [index for index, one in enumerate(value) if one is not None]
    given = _array(place, "confidence", [value[index] for index in known], (None,), form)
    if ((given < 0) | (given > 1)).any():
        raise broken(place, f"{form} under confidence", repr(value))
    confidence = np.full(rows, np.nan)
    confidence[known] = given
    return confidence


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

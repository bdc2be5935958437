"""Files of queries -> :class:`Annotation`; what real files get wrong is repaired and counted."""

import gzip
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from demr.annotations.formats import (
    Located,
    broken,
    in_seconds,
    json_records,
    read_text,
    text_records,
)
from demr.annotations.repairs import ROUNDING_S, RepairReport
from demr.errors import AnnotationError
from demr.machine.files import atomic_path

Window = tuple[float, float]

ANNOTATORS = 3  # a mean without votes is written as this many equal ones, as QVHighlights has
MAX_SALIENCY = 4.0  # QVHighlights: each annotator gives 0 (very bad) to 4 (very good)
_NOISE_S = 1e-6  # rounding of floating point; cut as well, but nothing worth reporting


@dataclass(frozen=True)
class Annotation:
    """One query about one video.

    Args:
        qid: Name of the query, unique within its file.
        query: The sentence; runs of white space become one blank.
        vid: Name of the video.
        duration_s: Length of the video in seconds.
        windows_s: (start, end) in seconds, each ``0 <= start < end <= duration_s``. ``None``:
            unknown (test splits). ``()``: the moment is not in this video.
        saliency: Clip index -> mean score in 0..1; clips left out were not scored. Where
            ``saliency_votes`` are given, their mean.
        event: Queries that name the same event are not each other's negatives.
        kind: What sort of query it is; the shapes world uses present, absent, vague and unknown.
        saliency_votes: Clip index -> what each annotator gave, 0..4. ``None``, too, where three
            agree on every clip: ``saliency`` holds as much then, as in the files of many tools.

    Raises:
        AnnotationError: If a value breaks these rules.
    """

    qid: str
    query: str
    vid: str
    duration_s: float
    windows_s: tuple[Window, ...] | None
    saliency: Mapping[int, float] | None = field(default=None, hash=False)
    event: str | None = None
    kind: str = "present"
    saliency_votes: Mapping[int, tuple[float, ...]] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "query", tidy_query(self.query))
        subject = f"query {self.qid!r}"
        if self.saliency_votes is not None:
            self._count_votes(subject, self.saliency_votes)
        elif self.saliency is not None:
            for clip, score in self.saliency.items():
                if clip < 0 or not 0 <= score <= 1:
                    raise _unscored(subject, f"{score!r} at {clip}")
        for name in ("qid", "query", "vid"):
            value = getattr(self, name)
            if not value or not _is_writable(value):
                raise broken(subject, f"a {name} of printable text", repr(value))
        if not (math.isfinite(self.duration_s) and self.duration_s > 0):
            raise broken(subject, "a duration above 0 s", repr(self.duration_s))
        for start, end in self.windows_s or ():
            if not 0 <= start < end <= self.duration_s:
                expected = f"windows with 0 <= start < end <= {self.duration_s:g} s"
                raise broken(subject, expected, f"{start!r} to {end!r}")

    def _count_votes(self, subject: str, given: Mapping[int, tuple[float, ...]]) -> None:
        saliency = {clip: _score(tuple(votes)) for clip, votes in given.items()}
        if None in saliency.values() or min(saliency, default=0) < 0:
            clip = next(clip for clip, score in saliency.items() if clip < 0 or score is None)
            raise _unscored(subject, f"{given[clip]!r} at {clip}")
        object.__setattr__(self, "saliency", saliency)
        if all(len(votes) == ANNOTATORS and len(set(votes)) == 1 for votes in given.values()):
            object.__setattr__(self, "saliency_votes", None)


def tidy_query(query: str) -> str:
    """The query with every run of white space as one blank and none at its ends.

    >>> tidy_query("  a man  opens   a door ")
    'a man opens a door'
    """
    return " ".join(query.split())


def saliency_votes(
    annotation: Annotation, annotators: int = ANNOTATORS
) -> Mapping[int, tuple[float, ...]]:
    """Scores of each annotator for each scored clip, 0..4.

    Args:
        annotation: A query with or without scores.
        annotators: How many equal votes stand for a mean without votes.
    """
    if annotation.saliency_votes is not None:
        return annotation.saliency_votes
    means = annotation.saliency or {}
    return {clip: (mean * MAX_SALIENCY,) * annotators for clip, mean in means.items()}


def read_annotations(path: str | os.PathLike[str]) -> list[Annotation]:
    """Read a file of queries; see :func:`read_annotations_with_report`."""
    return read_annotations_with_report(path)[0]


def read_annotations_with_report(
    path: str | os.PathLike[str], *, durations_s: Mapping[str, float] | None = None
) -> tuple[list[Annotation], RepairReport]:
    """Read a file of queries, and report what had to be repaired.

    Understood, plain or gzipped: JSON Lines with the field's keys (QVHighlights, UniVTG,
    lighthouse; TVSum, too, whose durations count clips of 2 s), the JSON object of ActivityNet
    Captions and Charades-CD (``{vid: {timestamps, sentences, duration or video_duration}}``), and
    the text form of Charades-STA (``vid start end##sentence``). The name's ending decides, then
    the content.

    Args:
        path: The file.
        durations_s: Length of each video in seconds, for the text form, which states none. A video
            without one is taken to end where its last window ends.

    Returns:
        The annotations in the file's order, and the counts of what was repaired.

    Raises:
        AnnotationError: If the file cannot be read or a record cannot be understood; names the
            file and the line.
    """
    source, report = Path(path), RepairReport()
    annotations: dict[str, Annotation] = {}
    for place, fallback, record in _records(source, durations_s or {}, report):
        annotation = _annotation(place, fallback, record, report)
        first = annotations.setdefault(annotation.qid, annotation)
        if first != annotation:
            raise AnnotationError(
                place,
                expected="a qid of its own",
                got=f"qid {annotation.qid!r} again, with other content",
                remedy="rename one of the two",
            )
        report.repeated += first is not annotation
    if not annotations:
        raise AnnotationError(
            str(source), expected="at least one query", got="none", remedy="add a query"
        )
    report.queries = len(annotations)
    return list(annotations.values()), report


def _records(
    source: Path, durations_s: Mapping[str, float], report: RepairReport
) -> Iterable[Located]:
    """Records of a file in any form: its name's ending decides, then its content."""
    text = read_text(source)
    suffix = (source.with_suffix("") if source.suffix == ".gz" else source).suffix
    if suffix == ".txt" or (suffix not in (".json", ".jsonl") and "##" in text.partition("\n")[0]):
        records, report.guessed_durations = text_records(source, text, durations_s)
        return records
    return json_records(source, text)


def write_annotations(path: str | os.PathLike[str], annotations: Iterable[Annotation]) -> None:
    """Write JSON Lines with the field's keys, the whole file or nothing.

    A name that ends in .gz makes a gzipped file. Reading it back gives equal annotations. A mean
    saliency without votes is written as three equal ones of 0..4, the shape other tools expect.

    Args:
        path: The file; folders above it are made, an old file is replaced.
        annotations: At least one, qids unique.

    Raises:
        AnnotationError: If there is nothing to write, a qid repeats, or the disk refuses.
    """
    target = Path(path)
    lines: dict[str, str] = {}
    for annotation in annotations:
        if annotation.qid in lines:
            raise AnnotationError(
                str(target),
                expected="unique qids",
                got=f"{annotation.qid!r} twice",
                remedy="rename one of the two",
            )
        lines[annotation.qid] = json.dumps(_record(annotation), ensure_ascii=False) + "\n"
    if not lines:
        raise AnnotationError(
            str(target), expected="at least one query", got="none", remedy="nothing was written"
        )
    _write(target, "".join(lines.values()).encode())


def _write(target: Path, data: bytes) -> None:
    if target.suffix == ".gz":
        data = gzip.compress(data, mtime=0)  # no time stamp: the same queries give the same bytes
    try:
        with atomic_path(target) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise AnnotationError(
            str(target),
            expected="a file that can be written",
            got=error.strerror or str(error),
            remedy="free some space or choose another place; nothing was changed",
        ) from error


def _record(annotation: Annotation) -> dict[str, Any]:
    record: dict[str, Any] = {
        "qid": annotation.qid,
        "query": annotation.query,
        "vid": annotation.vid,
        "duration": annotation.duration_s,
        "relevant_windows": None
        if annotation.windows_s is None
        else [list(window) for window in annotation.windows_s],
    }
    if annotation.saliency is not None:
        record["relevant_clip_ids"] = list(annotation.saliency)
        votes = saliency_votes(annotation)
        record["saliency_scores"] = [list(votes[clip]) for clip in annotation.saliency]
    if annotation.event is not None:
        record["event"] = annotation.event
    if annotation.kind != _default_kind(annotation.windows_s):
        record["kind"] = annotation.kind
    return record


def _default_kind(windows_s: Sequence[Window] | None) -> str:
    return "absent" if windows_s is not None and not windows_s else "present"


def _annotation(
    place: str, fallback: str, record: Mapping[str, Any], report: RepairReport
) -> Annotation:
    for key in ("query", "vid", "duration"):
        if key not in record:
            raise broken(place, f"the key {key!r}", f"{', '.join(record) or 'nothing'}")
    record = in_seconds(record)
    query, vid = record["query"], _name(place, "vid", record["vid"])
    if not isinstance(query, str) or not query.strip():
        raise broken(place, "a query of at least one word", repr(query))
    report.tidied += tidy_query(query) != query
    duration = _number(place, "duration", record["duration"])
    if duration <= 0:
        raise broken(place, "a duration above 0 s", repr(record["duration"]))
    windows = _windows(place, record.get("relevant_windows"), duration, report)
    if record.get("qid") is None:
        report.named += 1
        qid = f"{vid}_{fallback}"
    else:
        qid = _name(place, "qid", record["qid"])
    event, kind = record.get("event"), record.get("kind", _default_kind(windows))
    if not isinstance(event, str | None) or not isinstance(kind, str):
        raise broken(place, "text under 'event' and 'kind'", f"{event!r} and {kind!r}")
    votes = _votes(place, record)
    try:
        return Annotation(
            qid, query, vid, duration, windows, None, event, kind, saliency_votes=votes
        )
    except AnnotationError as error:
        raise broken(place, error.expected, error.got) from error


def _windows(
    place: str, value: object, duration: float, report: RepairReport
) -> tuple[Window, ...] | None:
    if value is None:
        report.unknown += 1
        return None
    if not isinstance(value, list):
        raise broken(place, "a list of [start, end] under 'relevant_windows'", repr(value))
    report.absent += not value
    windows: list[Window] = []
    for window in value:
        if not isinstance(window, list) or len(window) != 2:
            raise broken(place, "windows of [start, end]", repr(window))
        start, end = (_number(place, "window", bound) for bound in window)
        if start > end:
            report.swapped += 1
            start, end = end, start
        if start == end:
            report.zero_length += 1
        elif start >= duration or end <= 0:
            report.after_end += 1
        else:
            outside = max(-start, end - duration)
            report.clipped += outside > ROUNDING_S
            report.trimmed += _NOISE_S < outside <= ROUNDING_S
            windows.append((max(start, 0.0), min(end, duration)))
    if value and not windows:
        report.emptied += 1
        return None
    return tuple(windows)


def _votes(place: str, record: Mapping[str, Any]) -> dict[int, tuple[float, ...]] | None:
    clips, scores = record.get("relevant_clip_ids"), record.get("saliency_scores")
    if clips is None or scores is None:
        return None
    if not isinstance(clips, list) or not isinstance(scores, list) or len(clips) != len(scores):
        raise broken(place, "one saliency score list per relevant clip", "lists that do not match")
    by_clip: dict[int, tuple[float, ...]] = {}
    for clip, votes in zip(clips, scores, strict=True):
        if type(clip) is not int:
            raise broken(place, "whole clip numbers", repr(clip))
        if type(votes) is not list or not votes:
            raise broken(place, "a list of saliency scores per clip", repr(votes))
        try:
            by_clip[clip] = _floats(*votes)
        except (AnnotationError, TypeError):  # something else, or even without a hash
            by_clip[clip] = tuple([_number(place, "saliency", vote) for vote in votes])
    return by_clip


# Votes make up most of a file, and there are few different ones. Typed, as true equals 1.
@lru_cache(maxsize=4096, typed=True)
def _floats(*values: object) -> tuple[float, ...]:
    return tuple([_number("", "saliency", value) for value in values])


@lru_cache(maxsize=4096)
def _score(votes: tuple[float, ...]) -> float | None:
    """Mean vote as a saliency of 0..1; None if there is none or one lies outside the scale."""
    if not votes or not all(0 <= vote <= MAX_SALIENCY for vote in votes):
        return None
    # Equal votes are taken as they are: their rounded mean may differ in the last bit, and what
    # was written must come back the same.
    mean = votes[0] if len(set(votes)) == 1 else math.fsum(votes) / len(votes)
    return mean / MAX_SALIENCY


def _unscored(subject: str, got: str) -> AnnotationError:
    expected = f"saliency in 0..1 (votes of 0..{MAX_SALIENCY:g}) for clips from 0"
    return broken(subject, expected, got)


def _number(place: str, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise broken(place, f"a number as {name}", repr(value))
    try:
        number = float(value)
    except OverflowError:  # JSON's whole numbers know no bound
        number = math.inf
    if not math.isfinite(number):
        raise broken(place, f"a finite number as {name}", str(number))
    return number


def _name(place: str, key: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise broken(place, f"text or a whole number as {key}", repr(value))
    return str(value)


def _is_writable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell and UTF-8 cannot
        return False
    return True

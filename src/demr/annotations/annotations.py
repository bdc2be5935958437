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

from demr.annotations.formats import file_records, in_seconds
from demr.annotations.records import ByQid, Qid, broken, number
from demr.annotations.repairs import ROUNDING_S, RepairReport
from demr.errors import AnnotationError
from demr.machine.files import atomic_path

Window = tuple[float, float]

ANNOTATORS = 3  # a mean without votes is written as this many equal ones, as QVHighlights has
MAX_SALIENCY = 4.0  # QVHighlights: each annotator gives 0 (very bad) to 4 (very good)
_KEYS = frozenset(
    (
        "qid", "query", "vid", "duration", "duration_guessed", "relevant_windows",
        "annotated_windows", "relevant_clip_ids", "saliency_scores", "event", "kind",
    )
)  # fmt: skip
_MOST_CLIPS = 10**9
_NOISE_S = 1e-6  # rounding of floating point; cut as well, but nothing worth reporting


@dataclass(frozen=True)
class Annotation:
    """One query about one video.

    Args:
        qid: Name of the query, a number or text as its file has it; the field's evaluator compares
            both. Unique within its file but for :func:`may_share_qid`.
        query: The sentence; runs of white space become one blank.
        vid: Name of the video.
        duration_s: Length of the video in seconds.
        windows_s: (start, end) in seconds, each ``0 <= start < end <= duration_s``. ``None``:
            unknown (test splits). ``()``: the moment is not in this video.
        saliency: Clip index -> mean score in 0..1; clips left out were not scored. Where
            ``saliency_votes`` are given, their mean.
        event: Queries that name the same event are not each other's negatives. An event that is
            named with some of another's words holds wherever that one does.
        kind: What sort of query it is; the shapes world uses present, absent, vague and unknown.
        saliency_votes: Clip index -> what each annotator gave, 0..4. ``None``, too, where three
            agree on every clip: ``saliency`` holds as much then, as in the files of many tools.
        annotated_s: Windows as they were annotated (start first), where ``windows_s`` has others:
            they were clipped to the duration, or dropped. Not compared.
        duration_guessed: Whether no source states the duration. Not compared.
        extra: What the file says beside all this, under its own keys. Not compared.

    Raises:
        AnnotationError: If a value breaks these rules.
    """

    qid: Qid
    query: str
    vid: str
    duration_s: float
    windows_s: tuple[Window, ...] | None
    saliency: Mapping[int, float] | None = field(default=None, hash=False)
    event: str | None = None
    kind: str = "present"
    saliency_votes: Mapping[int, tuple[float, ...]] | None = field(default=None, hash=False)
    annotated_s: tuple[Window, ...] | None = field(default=None, compare=False)
    duration_guessed: bool = field(default=False, compare=False)
    extra: Mapping[str, Any] | None = field(default=None, compare=False)

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
            if type(value) is not int and (not value or not _is_writable(value)):
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


def may_share_qid(one: Annotation, other: Annotation) -> bool:
    """Whether two queries may have one qid: it is used again to ask for what is not there.

    The benchmarks of negative queries do so (UniVTG-NA): the sentence of a query, asked about
    another video under the same qid. Video and sentence tell the two apart.
    """
    differ = (one.vid, one.query) != (other.vid, other.query)
    return differ and () in (one.windows_s, other.windows_s)


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
    lighthouse; UniVTG-NA, which writes absence as ``[[0, 0]]``; TVSum, whose durations count clips
    of 2 s), JSON of ActivityNet Captions, the CD and CG splits, TACoS (also in frames), DiDeMo,
    Ego4D NLQ, YouCook2 and HiREST (``datasets.py`` says how each is read), the text form of
    Charades-STA, and CSV (``text_forms.py``). The name's ending decides, then the content.

    Args:
        path: The file.
        durations_s: Length of each video in seconds, for the forms that state none. A video
            without one is taken to end where its last window ends.

    Returns:
        The annotations in the file's order, and the counts of what was repaired.

    Raises:
        AnnotationError: If the file cannot be read or a record cannot be understood; names the
            file and the line.
    """
    source, report = Path(path), RepairReport()
    annotations: list[Annotation] = []
    by_qid: ByQid[Annotation] = ByQid()
    for place, fallback, record in file_records(source, durations_s or {}, report):
        annotation = _annotation(place, fallback, record, report)
        known = by_qid.add(annotation.qid, annotation)
        if known:
            if annotation in known:
                report.repeated += 1
                continue
            if not all(may_share_qid(annotation, other) for other in known):
                raise AnnotationError(
                    place,
                    expected="a qid of its own",
                    got=f"qid {annotation.qid!r} again, with other content",
                    remedy="rename one of the two",
                )
            report.shared_qids += 1
        annotations.append(annotation)
    if not annotations:
        got = f"none in {report.null_queries} records" if report.null_queries else "none"
        raise AnnotationError(
            str(source), expected="at least one query", got=got, remedy="add a query"
        )
    report.queries = len(annotations)
    return annotations, report


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
    lines: list[str] = []
    by_qid: ByQid[Annotation] = ByQid()
    for annotation in annotations:
        if not all(
            may_share_qid(annotation, other) for other in by_qid.add(annotation.qid, annotation)
        ):
            raise AnnotationError(
                str(target),
                expected="unique qids",
                got=f"{annotation.qid!r} twice",
                remedy="rename one of the two",
            )
        line = json.dumps(_record(annotation), ensure_ascii=False)
        # Half of a surrogate pair, in what is kept as it is, can only be spelled.
        lines.append(line if _is_writable(line) else json.dumps(_record(annotation)))
    if not lines:
        raise AnnotationError(
            str(target), expected="at least one query", got="none", remedy="nothing was written"
        )
    _write(target, "".join(f"{line}\n" for line in lines).encode())


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
    if annotation.annotated_s is not None:
        record["annotated_windows"] = [list(window) for window in annotation.annotated_s]
    if annotation.duration_guessed:
        record["duration_guessed"] = True
    return {**(annotation.extra or {}), **record}


def _default_kind(windows_s: Sequence[Window] | None) -> str:
    return "absent" if windows_s is not None and not windows_s else "present"


def _annotation(
    place: str, fallback: str, record: Mapping[str, Any], report: RepairReport
) -> Annotation:
    for key in ("query", "vid", "duration"):
        if key not in record:
            raise broken(place, f"the key {key!r}", f"{', '.join(record) or 'nothing'}")
    record = in_seconds(record)
    query, vid = record["query"], str(_name(place, "vid", record["vid"]))
    if not isinstance(query, str) or not query.strip():
        raise broken(place, "a query of at least one word", repr(query))
    report.tidied += tidy_query(query) != query
    duration = number(place, "duration", record["duration"])
    if duration <= 0:
        raise broken(place, "a duration above 0 s", repr(record["duration"]))
    windows, annotated = _windows(place, record, duration, report)
    qid: Qid
    if record.get("qid") is None:
        report.named += 1
        qid = f"{vid}_{fallback}"
    else:
        qid = _name(place, "qid", record["qid"])
    event, kind = record.get("event"), record.get("kind", _default_kind(windows))
    if not isinstance(event, str | None) or not isinstance(kind, str):
        raise broken(place, "text under 'event' and 'kind'", f"{event!r} and {kind!r}")
    extra = None
    if not _KEYS.issuperset(record):
        extra = {key: value for key, value in record.items() if key not in _KEYS}
        report.further_keys.update(extra.keys())
    try:
        return Annotation(
            qid=qid,
            query=query,
            vid=vid,
            duration_s=duration,
            windows_s=windows,
            event=event,
            kind=kind,
            saliency_votes=_votes(place, record),
            annotated_s=annotated,
            duration_guessed=record.get("duration_guessed") is True,
            extra=extra,
        )
    except AnnotationError as error:
        raise broken(place, error.expected, error.got) from error


def _windows(
    place: str, record: Mapping[str, Any], duration: float, report: RepairReport
) -> tuple[tuple[Window, ...] | None, tuple[Window, ...] | None]:
    """Windows inside of the video, and as annotated where these are others."""
    value = record.get("relevant_windows")
    stored = record.get("annotated_windows")  # of a file that was written after clipping
    annotated = None if stored is None else tuple(_pairs(place, stored, RepairReport()))
    if value is None:
        report.unknown += 1
        return None, annotated
    pairs = _pairs(place, value, report)
    if not pairs or _says_absent(record, pairs):
        report.absent += 1
        return (), None
    windows: list[Window] = []
    for start, end in pairs:
        if start == end:
            report.zero_length += 1
        elif start >= duration or end <= 0:
            report.after_end += 1
        else:
            outside = max(-start, end - duration)
            report.clipped += outside > ROUNDING_S
            report.trimmed += _NOISE_S < outside <= ROUNDING_S
            windows.append((max(start, 0.0), min(end, duration)))
    if annotated is None and windows != pairs and _differ(windows, pairs):
        annotated = tuple(pairs)
    if not windows:
        report.emptied += 1
        return None, annotated
    return tuple(windows), annotated


def _differ(one: Sequence[Window], other: Sequence[Window]) -> bool:
    if len(one) != len(other):
        return True
    off = (max(abs(a[0] - b[0]), abs(a[1] - b[1])) for a, b in zip(one, other, strict=True))
    return max(off, default=0.0) > _NOISE_S


def _pairs(place: str, value: object, report: RepairReport) -> list[Window]:
    """Windows as they were annotated, the start first."""
    if not isinstance(value, list):
        raise broken(place, "a list of [start, end] under 'relevant_windows'", repr(value))
    pairs = []
    for window in value:
        if not isinstance(window, list) or len(window) != 2:
            raise broken(place, "windows of [start, end]", repr(window))
        start, end = (number(place, "window", bound) for bound in window)
        report.swapped += start > end
        pairs.append((min(start, end), max(start, end)))
    return pairs


def _says_absent(record: Mapping[str, Any], pairs: Sequence[Window]) -> bool:
    """Whether windows are UniVTG-NA's ``[[0, 0]]``, its way to write that there is no moment."""
    if pairs[0] != (0.0, 0.0) or record.get("relevant_clip_ids"):
        return False
    return bool(record.get("kind", "absent") == "absent") and set(pairs) == {(0.0, 0.0)}


def _votes(place: str, record: Mapping[str, Any]) -> dict[int, tuple[float, ...]] | None:
    clips, scores = record.get("relevant_clip_ids"), record.get("saliency_scores")
    if clips is None or scores is None:
        return None
    if clips == [] and isinstance(scores, list) and not any(scores):
        return {}  # UniVTG-NA's queries without a moment say [[]]
    if not isinstance(clips, list) or not isinstance(scores, list) or len(clips) != len(scores):
        raise broken(place, "one saliency score list per relevant clip", "lists that do not match")
    by_clip: dict[int, tuple[float, ...]] = {}
    for clip, votes in zip(clips, scores, strict=True):
        if type(clip) is not int or abs(clip) > _MOST_CLIPS:
            raise broken(place, f"whole clip numbers up to {_MOST_CLIPS}", repr(clip))
        if type(votes) is not list or not votes:
            raise broken(place, "a list of saliency scores per clip", repr(votes))
        try:
            by_clip[clip] = _floats(*votes)
        except (AnnotationError, TypeError):  # something else, or even without a hash
            by_clip[clip] = tuple([number(place, "saliency", vote) for vote in votes])
    return by_clip


# Votes make up most of a file, and there are few different ones. Typed, as true equals 1.
@lru_cache(maxsize=4096, typed=True)
def _floats(*values: object) -> tuple[float, ...]:
    return tuple([number("", "saliency", value) for value in values])


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


def _name(place: str, key: str, value: object) -> Qid:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise broken(place, f"text or a whole number as {key}", repr(value))
    return value


def _is_writable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell and UTF-8 cannot
        return False
    return True

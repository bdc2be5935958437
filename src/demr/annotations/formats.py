"""The forms in which queries are published, told apart -> records with the field's keys."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from demr.annotations import datasets
from demr.annotations.records import Located, broken, json_lines, read_text
from demr.annotations.repairs import RepairReport
from demr.annotations.text_forms import csv_records, looks_like_csv, text_records
from demr.errors import AnnotationError

FORMS = (
    "JSON Lines as of QVHighlights, JSON of ActivityNet Captions, CD or CG splits, TACoS, DiDeMo, "
    "Ego4D NLQ, YouCook2, HiREST, text of Charades-STA, CSV"
)


def file_records(
    source: Path, durations_s: Mapping[str, float], report: RepairReport
) -> Iterable[Located]:
    """Records of a file in any known form: its name's ending decides, then its content.

    Args:
        source: The file, gzipped or not.
        durations_s: Length of each video in seconds, for forms that state none.
        report: Takes the counts.

    Raises:
        AnnotationError: If the file cannot be read or is of no known form.
    """
    text = read_text(source)
    suffix = (source.with_suffix("") if source.suffix == ".gz" else source).suffix.lower()
    is_text = suffix in (".txt", ".csv", ".tsv")
    if suffix in (".json", ".jsonl") or (not is_text and text.lstrip()[:1] in ("{", "[")):
        return _json_records(source, text, durations_s, report)
    if suffix in (".csv", ".tsv") or looks_like_csv(text):
        return csv_records(source, text, durations_s, report)
    if suffix == ".txt" or "##" in text.partition("\n")[0]:
        return text_records(source, text, durations_s, report)
    return _json_records(source, text, durations_s, report)


class _RepeatedKeyError(ValueError):
    """What stands under the first of two equal keys of an object would be lost."""


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        ((key, count),) = Counter([key for key, _ in pairs]).most_common(1)
        raise _RepeatedKeyError(f"{key!r} {count} times")
    return record


def _json_records(
    source: Path, text: str, durations_s: Mapping[str, float], report: RepairReport
) -> Iterable[Located]:
    """Records of JSON Lines, or of one JSON document."""
    try:
        document = json.loads(text, object_pairs_hook=_unique)
    except _RepeatedKeyError as error:
        raise broken(str(source), "every key of an object once", str(error)) from error
    except (ValueError, RecursionError) as error:
        if _starts_with_a_record(text):
            return json_lines(source, text)  # names the line, if one is broken
        if not text.strip():
            return []
        line, got = getattr(error, "lineno", 1), getattr(error, "msg", "too deep a nesting")
        column = getattr(error, "colno", None)
        where = "" if column is None else f" (column {column})"
        if source.name.removesuffix(".gz").endswith((".json", ".jsonl")):
            expected = "one JSON object a line, or one JSON document"
            raise broken(f"{source}:{line}", expected, f"{got}{where}") from error
        raise _unknown(source, f"no JSON: {got} at line {line}{where}") from error
    if isinstance(document, list):
        return _of_list(source, document, durations_s, report)
    if isinstance(document, dict):
        return _of_object(source, text, document, report)
    raise _unknown(source, f"JSON that is {document!r:.40}")


def _starts_with_a_record(text: str) -> bool:
    """Whether the first line that is not empty is JSON by itself."""
    line = text.lstrip().partition("\n")[0]
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _of_list(
    source: Path, document: list[Any], durations_s: Mapping[str, float], report: RepairReport
) -> Iterable[Located]:
    objects = [entry for entry in document if isinstance(entry, dict)]
    if any("description" in entry and "times" in entry for entry in objects):
        return datasets.didemo_records(source, document, durations_s, report)
    if document and not any("query" in entry for entry in objects):
        raise _unknown(source, f"a list of {_keys(document[0])}")
    return _listed(source, document)


def _listed(source: Path, document: list[Any]) -> Iterator[Located]:
    for number, record in enumerate(document, 1):
        place = f"{source}: record {number}"
        if not isinstance(record, dict):
            raise broken(place, "an object", repr(record))
        yield place, str(number), record


def _of_object(
    source: Path, text: str, document: dict[str, Any], report: RepairReport
) -> Iterable[Located]:
    if "query" in document:  # one record alone, on one line or several
        line = text[: text.index("{")].count("\n") + 1
        return [(f"{source}:{line}", str(line), document)]
    if isinstance(document.get("videos"), list):
        return datasets.nlq_records(source, document, report)
    if isinstance(document.get("database"), dict):
        return datasets.youcook_records(source, document, report)
    if datasets.is_captions(document):
        return datasets.caption_records(source, document, report)
    if datasets.is_hirest(document):
        return datasets.hirest_records(source, document, report)
    if document:
        raise _unknown(source, _keys(document))
    return []


def _unknown(source: Path, got: str) -> AnnotationError:
    return AnnotationError(
        str(source),
        expected=f"a known form of queries: {FORMS}",
        got=got,
        remedy="write it as CSV: video,query,start,end",
    )


def _keys(value: object) -> str:
    if not isinstance(value, dict):
        return f"{value!r:.40}"
    names = ", ".join(f"{key:.20}" for key in list(value)[:5])
    return f"an object with the keys {names}" + (", ..." if len(value) > 5 else "")


def in_seconds(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Turn a TVSum record (clips of 2 s, votes of 1..5 under ``label``) into the usual keys."""
    votes = record.get("label")
    if not isinstance(votes, list) or len(votes) != record["duration"]:
        return record
    if not all(
        isinstance(clip, list) and all(vote in range(1, 6) for vote in clip) for clip in votes
    ):
        return record
    rest = {key: value for key, value in record.items() if key != "label"}
    return {
        **rest,
        "duration": 2 * len(votes),
        "relevant_clip_ids": list(range(len(votes))),
        "saliency_scores": [[vote - 1 for vote in clip] for clip in votes],
    }

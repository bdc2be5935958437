"""The forms in which queries are published -> records with the field's keys."""

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from demr.errors import AnnotationError
from demr.machine.reading import read_records

# A record, where it stood (for messages), and the ending of its qid if it has none.
Located = tuple[str, str, Mapping[str, Any]]

_SHOWN = 80  # characters of a faulty value that a message repeats
_TEXT_LINE = re.compile(r"^(?P<vid>\S+)\s+(?P<start>\S+)\s+(?P<end>\S+?)\s*##(?P<query>.*)$")


def read_text(source: Path, kind: str = "queries") -> str:
    """The text of a UTF-8 file, gzipped or not.

    Args:
        source: The file.
        kind: What it should hold, for the message.

    Raises:
        AnnotationError: If it cannot be read or is no such text.
    """
    try:
        data = read_records(source)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        place, got = f"{source}:{line}", f"byte 0x{data[error.start]:02x}"
        raise AnnotationError(
            place, expected="UTF-8 text", got=got, remedy="is this the right file?"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AnnotationError(
            str(source), expected=f"a file of {kind}", got=reason, remedy="check path and download"
        ) from error


def json_records(source: Path, text: str) -> Iterator[Located]:
    """Records of JSON Lines, of a list of records, or of the captions form."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None  # several lines of JSON, or broken: json_lines names the line
    if document == {}:  # the captions form without a video
        return
    if isinstance(document, dict) and "query" not in document and _is_captions(document):
        yield from _caption_records(source, document)
        return
    if isinstance(document, list):
        for number, record in enumerate(document, 1):
            place = f"{source}: record {number}"
            if not isinstance(record, dict):
                raise broken(place, "an object", repr(record))
            yield place, str(number), record
        return
    yield from json_lines(source, text)


def json_lines(source: Path, text: str) -> Iterator[Located]:
    """Records of JSON Lines alone; empty lines are skipped.

    Raises:
        AnnotationError: If a line is no JSON object.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{source}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise broken(place, "one JSON object a line", repr(line.strip())) from error
        if not isinstance(record, dict):
            raise broken(place, "one JSON object a line", repr(line.strip()))
        yield place, str(number), record


def _is_captions(document: Mapping[str, Any]) -> bool:
    return bool(document) and all(
        isinstance(entry, dict) and "timestamps" in entry and "sentences" in entry
        for entry in document.values()
    )


def _caption_records(source: Path, document: Mapping[str, Any]) -> Iterator[Located]:
    for vid, entry in document.items():
        place = f"{source}: video {vid!r}"
        windows, sentences = entry["timestamps"], entry["sentences"]
        if not (isinstance(windows, list) and isinstance(sentences, list)):
            raise broken(place, "lists of timestamps and sentences", "something else")
        if len(windows) != len(sentences):
            raise broken(
                place, "as many timestamps as sentences", f"{len(windows)} and {len(sentences)}"
            )
        timing = "video_duration" if "video_duration" in entry else "duration"
        shared = {"vid": vid, **({"duration": entry[timing]} if timing in entry else {})}
        for index, (window, sentence) in enumerate(zip(windows, sentences, strict=True)):
            record = {**shared, "query": sentence, "relevant_windows": [window]}
            yield f"{place}, sentence {index}", str(index), record


def text_records(
    source: Path, text: str, durations_s: Mapping[str, float]
) -> tuple[list[Located], int]:
    """Records of the text form, and how many of its videos have no duration in ``durations_s``.

    Raises:
        AnnotationError: If a line has another form.
    """
    parsed: list[tuple[int, str, tuple[float, float], str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        match = _TEXT_LINE.match(line.strip())
        try:
            if match is None:
                raise ValueError("no match")
            window = float(match["start"]), float(match["end"])
        except ValueError as error:
            got = repr(line.strip())
            raise broken(f"{source}:{number}", "'vid start end##sentence'", got) from error
        parsed.append((number, match["vid"], window, match["query"]))
    last: dict[str, float] = {}
    for _, vid, window, _ in parsed:
        last[vid] = max(last.get(vid, 0.0), *window)
    records: list[Located] = []
    for number, vid, window, query in parsed:
        duration = durations_s.get(vid, last[vid])
        record = {
            "vid": vid,
            "duration": duration,
            "query": query,
            "relevant_windows": [list(window)],
        }
        records.append((f"{source}:{number}", str(number), record))
    return records, sum(vid not in durations_s for vid in last)


def in_seconds(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Turn a TVSum record (clips of 2 s, votes of 1..5 under ``label``) into the usual keys."""
    votes = record.get("label")
    if not isinstance(votes, list) or len(votes) != record["duration"]:
        return record
    if not all(
        isinstance(clip, list) and all(vote in range(1, 6) for vote in clip) for clip in votes
    ):
        return record
    return {
        **record,
        "duration": 2 * len(votes),
        "relevant_clip_ids": list(range(len(votes))),
        "saliency_scores": [[vote - 1 for vote in clip] for clip in votes],
    }


def broken(place: str, expected: str, got: str) -> AnnotationError:
    """The error of one damaged record; a long value is shortened."""
    shown = got if len(got) <= _SHOWN else got[:_SHOWN] + "..."
    return AnnotationError(place, expected=expected, got=shown, remedy="correct the record")

"""Text forms -> records with the field's keys: that of Charades-STA, and tables of spreadsheets."""

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demr.annotations.records import Located, broken, video_name
from demr.annotations.repairs import RepairReport
from demr.errors import AnnotationError

_TEXT_LINE = re.compile(r"^(?P<vid>\S+)\s+(?P<start>\S+)\s+(?P<end>\S+?)\s*##(?P<query>.*)$")

_ORDER = ("video", "query", "start", "end", "split")  # of columns without a heading
_SEPARATORS = ",;\t|"
_NAMES = {
    "video": ("video", "vid", "video_id"),
    "query": ("query", "sentence", "description"),
    "start": ("start", "start_s", "start_time"),
    "end": ("end", "end_s", "end_time"),
    "duration": ("duration", "duration_s"),
    "qid": ("qid",),
}
_COLUMN = {name: column for column, names in _NAMES.items() for name in names}
_PLAIN = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_COMMA = re.compile(r"[+-]?\d+,(?P<decimals>\d+)")
_SEPARATOR_LINE = re.compile(r"sep=.(?=\r?\n)")  # Excel's first line, before the heading
_CLOCK = re.compile(r"((?P<h>\d+):)?(?P<m>\d+):(?P<s>[0-5]?\d([.,]\d+)?)")


@dataclass
class _Query:
    """Lines of one query: its windows, and what else they say."""

    place: str
    line: int
    record: dict[str, Any]
    windows: list[list[float]]

    def located(self) -> Located:
        """Its record, where it stands, and the ending of a qid for it."""
        return self.place, str(self.line), self.record


def text_records(
    source: Path, text: str, durations_s: Mapping[str, float], report: RepairReport
) -> list[Located]:
    """Records of Charades-STA's text form, ``vid start end##sentence``.

    Raises:
        AnnotationError: If a line has another form.
    """
    queries: list[_Query] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        match = _TEXT_LINE.match(line.strip())
        try:
            if match is None:
                raise ValueError("no match")
            window = [float(match["start"]), float(match["end"])]
            if not all(map(math.isfinite, window)):
                raise ValueError("no time")
        except ValueError as error:
            got = repr(line.strip())
            raise broken(f"{source}:{number}", "'vid start end##sentence'", got) from error
        record = {
            "vid": video_name(match["vid"]),
            "query": match["query"],
            "relevant_windows": [window],
        }
        queries.append(_Query(f"{source}:{number}", number, record, [window]))
    _set_durations(queries, durations_s, report)
    return [query.located() for query in queries]


def looks_like_csv(text: str) -> bool:
    """Whether the first line names the columns of a table of queries."""
    line = text.lstrip().partition("\n")[0]
    return any(_names_columns(_heading(line.split(mark))) for mark in _SEPARATORS)


def csv_records(
    source: Path, text: str, durations_s: Mapping[str, float], report: RepairReport
) -> list[Located]:
    """Records of a table: ``video,query,start,end[,split]``, with or without that heading.

    Columns may stand in any order under a heading, ``qid`` and ``duration`` (seconds) among them;
    others stay in the record. Commas, semicolons, tabs or bars part them. Times are seconds, or
    ``mm:ss`` or ``hh:mm:ss``, with a point or a comma before decimals. Empty start and end: the
    moment is not in the video; columns without both: unknown. Rows of the same video and query
    (and qid and split) are one query with several windows.

    Raises:
        AnnotationError: If a row is damaged or a number can be read in two ways; names its line.
    """
    rows = _rows(source, _SEPARATOR_LINE.sub("", text, count=1) if text[:4] == "sep=" else text)
    if not rows:
        return []
    line, first = rows[0]
    heading = _heading(first)
    if _names_columns(heading):
        rows = rows[1:]
    elif _is_data(first):
        heading = list(_ORDER[: len(first)])
    else:
        got = ", ".join(first)
        raise broken(f"{source}:{line}", "the columns video, query, start and end", got)
    repeated = sorted({name for name in heading if name and heading.count(name) > 1})
    if repeated:
        got = f"{', '.join(repeated)} twice"
        raise broken(f"{source}:{line}", "one column of each name", got)
    has_times = bool({"start", "end"} & set(heading))
    if not has_times and not durations_s and "duration" not in heading:
        got = ", ".join(heading)
        raise broken(f"{source}:{line}", "the columns start and end, or duration", got)
    queries = list(_queries(source, heading, rows, report))
    _set_durations(queries, durations_s, report)
    if has_times:
        for query in queries:
            query.record["relevant_windows"] = query.windows
    return [query.located() for query in queries]


def _heading(cells: Sequence[str]) -> list[str]:
    """Names of columns: the known ones by what they hold, others as they are."""
    names = [cell.strip().strip('"').strip() for cell in cells]
    return [_COLUMN.get(name.lower(), name) for name in names]


def _names_columns(heading: Sequence[str]) -> bool:
    return {"video", "query"} <= set(heading)


def _is_data(cells: Sequence[str]) -> bool:
    if len(cells) not in (4, 5) or not cells[0].strip() or not cells[1].strip():
        return False
    return all(not cell.strip() or _seconds(cell, True) is not None for cell in cells[2:4])


def _rows(source: Path, text: str) -> list[tuple[int, list[str]]]:
    """Line and cells of every row that is not empty, parted by what makes sense of the first one.

    Where nothing does, the first row alone, parted by commas.
    """
    unknown: list[tuple[int, list[str]]] = []
    failure: tuple[int, str] | None = None
    for mark in _SEPARATORS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
        rows: list[tuple[int, list[str]]] = []
        begun = 1
        try:
            for row in reader:
                if any(cell.strip() for cell in row):
                    rows.append((begun, row))
                    if len(rows) == 1 and not (_names_columns(_heading(row)) or _is_data(row)):
                        break
                begun = reader.line_num + 1
            else:
                return rows
        except csv.Error as error:  # an open quote, a NUL
            failure = failure or (reader.line_num, str(error))
        unknown = unknown or rows[:1]
    if failure is not None:
        line, reason = failure
        raise broken(f"{source}:{line}", "rows of comma-separated values", reason)
    return unknown


def _queries(
    source: Path, heading: list[str], rows: list[tuple[int, list[str]]], report: RepairReport
) -> Iterator[_Query]:
    commas = _commas_are_decimal(heading, rows)
    found: dict[tuple[str, ...], _Query] = {}
    for line, row in rows:
        place = f"{source}:{line}"
        if len(row) > len(heading) and any(cell.strip() for cell in row[len(heading) :]):
            got = f"{len(row)}: quote cells that hold the separator"
            raise broken(place, f"{len(heading)} columns", got)
        cells = dict(zip(heading, [*row, *[""] * len(heading)], strict=False))
        for name in ("video", "query"):
            if not cells[name].strip():
                raise broken(place, f"a {name}", "an empty cell")
        start, end = (_time(place, name, cells.pop(name, ""), commas) for name in ("start", "end"))
        if (start is None) != (end is None):
            raise broken(place, "start and end, or neither", f"{start!r} and {end!r}")
        vid, query = video_name(cells.pop("video").strip()), cells.pop("query")
        record: dict[str, Any] = {"vid": vid, "query": query}
        duration = _time(place, "duration", cells.pop("duration", ""), commas)
        if duration is not None:
            record["duration"] = duration
        record |= {name: cell.strip() for name, cell in cells.items() if name and cell.strip()}
        key = vid, " ".join(query.split()), *(str(record.get(n, "")) for n in ("qid", "split"))
        windows = [] if start is None or end is None else [[start, end]]
        known = found.setdefault(key, _Query(place, line, record, windows))
        if known.line != line:
            if not known.windows or not windows:
                got = f"an empty one, and another at line {known.line}"
                raise broken(place, "windows of this query, or one row without", got)
            report.merged_rows += 1
            known.windows += [window for window in windows if window not in known.windows]
    yield from found.values()


def _set_durations(
    queries: list[_Query], durations_s: Mapping[str, float], report: RepairReport
) -> None:
    """Durations of the column, of other annotations, or else the end of a video's last window."""
    stated: dict[str, float] = {}
    last: dict[str, float] = {}
    for query in queries:
        vid = query.record["vid"]
        if "duration" in query.record:
            stated.setdefault(vid, query.record["duration"])
        last[vid] = max(last.get(vid, 0.0), *(max(window) for window in query.windows), 0.0)
    # Of a video that is only asked about what it does not show nothing is known.
    longest = max([*last.values(), *stated.values()], default=0.0)
    guessed = set()
    for query in queries:
        vid = query.record["vid"]
        known = query.record.get("duration", stated.get(vid, durations_s.get(vid)))
        if known is None:
            known = last[vid] or longest
            guessed.add(vid)
            query.record["duration_guessed"] = True
        if not known and query.record.get("duration_guessed"):
            raise AnnotationError(
                query.place,
                expected=f"the duration of video {vid}, as no row has times",
                got="none",
                remedy="name other annotations with --durations (of CSV, or add a column duration)",
            )
        query.record["duration"] = known
    report.guessed_durations += len(guessed)


def _commas_are_decimal(heading: list[str], rows: list[tuple[int, list[str]]]) -> bool:
    """Whether a comma before three digits parts decimals: another time of the file shows it."""
    places = [heading.index(name) for name in ("start", "end", "duration") if name in heading]
    cells = [row[i].strip() for _, row in rows for i in places if i < len(row)]
    matches = [match for cell in cells if (match := _COMMA.fullmatch(cell))]
    return any(len(match["decimals"]) != 3 for match in matches)


def _time(place: str, name: str, cell: str, commas: bool) -> float | None:
    text = cell.strip()
    if not text:
        return None
    value = _seconds(text, commas)
    if value is not None:
        return value
    if _COMMA.fullmatch(text):
        raise broken(place, f"{name} with a point before its decimals", f"{text} (or thousands?)")
    raise broken(place, f"seconds or mm:ss as {name}", repr(text))


def _seconds(cell: str, commas: bool) -> float | None:
    """Seconds of a number or a clock time; None if it is neither, or can be read in two ways."""
    text = cell.strip()
    if _PLAIN.fullmatch(text):
        return float(text) if math.isfinite(float(text)) else None
    comma = _COMMA.fullmatch(text)
    if comma and (commas or len(comma["decimals"]) != 3):
        return float(text.replace(",", "."))
    clock = _CLOCK.fullmatch(text)
    if clock is None or (clock["h"] and int(clock["m"]) > 59):
        return None
    hours, minutes = int(clock["h"] or 0), int(clock["m"])
    return 3600 * hours + 60 * minutes + float(clock["s"].replace(",", "."))

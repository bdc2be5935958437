"""JSON of single data sets -> records with the field's keys.

What a data set says beside the field's keys stays in the record, under its own key.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from demr.annotations.records import Located, broken, member, number, video_name
from demr.annotations.repairs import RepairReport

_SEGMENT_S = 5  # DiDeMo's annotators marked segments of five seconds
# SCDM's TACoS counts everything in frames of 29.4 a second and says so nowhere. The longest video
# of TACoS has 1402 s, the shortest 1420 frames: what lies between tells the two apart.
_TACOS_VIDEO = re.compile(r"s\d+-d\d+(\.avi)?")
_TACOS_FPS, _TACOS_LONGEST_S = 29.4, 1410


def is_captions(document: Mapping[str, Any]) -> bool:
    """Whether an object holds sentences and timestamps by video, in one entry at least."""
    return any(
        isinstance(entry, dict) and ("timestamps" in entry or "sentences" in entry)
        for entry in document.values()
    )


def caption_records(
    source: Path, document: Mapping[str, Any], report: RepairReport
) -> Iterator[Located]:
    """Captions, ``{vid: {timestamps, sentences, duration}}``: ActivityNet, CD and CG splits, TACoS.

    The duration may be called ``video_duration``. Times are frames where there are ``num_frames``
    and ``fps`` (2D-TAN's TACoS), or a duration that no video of TACoS has in seconds (SCDM's).

    Raises:
        AnnotationError: If an entry is damaged; names its video.
    """
    for vid, entry in document.items():
        place = f"{source}: video {vid!r}"
        windows = member(place, entry, "timestamps", list)
        sentences = member(place, entry, "sentences", list)
        if len(windows) != len(sentences):
            raise broken(
                place, "as many timestamps as sentences", f"{len(windows)} and {len(sentences)}"
            )
        duration, fps = _timing(place, vid, entry, windows)
        name = vid if fps is None else video_name(vid)
        shared = {"vid": name, "kind": "present", "duration": duration}
        report.framed_videos += fps is not None
        used = {"timestamps", "sentences", "duration", "video_duration"}
        used |= set() if fps is None else {"num_frames", "fps"}
        for index, (window, sentence) in enumerate(zip(windows, sentences, strict=True)):
            inner = f"{place}, sentence {index}"
            in_seconds = window
            if fps is not None and isinstance(window, list):
                in_seconds = [number(inner, "window", bound) / fps for bound in window]
            rest = {
                # Lists beside the sentences have one entry for each.
                key: value[index]
                if isinstance(value, list) and len(value) == len(sentences)
                else value
                for key, value in entry.items()
                if key not in used
            }
            record = {**rest, **shared, "query": sentence, "relevant_windows": [in_seconds]}
            yield inner, str(index), record


def _timing(
    place: str, vid: str, entry: Mapping[str, Any], windows: Sequence[object]
) -> tuple[object, float | None]:
    """Duration in seconds (as it stands, if it is stated so) and the rate of frames, if any."""
    stated = entry.get("video_duration", entry.get("duration"))
    if entry.get("num_frames") is not None and entry.get("fps") is not None:
        frames = number(place, "num_frames", entry["num_frames"])
        fps = number(place, "fps", entry["fps"])
        if frames <= 0 or fps <= 0:
            raise broken(place, "num_frames and fps above 0", f"{frames:g} and {fps:g}")
        if stated is None or _are_frames(number(place, "duration", stated), frames, windows):
            return frames / fps, fps
    elif _TACOS_VIDEO.fullmatch(vid) and stated is not None:
        duration = number(place, "duration", stated)
        if duration > _TACOS_LONGEST_S:
            return duration / _TACOS_FPS, _TACOS_FPS
    if not entry.keys() & {"duration", "video_duration"}:
        raise broken(place, "the key 'duration'", ", ".join(map(str, entry)))
    return stated, None


def _are_frames(duration: float, frames: float, windows: Sequence[object]) -> bool:
    """Whether times count frames, where the length is given both in frames and otherwise."""
    if abs(duration - frames) <= 0.01 * frames:
        return True
    ends = [w[-1] for w in windows if isinstance(w, list) and w and isinstance(w[-1], int | float)]
    return max(ends, default=0) > 1.5 * duration  # ends past a duration in seconds are a bit past


def didemo_records(
    source: Path,
    document: Sequence[object],
    durations_s: Mapping[str, float],
    report: RepairReport,
) -> Iterator[Located]:
    """DiDeMo: ``[{video, description, times, annotation_id, num_segments}]``.

    A window of several annotators is the one that agrees best with all of them (highest sum of
    IoU, the first of equals); the others stay under ``times``. The last segment ends with the
    video where its duration is known, five seconds after its start where it is not.

    Raises:
        AnnotationError: If a record is damaged; names its number and its video.
    """
    guessed = set()
    for index, entry in enumerate(document, 1):
        place = f"{source}: record {index}"
        video = member(place, entry, "video", str)
        place = f"{place}, video {video!r}"
        sentence = member(place, entry, "description", object)
        times = _segments(place, member(place, entry, "times", list))
        vid, record = video_name(video), dict(entry) if isinstance(entry, dict) else {}
        duration = durations_s.get(vid, durations_s.get(video))
        if duration is None:
            segments = number(place, "num_segments", record.get("num_segments", 0))
            duration = _SEGMENT_S * max([segments, *(last + 1 for _, last in times)])
            if duration <= 0:
                raise broken(place, "times, num_segments or a duration (--durations)", "none")
            record["duration_guessed"] = True
            guessed.add(vid)
        windows = None
        if times:
            first, last = max(times, key=lambda time: sum(_shared(time, t) for t in times))
            windows = [[_SEGMENT_S * first, min(_SEGMENT_S * (last + 1), duration)]]
            report.disagreed += len(set(times)) > 1
        record |= {"vid": vid, "query": sentence, "duration": duration}
        record |= {"qid": record.pop("annotation_id", None), "relevant_windows": windows}
        for key in ("video", "description", "num_segments"):
            record.pop(key, None)
        yield place, str(index), record
    report.guessed_durations += len(guessed)


def _segments(place: str, times: Sequence[object]) -> list[tuple[int, int]]:
    segments = []
    for time in times:
        if (
            not isinstance(time, list)
            or [type(segment) for segment in time] != [int, int]
            or not 0 <= time[0] <= time[1]
        ):
            raise broken(place, "times of [first segment, last segment]", repr(time))
        segments.append((time[0], time[1]))
    return segments


def _shared(a: tuple[int, int], b: tuple[int, int]) -> float:
    """IoU of two runs of segments, both ends included."""
    both = max(min(a[1], b[1]) + 1 - max(a[0], b[0]), 0)
    return both / (a[1] - a[0] + b[1] - b[0] + 2 - both)


def nlq_records(
    source: Path, document: Mapping[str, Any], report: RepairReport
) -> Iterator[Located]:
    """Ego4D NLQ: ``{videos: [{clips: [{annotations: [{language_queries: [...]}]}]}]}``.

    Videos are the clips, as in the field, and a query is named as the challenge names it: clip,
    annotation, number. A query without a sentence is dropped and counted; without times, as in
    the test split, its window is unknown.

    Raises:
        AnnotationError: If an entry is damaged; names its clip.
    """
    for position, video in enumerate(member(str(source), document, "videos", list)):
        outer = f"{source}: video {position}"
        for clip in member(outer, video, "clips", list):
            vid = member(outer, clip, "clip_uid", str)
            place = f"{source}: clip {vid!r}"
            bounds = [
                number(place, key, member(place, clip, key, object))
                for key in ("video_start_sec", "video_end_sec")
            ]
            shared = {"vid": vid, "duration": round(bounds[1] - bounds[0], 6), "kind": "present"}
            if video.get("video_uid") is not None:
                shared["video_uid"] = video["video_uid"]
            for turn, annotation in enumerate(member(place, clip, "annotations", list)):
                queries = member(place, annotation, "language_queries", list)
                name = f"{vid}_{annotation.get('annotation_uid', turn)}"
                for index, query in enumerate(queries):
                    inner = f"{place}, query {index}"
                    if _has_sentence(inner, query, "query", report):
                        record = {**query, **shared, "qid": f"{name}_{index}"}
                        window = [record.pop(f"clip_{end}_sec", None) for end in ("start", "end")]
                        record["relevant_windows"] = None if window == [None, None] else [window]
                        yield inner, str(index), record


def youcook_records(
    source: Path, document: Mapping[str, Any], report: RepairReport
) -> Iterator[Located]:
    """YouCook2: ``{database: {vid: {duration, annotations: [{segment, sentence, id}]}}}``.

    Segments without a sentence, as in the test split, are dropped and counted.

    Raises:
        AnnotationError: If an entry is damaged; names its video.
    """
    for vid, entry in member(str(source), document, "database", dict).items():
        place = f"{source}: video {vid!r}"
        annotations = member(place, entry, "annotations", list)
        shared = {key: value for key, value in entry.items() if key != "annotations"}
        for index, annotation in enumerate(annotations):
            inner = f"{place}, annotation {index}"
            if _has_sentence(inner, annotation, "sentence", report):
                record = {**shared, **annotation, "vid": vid}
                record |= {"query": record.pop("sentence"), "kind": "present"}
                record["relevant_windows"] = [member(inner, record, "segment", list)]
                del record["segment"]
                record["qid"] = f"{vid}_{record.pop('id', index)}"
                yield inner, str(index), record


def is_hirest(document: Mapping[str, Any]) -> bool:
    """Whether an object holds videos by sentence, with the keys of HiREST in one entry at least."""
    return any(
        isinstance(entry, dict) and ("v_duration" in entry or "bounds" in entry)
        for videos in document.values()
        if isinstance(videos, dict)
        for entry in videos.values()
    )


def hirest_records(
    source: Path, document: Mapping[str, Any], report: RepairReport
) -> Iterator[Located]:
    """HiREST: ``{sentence: {video: {relevant, clip, v_duration, bounds, steps}}}``.

    A video that is not relevant does not show the moment; one that is no clip shows it from end to
    end. The steps stay in the record; they are no queries.

    Raises:
        AnnotationError: If an entry is damaged; names its video.
    """
    for turn, (sentence, videos) in enumerate(document.items()):
        if not isinstance(videos, dict):
            raise broken(f"{source}: {sentence!r}", "videos and their moments", repr(videos))
        for video, entry in videos.items():
            place = f"{source}: video {video!r}"
            duration = number(place, "v_duration", member(place, entry, "v_duration", object))
            record = {**entry, "vid": video_name(video), "query": sentence, "duration": duration}
            if record.pop("relevant", True) is False:
                windows: list[list[object]] = []
            elif record.pop("clip", True) is False:
                windows = [[0, duration]]
                report.whole_videos += 1
            else:
                windows = [member(place, entry, "bounds", list)]
            for key in ("v_duration", "bounds", "clip"):
                record.pop(key, None)
            if windows:
                record["kind"] = "present"
            yield place, str(turn), {**record, "relevant_windows": windows}


def _has_sentence(place: str, entry: object, key: str, report: RepairReport) -> bool:
    if not isinstance(entry, dict):
        raise broken(place, f"an object with the key {key!r}", repr(entry))
    sentence = entry.get(key)
    if sentence is None or (isinstance(sentence, str) and not sentence.strip()):
        report.null_queries += 1
        return False
    return True

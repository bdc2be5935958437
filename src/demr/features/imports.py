"""Published features -> a feature pack; what does not fit is named, all of it, or left out."""

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from demr.encoders.base import EncoderIdentity, VideoFeatures
from demr.errors import FeatureError
from demr.features.pack import FeaturePackWriter
from demr.features.prepare import align_streams, check_storable, shortest_stream, usable_rows
from demr.features.sources import FeatureSource, QuantizedShards, open_source
from demr.machine.terminal import counted

_T = TypeVar("_T")
_Shapes = Mapping[str, tuple[int, int]]
# Characters of an error for the misfits that are told in full.
_TOLD = 300


@dataclass(frozen=True)
class FeatureImport:
    """Outcome of an import.

    Attributes:
        identity: Encoder they are stored under.
        videos: Videos stored.
        clips: Clips stored, all videos together.
        cut: Videos whose streams differed by a row or two and were cut to the shortest.
        unused: Videos with features but without a query, left out.
        misfits: Annotated videos that were left out, and damaged files of several; what was
            expected of each and what was found.
    """

    identity: EncoderIdentity
    videos: int
    clips: int
    cut: int
    unused: int
    misfits: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line with all that is not zero."""
        streams = " + ".join(f"{name} {dims}" for name, dims in self.identity.streams)
        clips = f"{counted(self.clips, 'clip')} of {self.identity.clip_s:g} s"
        parts = [f"{counted(self.videos, 'video')}, {clips}"]
        parts.append(f"{self.identity.spec} ({streams})")
        if self.cut:
            parts.append(f"{self.cut} videos with streams a row apart, cut to the shortest")
        if self.unused:
            parts.append(f"{self.unused} videos without a query left out")
        if self.misfits:
            parts.append(f"{len(self.misfits)} that do not fit left out")
        return ", ".join(parts)


def import_features(
    streams: Mapping[str, Path],
    durations_s: Mapping[str, float],
    out: Path,
    *,
    name: str,
    version: str,
    clip_s: float,
    text_dim: int,
    normalization: Literal["l2", "none"],
    skip: bool = False,
) -> FeatureImport:
    """Bring published features into a feature pack, the whole pack or nothing.

    A video does not fit if a stream lacks it, two streams or a stream and its duration differ by
    more than two rows, its width is not that of most videos, a number is not finite or beyond
    float16, or a file is damaged or larger than memory. Shapes are judged before anything is read.

    Args:
        streams: Name of each stream -> where its files are, in the order of concatenation.
        durations_s: Length in seconds of every annotated video.
        out: Folder to create.
        name: Name of the encoder that made them.
        version: Its version.
        clip_s: Seconds between two rows.
        text_dim: Width of a token of the queries' features.
        normalization: What a model must do with each stream's rows.
        skip: Leave out what does not fit.

    Raises:
        FeatureError: If a video does not fit and is not to be left out, or none fits; it names as
            many of them as a line holds.
    """
    if not durations_s:
        raise FeatureError(
            str(out), expected="at least one annotated video", got="none", remedy="add annotations"
        )
    sources = {stream: open_source(path) for stream, path in streams.items()}
    faults = [fault for source in sources.values() for fault in source.faults]
    misfits = _Misfits(len(durations_s), faults, skip=skip)
    shapes = dict(misfits.sift(_ordered(sources, durations_s), lambda vid: _shapes(sources, vid)))
    dims = {stream: _usual_width(stream, shapes.values()) for stream in sources}
    identity = EncoderIdentity(name, version, clip_s, tuple(dims.items()), text_dim, normalization)

    def read(vid: str) -> VideoFeatures:
        _check_shapes(shapes[vid], dims, vid)
        rows = {stream: shape[0] for stream, shape in shapes[vid].items()}
        usable_rows(shortest_stream(rows, vid), vid, durations_s[vid], clip_s)
        tables = {stream: source.rows(vid) for stream, source in sources.items()}
        video = VideoFeatures(vid, durations_s[vid], clip_s, align_streams(tables, vid))
        check_storable(video, identity)
        return video

    clips = cut = stored = 0
    with FeaturePackWriter(out, identity) as writer:
        for vid, video in misfits.sift(shapes, read):
            if misfits.errors and not skip:
                continue  # nothing is stored any more, but every misfit is found
            writer.add(video)
            stored, clips = stored + 1, clips + len(video.features)
            cut += len({rows for rows, _ in shapes[vid].values()}) > 1
        misfits.check(stored)
    known = set().union(*(source.vids for source in sources.values()))
    unused = len(known - set(durations_s))
    return FeatureImport(identity, stored, clips, cut, unused, tuple(map(_line, misfits.errors)))


class _Misfits:
    """What does not fit, found while the rest goes on.

    Args:
        wanted: Number of annotated videos.
        faults: Damaged files of several videos.
        skip: Whether they are left out.

    Attributes:
        errors: What was expected of each, and what was found; damaged files first.
    """

    def __init__(self, wanted: int, faults: Sequence[FeatureError], *, skip: bool) -> None:
        self._wanted = wanted
        self._files = len(faults)
        self._skip = skip
        self.errors = list(faults)

    def sift(self, vids: Iterable[str], work: Callable[[str], _T]) -> Iterator[tuple[str, _T]]:
        """Videos that some work succeeds with, and what came of it."""
        for vid in vids:
            try:
                done = work(vid)
            except FeatureError as error:
                self.errors.append(_naming(vid, error))
            else:
                yield vid, done

    def check(self, stored: int) -> None:
        """Refuse them in one line: some in full, the others as a number.

        Raises:
            FeatureError: If there are any and they are not left out, or nothing else is left.
        """
        if not self.errors or (self._skip and stored):
            return
        first, skippable = self.errors[0], "" if self._skip else ", or leave out with --skip"
        if len(self.errors) == 1:
            remedy = first.remedy + skippable
            raise FeatureError(
                first.subject, expected=first.expected, got=first.got, remedy=remedy
            ) from first
        told = [textwrap.shorten(_line(first), _TOLD, placeholder=" ...")]
        for error in self.errors[1:]:
            if sum(map(len, told)) + len(_line(error)) > _TOLD:
                break
            told.append(_line(error))
        more = len(self.errors) - len(told)
        files = f"{counted(self._files, 'file')} and " if self._files else ""
        raise FeatureError(
            f"{files}{len(self.errors) - self._files} of {self._wanted} videos",
            expected="features that fit",
            got="; ".join([*told, *([f"and {more} more"] if more else [])]),
            remedy=f"mend them{skippable}",
        ) from first


def _naming(vid: str, error: FeatureError) -> FeatureError:
    if vid in error.subject:
        return error
    return FeatureError(
        f"video {vid} in {error.subject}",
        expected=error.expected,
        got=error.got,
        remedy=error.remedy,
    )


def _line(error: FeatureError) -> str:
    return f"{error.subject}: expected {error.expected}, got {error.got}"


def _ordered(
    sources: Mapping[str, FeatureSource], durations_s: Mapping[str, float]
) -> Iterator[str]:
    """Annotated videos in the order of shards, if there are any: those are read one by one."""
    first = min(sources.values(), key=lambda source: not isinstance(source, QuantizedShards))
    yield from (vid for vid in first.vids if vid in durations_s)
    yield from (vid for vid in durations_s if vid not in first.vids)


def _shapes(sources: Mapping[str, FeatureSource], vid: str) -> _Shapes:
    missing = [stream for stream, source in sources.items() if vid not in source.vids]
    if missing:
        raise FeatureError(
            f"video {vid}",
            expected="features in every stream",
            got=f"none in {' and '.join(missing)}",
            remedy="fetch them, or drop its queries from the annotations",
        )
    return {stream: source.shape(vid) for stream, source in sources.items()}


def _usual_width(stream: str, shapes: Iterable[_Shapes]) -> int:
    """Columns that most videos have; the first of several that are as frequent."""
    widths = Counter(shape[stream][1] for shape in shapes)
    return widths.most_common(1)[0][0] if widths else 0


def _check_shapes(shapes: _Shapes, dims: Mapping[str, int], vid: str) -> None:
    for stream, (_, width) in shapes.items():
        if width != dims[stream]:
            raise FeatureError(
                f"stream {stream} of video {vid}",
                expected=f"{dims[stream]} columns, as most videos have",
                got=str(width),
                remedy="keep the features of different encoders in different folders",
            )

"""Clips of the moments that a search has shown, each a file."""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from demr.errors import InputError, VideoError
from demr.machine.terminal import complain, counted, say

if TYPE_CHECKING:
    from demr.search.result import SearchResult

# What no file system takes in a name, or some programs take for more than a letter.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f/\\:*?\"<>|\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# A name has at most 255 bytes, of which number, times and suffix need some.
_LONGEST_STEM_BYTES = 180


def check_clips(folder: Path, names: Collection[str], sentences: int, *, overwrite: bool) -> None:
    """Refuse a folder that cannot take the clips of a search, before the search.

    Their times are not known yet: clips of the same videos and numbers that are there count as
    in the way, whatever their times.

    Args:
        folder: Where they go.
        names: Of the videos.
        sentences: How many are asked.
        overwrite: Whether clips that are there may be replaced.

    Raises:
        InputError: If there are such clips, or no folder can be made there.
    """
    above = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InputError(
            f"--save-clips {folder}",
            expected="a folder that can be written to",
            got=f"a closed folder {above}" if above.is_dir() else f"{above}, which is no folder",
            remedy="choose another folder",
        )
    if overwrite or not folder.is_dir():
        return
    stems = {_stem(name) for name in names}
    there = sorted(path.name for path in folder.iterdir() if _is_clip(path.name, stems, sentences))
    if there:
        raise InputError(
            f"--save-clips {folder}",
            expected="a folder without clips of these videos",
            got=f"{counted(len(there), 'clip')}, such as {there[0]}",
            remedy="choose another folder, or --overwrite",
        )


def save_clips(
    results: Sequence["SearchResult"],
    videos: Mapping[Path, str],
    folder: Path,
    most: int | None,
    *,
    overwrite: bool,
) -> bool:
    """Cut every moment that is shown out of its video, and name the files on stderr.

    Args:
        results: The searches.
        videos: Paths of the searched videos, with a name for each.
        folder: Where the clips go; it is made.
        most: As for :func:`demr.report.shown_answers`.
        overwrite: Whether clips that are there may be replaced.

    Returns:
        Whether one could not be cut.

    Raises:
        InputError: If a clip is there meanwhile.
        OSError: If the folder cannot be made.
    """
    from demr.video.writing import cut_clip

    folder.mkdir(parents=True, exist_ok=True)
    failed = False
    written: set[str] = set()
    for video, start_s, end_s, name in _clips(results, videos, most):
        out = folder / _unused(name, written)
        try:
            cut_clip(video, start_s, end_s, out, overwrite=overwrite)
        except VideoError as error:
            complain(f"clip not saved: {error}")
            failed = True
        else:
            say(str(out), stderr=True)
    if not written:
        say("no clip saved: no moment is shown", stderr=True)
    return failed


def _clips(
    results: Sequence["SearchResult"], videos: Mapping[Path, str], most: int | None
) -> Iterator[tuple[Path, float, float, str]]:
    """Video, start, end and file name of every moment that is shown."""
    from demr.report import shown_answers

    for number in range(len(results[0].answers)):
        for shown in shown_answers(results, number, most):
            video = Path(shown.result.video)
            for moment in shown.moments:
                times = f"{moment.start:.1f}-{moment.end:.1f}"
                name = f"{_stem(videos[video])}-{number + 1:02d}-{times}.mp4"
                yield video, moment.start, moment.end, name


def _unused(name: str, written: set[str]) -> str:
    """A name that no clip of this search has: moments can share all digits that it shows."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    number = 1
    while name in written:
        number += 1
        name = f"{stem}-{number}{suffix}"
    written.add(name)
    return name


def _stem(name: str) -> str:
    """What the names of a video's clips begin with.

    >>> _stem("talk [final]"), _stem("a/b:c.mp4"), _stem("-x")
    ('talk [final]', 'a_b_c.mp4', '_x')
    """
    safe = _UNSAFE.sub("_", name)
    if safe[:1] in {"-", ".", " "}:
        # An option, a hidden file.
        safe = f"_{safe[1:]}"
    return os.fsencode(safe)[:_LONGEST_STEM_BYTES].decode("utf-8", "ignore")


def _is_clip(name: str, stems: Collection[str], sentences: int) -> bool:
    match = re.fullmatch(r"(.*)-(\d\d+)-\d+\.\d-\d+\.\d(?:-\d+)?\.mp4", name, re.DOTALL)
    return match is not None and match[1] in stems and 1 <= int(match[2]) <= sentences

"""Which videos there are in files and folders, and what each is called."""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from demr.errors import InputError
from demr.video.opening import is_url, url_error

SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        *("3gp", "avi", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4"),
        *("mpeg", "mpg", "mts", "ogv", "ts", "webm", "wmv"),
    )
)


@dataclass(frozen=True)
class VideoFile:
    """A file to be read.

    Attributes:
        vid: What the video is called in a feature pack.
        path: Absolute.
        size: In bytes; 0 where the file cannot be looked at.
        changed_ns: When it was last written.
    """

    vid: str
    path: Path
    size: int
    changed_ns: int = 0

    @property
    def key(self) -> str:
        """Changes with the file's name, place, size and time of writing."""
        text = f"{self.vid}\0{self.path}\0{self.size}\0{self.changed_ns}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]


@dataclass(frozen=True)
class Found:
    """Videos in the order of their names, and places that could not be looked into."""

    videos: tuple[VideoFile, ...]
    closed: tuple[str, ...] = ()


def find_videos(sources: Sequence[Path]) -> Found:
    r"""Look for videos.

    A video is called by its file name without the suffix. Where two would share a name, both are
    called by their paths below the folder that was named, suffix included. Bytes of a name that
    are no text stand in it as ``\xff``.

    Args:
        sources: Files, of whatever suffix, and folders, which are searched for the suffixes of
            videos. Hidden files and folders are passed over, as are links to folders.

    Raises:
        InputError: If a source does not exist or is a URL, or there is no video at all.
    """
    closed: list[str] = []
    places: dict[Path, str] = {}
    # One folder can be named in several ways. A link to a file is a video of its own.
    seen: set[Path] = set()
    for source in sources:
        try:
            mode = source.stat().st_mode
        except PermissionError as error:  # the folder it lies in is closed
            closed.append(f"{source}: {error.strerror}")
            continue
        except (OSError, ValueError):
            mode = 0
        is_folder = stat.S_ISDIR(mode)
        here = source if is_folder else source.parent
        there = Path(os.path.realpath(here))
        if mode:
            for path in _walk(source, closed) if is_folder else (source,):
                place = path.relative_to(here)
                if there / place not in seen:
                    seen.add(there / place)
                    places[path.absolute()] = _text(place)
        else:
            if is_url(str(source)):
                raise url_error(str(source))
            raise InputError(
                str(source), expected="a video or a folder", got="nothing", remedy="check the path"
            )
    if not places:
        where = ", ".join(map(str, sources))
        barred = f", and {closed[0]}" if closed else ""
        raise InputError(
            where if len(where) < 200 else f"{len(sources)} folders",
            expected=f"videos ({', '.join(sorted(SUFFIXES))})",
            got=f"none{barred}",
            remedy="check the path, or name the files themselves",
        )
    stems = {path: _text(Path(path.stem)) for path in places}
    shared = {stem for stem, count in Counter(stems.values()).items() if count > 1}
    names = {
        path: place if stems[path] in shared else stems[path] for path, place in places.items()
    }
    twice = {name for name, count in Counter(names.values()).items() if count > 1}
    # Of several folders, each with its own a/b.mp4.
    names = {path: _text(path) if name in twice else name for path, name in names.items()}
    videos = [_look(name, path) for path, name in names.items()]
    return Found(tuple(sorted(videos, key=lambda video: video.vid)), tuple(closed))


def _walk(folder: Path, closed: list[str]) -> Iterator[Path]:
    def note(error: OSError) -> None:
        closed.append(f"{error.filename}: {error.strerror or error}")

    for here, folders, files in os.walk(folder, onerror=note):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(here, name)


def _look(name: str, path: Path) -> VideoFile:
    try:
        status = path.stat()
    except OSError:
        return VideoFile(name, path, 0)
    return VideoFile(name, path, status.st_size, status.st_mtime_ns)


def _text(path: Path) -> str:
    # Names of files need not be text; names in a pack must.
    # Not replaced by one sign for all: names have to stay apart.
    return os.fsencode(path).decode("utf-8", "backslashreplace")

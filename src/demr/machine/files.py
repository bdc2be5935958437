"""Atomic writing, temporaries that no kill leaves for good, locks that end with their process."""

import errno
import fcntl
import json
import math
import os
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from demr.errors import DemrError

# Held by the process that a temporary folder belongs to.
_LOCK = ".demr-lock"
# Folders that this process has swept: a listing a file would make long extractions slow.
_swept: set[Path] = set()
# What file systems without locks answer.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A hidden folder of this process alone, removed after the block.

    Killed processes leave theirs behind. Those are swept away when the next one makes the first
    of its own in the same place; what a living process is at work on stays.

    Args:
        parent: Where it is made; a folder that exists.

    Raises:
        OSError: If it cannot be made.
    """
    place = parent.resolve()
    if place not in _swept:
        _swept.add(place)
        sweep(place)
    folder, lock = _make_temporary(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make_temporary(parent: Path) -> tuple[Path, int]:
    """A new folder and the lock that says that its process lives."""
    while True:
        folder = parent / f".demr-{os.urandom(8).hex()}.tmp"
        folder.mkdir(mode=0o700)
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # swept away before it was locked
        with suppress(OSError):  # without locks nothing is ever swept
            lock_handle(lock, wait=True)
        if os.fstat(lock).st_nlink:
            return folder, lock
        os.close(lock)


def sweep(folder: Path) -> None:
    """Remove the temporaries in a folder whose processes have ended."""
    for left in folder.glob(".demr-*.tmp"):
        try:
            found = left.lstat()
            # In shared folders such as /tmp others may lay out anything under such a name.
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                continue
            lock = os.open(
                left / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
        except OSError:
            continue  # removed meanwhile, or not to be touched
        try:
            with suppress(OSError):
                if lock_handle(lock):
                    shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(lock)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Write to a temporary file of the same name and move it into place when the block succeeds.

    What was there stays until then, and stays for good if the block or the disk fails. Missing
    folders are created. Who may read the file is for the umask to say.

    Raises:
        OSError: If the folder cannot be written to, or is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent) as folder:
        temporary = folder / path.name
        mode = _new_file_mode(temporary)
        yield temporary
        sync(temporary)
        _give_mode(temporary, mode)
        temporary.replace(path)


@contextmanager
def atomic_folder(path: Path, *, within: Path | None = None) -> Iterator[Path]:
    """Fill a temporary folder and move it into place when the block succeeds.

    Args:
        path: The folder.
        within: Where the temporary one lies, on the same disk; by default beside it.

    Raises:
        OSError: If it cannot be written, or something has come to lie at the path meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(within or path.parent) as folder:
        mode = _new_file_mode(folder / "probe")
        temporary = folder / path.name
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            _give_mode(file, mode)
            sync(file)
        sync(temporary)
        temporary.rename(path)
        sync(path.parent)


def _new_file_mode(path: Path) -> int:
    """Make an empty file; the permissions that new files get here, by umask and by folder."""
    with path.open("xb") as stream:
        return stat.S_IMODE(os.fstat(stream.fileno()).st_mode)


def _give_mode(path: Path, mode: int) -> None:
    # safetensors makes files that only their owner can read.
    if path.is_file() and stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk.

    Only what reached it counts: some file systems report a full disk late, and all forget what
    is not there yet when the machine goes down.

    Raises:
        OSError: If the disk is full.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        # Not every file system can do that for a folder.
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON atomically; NaN becomes null."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(k): clean(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [clean(v) for v in value]
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        return value

    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(clean(values), indent=1) + "\n", encoding="utf-8")


@contextmanager
def locked(
    path: Path,
    *,
    busy: DemrError | None = None,
    waiting: Callable[[], None] | None = None,
    required: bool = False,
) -> Iterator[None]:
    """Hold a lock while the block runs; its file is removed afterwards.

    The lock is the system's, not the file: one that a killed process left bars nobody.

    Args:
        path: The lock's file, in a folder that exists.
        busy: Raised where another holds the lock; None waits for it.
        waiting: Called before waiting, if there is anything to wait for.
        required: Whether a file system without locks is an error, not a warning.

    Raises:
        OSError: If the file cannot be made, or not locked where that is required.
        DemrError: ``busy``.
    """
    handle = _lock_file(path, busy, waiting, required=required)
    try:
        yield
    finally:
        # Removed while it is held: whoever waits for it sees that it has gone, and tries again.
        with suppress(OSError):
            # Unless the block has done so itself: the name may be another's by now.
            if os.fstat(handle).st_nlink:
                path.unlink()
        os.close(handle)


def _lock_file(
    path: Path, busy: DemrError | None, waiting: Callable[[], None] | None, *, required: bool
) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                is_free = lock_handle(handle)
            except OSError as error:
                if required or error.errno not in _NO_LOCKS:
                    raise
                warnings.warn(
                    f"{path.parent}: no locks here ({error.strerror}), so that nothing keeps two "
                    "processes from writing there at once",
                    stacklevel=4,
                )
                return handle
            if not is_free and busy is None:
                if waiting is not None:
                    waiting()
                    waiting = None
                is_free = lock_handle(handle, wait=True)
            # Who was just finishing has removed the file that is locked here.
            if is_free and os.fstat(handle).st_nlink:
                return handle
            if busy is not None:
                raise busy
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def lock_handle(handle: int, *, wait: bool = False) -> bool:
    """Lock an open file for this handle; False if another holds it.

    Args:
        handle: Open for writing, as network file systems ask for.
        wait: Until it is free.

    Raises:
        OSError: If the file system has no locks.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True

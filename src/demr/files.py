"""Files that appear whole or not at all; what damaged ones raise."""

import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What NumPy and the modules under it raise at a damaged or foreign array file.
UNREADABLE_ARRAYS = (
    OSError, ValueError, TypeError, EOFError, KeyError, NotImplementedError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Write to a temporary neighbour and move it into place when the block succeeds.

    What was there stays until then, and stays for good if the block or the disk fails. Missing
    folders are created.

    Raises:
        OSError: If the folder cannot be written to, or is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # Only bytes that reached the disk count: some file systems report a full disk late.
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)  # mkstemp makes files that only their owner can read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

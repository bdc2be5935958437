"""Atomic writing of files."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
        sync(temporary)
        temporary.chmod(0o644)  # mkstemp makes files that only their owner can read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary neighbour and move it into place when the block succeeds.

    Raises:
        OSError: If it cannot be written, or something has come to lie at the path meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        temporary.chmod(0o755)  # mkdtemp makes folders that only their owner can enter
        sync(temporary)
        temporary.rename(path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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

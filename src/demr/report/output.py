"""Files that a report leaves behind."""

from pathlib import Path

from demr.errors import InputError
from demr.machine.files import atomic_path


def write_output(path: Path, content: bytes) -> None:
    """Write a file under another name and move it into place, so that no half file is ever seen.

    Raises:
        InputError: If the folder or the file cannot be written; an older file stays as it was.
    """
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise InputError(
            str(path),
            expected="a file that can be written",
            got=error.strerror or str(error),
            remedy="name a writable folder with enough free space",
        ) from error

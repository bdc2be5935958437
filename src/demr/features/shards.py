"""One file of a feature pack: checked when it is opened, read where its values are used."""

import hashlib
import json
import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from demr.errors import FeatureError
from demr.machine.reading import check_regular

TENSOR = "features"


class FeatureShard:
    """Clip features of many videos, one below the other, in a memory-mapped file.

    Args:
        path: A safetensors file with the float16 tensor ``features``, ``(N, width)``.
        width: Numbers a clip.

    Raises:
        FeatureError: If the file is missing, cut short, contradicts its header, or holds another
            type or width.
    """

    def __init__(self, path: Path, width: int) -> None:
        self._path = path
        self._expected = f"a complete shard of features, {width} numbers of float16 a clip"
        try:
            check_regular(path)
            # The library checks the header against the file's size; only where the numbers begin
            # it does not give.
            with safe_open(path, framework="numpy") as checked:
                table = checked.get_slice(TENSOR)
                dtype, shape = table.get_dtype(), tuple(table.get_shape())
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                begin = 8 + length + json.loads(file.read(length))[TENSOR]["data_offsets"][0]
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise self.damaged(f"{type(error).__name__}: {error}") from error
        if dtype != "F16" or len(shape) != 2 or shape[1] != width:
            raise self.damaged(f"{dtype} of shape {shape}")
        self._size = len(self._map)
        # A plain array: each slice of a numpy.memmap costs several times as much.
        flat = np.frombuffer(self._map, np.float16, shape[0] * width, begin)
        self._rows = flat.reshape(shape)

    def rows(self, first: int, count: int) -> NDArray[np.float16]:
        """Features of ``count`` clips, ``(count, width)``: a read-only view, nothing is read yet.

        Raises:
            FeatureError: If the shard has no such rows, or was cut short since it was opened.
        """
        # Touching mapped pages that the file has lost would kill the process.
        if self._map.size() < self._size:
            raise self.damaged(f"{self._map.size()} of {self._size} bytes, after it was opened")
        if first < 0 or count < 1 or first + count > len(self._rows):
            raise self.damaged(
                f"{len(self._rows)} rows, where the index expects {first} to {first + count}"
            )
        return self._rows[first : first + count]

    def damaged(self, got: str) -> FeatureError:
        """The error of what was found in the file, in one line."""
        return FeatureError(
            str(self._path),
            expected=self._expected,
            got=got,
            remedy="extract or import the features again",
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits.

    Raises:
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

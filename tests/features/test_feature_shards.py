"""Shards against the library that wrote them, and against every way of being damaged."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from demr.errors import FeatureError
from demr.features.shards import FeatureShard

TABLE = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float16)


def shard(path: Path, table: NDArray[Any] = TABLE, name: str = "features") -> Path:
    save_file({name: table}, path)
    return path


def with_header(path: Path, length: int | None = None, **change: Any) -> Path:
    """Give the tensor's entry other values, or the header another stated length."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header["features"] |= change
    text = json.dumps(header).encode()
    stated = struct.pack("<Q", len(text) if length is None else length)
    path.write_bytes(stated + text + data[8 + size :])
    return path


@pytest.mark.parametrize("others", [(), ("a", "z")])
def test_rows_are_those_that_the_library_reads(tmp_path: Path, others: tuple[str, ...]) -> None:
    path = tmp_path / "s.safetensors"
    # With neighbours before and behind, the numbers begin somewhere else.
    save_file({"features": TABLE, **dict.fromkeys(others, TABLE[:2] + 1)}, path)
    np.testing.assert_array_equal(load_file(path)["features"], TABLE)
    opened = FeatureShard(path, 3)
    np.testing.assert_array_equal(opened.rows(0, 6), TABLE)
    np.testing.assert_array_equal(opened.rows(4, 2), TABLE[4:])


def test_rows_are_views_that_cannot_be_written(tmp_path: Path) -> None:
    opened = FeatureShard(shard(tmp_path / "s"), 3)
    assert np.shares_memory(opened.rows(0, 4), opened.rows(3, 2))
    with pytest.raises(ValueError, match="read-only"):
        opened.rows(0, 2)[0, 0] = 1


def test_a_replaced_file_stays_readable_and_a_new_opening_sees_the_new_one(tmp_path: Path) -> None:
    path = shard(tmp_path / "s")
    opened = FeatureShard(path, 3)
    shard(tmp_path / "new", TABLE[:2] * 2).replace(path)
    np.testing.assert_array_equal(opened.rows(0, 6), TABLE)
    np.testing.assert_array_equal(FeatureShard(path, 3).rows(0, 2), TABLE[:2] * 2)


def test_rows_outlive_the_shard(tmp_path: Path) -> None:
    rows = FeatureShard(shard(tmp_path / "s"), 3).rows(1, 3)
    (tmp_path / "s").unlink()
    np.testing.assert_array_equal(rows, TABLE[1:4])


def test_a_file_cut_short_after_opening_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = shard(tmp_path / "s", np.zeros((5000, 3), np.float16))
    opened = FeatureShard(path, 3)
    os.truncate(path, 100)
    with pytest.raises(FeatureError, match=r"got 100 of .* bytes, after it was opened"):
        opened.rows(4000, 10)


def refused(path: Path, width: int = 3) -> str:
    with pytest.raises(FeatureError) as caught:
        FeatureShard(path, width)
    text = str(caught.value)
    assert text.startswith(f"{path}: expected a complete shard of features, {width} numbers of")
    assert text.endswith("extract or import the features again")
    return text


def test_every_shortened_file_is_refused(tmp_path: Path) -> None:
    path = shard(tmp_path / "s")
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        refused(path)


@pytest.mark.parametrize(
    "change",
    [
        {"length": 2**63},
        {"length": 10},
        {"length": 0},
        {"shape": [7, 3]},
        {"shape": [-6, 3]},
        {"data_offsets": [0, 42]},
        {"data_offsets": [2, 38]},
        {"data_offsets": [-2, 34]},
        {"data_offsets": None},
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    FeatureShard(with_header(shard(tmp_path / "s")), 3)  # the same bytes again are fine
    refused(with_header(tmp_path / "s", **change))


def test_other_types_widths_and_names_are_refused(tmp_path: Path) -> None:
    assert "got F32 of shape (6, 3)" in refused(shard(tmp_path / "a", TABLE.astype(np.float32)))
    assert "got I16 of shape (6, 3)" in refused(shard(tmp_path / "b", TABLE.view(np.int16)))
    assert "got F16 of shape (6, 3)" in refused(shard(tmp_path / "c"), width=4)
    assert "got F16 of shape (18,)" in refused(shard(tmp_path / "d", TABLE.ravel()))
    assert "features" in refused(shard(tmp_path / "e", name="other"))
    (tmp_path / "f").write_bytes(b"not at all")
    refused(tmp_path / "f")
    assert "FileNotFoundError" in refused(tmp_path / "missing")
    refused(tmp_path)


@pytest.mark.parametrize(("first", "count"), [(0, 7), (6, 1), (-1, 2), (2, 0), (3, -1)])
def test_rows_that_are_not_there_are_refused(tmp_path: Path, first: int, count: int) -> None:
    opened = FeatureShard(shard(tmp_path / "s"), 3)
    with pytest.raises(FeatureError, match=f"got 6 rows, where the index expects {first} to"):
        opened.rows(first, count)

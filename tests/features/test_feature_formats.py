"""Published forms of features against what was put into them."""

import contextlib
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from demr.annotations.annotations import read_annotations
from demr.errors import FeatureError
from demr.features.imports import FeatureImport, import_features
from demr.features.pack import FeaturePack
from demr.features.prepare import as_float32
from demr.features.sources import open_source

Table = NDArray[np.float32]
DURATIONS = {"a": 10.0, "b": 7.0, "c": 4.5}


def tables(width: int, seed: int, *, extra: int = 0) -> dict[str, Table]:
    """Random features of the three videos in clips of 2 s, and of one that nobody asks about."""
    rng = np.random.default_rng(seed)
    lengths = {"a": 5 + extra, "b": 4, "c": 3, "unasked": 2}
    return {
        vid: rng.standard_normal((rows, width)).astype(np.float32) for vid, rows in lengths.items()
    }


def npz_folder(path: Path, videos: dict[str, Table], key: str = "features") -> Path:
    path.mkdir()
    for vid, table in videos.items():
        arrays: dict[str, Any] = {key: table}
        np.savez(path / f"{vid}.npz", **arrays)
    return path


def npy_folder(path: Path, videos: dict[str, Table]) -> Path:
    path.mkdir()
    for vid, table in videos.items():
        np.save(path / f"{vid}.npy", table)
    return path


def hdf5(path: Path, videos: dict[str, Table], *, nested: bool) -> Path:
    path = path.with_suffix(".h5")
    with h5py.File(path, "w") as file:
        for vid, table in videos.items():
            file[f"{vid}/c3d_features" if nested else vid] = table
    return path


def shards(path: Path, videos: dict[str, Table]) -> Path:
    path.mkdir()
    parts = [list(videos.items())[:2], list(videos.items())[2:]]
    for number, part in enumerate(parts):
        stacked = np.concatenate([table for _, table in part])
        scale = (np.abs(stacked).max(axis=0) / 127).astype(np.float32)
        np.savez(
            path / f"shard_{number}.npz",
            q=np.rint(stacked / scale).astype(np.int8),
            scale=scale,
            mean=np.zeros_like(scale),
            start=np.cumsum([0, *(len(table) for _, table in part)]),
            vid=np.array([vid for vid, _ in part]),
        )
    return path


def bring_in(out: Path, **streams: Path) -> FeatureImport:
    return import_features(
        streams,
        DURATIONS,
        out,
        name="some",
        version="1",
        clip_s=2.0,
        text_dim=4,
        normalization="l2",
    )


@pytest.mark.parametrize("form", ["npz", "single", "npy", "h5", "nested h5"])
def test_every_form_arrives_as_it_was(tmp_path: Path, form: str) -> None:
    videos, place = tables(6, 0), tmp_path / "source"
    source = {
        "npz": lambda: npz_folder(place, videos),
        "single": lambda: npz_folder(place, videos, key="arr_0"),
        "npy": lambda: npy_folder(place, videos),
        "h5": lambda: hdf5(place, videos, nested=False),
        "nested h5": lambda: hdf5(place, videos, nested=True),
    }[form]()
    done = bring_in(tmp_path / "pack", clip=source)
    assert (done.videos, done.clips, done.cut, done.unused) == (3, 12, 0, 1)
    pack = FeaturePack(tmp_path / "pack")
    assert set(pack.vids) == set(DURATIONS)
    assert pack.identity.streams == (("clip", 6),)
    assert pack.identity.spec == "some@1"
    for vid, duration in DURATIONS.items():
        assert pack[vid].duration_s == duration
        np.testing.assert_array_equal(pack[vid].features, videos[vid].astype(np.float16))


def test_shards_of_whole_numbers_are_scaled_back(tmp_path: Path) -> None:
    videos = tables(6, 0)
    done = bring_in(tmp_path / "pack", clip=shards(tmp_path / "source", videos))
    assert done.clips == 12
    pack = FeaturePack(tmp_path / "pack")
    for vid in DURATIONS:
        assert np.abs(pack[vid].features - videos[vid]).max() < 0.02


def test_shards_may_come_second_and_name_videos_in_bytes(tmp_path: Path) -> None:
    videos = tables(6, 0)
    second = shards(tmp_path / "second", videos)
    for file in second.iterdir():
        with np.load(file) as arrays:
            again = {name: arrays[name] for name in arrays.files}
        again["vid"] = again["vid"].astype(np.bytes_)
        np.savez(file, **again)
    done = bring_in(tmp_path / "pack", a=npz_folder(tmp_path / "first", tables(2, 1)), b=second)
    assert (done.videos, done.identity.video_dim) == (3, 8)


def test_a_shard_without_its_last_start_is_refused(tmp_path: Path) -> None:
    folder = shards(tmp_path / "s", tables(6, 0))
    with np.load(folder / "shard_0.npz") as arrays:
        again = {name: arrays[name] for name in arrays.files}
    again["start"] = again["start"][:-1]
    np.savez(folder / "shard_0.npz", **again)
    assert "shard_0.npz: expected a readable file" in refused(tmp_path, clip=folder)


def test_a_video_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = shards(tmp_path / "s", tables(6, 0))
    with np.load(folder / "shard_1.npz") as arrays:
        again = {name: arrays[name] for name in arrays.files}
    again["vid"] = np.array(["a", *again["vid"][1:]])
    np.savez(folder / "shard_1.npz", **again)
    line = refused(tmp_path, clip=folder)
    assert "shard_1.npz: expected every video once in all shards, got a again, first in" in line
    assert "shard_0.npz; video c: expected features in every stream, got none in clip" in line


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    videos = tables(6, 0)
    folder = npy_folder(tmp_path / "c", videos)
    for file in list(folder.iterdir()):
        file.rename(file.with_suffix(".npz"))
    assert bring_in(tmp_path / "pack", clip=folder).clips == 12
    np.save(folder / "a.npy", videos["a"])
    with pytest.raises(FeatureError, match=r"got 1 videos both as \.npz and as \.npy"):
        open_source(folder)


def test_every_flipped_bit_is_a_clear_line_or_harmless(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    for vid, table in tables(3, 0).items():
        np.savez_compressed(folder / f"{vid}.npz", features=table)
    whole = (folder / "b.npz").read_bytes()
    rng = np.random.default_rng(0)
    for number in range(60):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        (folder / "b.npz").write_bytes(damaged)
        with contextlib.suppress(FeatureError):
            bring_in(tmp_path / f"pack{number}", clip=folder)


def test_streams_a_row_apart_are_cut_and_counted(tmp_path: Path) -> None:
    long, short = tables(3, 0, extra=1), tables(2, 1)
    done = bring_in(
        tmp_path / "pack",
        slowfast=npz_folder(tmp_path / "slowfast", long),
        clip=npz_folder(tmp_path / "clip", short),
    )
    assert done.cut == 1
    assert "1 videos with streams a row apart" in done.summary()
    assert "1 videos without a query left out" in done.summary()
    assert "some@1 (slowfast 3 + clip 2)" in done.summary()
    got = FeaturePack(tmp_path / "pack")["a"].features
    want = np.concatenate([long["a"][:5], short["a"]], axis=1).astype(np.float16)
    np.testing.assert_array_equal(got, want)


def refused(tmp_path: Path, **streams: Path) -> str:
    with pytest.raises(FeatureError) as caught:
        bring_in(tmp_path / "pack", **streams)
    assert not (tmp_path / "pack").exists()
    assert not list(tmp_path.glob(".pack*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_streams_far_apart_are_refused(tmp_path: Path) -> None:
    line = refused(
        tmp_path,
        slowfast=npz_folder(tmp_path / "s", tables(3, 0, extra=3)),
        clip=npz_folder(tmp_path / "c", tables(2, 1)),
    )
    assert "features of a: expected streams within 2 rows of each other" in line
    assert "8 of slowfast, 5 of clip" in line


def test_rows_that_do_not_fit_the_duration_are_refused(tmp_path: Path) -> None:
    line = refused(tmp_path, clip=npz_folder(tmp_path / "c", tables(2, 1, extra=9)))
    assert "expected 5 rows for 10 s in clips of 2 s, got 14 rows, which last 28 s" in line


def test_a_missing_video_is_named(tmp_path: Path) -> None:
    videos = tables(3, 0)
    del videos["b"]
    line = refused(tmp_path, clip=npz_folder(tmp_path / "c", videos))
    assert "video b: expected features in every stream, got none in clip" in line
    assert "or leave out with --skip" in line


def test_a_row_of_nan_is_named(tmp_path: Path) -> None:
    videos = tables(3, 0)
    videos["b"][2, 1] = np.nan
    assert "features of b: expected finite numbers, got NaN or infinity in row 2" in refused(
        tmp_path, clip=npz_folder(tmp_path / "c", videos)
    )


def test_another_width_is_named(tmp_path: Path) -> None:
    videos = tables(3, 0) | {"c": tables(4, 0)["c"]}
    assert "stream clip of video c: expected 3 columns, as most videos have, got 4" in refused(
        tmp_path, clip=npz_folder(tmp_path / "c", videos)
    )


class Bomb:
    def __reduce__(self) -> Any:
        raise AssertionError("was unpickled")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a readable file of features"),
        (b"PK\x03\x04 cut off", "a readable file of features"),
        (b"no archive at all", "a readable file of features"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    folder = npz_folder(tmp_path / "c", tables(3, 0))
    (folder / "b.npz").write_bytes(content)
    line = refused(tmp_path, clip=folder)
    assert "b.npz" in line
    assert message in line


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    folder = npz_folder(tmp_path / "c", tables(3, 0))
    np.savez(folder / "b.npz", features=np.array([[None, {}]], dtype=object))
    assert "b.npz: expected a readable file of features" in refused(tmp_path, clip=folder)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((3, 2)), "y": np.zeros((3, 2))}, "got x, y"),
        ({"features": np.zeros(3)}, "got float64 of shape (3,)"),
        ({"features": np.zeros((0, 3))}, "of shape (0, 3)"),
        ({"features": np.array([["a", "b"]])}, "got <U1 of shape (1, 2)"),
    ],
)
def test_what_is_no_single_table_is_refused(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    folder = npz_folder(tmp_path / "c", tables(3, 0))
    np.savez(folder / "b.npz", **arrays)
    line = refused(tmp_path, clip=folder)
    assert "b.npz" in line
    assert message in line


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    empty, broken, text = tmp_path / "empty", tmp_path / "x.h5", tmp_path / "x.txt"
    empty.mkdir()
    broken.write_bytes(b"\x89HDF")
    text.write_text("x")
    for path, message in (
        (tmp_path / "none", "got nothing"),
        (empty, "a folder without .npz or .npy files"),
        (broken, "a readable file of features"),
        (text, "got a file"),
    ):
        with pytest.raises(FeatureError, match=message):
            open_source(path)


def test_the_command_line(tmp_path: Path, cli: Any) -> None:
    annotations = tmp_path / "a.jsonl"
    rows = [
        {"qid": vid, "query": "x", "vid": vid, "duration": d, "relevant_windows": []}
        for vid, d in DURATIONS.items()
    ]
    annotations.write_text("\n".join(map(json.dumps, rows)))
    source = npz_folder(tmp_path / "c", tables(3, 0))

    def run(*more: object) -> Any:
        return cli(
            "import", "features", "--stream", f"clip={source}", "--annotations", annotations,
            "--out", tmp_path / "pack", "--clip-length", 2, "--encoder", "clip@7", *more,
        )  # fmt: skip

    done = run("--raw", "--text-dim", 9)
    assert done.code == 0
    assert "3 videos, 12 clips of 2 s, clip@7 (clip 3)" in done.out
    identity = FeaturePack(tmp_path / "pack").identity
    assert (identity.normalization, identity.text_dim) == ("none", 9)
    longer = tmp_path / "longer.jsonl"
    longer.write_text(json.dumps(rows[0] | {"duration": 19.0}))
    clash = run("--annotations", longer)
    assert clash.code == 2
    assert "expected video a to last 10 s, as said before, got 19 s" in clash.err
    again = run()
    assert again.code == 2
    assert "expected a new folder for the feature pack" in again.err
    for option, value in (
        ("--stream", "clip"),
        ("--stream", f"clip={source}"),
        ("--clip-length", 0),
        ("--clip-length", "nan"),
        ("--encoder", "clip"),
        ("--text-dim", 0),
    ):
        bad = run(option, value)
        assert bad.code == 2
        assert option in bad.err
        assert bad.err.count("\n") == 1


@pytest.mark.data
def test_real_clip_features(data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / "features" / "charades_sta_test_clip_vitb32_1fps"
    queries = read_annotations(data_dir / "annotations" / "charades_sta" / "test.jsonl")
    durations = {a.vid: a.duration_s for a in queries}
    done = import_features(
        {"clip": source},
        durations,
        tmp_path / "pack",
        name="clip",
        version="vitb32",
        clip_s=1.0,
        text_dim=512,
        normalization="l2",
    )
    assert (done.videos, done.clips) == (1334, 40049)
    pack = FeaturePack(tmp_path / "pack")
    with np.load(source / "shard_03.npz") as arrays:
        table = arrays["q"].astype("float32") * arrays["scale"] + arrays["mean"]
        low, high = arrays["start"][7:9]
        got, want = as_float32(pack[str(arrays["vid"][7])].features), table[low:high]
    cosine = (got * want).sum(axis=1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
    assert cosine.min() >= 0.9999


@pytest.mark.data
def test_the_official_layout(data_dir: Path, tmp_path: Path) -> None:
    folder = data_dir / "samples" / "qvh_official_format"
    streams = {name: folder / f"{name}_features" for name in ("slowfast", "clip")}
    done = import_features(
        streams,
        {"NUsG9BgSes0_210.0_360.0": 150.0},
        tmp_path / "pack",
        name="clip+slowfast",
        version="1",
        clip_s=2.0,
        text_dim=512,
        normalization="l2",
    )
    assert (done.videos, done.clips, done.cut) == (1, 75, 1)
    assert done.identity.streams == (("slowfast", 2304), ("clip", 512))

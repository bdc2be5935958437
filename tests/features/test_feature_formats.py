"""Published forms of features against what was put into them."""

import contextlib
import json
import os
import zipfile
import zlib
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
    line = refused(tmp_path, clip=folder)
    assert "shard_0.npz: expected a readable file" in line
    # Two videos lie in this shard.
    assert line.startswith("1 file and 2 of 3 videos: ")


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


# What leads out of a file, or is larger than it looks


def hostile(file: h5py.File, kind: str, elsewhere: Path) -> None:
    """Puts video b into an HDF5 file so that its numbers come from another."""
    layout = h5py.VirtualLayout((4, 6), "f4")
    layout[:] = h5py.VirtualSource(str(elsewhere), "x", (4, 6))
    if kind == "storage":
        file.create_dataset("b", (4, 6), "f4", external=[(str(elsewhere), 0, 96)])
    elif kind == "storage in a group":
        file.create_dataset("b/features", (4, 6), "f4", external=[(str(elsewhere), 0, 96)])
    elif kind == "link":
        file["b"] = h5py.ExternalLink(str(elsewhere), "/x")
    elif kind == "link in a group":
        file.create_group("b")["features"] = h5py.ExternalLink(str(elsewhere), "/x")
    elif kind == "link behind a link":
        file.create_group("q")["e"] = h5py.ExternalLink(str(elsewhere), "/")
        file["b"] = h5py.SoftLink("./q/e/x")
    else:
        file.create_virtual_dataset("b", layout)


@pytest.mark.parametrize(
    "kind",
    [
        "storage",
        "storage in a group",
        "link",
        "link in a group",
        "link behind a link",
        "virtual",
    ],
)
@pytest.mark.parametrize("is_pipe", [False, True])
def test_hdf5_never_leads_to_other_files(tmp_path: Path, kind: str, is_pipe: bool) -> None:
    elsewhere = tmp_path / "other.h5"
    if is_pipe:
        os.mkfifo(elsewhere)  # opening it would wait for ever
    else:
        with h5py.File(elsewhere, "w") as file:
            file["x"] = np.full((4, 6), 7, np.float32)
    source = hdf5(tmp_path / "c", {v: t for v, t in tables(6, 0).items() if v != "b"}, nested=False)
    with h5py.File(source, "a") as file:
        hostile(file, kind, elsewhere)
    line = refused(tmp_path, clip=source)
    assert "expected features that lie in this file" in line
    assert ": b: " in line or "video b in " in line


def test_links_within_a_file_are_followed(tmp_path: Path) -> None:
    source = hdf5(tmp_path / "c", tables(6, 0), nested=False)
    with h5py.File(source, "a") as file:
        file.move("b", "z/y")
        file["b"] = h5py.SoftLink("z/y")
        file.create_dataset("c2", data=file["c"], chunks=(2, 3), compression="gzip", shuffle=True)
        del file["c"]
        file["c"] = file["c2"]
    assert bring_in(tmp_path / "pack", clip=source).clips == 12


def test_a_circle_of_links(tmp_path: Path) -> None:
    source = hdf5(tmp_path / "c", tables(6, 0), nested=False)
    with h5py.File(source, "a") as file:
        del file["b"]
        file["b"], file["d"] = h5py.SoftLink("/d"), h5py.SoftLink("/b")
    assert "a circle of links" in refused(tmp_path, clip=source)


@pytest.mark.parametrize("path", ["/nowhere", "../a", "q/nowhere"])
def test_a_link_to_nothing_leads_to_no_other_file(tmp_path: Path, path: str) -> None:
    source = hdf5(tmp_path / "c", tables(6, 0), nested=False)
    with h5py.File(source, "a") as file:
        del file["b"]
        file.create_group("q")
        file["b"] = h5py.SoftLink(path)
    assert "got ValueError: nothing under b" in refused(tmp_path, clip=source)


def test_damaged_hdf5_is_a_clear_line_or_harmless(tmp_path: Path) -> None:
    source = hdf5(tmp_path / "c", tables(6, 0), nested=True)
    whole = source.read_bytes()
    used = [place for place, byte in enumerate(whole) if byte]
    rng = np.random.default_rng(0)
    for number in range(60):
        damaged = bytearray(whole)
        damaged[used[rng.integers(len(used))]] ^= 1 << rng.integers(8)
        source.write_bytes(damaged)
        with contextlib.suppress(FeatureError):
            bring_in(tmp_path / f"pack{number}", clip=source)


def npy_header(shape: str, kind: str = "<f4") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ("(4, 1000000000000)", "<f4"),
        ("(1000000000000, 6)", "<f4"),
        (f"(4, {1 << 70})", "<f4"),
        ("(-4, -6)", "<f4"),
        ("(4, 6)", "|V2000000000"),
        ("-" * 100 + "1", "<f4"),
    ],
)
@pytest.mark.parametrize("form", ["npy", "npz"])
def test_a_header_that_promises_what_is_not_there(
    tmp_path: Path, shape: str, kind: str, form: str
) -> None:
    folder = npz_folder(tmp_path / "c", tables(6, 0))
    (folder / "b.npz").unlink()
    data = npy_header(shape, kind) + bytes(96)
    if form == "npy":
        (folder / "b.npy").write_bytes(data)
    else:
        with zipfile.ZipFile(folder / "b.npz", "w") as archive:
            archive.writestr("features.npy", data)
    assert f"b.{form}: expected a readable file of features" in refused(tmp_path, clip=folder)


@pytest.mark.parametrize("form", ["npz", "h5"])
def test_a_table_larger_than_memory_is_refused_unread(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "npz":
        source = npz_folder(tmp_path / "c", tables(1000, 0))
    else:
        source = hdf5(tmp_path / "c", tables(1000, 0), nested=False)
    monkeypatch.setattr("demr.machine.arrays.memory_left", lambda: 4 * 18_000)
    line = refused(tmp_path, clip=source)
    assert "20 kB of numbers, where 18 kB can be read" in line
    assert "video a" in line or "a.npz" in line or ": a" in line


def test_more_stored_than_a_table_holds(tmp_path: Path) -> None:
    source = hdf5(tmp_path / "c", tables(6, 0), nested=False)
    with h5py.File(source, "a") as file:
        del file["b"]
        made = file.create_dataset("b", (4, 6), "f4", chunks=(1, 1), compression="gzip")
        for piece in np.ndindex(4, 6):
            # Older HDF5 writes no more than 2^16 bytes for so small a piece.
            made.id.write_direct_chunk(piece, bytes(60_000))
    assert "bytes stored for 96 bytes of numbers" in refused(tmp_path, clip=source)


def test_a_piece_of_hdf5_that_unpacks_to_more_than_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = hdf5(tmp_path / "c", {v: t for v, t in tables(6, 0).items() if v != "b"}, nested=False)
    with h5py.File(source, "a") as file:
        made = file.create_dataset("b", (4, 6), "f4", chunks=(4, 6), compression="gzip")
        made[:] = np.random.default_rng(0).standard_normal((4, 6))
    # Any piece may be too large now, and is looked at.
    monkeypatch.setattr("demr.machine.arrays.memory_left", lambda: 4 * 20_000)
    bring_in(tmp_path / "whole", clip=source)
    with h5py.File(source, "a") as file:
        file["b"].id.write_direct_chunk((0, 0), zlib.compress(bytes(40 << 20)))
    line = refused(tmp_path, clip=source)
    assert "a piece of 40777 bytes that unpacks to 1048768 or more" in line


def test_a_piece_of_hdf5_that_is_compressed_twice(tmp_path: Path) -> None:
    source = hdf5(tmp_path / "c", tables(6, 0), nested=False)
    with h5py.File(source, "a") as file:
        del file["b"]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((4, 6))
        plan.set_deflate(9)
        plan.set_deflate(9)
        space = h5py.h5s.create_simple((4, 6))
        made = h5py.h5d.create(file.id, b"b", h5py.h5t.IEEE_F32LE, space, plan)
        bomb = zlib.compress(zlib.compress(bytes(1 << 20)))
        made.write_direct_chunk((0, 0), bomb)
    assert "compressed twice" in refused(tmp_path, clip=source)


@pytest.mark.parametrize("what", ["pipe", "/dev/zero", "/dev/null"])
@pytest.mark.parametrize("form", ["npz", "h5"])
def test_what_is_no_regular_file(tmp_path: Path, what: str, form: str) -> None:
    source = tmp_path / "c.h5" if form == "h5" else npz_folder(tmp_path / "c", tables(3, 0))
    place = source if form == "h5" else source / "b.npz"
    place.unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(what)
    if form == "npz":
        assert "no regular file" in refused(tmp_path, clip=source)
    else:
        with pytest.raises(FeatureError, match="no regular file"):
            open_source(source)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("start", [-1, 5, 9], "rows -1 to 5 of 9"),
        ("start", [0, 9, 5], "rows 9 to 5"),
        ("start", [0, 5, 99], "rows 5 to 99 of 9"),
        ("start", [0, 0, 9], "rows 0 to 0"),
        ("start", [0.0, 5.0, 9.0], "float64"),
        ("start", [2**64 - 5, 5, 9], "shard_0.npz"),
        ("scale", [[[1.0] * 6]] * 3, "6 dimensions, scaled by"),
        ("mean", [1.0] * 3, "6 dimensions, scaled by"),
        ("q", [1, 2, 3], "a table of numbers"),
    ],
)
def test_shards_that_contradict_themselves(
    tmp_path: Path, key: str, value: list[Any], message: str
) -> None:
    folder = shards(tmp_path / "s", tables(6, 0))
    with np.load(folder / "shard_0.npz") as arrays:
        again = {name: arrays[name] for name in arrays.files}
    np.savez(folder / "shard_0.npz", **{**again, key: np.array(value)})
    line = refused(tmp_path, clip=folder)
    assert "shard_0.npz" in line
    assert message in line


# What does not fit: all of it is named, or left out


def misfits(tmp_path: Path) -> tuple[Path, dict[str, float]]:
    """A folder in which two of five videos fit."""
    videos = tables(6, 0) | {"d": tables(6, 1)["a"], "long": tables(6, 1, extra=9)["a"]}
    videos["a"] = videos["a"][:, :3]
    folder = npz_folder(tmp_path / "c", videos)
    (folder / "b.npz").write_bytes(b"PK damaged")
    return folder, DURATIONS | {"d": 10.0, "long": 10.0}


def test_every_misfit_is_named_and_nothing_stored(tmp_path: Path) -> None:
    folder, durations = misfits(tmp_path)
    with pytest.raises(FeatureError) as caught:
        import_features(
            {"clip": folder}, durations, tmp_path / "pack", name="some", version="1", clip_s=2.0,
            text_dim=4, normalization="l2",
        )  # fmt: skip
    line = str(caught.value)
    assert line.startswith("3 of 5 videos: expected features that fit")
    assert "b.npz" in line
    assert "or leave out with --skip" in line
    assert len(line) < 700
    assert not (tmp_path / "pack").exists()


def test_misfits_are_left_out_and_listed(tmp_path: Path) -> None:
    folder, durations = misfits(tmp_path)
    done = import_features(
        {"clip": folder}, durations, tmp_path / "pack", name="some", version="1", clip_s=2.0,
        text_dim=4, normalization="l2", skip=True,
    )  # fmt: skip
    assert (done.videos, done.identity.streams) == (2, (("clip", 6),))
    assert set(FeaturePack(tmp_path / "pack").vids) == {"c", "d"}
    b, a, long = done.misfits
    assert "b.npz: expected a readable file of features, got BadZipFile" in b
    assert a == "stream clip of video a: expected 6 columns, as most videos have, got 3"
    assert long == (
        "features of long: expected 5 rows for 10 s in clips of 2 s, got 14 rows, which last 28 s"
    )
    assert "3 that do not fit left out" in done.summary()


def test_nothing_but_misfits(tmp_path: Path) -> None:
    folder, _ = misfits(tmp_path)
    with pytest.raises(FeatureError, match="2 of 2 videos"):
        import_features(
            {"clip": folder}, {"b": 7.0, "long": 10.0}, tmp_path / "pack", name="some",
            version="1", clip_s=2.0, text_dim=4, normalization="l2", skip=True,
        )  # fmt: skip
    assert not (tmp_path / "pack").exists()

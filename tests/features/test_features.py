import itertools
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from demr.encoders.base import EncoderIdentity, QueryFeatures, VideoFeatures
from demr.errors import FeatureError
from demr.features import pack as features
from demr.features.pack import FeaturePack, FeaturePackWriter
from demr.features.prepare import (
    align_streams,
    as_float32,
    check_storable,
    clip_spans,
    feature_statistics,
    prepare_query,
    prepare_video,
)
from demr.features.shards import FeatureShard

IDENTITY = EncoderIdentity("fake", "1", 2.0, (("colour", 2), ("motion", 3)), 4, "l2")
RAW = replace(IDENTITY, normalization="none")


def video(
    vid: str = "v", duration_s: float = 7.0, rows: int | None = None, seed: int = 0
) -> VideoFeatures:
    count = len(clip_spans(duration_s, 2.0)) if rows is None else rows
    table = np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)
    return VideoFeatures(vid, duration_s, 2.0, table)


def query(table: npt.ArrayLike) -> QueryFeatures:
    array = np.asarray(table, np.float32)
    return QueryFeatures("a dog", array, ("a", "dog"), np.arange(len(array)))


def test_each_stream_is_normalised_alone() -> None:
    table = np.array([[3, 4, 0, 0, 2], [0, 0, 1, 2, 2]], np.float32)
    prepared, _ = prepare_video(VideoFeatures("v", 4.0, 2.0, table), IDENTITY)
    expected = [[0.6, 0.8, 0, 0, 1, 0, 0.5], [0, 0, 1 / 3, 2 / 3, 2 / 3, 0.5, 1]]
    np.testing.assert_allclose(prepared, expected, rtol=1e-6)
    prepared, _ = prepare_video(VideoFeatures("v", 4.0, 2.0, table), RAW)
    np.testing.assert_array_equal(prepared[:, :5], table)


def test_the_last_clip_ends_with_the_video() -> None:
    np.testing.assert_allclose(clip_spans(7.0, 2.0), [[0, 2], [2, 4], [4, 6], [6, 7]])
    prepared, fractions = prepare_video(video(), IDENTITY)
    assert prepared.shape == (4, 7)
    np.testing.assert_allclose(fractions * 7, clip_spans(7.0, 2.0), rtol=1e-6)
    np.testing.assert_array_equal(prepared[:, 5:], fractions)
    assert prepare_video(video(duration_s=0.3), IDENTITY)[1].tolist() == [[0, 1]]


@pytest.mark.parametrize(("rows", "kept"), [(2, 2), (3, 3), (4, 4), (5, 4), (6, 4)])
def test_one_or_two_rows_off_are_accepted(rows: int, kept: int) -> None:
    given = video(rows=rows)
    prepared, fractions = prepare_video(given, RAW)
    np.testing.assert_array_equal(prepared[:, :5], given.features[:kept])
    # The rows that are there keep their times: missing ones are missing at the end.
    np.testing.assert_allclose(fractions * 7, clip_spans(7.0, 2.0)[:kept], rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 7])
def test_three_rows_off_are_refused(rows: int) -> None:
    with pytest.raises(FeatureError, match=f"of v: expected 4 rows for 7 s .* got {rows} rows"):
        prepare_video(video(rows=rows), IDENTITY)


@pytest.mark.parametrize("shape", [(4, 4), (4, 6), (20,), (0, 5), (4, 5, 1)])
def test_another_width_is_refused(shape: tuple[int, ...]) -> None:
    given = VideoFeatures("v", 7.0, 2.0, np.zeros(shape, np.float32))
    with pytest.raises(FeatureError, match=r"of v: expected a table of clips by 5 \(fake@1\)"):
        prepare_video(given, IDENTITY)


def test_the_row_that_is_not_finite_is_named() -> None:
    for value in (np.nan, np.inf):
        given = video()
        given.features[2, 4] = value
        with pytest.raises(FeatureError, match=r"of v: .*NaN or infinity in row 2"):
            prepare_video(given, IDENTITY)
    given = video(rows=5)
    given.features[4] = np.nan
    prepare_video(given, IDENTITY)  # past the end of the video, where nobody reads


@pytest.mark.parametrize(
    "change", [{"clip_s": 1.0}, {"duration_s": 0.0}, {"duration_s": float("nan")}]
)
def test_other_clips_and_impossible_durations_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(FeatureError, match="clips of 2 s"):
        prepare_video(replace(video(), **change), IDENTITY)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [7e4, -7e4, 3e38])
def test_what_half_precision_lacks_is_one_error_and_no_warning(value: float) -> None:
    given = video()
    given.features[1, 2] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FeatureError, match="within 65504, the range of float16"):
            check_storable(given, IDENTITY)


def test_the_input_is_not_changed() -> None:
    given = video()
    before = given.features.copy()
    prepared, _ = prepare_video(given, RAW)
    prepared += 1
    np.testing.assert_array_equal(given.features, before)


def test_queries() -> None:
    table = [[3, 0, 4, 0], [0, 0, 0, 0]]
    expected = [[0.6, 0.0, 0.8, 0.0], [0.0] * 4]
    np.testing.assert_allclose(prepare_query(query(table), IDENTITY), expected)
    np.testing.assert_array_equal(prepare_query(query(table), RAW), table)
    for wrong in ([[1, 2, 3]], np.zeros((0, 4)), [1, 2, 3, 4]):
        with pytest.raises(FeatureError, match="query 'a dog': expected tokens by 4"):
            prepare_query(query(wrong), IDENTITY)
    with pytest.raises(FeatureError, match="query 'a dog': expected finite numbers"):
        prepare_query(query([[1, np.nan, 0, 0]]), IDENTITY)


def test_streams_are_cut_to_the_shortest() -> None:
    a, b = np.arange(8, dtype=np.float16).reshape(4, 2), np.arange(5, dtype=np.float64)[:, None]
    np.testing.assert_array_equal(
        align_streams({"a": a, "b": b}, "v"), np.concatenate([a, b[:4]], axis=1)
    )
    assert align_streams({"a": a[:2], "b": b[:4]}, "v").shape == (2, 3)
    assert align_streams({"a": a}, "v").dtype == np.float32
    with pytest.raises(FeatureError, match=r"features of v: .* got 2 of a, 5 of b"):
        align_streams({"a": a[:2], "b": b}, "v")


def write(path: Path, *videos: VideoFeatures, identity: EncoderIdentity = IDENTITY) -> Path:
    with FeaturePackWriter(path, identity) as writer:
        for one in videos:
            writer.add(one)
    return path


def test_a_pack_gives_back_what_it_got_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_SHARD_ROWS", 5)
    videos = [video(f"v{i}", 3.0 + 2 * i, seed=i) for i in range(5)]
    path = write(tmp_path / "deep" / "pack", *videos)
    assert len(list(path.glob("video-*.safetensors"))) == 3
    pack = FeaturePack(path)
    assert pack.identity == IDENTITY
    assert pack.vids == ("v0", "v1", "v2", "v3", "v4")
    assert len(pack) == 5
    assert "v3" in pack
    assert "v5" not in pack
    for found, given in zip(pack, videos, strict=True):
        assert (found.vid, found.duration_s, found.clip_s) == (given.vid, given.duration_s, 2.0)
        assert found.features.dtype == np.float16
        np.testing.assert_array_equal(found.features, given.features.astype(np.float16))
    with pytest.raises(FeatureError, match="video v5: expected one of the 5 videos"):
        pack["v5"]


def test_shards_are_opened_once_and_only_when_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_SHARD_ROWS", 4)
    path = write(tmp_path / "pack", video("a"), video("b"))
    opened: list[str] = []

    class Counted(FeatureShard):
        def __init__(self, path: Path, width: int) -> None:
            opened.append(path.name)
            super().__init__(path, width)

    monkeypatch.setattr(features, "FeatureShard", Counted)
    pack = FeaturePack(path)
    assert opened == []
    for _ in range(3):
        pack["b"]
    assert opened == ["video-00001.safetensors"]


def test_stored_and_fresh_features_prepare_alike(tmp_path: Path) -> None:
    given = video(seed=3)
    pack = FeaturePack(write(tmp_path / "pack", given))
    stored, stored_fractions = prepare_video(pack["v"], pack.identity)
    fresh, fresh_fractions = prepare_video(given, IDENTITY)
    np.testing.assert_allclose(stored, fresh, atol=1e-3)
    np.testing.assert_array_equal(stored_fractions, fresh_fractions)


def prepared_as_before(
    table: npt.NDArray[Any], identity: EncoderIdentity, duration_s: float
) -> torch.Tensor:
    """What :func:`prepare_video` was before packs gave views: NumPy throughout, copies of all."""
    single = table.astype(np.float32)
    if identity.normalization == "l2":
        offsets = np.cumsum([0, *(dim for _, dim in identity.streams)])
        parts = [single[:, low:high] for low, high in itertools.pairwise(offsets)]
        norms = [np.maximum(np.linalg.norm(part, axis=-1, keepdims=True), 1e-6) for part in parts]
        single = np.concatenate([p / n for p, n in zip(parts, norms, strict=True)], axis=1)
    fractions = torch.from_numpy(clip_spans(duration_s, 2.0, len(table)) / duration_s).float()
    return torch.cat([torch.from_numpy(single), fractions], dim=1)


@pytest.mark.parametrize("normalization", ["l2", "none"])
@pytest.mark.parametrize("widths", [(2304, 512), (5,), (1, 130, 17)])
def test_views_prepare_to_the_same_bits_as_copies(
    tmp_path: Path, widths: tuple[int, ...], normalization: str
) -> None:
    streams = tuple((f"s{number}", width) for number, width in enumerate(widths))
    identity = replace(IDENTITY, streams=streams, normalization=normalization)  # type: ignore[arg-type]
    rng = np.random.default_rng(len(widths))
    # Every magnitude of half precision: subnormal numbers, the largest, zeros of both signs.
    table = rng.normal(size=(75, sum(widths))) * 10.0 ** rng.integers(-8, 5, (75, sum(widths)))
    half = np.clip(table, -65504, 65504).astype(np.float16)
    half[3], half[4, ::2] = 0, -0.0
    assert (np.abs(half[half != 0]) < np.finfo(np.float16).tiny).any()
    pack = FeaturePack(
        write(tmp_path / "pack", VideoFeatures("v", 149.5, 2.0, half), identity=identity)
    )
    for given in (pack["v"].features, half, half.astype(np.float32), half.astype(np.float64)):
        one = VideoFeatures("v", 149.5, 2.0, given)  # type: ignore[arg-type]
        found, fractions = prepare_video(one, identity)
        wanted = prepared_as_before(half, identity, 149.5)
        # As whole numbers, so that -0 is not 0.
        assert torch.equal(found.view(torch.int32), wanted.view(torch.int32))
        assert torch.equal(fractions, wanted[:, -2:])
    mean, deviation = feature_statistics([pack["v"]])
    single = VideoFeatures("v", 149.5, 2.0, half.astype(np.float32))
    for got, before in zip((mean, deviation), feature_statistics([single]), strict=True):
        np.testing.assert_array_equal(got, before)


def test_single_precision_of_every_half_number() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    with np.errstate(invalid="ignore"):
        wanted = every.astype(np.float32)
    np.testing.assert_array_equal(as_float32(every), wanted)
    single = np.ones(3, np.float32)
    assert as_float32(single) is single
    assert as_float32(np.array([1, 2])).dtype == np.float32


def test_preparing_a_view_warns_of_nothing(tmp_path: Path) -> None:
    pack = FeaturePack(write(tmp_path / "pack", video()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_video(pack["v"], IDENTITY)


@pytest.mark.parametrize("wrong", ["twice", "width", "nan", "range", "interrupt"])
def test_an_error_inside_leaves_nothing(tmp_path: Path, wrong: str) -> None:
    bad = video("b")
    message = {"twice": "every video once", "width": "by 5", "nan": "row 1", "range": "float16"}
    if wrong == "nan":
        bad.features[1, 0] = np.nan
    elif wrong == "range":
        bad.features[1, 0] = 70_000
    elif wrong == "width":
        bad = replace(bad, features=np.zeros((4, 2), np.float32))
    elif wrong == "twice":
        bad = video("a")
    if wrong == "interrupt":
        with pytest.raises(KeyboardInterrupt), FeaturePackWriter(tmp_path / "p", IDENTITY):
            raise KeyboardInterrupt
    else:
        with pytest.raises(FeatureError, match=message[wrong]):
            write(tmp_path / "p", video("a"), bad)
    assert not list(tmp_path.iterdir())


def full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "save_file", full_disk)
    with pytest.raises(FeatureError, match="No space left"):
        write(tmp_path / "p", video())
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "p", video())
    before = sorted(path.iterdir())
    with pytest.raises(FeatureError, match="a new folder"):
        FeaturePackWriter(path, IDENTITY)
    assert sorted(path.iterdir()) == before
    assert path.stat().st_mode & 0o077 == 0o055


def change_index(path: Path, **values: Any) -> None:
    file = path / "index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_newer_pack_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "p", video())
    # A newer form may store anything: that it is newer must come first.
    change_index(path, version=2, encoder={"other": "keys"})
    with pytest.raises(FeatureError, match="version 1 or older, got version 2; upgrade"):
        FeaturePack(path)


@pytest.mark.parametrize(
    "values",
    [
        {"version": None},
        {"encoder": {"name": "x"}},
        {"encoder": 3},
        {"videos": []},
        {"videos": {"v": {"shard": 0}}},
        {"videos": {"v": {"shard": 0, "row": "x", "rows": 1, "duration_s": 1}}},
        {"videos": {"v": 3}},
    ],
)
def test_a_damaged_index_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    path = write(tmp_path / "p", video())
    change_index(path, **values)
    with pytest.raises(FeatureError):
        FeaturePack(path)


def test_a_missing_or_broken_index_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "p", video())
    (path / "index.json").write_text('{"version": 1, "enc')
    with pytest.raises(FeatureError, match="JSONDecodeError"):
        FeaturePack(path)
    (path / "index.json").write_text("[]")
    with pytest.raises(FeatureError, match="a folder with a feature pack"):
        FeaturePack(path)
    (path / "index.json").unlink()
    for folder in (path, tmp_path, tmp_path / "missing"):
        with pytest.raises(FeatureError, match=r"a folder with a feature pack \(index\.json"):
            FeaturePack(folder)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "p", video())
    shard = path / "video-00000.safetensors"
    data = shard.read_bytes()
    for damaged in (data[:-3], data[:5], b""):
        shard.write_bytes(damaged)
        with pytest.raises(
            FeatureError, match=r"video-00000\.safetensors: expected a complete shard"
        ):
            FeaturePack(path)["v"]
    shard.unlink()
    with pytest.raises(FeatureError, match=r"video-00000\.safetensors: expected a complete shard"):
        FeaturePack(path)["v"]
    shard.write_bytes(data)
    change_index(path, videos={"v": {"shard": 0, "row": 2, "rows": 4, "duration_s": 7.0}})
    with pytest.raises(FeatureError, match="got 4 rows, where the index expects 2 to 6"):
        FeaturePack(path)["v"]


def test_a_folder_of_packs(tmp_path: Path) -> None:
    write(tmp_path / "train", video("a"), video("b"))
    write(tmp_path / "val", video("c", 3.0))
    pack = FeaturePack(tmp_path)
    assert pack.vids == ("a", "b", "c")
    assert pack["c"].duration_s == 3.0
    write(tmp_path / "zz", video("d"), identity=RAW)
    with pytest.raises(FeatureError, match="packs of one encoder, fake@1"):
        FeaturePack(tmp_path)


def test_packs_of_several_weights_do_not_mix_beside_one_that_names_none(tmp_path: Path) -> None:
    write(tmp_path / "a", video("a"))
    write(tmp_path / "b", video("b"), identity=replace(IDENTITY, model="m", digest="1" * 16))
    assert FeaturePack(tmp_path / "a").identity.digest == ""
    write(tmp_path / "c", video("c"), identity=replace(IDENTITY, model="m", digest="2" * 16))
    with pytest.raises(FeatureError, match=r"packs of one encoder, .*1{16}.* got also .*2{16}"):
        FeaturePack(tmp_path)


def test_a_video_in_two_packs_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train", video("a"))
    write(tmp_path / "val", video("a", 3.0))
    with pytest.raises(FeatureError, match="a in train as well"):
        FeaturePack(tmp_path)


def test_statistics_over_all_clips() -> None:
    videos = [video("a", seed=1), video("b", 3.0, seed=2)]
    together = np.concatenate([one.features for one in videos])
    mean, deviation = feature_statistics(videos)
    np.testing.assert_allclose(mean, together.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(deviation, together.std(axis=0), rtol=1e-5)

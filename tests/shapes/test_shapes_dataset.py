import json
from pathlib import Path

import numpy as np
import pytest

from demr.annotations.annotations import read_annotations
from demr.encoders import get_encoder
from demr.errors import ConfigError
from demr.features.pack import FeaturePack
from demr.shapes import dataset
from demr.shapes.dataset import build_dataset
from demr.shapes.world import make_scene
from demr.video.reading import probe_video

SEED = 32  # of the world in conftest.py


def test_splits_hold_their_videos_and_nothing_else(world: Path) -> None:
    pack = FeaturePack(world / "features")
    annotated: list[str] = []
    for split in ("train", "val", "iid", "ood"):
        vids = {annotation.vid for annotation in read_annotations(world / f"{split}.jsonl")}
        assert len(vids) == (2 if split in ("train", "val") else 1)
        assert all(vid in pack for vid in vids)
        annotated += vids
    assert len(set(annotated)) == len(annotated) == len(pack) == 6
    assert pack.identity == get_encoder("builtin").identity


def test_things_stand_among_the_queries_but_apart_in_test_splits(world: Path) -> None:
    def kinds(name: str) -> set[str]:
        return {annotation.kind for annotation in read_annotations(world / f"{name}.jsonl")}

    things = {"thing", "absent thing"}
    assert things < kinds("train")
    assert things < kinds("val")
    for split in ("iid", "ood"):
        assert not things & kinds(split)
        assert kinds(f"{split}_things") == things | {"unknown"}
    for annotation in read_annotations(world / "train.jsonl"):
        assert (annotation.windows_s == ()) == (
            annotation.kind in ("absent", "absent thing", "unknown")
        )


def test_features_annotations_and_files_speak_of_the_same_seconds(world: Path) -> None:
    pack = FeaturePack(world / "features")
    for split in ("train", "ood"):
        scene = make_scene(split, SEED * 1_000_000)
        stored = pack[scene.vid]
        assert stored.duration_s == scene.duration_s
        assert probe_video(world / "videos" / f"{scene.vid}.mp4").duration_s == pytest.approx(
            scene.duration_s, abs=0.13
        )
        for annotation in read_annotations(world / f"{split}.jsonl"):
            if annotation.vid == scene.vid:
                assert annotation.duration_s == scene.duration_s
                assert all(
                    0 <= start < end <= scene.duration_s
                    for start, end in annotation.windows_s or ()
                )


def test_stored_features_are_those_of_the_file(world: Path) -> None:
    scene = make_scene("iid", SEED * 1_000_000)
    stored = FeaturePack(world / "features")[scene.vid].features
    fresh = get_encoder("builtin").encode_video(world / "videos" / f"{scene.vid}.mp4").features
    np.testing.assert_array_equal(stored, fresh.astype(np.float16).astype(np.float32))


def test_what_is_there_is_not_built_again(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("rendered again")

    monkeypatch.setattr(dataset, "_make_video", never)
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*")}
    build_dataset(world, {"train": 2, "val": 2, "iid": 1, "ood": 1}, seed=SEED)
    assert before == {path: path.stat().st_mtime_ns for path in world.rglob("*")}


@pytest.mark.parametrize("manifest", [None, "[]", "{", '{"world": 0}'])
def test_another_world_in_the_folder_is_refused(tmp_path: Path, manifest: str | None) -> None:
    if manifest is None:
        manifest = json.dumps({"world": dataset.WORLD_VERSION, "seed": 1, "counts": {"train": 1}})
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(ConfigError, match=r"data\.root"):
        build_dataset(tmp_path, {"train": 1}, seed=2)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_build_leaves_no_half_split_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    seen: list[int] = []

    def stop(split: str, done: int, total: int) -> None:
        assert (split, total) == ("val", 2)
        seen.append(done)
        if len(seen) == 1:
            raise KeyboardInterrupt

    # Shorter and smaller videos: what they show does not matter here.
    if workers == 1:
        monkeypatch.setattr(dataset, "_make_video", _quick_video)
    counts = {"val": 2}
    with pytest.raises(KeyboardInterrupt):
        build_dataset(tmp_path, counts, workers=workers, seed=SEED, progress=stop)  # type: ignore[arg-type]
    assert not (tmp_path / "val.jsonl").exists()
    assert not list((tmp_path / "features").iterdir())
    if workers == 1:
        build_dataset(tmp_path, counts, workers=workers, seed=SEED, progress=stop)  # type: ignore[arg-type]
        assert seen == [1, 1, 2]
        assert len(FeaturePack(tmp_path / "features")) == 2
        assert len(read_annotations(tmp_path / "val.jsonl")) == 4


def _quick_video(split: str, videos: Path | None, number: int) -> object:
    from demr.annotations.annotations import Annotation
    from demr.encoders import VideoFeatures

    assert videos is None
    identity = get_encoder("builtin").identity
    vid = f"{split}-{number}"
    features = np.zeros((3, identity.video_dim), np.float32)
    duration = 3 * identity.clip_s
    asked = Annotation(vid, "a red circle spins", vid, duration, ((0.0, 1.0),))
    thing = Annotation(f"{vid}_t", "a red circle", vid, duration, ((0.0, 2.0),), kind="thing")
    return VideoFeatures(vid, duration, identity.clip_s, features), [asked], [thing]

"""Videos that are prepared when asked for are those that were prepared beforehand."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from demr.batches.stretches import Stretch, plan_stretches
from demr.batches.videos import PreparedVideos
from demr.encoders.base import EncoderIdentity, VideoFeatures
from demr.features.pack import FeaturePack, FeaturePackWriter
from demr.features.prepare import prepare_video

IDENTITY = EncoderIdentity("fake", "1", 2.0, (("wide", 3), ("narrow", 2)), 4, "l2")
BYTES = 10 * 5 * 4  # ten clips of five features


@pytest.fixture
def pack(tmp_path: Path) -> FeaturePack:
    rng = np.random.default_rng(4)
    with FeaturePackWriter(tmp_path / "pack", IDENTITY) as writer:
        for vid in "abcd":
            table = rng.normal(size=(10, 5)).astype(np.float32)
            writer.add(VideoFeatures(vid, 19.5, 2.0, table))
    return FeaturePack(tmp_path / "pack")


def test_they_are_equal_to_the_bit(pack: FeaturePack) -> None:
    videos = PreparedVideos(pack, "abc", keep_bytes=0)
    assert videos.clips == {"a": 10, "b": 10, "c": 10}
    for vid in "abcabc":
        assert torch.equal(videos.prepared(vid), prepare_video(pack[vid], IDENTITY)[0])
    whole = videos.raw("a")
    for stretch in plan_stretches(10, 4):
        part = replace(
            whole,
            features=whole.features[stretch.start : stretch.stop],
            duration_s=stretch.duration_s(19.5, 10, 2.0),
        )
        assert torch.equal(videos.prepared("a", stretch), prepare_video(part, IDENTITY)[0])


def test_what_is_in_use_is_shared_where_nothing_is_kept(pack: FeaturePack) -> None:
    videos = PreparedVideos(pack, "abcd", keep_bytes=0)
    first = [videos.prepared(vid) for vid in "abcd"]
    again = [videos.prepared(vid) for vid in "abcd"]
    assert all(one is other for one, other in zip(first, again, strict=True))
    # A stretch is another input, even one of all clips.
    assert videos.prepared("a", Stretch(0, 10, 0, 10)) is not first[0]


@pytest.mark.parametrize(("keep_bytes", "kept"), [(2 * BYTES, True), (2 * BYTES - 1, False)])
def test_videos_that_fit_are_kept(pack: FeaturePack, keep_bytes: int, kept: bool) -> None:
    videos = PreparedVideos(pack, "ab", keep_bytes=keep_bytes)
    known = [weakref.ref(videos.prepared(vid)) for vid in "aba"]
    gc.collect()
    assert [reference() is not None for reference in known] == [kept] * 3


def test_changed_features_are_prepared_as_any(pack: FeaturePack) -> None:
    def doubled(video: VideoFeatures) -> VideoFeatures:
        features = np.array(video.features, np.float32)
        features[:, 0] *= 2
        return replace(video, features=features)

    videos = PreparedVideos(pack, "b", doubled)
    expected = prepare_video(doubled(pack["b"]), IDENTITY)[0]
    assert torch.equal(videos.prepared("b"), expected)
    assert not torch.equal(videos.prepared("b"), prepare_video(pack["b"], IDENTITY)[0])

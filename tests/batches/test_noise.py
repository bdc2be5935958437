from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from demr.annotations.annotations import Annotation
from demr.batches.dataset import MomentDataset
from demr.batches.noise import FeatureDeviation, FeatureNoise, TrainingNoise
from demr.encoders.base import EncoderIdentity, QueryFeatures, VideoFeatures
from demr.features.pack import FeaturePack, FeaturePackWriter
from demr.features.prepare import prepare_query, prepare_video

IDENTITY = EncoderIdentity("fake", "1", 2.0, (("wide", 3), ("narrow", 2)), 4, "l2")


class FakeEncoder:
    """Long vectors of different lengths, so that it matters where noise is added."""

    identity = IDENTITY

    def encode_video(self, path: str | Path) -> VideoFeatures:
        raise NotImplementedError(path)

    def encode_queries(
        self, queries: Sequence[str], hidden: Sequence[Collection[int]] | None = None
    ) -> list[QueryFeatures]:
        del hidden
        rng = np.random.default_rng(5)
        return [
            QueryFeatures(
                query,
                10 * rng.random((len(query.split()), 4), dtype=np.float32),
                tuple(query.split()),
                np.arange(len(query.split())),
            )
            for query in queries
        ]


@pytest.fixture
def dataset(tmp_path: Path) -> MomentDataset:
    rng = np.random.default_rng(4)
    with FeaturePackWriter(tmp_path / "pack", IDENTITY) as writer:
        for vid, clips in (("b", 500), ("a", 3)):
            table = (20 * rng.random((clips, 5))).astype(np.float16).astype(np.float32)
            writer.add(VideoFeatures(vid, 2.0 * clips, 2.0, table))
    annotations = [
        Annotation(str(i), query, vid, duration, ((0.0, 2.0),))
        for i, (query, vid, duration) in enumerate(
            [("a dog eats", "b", 1000.0), ("it runs", "a", 6.0), ("a cat", "b", 1000.0)]
        )
    ]
    return MomentDataset(annotations, FeaturePack(tmp_path / "pack"), FakeEncoder())


def unit(x: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def test_noise_is_added_before_normalisation(dataset: MomentDataset, tmp_path: Path) -> None:
    pack = FeaturePack(tmp_path / "pack")
    deviation = np.array([0.5, 0.0, 2.0, 4.0, 8.0])
    noisy = FeatureNoise(deviation, None, 2.0, seed=7).apply(dataset)
    for index, vid in ((0, "b"), (1, "a")):
        clean = pack[vid].features
        rng = np.random.default_rng((7, crc32(vid.encode())))
        raw = clean + 2 * deviation * rng.standard_normal(clean.shape, dtype=np.float32)
        expected = np.concatenate([unit(raw[:, :3]), unit(raw[:, 3:])], axis=1)
        found = noisy[index]
        np.testing.assert_allclose(found.video[:, :5], expected, atol=1e-6)
        assert torch.equal(found.video[:, 5:], dataset[index].video[:, 5:])
        assert torch.equal(found.text, dataset[index].text)
        assert found.targets is not None
    # Both queries about a video see the same one; the one without noise is still there.
    assert torch.equal(noisy[0].video, noisy[2].video)
    assert not torch.equal(noisy[0].video, dataset[0].video)
    assert torch.equal(dataset[1].video, prepare_video(pack["a"], IDENTITY)[0])
    other = FeatureNoise(deviation, None, 2.0, seed=8).apply(dataset)
    assert not torch.equal(noisy[0].video, other[0].video)

    words = FeatureNoise(None, np.full(4, 3.0), 0.5, seed=7).apply(dataset)
    rng = np.random.default_rng(7)
    for index, query in enumerate(dataset.queries):
        noisy_words = query.features + 1.5 * rng.standard_normal(
            query.features.shape, dtype=np.float32
        )
        np.testing.assert_allclose(words[index].text.numpy(), unit(noisy_words), atol=1e-6)
        assert torch.equal(words[index].video, dataset[index].video)


def test_noise_has_the_deviation_asked_for(tmp_path: Path) -> None:
    plain = replace(IDENTITY, normalization="none")
    with FeaturePackWriter(tmp_path / "plain", plain) as writer:
        writer.add(VideoFeatures("v", 6000.0, 2.0, np.zeros((3000, 5), np.float32)))
    encoder = FakeEncoder()
    encoder.identity = plain
    annotations = [Annotation("1", "a dog", "v", 6000.0, ())]
    still = MomentDataset(annotations, FeaturePack(tmp_path / "plain"), encoder)
    noise = FeatureNoise(np.array([0.5, 0.0, 2.0, 0.0, 0.0]), None, 2.0, seed=1)
    deviation = noise.apply(still)[0].video[:, :5].std(dim=0)
    expected = torch.tensor([1.0, 0.0, 4.0, 0.0, 0.0])
    torch.testing.assert_close(deviation, expected, rtol=0.03, atol=0)


def test_deviation_is_that_of_training_clips_and_tokens(
    dataset: MomentDataset, tmp_path: Path
) -> None:
    pack = FeaturePack(tmp_path / "pack")
    found = FeatureDeviation.of(dataset, pack)
    clips = np.concatenate([pack["a"].features, pack["b"].features]).astype(np.float64)
    tokens = np.concatenate([query.features for query in dataset.queries])
    np.testing.assert_allclose(found.video, clips.std(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.text, tokens.std(axis=0), rtol=1e-6)


def training_noise(share: float) -> TrainingNoise:
    deviation = FeatureDeviation(np.full(5, 6.0), np.full(4, 3.0))
    return TrainingNoise(deviation, share, share, 4.0, seed=3)


def test_training_noise_changes_the_share_asked_for_at_levels_up_to_the_largest() -> None:
    noise = training_noise(0.25)
    video = VideoFeatures("v", 800.0, 2.0, np.zeros((400, 5), np.float32))
    query = QueryFeatures("q", np.zeros((400, 4), np.float32), ("q",), np.zeros(400, np.int64))
    drawn = [noise.augment(video, query, 0, index) for index in range(400)]
    levels = [np.array([d.video.features.std() / 6 for d in drawn if d.video is not None])]
    levels.append(np.array([d.query.features.std() / 3 for d in drawn if d.query is not None]))
    for level in levels:
        assert 70 < len(level) < 130
        assert 0.24 < level.min() < 0.3
        assert 3.5 < level.max() < 4.1
        # Log-uniform: as many below the geometric mean as above.
        assert 0.65 < np.median(level) < 1.5, "drawn linearly it would be 2.1"
    both = sum(d.video is not None and d.query is not None for d in drawn)
    assert 12 < both < 40, "independent draws: a sixteenth"


def test_training_noise_changes_items_before_normalisation_and_anew_each_epoch(
    dataset: MomentDataset, tmp_path: Path
) -> None:
    clean = [dataset[index] for index in range(3)]
    dataset.augment = training_noise(0.99).augment
    noisy = [dataset[index] for index in range(3)]
    for index, (before, after) in enumerate(zip(clean, noisy, strict=True)):
        assert not torch.equal(before.video[:, :5], after.video[:, :5])
        assert torch.equal(before.video[:, 5:], after.video[:, 5:])
        assert not torch.equal(before.text, after.text)
        norm = after.video[:, :3].norm(dim=1)
        torch.testing.assert_close(norm, torch.ones_like(norm))
        raw = FeaturePack(tmp_path / "pack")[dataset.annotations[index].vid]
        drawn = training_noise(0.99).augment(raw, dataset.queries[index], 0, index)
        assert drawn.video is not None
        assert drawn.query is not None
        assert torch.equal(after.video, prepare_video(drawn.video, IDENTITY)[0])
        assert torch.equal(after.text, prepare_query(drawn.query, IDENTITY))
        assert after.noise == drawn.noise > before.noise == 0
    assert torch.equal(dataset[0].video, noisy[0].video), "the same epoch, the same noise"
    dataset.epoch = 1
    assert not torch.equal(dataset[0].video, noisy[0].video)
    dataset.augment = None
    assert torch.equal(dataset[0].video, clean[0].video)


def test_noise_weighs_the_same_on_either_modality() -> None:
    video = VideoFeatures("v", 8000.0, 2.0, np.zeros((4000, 5), np.float32))
    query = QueryFeatures("q", np.zeros((4000, 4), np.float32), ("q",), np.zeros(4000, np.int64))
    kinds = set()
    for index in range(40):
        drawn = training_noise(0.5).augment(video, query, 0, index)
        left = 1.0
        if drawn.video is not None:
            left /= 1 + drawn.video.features.std() / 6
        if drawn.query is not None:
            left /= 1 + drawn.query.features.std() / 3
        assert drawn.noise == pytest.approx(1 - left, abs=0.01)
        kinds.add((drawn.video is None, drawn.query is None))
    assert len(kinds) == 4


def test_each_modality_has_its_own_share() -> None:
    video = VideoFeatures("v", 4.0, 2.0, np.zeros((2, 5), np.float32))
    query = QueryFeatures("q", np.zeros((2, 4), np.float32), ("q",), np.zeros(2, np.int64))
    noise = replace(training_noise(0.0), text_share=0.5)
    drawn = [noise.augment(video, query, 0, index) for index in range(100)]
    assert all(d.video is None for d in drawn)
    assert 30 < sum(d.query is not None for d in drawn) < 70

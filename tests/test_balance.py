import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from demr.annotations import Annotation
from demr.balance import LEVELS, FeatureNoise, dvar, measure_balance, noise_curves, rises
from demr.calibration import Calibration
from demr.dataset import MomentDataset
from demr.encoders.base import EncoderIdentity, QueryFeatures, VideoFeatures
from demr.errors import InputError
from demr.features import FeaturePack, FeaturePackWriter, prepare_video
from demr.runs import load_run, open_data


def test_dvar_by_hand() -> None:
    # Without the undisturbed points 100 and -50: variances of 1, 2, 3 and of 2, 4, 9.
    assert dvar((100, 1, 2, 3), (-50, 2, 4, 9)) == pytest.approx(26 / 3 - 2 / 3)
    assert dvar((0, 2, 4, 9), (0, 1, 2, 3)) == pytest.approx(8)
    assert dvar((0, 1, 2, 3), (5, 7, 8, 9)) == pytest.approx(0)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ((0, 0.1, 0.2, 3), True),
        ((0, 0.1, 0.1, 3), False),
        ((0, -0.1, 0.2, 3), False),
        ((0, 1, 2, 1.9), False),
        ((0, 1, float("nan"), 3), False),
    ],
)
def test_rises(curve: tuple[float, ...], expected: bool) -> None:
    assert rises(curve) is expected


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
    rng = np.random.default_rng(7)
    for index, vid in ((1, "a"), (0, "b")):
        clean = pack[vid].features
        raw = clean + 2 * deviation * rng.standard_normal(clean.shape, dtype=np.float32)
        expected = np.concatenate([unit(raw[:, :3]), unit(raw[:, 3:])], axis=1)
        found = noisy[index]
        np.testing.assert_allclose(found.video[:, :5], expected, atol=1e-6)
        assert torch.equal(found.video[:, 5:], dataset[index].video[:, 5:])
        assert torch.equal(found.text, dataset[index].text)
        assert found.targets is not None
    # Both queries about a video see the same one; the undisturbed one is still there.
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


def test_undisturbed_queries_lie_at_zero_and_no_noise_moves_nothing(run: Path) -> None:
    config, pretrained = load_run(run)
    data = open_data(config.data)
    queries = [a for a in data.read(config.data.val) if a.windows_s][:8]
    calibration = Calibration.load(run / "calibration.json")
    video, text = data.encoder.identity.video_dim, data.encoder.identity.text_dim
    curves = noise_curves(
        pretrained.model,
        data.dataset(queries),
        calibration,
        np.zeros(video),
        np.full(text, 0.1),
    )
    assert curves["video"].epistemic == pytest.approx([0] * len(LEVELS), abs=1e-5)
    assert curves["video"].predictive == pytest.approx([0] * len(LEVELS), abs=1e-5)
    assert curves["text"].epistemic[0] == pytest.approx(0, abs=1e-12)
    assert np.abs(curves["text"].epistemic[1:]).min() > 1e-4


def test_balance_of_a_run(own_run: Path, cli: Callable[..., Any]) -> None:
    done = cli("balance", own_run, "--split", "iid", "--limit", 4)
    assert done.code == 0
    assert "dVar" in done.out
    written = json.loads((own_run / "balance.json").read_text())
    assert written["split"] == "iid"
    assert written["queries"] == 4
    assert written["levels"] == list(LEVELS)
    for measure in ("EU", "AU+EU"):
        part = written[measure]
        assert part["dVar"] == pytest.approx(dvar(tuple(part["video"]), tuple(part["text"])))
        assert part["both rise"] == (rises(tuple(part["video"])) and rises(tuple(part["text"])))
        assert len(part["video"]) == len(part["text"]) == len(LEVELS)


@pytest.mark.parametrize("limit", [-3, 1])
def test_a_limit_that_cannot_be_averaged_is_refused(run: Path, limit: int) -> None:
    with pytest.raises(InputError, match="at least 2 queries"):
        measure_balance(run, "val", limit)


def test_an_unknown_split_is_named_with_those_there_are(run: Path, cli: Callable[..., Any]) -> None:
    assert "one of val, iid, ood" in cli("balance", run, "--split", "nope").one_line()

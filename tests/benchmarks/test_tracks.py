"""The real tracks that benchmarks/studies/prepare_tracks.py makes."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks.studies import prepare_tracks as tracks

from demr.annotations.annotations import read_annotations
from demr.features.pack import FeaturePack


def test_a_timeline_by_hand() -> None:
    embeddings = np.array([[1, 0, 0, 0], [0, 1, 0, 0]], dtype=np.float32)
    # 3.4 s: centres 0.5, 1.5, 2.5 and 3.2.
    actions = [(0, 0.0, 1.5), (1, 1.0, 3.3)]
    clear = tracks.timeline("v", 3.4, actions, embeddings, 0.0)
    half = np.sqrt(0.5)
    expected = [[1, 0, 0, 0], [half, half, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]]
    np.testing.assert_allclose(clear, expected, atol=1e-6)
    noisy = tracks.timeline("v", 3.4, actions, embeddings, 2.0)
    np.testing.assert_allclose(np.linalg.norm(noisy, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(noisy, tracks.timeline("v", 3.4, actions, embeddings, 2.0))
    assert not np.allclose(noisy, tracks.timeline("w", 3.4, actions, embeddings, 2.0))


def test_the_noise_has_the_length_it_says() -> None:
    # Beside one class of unit length, noise of expected length 4 leaves a cosine of 1 / sqrt(17).
    embeddings = np.eye(1, 300, dtype=np.float32)
    table = tracks.timeline("v", 2000.0, [(0, 0.0, 2000.0)], embeddings, 4.0)
    assert table[:, 0].mean() == pytest.approx(1 / np.sqrt(17), rel=0.03)


@pytest.mark.data
def test_the_clip_track(data_dir: Path, tmp_path: Path) -> None:
    tracks.prepare_clip(tracks.Sources(data_dir), tmp_path / "clip")
    counts = {
        name: len(read_annotations(tmp_path / "clip" / f"{name}.jsonl")) for name in tracks.SPLITS
    }
    assert counts == {"train": 2575, "val": 193, "iid": 210, "ood": 742}
    pack = FeaturePack(tmp_path / "clip" / "features")
    assert len(pack) == 1334
    assert pack.identity.text_dim == 300


@pytest.mark.data
def test_classes_have_words(data_dir: Path) -> None:
    actions, classes = tracks.read_actions(data_dir / "annotations" / "charades_actions")
    assert len(classes) == 157
    assert classes[0] == "Holding some clothes"
    assert len(actions) == 9848
    embeddings = tracks.class_embeddings(classes, tracks.Sources(data_dir).words)
    assert embeddings.shape == (157, 300)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)

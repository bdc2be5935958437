"""Which items of a batch repel each other: by video, event and sentence, never by tensor."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from demr.annotations.annotations import Annotation
from demr.batches.batch import Batch, Item, collate, make_targets
from demr.batches.dataset import MomentDataset
from demr.batches.noise import FeatureDeviation, TrainingNoise
from demr.encoders.base import EncoderIdentity, QueryFeatures, VideoFeatures
from demr.features.pack import FeaturePack, FeaturePackWriter
from demr.network.losses import TEMPERATURE, saliency_terms
from demr.network.model import Embeddings

IDENTITY = EncoderIdentity("fake", "1", 2.0, (("colour", 3),), 4, "none")


class FakeEncoder:
    """A token of ones a query."""

    identity = IDENTITY

    def encode_video(self, path: str | Path) -> VideoFeatures:
        raise NotImplementedError(path)

    def encode_queries(
        self, queries: Sequence[str], hidden: Sequence[Collection[int]] | None = None
    ) -> list[QueryFeatures]:
        del hidden
        token = np.ones((1, 4), np.float32)
        return [QueryFeatures(query, token, ("a",), np.zeros(1, np.int64)) for query in queries]


def dataset_of(path: Path, annotations: Sequence[Annotation], max_clips: int) -> MomentDataset:
    rng = np.random.default_rng(0)
    with FeaturePackWriter(path / "pack", IDENTITY) as writer:
        for vid in sorted({annotation.vid for annotation in annotations}):
            table = rng.normal(size=(20, 3)).astype(np.float32)
            writer.add(VideoFeatures(vid, 40.0, 2.0, table))
    return MomentDataset(annotations, FeaturePack(path / "pack"), FakeEncoder(), None, max_clips)


def asked(
    qid: str, vid: str, window_s: tuple[float, float] = (4.0, 10.0), query: str = ""
) -> Annotation:
    return Annotation(qid, query or f"sentence {qid}", vid, 40.0, (window_s,))


def embeddings(batch: Batch) -> Embeddings:
    """All clips of item i point along axis i, all queries along the sum of the axes."""
    size, length = batch.video_mask.shape
    clip = torch.eye(size)[:, None].expand(size, length, size)
    query = torch.ones(size, size) / math.sqrt(size)
    return Embeddings(torch.zeros(size, length), clip, query, None)


def rivals(batch: Batch) -> float:
    """Mean number of pairs in a softmax of the inter loss, as all its cosines are equal."""
    return float(saliency_terms(embeddings(batch), batch)[1].exp())


def test_the_count_by_hand(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, [asked("1", "a"), asked("2", "b"), asked("3", "c")], 20)
    assert rivals(collate([dataset[i] for i in range(3)])) == pytest.approx(3, rel=1e-5)


def test_with_noise_too_queries_on_one_moment_do_not_repel(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, [asked("1", "a"), asked("2", "a"), asked("3", "b")], 20)
    for share in (0.0, 0.999):
        noise = TrainingNoise(FeatureDeviation(np.ones(3), np.ones(4)), share, 0.0, 1.0, 0)
        dataset.augment = noise.augment
        batch = collate([dataset[i] for i in range(3)])
        # A row for each tensor ...
        assert len(batch.video) == (3 if share else 2)
        # ... but 1 and 2 are about one moment: in the softmaxes are {1, 3}, {2, 3}, {1, 2, 3}.
        assert rivals(batch) == pytest.approx((2 * 2 * 3) ** (1 / 3), rel=1e-5)
        contrast = saliency_terms(embeddings(batch), batch)[2]
        # A pair of one clip direction, cosine 1, a clip outside, cosine 1, and other videos', 0.
        other = math.exp(-1 / TEMPERATURE)
        expected = [math.log(2 + other), math.log(2 + other), math.log(2 + 2 * other)]
        assert contrast.item() == pytest.approx(sum(expected) / 3, abs=1e-6)


def test_equal_sentences_do_not_repel_whatever_their_videos(tmp_path: Path) -> None:
    annotations = [
        asked("1", "a", query="Person opens a door."),
        asked("2", "b", query="person  opens a door"),
        asked("3", "c", query="person opens the door"),
        asked("4", "d", query="person closes a door"),
    ]
    dataset = dataset_of(tmp_path, annotations, 20)
    batch = collate([dataset[i] for i in range(4)])
    assert batch.sentence.tolist() == [0, 0, 1, 2]
    assert rivals(batch) == pytest.approx((3 * 3 * 4 * 4) ** (1 / 4), rel=1e-5)
    # An absent query of the same sentence is true of the clip, too.
    absent = replace(annotations[1], windows_s=())
    dataset = dataset_of(tmp_path / "absent", [annotations[0], absent, annotations[3]], 20)
    batch = collate([dataset[i] for i in range(3)])
    inter = saliency_terms(embeddings(batch), batch, absent_negatives=True)[1]
    # Clips 1 and 4 against queries {1, 4} and {1, 2, 4}; queries 1 and 4 against both clips.
    assert inter.exp().item() == pytest.approx((2 * 3) ** (1 / 4) * (2 * 2) ** (1 / 4), rel=1e-5)


def test_one_window_of_one_video_is_one_moment_without_an_event(tmp_path: Path) -> None:
    annotations = [
        asked("1", "a"), asked("2", "a"), asked("3", "a", (20.0, 30.0)), asked("4", "b"),
    ]  # fmt: skip
    dataset = dataset_of(tmp_path, annotations, 20)
    batch = collate([dataset[i] for i in range(4)])
    assert batch.event.tolist() == [-1] * 4
    assert rivals(batch) == pytest.approx((3 * 3 * 4 * 4) ** (1 / 4), rel=1e-5)


def test_what_a_video_shows_is_no_negative_to_its_clips_whoever_asks(tmp_path: Path) -> None:
    def about(vid: str, event: str, *, absent: bool = False) -> Annotation:
        made = replace(asked(f"{vid} {event}", vid), event=event)
        return replace(made, windows_s=()) if absent else made

    annotations = [
        about("a", "red circle bounce"),
        about("b", "red circle"),
        about("c", "blue star"),
        about("d", "circle", absent=True),
        about("a", "star"),  # not in the batch
    ]
    dataset = dataset_of(tmp_path, annotations, 20)
    batch = collate([dataset[i] for i in range(4)])
    assert batch.shown.tolist() == [
        # There is a red circle in video a, too; in b none that bounces.
        [True, True, False, True],
        [False, True, False, True],
        [False, False, True, False],
        [False, False, False, False],
    ]
    inter = saliency_terms(embeddings(batch), batch, absent_negatives=True)[1]
    # Clips of a, b, c against queries {0, 2}, {0, 1, 2}, all; queries of a, b, c against clips
    # {a, b, c}, {b, c}, {a, b, c}.
    expected = (2 * 3 * 4) ** (1 / 6) * (3 * 2 * 3) ** (1 / 6)
    assert inter.exp().item() == pytest.approx(expected, rel=1e-5)
    # Without the text, clips of a and b may show one thing.
    contrast = saliency_terms(embeddings(batch), batch)[2]
    other = math.exp(-1 / TEMPERATURE)
    losses = [math.log(2 + other), math.log(2 + other), math.log(2 + 2 * other)]
    assert contrast.item() == pytest.approx(sum(losses) / 3, abs=1e-6)


def part(first_clip: int, window_clips: tuple[int, int] | None, *, vid: int = 0) -> Item:
    """A stretch of ten clips of a longer video; the window in clips of the whole."""
    edges = torch.linspace(0, 1, 11)
    span = torch.stack([edges[:-1], edges[1:]], dim=1)
    windows = []
    if window_clips is not None:
        windows = [((window_clips[0] - first_clip) / 10, (window_clips[1] - first_clip) / 10)]
    targets = make_targets(windows, span)
    return Item(torch.randn(10, 5), torch.randn(1, 4), span, 20.0, targets, vid, first_clip)


def test_stretches_of_one_video_are_compared_by_place_in_it() -> None:
    def pairs(*items: Item) -> float:
        return rivals(collate(items))

    # Clips 12 to 14, seen from two stretches: one moment.
    assert pairs(part(10, (12, 15)), part(6, (12, 15))) == pytest.approx(1, abs=1e-5)
    # Clips 12 to 14 and 8 and 9: two moments, though both begin with clip 2 of their stretch. The
    # first stretch does not hold the second's clips, so these are not told apart.
    assert pairs(part(10, (12, 15)), part(6, (8, 10))) == pytest.approx(math.sqrt(2), rel=1e-5)
    assert pairs(part(8, (12, 15)), part(6, (8, 11))) == pytest.approx(2, rel=1e-5)
    # Stretches that do not meet: nobody knows whether a moment of one is in the other's.
    assert pairs(part(0, (2, 5)), part(40, (42, 45))) == pytest.approx(1, abs=1e-5)
    assert pairs(part(0, (2, 5)), part(40, (42, 45), vid=1)) == pytest.approx(2, rel=1e-5)

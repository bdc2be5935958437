from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from demr.annotations.annotations import Annotation
from demr.batches.batch import collate
from demr.batches.dataset import MomentDataset, NoisyFeatures
from demr.batches.masking import IGNORED, Masking, Vocabulary
from demr.batches.sampling import LengthBatches, sequential_batches
from demr.encoders.base import EncoderIdentity, QueryFeatures, VideoFeatures, clip_count
from demr.errors import AnnotationError, FeatureError
from demr.features.pack import FeaturePack, FeaturePackWriter
from demr.features.prepare import prepare_video
from demr.runs.splits import check_splits, check_videos

IDENTITY = EncoderIdentity("fake", "1", 2.0, (("colour", 3),), 4, "none")


class FakeEncoder:
    """Every token holds its own word and, as a contextual encoder's does, all the others."""

    def __init__(self, identity: EncoderIdentity = IDENTITY) -> None:
        self.identity = identity
        self.hidden: list[set[int]] = []

    def encode_video(self, path: str | Path) -> VideoFeatures:
        raise NotImplementedError(path)

    def encode_queries(
        self, queries: Sequence[str], hidden: Sequence[Collection[int]] | None = None
    ) -> list[QueryFeatures]:
        found = []
        for index, query in enumerate(queries):
            words = tuple(query.lower().split())
            away = set() if hidden is None else set(hidden[index])
            if hidden is not None:
                self.hidden.append(away)
            codes = [
                0.0 if i in away else float(sum(word.encode())) for i, word in enumerate(words)
            ]
            table = [[1.0, 0.0, 0.0, sum(codes)]]
            table += [[0.0, code, 1.0, sum(codes)] for code in codes]
            token_word = np.array([-1, *range(len(words))])
            found.append(QueryFeatures(query, np.array(table, np.float32), words, token_word))
        return found


def pack_of(path: Path, durations_s: dict[str, float]) -> FeaturePack:
    rng = np.random.default_rng(0)
    with FeaturePackWriter(path, IDENTITY) as writer:
        for vid, duration in durations_s.items():
            table = rng.normal(size=(clip_count(duration, 2.0), 3)).astype(np.float32)
            writer.add(VideoFeatures(vid, duration, 2.0, table))
    return FeaturePack(path)


def asked(
    qid: str, vid: str, duration_s: float = 8.0, query: str = "a dog eats food"
) -> Annotation:
    return Annotation(qid, query, vid, duration_s, ((2.0, 6.0),))


@pytest.fixture
def pack(tmp_path: Path) -> FeaturePack:
    return pack_of(tmp_path / "pack", {"a": 8.0, "b": 7.0})


def test_an_item(pack: FeaturePack) -> None:
    annotations = [
        replace(asked("1", "a"), event="x"),
        replace(asked("2", "b", 7.0), windows_s=()),
        replace(asked("3", "b", 7.0), windows_s=None, event="y"),
        replace(asked("4", "b", 7.0), event="x", saliency={1: 0.5, 3: 1.0, 9: 1.0}),
    ]
    dataset = MomentDataset(annotations, pack, FakeEncoder())
    assert len(dataset) == 4
    assert [dataset.length(i) for i in range(4)] == [4, 4, 4, 4]
    first, absent, unknown, scored = (dataset[i] for i in range(4))
    video, span_norm = prepare_video(pack["a"], IDENTITY)
    assert torch.equal(first.video, video)
    assert torch.equal(first.span_norm, span_norm)
    assert first.text.shape == (5, 4)
    assert first.duration_s == 8.0
    assert first.targets is not None
    assert first.targets.foreground.tolist() == [False, True, True, False]
    assert first.targets.window_norm[1].tolist() == [0.25, 0.75]
    assert first.masked is None
    assert absent.targets is not None
    assert not absent.targets.foreground.any()
    assert unknown.targets is None
    assert scored.targets is not None
    assert scored.targets.saliency.tolist() == [0, 0.5, 0, 1]
    # Equal events of different videos are equal; no event is nobody's.
    assert first.event == scored.event != unknown.event
    assert absent.event == -1


def test_windows_are_fractions_of_the_duration_that_clips_are(tmp_path: Path) -> None:
    # The annotators' source says 150 s; the file, and so the features, 153.
    pack = pack_of(tmp_path / "pack", {"v": 153.0})
    annotation = Annotation("1", "a dog", "v", 150.0, ((82.0, 150.0),))
    item = MomentDataset([annotation], pack, FakeEncoder())[0]
    assert item.duration_s == 153
    assert item.targets is not None
    first = int(item.targets.foreground.int().argmax())
    assert first == 41
    assert item.span_norm[first, 0] * item.duration_s == pytest.approx(82)
    np.testing.assert_allclose(item.targets.window_norm[first] * 153, [82, 150], rtol=1e-6)
    longer = replace(annotation, duration_s=156.0, windows_s=((150.0, 156.0), (154.0, 155.0)))
    item = MomentDataset([longer], pack, FakeEncoder())[0]
    assert item.targets is not None
    assert item.targets.window_norm.max() == 1
    assert item.targets.foreground.tolist() == [False] * 75 + [True] * 2


def test_annotations_of_another_video_are_refused(pack: FeaturePack) -> None:
    with pytest.raises(FeatureError, match=r"query '1': expected a video a of 8 s, .* got 12\.5 s"):
        MomentDataset([asked("1", "a", 12.5)], pack, FakeEncoder())


def test_a_guessed_duration_may_be_too_short(pack: FeaturePack) -> None:
    guessed = replace(asked("1", "a", 6.5), duration_guessed=True)
    assert MomentDataset([guessed], pack, FakeEncoder())[0].duration_s == 8.0
    with pytest.raises(FeatureError, match=r"expected a video a of 8 s, .* got 12\.5 s"):
        MomentDataset([replace(guessed, duration_s=12.5)], pack, FakeEncoder())


@pytest.mark.parametrize("change", [{"version": "2"}, {"name": "clip"}, {"normalization": "l2"}])
def test_another_encoder_s_pack_is_refused(pack: FeaturePack, change: dict[str, str]) -> None:
    encoder = FakeEncoder(replace(IDENTITY, **change))  # type: ignore[arg-type]
    with pytest.raises(FeatureError, match=r"got features of fake@1 \(.*\); set data"):
        MomentDataset([asked("1", "a")], pack, encoder)


def test_a_missing_video_is_named(pack: FeaturePack) -> None:
    annotations = [asked("1", "a"), asked("2", "zz"), asked("3", "c"), asked("4", "c")]
    with pytest.raises(FeatureError, match="video c: expected one of the 2 videos"):
        MomentDataset(annotations, pack, FakeEncoder())
    with pytest.raises(FeatureError, match=r"train\.jsonl: .* got 2 videos without, such as c"):
        check_videos(annotations, pack, Path("train.jsonl"))
    check_videos(annotations[:1], pack, Path("train.jsonl"))


def test_a_qid_means_one_query_in_all_splits(pack: FeaturePack) -> None:
    train, val = [asked("1", "a"), asked("2", "b")], [asked("3", "b")]
    assert check_splits({"train": train, "val": val}, pack) == []
    (shared,) = check_splits({"train": train, "val": val, "test": [*val, train[0]]}, pack)[:1]
    assert shared.startswith("1 of 2 queries of test are in train as well (such as '1')")
    for other in (asked("2", "a"), asked("2", "b", query="another")):
        with pytest.raises(
            AnnotationError, match=r"splits val and test: .* got 1 qids .* such as '2'; rename"
        ):
            check_splits({"val": train, "test": [other]}, pack)


def test_a_negative_in_another_split_may_share_a_qid(pack: FeaturePack) -> None:
    negative = replace(asked("1", "b"), windows_s=(), kind="absent")
    assert check_splits({"train": [asked("1", "a")], "val": [negative]}, pack) == []


def test_videos_without_a_query_are_counted(pack: FeaturePack) -> None:
    (note,) = check_splits({"train": [asked("1", "b")], "val": [asked("2", "b")]}, pack)
    assert note.startswith(f"1 of 2 videos in {pack.path} without a query in any split: not used")
    assert note.endswith("(such as a)")


def masked_dataset(
    pack: FeaturePack, *, at_input: bool, known: Sequence[str] = ("dog", "food")
) -> tuple[MomentDataset, FakeEncoder]:
    encoder = FakeEncoder()
    masking = Masking(Vocabulary.build(known), frozenset({"noun"}), at_input, encoder, 5)
    queries = ["a dog eats food", "the dog runs", "somebody runs away quickly"]
    annotations = [asked(str(i), "a", query=query) for i, query in enumerate(queries)]
    return MomentDataset(annotations, pack, encoder, masking), encoder


def test_masking_at_the_feature_leaves_the_features_to_the_model(pack: FeaturePack) -> None:
    dataset, encoder = masked_dataset(pack, at_input=False)
    plain = FakeEncoder().encode_queries(["a dog eats food"])[0].features
    item = dataset[0]
    assert item.masked is not None
    assert item.label is not None
    np.testing.assert_array_equal(item.text, plain)
    assert item.masked.sum() == 1
    place = int(item.masked.int().argmax())
    assert place in (2, 4)  # behind the special token: dog or food
    assert item.label[place] == (0 if place == 2 else 1)
    assert (item.label[~item.masked] == IGNORED).all()
    assert encoder.hidden == []


def test_masking_at_the_input_hides_the_word_from_every_token(pack: FeaturePack) -> None:
    dataset, encoder = masked_dataset(pack, at_input=True)
    item = dataset[1]
    assert item.masked is not None
    assert item.masked.tolist() == [False, False, True, False]
    assert encoder.hidden == [{1}]
    expected = FakeEncoder().encode_queries(["the dog runs"], hidden=[{1}])[0].features
    np.testing.assert_array_equal(item.text, expected)
    plain = FakeEncoder().encode_queries(["the dog runs"])[0].features
    assert (item.text.numpy()[:, 3] != plain[:, 3]).all()


def test_words_that_cannot_be_predicted_stay(pack: FeaturePack) -> None:
    dataset, encoder = masked_dataset(pack, at_input=True, known=("food",))
    masked = [item.masked for item in (dataset[0], dataset[1], dataset[2])]
    assert [m.sum().item() for m in masked if m is not None] == [1, 0, 0]
    assert encoder.hidden == [{3}]
    batch = collate([dataset[i] for i in range(3)])
    assert batch.masked is not None
    assert batch.masked.shape == (3, 5)


def test_masks_hang_on_seed_epoch_and_item_alone(pack: FeaturePack) -> None:
    def draw(epoch: int) -> list[list[bool]]:
        dataset, _ = masked_dataset(pack, at_input=False)
        dataset.epoch = epoch
        dataset[1]
        masks = [dataset[0].masked for _ in range(2)]
        return [mask.tolist() for mask in masks if mask is not None]

    drawn = [draw(epoch) for epoch in range(12)]
    assert drawn == [draw(epoch) for epoch in range(12)]
    assert all(first == again for first, again in drawn)
    assert len({tuple(first) for first, _ in drawn}) == 2


def test_words_of_a_part_of_speech_with_repetitions(pack: FeaturePack) -> None:
    dataset, _ = masked_dataset(pack, at_input=False)
    assert dataset.words_of({"noun"})[:3] == ["dog", "food", "dog"]
    assert [query.query for query in dataset.queries][1] == "the dog runs"


class Lengths:
    """Stands in for a data set: the sampler asks for lengths alone."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def length(self, index: int) -> int:
        return self.lengths[index]


def batches(
    lengths: Sequence[int], size: int, seed: int = 0, epoch: int = 0, rank: int = 0, world: int = 1
) -> list[list[int]]:
    sampler = LengthBatches(
        Lengths(lengths),  # type: ignore[arg-type]
        size,
        seed=seed,
        epoch=epoch,
        rank=rank,
        world=world,
    )
    found = list(sampler)
    assert len(sampler) == len(found)
    return found


LENGTHS = np.random.default_rng(0).integers(3, 80, 203).tolist()


def test_every_item_once_in_an_order_of_seed_and_epoch() -> None:
    first = batches(LENGTHS, 8)
    assert sorted(index for batch in first for index in batch) == list(range(203))
    assert all(0 < len(batch) <= 8 for batch in first)
    assert first == batches(LENGTHS, 8)
    assert first != batches(LENGTHS, 8, epoch=1)
    assert first != batches(LENGTHS, 8, seed=1)


def test_batches_hold_items_of_similar_length() -> None:
    def spread(grouped: list[list[int]]) -> float:
        return float(np.mean([np.ptp([LENGTHS[i] for i in batch]) for batch in grouped]))

    shuffled = np.random.default_rng(1).permutation(203)
    assert spread(batches(LENGTHS, 8)) < 0.2 * spread([*shuffled[:200].reshape(25, 8).tolist()])


@given(
    st.integers(1, 60), st.integers(1, 7), st.integers(1, 5), st.integers(0, 99), st.integers(0, 99)
)
@settings(max_examples=100, deadline=None)
def test_processes_share_the_items(
    items: int, size: int, world: int, seed: int, epoch: int
) -> None:
    shares = [batches([1] * items, size, seed, epoch, rank, world) for rank in range(world)]
    # Equally many batches of equal sizes, or one process would wait for the others forever.
    assert len({tuple(len(batch) for batch in share) for share in shares}) == 1
    flat = [index for share in shares for batch in share for index in batch]
    assert set(flat) == set(range(items))
    # Disjoint, but for what makes the shares equally long.
    assert len(flat) - items == -items % world


def test_queries_of_a_video_go_together(pack: FeaturePack) -> None:
    vids = ["a"] * 5 + ["b"] * 3 + ["a"] * 2
    annotations = [asked(str(i), vid) for i, vid in enumerate(vids)]
    dataset = MomentDataset(annotations, pack, FakeEncoder())
    by_vid = Counter(annotation.vid for annotation in dataset.annotations)
    orders = []
    for epoch in range(4):
        found = list(LengthBatches(dataset, 4, together=2, seed=0, epoch=epoch))
        assert sorted(index for batch in found for index in batch) == list(range(len(dataset)))
        alone = 0
        for batch in found:
            assert len(batch) <= 4
            here = Counter(dataset.annotations[index].vid for index in batch)
            alone += sum(count % 2 for count in here.values())
        # Only a video with an odd number of queries leaves one by itself.
        assert alone == sum(count % 2 for count in by_vid.values())
        orders.append(found)
    assert any(order != orders[0] for order in orders)


def test_an_epoch_may_draw_some_of_the_queries() -> None:
    sampler = LengthBatches(Lengths(LENGTHS), 8, limit=50, seed=0, epoch=0)  # type: ignore[arg-type]
    drawn = [index for batch in sampler for index in batch]
    assert len(drawn) == len(set(drawn)) == 50
    later = LengthBatches(Lengths(LENGTHS), 8, limit=50, seed=0, epoch=1)  # type: ignore[arg-type]
    assert {index for batch in later for index in batch} != set(drawn)
    whole = LengthBatches(Lengths(LENGTHS), 8, limit=500, seed=0, epoch=0)  # type: ignore[arg-type]
    assert sorted(index for batch in whole for index in batch) == list(range(203))


def test_sequential_batches_take_the_longest_first() -> None:
    found = sequential_batches(Lengths([3, 9, 5, 9]), 3)  # type: ignore[arg-type]
    assert found == [[1, 3, 2], [0]]


# --- long videos ------------------------------------------------------------------------------


@pytest.fixture
def long_pack(tmp_path: Path) -> FeaturePack:
    return pack_of(tmp_path / "long", {"long": 41.0, "short": 8.0})


def test_training_sees_a_stretch_that_holds_the_moment(long_pack: FeaturePack) -> None:
    at = ((17.0, 21.0),)
    present = replace(asked("1", "long", 41.0), windows_s=at, saliency={0: 0.25, 9: 0.5, 10: 1.0})
    absent = replace(asked("2", "long", 41.0), windows_s=())
    dataset = MomentDataset(
        [present, absent, asked("3", "short")], long_pack, FakeEncoder(), max_clips=8
    )
    assert [dataset.length(i) for i in range(3)] == [8, 8, 4]
    assert dataset.longest == 8
    whole, _ = prepare_video(long_pack["long"], IDENTITY)
    seen: dict[int, set[int]] = {0: set(), 1: set()}
    for epoch in range(30):
        dataset.epoch = epoch
        for index in (0, 1):
            item = dataset[index]
            again = dataset[index]
            # Items of a batch share what they can, and a resumed run draws the same.
            assert item.video is again.video
            rows = [r for r in range(14) if torch.equal(whole[r : r + 8, :3], item.video[:, :3])]
            assert len(rows) == 1
            seen[index].add(rows[0])
            low = 2.0 * rows[0]
            assert item.duration_s == min(16.0, 41.0 - low)
            assert item.span_norm[0].tolist() == [0.0, pytest.approx(2 / item.duration_s)]
            assert item.targets is not None
            assert bool(item.targets.foreground.any()) == (index == 0)
            if index == 0:
                clips = (item.targets.foreground.nonzero()[:, 0] + rows[0]).tolist()
                # Centres at 17, 19 and 21 s.
                assert clips == [8, 9, 10]
                found = item.targets.window_norm[9 - rows[0]] * item.duration_s + low
                assert found.tolist() == pytest.approx([17.0, 21.0], abs=1e-4)
                assert item.targets.saliency[9 - rows[0]] == 0.5
    assert len(seen[0]) > 1
    assert len(seen[1]) > len(seen[0])
    # Short videos are as ever, and for evaluation all are whole.
    plain = MomentDataset([present, absent, asked("3", "short")], long_pack, FakeEncoder())
    assert plain.length(0) == len(plain[0].video) == 21
    assert torch.equal(dataset[2].video, plain[2].video)
    assert dataset[2].targets is not None
    assert collate([dataset[i] for i in range(3)]).video.shape == (3, 8, 5)


def test_stretches_are_drawn_by_the_seed_of_the_run(long_pack: FeaturePack) -> None:
    absent = [replace(asked(str(i), "long", 41.0), windows_s=()) for i in range(30)]

    def starts(seed: int, epoch: int = 0) -> list[int]:
        dataset = MomentDataset(absent, long_pack, FakeEncoder(), max_clips=8, seed=seed)
        dataset.epoch = epoch
        return [dataset[index].first_clip for index in range(30)]

    assert starts(3) == starts(3)
    assert starts(3) != starts(4)
    assert starts(3) != starts(3, epoch=1)


def test_equal_sentences_are_known(pack: FeaturePack) -> None:
    queries = ("A dog eats!", "a dog  eats", "the dog eats", "?!", "?", "?!")
    annotations = [asked(str(i), "ab"[i % 2], 8.0 - i % 2, q) for i, q in enumerate(queries)]
    dataset = MomentDataset(annotations, pack, FakeEncoder())
    assert [dataset[i].sentence for i in range(6)] == [0, 0, 1, 2, 3, 2]
    assert [dataset[i].vid for i in range(6)] == [0, 1] * 3


def test_noise_falls_on_the_stretch_alone(long_pack: FeaturePack) -> None:
    dataset = MomentDataset([asked("1", "long", 41.0)], long_pack, FakeEncoder(), max_clips=8)
    plain = dataset[0]

    def augment(
        video: VideoFeatures, query: QueryFeatures, epoch: int, index: int
    ) -> NoisyFeatures:
        del query, epoch, index
        assert len(video.features) == 8
        return NoisyFeatures(replace(video, features=video.features + np.float16(1)), None, 0.5)

    dataset.augment = augment
    noisy = dataset[0]
    assert noisy.noise == 0.5
    torch.testing.assert_close(noisy.video[:, :3], plain.video[:, :3] + 1, atol=2e-3, rtol=2e-3)
    assert torch.equal(noisy.video[:, 3:], plain.video[:, 3:])

"""Targets of a query and padding of a batch."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from demr.batches.batch import Item, Targets, collate, make_targets


def spans(count: int, clip_s: float, duration_s: float) -> Tensor:
    """Start and end of every clip as fractions; the last clip may be cut short."""
    start = torch.arange(count) * clip_s
    return torch.stack([start, (start + clip_s).clamp(max=duration_s)], dim=1) / duration_s


def marked(targets: Targets) -> list[int]:
    return [int(index) for index in targets.foreground.nonzero()[:, 0]]


TEN_CLIPS = spans(10, 2.0, 20.0)  # centres at 1, 3, 5, ... 19 s


def test_a_clip_is_foreground_where_its_centre_lies_in_the_window() -> None:
    targets = make_targets([(4.5 / 20, 9.5 / 20)], TEN_CLIPS)
    assert marked(targets) == [2, 3, 4]  # centres 5, 7, 9
    torch.testing.assert_close(targets.window_norm, torch.tensor([[0.225, 0.475]] * 10))
    assert torch.equal(targets.saliency, targets.foreground.float())


def test_centres_on_the_edge_of_a_window_count() -> None:
    assert marked(make_targets([(0.25, 0.75)], spans(2, 1.0, 2.0))) == [0, 1]


@pytest.mark.parametrize(
    ("window_s", "clip"),
    [((6.1, 6.5), 3), ((7.2, 7.9), 3), ((5.4, 6.2), 2), ((5.9, 6.4), 3), ((0.0, 0.1), 0)],
)
def test_a_short_window_marks_the_clip_with_its_middle(
    window_s: tuple[float, float], clip: int
) -> None:
    window = (window_s[0] / 20, window_s[1] / 20)
    targets = make_targets([window], TEN_CLIPS)
    assert marked(targets) == [clip]
    torch.testing.assert_close(targets.window_norm[clip], torch.tensor(window))


def test_a_window_at_or_past_the_last_clip_marks_the_last_clip() -> None:
    assert marked(make_targets([(0.999, 1.0)], TEN_CLIPS)) == [9]
    assert marked(make_targets([(1.01, 1.02)], TEN_CLIPS)) == [9]


def test_the_last_partial_clip_is_judged_by_its_own_centre() -> None:
    span = spans(4, 2.0, 6.5)  # the last clip is 6.0 to 6.5 s, its centre 6.25 s and not 7 s
    assert marked(make_targets([(6.2 / 6.5, 1.0)], span)) == [3]
    assert marked(make_targets([(4.6 / 6.5, 6.2 / 6.5)], span)) == [2]  # by its middle, 5.4 s
    assert marked(make_targets([(6.3 / 6.5, 6.4 / 6.5)], span)) == [3]


def test_in_overlapping_windows_a_clip_belongs_to_the_nearest_middle() -> None:
    first, second = (0.0, 12 / 20), (8 / 20, 1.0)  # middles at 6 and 14 s
    targets = make_targets([first, second], TEN_CLIPS)
    assert marked(targets) == list(range(10))
    torch.testing.assert_close(targets.window_norm[:5], torch.tensor([first] * 5))
    torch.testing.assert_close(targets.window_norm[5:], torch.tensor([second] * 5))


def test_several_windows_keep_their_own_clips() -> None:
    targets = make_targets([(0.5, 0.7), (0.1, 0.2)], TEN_CLIPS)
    assert marked(targets) == [1, 5, 6]
    torch.testing.assert_close(targets.window_norm[1], torch.tensor([0.1, 0.2]))
    torch.testing.assert_close(targets.window_norm[6], torch.tensor([0.5, 0.7]))
    # Between 0.2 and 0.5 the clip at 0.35 is as far from both.
    torch.testing.assert_close(targets.window_norm[2], torch.tensor([0.1, 0.2]))
    torch.testing.assert_close(targets.window_norm[4], torch.tensor([0.5, 0.7]))


def test_an_absent_moment_has_no_foreground() -> None:
    targets = make_targets([], TEN_CLIPS)
    assert marked(targets) == []
    assert targets.window_norm.shape == (10, 2)
    assert targets.saliency.sum() == 0


def test_given_saliency_is_kept() -> None:
    given_saliency = torch.linspace(0, 1, 10)
    targets = make_targets([(0.1, 0.2)], TEN_CLIPS, given_saliency)
    assert targets.saliency is given_saliency


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 30),
    part=st.floats(0.05, 1.0),
    windows=st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted), min_size=1, max_size=4
    ),
)
def test_every_query_with_a_window_has_foreground_and_every_clip_a_window_of_its_own(
    count: int, part: float, windows: list[list[float]]
) -> None:
    span = spans(count, 2.0, 2.0 * (count - 1 + part))
    pairs = [(window[0], window[1]) for window in windows]
    targets = make_targets(pairs, span)
    assert targets.foreground.any()
    known = torch.tensor(pairs)
    for index in range(count):
        start, end = span[index].tolist()
        centre = (start + end) / 2
        holds = [w for w in pairs if w[0] - 1e-6 <= centre <= w[1] + 1e-6]
        short = [w for w in pairs if start - 1e-6 <= (w[0] + w[1]) / 2 <= end + 1e-6]
        if targets.foreground[index]:
            assert (targets.window_norm[index] == known).all(dim=1).any()
            assert holds or short or index == count - 1
        else:
            gap = {w: max(w[0] - centre, centre - w[1]) for w in pairs}
            own = (targets.window_norm[index] == known).all(dim=1).nonzero()[:, 0].tolist()
            assert min(gap[pairs[i]] for i in own) == pytest.approx(min(gap.values()), abs=1e-6)
            assert not [w for w in pairs if w[0] + 1e-6 < centre < w[1] - 1e-6]


# --- batches ----------------------------------------------------------------------------------


def item(
    clips: int, tokens: int, *, event: int = -1, window: tuple[float, float] = (0.2, 0.6)
) -> Item:
    generator = torch.Generator().manual_seed(clips * 100 + tokens)
    span = spans(clips, 2.0, 2.0 * clips - 0.5)
    return Item(
        video=torch.randn(clips, 6, generator=generator),
        text=torch.randn(tokens, 4, generator=generator),
        span_norm=span,
        duration_s=2.0 * clips - 0.5,
        targets=make_targets([window], span),
        event=event,
    )


def test_collate_pads_and_masks() -> None:
    items = [item(3, 5, event=4), replace(item(6, 2), vid=2, first_clip=5, sentence=8)]
    batch = collate(items)
    assert len(batch) == 2
    assert batch.video.shape == (2, 6, 6)
    assert batch.text.shape == (2, 5, 4)
    assert batch.video_mask.tolist() == [[True] * 3 + [False] * 3, [True] * 6]
    assert batch.text_mask.tolist() == [[True] * 5, [True] * 2 + [False] * 3]
    assert batch.event.tolist() == [4, -1]
    assert batch.vid.tolist() == [-1, 2]
    assert batch.first_clip.tolist() == [0, 5]
    assert batch.sentence.tolist() == [-1, 8]
    assert batch.duration_s.tolist() == [5.5, 11.5]
    assert batch.masked is None
    assert batch.label is None
    assert batch.targets is not None
    for row, one in enumerate(items):
        clips = len(one.video)
        assert one.targets is not None
        assert torch.equal(batch.video[row, :clips], one.video)
        assert torch.equal(batch.text[row, : len(one.text)], one.text)
        assert torch.equal(batch.targets.foreground[row, :clips], one.targets.foreground)
        assert not batch.targets.foreground[row, clips:].any()
        assert torch.equal(batch.targets.window_norm[row, :clips], one.targets.window_norm)
        torch.testing.assert_close(batch.centre_norm[row, :clips], one.span_norm.mean(dim=1))
    # The middle of the last, partial clip: 4.0 to 5.5 s of 5.5 s.
    assert batch.centre_norm[0, 2].item() == pytest.approx(4.75 / 5.5)


def test_collate_carries_the_masked_words() -> None:
    plain = [item(3, 5), item(4, 2)]
    hidden = [
        replace(one, masked=torch.arange(len(one.text)) == 1, label=torch.arange(len(one.text)) + 7)
        for one in plain
    ]
    batch = collate(hidden)
    assert batch.masked is not None
    assert batch.label is not None
    assert batch.masked.tolist() == [[False, True, False, False, False]] * 2
    assert batch.label[1].tolist() == [7, 8, 0, 0, 0]


def test_collate_refuses_what_the_model_cannot_read() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        collate([])
    with pytest.raises(ValueError, match="all items"):
        collate([item(3, 2), replace(item(3, 2), targets=None)])
    with pytest.raises(ValueError, match="one clip and one token"):
        collate([item(3, 2), replace(item(3, 2), text=torch.zeros(0, 4))])
    with pytest.raises(ValueError, match="one clip and one token"):
        collate([replace(item(3, 2), video=torch.zeros(0, 6))])


def test_without_targets_a_batch_has_none() -> None:
    assert collate([replace(item(3, 2), targets=None)]).targets is None


def test_moving_a_batch_moves_every_tensor() -> None:
    one = item(3, 2)
    batch = collate(
        [replace(one, masked=torch.ones(2, dtype=torch.bool), label=torch.ones(2).long())]
    )
    moved = batch.to("meta")
    assert moved.targets is not None
    assert moved.masked is not None
    assert moved.label is not None
    tensors = [
        moved.video, moved.video_mask, moved.text, moved.text_mask, moved.centre_norm,
        moved.duration_s, moved.vid, moved.first_clip, moved.event, moved.sentence, moved.masked,
        moved.label, moved.targets.foreground, moved.targets.window_norm, moved.targets.saliency,
    ]  # fmt: skip
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert batch.video.device.type == "cpu"

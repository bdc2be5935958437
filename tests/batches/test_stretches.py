"""Every clip has one answer, and short moments are seen whole."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from demr.batches.batch import Item
from demr.batches.stretches import (
    Stretch,
    cut_features,
    cut_item,
    holding,
    plan_stretches,
    shared_clips,
    windows_within,
)
from demr.encoders.base import EncoderIdentity, VideoFeatures, clip_count
from demr.features.prepare import prepare_video

IDENTITY = EncoderIdentity("fake", "1", 2.0, (("colour", 3),), 4, "l2")


def test_stretches_by_hand() -> None:
    # Five clips of which ten are covered: middles at 2, 4.5 -> 4, 7; the say changes between.
    assert plan_stretches(5, 5) == (Stretch(0, 5, 0, 5),)
    assert plan_stretches(1, 1000) == (Stretch(0, 1, 0, 1),)
    assert plan_stretches(7, 4) == (Stretch(0, 4, 0, 3), Stretch(2, 6, 3, 5), Stretch(3, 7, 5, 7))
    assert plan_stretches(3, 1) == tuple(Stretch(i, i + 1, i, i + 1) for i in range(3))


@pytest.mark.parametrize(("clips", "max_clips"), [(0, 5), (5, 0), (-1, 5), (5, -1)])
def test_nothing_to_cut_is_refused(clips: int, max_clips: int) -> None:
    with pytest.raises(ValueError, match="at least one clip"):
        plan_stretches(clips, max_clips)


@given(clips=st.integers(1, 400), max_clips=st.integers(1, 60))
def test_every_clip_has_the_stretch_in_which_it_lies_most_centrally(
    clips: int, max_clips: int
) -> None:
    plan = plan_stretches(clips, max_clips)
    assert [c for s in plan for c in range(s.core_start, s.core_stop)] == list(range(clips))
    assert len({len(s) for s in plan}) == 1
    assert len(plan[0]) == min(clips, max_clips)
    # Linear in length: all clips are read about twice, at the most three times.
    assert sum(map(len, plan)) <= max(3 * clips, 1)
    for stretch in plan:
        for clip in range(stretch.core_start, stretch.core_stop):
            away = [abs(clip - (s.start + s.stop - 1) / 2) for s in plan]
            own = abs(clip - (stretch.start + stretch.stop - 1) / 2)
            assert stretch.start <= clip < stretch.stop
            assert own == min(away)


@given(data=st.data(), max_clips=st.integers(1, 60))
def test_a_moment_that_fits_the_overlap_lies_whole_in_a_stretch_that_answers_for_it(
    data: st.DataObject, max_clips: int
) -> None:
    clips = data.draw(st.integers(max_clips, 300))
    shared = shared_clips(max_clips)
    length = data.draw(st.integers(1, max(shared, 1)))
    first = data.draw(st.integers(0, clips - length))
    moment = range(first, first + length)
    plan = plan_stretches(clips, max_clips)
    assert any(
        s.start <= moment[0]
        and moment[-1] < s.stop
        and any(s.core_start <= clip < s.core_stop for clip in moment)
        for s in plan
    )
    # Training is shown such a moment whole, too.
    for stretch in holding(plan, (2.0 * first, 2.0 * (first + length)), 2.0):
        assert stretch.start <= moment[0]
        assert moment[-1] < stretch.stop


@given(duration_s=st.floats(11.0, 90.0), max_clips=st.integers(1, 5))
def test_a_stretch_is_prepared_as_a_video_of_its_own(duration_s: float, max_clips: int) -> None:
    rng = np.random.default_rng(1)
    clips = clip_count(duration_s, 2.0)
    features = rng.normal(size=(clips, 3)).astype(np.float32)
    whole = VideoFeatures("v", duration_s, 2.0, features)
    video, span_norm = prepare_video(whole, IDENTITY)
    item = Item(video, torch.zeros(1, 4), span_norm, duration_s)
    for stretch in plan_stretches(clips, max_clips):
        alone = cut_features(whole, stretch, clips)
        own, own_span = prepare_video(alone, IDENTITY)
        cut = cut_item(item, stretch, 2.0)
        assert torch.equal(cut.video, own)
        assert torch.equal(cut.span_norm, own_span)
        assert cut.duration_s == alone.duration_s
    assert cut.duration_s == pytest.approx(duration_s - 2.0 * stretch.start)
    assert torch.equal(item.video, video)


def test_a_video_that_fits_is_not_touched() -> None:
    item = Item(torch.ones(3, 5), torch.zeros(1, 4), torch.zeros(3, 2), 6.0)
    assert cut_item(item, plan_stretches(3, 3)[0], 2.0) is item


def test_windows_within_a_stretch_by_hand() -> None:
    # The stretch shows 10..20 s in clips of 2 s: whole, cut, seen for a second and for half of
    # one, shorter than a clip, and elsewhere.
    windows = [(12.0, 14.0), (5.0, 15.0), (19.0, 30.0), (2.0, 10.5), (10.0, 10.2), (30.0, 40.0)]
    assert windows_within(windows, 10.0, 10.0, 2.0) == [
        pytest.approx(pair) for pair in [(0.2, 0.4), (0.0, 0.5), (0.9, 1.0), (0.0, 0.02)]
    ]


def test_where_no_stretch_holds_a_window_the_one_that_holds_most_is_shown() -> None:
    plan = plan_stretches(10, 4)
    assert holding(plan, (5.0, 15.0), 2.0) == [plan[1]]
    # A window may end a hair behind the last clip.
    assert holding(plan, (16.0, 20.3), 2.0) == [plan[-1]]

"""Finding stretches in a similarity curve: planted ones, none, and those of real features."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from benchmarks.studies.prepare_tracks import (
    Sources,
    class_embeddings,
    durations_of,
    read_actions,
    timeline,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from demr.annotations.annotations import read_annotations
from demr.annotations.windows import iou
from demr.errors import FeatureError
from demr.features.sources import open_source
from demr.search.similarity import _maximal, localise

Floats = NDArray[np.float64]
Finder = Callable[[Floats], tuple[float, float]]


def found(curve: Floats) -> tuple[float, float]:
    best = localise(curve, 1.0, float(len(curve)), top=1)[0]
    return best.start_s, best.end_s


def whole(curve: Floats) -> tuple[float, float]:
    return 0.0, float(len(curve))


def around_the_peak(curve: Floats) -> tuple[float, float]:
    """A quarter of the video around its best clip: what one would do without a method."""
    half = len(curve) / 8
    middle = float(np.argmax(curve)) + 0.5
    return max(0.0, middle - half), min(float(len(curve)), middle + half)


def at_random(seed: int) -> Finder:
    rng = np.random.default_rng(seed)

    def draw(curve: Floats) -> tuple[float, float]:
        low, high = sorted(rng.uniform(0, len(curve), 2).tolist())
        return low, high

    return draw


def overlaps(finder: Finder, cases: list[tuple[Floats, tuple[float, float]]]) -> Floats:
    pairs = np.array([(finder(curve), truth) for curve, truth in cases])
    return iou(pairs[:, 0], pairs[:, 1])


def planted(
    seed: int, height: float, count: int = 300, memory: float = 0.0
) -> list[tuple[Floats, tuple[float, float]]]:
    """Curves of 20 to 150 clips with one plateau, its height in deviations of the noise."""
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(count):
        clips = int(rng.integers(20, 150))
        length = int(rng.integers(2, clips // 2))
        first = int(rng.integers(0, clips - length + 1))
        noise = rng.normal(size=clips)
        for index in range(1, clips):
            fresh = np.sqrt(1 - memory**2) * noise[index]
            noise[index] = memory * noise[index - 1] + fresh
        noise[first : first + length] += height
        cases.append((0.2 + 0.03 * noise, (float(first), float(first + length))))
    return cases


@pytest.mark.parametrize(
    ("height", "memory", "least"), [(4, 0.0, 0.95), (4, 0.6, 0.93), (2, 0.0, 0.8), (2, 0.6, 0.65)]
)
def test_planted_plateaus_are_found(height: float, memory: float, least: float) -> None:
    cases = planted(0, height, memory=memory)
    mean = overlaps(found, cases).mean()
    assert mean > least
    for baseline in (whole, around_the_peak, at_random(1)):
        assert mean > overlaps(baseline, cases).mean() + 0.2


def test_without_noise_the_plateau_is_found_exactly() -> None:
    for curve, truth in planted(1, 0.0, count=50):
        flat = np.full_like(curve, 0.2)
        flat[int(truth[0]) : int(truth[1])] = 0.3
        (only,) = localise(flat, 2.0, 2.0 * len(flat))
        assert (only.start_s, only.end_s) == (2 * truth[0], 2 * truth[1])
        assert only.score == pytest.approx(1)


def test_several_plateaus_come_by_what_they_hold() -> None:
    curve = np.full(100, 0.2) + np.random.default_rng(0).normal(0, 0.002, 100)
    curve[10:14] += 0.1
    curve[50:62] += 0.1
    curve[80:86] += 0.1
    found = localise(curve, 2.0, 200.0)
    assert [(f.start_s, f.end_s) for f in found[:3]] == [(100, 124), (160, 172), (20, 28)]
    scores = [f.score for f in found]
    assert scores == sorted(scores, reverse=True)
    # The three share what stands out by their lengths.
    assert scores[:3] == pytest.approx([12 / 22, 6 / 22, 4 / 22], abs=0.02)
    assert len(localise(curve, 2.0, 200.0, top=2)) == 2


def test_a_short_dip_does_not_end_a_moment_and_a_long_one_does() -> None:
    curve = np.full(60, 0.2)
    curve[20:32] = 0.3
    curve[26] = 0.21
    assert found(curve) == (20, 32)
    curve[23:30] = 0.2
    assert found(curve) == (20, 23)


def test_a_moment_of_more_than_half_the_video() -> None:
    curve = np.full(40, 0.2) + np.random.default_rng(0).normal(0, 0.005, 40)
    curve[4:30] += 0.1
    assert found(curve) == (4, 30)


@pytest.mark.parametrize(
    "curve",
    [[0.3], [0.2] * 17, [0.0] * 3, [-0.1, -0.1], (0.25 + 1e-9 * np.arange(9)).tolist()],
)
def test_where_nothing_stands_out_the_whole_video_is_named_with_score_zero(
    curve: list[float],
) -> None:
    (only,) = localise(curve, 2.0, 2.0 * len(curve) - 0.5)
    assert (only.start_s, only.end_s, only.score) == (0.0, 2.0 * len(curve) - 0.5, 0.0)


def test_the_last_clip_ends_with_the_video() -> None:
    (only,) = localise([0.1, 0.1, 0.1, 0.3, 0.3], 2.0, 8.7)
    assert (only.start_s, only.end_s) == (6.0, 8.7)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(FeatureError, match="NaN or infinity"):
        localise([0.1, value, 0.2], 2.0, 6.0)


def test_what_is_no_curve_is_refused() -> None:
    for wrong in ([], [[0.1, 0.2]], 0.3):
        with pytest.raises(FeatureError, match="shape"):
            localise(wrong, 2.0, 4.0)


@settings(deadline=None)
@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=60),
    st.floats(0.1, 10),
    st.integers(1, 8),
)
def test_answers_are_windows_of_the_video_best_first(
    curve: list[float], clip_s: float, top: int
) -> None:
    duration = clip_s * (len(curve) - 0.25)
    stretches = localise(curve, clip_s, duration, top=top)
    assert 1 <= len(stretches) <= top
    scores = [s.score for s in stretches]
    assert scores == sorted(scores, reverse=True)
    for s in stretches:
        assert 0 <= s.start_s < s.end_s <= duration
        assert 0 <= s.score <= 1 + 1e-9


def test_scale_and_offset_of_the_similarity_change_nothing() -> None:
    for curve, _ in planted(2, 2.0, count=20):
        for scale, offset in ((0.1, 0.0), (30.0, -5.0)):
            one = localise(curve, 1.0, float(len(curve)))
            other = localise(curve * scale + offset, 1.0, float(len(curve)))
            assert [(s.start_s, s.end_s) for s in one] == [(s.start_s, s.end_s) for s in other]
            assert [s.score for s in one] == pytest.approx([s.score for s in other], abs=1e-6)


def test_a_video_of_a_day() -> None:
    curve = np.random.default_rng(0).normal(0.2, 0.01, 43_200)
    curve[30_000:30_050] += 0.05
    best = localise(curve, 2.0, 86_400.0)[0]
    assert iou(np.array([best.start_s, best.end_s]), np.array([60_000.0, 60_100.0])) > 0.9


def slow_maximal(gains: Floats, offset: int = 0) -> list[tuple[int, int]]:
    """The definition: the best window, then the same on what is left and right of it."""
    best, where = 0.0, (0, 0)
    for first in range(len(gains)):
        for behind in range(first + 1, len(gains) + 1):
            if gains[first:behind].sum() > best:
                best, where = float(gains[first:behind].sum()), (first, behind)
    if best <= 0:
        return []
    left = slow_maximal(gains[: where[0]], offset)
    right = slow_maximal(gains[where[1] :], offset + where[1])
    return [*left, (offset + where[0], offset + where[1]), *right]


def test_maximal_windows_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        gains = rng.normal(rng.uniform(-0.5, 0.5), 1, rng.integers(1, 25))
        assert list(_maximal(gains)) == slow_maximal(gains)


@pytest.mark.data
def test_segments_of_real_videos_are_found_by_their_mean_embedding(data_dir: Path) -> None:
    """Query: the mean CLIP embedding of the frames in an annotated window; nothing else is planted.

    It shows that real similarity curves, which fade slowly, are read well. It says nothing of
    how well a sentence's embedding fits the frames. At IoU 0.5 a quarter of the video around the
    best clip is a strong rival (79 %), since moments of Charades are that long; not at IoU 0.7.
    """
    source = open_source(data_dir / "features" / "charades_sta_test_clip_vitb32_1fps")
    unit = {}
    for vid in source.vids:
        rows = np.asarray(source.rows(vid), dtype=np.float64)
        unit[vid] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cases = []
    for annotation in read_annotations(data_dir / "annotations" / "charades_sta" / "test.jsonl"):
        (window,) = annotation.windows_s or ()
        rows = unit[annotation.vid]
        middle = np.arange(len(rows)) + 0.5
        query = rows[(middle >= window[0]) & (middle < window[1])].mean(axis=0)
        cases.append((rows @ query / np.linalg.norm(query), window))
    assert len(cases) == 3720
    measured = overlaps(found, cases)
    print(f"R1@0.5 {(measured >= 0.5).mean():.4f}, mIoU {measured.mean():.4f}")
    assert (measured >= 0.5).mean() > 0.7
    for baseline in (whole, at_random(0)):
        assert (overlaps(baseline, cases) >= 0.5).mean() < 0.2
    assert (measured >= 0.7).mean() > (overlaps(around_the_peak, cases) >= 0.7).mean() + 0.05


@pytest.mark.data
@pytest.mark.parametrize("noise", [0.0, 2.0, 4.0])
def test_actions_of_the_timeline_track_are_found_by_their_names(
    data_dir: Path, noise: float
) -> None:
    """Query: the name of an action that one stretch of the video shows; others overlap it.

    The word vectors of two actions have a cosine of 0.68 (median), so that curves rise for
    whatever happens; noise of length 4 is far longer than what an action adds to a clip.
    R1@0.5 is 82, 69 and 59 %; a quarter of the video around the best clip has 57, 56 and 50 %.
    """
    sources = Sources(data_dir)
    actions, classes = read_actions(sources.root / "annotations" / "charades_actions")
    names = class_embeddings(classes, sources.words)
    cases = []
    for vid, duration_s in sorted(durations_of({"val": sources.splits()["val"]}).items()):
        rows = timeline(vid, duration_s, actions[vid], names, noise)
        once = Counter(number for number, _, _ in actions[vid])
        for number, start, end in actions[vid]:
            if once[number] == 1 and 2.0 <= end - start <= 0.5 * duration_s:
                cases.append(((rows @ names[number]).astype(np.float64), (start, end)))
    measured = overlaps(found, cases)
    hit = {
        finder: float((overlaps(finder, cases) >= 0.5).mean())
        for finder in (whole, around_the_peak, at_random(0))
    }
    print(len(cases), f"R1@0.5 {(measured >= 0.5).mean():.3f}, mIoU {measured.mean():.3f}", hit)
    assert len(cases) > 1000
    assert (measured >= 0.5).mean() > max(hit.values()) + 0.05

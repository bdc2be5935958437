from typing import Any

import numpy as np
import pytest

from demr.answers.domain import check_domain, describe_domain, measure_strangeness


def test_half_precision_means_the_same_numbers() -> None:
    rng = np.random.default_rng(0)
    videos = [(1000 * rng.normal(size=(40, 3))).astype(np.float16) for _ in range(5)]
    singles = [video.astype(np.float32) for video in videos]
    domain = describe_domain(singles[:3], singles[3:])
    assert describe_domain(videos[:3], videos[3:]) == domain
    strange = measure_strangeness(singles[4] * 1.5, domain)
    assert strange > 0
    assert measure_strangeness(videos[4] * np.float16(1.5), domain) == pytest.approx(strange)


def test_the_range_is_that_of_single_precision() -> None:
    # Between 2048 and 2050 half precision knows nothing: a quantile there would be rounded.
    video = np.array([[2048.0], [2050.0]], np.float16)
    assert describe_domain([video], [])["scales"][0]["low"] == [2048.001]


def test_the_edge_is_where_videos_lie_that_were_held_out() -> None:
    # Training videos hold 0 and 1 alone, so that none of their values is out of their own range;
    # half of the values of the video held out are.
    train = [np.array([[0.0], [1.0], [0.0], [1.0]])] * 3
    held_out = np.array([[0.0], [1.0], [5.0], [-5.0]])
    domain = describe_domain(train, [held_out])
    (scale,) = domain["scales"]
    assert (scale["clips"], scale["low"], scale["high"]) == (1, [0.0], [1.0])
    # The 0.999 quantile of 0, 0, 0, 0.5 would be 0.4985; that of the one held out is 0.5.
    assert scale["edge"] == pytest.approx(0.5)
    assert measure_strangeness(held_out, domain) == pytest.approx(1.0)
    assert measure_strangeness(np.array([[9.0], [9.0]]), domain) == pytest.approx(2.0)
    # Where nothing lies outside, one value in a thousand is the edge.
    assert describe_domain(train, [])["scales"][0]["edge"] == 1e-3
    assert measure_strangeness(held_out, None) == 0


def test_the_range_is_stored_in_four_digits() -> None:
    (scale,) = describe_domain([np.array([[1 / 3], [1 / 3]])], [])["scales"]
    assert (scale["low"], scale["high"]) == ([0.3333], [0.3333])


def test_the_range_has_some_slack() -> None:
    # 1 % of the range and 1e-4: up to 10.1001 and down to -0.1001 lies inside.
    domain = {"scales": [{"clips": 1, "low": [0.0], "high": [10.0], "edge": 1.0}]}
    values = np.array([[-0.2], [-0.1], [-0.05], [5.0], [10.1], [10.2], [10.3], [-9.0]])
    assert measure_strangeness(values, domain) == 4 / 8


def test_clips_that_are_usual_one_by_one_are_strange_in_a_row() -> None:
    # Trained on clips that are 0 and 1 in turn, whose means of ten are 0.5. A video of ones has
    # no clip that is out of range, and no mean that is inside.
    turns = np.tile([[0.0], [1.0]], (10, 1))
    domain = describe_domain([turns] * 3, [turns])
    assert [scale["clips"] for scale in domain["scales"]] == [1, 10]
    assert (domain["scales"][1]["low"], domain["scales"][1]["high"]) == ([0.5], [0.5])
    assert measure_strangeness(turns, domain) == 0
    assert measure_strangeness(np.ones((20, 1)), domain) == pytest.approx(1 / 1e-3)
    # Of fewer than ten clips nothing is known but what they are one by one.
    assert measure_strangeness(np.ones((9, 1)), domain) == 0
    # Half of the means, those of clips 0 to 9, 5 to 14 and 10 to 19, are of ones alone.
    late = np.concatenate([turns[:10], np.ones((10, 1))])
    assert measure_strangeness(late, domain) == pytest.approx(2 / 3 / 1e-3)


def test_a_scale_that_most_training_videos_do_not_reach_is_left_out() -> None:
    short, long = np.zeros((9, 1)), np.zeros((10, 1))
    assert len(describe_domain([short, short, long], [])["scales"]) == 1
    assert len(describe_domain([short, long], [])["scales"]) == 2


def test_one_video_in_a_thousand_lies_beyond_the_edge_of_all_scales_together() -> None:
    rng = np.random.default_rng(0)

    def videos(count: int) -> list[Any]:
        # Each has a level of its own, so that its means differ from those of other videos.
        return [rng.normal(size=(20, 6)) + rng.normal(size=(1, 6)) for _ in range(count)]

    # So few training videos draw a range that others leave: those held out tell by how much.
    domain = describe_domain(videos(100), videos(1000))
    strange = np.mean([measure_strangeness(video, domain) > 1 for video in videos(2000)])
    assert strange <= 0.004


def test_the_domain_of_older_models_is_that_of_single_clips() -> None:
    old = {"low": [0.0], "high": [1.0], "edge": 0.5}
    domain = check_domain(old, 1)
    assert measure_strangeness(np.array([[2.0], [0.0]]), domain) == pytest.approx(1.0)


def test_numbers_that_are_strings_are_numbers() -> None:
    words = check_domain({"low": ["0"], "high": ["1e0"], "edge": "0.5"}, 1)
    assert words == check_domain({"low": [0.0], "high": [1.0], "edge": 0.5}, 1)
    assert measure_strangeness(np.array([[2.0], [0.0]]), words) == pytest.approx(1.0)


def test_what_is_like_videos_of_the_calibration_is_not_strange() -> None:
    own = check_domain({"low": [0.0], "high": [1.0], "edge": 0.5}, 1)
    other = check_domain({"low": [8.0], "high": [9.0], "edge": 0.5})
    for value, strange in ((0.5, 0.0), (8.5, 0.0), (5.0, 2.0)):
        assert measure_strangeness(np.array([[value]]), own, other) == strange
    assert measure_strangeness(np.array([[8.5]]), own) == 2.0
    assert measure_strangeness(np.array([[5.0]]), None, other) == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": [0.0]}, "domain low must be 2 finite numbers"),
        ({"high": [1.0, float("inf")]}, "domain high must be 2 finite numbers"),
        ({"edge": 0.0}, "domain edge must be a number above 0"),
        ({"edge": float("inf")}, "domain edge must be a number above 0"),
        ({"edge": [1.0]}, "domain edge must be a number above 0"),
        ({"clips": 0}, "domain clips must be a whole number above 0"),
        ({"clips": True}, "domain clips must be a whole number above 0"),
        ({"clips": 2}, "the first of domain scales must be that of single clips"),
    ],
)
def test_a_domain_that_is_damaged(change: dict[str, Any], message: str) -> None:
    sound = {"clips": 1, "low": [0.0, 0.0], "high": [1.0, 1.0], "edge": 0.25}
    assert check_domain({"scales": [sound]}, 2) == {"scales": [sound]}
    assert check_domain(None, 2) is None
    with pytest.raises(ValueError, match=message):
        check_domain({"scales": [sound | change]}, 2)
    with pytest.raises(TypeError, match="domain must be an object"):
        check_domain([sound], 2)
    with pytest.raises(TypeError, match="must be a list of objects"):
        check_domain({"scales": sound}, 2)
    with pytest.raises(ValueError, match="the first of domain scales"):
        check_domain({"scales": []}, 2)
    with pytest.raises(KeyError, match="edge"):
        check_domain({"low": [0.0, 0.0], "high": [1.0, 1.0]}, 2)

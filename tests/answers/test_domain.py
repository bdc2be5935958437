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
    assert describe_domain([video], [])["low"] == [2048.001]


def test_the_edge_is_where_videos_lie_that_were_held_out() -> None:
    # Training videos hold 0 and 1 alone, so that none of their values is out of their own range;
    # half of the values of the video held out are.
    train = [np.array([[0.0], [1.0], [0.0], [1.0]])] * 3
    held_out = np.array([[0.0], [1.0], [5.0], [-5.0]])
    domain = describe_domain(train, [held_out])
    assert (domain["low"], domain["high"]) == ([0.0], [1.0])
    # The 0.999 quantile of 0, 0, 0, 0.5: 0.997 of the way from the third to the fourth.
    assert domain["edge"] == pytest.approx(0.4985)
    assert measure_strangeness(held_out, domain) == pytest.approx(0.5 / 0.4985)
    assert measure_strangeness(np.array([[9.0], [9.0]]), domain) == pytest.approx(1 / 0.4985)
    # Where nothing lies outside, one value in a thousand is the edge.
    assert describe_domain(train, [])["edge"] == 1e-3
    assert measure_strangeness(held_out, None) == 0


def test_the_range_is_stored_in_four_digits() -> None:
    domain = describe_domain([np.array([[1 / 3], [1 / 3]])], [])
    assert (domain["low"], domain["high"]) == ([0.3333], [0.3333])


def test_the_range_has_some_slack() -> None:
    # 1 % of the range and 1e-4: up to 10.1001 and down to -0.1001 lies inside.
    domain = {"low": [0.0], "high": [10.0], "edge": 1.0}
    values = np.array([[-0.2], [-0.1], [-0.05], [5.0], [10.1], [10.2], [10.3], [-9.0]])
    assert measure_strangeness(values, domain) == 4 / 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": [0.0]}, "domain low must be 2 finite numbers"),
        ({"high": [1.0, float("inf")]}, "domain high must be 2 finite numbers"),
        ({"edge": 0.0}, "domain edge must be a number above 0"),
        ({"edge": float("inf")}, "domain edge must be a number above 0"),
        ({"edge": [1.0]}, "domain edge must be a number above 0"),
    ],
)
def test_a_domain_that_is_damaged(change: dict[str, Any], message: str) -> None:
    sound = {"low": [0.0, 0.0], "high": [1.0, 1.0], "edge": 0.25}
    assert check_domain(sound, 2) == sound
    assert check_domain(None, 2) is None
    with pytest.raises(ValueError, match=message):
        check_domain(sound | change, 2)
    with pytest.raises(TypeError, match="domain must be an object"):
        check_domain([sound], 2)

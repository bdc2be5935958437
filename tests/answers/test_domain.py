import numpy as np
import pytest

from demr.answers.domain import describe_domain, measure_strangeness


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

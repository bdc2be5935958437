"""Verdicts, intervals and notes, by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from demr.answers.calibration import Calibration
from demr.answers.covariates import Standardizer
from demr.answers.inference import RawPrediction
from demr.answers.intervals import IntervalCalibrator
from demr.answers.judging import FAMILIAR, Familiarity, judge, presence_probability
from demr.answers.predictions import COVARIATES, Prediction, rank_all, rank_moments
from demr.answers.presence import PresenceCalibrator
from demr.answers.proposals import Proposals
from demr.errors import InputError

# Every covariate counts as constant, and so for nothing.
BLIND = Standardizer(COVARIATES, *((0.0,) * 8,) * 4)
# Even odds for every query.
EVEN = PresenceCalibrator(BLIND, (0.0,) * 9, quadratic=False, points=50)


def intervals(log_factor: float, **changes: Any) -> IntervalCalibrator:
    """One factor for all, at the levels 0.5 and 0.9."""
    weights = ((log_factor, *[0.0] * 8),) * 2
    bounds = ((log_factor, log_factor),) * 2
    fitted = IntervalCalibrator(
        BLIND, (0.5, 0.9), (weights,) * 2, ((0.0, 0.0),) * 2, (bounds,) * 2, 50
    )
    return replace(fitted, **changes)


def predicted(count: int = 3) -> Prediction:
    """Moments of 10 s in 100 s; scales of 2 s with so many degrees of freedom as to be normal."""
    starts = np.array([0.5, 50.0, 88.5])[:count]
    every = np.ones((count, 2))
    level = np.array([0.7, 0.6, 0.5])[:count]
    # nu is so large that the scale is the aleatoric one: the root of beta over alpha.
    proposals = Proposals(
        np.stack([starts, starts + 10], axis=1) / 100,
        level,
        1e9 * every,
        1e6 * every,
        1e6 * 4e-4 * every,
        np.arange(count),
        level,
        100.0,
    )
    return rank_moments(RawPrediction(proposals, np.zeros(count)))


@pytest.mark.parametrize(
    ("found", "absent", "strangeness", "present", "verdict"),
    [
        (0.5, 0.4, 0.0, 0.5, "found"),  # reached is enough
        (0.51, 0.4, 0.0, 0.5, "uncertain"),
        (0.51, 0.5, 0.0, 0.5, "not in this video"),  # and so is reached from above
        (0.5, 0.4, 1.0, 0.5, "found"),  # the edge is still inside
        (0.5, 0.4, 1.1, 0.5 / 1.1, "uncertain"),
        (0.5, 0.4, 2.0, 0.25, "not in this video"),
    ],
)
def test_verdicts_by_hand(
    found: float, absent: float, strangeness: float, present: float, verdict: str
) -> None:
    calibration = Calibration(presence=EVEN, thresholds={"found": found, "absent": absent})
    told = judge([predicted()], calibration, [Familiarity(strangeness)])[0]
    assert told.calibrated
    assert told.present == pytest.approx(present)
    assert told.verdict == verdict
    assert bool(told.notes) == (strangeness > 1)
    assert Familiarity() == FAMILIAR == Familiarity(0.0, ())


def test_what_is_not_calibrated_is_uncertain_whatever_it_says() -> None:
    told = judge([predicted()], Calibration(thresholds={"found": 0.1, "absent": 0.0}))[0]
    assert (told.present, told.calibrated, told.verdict) == (0.7, False, "uncertain")
    assert len(told.notes) == 1
    assert np.isnan(told.intervals).all()
    assert told.intervals.shape == (3, 2, 2)


def test_an_unknown_word_takes_back_found_alone() -> None:
    word = Familiarity(0.0, ("zebra",))
    for found, absent, verdict in ((0.5, 0.4, "uncertain"), (0.6, 0.5, "not in this video")):
        calibration = Calibration(presence=EVEN, thresholds={"found": found, "absent": absent})
        told = judge([predicted()], calibration, [word])[0]
        assert told.verdict == verdict
        assert told.notes == ("the model was never trained on: zebra",)


def test_intervals_of_first_and_further_moments_by_hand() -> None:
    # 90 % of a normal distribution is 1.645 deviations to either side, 50 % are 0.674: with a
    # scale of 2 s 3.29 and 1.349 s; the first moment's factor is 2, that of further ones 1/2.
    calibration = Calibration(interval=intervals(np.log(2)), further=intervals(np.log(0.5)))
    both = [predicted(), predicted(1)]
    for level, half in ((0.9, 3.2897), (0.5, 1.3490)):
        told, alone = judge(both, calibration, level=level)
        expected = [
            # What would lie outside the video is cut off.
            [[max(0.5 - 2 * half, 0), 0.5 + 2 * half], [10.5 - 2 * half, 10.5 + 2 * half]],
            [[50 - half / 2, 50 + half / 2], [60 - half / 2, 60 + half / 2]],
            [[88.5 - half / 2, 88.5 + half / 2], [98.5 - half / 2, min(98.5 + half / 2, 100)]],
        ]
        np.testing.assert_allclose(told.intervals, expected, atol=1e-3)
        np.testing.assert_allclose(alone.intervals, expected[:1], atol=1e-3)


def test_moments_whose_rank_was_not_calibrated_have_no_interval() -> None:
    first = judge([predicted()], Calibration(interval=intervals(0.0)))[0]
    assert np.isfinite(first.intervals[0]).all()
    assert np.isnan(first.intervals[1:]).all()
    # Further ones were fitted for 50 % alone: at 90 % they go without, and nobody is refused.
    low = IntervalCalibrator(
        BLIND,
        (0.5,),
        (((0.0,) * 9,) * 2,),
        ((0.0, 0.0),),
        (((0.0, 0.0),) * 2,),
        12,
    )
    some = judge([predicted()], Calibration(interval=intervals(0.0), further=low))[0]
    np.testing.assert_array_equal(some.intervals, first.intervals)
    # The usual level, where it was not fitted, is said in a note; another one is refused.
    few = judge([predicted()], Calibration(interval=low))[0]
    assert np.isnan(few.intervals).all()
    assert few.notes[0].startswith("no intervals: 12 labelled queries are too few for 90%")
    assert np.isfinite(
        judge([predicted()], Calibration(interval=low), level=0.5)[0].intervals[0]
    ).all()
    with pytest.raises(InputError, match="interval level"):
        judge([predicted()], Calibration(interval=low), level=0.8)


def test_no_queries_are_no_judgements() -> None:
    calibration = Calibration(presence=EVEN, interval=intervals(0.0))
    assert judge([], calibration) == []
    probability = presence_probability(calibration, [])
    assert probability is not None
    assert probability.shape == (0,)


def test_every_query_needs_its_familiarity() -> None:
    with pytest.raises(ValueError, match="zip"):
        judge([predicted(), predicted()], Calibration(), [FAMILIAR])


def test_rank_all_ranks_as_the_calibration_chose() -> None:
    raw = predicted(2)
    moments = raw.moments.replace(
        window_norm=np.array([[0.2, 0.4], [0.22, 0.42]]), nu=np.array([[0.5, 1.0], [2.0, 3.0]])
    )
    one = RawPrediction(moments, np.zeros(2))
    voted = {}
    for weight in (1.0, 4.0):
        calibration = Calibration(ranking="voting", disagreement=weight)
        voted[weight] = rank_all([one], calibration, top=1)[0].moments
        by_hand = rank_moments(one, ranking="voting", disagreement=weight, top=1).moments
        np.testing.assert_array_equal(voted[weight].nu, by_hand.nu)
    assert len(voted[1.0]) == 1
    # The more the votes count, the less the location is trusted; 1 is the usual weight.
    assert (voted[4.0].nu < voted[1.0].nu).all()
    usual = rank_moments(one, ranking="voting").moments
    np.testing.assert_array_equal(usual.nu[:1], voted[1.0].nu)

"""Verdicts, intervals and notes, by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from demr.answers.calibration import Calibration
from demr.answers.inference import RawPrediction
from demr.answers.intervals import IntervalCalibrator
from demr.answers.judging import (
    FAMILIAR,
    NOWHERE_NOTE,
    UNCALIBRATED_NOTE,
    UNSURE_NOTE,
    Familiarity,
    Judgement,
    judge,
    presence_probability,
)
from demr.answers.predictions import COVARIATES, Prediction, rank_all, rank_moments
from demr.answers.presence import PresenceCalibrator, Standardizer
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


def certain(log_odds: float) -> PresenceCalibrator:
    """The same probability for every moment."""
    return replace(EVEN, weights=(log_odds, *(0.0,) * 8))


def judged(
    found: float, absent: float, *, known: Familiarity = FAMILIAR, **parts: Any
) -> Judgement:
    """What is said of three moments of even odds, first and further ones alike."""
    fitted: dict[str, Any] = {"presence": EVEN, "confidence": EVEN, "further_confidence": EVEN}
    calibration = Calibration(**(fitted | parts), thresholds={"found": found, "absent": absent})
    return judge([predicted()], calibration, [known])[0]


@pytest.mark.parametrize(
    ("found", "absent", "strangeness", "verdict"),
    [
        (0.5, 0.4, 0.0, "found"),  # reached is enough
        (0.51, 0.4, 0.0, "uncertain"),
        (0.51, 0.5, 0.0, "not in this video"),  # and so is reached from above
        (0.5, 0.4, 1.0, "found"),  # the edge is still inside
    ],
)
def test_verdicts_by_hand(found: float, absent: float, strangeness: float, verdict: str) -> None:
    told = judged(found, absent, known=Familiarity(strangeness))
    assert told.present == pytest.approx(0.5)
    assert (told.verdict, told.notes) == (verdict, ())
    listed = 0 if verdict == "not in this video" else 3
    assert told.moment_verdicts == (verdict,) * listed
    assert told.listed.tolist() == [0, 1, 2][:listed]
    assert Familiarity() == FAMILIAR == Familiarity(0.0, ())


@pytest.mark.parametrize(
    ("known", "notes"),
    [
        (Familiarity(1.1), ["this video looks unlike anything", "(1.1 times beyond its edge)"]),
        (Familiarity(0.0, ("zebra", "eats")), ["never trained on: zebra, eats;"]),
        (Familiarity(9.0, ("zebra",)), ["(9.0 times beyond its edge)", "trained on: zebra;"]),
    ],
)
@pytest.mark.parametrize(("found", "absent"), [(0.1, 0.0), (0.9, 0.4), (0.99, 0.98)])
def test_what_is_unlike_the_training_is_not_judged(
    known: Familiarity, notes: list[str], found: float, absent: float
) -> None:
    told = judged(found, absent, known=known, interval=intervals(0.0), further=intervals(0.0))
    assert (told.present, told.verdict) == (None, "uncertain")
    assert np.isnan(told.intervals).all()
    assert np.isnan(told.confidence).all()
    # A guess, where the model would have named a moment.
    assert told.listed.tolist() == ([0] if absent < 0.5 else [])
    assert set(told.moment_verdicts) <= {"uncertain"}
    assert len(told.notes) == (known.strangeness > 1) + bool(known.unknown_words)
    assert all(part in " ".join(told.notes) for part in notes)
    assert all("--encoder clip" in note and "demr calibrate" in note for note in told.notes)


def test_each_moment_has_its_own_confidence_and_verdict() -> None:
    # Odds of 9 for the first moment, of 1 for those after it, and of 99 for the query.
    fitted: dict[str, Any] = {"presence": certain(np.log(99)), "confidence": certain(np.log(9))}
    told = judged(0.6, 0.4, **fitted)
    np.testing.assert_allclose(told.confidence, [0.9, 0.5, 0.5])
    assert (told.verdict, told.moment_verdicts) == ("found", ("found", "uncertain", "uncertain"))
    # Below the threshold there is no moment, and without a moment nothing is found.
    few = judged(0.6, 0.5, **fitted)
    assert (few.verdict, few.listed.tolist(), few.moment_verdicts) == ("found", [0], ("found",))
    none = judged(0.95, 0.9, **fitted)
    assert none.present == pytest.approx(0.99)
    assert none.verdict == "uncertain"
    assert none.listed.tolist() == []
    assert none.notes == (NOWHERE_NOTE,)
    # A moment is never surer than that there is one, nor found where the query is uncertain.
    doubtful = judged(0.6, 0.4, confidence=certain(np.log(9)))
    assert doubtful.confidence[0] == pytest.approx(0.5)
    assert set(doubtful.moment_verdicts) == {"uncertain"}


def test_moments_that_repeat_a_better_one_are_not_listed() -> None:
    # 10 to 20 s, 14 to 24 s (IoU 0.43), 17 to 27 s (0.18 with the first), 50 to 60 s.
    window = np.array([[10.0, 20.0], [14.0, 24.0], [17.0, 27.0], [50.0, 60.0]]) / 100
    level = np.array([0.9, 0.8, 0.7, 0.2])
    row = np.ones((4, 2))
    proposals = Proposals(window, level, row, 2 * row, 1e-4 * row, np.arange(4), level, 100.0)
    prediction = rank_moments(RawPrediction(proposals, np.zeros(4)))
    assert prediction.distinct.tolist() == [0, 2, 3]
    limits = {"found": 0.5, "absent": 0.4}
    sure = Calibration(presence=EVEN, confidence=EVEN, further_confidence=EVEN, thresholds=limits)
    assert judge([prediction], sure)[0].listed.tolist() == [0, 2, 3]
    # Without confidence the score decides: half of the best one's is enough.
    unsure = judge([prediction], Calibration(presence=EVEN, thresholds=limits))[0]
    assert unsure.listed.tolist() == [0, 2]
    assert unsure.moment_verdicts == ("uncertain", "uncertain")
    assert unsure.notes == (UNSURE_NOTE,)


def test_what_is_not_calibrated_is_uncertain_whatever_it_says() -> None:
    told = judge([predicted()], Calibration(thresholds={"found": 0.1, "absent": 0.0}))[0]
    assert (told.present, told.verdict, told.notes) == (None, "uncertain", (UNCALIBRATED_NOTE,))
    assert np.isnan(told.intervals).all()
    assert told.intervals.shape == (3, 2, 2)
    assert np.isnan(told.confidence).all()
    assert told.moment_verdicts == ("uncertain",) * 3


def test_in_a_long_video_a_moment_was_chosen_from_many_chances() -> None:
    # Even odds, lowered by 0.3 log S in a video of S = 8 stretches: 1 / (1 + 8 ** 0.3).
    prediction = replace(predicted(), stretches=np.zeros((8, 8)))
    limits = {"found": 0.6, "absent": 0.1}
    sure = Calibration(presence=EVEN, confidence=EVEN, further_confidence=EVEN, thresholds=limits)
    told = judge([prediction], sure)[0]
    np.testing.assert_allclose(told.confidence, 1 / (1 + 8**0.3))


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

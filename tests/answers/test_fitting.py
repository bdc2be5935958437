"""What a calibration is fitted on."""

import numpy as np
import pytest

from demr.annotations.annotations import Annotation
from demr.answers.fitting import fit_calibration
from demr.answers.inference import RawPrediction
from demr.answers.judging import presence_probability
from demr.answers.predictions import rank_moments
from demr.answers.proposals import Proposals


def one_moment(foreground: float) -> RawPrediction:
    """A query with one proposal, 10 to 20 s of 100 s."""
    window = np.array([[10.0, 20.0]]) / 100
    row = np.ones((1, 2))
    level = np.array([foreground])
    proposals = Proposals(
        window, level, 2 * row, 3 * row, 4e-4 * row, np.zeros(1, np.int64), level, 100.0
    )
    return RawPrediction(proposals, np.array([0.3, 0.1]))


def asked(number: int, *, present: bool) -> Annotation:
    windows = ((10.0, 20.0),) if present else ()
    return Annotation(f"q{number}", "a red circle spins", f"v{number}", 100.0, windows)


@pytest.mark.parametrize("sure_first", [True, False])
@pytest.mark.parametrize(
    # Half of the larger kind has a foreground probability of 0.9, half one of 0.1; the smaller
    # kind is all at `shared`. Drawn at random, half of those drawn resemble the smaller kind.
    ("present", "absent", "shared", "expected"),
    [
        (400, 800, 0.9, 400 / (400 + 200)),  # all present queries there, half of the absent ones
        (800, 400, 0.1, 200 / (200 + 400)),  # half of the present queries there, all absent ones
    ],
)
def test_presence_is_fitted_on_queries_drawn_at_random(
    present: int, absent: int, shared: float, expected: float, *, sure_first: bool
) -> None:
    """Not on the easiest of them, the hardest, or the first."""

    def levels(count: int, other: int) -> list[float]:
        halves = (0.9, 0.1) if sure_first else (0.1, 0.9)
        return [shared] * count if count < other else [halves[i >= count / 2] for i in range(count)]

    every = [*levels(present, absent), *levels(absent, present)]
    raw = [one_moment(level) for level in every]
    annotations = [asked(i, present=i < present) for i in range(len(raw))]
    fitted = fit_calibration(raw, annotations, ranking="score")
    assert fitted.presence is not None
    assert fitted.presence.points == 2 * 400
    said = presence_probability(fitted, [rank_moments(one_moment(shared))])
    assert said is not None
    assert said[0] == pytest.approx(expected, abs=0.04)

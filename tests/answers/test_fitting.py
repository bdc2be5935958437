"""What a calibration is fitted on."""

from collections.abc import Sequence

import numpy as np
import pytest

from demr.annotations.annotations import Annotation
from demr.answers.fitting import fit_calibration
from demr.answers.inference import RawPrediction
from demr.answers.judging import presence_probability
from demr.answers.predictions import rank_all, rank_moments
from demr.answers.proposals import Proposals
from demr.errors import InputError


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


def proposed(
    *windows: tuple[float, float], foreground: Sequence[float], nu: Sequence[float] = (2.0, 2.0)
) -> RawPrediction:
    """A query about 100 s, every window with the same aleatoric variance."""
    count = len(windows)
    every = np.ones((count, 2))
    level = np.array(foreground)
    proposals = Proposals(
        np.array(windows) / 100,
        level,
        np.array(nu[:count])[:, None] * every,
        3 * every,
        4e-4 * every,
        np.arange(count),
        level,
        100.0,
    )
    return RawPrediction(proposals, np.zeros(count))


def two_moments(
    number: int, *, windows: int = 2, vid: str = ""
) -> tuple[RawPrediction, Annotation]:
    """The best moment is 1 s off at both ends, the next one 4 s."""
    raw = proposed((11.0, 31.0), (64.0, 84.0), foreground=(0.9, 0.6))
    truth = ((10.0, 30.0), (60.0, 80.0))[:windows]
    name = vid or f"v{number}"
    return raw, Annotation(f"q{number}", "a red circle spins", name, 100.0, truth)


def test_first_and_further_moments_have_the_factors_of_their_own_errors() -> None:
    queries = [two_moments(number) for number in range(30)]
    fitted = fit_calibration(*zip(*queries, strict=True), ranking="score")
    assert fitted.interval is not None
    assert fitted.further is not None
    assert (fitted.interval.points, fitted.further.points) == (30, 30)
    moments = rank_moments(queries[0][0])
    for calibrator, off in ((fitted.interval, 1.0), (fitted.further, 4.0)):
        low, high = calibrator.interval(
            moments.moments.window_s, moments.moments.scale_s, moments.dof, moments.covariates, 0.9
        )
        # All errors are the same, and so is every quantile of them.
        np.testing.assert_allclose((high - low) / 2, off)


@pytest.mark.parametrize(
    ("counts", "points"),
    [
        ({"v0": 5, "v1": 5}, 10),  # ten labels about two videos are enough
        ({"v0": 4, "v1": 5}, None),  # nine are not
        ({"v0": 12}, None),  # nor are twelve about one video
    ],
)
def test_further_moments_go_without_where_too_few_have_a_window(
    counts: dict[str, int], points: int | None
) -> None:
    queries = [two_moments(number, windows=1) for number in range(12)]
    for vid, count in counts.items():
        queries += [two_moments(100 + n, vid=vid) for n in range(count)]
    fitted = fit_calibration(*zip(*queries, strict=True), ranking="score")
    assert fitted.interval is not None
    assert fitted.interval.points == 12 + sum(counts.values())
    assert (None if fitted.further is None else fitted.further.points) == points


def test_labels_about_one_video_are_refused() -> None:
    queries = [two_moments(number, vid="v") for number in range(12)]
    with pytest.raises(InputError, match="queries about at least 2 videos"):
        fit_calibration(*zip(*queries, strict=True))


def test_every_prediction_needs_its_annotation() -> None:
    raw, annotations = zip(*[two_moments(number) for number in range(12)], strict=True)
    for pair in ((raw[:-1], annotations), (raw, annotations[:-1])):
        with pytest.raises(ValueError, match="zip"):
            fit_calibration(*pair)


@pytest.mark.parametrize(
    # A wrong moment is so many times as likely as the right one, whose epistemic uncertainty is
    # smaller. Of two moments z is 1 and -1: tau turns them around where exp(2 tau) is more, which
    # is 1.105, 1.221, 1.492 and 2.226 for those that are tried.
    ("ratio", "tau"),
    [(1.05, 0.05), (1.15, 0.1), (1.3, 0.2), (2.0, 0.4)],
)
def test_the_least_tau_that_is_right_is_chosen(ratio: float, tau: float) -> None:
    raw = [
        proposed((70, 80), (10, 20), foreground=(0.4 * ratio, 0.4), nu=(0.1, 8.0))
        for _ in range(12)
    ]
    # The second true window is proposed by nobody: the better of the two is what counts.
    annotations = [
        Annotation(f"q{n}", "a dog", f"v{n}", 100.0, ((40.0, 50.0), (10.0, 20.0)))
        for n in range(12)
    ]
    fitted = fit_calibration(raw, annotations)
    assert (fitted.ranking, fitted.tau, fitted.disagreement) == ("uncertainty", tau, 1.0)
    np.testing.assert_allclose(rank_all(raw, fitted)[0].moments.window_s[0], (10, 20))
    plain = rank_moments(raw[0], ranking="uncertainty")
    np.testing.assert_allclose(plain.moments.window_s[0], (70, 80))
    assert plain.moments.score[0] == 0.4 * ratio
    forced = fit_calibration(raw, annotations, ranking="score")
    assert (forced.ranking, forced.tau) == ("score", 0.0)
    forced = fit_calibration(raw, annotations, ranking="voting")
    assert (forced.ranking, forced.tau, forced.disagreement) == ("voting", 0.0, 1.0)


@pytest.mark.parametrize(("off_s", "weight"), [(1.0, 1.0), (2.0, 4.0), (9.0, 16.0)])
def test_the_weight_of_the_votes_is_that_of_the_errors(off_s: float, weight: float) -> None:
    # Two voters 2 s apart: their variance is 1 s^2, next to which all others are small. Errors
    # are as large as `off_s`, and of 9 s the largest weight that is tried is the likeliest.
    raw, annotations = [], []
    for number in range(12):
        one = proposed((40, 60), (42, 62), foreground=(0.9, 0.9), nu=(1e3, 1e3))
        # 200 degrees of freedom: next to a normal distribution.
        sure = one.proposals.replace(alpha=np.full((2, 2), 100.0), beta=np.full((2, 2), 1e-6))
        raw.append(RawPrediction(sure, np.zeros(2)))
        shift = off_s if number % 2 else -off_s
        window = (41.0 + shift, 61.0 + shift)
        annotations.append(Annotation(f"q{number}", "a dog", f"v{number}", 100.0, (window,)))
    fitted = fit_calibration(raw, annotations, ranking="voting", disagreement=None)
    assert fitted.disagreement == weight

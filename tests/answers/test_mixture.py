"""The window of highest expected overlap, against brute force and against what must not matter."""

import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from demr.annotations.windows import iou
from demr.answers.mixture import PROBABILITIES, SPREAD, Moments, answer
from demr.answers.proposals import Proposals, student_quantile
from demr.errors import InputError

FloatArray = npt.NDArray[np.float64]


def proposals(
    window: npt.ArrayLike,
    foreground: npt.ArrayLike,
    scale: npt.ArrayLike = 1e-4,
    *,
    alpha: npt.ArrayLike = 3.0,
    duration_s: float = 1.0,
) -> Proposals:
    """Proposals whose predictive Student-t has this scale, in durations."""
    windows = np.asarray(window, np.float64).reshape(-1, 2)
    count = len(windows)
    nu = np.full((count, 2), 2.0)
    wide, a = (np.broadcast_to(np.asarray(v, np.float64), (count, 2)) for v in (scale, alpha))
    p = np.asarray(foreground, np.float64)
    beta = wide**2 * nu * a / (1 + nu)
    return Proposals(windows, p, nu, a.copy(), beta, np.arange(count), p, duration_s)


def scattered(seed: int, count: int = 24, *, widest: float = 0.05) -> Proposals:
    """Random proposals around three places."""
    rng = np.random.default_rng(seed)
    places = np.sort(rng.uniform(0, 1, (3, 2)), axis=1)
    window = places[rng.integers(0, 3, count)] + rng.normal(0, 0.04, (count, 2))
    return proposals(
        np.sort(window, axis=1),
        rng.beta(0.5, 0.5, count),
        rng.uniform(0.002, widest, (count, 2)),
        alpha=rng.uniform(1.2, 6, (count, 2)),
        duration_s=50.0,
    )


def drawn(of: Proposals, power: float, count: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Windows drawn from the mixture in fractions, ``(N, count, 2)``, and weights ``(N,)``."""
    rng = np.random.default_rng(seed)
    inside = np.clip(of.window_norm, 0, 1)
    length = np.maximum((inside[:, 1] - inside[:, 0]) * len(of), 1.0)
    weight = of.foreground**power / length
    draws = np.empty((len(of), count, 2))
    for row in range(len(of)):
        kept: FloatArray = np.empty((0, 2))
        scale = SPREAD * of.scale_s[row] / of.duration_s
        while len(kept) < count:
            pair = stats.t.rvs(2 * of.alpha[row], inside[row], scale, (count, 2), random_state=rng)
            pair = np.clip(pair, 0, 1)
            kept = np.concatenate([kept, pair[pair[:, 0] < pair[:, 1]]])
        draws[row] = kept[:count]
    share: FloatArray = weight / weight.sum()
    return draws, share


def first(found: list[Moments]) -> FloatArray:
    window: FloatArray = found[0].window_s[0]
    return window


@pytest.mark.parametrize("seed", range(6))
def test_overlap_is_that_of_many_draws(seed: int) -> None:
    of = scattered(seed)
    (found,) = answer([of])
    draws, weight = drawn(of, 1.5, 4_000, seed)
    for row in range(len(found)):
        overlap = iou(found.window_s[row] / 50, draws)
        assert found.overlap[row] == pytest.approx(overlap.mean(axis=1) @ weight, abs=0.03)
        # Few draws are coarse for a step.
        assert found.right[row] == pytest.approx((overlap >= 0.5).mean(axis=1) @ weight, abs=0.06)


@pytest.mark.parametrize("seed", range(6))
def test_no_window_of_a_fine_grid_is_much_better(seed: int) -> None:
    of = scattered(seed, widest=0.02)
    draws, weight = drawn(of, 1.5, 200, seed)
    edges = np.linspace(0, 1, 81)
    grid = np.array([(a, b) for a in edges for b in edges if a < b])
    best = max(float(iou(window, draws).mean(axis=1) @ weight) for window in grid)
    mine = iou(first(answer([of])) / 50, draws).mean(axis=1) @ weight
    assert mine >= best - 0.03


def test_hand_worked_overlap_of_two_sharp_proposals() -> None:
    # Of equal length, so that 1 and 0.25^1.5 are the weights, 8/9 and 1/9; their IoU is 1/3.
    of = proposals([(0.0, 0.5), (0.25, 0.75), (0, 0), (0, 0)], [1.0, 0.25, 0.0, 0.0], 1e-9)
    (found,) = answer([of], top=2)
    # The other one moves the centre by a thousandth.
    np.testing.assert_allclose(found.window_s, [(0.0, 0.5), (0.25, 0.75)], atol=0.002)
    np.testing.assert_allclose(found.overlap, [8 / 9 + 1 / 27, 1 / 9 + 8 / 27], atol=0.005)
    # The first explains all of the one and 1 - (2/3)^2 of the other.
    np.testing.assert_allclose(found.share, [8 / 9 + 5 / 81, 1 / 9 + 40 / 81], atol=0.005)
    np.testing.assert_allclose(found.count, [1 / 2 + 5 / 72, 1 / 8 + 5 / 18], atol=0.005)
    np.testing.assert_allclose(found.right, [8 / 9, 1 / 9])


def test_hand_worked_variance_of_a_moment() -> None:
    # Of equal weight, 0.1 apart at the end; nu 2, alpha 3 and scale s: AU = 0.5 beta, EU half.
    of = proposals([(0.2, 0.6), (0.2, 0.6)], [0.5, 0.5], 0.01, duration_s=10.0)
    of = of.replace(window_norm=np.array([(0.2, 0.6), (0.2, 0.6 + 1e-12)]))
    (found,) = answer([of], top=1)
    beta = 0.01**2 * 2 * 3 / 3
    np.testing.assert_allclose(found.aleatoric[0], 100 * beta / 2)
    np.testing.assert_allclose(found.epistemic[0], 100 * beta / 4)
    apart = of.replace(window_norm=np.array([(0.2, 0.5), (0.2, 0.7)]))
    wider = answer([apart], top=1)[0]
    # The weights of the two ends are near each other: the variance is near 0.1 squared.
    assert wider.epistemic[0, 1] - 100 * beta / 4 == pytest.approx(1.0, rel=0.2)
    np.testing.assert_allclose(wider.epistemic[0, 0], 100 * beta / 4)


def test_one_sharp_proposal_gives_back_itself() -> None:
    (found,) = answer([proposals([(0.3, 0.45)], [0.7], 1e-6, duration_s=40.0)])
    np.testing.assert_allclose(first([found]), (12.0, 18.0), atol=1e-3)
    assert found.overlap[0] == pytest.approx(1, abs=1e-4)
    assert found.share[0] == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(found.quantile_s[0, 0], 12.0, atol=1e-2)


def test_quantiles_of_one_proposal_are_the_student_ts() -> None:
    of = proposals([(0.4, 0.6)], [0.7], 0.01, alpha=[[2.0, 5.0]], duration_s=100.0)
    (found,) = answer([of], top=1)
    for boundary, dof in enumerate((4.0, 10.0)):
        quantile = (40, 60)[boundary] + SPREAD * stats.t.ppf(PROBABILITIES, dof)
        np.testing.assert_allclose(found.quantile_s[0, boundary], quantile, atol=1e-3)


def test_quantiles_are_those_of_the_mixture() -> None:
    rng = np.random.default_rng(5)
    window = np.array([0.3, 0.7]) + rng.normal(0, 0.01, (40, 2))
    scale = rng.uniform(0.01, 0.03, (40, 2))
    (found,) = answer([proposals(window, np.full(40, 0.9), scale)], top=1)
    for boundary in (0, 1):
        share = [
            np.mean(stats.t.cdf(q, 6, window[:, boundary], SPREAD * scale[:, boundary]))
            for q in found.quantile_s[0, boundary]
        ]
        np.testing.assert_allclose(share, PROBABILITIES, atol=0.03)


def test_student_quantiles() -> None:
    dof = np.array([2.0, 2.001, 2.3, 4.0, 30.0, 1e5, 1e300])
    p = np.array([0.005, 0.1, 0.5, 0.9, 0.995])
    expected = stats.t.ppf(p, np.minimum(dof, 1e9)[:, None])
    np.testing.assert_allclose(student_quantile(dof, p), expected, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_symmetric_in_time(seed: int) -> None:
    of = scattered(seed)
    turned = proposals(
        1 - of.window_norm[:, ::-1],
        of.foreground,
        of.scale_s[:, ::-1] / 50,
        alpha=of.alpha[:, ::-1],
        duration_s=50.0,
    )
    one, other = answer([of, turned])
    np.testing.assert_allclose(one.window_s, 50 - other.window_s[:, ::-1], atol=1e-9)
    for name in ("overlap", "share", "count", "right"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-9)
    np.testing.assert_allclose(one.epistemic, other.epistemic[:, ::-1], atol=1e-9)
    np.testing.assert_allclose(one.quantile_s, 50 - other.quantile_s[:, ::-1, ::-1], atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_invariant_to_splitting_a_proposal_in_halves(seed: int) -> None:
    of = scattered(seed)
    heavy = int(of.foreground.argmax())
    both = of[np.array([*range(len(of)), heavy])]
    p = both.foreground.copy()
    p[[heavy, -1]] *= 0.5 ** (1 / 1.5)  # half of the weight each
    one, split = answer([of, both.replace(foreground=p)], top=3)
    np.testing.assert_allclose(one.window_s, split.window_s, atol=1e-9)
    np.testing.assert_allclose(one.overlap, split.overlap, atol=1e-9)
    np.testing.assert_allclose(one.aleatoric, split.aleatoric, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_neither_order_nor_scale_of_the_probabilities_matters(seed: int) -> None:
    of = scattered(seed)
    order = np.random.default_rng(seed).permutation(len(of))
    less = of.replace(foreground=of.foreground * 1e-200)
    one, other, scaled = answer([of, of[order], less])
    for name in ("window_s", "overlap", "share", "right", "aleatoric", "quantile_s"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-9)
        np.testing.assert_allclose(getattr(one, name), getattr(scaled, name), atol=1e-9)
    np.testing.assert_allclose(one.count, other.count)
    np.testing.assert_allclose(one.count * 1e-200, scaled.count)


def test_a_batch_answers_as_its_queries_do_alone() -> None:
    every = [scattered(seed, count) for seed, count in enumerate([1, 3, 90, 24, 24, 200, 24, 7])]
    for alone, together in zip([answer([of])[0] for of in every], answer(every), strict=True):
        np.testing.assert_allclose(alone.window_s, together.window_s, atol=1e-9)
        np.testing.assert_allclose(alone.overlap, together.overlap, atol=1e-9)
    assert answer([]) == []


def test_equal_windows_are_answered_with_the_earlier() -> None:
    of = proposals([(0.1, 0.2), (0.7, 0.8)], [0.5, 0.5])
    assert first(answer([of]))[0] == pytest.approx(0.1, abs=1e-3)
    assert first(answer([of[np.array([1, 0])]]))[0] == pytest.approx(0.1, abs=1e-3)


def test_several_true_moments_are_several_answers() -> None:
    rng = np.random.default_rng(0)
    places = np.array([(0.1, 0.2), (0.4, 0.6), (0.8, 0.9)])
    window = np.repeat(places, 10, axis=0) + rng.normal(0, 0.004, (30, 2))
    (found,) = answer([proposals(window, np.full(30, 0.9), 0.01)], top=3)
    np.testing.assert_allclose(np.sort(found.window_s, axis=0), places, atol=0.01)
    # Each holds its share of the mass, and is nearly all of what its clips speak of.
    assert found.overlap.sum() == pytest.approx(1, abs=0.15)
    assert (found.overlap / found.share > 0.8).all()


def test_moments_without_length_are_answers_too() -> None:
    of = proposals([(0.5, 0.5), (0.5, 0.5)], [0.5, 0.5], 1e-12)
    (found,) = answer([of])
    np.testing.assert_allclose(first([found]), (0.5, 0.5), atol=1e-9)
    assert np.isfinite(found.overlap).all()


def test_probabilities_that_are_all_zero_count_alike() -> None:
    windows = [(0.1, 0.3), (0.1, 0.31), (0.6, 0.8)]
    zero, even = answer([proposals(windows, [0.0] * 3), proposals(windows, [1.0] * 3)])
    np.testing.assert_allclose(zero.window_s, even.window_s)
    np.testing.assert_array_equal(zero.count, 0)


def test_of_a_long_video_the_neighbourhood_answers() -> None:
    rng = np.random.default_rng(1)
    count = 20_000
    middle = (np.arange(count) + 0.5) / count
    half = rng.uniform(2, 10, (count, 1)) / count
    window = middle[:, None] + half * [-1, 1]
    p = rng.uniform(0, 0.05, count)
    p[7_000:7_012], window[7_000:7_012] = 0.95, (0.35, 0.3506)
    p[15_000:15_012], window[15_000:15_012] = 0.9, (0.75, 0.7506)
    of = proposals(window, p, 1 / count, duration_s=float(count))
    began = time.process_time()
    (found,) = answer([of])
    assert time.process_time() - began < 5
    np.testing.assert_allclose(found.window_s[:2], [(7_000, 7_012), (15_000, 15_012)], atol=1)
    # Cut out, the same moment is answered with.
    near = of[slice(6_900, 7_100)]
    alone = near.replace(
        window_norm=(near.window_norm * count - 6_900) / 200,
        beta=near.beta * (count / 200) ** 2,
        duration_s=200.0,
        clip_idx=np.arange(200),
    )
    np.testing.assert_allclose(first(answer([alone])) + 6_900, found.window_s[0], atol=1e-3)


WILD = st.floats(1e-300, 1e300, allow_subnormal=False)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 8).flatmap(
        lambda n: st.tuples(
            arrays(np.float64, (n, 2), elements=st.floats(-3, 4)),
            arrays(np.float64, n, elements=st.floats(0, 1)),
            arrays(np.float64, (3, n, 2), elements=WILD),
        )
    )
)
def test_wild_numbers_give_sound_answers(data: tuple[FloatArray, FloatArray, FloatArray]) -> None:
    window, p, (nu, excess, beta) = data
    alpha = np.maximum(1 + excess, np.nextafter(1, 2))
    of = Proposals(np.sort(window, axis=1), p, nu, alpha, beta, np.arange(len(p)), p, 30.0)
    (found,) = answer([of])
    assert len(found) >= 1
    assert (found.window_s[:, 0] <= found.window_s[:, 1]).all()
    for name in ("window_s", "quantile_s"):
        values = getattr(found, name)
        assert ((values >= 0) & (values <= 30)).all()
    assert (np.diff(found.quantile_s, axis=2) >= 0).all()
    for name in ("overlap", "share", "right"):
        values = getattr(found, name)
        assert ((values >= 0) & (values <= 1 + 1e-9)).all()
    assert np.isfinite(found.aleatoric).all()
    assert np.isfinite(found.epistemic).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [("foreground", np.nan), ("foreground", 1.5), ("nu", 0.0), ("alpha", 1.0), ("beta", np.inf)],
)
def test_what_is_no_distribution_is_refused(field: str, value: float) -> None:
    good = scattered(0)
    column = getattr(good, field).copy()
    column[3] = value
    with pytest.raises(InputError, match=f"query 1: expected {field}"):
        answer([good, good.replace(**{field: column})])
    with pytest.raises(InputError, match="at least one proposal"):
        answer([good[:0]])

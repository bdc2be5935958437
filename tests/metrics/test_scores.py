import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import integrate, special, stats

from demr.metrics import uncertainty
from demr.metrics.scores import (
    QUANTILE_LEVELS,
    cdf_mixture,
    coverage_width_curve,
    crps_mixture,
    interval_score,
    nll_mixture,
    quantile_calibration_error,
    quantile_mixture,
    worst_slab_coverage,
)

FloatArray = npt.NDArray[np.float64]
# Two narrow components and a wide one, which is seldom: location, scale, freedom, weight.
MIXTURE = ([3.0, 3.4, 20.0], [0.05, 0.4, 6.0], [2.2, 9.0, 4.0], [0.5, 0.3, 0.2])


def random_mixtures(seed: int, count: int, parts: int) -> tuple[FloatArray, ...]:
    """Truths, locations, scales from 0.02 to 30, degrees of freedom above 2, and weights."""
    rng = np.random.default_rng(seed)
    shape = (count, parts)
    return (
        rng.uniform(-5, 65, count),
        rng.uniform(0, 60, shape),
        np.exp(rng.normal(0, 1.5, shape)),
        2 + rng.gamma(1.0, 3.0, shape),
        rng.gamma(0.3, 1.0, shape),
    )


def squared_distance(
    y: float, loc: FloatArray, scale: FloatArray, dof: FloatArray, weight: FloatArray
) -> float:
    """The score by its definition: the integral of (F - step)^2, over 300 pieces a component."""
    grid = np.sinh(np.linspace(-30, 30, 301))
    edges = np.unique(
        np.concatenate([y + 0 * grid, *(m + s * grid for m, s in zip(loc, scale, strict=True))])
    )
    nodes, node_weights = np.polynomial.legendre.leggauss(8)
    half = np.diff(edges) / 2
    x = (edges[:-1] + half)[:, None] + half[:, None] * nodes
    sign = np.where(x < y, 1.0, -1.0)
    tail = sum(
        w * special.stdtr(nu, sign * (x - m) / s)
        for m, s, nu, w in zip(loc, scale, dof, weight / weight.sum(), strict=True)
    )
    return float(((tail**2) @ node_weights * half).sum())


def test_the_score_of_a_mixture_is_the_integral_that_defines_it() -> None:
    y, loc, scale, dof, weight = random_mixtures(0, 8, 6)
    got = crps_mixture(y, loc, scale, dof, weight)
    for row, value in enumerate(got):
        slow = squared_distance(y[row], loc[row], scale[row], dof[row], weight[row])
        assert value == pytest.approx(slow, abs=1e-6)


def test_a_mixture_of_one_and_of_equals_is_a_student_t() -> None:
    y, loc, scale, dof, _ = random_mixtures(1, 30, 1)
    one = (y, loc[:, 0], scale[:, 0], dof[:, 0])
    np.testing.assert_allclose(
        crps_mixture(y, loc, scale, dof, 5.0), uncertainty.crps_student_t(*one), rtol=1e-7
    )
    locs, scales, dofs = (np.repeat(part, 2, axis=1) for part in (loc, scale, dof))
    halves = crps_mixture(y, locs, scales, dofs, [0.3, 0.7])
    np.testing.assert_allclose(halves, uncertainty.crps_student_t(*one), rtol=1e-7)
    np.testing.assert_allclose(
        nll_mixture(y, locs, scales, dofs, [0.3, 0.7]), uncertainty.nll_student_t(*one), rtol=1e-12
    )
    expected = stats.t.cdf(y, one[3], one[1], one[2])
    np.testing.assert_allclose(cdf_mixture(y, locs, scales, dofs, [2, 8]), expected, rtol=1e-12)


def test_a_component_of_no_weight_changes_nothing() -> None:
    y, loc, scale, dof, weight = random_mixtures(2, 5, 4)
    weight[:, 3] = 0
    full, short = (loc, scale, dof, weight), tuple(x[:, :3] for x in (loc, scale, dof, weight))
    for score in (crps_mixture, nll_mixture, cdf_mixture):
        np.testing.assert_allclose(score(y, *full), score(y, *short), rtol=1e-6)
    np.testing.assert_allclose(quantile_mixture(0.1, *full), quantile_mixture(0.1, *short))


def test_scores_move_and_stretch_with_their_unit() -> None:
    y, loc, scale, dof, weight = random_mixtures(3, 6, 5)
    usual = crps_mixture(y, loc, scale, dof, weight)
    moved = crps_mixture(60 * y + 7, 60 * loc + 7, 60 * scale, dof, weight)
    np.testing.assert_allclose(moved, 60 * usual, rtol=1e-6)
    np.testing.assert_allclose(crps_mixture(-y, -loc, scale, dof, weight), usual, rtol=1e-6)


def test_the_density_of_a_mixture_is_the_slope_of_its_distribution() -> None:
    def density(x: float) -> float:
        return float(np.exp(-nll_mixture(x, *MIXTURE)))

    for low, high in itertools.pairwise([2.5, 3.0, 3.2, 5.0, 30.0]):
        area = integrate.quad(density, low, high, points=[3.0, 3.4], limit=200)[0]
        between = cdf_mixture([low, high], *MIXTURE)
        assert area == pytest.approx(between[1] - between[0], abs=1e-9)
    # By hand: far from the narrow ones only the wide one counts.
    wide = -math.log(0.2) + float(uncertainty.nll_student_t(-900.0, 20.0, 6.0, 4.0))
    assert float(nll_mixture(-900.0, [3.0, 20.0], [1e-9, 6.0], [60.0, 4.0], [0.8, 0.2])) == (
        pytest.approx(wide)
    )
    assert np.isfinite(nll_mixture(1e200, *MIXTURE))


def test_quantiles_of_a_mixture_invert_its_distribution() -> None:
    prob = np.array([1e-6, 0.05, 0.25, 0.5, 0.75, 0.95, 1 - 1e-6])
    found = quantile_mixture(prob, *MIXTURE)
    assert (np.diff(found) > 0).all()
    np.testing.assert_allclose(cdf_mixture(found, *MIXTURE), prob, atol=1e-10)
    _, *many = random_mixtures(4, 40, 9)
    np.testing.assert_allclose(
        cdf_mixture(quantile_mixture(prob[:, None], *many), *many),
        np.tile(prob[:, None], 40),
        atol=1e-10,
    )
    # A gap without mass between two modes: any value there is a median, and one is returned.
    middle = float(quantile_mixture(0.5, [0.0, 50.0], 1e-3, 60.0, [0.5, 0.5]))
    assert 0 < middle < 50
    assert float(quantile_mixture(0.3, [4.0], [2.0], [3.0], [1.0])) == pytest.approx(
        stats.t.ppf(0.3, 3, 4, 2)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "scale must be positive"),
        ({"dof": 1.0}, "more than 1.05 degrees"),
        ({"weight": -1.0}, "weights must be at least 0"),
        ({"weight": 0.0}, "not all 0"),
        ({"loc": math.nan}, "every loc must be finite"),
        ({"truth": math.inf}, "every value must be finite"),
        ({"tolerance": 0.0}, "tolerance must be at least"),
    ],
)
def test_what_is_no_mixture_is_refused(change: dict[str, float], message: str) -> None:
    usual: dict[str, Any] = {"truth": 0.0, "loc": [0.0], "scale": 1.0, "dof": 3.0, "weight": 1.0}
    with pytest.raises(ValueError, match=message):
        crps_mixture(**(usual | change))
    with pytest.raises(ValueError, match="at least one component"):
        crps_mixture(0.0, [], 1.0, 3.0, 1.0)
    with pytest.raises(ValueError, match="strictly between"):
        quantile_mixture(1.0, [0.0], 1.0, 3.0, 1.0)


def test_interval_score_by_hand() -> None:
    # Inside: the width 2. 0.5 above: 2 + 2 / 0.1 * 0.5; 3 below likewise.
    got = interval_score([0, 0, 0], [2, 2, 2], [1, 2.5, -3], 0.9)
    np.testing.assert_allclose(got, [2, 12, 62])
    with pytest.raises(ValueError, match="before it begins"):
        interval_score(2, 1, 0, 0.9)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        interval_score(0, 1, 0, 90)


def test_the_true_quantiles_have_the_least_interval_score() -> None:
    y = stats.t.ppf((np.arange(20000) + 0.5) / 20000, 4)
    low, high = (float(stats.t.ppf(p, 4)) for p in (0.1, 0.9))
    best = interval_score(low, high, y, 0.8).mean()
    for a, b in ((0.9, 1.0), (1.1, 1.0), (1.0, 0.9), (1.0, 1.1)):
        assert interval_score(a * low, b * high, y, 0.8).mean() > best


def test_coverage_and_width_of_several_levels_by_hand() -> None:
    truth = np.array([[1.0, 5.0], [2.0, 9.0]])
    half = np.array([0.5, 1.0, 4.0])[:, None, None]
    coverage, width = coverage_width_curve(2 - half + 0 * truth, 2 + half + 0 * truth, truth)
    assert coverage.tolist() == [0.25, 0.5, 0.75]
    assert width.tolist() == [1, 2, 8]
    with pytest.raises(ValueError, match="shapes differ"):
        coverage_width_curve(np.zeros((2, 3)), np.ones((2, 3)), np.zeros(2))


def test_quantile_calibration_error_by_hand() -> None:
    # |2 u - 1| is 0.8, 0 and 0.4: coverage of 0.5 is 2/3, of 0.9 all.
    assert quantile_calibration_error([0.1, 0.5, 0.7], levels=[0.5, 0.9]) == pytest.approx(
        (1 / 6 + 0.1) / 2
    )
    rng = np.random.default_rng(0)
    errors = [quantile_calibration_error(rng.uniform(size=400)) for _ in range(300)]
    assert np.mean(errors) == pytest.approx(0.3 / 20, rel=0.15)
    for wrong in ([], [1.1], [math.nan]):
        with pytest.raises(ValueError, match="pit must be"):
            quantile_calibration_error(wrong)


def slow_worst_slab(place: FloatArray, hit: FloatArray, share: float) -> float:
    """All intervals on a line that hold enough points."""
    least, worst = share * len(hit), 1.0
    for low, high in itertools.product(np.unique(place), repeat=2):
        inside = (low <= place) & (place <= high)
        if inside.sum() >= least - 1e-9:
            worst = min(worst, float(hit[inside].mean()))
    return worst


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 1.0])
def test_the_worst_slab_agrees_with_trying_all(share: float) -> None:
    rng = np.random.default_rng(5)
    for size in (1, 2, 7, 40):
        hit = (rng.uniform(size=size) < 0.7).astype(float)
        for place in (rng.normal(size=size), rng.integers(0, 5, size).astype(float)):
            got = worst_slab_coverage(
                hit, place[:, None], share=share, directions=0, search_share=1
            )
            assert got == pytest.approx(slow_worst_slab(place, hit, share))


def test_the_worst_slab_is_found_along_any_direction_and_measured_on_other_queries() -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(6000, 3))
    bad = x[:, 0] + x[:, 1] - x[:, 2] > 1.7
    hit = rng.uniform(size=6000) < np.where(bad, 0.5, 0.95)
    assert worst_slab_coverage(hit, x, directions=0) > 0.65  # no axis shows it
    found = worst_slab_coverage(hit, x, directions=200)
    assert found == pytest.approx(0.5, abs=0.1)
    # Where coverage is the same everywhere, searching alone must not make it look bad.
    fair = rng.uniform(size=6000) < 0.9
    assert worst_slab_coverage(fair, x, directions=200) == pytest.approx(0.9, abs=0.03)
    assert worst_slab_coverage(fair, x, directions=20, search_share=1) < 0.89
    # A covariate's unit, or one that never changes, is of no matter.
    scaled = np.c_[x * [1e-3, 1e3, 1], np.ones(6000)]
    assert worst_slab_coverage(hit, scaled, directions=200) == pytest.approx(found, abs=0.15)
    with pytest.raises(ValueError, match="every covariate finite"):
        worst_slab_coverage(hit, x * math.nan)
    with pytest.raises(ValueError, match="above 0"):
        worst_slab_coverage(hit, x, share=0)
    with pytest.raises(ValueError, match=r"\(N, C\)"):
        worst_slab_coverage(hit, x[:, 0])


# Other libraries: as themselves where `make install` has them (the extra "reference"), else as
# numbers that they gave.


def test_student_t_scores_are_those_of_scoringrules() -> None:
    reference = pytest.importorskip("scoringrules")
    y, loc, scale, dof, _ = (np.ravel(x) for x in random_mixtures(7, 200, 1))
    np.testing.assert_allclose(
        uncertainty.crps_student_t(y, loc, scale, dof),
        reference.crps_t(y, dof, loc, scale),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        uncertainty.nll_student_t(y, loc, scale, dof),
        reference.logs_t(y, dof, loc, scale),
        atol=1e-6,
    )
    low, high = y - scale, y + scale * dof
    np.testing.assert_allclose(
        interval_score(low, high, loc, 0.8),
        reference.interval_score(loc, low, high, 0.2),
        atol=1e-6,
    )


def test_mixture_scores_are_those_of_scoringrules() -> None:
    reference = pytest.importorskip("scoringrules")
    # Normal components are the limit of many degrees of freedom: 1e-7 of a scale away.
    y, loc, scale, _, weight = random_mixtures(8, 20, 12)
    weight /= weight.sum(axis=1, keepdims=True)
    scale /= 10
    np.testing.assert_allclose(
        crps_mixture(y, loc, scale, 3e7, weight),
        reference.crps_mixnorm(y, loc, scale, weight),
        atol=1e-6,
    )
    near = loc[:, 0] + scale[:, 0]
    np.testing.assert_allclose(
        nll_mixture(near, loc, scale, 3e9, weight),
        reference.logs_mixnorm(near, loc, scale, weight),
        atol=1e-6,
    )
    # Components without width are an ensemble.
    members = np.random.default_rng(9).normal(0, 3, (20, 15))
    np.testing.assert_allclose(
        crps_mixture(y / 10, members, 1e-9, 3.0, np.ones(15)),
        reference.crps_ensemble(y / 10, members, estimator="nrg"),
        atol=1e-6,
    )


def test_crepes_s_numbers() -> None:
    """Of crepes 0.9.1: ConformalRegressor and ConformalPredictiveSystem, fitted to 19 residuals."""
    residual = [-1.3, 0.2, 0.9, -0.4, 1.8, -0.1, 0.5, -2.2, 0.05, 1.1, -0.7, 0.3, 2.6, -1.9, 0.75]
    residual += [-0.55, 1.35, -0.25, 0.6]
    center = np.array([0.0, 2, -1, 5, 3, 0.5])
    y = np.array([0.4, 4.9, -1.2, 2.7, 3.05, -1.6])
    coverage, width = coverage_width_curve([center - 1.9], [center + 1.9], y)
    assert coverage[0] == pytest.approx(1 - 0.5, abs=1e-6)
    assert width[0] == pytest.approx(3.8, abs=1e-6)
    # Its predictive distribution is the residuals around each prediction.
    members = center[:, None] + residual
    score = crps_mixture(y, members, 1e-9, 3.0, np.ones(19)).mean()
    assert score == pytest.approx(1.0572253000923362, abs=1e-6)


def test_mapie_s_numbers() -> None:
    """MAPIE 1.6.0: regression_mwi_score, regression_coverage_score, regression_mean_width_score."""
    low, high = [0, 1.5, -3, 2, 0.0], [1, 2.0, 1, 2.5, 4]
    y = [0.5, 2.2, -3.7, 2.1, 9]
    assert interval_score(low, high, y, 0.9).mean() == pytest.approx(25.6, abs=1e-6)
    coverage, width = coverage_width_curve([low], [high], y)
    assert (coverage[0], width[0]) == pytest.approx((0.4, 2.0))


def test_torch_uncertainty_s_numbers() -> None:
    """torch-uncertainty 0.13.0: AUSE, AURC, QuantileCalibrationError, in float64.

    Its curves are ours; its areas are integrals by trapezoids, ours means over the coverages.
    """
    error = [0.5, 2.0, 0.1, 1.2, 3.5, 0.7, 0.0, 4.1]
    measure = [0.3, 1.1, 0.2, 2.5, 1.9, 0.9, 0.4, 1.4]
    _, risk = uncertainty.risk_coverage_curve(error, measure)
    _, oracle = uncertainty.risk_coverage_curve(error, error)
    golden = [0.066115702479, 0.198347107438, 0.132231404959, 0.214876033058]
    golden += [0.436363636364, 0.815426997245, 1.029515938607, 1.0]
    np.testing.assert_allclose(risk / np.mean(error), golden, atol=1e-6)
    above = (risk - oracle)[::-1] / np.mean(error)
    assert np.trapezoid(above, dx=1 / 8) == pytest.approx(0.11219992129083033, abs=1e-6)
    got = uncertainty.uncertainty_metrics(error, measure, measure)
    ends = (above[0] + above[-1]) / 2
    assert got["AUSE/EU"] == pytest.approx(0.11219992129083033 + ends / 8, abs=1e-6)

    sure = np.array([0.97, 0.81, 0.99, 0.55, 0.62, 0.86, 0.93, 0.71])
    wrong = np.array([0, 1, 0, 1, 1, 0, 0, 1])
    _, risk = uncertainty.risk_coverage_curve(wrong, -sure)
    np.testing.assert_allclose(risk, [0, 0, 0, 0, 1 / 5, 1 / 3, 3 / 7, 1 / 2], atol=1e-6)
    area = np.trapezoid(risk, dx=1 / 8) / (1 - 1 / 8)
    assert area == pytest.approx(0.1731292517006803, abs=1e-6)

    loc, scale = np.array([0.0, 1, -2, 3, 0.5, 0]), np.array([1.0, 0.5, 2, 1.5, 1, 0.2])
    pit = stats.norm.cdf(np.array([0.4, 1.9, -2.3, -1.0, 0.6, 0.31]), loc, scale)
    assert len(QUANTILE_LEVELS) == 15
    assert quantile_calibration_error(pit) == pytest.approx(0.12444444444444444, abs=1e-6)

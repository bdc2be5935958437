import dataclasses
import errno
import itertools
import json
import math
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from demr.answers import intervals
from demr.answers.calibration import Calibration, check_counts
from demr.answers.intervals import IntervalCalibrator
from demr.answers.presence import PresenceCalibrator, Standardizer
from demr.errors import InputError, ModelError
from demr.metrics.uncertainty import auroc, ece

FloatArray = npt.NDArray[np.float64]
NAMES = ("log_total", "log_epistemic", "foreground", "gap", "duration", "constant")


@dataclasses.dataclass(frozen=True)
class World:
    """Answers whose moments are of the wrong size, and 8 % of which are grossly wrong."""

    residual: FloatArray
    scale: FloatArray
    dof: FloatArray
    covariates: FloatArray

    @property
    def loc(self) -> FloatArray:
        return np.zeros_like(self.scale)

    @property
    def inputs(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        return self.residual, self.scale, self.dof, self.covariates


def world(n: int, seed: int) -> World:
    rng = np.random.default_rng(seed)
    foreground = rng.beta(4, 1.5, n)
    log_scale = rng.normal(-0.5, 0.8, n)
    spread = np.exp(0.6 * log_scale + 1.5 * (1 - foreground))[:, None] * np.array([1.0, 1.4])
    residual = spread * rng.standard_t(5, (n, 2))
    wrong = rng.random(n) < 0.08
    residual[wrong] += rng.normal(0, 30, (int(wrong.sum()), 2))
    covariates = np.column_stack(
        [
            2 * log_scale,
            2 * log_scale + rng.normal(0, 0.3, n),
            foreground,
            rng.normal(size=n),
            rng.uniform(20, 150, n),
            np.full(n, 0.1),
        ]
    )
    scale = 0.5 * np.exp(log_scale)[:, None] * np.ones(2)
    return World(residual, scale, 2 * (1 + rng.gamma(2, 2, (n, 2))), covariates)


def covered(calibrator: IntervalCalibrator, test: World, level: float) -> npt.NDArray[np.bool_]:
    low, high = calibrator.interval(test.loc, test.scale, test.dof, test.covariates, level)
    return (low <= test.residual) & (test.residual <= high)


def test_ninety_percent_intervals_cover_ninety_percent() -> None:
    shares, terciles, raw_terciles = [], [], []
    for seed in range(20):
        train, test = world(2000, seed), world(2000, 1000 + seed)
        calibrator = IntervalCalibrator.fit(*train.inputs, NAMES, levels=(0.9,))
        inside = covered(calibrator, test, 0.9)
        shares.append(inside.mean())
        half = test.scale * special.stdtrit(test.dof, 0.95)
        raw = np.abs(test.residual) <= half
        # One factor for all, the best that ignores covariates, is what adapting must beat.
        factor = np.quantile(np.abs(test.residual) / half, 0.9, axis=0)
        uniform = np.abs(test.residual) <= factor * half
        for column in (0, 2):
            value = test.covariates[:, column]
            third = np.searchsorted(np.quantile(value, [1 / 3, 2 / 3]), value)
            for k in range(3):
                terciles.append(abs(inside[third == k].mean() - inside.mean()))
                raw_terciles.append(
                    min(
                        abs(raw[third == k].mean() - raw.mean()),
                        abs(uniform[third == k].mean() - uniform.mean()),
                    )
                )
    # At least the level with confidence, and not much more.
    assert (np.array(shares) >= 0.9).mean() >= 0.85
    assert (np.abs(np.array(shares) - 0.9) <= 0.03).mean() >= 0.95
    assert np.mean(shares) == pytest.approx(0.911, abs=0.006)
    assert np.mean(terciles) < 0.5 * np.mean(raw_terciles)
    assert max(terciles) < 0.06


def test_every_level_covers_and_widths_rise_with_it() -> None:
    train, test = world(4000, 3), world(4000, 4)
    began = time.process_time()
    calibrator = IntervalCalibrator.fit(*train.inputs, NAMES)
    assert time.process_time() - began < 4  # 1 s on an idle core; others may share it
    before = np.zeros_like(test.scale)
    for level in (0.5, 0.55, 0.65, 0.79, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.99):
        low, high = calibrator.interval(test.loc, test.scale, test.dof, test.covariates, level)
        assert (high - low >= before).all(), level
        before = high - low
        if level in intervals.LEVELS:
            assert covered(calibrator, test, level).mean() == pytest.approx(level, abs=0.025)
        else:
            assert covered(calibrator, test, level).mean() == pytest.approx(level, abs=0.05)


def test_intervals_are_centred_and_scale_with_the_unit() -> None:
    data = world(500, 5)
    a = IntervalCalibrator.fit(*data.inputs, NAMES, levels=(0.8,))
    b = IntervalCalibrator.fit(
        60 * data.residual, 60 * data.scale, data.dof, data.covariates, NAMES, levels=(0.8,)
    )
    low, high = a.interval(data.loc + 7, data.scale, data.dof, data.covariates, 0.8)
    np.testing.assert_allclose((low + high) / 2, 7)
    low60, high60 = b.interval(data.loc, 60 * data.scale, data.dof, data.covariates, 0.8)
    np.testing.assert_allclose(high60 - low60, 60 * (high - low), rtol=1e-4)


def test_fitting_is_deterministic() -> None:
    data = world(300, 6)
    assert IntervalCalibrator.fit(*data.inputs, NAMES) == IntervalCalibrator.fit(
        *data.inputs, NAMES
    )
    other = IntervalCalibrator.fit(*data.inputs, NAMES, seed=1)
    assert other != IntervalCalibrator.fit(*data.inputs, NAMES)


def slow_pinball(y: FloatArray, line: FloatArray, level: float) -> float:
    total = 0.0
    for left in y - line:
        total += level * left if left >= 0 else (level - 1) * left
    return total


def test_quantile_regression_finds_the_best_line() -> None:
    # With one covariate an optimal line runs through two of the points: try all pairs.
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=25), rng.standard_t(2, 25)
    for level in (0.5, 0.9):
        weights = intervals._quantile_regression(x[:, None], y, level)
        got = slow_pinball(y, weights[0] + weights[1] * x, level)
        best = math.inf
        for i, j in itertools.combinations(range(25), 2):
            slope = (y[i] - y[j]) / (x[i] - x[j])
            best = min(best, slow_pinball(y, y[i] + slope * (x - x[i]), level))
        assert got == pytest.approx(best, rel=1e-6)


def test_without_a_solution_the_regression_is_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = SimpleNamespace(status=4)
    monkeypatch.setattr("scipy.optimize.linprog", lambda *_args, **_named: failed)
    z = np.random.default_rng(0).normal(size=(5, 2))
    y = np.array([4.0, 1.0, 3.0, 0.0, 2.0])
    np.testing.assert_allclose(intervals._quantile_regression(z, y, 0.75), [3, 0, 0])


def test_quantile_regression_survives_collinear_and_constant_covariates() -> None:
    rng = np.random.default_rng(8)
    x = rng.normal(size=200)
    y = 2 * x + rng.normal(size=200)
    alone = intervals._quantile_regression(x[:, None], y, 0.8)
    twice = intervals._quantile_regression(
        np.column_stack([x, x, np.zeros(200), np.full(200, 3.0)]), y, 0.8
    )
    assert twice[1] + twice[2] == pytest.approx(alone[1], rel=1e-6)
    np.testing.assert_allclose(twice[3:], 0, atol=1e-9)


@pytest.mark.parametrize(
    ("n", "level", "rank"),
    # 1 - 0.9^29 = 0.953 and 1 - 0.9^28 = 0.948: from 29 on the largest is enough. Of ten fair
    # coins at most 8 are heads with 0.989, at most 7 with 0.945. Zero: there are too few.
    [(29, 0.9, 29), (28, 0.9, 0), (10, 0.95, 0), (10, 0.5, 9), (5, 0.5, 5), (1, 0.9, 0)],
)
def test_conformal_rank_by_hand(n: int, level: float, rank: int) -> None:
    assert intervals._least_rank(n, level) == rank
    values = np.random.default_rng(n).permutation(np.arange(1, n + 1)).astype(np.float64)
    # With too few for the confidence, the rank that holds on average; with too few for that, none.
    usual = math.ceil((n + 1) * level)
    expected = rank or (usual if usual <= n else None)
    assert intervals._conformal_quantile(values, level, np.arange(n)) == expected


@pytest.mark.parametrize(("n", "level"), [(60, 0.8), (200, 0.9), (1000, 0.5)])
def test_the_promise_holds_with_its_confidence(n: int, level: float) -> None:
    """Uniform values, for which the share below a limit is the limit itself."""
    rng = np.random.default_rng(n)
    limits = np.array(
        [intervals._conformal_quantile(rng.random(n), level, np.arange(n)) for _ in range(4000)]
    )
    kept = (limits >= level).mean()
    # Ranks are whole, so with few values the confidence is a little higher than asked.
    assert 0.94 <= kept <= 0.985
    rank = intervals._least_rank(n, level)
    assert stats.beta.sf(level, rank, n + 1 - rank) >= 0.95
    assert stats.beta.sf(level, rank - 1, n + 2 - rank) < 0.95


def test_fifty_labels_are_enough_and_nine_are_not() -> None:
    shares = []
    for seed in range(20):
        calibrator = IntervalCalibrator.fit(*world(50, seed).inputs, NAMES)
        assert not np.array(calibrator.weights)[:, :, 1:].any()
        shares.append(covered(calibrator, world(1000, 50 + seed), 0.9).mean())
    assert np.mean(shares) == pytest.approx(0.955, abs=0.02)
    with pytest.raises(InputError, match=r"at least 10 .* got 9"):
        IntervalCalibrator.fit(*world(9, 0).inputs, NAMES)
    IntervalCalibrator.fit(*world(10, 0).inputs, NAMES)


def test_counts_are_refused_where_fitting_would_be() -> None:
    for present, absent in ((10, 0), (10, 5), (300, 5)):
        check_counts(present, absent)
    with pytest.raises(InputError, match=r"calibration: expected at least 10 .* got 9; add"):
        check_counts(9, 30)
    for absent in (1, 4):
        with pytest.raises(InputError, match=f"val: expected at least 5 absent .* got {absent}"):
            check_counts(30, absent, "val")
    covariates = np.random.default_rng(0).normal(size=(10, 2))
    PresenceCalibrator.fit(covariates, np.arange(10) < 5, ("a", "b"))
    with pytest.raises(InputError):
        PresenceCalibrator.fit(covariates[:8], np.arange(8) < 4, ("a", "b"))


def test_one_factor_by_hand() -> None:
    # Without usable covariates the interval is the largest of 20 ratios, |residual| = 1 .. 20: for
    # 90 % with confidence it takes 29.
    residual = np.column_stack([np.arange(1.0, 21.0), -np.arange(20.0, 0.0, -1.0)])
    scale, dof = np.full((20, 2), 0.7), np.full((20, 2), 5.0)
    calibrator = IntervalCalibrator.fit(residual, scale, dof, np.zeros((20, 1)), ["none"])
    low, high = calibrator.interval([[3.0, 9.0]], [[0.7, 0.7]], [[5.0, 5.0]], [[0.0]], 0.9)
    np.testing.assert_allclose(low, [[3 - 20, 9 - 20]])
    np.testing.assert_allclose(high, [[3 + 20, 9 + 20]])
    # Twice the scale, twice the width.
    low, high = calibrator.interval([[3.0, 9.0]], [[1.4, 0.7]], [[5.0, 5.0]], [[0.0]], 0.9)
    np.testing.assert_allclose(high - low, [[80, 40]])


def test_exact_hits_and_absurd_covariates_stay_finite() -> None:
    data = world(400, 9)
    residual = data.residual.copy()
    residual[:390] = 0.0
    calibrator = IntervalCalibrator.fit(residual, *data.inputs[1:], NAMES)
    assert all(np.isfinite(np.array(w)).all() for w in (calibrator.weights, calibrator.shift))
    usual = IntervalCalibrator.fit(*data.inputs, NAMES)
    widest = 0.0
    for value in (-math.inf, -1e9, 1e9, math.inf):
        covariates = np.full((1, 6), value)
        low, high = usual.interval([[0, 0]], [[0.3, 0.3]], [[5, 5]], covariates, 0.9)
        widest = max(widest, float((high - low).max()))
    factor = np.exp(np.array(usual.bounds)[2, :, 1] + np.array(usual.shift)[2]).max()
    assert 0 < widest <= 2 * 0.3 * special.stdtrit(5, 0.95) * factor * (1 + 1e-9)


def by_hand(**changes: Any) -> IntervalCalibrator:
    """Two levels of one covariate x, seen from -3 to 3: log factors of start and end are given.

    At level 0.5 those of start are x held in -1..2, plus 0.25, and of end 0; at level 0.9 they
    are -x held in -2..1, plus 0.5, and 1.
    """
    fields: dict[str, Any] = {
        "scaler": Standardizer(("x",), (0.0,), (1.0,), (-3.0,), (3.0,)),
        "levels": (0.5, 0.9),
        "weights": (((0.0, 1.0), (0.0, 0.0)), ((0.0, -1.0), (1.0, 0.0))),
        "shift": ((0.25, 0.0), (0.5, 0.0)),
        "bounds": (((-1.0, 2.0), (-1.0, 1.0)), ((-2.0, 1.0), (0.0, 2.0))),
        "points": 50,
    }
    return IntervalCalibrator(**(fields | changes))


def log_widening(calibrator: IntervalCalibrator, x: float, level: float) -> FloatArray:
    """By how much, in logarithms, intervals of start and end are wider than the Student-t's."""
    scale, dof = np.array([[0.5, 2.0]]), np.array([[3.0, 8.0]])
    low, high = calibrator.interval([[10.0, 20.0]], scale, dof, [[x]], level)
    np.testing.assert_allclose((low + high) / 2, [[10.0, 20.0]])
    half = scale * special.stdtrit(dof, 0.5 + level / 2)
    result: FloatArray = np.log((high - low) / 2 / half)[0]
    return result


@pytest.mark.parametrize(
    ("x", "start"),
    [
        (0.5, 0.5 + 0.25),
        (1.9, 1.9 + 0.25),
        (2.5, 2 + 0.25),  # held at the greatest factor seen in fitting
        (-0.9, -0.9 + 0.25),
        (-1.5, -1 + 0.25),  # held at the least
        (9.0, 2 + 0.25),
    ],
)
def test_the_factor_is_held_inside_what_fitting_saw(x: float, start: float) -> None:
    np.testing.assert_allclose(log_widening(by_hand(), x, 0.5), [start, 0], atol=1e-9)


def test_a_covariate_is_held_inside_what_fitting_saw() -> None:
    wide = by_hand(bounds=(((-9.0, 9.0), (-9.0, 9.0)),) * 2)
    np.testing.assert_allclose(log_widening(wide, 100.0, 0.5)[0], 3 + 0.25)
    np.testing.assert_allclose(log_widening(wide, -np.inf, 0.9)[0], 3 + 0.5)


def test_a_higher_level_is_never_narrower() -> None:
    # At x = 3 the factor of start would be exp(2.25) at 0.5 and exp(-1.5) at 0.9, and an
    # interval of 0.9 narrower than one of 0.5: it is as wide instead. Student-t's with 3
    # degrees of freedom reach 2.353 and 0.765 scales.
    reach = special.stdtrit(3.0, np.array([0.75, 0.95]))
    np.testing.assert_allclose(reach, [0.765, 2.353], atol=1e-3)
    widened = log_widening(by_hand(), 3.0, 0.9)
    np.testing.assert_allclose(widened, [2.25 + math.log(reach[0] / reach[1]), 1])


def test_between_two_levels_the_factor_is_that_far_between_theirs() -> None:
    # At x = -1 the log factors of start are -0.75 and 1.5, those of end 0 and 1. Of the way from
    # the Student-t's log width at 0.5 to that at 0.9, that at 0.7 is `far` for each.
    dof = np.array([3.0, 8.0])
    half, seven, nine = (np.log(special.stdtrit(dof, 0.5 + v / 2)) for v in (0.5, 0.7, 0.9))
    far = (seven - half) / (nine - half)
    assert (far > 0.3).all()
    assert (far < 0.6).all()
    expected = np.array([-0.75, 0.0]) + far * np.array([1.5 + 0.75, 1.0])
    np.testing.assert_allclose(log_widening(by_hand(), -1.0, 0.7), expected)


def test_the_bounds_are_the_factors_that_fitting_saw() -> None:
    # All residuals of start are 2 to 8 times the half width of the Student-t at 50 %, those of
    # end twice that.
    n = 120
    factor = np.linspace(2, 8, n)[:, None] * np.array([1, 2])
    dof = np.full((n, 2), 4.0)
    residual = factor * special.stdtrit(4.0, 0.75)
    fitted = IntervalCalibrator.fit(
        residual, np.ones((n, 2)), dof, np.arange(n)[:, None], ["x"], levels=(0.5,)
    )
    np.testing.assert_allclose(fitted.bounds, [np.log([[2, 8], [4, 16]])])


def test_interval_garbage() -> None:
    data = world(200, 10)
    bad = data.covariates.copy()
    bad[17, 2] = math.nan
    with pytest.raises(InputError, match="covariates of query 17"):
        IntervalCalibrator.fit(*data.inputs[:3], bad, NAMES)
    with pytest.raises(InputError, match=r"\(200, 5\)"):
        IntervalCalibrator.fit(*data.inputs, NAMES[:5])
    with pytest.raises(InputError, match="positive scales"):
        IntervalCalibrator.fit(data.residual, 0 * data.scale, *data.inputs[2:], NAMES)
    with pytest.raises(InputError, match="rising"):
        IntervalCalibrator.fit(*data.inputs, NAMES, levels=(0.9, 0.5))
    calibrator = IntervalCalibrator.fit(*data.inputs, NAMES, levels=(0.9,))
    with pytest.raises(InputError, match=r"between 0.9 and 0.9.*got 90"):
        calibrator.interval(data.loc, data.scale, data.dof, data.covariates, 90)
    with pytest.raises(ValueError, match="'foreground' of row 17 is NaN"):
        calibrator.interval(data.loc, data.scale, data.dof, bad, 0.9)


# Presence


def presence_data(n: int, seed: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    x = np.column_stack(
        [rng.uniform(0, 1, n), rng.normal(5, 3, n), rng.normal(size=n), np.full(n, 4.0)]
    )
    prob = special.expit(3 * (x[:, 0] - 0.5) + 0.6 * (x[:, 1] - 5))
    return x, (rng.random(n) < prob).astype(np.float64), prob


PRESENCE_NAMES = ("foreground", "gap", "noise", "constant")


def test_presence_is_calibrated_and_recovers_the_weights() -> None:
    x, label, _ = presence_data(4000, 0)
    calibrator = PresenceCalibrator.fit(x, label, PRESENCE_NAMES)
    x, label, prob = presence_data(4000, 1)
    got = calibrator.probability(x)
    assert np.abs(got - prob).mean() < 0.02
    assert ece(got, label) < 0.03
    assert auroc(got[label == 1], got[label == 0]) > 0.85
    assert calibrator.weights[4] == 0


def test_logistic_regression_is_at_its_minimum() -> None:
    x, label, _ = presence_data(300, 2)
    l2 = 1e-3
    calibrator = PresenceCalibrator.fit(x, label, PRESENCE_NAMES, l2=l2)
    z = calibrator.scaler.transform(x)
    w = np.array(calibrator.weights)
    left = special.expit(w[0] + z @ w[1:]) - label
    np.testing.assert_allclose(left.mean(), 0, atol=1e-5)
    np.testing.assert_allclose(z.T @ left / 300 + l2 * w[1:], 0, atol=1e-5)


def test_presence_on_separable_and_curved_data() -> None:
    x = np.linspace(-1, 1, 40)[:, None]
    line = PresenceCalibrator.fit(x, x[:, 0] > 0, ["x"])
    assert np.isfinite(line.weights).all()
    np.testing.assert_array_equal(line.probability(x) > 0.5, x[:, 0] > 0)
    inside = np.abs(x[:, 0]) < 0.5
    curved = PresenceCalibrator.fit(x, inside, ["x"], quadratic=True)
    np.testing.assert_array_equal(curved.probability(x) > 0.5, inside)
    assert len(curved.weights) == 3


def test_presence_on_constants_says_the_base_rate() -> None:
    calibrator = PresenceCalibrator.fit(np.ones((20, 2)), [1] * 15 + [0] * 5, ["a", "b"])
    np.testing.assert_allclose(calibrator.probability([[1, 1], [9, -9]]), 0.75, atol=1e-4)


@pytest.mark.parametrize("label", [[1] * 20, [0, 1] * 4, [0, 1, 2] * 5, [[0, 1]] * 10])
def test_presence_needs_both_kinds(label: Any) -> None:
    with pytest.raises(InputError, match="labels for presence"):
        PresenceCalibrator.fit(np.zeros((len(label), 1)), label, ["x"])


# The file


def bundle() -> Calibration:
    x, label, _ = presence_data(100, 3)
    return Calibration(
        interval=IntervalCalibrator.fit(*world(150, 11).inputs, NAMES),
        presence=PresenceCalibrator.fit(x, label, PRESENCE_NAMES, quadratic=True),
        tau=0.25,
        ranking="uncertainty",
        thresholds={"found": 0.7, "absent": 0.3},
    )


@pytest.fixture(scope="module")
def calibrated() -> Calibration:
    return bundle()


def test_save_and_load(tmp_path: Path, calibrated: Calibration) -> None:
    path = tmp_path / "calibration.json"
    for value in (Calibration(), calibrated):
        value.save(path)
        assert Calibration.load(path) == value
        assert [p.name for p in tmp_path.iterdir()] == ["calibration.json"]
    data = json.loads(path.read_text())
    assert data["version"] == 4
    # The first formats knew no weight of the voters' spread, it was 1, and no further moments.
    del data["disagreement"], data["further"]
    path.write_text(json.dumps(data | {"version": 1}))
    assert Calibration.load(path) == calibrated


def test_a_full_disk_loses_nothing(
    tmp_path: Path, calibrated: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "calibration.json"
    calibrated.save(path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelError, match="No space left"):
        Calibration().save(path)
    assert Calibration.load(path) == calibrated
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ModelError, match="a place that can be written"):
        calibrated.save(path / "calibration.json")
    with pytest.raises(ModelError, match="finite"):
        Calibration(tau=math.nan).save(path)


def test_missing_newer_and_foreign_files(tmp_path: Path, calibrated: Calibration) -> None:
    path = tmp_path / "calibration.json"
    with pytest.raises(ModelError, match="No such file"):
        Calibration.load(path)
    path.write_text(json.dumps(calibrated.to_dict() | {"version": 5}))
    with pytest.raises(ModelError, match="got format 5; update demr"):
        Calibration.load(path)
    path.write_text('{"version": 7}')
    with pytest.raises(ModelError, match="format 7"):
        Calibration.load(path)
    for text in (
        "",
        "[]",
        "3",
        "{}",
        '{"version": "1"}',
        '{"version": true}',
        "\x00\xff",
        "[" * 9999,
    ):
        path.write_text(text)
        with pytest.raises(ModelError, match="damaged"):
            Calibration.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="damaged"):
        Calibration.load(path)
    with pytest.raises(ModelError, match="directory"):
        Calibration.load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"ranking": 3},
        {"ranking": "best"},
        {"ranking": ["score"]},
        {"thresholds": {"found": 0.6}},
        {"thresholds": {"found": 0.6, "absnt": 0.4}},
        {"note": math.nan},
    ],
)
def test_files_that_no_demr_wrote(
    tmp_path: Path, calibrated: Calibration, change: dict[str, Any]
) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(calibrated.to_dict() | change))
    with pytest.raises(ModelError, match="damaged"):
        Calibration.load(path)


def test_a_file_of_the_first_format(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    former = {"interval": None, "presence": None, "ranking": "score", "thresholds": {"found": 0.6}}
    path.write_text(json.dumps(former | {"version": 1, "tau": 0}))
    assert Calibration.load(path) == Calibration(thresholds={"found": 0.6})
    assert Calibration().disagreement == 1
    assert Calibration().tau == 0


def test_covariates_by_hand() -> None:
    # Floats near 1e9 lie 1.2e-7 apart: the second column varies by rounding alone.
    x = np.array([[1.0, 1e9], [3.0, np.nextafter(1e9, 2e9)], [1.0, 1e9], [3.0, 1e9]])
    fitted = Standardizer.fit(x, ("varies", "rounding"))
    assert fitted.mean[0] == 2
    assert fitted.std == (1.0, 0.0)
    assert (fitted.low, fitted.high) == ((-1.0, 0.0), (1.0, 0.0))
    found = fitted.transform([[2.5, 0.0], [9.0, 2e9], [-math.inf, 1e9]])
    np.testing.assert_array_equal(found, [[0.5, 0], [1, 0], [-1, 0]])
    for wrong in (np.zeros(2), np.zeros((2, 3)), np.zeros((1, 2, 2))):
        with pytest.raises(ValueError, match=r"covariates must be \(N, 2\)"):
            fitted.transform(wrong)
    with pytest.raises(ValueError, match="covariate 'rounding' of row 1 is NaN"):
        fitted.transform([[0.0, 0.0], [1.0, math.nan]])


@pytest.mark.parametrize(
    "levels", [(), (0.0, 0.5), (0.5, 1.0), (0.5, 1.5), (-0.1,), (0.9, 0.8), (0.5, 0.5)]
)
def test_levels_rise_between_0_and_1(levels: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="rising numbers between 0 and 1"):
        IntervalCalibrator.fit(*world(20, 0).inputs, NAMES, levels=levels)


def test_a_cut_file_is_damaged(tmp_path: Path, calibrated: Calibration) -> None:
    path = tmp_path / "calibration.json"
    calibrated.save(path)
    text = path.read_text().rstrip()
    for length in range(0, len(text), max(1, len(text) // 150)):
        path.write_text(text[:length])
        with pytest.raises(ModelError, match="damaged"):
            Calibration.load(path)


def places(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key and index of a JSON value."""
    if isinstance(data, dict):
        children = list(data.items())
    elif isinstance(data, list):
        children = list(enumerate(data))
    else:
        return []
    found = [(*at, key) for key, _ in children]
    for key, child in children:
        found += places(child, (*at, key))
    return found


BUNDLE = bundle().to_dict()
PLACES = places(BUNDLE)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_changed_files_load_or_are_damaged(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.json"
    content = json.loads(json.dumps(BUNDLE))
    where = data.draw(st.sampled_from(PLACES))
    junk = st.sampled_from([None, "x", -1, 1e400, [], {}, [[1]], {"a": "b"}, 10**400, True])
    target = content
    for key in where[:-1]:
        target = target[key]
    target[where[-1]] = data.draw(junk)
    path.write_text(json.dumps(content))
    try:
        loaded = Calibration.load(path)
    except ModelError:
        return
    # What is accepted can be saved again: no NaN or infinity came through.
    loaded.save(path)


# --- queries of one video are not independent ---------------------------------------------------


def related(rng: np.random.Generator, videos: int, each: int, rho: float) -> tuple[Any, Any]:
    """Absolute errors of normal residuals whose correlation within a video is ``rho``."""
    shared = np.repeat(rng.normal(size=videos), each)
    alone = rng.normal(size=videos * each)
    residual = np.abs(np.sqrt(rho) * shared + np.sqrt(1 - rho) * alone)
    return residual, np.repeat(np.arange(videos), each)


@pytest.mark.parametrize(("each", "rho"), [(20, 0.5), (20, 0.0), (1, 0.0)])
def test_the_promise_holds_for_queries_of_the_same_videos(each: int, rho: float) -> None:
    """100 videos: without them as units, 95 % confidence would be 75 % of calibrations."""
    rng = np.random.default_rng(5)
    reached = []
    for _ in range(1500):
        limit = intervals._conformal_quantile(*related(rng, 100, each, rho)[:1], 0.9, VIDEO[each])
        assert limit is not None
        reached.append(2 * stats.norm.cdf(limit) - 1)
    confidence = (np.array(reached) >= 0.9).mean()
    assert 0.93 <= confidence <= 0.99
    assert np.mean(reached) < 0.96


VIDEO = {each: np.repeat(np.arange(100), each) for each in (1, 20)}


def test_effective_counts_by_hand() -> None:
    hit = np.array([True, True, False, False])
    # Both queries of a video agree: two independent ones. They never agree: no less than four.
    assert intervals.effective_count(hit, np.array([0, 0, 1, 1])) == 2
    assert intervals.effective_count(hit, np.array([0, 1, 0, 1])) == 4
    assert intervals.effective_count(hit, np.arange(4)) == 4
    # One video says nothing of others, and what never varies has no variance to compare.
    assert intervals.effective_count(hit, np.zeros(4, dtype=np.int64)) == 1
    assert intervals.effective_count(np.ones(4, dtype=np.bool_), np.array([0, 0, 1, 1])) == 4


def test_labels_of_one_video_are_not_enough() -> None:
    data = world(60, 3)
    with pytest.raises(InputError, match="at least 2 videos, got 60 about one"):
        IntervalCalibrator.fit(*data.inputs, NAMES, ["v"] * 60)


def test_a_level_that_was_not_fitted_is_refused() -> None:
    few = IntervalCalibrator.fit(*world(15, 2).inputs, NAMES)
    # 95 % of fewer than 19 queries is more than any of them can tell.
    assert few.levels == (0.5, 0.8, 0.9)
    many = IntervalCalibrator.fit(*world(400, 2).inputs, NAMES)
    assert many.levels == (0.5, 0.8, 0.9, 0.95, 0.99)
    for calibrator, level in ((few, 0.95), (many, 0.995), (many, 0.3)):
        with pytest.raises(InputError, match=r"expected a number between 0\.5 and"):
            covered(calibrator, world(5, 1), level)


def test_scales_and_degrees_of_freedom_are_two_a_query() -> None:
    residual, scale, dof, covariates = world(20, 2).inputs
    for spread, freedom in ((scale[:, :1], dof), (scale, dof[:, :1])):
        with pytest.raises(InputError, match=r"expected shape \(20, 2\), got \(20, 1\)"):
            IntervalCalibrator.fit(residual, spread, freedom, covariates, NAMES)


def test_labels_that_are_enough_for_no_level_are_refused() -> None:
    with pytest.raises(InputError, match="expected labels enough for 99%, got 20 queries"):
        IntervalCalibrator.fit(*world(20, 2).inputs, NAMES, levels=(0.99,))


def test_a_high_level_covers_as_often_as_it_says() -> None:
    """Extrapolated from 0.95, intervals of 0.99 held in 0.978 of the cases."""
    shares = [
        covered(IntervalCalibrator.fit(*world(2000, s).inputs, NAMES), world(4000, 90 + s), 0.99)
        for s in range(3)
    ]
    assert np.mean(shares) >= 0.988

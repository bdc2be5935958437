"""Proposals stay one record; ranking, suppression and fusion against slow loops."""

import tracemalloc

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from demr.annotations.windows import suppress, window_iou
from demr.answers.inference import decode
from demr.answers.proposals import Proposals, Ranking, rank, select
from demr.evidential import NormalInverseGamma
from demr.network.model import ModelOutput

FIELDS = ("window_norm", "foreground", "nu", "alpha", "beta", "clip_idx", "score")


def proposals(count: int = 12, seed: int = 0, duration_s: float = 50.0) -> Proposals:
    rng = np.random.default_rng(seed)
    window = np.sort(rng.random((count, 2)), axis=1)
    foreground = rng.random(count)
    return Proposals(
        window_norm=window,
        foreground=foreground,
        nu=rng.uniform(0.1, 3, (count, 2)),
        alpha=rng.uniform(1.1, 4, (count, 2)),
        beta=rng.uniform(0.001, 0.1, (count, 2)),
        clip_idx=np.arange(count),
        score=foreground,
        duration_s=duration_s,
    )


def two(foreground: tuple[float, float] = (0.8, 0.8)) -> Proposals:
    """Two proposals of IoU 0.8 with unequal evidence."""
    return Proposals(
        window_norm=np.array([[0.2, 0.6], [0.25, 0.65]]),
        foreground=np.array(foreground),
        nu=np.array([[1.0, 2.0], [3.0, 0.5]]),
        alpha=np.array([[2.0, 1.5], [3.0, 4.0]]),
        beta=np.array([[0.01, 0.02], [0.03, 0.04]]),
        clip_idx=np.array([4, 5]),
        score=np.array(foreground),
        duration_s=100.0,
    )


def row_of(source: Proposals, clip: int) -> int:
    return int(np.flatnonzero(source.clip_idx == clip)[0])


def assert_whole(selected: Proposals, source: Proposals, *, fields: tuple[str, ...]) -> None:
    """Check that every row is still the record its clip made."""
    for index, clip in enumerate(selected.clip_idx):
        original = row_of(source, int(clip))
        for name in fields:
            np.testing.assert_array_equal(
                getattr(selected, name)[index], getattr(source, name)[original], err_msg=name
            )


# --- the record -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keep", [slice(2, 7), np.array([5, 0, 3]), np.arange(12) % 3 == 0, slice(0, 0)]
)
def test_slicing_keeps_records_whole(keep: slice | NDArray[np.int64]) -> None:
    source = proposals()
    part = source[keep]
    np.testing.assert_array_equal(part.clip_idx, source.clip_idx[keep])
    assert len(part) == len(source.clip_idx[keep])
    assert part.duration_s == source.duration_s
    assert_whole(part, source, fields=FIELDS)


def test_a_record_with_a_short_field_is_refused() -> None:
    source = proposals(4)
    with pytest.raises(ValueError, match=r"beta must be \(4, 2\)"):
        source.replace(beta=source.beta[:3])
    with pytest.raises(ValueError, match=r"score must be \(4,\)"):
        source.replace(score=source.score[:, None])


def test_uncertainties_are_in_squared_seconds() -> None:
    record = two()
    # beta / (alpha - 1) = 0.01 / 1 and 0.02 / 0.5, times 100 s squared.
    np.testing.assert_allclose(record.aleatoric[0], [100.0, 400.0])
    np.testing.assert_allclose(record.epistemic[0], [100.0, 200.0])
    np.testing.assert_allclose(record.evidence, [[4.0, 5.5], [9.0, 5.0]])
    # beta (1 + nu) / (nu alpha) = 0.01 * 2 / 2 and 0.02 * 3 / 3.
    np.testing.assert_allclose(record.scale_s[0], [10.0, 100 * 0.02**0.5])
    np.testing.assert_allclose(record.window_s, [[20, 60], [25, 65]])


def test_windows_in_seconds_lie_in_the_video() -> None:
    record = two().replace(window_norm=np.array([[-0.2, 0.6], [0.5, 1.4]]))
    np.testing.assert_allclose(record.window_s, [[0, 60], [50, 100]])


# --- decode -----------------------------------------------------------------------------------


def output(rows: int, clips: int) -> ModelOutput:
    generator = torch.Generator().manual_seed(3)
    loc, nu, excess, beta = (torch.rand(rows, clips, 2, generator=generator) for _ in range(4))
    loc = loc.sort(dim=-1).values
    return ModelOutput(
        foreground_logit=torch.randn(rows, clips, generator=generator, requires_grad=True),
        nig=NormalInverseGamma.from_excess(loc, nu + 0.1, excess * 1e-5 + 1e-6, beta + 0.01),
        saliency=torch.zeros(rows, clips),
        clip_embedding=torch.zeros(rows, clips, 4),
        query_embedding=torch.zeros(rows, 4),
        match_logit=None,
        fused_text=torch.zeros(rows, 3, 4),
    )


def test_decode_keeps_only_valid_clips_and_every_parameter() -> None:
    out = output(3, 6)
    mask = torch.arange(6) < torch.tensor([4, 6, 1])[:, None]
    records = decode(out, mask, torch.tensor([8.0, 12.0, 1.5]))
    assert [len(record) for record in records] == [4, 6, 1]
    assert [record.duration_s for record in records] == [8.0, 12.0, 1.5]
    for row, record in enumerate(records):
        length = len(record)
        np.testing.assert_array_equal(record.clip_idx, np.arange(length))
        for name, tensor in (
            ("window_norm", out.nig.loc), ("nu", out.nig.nu), ("beta", out.nig.beta)
        ):  # fmt: skip
            np.testing.assert_allclose(getattr(record, name), tensor[row, :length].numpy())
        probability = out.foreground_logit.detach().sigmoid()[row, :length].numpy()
        np.testing.assert_allclose(record.foreground, probability, rtol=1e-6)
        np.testing.assert_array_equal(record.score, record.foreground)


def test_decode_keeps_the_digits_of_small_alpha_minus_one() -> None:
    out = output(1, 5)
    record = decode(out, torch.ones(1, 5, dtype=torch.bool), torch.tensor([1.0]))[0]
    np.testing.assert_allclose(record.aleatoric, out.nig.aleatoric[0].numpy(), rtol=1e-6)
    np.testing.assert_allclose(record.epistemic, out.nig.epistemic[0].numpy(), rtol=1e-6)


def test_a_reversed_window_is_no_proposal() -> None:
    source = proposals()
    with pytest.raises(ValueError, match="window 1 ends before it starts"):
        source.replace(
            window_norm=np.where(np.arange(len(source))[:, None] == 1, [0.7, 0.3], [0, 1])
        )


@pytest.mark.parametrize("ranking", ["voting", "fusion"])
def test_voters_that_contradict_each_other_move_nothing(ranking: Ranking) -> None:
    """Each boundary is averaged by itself: of [.7, 1] and [0, .3] comes [.70, .30]."""
    # The first is sure of its start and the second of its end, and both overlap the wide third.
    source = proposals(3).replace(
        window_norm=np.array([[0.0, 1.0], [0.7, 1.0], [0.0, 0.3]]),
        foreground=np.array([0.9, 0.8, 0.8]),
        nu=np.array([[1e-3, 1e-3], [100.0, 1e-3], [1e-3, 100.0]]),
        alpha=np.full((3, 2), 2.0),
        beta=np.array([[1.0, 1.0], [1e-6, 1.0], [1.0, 1e-6]]),
    )
    top = select(source, ranking=ranking, iou=0.2, after=1)
    np.testing.assert_allclose(top.window_norm, [[0.0, 1.0]])
    assert (top.window_s[:, 0] <= top.window_s[:, 1]).all()


# --- rank -------------------------------------------------------------------------------------


def test_rank_without_tau_is_score_order() -> None:
    source = proposals()
    ranked = rank(source)
    np.testing.assert_array_equal(ranked.score, np.sort(source.foreground)[::-1])
    assert_whole(ranked, source, fields=FIELDS)


def test_rank_is_stable_for_ties() -> None:
    source = proposals(5).replace(foreground=np.full(5, 0.5))
    np.testing.assert_array_equal(rank(source).clip_idx, np.arange(5))


def test_high_epistemic_uncertainty_goes_down() -> None:
    source = two((0.8, 0.79))
    # Epistemic 100 and 200 against 10000 * 0.03 / 2 / 3 = 50 and 10000 * 0.04 / 3 / 0.5 = 267.
    np.testing.assert_allclose(source.epistemic, np.array([[100, 200], [50, 800 / 3]]))
    assert rank(source, 0.0).clip_idx.tolist() == [4, 5]
    doubtful = source.replace(nu=source.nu * np.array([[0.01], [1.0]]))
    ranked = rank(doubtful, 0.5)
    assert ranked.clip_idx.tolist() == [5, 4]
    # Two values standardise to -1 and +1.
    np.testing.assert_allclose(ranked.score, [0.79 * np.exp(0.5), 0.8 * np.exp(-0.5)])
    assert_whole(ranked, doubtful, fields=FIELDS[:-1])


def test_ranking_by_uncertainty_agrees_with_the_formula() -> None:
    source, tau = proposals(), 0.7
    log_eu = [np.log((row[0] + row[1]) / 2) for row in source.epistemic]
    mean = sum(log_eu) / len(log_eu)
    std = (sum((value - mean) ** 2 for value in log_eu) / len(log_eu)) ** 0.5
    score = [
        p * np.exp(-tau * (v - mean) / std) for p, v in zip(source.foreground, log_eu, strict=True)
    ]
    order = sorted(range(len(score)), key=lambda index: -score[index])
    ranked = rank(source, tau)
    assert ranked.clip_idx.tolist() == order
    np.testing.assert_allclose(ranked.score, [score[index] for index in order], rtol=1e-6)


def test_equal_uncertainty_and_a_single_proposal_keep_the_score_order() -> None:
    source = proposals(6)
    same = source.replace(nu=np.ones((6, 2)), alpha=np.full((6, 2), 2.0), beta=np.ones((6, 2)))
    np.testing.assert_array_equal(rank(same, 2.0).clip_idx, rank(same).clip_idx)
    assert np.isfinite(rank(same, 2.0).score).all()
    assert rank(source[:1], 2.0).score[0] == source.foreground[0]


# --- suppression ------------------------------------------------------------------------------


def slow_iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    overlap = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - overlap
    return float(overlap / union) if union > 0 else 0.0


def slow_nms(windows: NDArray[np.float64], threshold: float, limit: int) -> list[int]:
    left = list(range(len(windows)))
    kept: list[int] = []
    while left and len(kept) < limit:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if slow_iou(windows[best], windows[i]) <= threshold]
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("limit", [1, 3, 100])
def test_suppression_against_the_loop(threshold: float, limit: int) -> None:
    for seed in range(5):
        windows = proposals(40, seed).window_norm
        owner = suppress(windows, threshold, limit)
        kept = np.flatnonzero(owner == np.arange(40))
        assert kept.tolist() == slow_nms(windows, threshold, limit)
        for index, by in enumerate(owner):
            if by >= 0 and by != index:
                assert owner[by] == by < index
                assert slow_iou(windows[by], windows[index]) > threshold
            if by < 0:
                assert len(kept) == limit


@pytest.mark.parametrize("ranking", ["score", "uncertainty"])
def test_selection_keeps_records_whole(ranking: str) -> None:
    source = proposals(60)
    assert ranking in {"score", "uncertainty"}
    chosen = select(
        source,
        ranking="score" if ranking == "score" else "uncertainty",
        tau=0.6, iou=0.3, before=40, after=4,
    )  # fmt: skip
    assert 0 < len(chosen) <= 4
    ranked = rank(source, 0.0 if ranking == "score" else 0.6)[:40]
    kept = slow_nms(ranked.window_s, 0.3, 4)
    np.testing.assert_array_equal(chosen.clip_idx, ranked.clip_idx[kept])
    assert_whole(chosen, ranked, fields=FIELDS)


def test_score_ranking_ignores_tau() -> None:
    source = proposals(30)
    np.testing.assert_array_equal(
        select(source, ranking="score", tau=3.0).clip_idx, select(source).clip_idx
    )


# --- fusion -----------------------------------------------------------------------------------


def test_fusion_of_two_equal_members_by_hand() -> None:
    fused = select(two(), ranking="fusion")
    assert len(fused) == 1
    np.testing.assert_allclose(fused.nu, [[4.0, 2.5]])
    np.testing.assert_allclose(fused.alpha, [[5.5, 6.0]])
    # Means weighted by nu: 0.2 by 1 and 0.25 by 3; 0.6 by 2 and 0.65 by 0.5.
    np.testing.assert_allclose(fused.window_norm, [[0.2375, 0.61]])
    # Betas sum to 0.04 and 0.06; half the spread around those means comes on top: nu 1 and 3 at
    # distances 0.0375 and 0.0125 of the start, nu 2 and 0.5 at 0.01 and 0.04 of the end.
    np.testing.assert_allclose(fused.beta, [[0.0409375, 0.0605]])
    assert fused.clip_idx.tolist() == [4]
    assert fused.score.tolist() == [0.8]


def test_fusion_is_the_papers_summation_taken_member_by_member() -> None:
    count = 5
    source = proposals(count, 4).replace(
        window_norm=np.array([0.3, 0.7]) + np.linspace(-0.02, 0.02, count)[:, None] ** 2,
        foreground=np.full(count, 0.6),
    )
    loc, nu, alpha, beta = source.window_norm[0], source.nu[0], source.alpha[0], source.beta[0]
    for i in range(1, count):
        mean = (nu * loc + source.nu[i] * source.window_norm[i]) / (nu + source.nu[i])
        beta = (
            beta
            + source.beta[i]
            + nu * (loc - mean) ** 2 / 2
            + source.nu[i] * (source.window_norm[i] - mean) ** 2 / 2
        )
        loc, nu, alpha = mean, nu + source.nu[i], alpha + source.alpha[i] + 0.5
    fused = select(source, ranking="fusion")
    assert len(fused) == 1
    for name, expected in (("window_norm", loc), ("nu", nu), ("alpha", alpha), ("beta", beta)):
        np.testing.assert_allclose(getattr(fused, name)[0], expected, rtol=1e-12, err_msg=name)


def test_an_unlikely_member_hardly_counts() -> None:
    faint = select(two((0.8, 0.8e-9)), ranking="fusion")
    for name in ("window_norm", "nu", "alpha", "beta"):
        np.testing.assert_allclose(getattr(faint, name)[0], getattr(two(), name)[0], rtol=1e-6)
    half = select(two((0.8, 0.4)), ranking="fusion")
    np.testing.assert_allclose(half.nu, [[2.5, 2.25]])
    np.testing.assert_allclose(half.alpha, [[2.0 + 1.5 + 0.25, 1.5 + 2.0 + 0.25]])


def test_fusing_what_overlaps_nothing_changes_nothing() -> None:
    source = two().replace(window_norm=np.array([[0.0, 0.2], [0.5, 0.9]]))
    fused = select(source, ranking="fusion")
    for name in FIELDS:
        np.testing.assert_allclose(getattr(fused, name), getattr(source, name))


@pytest.mark.parametrize("level", [0.0, 1e-300, 1e-20])
def test_fusion_survives_probabilities_that_underflow(level: float) -> None:
    fused = select(two((level, level)), ranking="fusion")
    np.testing.assert_allclose(fused.nu, [[4.0, 2.5]])
    np.testing.assert_allclose(fused.alpha, [[5.5, 6.0]])


def test_fused_evidence_stays_valid() -> None:
    for seed in range(10):
        fused = select(proposals(50, seed), ranking="fusion", tau=0.5, iou=0.2)
        assert (fused.alpha > 1).all()
        assert (fused.nu > 0).all()
        assert (fused.beta > 0).all()
        assert np.isfinite(fused.scale_s).all()


# --- voting -----------------------------------------------------------------------------------


def test_voting_by_hand() -> None:
    voted = select(two(), ranking="voting")
    assert len(voted) == 1
    # Squared scales beta (1 + nu) / (nu alpha): start 0.01 and 0.0133.., end 0.02 and 0.03.
    start = (100 * 0.2 + 75 * 0.25) / 175
    end = (50 * 0.6 + 100 / 3 * 0.65) / (50 + 100 / 3)
    np.testing.assert_allclose(voted.window_norm, [[start, end]])
    assert_whole(voted, two(), fields=("alpha", "beta", "foreground"))
    # The votes differ, and their weighted variance is epistemic: p (1 - p) times the squared gap.
    spread = np.array([100 * 75 / 175**2 * 0.05**2, 50 * 100 / 3 / (50 + 100 / 3) ** 2 * 0.05**2])
    alone = select(two(), ranking="score")
    duration = alone.duration_s
    np.testing.assert_allclose(voted.epistemic[0], alone.epistemic[0] + spread * duration**2)
    np.testing.assert_allclose(voted.aleatoric, alone.aleatoric)


def test_votes_of_sure_voters_by_hand() -> None:
    # Scales of 0.1, 0.2 and 0.2 s (nu counts for nothing): weights of 100, 25 and 25. The third
    # overlaps the first by 3/10 and just has a vote on it.
    windows = np.array([[10.0, 20.0], [12.0, 22.0], [10.0, 13.0]]) / 100
    every, level = np.ones((3, 2)), np.full(3, 0.8)
    beta = np.array([[4e-6], [16e-6], [16e-6]]) * every
    record = Proposals(
        windows, level, 1e9 * every, 4 * every, beta, np.arange(3), level, duration_s=100.0
    )
    np.testing.assert_allclose(record.scale_s[:, 0], [0.1, 0.2, 0.2])
    moved = select(record, ranking="voting", after=1).window_s
    start, end = (100 * 10 + 25 * 12 + 25 * 10) / 150, (100 * 20 + 25 * 22 + 25 * 13) / 150
    np.testing.assert_allclose(moved, [[start, end]])


def test_the_voters_spread_counts_as_often_as_it_is_told_to() -> None:
    alone, once, thrice = (
        select(two(), ranking="voting", disagreement=times) for times in (0.0, 1.0, 3.0)
    )
    np.testing.assert_allclose(alone.epistemic, select(two(), ranking="score").epistemic)
    np.testing.assert_allclose(
        thrice.epistemic - alone.epistemic, 3 * (once.epistemic - alone.epistemic)
    )
    np.testing.assert_allclose(thrice.aleatoric, once.aleatoric)
    np.testing.assert_array_equal(thrice.window_norm, once.window_norm)


def test_voting_keeps_what_score_keeps_and_is_never_surer_than_it() -> None:
    source = proposals(40, 3)
    voted, scored = select(source, ranking="voting"), select(source, ranking="score")
    np.testing.assert_array_equal(voted.clip_idx, scored.clip_idx)
    assert_whole(voted, source, fields=("alpha", "beta"))
    assert (voted.epistemic >= scored.epistemic * (1 - 1e-12)).all()
    assert (voted.evidence <= scored.evidence * (1 + 1e-12)).all()
    assert (voted.epistemic > scored.epistemic * 1.001).any()


def test_a_vote_that_nobody_disputes_changes_no_uncertainty() -> None:
    same = two()
    same = same.replace(window_norm=np.tile(same.window_norm[:1], (2, 1)))
    voted, scored = select(same, ranking="voting"), select(same, ranking="score")
    np.testing.assert_allclose(voted.nu, scored.nu)
    np.testing.assert_allclose(voted.window_norm, scored.window_norm)


def test_a_clip_that_cannot_be_foreground_has_no_vote() -> None:
    np.testing.assert_allclose(select(two((0.8, 0.0)), ranking="voting").window_norm, [[0.2, 0.6]])


# --- long videos ------------------------------------------------------------------------------


def table_suppress(windows: NDArray[np.float64], threshold: float, limit: int) -> list[int]:
    """Suppression with the table of all pairs."""
    overlap = window_iou(windows, windows) > threshold
    owner = [-1] * len(windows)
    kept = 0
    for index in range(len(windows)):
        if owner[index] >= 0:
            continue
        if kept == limit:
            break
        kept += 1
        for other in range(len(windows)):
            if owner[other] < 0 and (overlap[index, other] or other == index):
                owner[other] = index
    return owner


@pytest.mark.parametrize("seed", range(6))
def test_suppression_equals_that_with_a_table_of_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 60, 300)
    windows = np.stack([start, start + rng.uniform(0, 12, 300)], axis=1)
    windows[::7, 1] = windows[::7, 0]  # empty ones overlap nothing, not even themselves
    for limit in (1, 10, 400):
        found = suppress(windows, 0.5, limit)
        assert found.tolist() == table_suppress(windows, 0.5, limit)
    assert (suppress(windows, 0.5, 400, 5) < 5).all()


@pytest.mark.parametrize("seed", range(4))
def test_votes_of_a_long_video_equal_those_counted_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source = proposals(1500, seed, duration_s=1500.0)
    start = rng.uniform(0, 0.99, 1500)
    source = source.replace(
        window_norm=np.stack([start, start + rng.uniform(0.001, 0.01, 1500)], axis=1)
    )
    found = select(source, ranking="voting", disagreement=2.0, before=1000)
    kept = select(source, ranking="score", before=1000)
    np.testing.assert_array_equal(found.clip_idx, kept.clip_idx)
    for row, own in enumerate(kept.window_s):
        # All have a vote, the third that may not be kept itself included.
        voters = window_iou(own[None], source.window_s)[0] >= 0.3
        weight = source.foreground[voters, None] / source.scale_s[voters] ** 2
        mean = (weight * source.window_norm[voters]).sum(axis=0) / weight.sum(axis=0)
        spread = weight * (source.window_norm[voters] - mean) ** 2
        variance = spread.sum(axis=0) / weight.sum(axis=0)
        aleatoric = kept.beta[row] / (kept.alpha[row] - 1)
        np.testing.assert_allclose(found.window_norm[row], mean, rtol=1e-9)
        expected = aleatoric / kept.nu[row] + 2.0 * variance
        np.testing.assert_allclose(aleatoric / found.nu[row], expected, rtol=1e-6)


def test_twelve_hours_need_no_table_of_all_pairs() -> None:
    # 43,200 proposals: the table alone would be 15 GB.
    record = proposals(43_200, 0, duration_s=43_200.0)
    start = np.sort(record.window_norm[:, 0])
    record = record.replace(window_norm=np.stack([start, start + 1e-4], axis=1))
    tracemalloc.start()
    try:
        assert len(select(record, ranking="voting", after=40)) == 40
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200 * 2**20

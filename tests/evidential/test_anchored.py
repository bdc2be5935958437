"""The anchored Geom: hand-worked ranks, its memory against a loop, its fixed point, pure noise."""

import copy
import math
from collections import deque

import pytest
import torch
from tests.evidential.nig_samples import gradients, leaves_of, random_nig, random_target
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from demr.evidential import (
    AnchoredGeom,
    EvidentialHead,
    NormalInverseGamma,
    geom_regularizer,
    nig_nll,
)


def of_errors(errors: Tensor, nu: float = 1.0, alpha: float = 2.0) -> NormalInverseGamma:
    """A prediction of 0 everywhere, so that targets are the errors."""
    return NormalInverseGamma(torch.zeros_like(errors), nu, alpha, 0.1)


def ranks_of(regularizer: AnchoredGeom, errors: Tensor, mask: Tensor | None = None) -> Tensor:
    """The ranks that a call used, out of its unreduced terms."""
    phi_bar = 4 / (4 + regularizer.typical_evidence)
    terms = regularizer(of_errors(errors), errors, mask, reduction="none")
    # Evidence of 4 at a Phi_0 of 1e6 is next to 0, so that the root is 1 - rank - phi_bar.
    ranks: Tensor = 1 - phi_bar - terms.sqrt()
    return ranks


def test_hand_worked() -> None:
    # Evidence 4, 8, 28, 10 and Phi_0 = 12: bars 1/4, 2/5, 7/10, 5/11. Errors 0.9, 0.1, 0.1, 0.3
    # of four: 3.5, 1, 1 and 2.5 of them lie below (half of itself, and of its equal).
    nu, alpha = torch.tensor([1.0, 3.0, 10.0, 2.0]), torch.tensor([2.0, 2.0, 8.0, 6.0])
    nig = NormalInverseGamma(torch.zeros(4), nu, alpha, 1.0)
    target = torch.tensor([0.9, 0.1, -0.1, 0.3])
    terms = [(1 / 4 + 7 / 8 - 1), (2 / 5 + 1 / 4 - 1), (7 / 10 + 1 / 4 - 1), (5 / 11 + 5 / 8 - 1)]
    regularizer = AnchoredGeom(typical_evidence=12.0)
    each = regularizer(nig, target, reduction="none")
    assert each.tolist() == pytest.approx([term**2 for term in terms], rel=1e-5)
    # A second call ranks 0.2 among all five: two below, and itself.
    one = of_errors(torch.tensor([0.2]))
    assert regularizer(one, torch.tensor([0.2])).item() == pytest.approx((1 / 4 + 2.5 / 5 - 1) ** 2)


def test_its_gradient_is_the_papers_through_the_scale() -> None:
    nig, target = random_nig(40), random_target(40)
    regularizer = AnchoredGeom(typical_evidence=5.0)
    value = regularizer(nig, target)
    rank = (target - nig.loc).detach().abs().argsort().argsort().add(0.5) / 40
    phi = nig.evidence.detach()
    line = phi / (phi + 5) + rank - 1
    expected = 2 * line * 5 / (phi + 5) ** 2 / 40
    loc, nu, alpha, beta = gradients(value, nig)
    assert loc is None
    assert beta is None
    assert nu is not None
    assert alpha is not None
    torch.testing.assert_close(alpha, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(nu, 2 * expected, rtol=1e-6, atol=1e-9)
    # Descent raises evidence below the line, and lowers it above.
    assert torch.equal(alpha > 0, line > 0)


def test_gradcheck_beside_a_memory() -> None:
    regularizer = AnchoredGeom(2, typical_evidence=4.0, memory=7).double()
    regularizer(random_nig(9, 2), 2 * random_target(9, 2))
    regularizer.eval()
    target, mask = random_target(4, 2), torch.tensor([True, True, False, True])
    doubt = torch.tensor([0.0, 0.5, 1.0, 0.2])

    def run(loc: Tensor, nu: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        value: Tensor = regularizer(
            NormalInverseGamma(loc, nu, alpha, beta), target, mask, doubt=doubt
        )
        return value

    assert gradcheck(run, leaves_of(random_nig(4, 2)))
    assert gradgradcheck(run, leaves_of(random_nig(4, 2)))


def test_the_memory_against_a_loop() -> None:
    """Batches of all sizes, larger than the memory too, with holes, each target by itself."""
    generator = torch.Generator().manual_seed(5)
    regularizer = AnchoredGeom(3, typical_evidence=1e6, memory=10)
    memories: list[deque[float]] = [deque(maxlen=10) for _ in range(3)]
    for size in (1, 4, 0, 3, 25, 1, 6, 10, 11):
        # Whole numbers, so that there are ties.
        errors = torch.randint(0, 8, (size, 3), generator=generator).float()
        valid = torch.rand(size, 3, generator=generator) > 0.3
        found = ranks_of(regularizer, errors, valid)
        for target, memory in enumerate(memories):
            memory.extend(errors[valid[:, target], target].tolist())
            for row in range(size):
                if valid[row, target]:
                    error = errors[row, target].item()
                    below = sum(e < error for e in memory) + sum(e == error for e in memory) / 2
                    expected = below / len(memory)
                    assert found[row, target].item() == pytest.approx(expected, abs=1e-5)
    for target, memory in enumerate(memories):
        assert regularizer.errors[target].tolist() == list(memory)


def test_one_memory_serves_all_entries_unless_targets_are_told_apart() -> None:
    errors = torch.tensor([[0.1, 30.0], [0.2, 10.0], [0.3, 20.0]])
    together = ranks_of(AnchoredGeom(typical_evidence=1e6), errors)
    apart = ranks_of(AnchoredGeom(2, typical_evidence=1e6), errors)
    sixths = torch.tensor([[0.5, 5.5], [1.5, 3.5], [2.5, 4.5]]) / 6
    torch.testing.assert_close(together, sixths, rtol=0, atol=1e-5)
    thirds = torch.tensor([[0.5, 2.5], [1.5, 0.5], [2.5, 1.5]]) / 3
    torch.testing.assert_close(apart, thirds, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"last dimension must be the 2 targets, got \(3, 4\)"):
        AnchoredGeom(2)(of_errors(torch.ones(3, 4)), torch.ones(3, 4))


def test_units_do_not_matter() -> None:
    nig, target = random_nig(30, 2), random_target(30, 2)
    alone = AnchoredGeom()(nig, target)
    hours = nig.rescale(1 / 3600, 5.0)
    torch.testing.assert_close(AnchoredGeom()(hours, target / 3600 + 5), alone)


def test_a_batch_of_one_is_ranked_among_what_came_before() -> None:
    regularizer = AnchoredGeom(typical_evidence=1e6)
    # Of the very first error nothing is known: the middle.
    expected = [(0.3, 1 / 2), (0.9, 3 / 4), (0.1, 1 / 6), (0.5, 5 / 8)]
    for error, rank in expected:
        found = ranks_of(regularizer, torch.tensor([[error]])).item()
        assert found == pytest.approx(rank, abs=1e-5)


def test_in_eval_mode_nothing_is_remembered() -> None:
    regularizer = AnchoredGeom(typical_evidence=1e6).eval()
    # With an empty memory every error is in the middle.
    assert ranks_of(regularizer, torch.tensor([0.1, 9.0])).tolist() == pytest.approx([0.5, 0.5])
    assert (regularizer.errors == -1).all()
    regularizer.train()
    ranks_of(regularizer, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    regularizer.eval()
    before = copy.deepcopy(regularizer.state_dict())
    found = ranks_of(regularizer, torch.tensor([0.0, 2.0, 2.5, 9.0]))
    assert found.tolist() == pytest.approx([0.0, 1.5 / 4, 0.5, 1.0], abs=1e-5)
    for name, value in regularizer.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_resumed_training_goes_on_as_if_it_had_not_stopped() -> None:
    generator = torch.Generator().manual_seed(2)
    batches = [torch.rand(7, generator=generator) for _ in range(9)]
    through = AnchoredGeom(memory=16)
    values = [through(of_errors(batch), batch).item() for batch in batches]
    first = AnchoredGeom(memory=16)
    for batch in batches[:5]:
        first(of_errors(batch), batch)
    resumed = AnchoredGeom(memory=16)
    resumed.load_state_dict(first.state_dict())
    assert [resumed(of_errors(batch), batch).item() for batch in batches[5:]] == values[5:]
    assert set(first.state_dict()) == {"errors"}
    assert not list(first.parameters())


def test_mixed_precision() -> None:
    head, features = EvidentialHead(8, 2), torch.randn(20, 8)
    target = torch.rand(20, 2)
    values = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            regularizer = AnchoredGeom()
            value = regularizer(head(features, torch.zeros(20, 2)), target)
            assert value.dtype == torch.float32
            assert regularizer.errors.dtype == torch.float32
            values.append(value)
    torch.testing.assert_close(values[0], values[1])
    # A whole module cast to bfloat16 ranks by what it can still tell apart.
    nig, target = random_nig(400), random_target(400)
    exact, coarse = AnchoredGeom(), AnchoredGeom().bfloat16()
    torch.testing.assert_close(coarse(nig, target), exact(nig, target), rtol=0.01, atol=0)
    assert coarse.errors.dtype == torch.bfloat16


def test_doubt_raises_the_rank_and_is_not_remembered() -> None:
    errors = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    phi_bar = 4 / 14
    doubt = torch.tensor([0.0, 0.5])
    ranks = [[1 / 8, 3 / 8], [1 - 3 / 8 * 0.5, 1 - 1 / 8 * 0.5]]
    regularizer = AnchoredGeom()
    found = regularizer(of_errors(errors), errors, doubt=doubt, reduction="none")
    expected = [[(phi_bar + rank - 1) ** 2 for rank in row] for row in ranks]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert regularizer.errors[0, -4:].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_what_is_not_finite_is_not_remembered() -> None:
    regularizer = AnchoredGeom()
    errors = torch.tensor([0.1, math.nan, math.inf, 0.2])
    regularizer(of_errors(errors), errors)
    assert regularizer.errors[0, -3:].tolist() == pytest.approx([-1, 0.1, 0.2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": 0}, "targets and memory must be at least 1, got 0 and 4096"),
        ({"memory": 0}, "targets and memory must be at least 1, got 1 and 0"),
        ({"typical_evidence": 1.0}, "typical_evidence must be above 1 and finite, got 1.0"),
        ({"typical_evidence": math.nan}, "typical_evidence must be above 1 and finite, got nan"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnchoredGeom(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduction must be"):
        AnchoredGeom()(random_nig(2), random_target(2), reduction="sum")


def test_its_fixed_point_is_one_minus_the_expected_rank() -> None:
    """Three kinds of input, of errors that overlap; the evidence of each is free."""
    torch.manual_seed(0)
    spread = torch.tensor([0.1, 1.0, 3.0])
    regularizer = AnchoredGeom(typical_evidence=10.0, memory=4096)
    log_nu = nn.Parameter(torch.zeros(3))
    adam = torch.optim.Adam([log_nu], 0.1)
    steps = 300
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    kind = torch.arange(3).repeat(100)
    for _ in range(steps):
        errors = spread[kind] * torch.randn(300)
        nig = NormalInverseGamma(torch.zeros(300), log_nu.exp()[kind], 1.5, 1.0)
        adam.zero_grad()
        regularizer(nig, errors).backward()
        adam.step()
        schedule.step()
    # The expected rank of each kind, by ranking many errors among the mixture of all.
    draws = (spread[:, None] * torch.randn(3, 20_000)).abs()
    everything = draws.flatten().sort().values
    rank = (torch.searchsorted(everything, draws) / everything.numel()).mean(dim=1)
    phi = 2 * log_nu.detach().exp() + 1.5
    torch.testing.assert_close(phi / (phi + 10), 1 - rank, rtol=0, atol=0.02)


def nu_on_noise(regularizer: nn.Module | None, steps: int) -> list[float]:
    """Median nu of a network that regresses pure noise, halfway and at the end of training."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 32), nn.ReLU())
    value, evidence = nn.Linear(32, 1), EvidentialHead(32)
    parameters = [*body.parameters(), *value.parameters(), *evidence.parameters()]
    adam = torch.optim.Adam(parameters, 1e-2, foreach=True)
    medians = []
    for step in range(1, steps + 1):
        x, y = torch.randn(64, 4), torch.randn(64, 1)
        hidden = body(x)
        nig = evidence(hidden, value(hidden))
        penalty = geom_regularizer(nig, y) if regularizer is None else regularizer(nig, y)
        adam.zero_grad()
        (nig_nll(nig, y) + penalty).backward()
        adam.step()
        if step in (steps // 2, steps):
            medians.append(nig.nu.median().item())
    return medians


def test_evidence_does_not_grow_on_pure_noise() -> None:
    # Nothing tells inputs apart, so that the evidence is Phi_0 = 10, of which alpha takes a part.
    assert max(nu_on_noise(AnchoredGeom(), 600)) < 5
    # The paper's form at the same weight: nothing stops it.
    halfway, end = nu_on_noise(None, 600)
    assert end > 1.5 * halfway > 7.5

"""Each loss against a slow, obvious loop; and what an absent moment may not touch."""

import math
from dataclasses import fields, replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck

from demr.batches.batch import Batch, Item, Targets, collate, make_targets
from demr.evidential import AnchoredGeom, NormalInverseGamma, geom_regularizer
from demr.network.losses import (
    TEMPERATURE,
    LossBreakdown,
    alignment_loss,
    anchored_geom,
    foreground_loss,
    giou,
    inter_loss,
    intra_loss,
    retrieval_loss,
    saliency_loss,
    saliency_terms,
    same_id,
)
from demr.network.model import DemrModel, ModelOutput
from demr.network.settings import Architecture, LossWeights

ONLY_FOREGROUND = ("smooth_l1", "giou", "intra", "inter", "clip_contrast", "nll", "regularizer")


def build() -> DemrModel:
    torch.manual_seed(0)
    return DemrModel(8, 6, Architecture(dim=16, heads=4, layers=1, hidden=16)).eval()


def item(clips: int, windows: list[tuple[float, float]], *, event: int = -1, seed: int = 0) -> Item:
    generator = torch.Generator().manual_seed(100 * clips + seed)
    edges = torch.linspace(0, 1, clips + 1)
    span = torch.stack([edges[:-1], edges[1:]], dim=1)
    return Item(
        video=torch.randn(clips, 8, generator=generator),
        text=torch.randn(4, 6, generator=generator),
        span_norm=span,
        duration_s=2.0 * clips,
        targets=make_targets(windows, span),
        event=event,
    )


def present() -> list[Item]:
    return [
        item(9, [(0.1, 0.5)], event=3),
        item(6, [(0.5, 0.9), (0.0, 0.2)], event=4),
        item(8, [(0.3, 0.8)], event=3),
        item(5, [(0.9, 0.95)], seed=1),
    ]


def known(batch: Batch) -> Targets:
    assert batch.targets is not None
    return batch.targets


def first_ones(weight: Tensor, count: int) -> Tensor:
    """Stand in for torch.multinomial: the first candidates of every row."""
    return torch.stack([row.nonzero()[:count, 0] for row in weight])


@pytest.fixture
def _first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "multinomial", first_ones)


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a @ b / a.norm() / b.norm()).item())


def softmax_loss(positive: float, negatives: list[float]) -> float:
    """Cross-entropy of one cosine against others at temperature 0.07."""
    scores = [positive / 0.07] + [negative / 0.07 for negative in negatives]
    return -math.log(math.exp(scores[0]) / sum(math.exp(score) for score in scores))


# --- GIoU -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        ((0.2, 0.6), (0.2, 0.6), 1.0),
        # Overlap 0.2 of union 0.6, which is the hull.
        ((0.2, 0.6), (0.4, 0.8), 1 / 3),
        # Disjoint: hull 0.9, union 0.3, so -(0.9 - 0.3) / 0.9.
        ((0.0, 0.1), (0.7, 0.9), -2 / 3),
        # Touching: nothing overlaps and nothing is left over.
        ((0.0, 0.4), (0.4, 0.8), 0.0),
        # Nested either way: the union is the hull, 0.2 of 0.8.
        ((0.1, 0.9), (0.4, 0.6), 0.25),
        ((0.4, 0.6), (0.1, 0.9), 0.25),
        # Reversed: an empty window at 0.5, inside and outside the truth.
        ((0.8, 0.2), (0.4, 0.9), 0.0),
        ((0.6, 0.4), (0.7, 0.9), -0.5),
        # Outside the video.
        ((-0.2, 0.2), (0.0, 0.4), 1 / 3),
    ],
)
def test_giou_by_hand(
    predicted: tuple[float, float], true: tuple[float, float], expected: float
) -> None:
    value = giou(torch.tensor([predicted]), torch.tensor([true]))
    assert value.shape == (1,)
    assert value.item() == pytest.approx(expected, abs=1e-6)


def test_giou_is_one_value_a_pair() -> None:
    predicted = torch.tensor([[0.2, 0.6], [0.0, 0.1]])
    true = torch.tensor([[0.4, 0.8], [0.7, 0.9]])
    torch.testing.assert_close(giou(predicted, true), torch.tensor([1 / 3, -2 / 3]))


@settings(max_examples=100, deadline=None)
@given(
    st.tuples(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5)),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
)
def test_giou_stays_in_range_with_finite_gradients(
    predicted: tuple[float, float], true: list[float]
) -> None:
    leaf = torch.tensor([predicted], requires_grad=True)
    value = giou(leaf, torch.tensor([true]))
    assert -1 - 1e-5 <= value.item() <= 1 + 1e-5
    value.sum().backward()
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()


def test_giou_gradient_in_float64() -> None:
    predicted = torch.tensor(
        [[0.2, 0.6], [0.0, 0.1], [0.1, 0.9], [0.45, 0.55], [0.8, 0.2], [0.61, 0.43]],
        dtype=torch.float64,
        requires_grad=True,
    )
    true = torch.tensor(
        [[0.4, 0.8], [0.7, 0.9], [0.4, 0.6], [0.1, 0.9], [0.37, 0.9], [0.7, 0.9]],
        dtype=torch.float64,
    )
    assert gradcheck(lambda window: giou(window, true), (predicted,))


def test_a_disjoint_prediction_is_pulled_towards_the_truth() -> None:
    for window in ((0.0, 0.1), (0.1, 0.0)):
        leaf = torch.tensor([window], requires_grad=True)
        giou(leaf, torch.tensor([[0.7, 0.9]])).sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.sum() > 0


# --- the plain terms --------------------------------------------------------------------------


def test_boundary_terms_against_the_loop() -> None:
    model, batch = build(), collate(present())
    output = model(batch)
    targets = known(batch)
    distance, overlap = [], []
    for b in range(len(batch)):
        for i in range(batch.video.shape[1]):
            if targets.foreground[b, i]:
                window, true = output.nig.loc[b, i].tolist(), targets.window_norm[b, i].tolist()
                for p, t in zip(window, true, strict=True):
                    gap = abs(p - t)
                    distance.append(gap**2 / 2 if gap < 1 else gap - 0.5)
                inter = max(0, min(window[1], true[1]) - max(window[0], true[0]))
                union = window[1] - window[0] + true[1] - true[0] - inter
                hull = max(window[1], true[1]) - min(window[0], true[0])
                overlap.append(1 - (inter / union - (hull - union) / hull))
    losses = retrieval_loss(output, batch, LossWeights())
    assert losses.smooth_l1.item() == pytest.approx(sum(distance) / len(distance), rel=1e-5)
    assert losses.giou.item() == pytest.approx(sum(overlap) / len(overlap), rel=1e-5)


def test_foreground_loss_against_the_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    logit = 3 * torch.randn(3, 5, generator=generator)
    foreground = torch.rand(3, 5, generator=generator) > 0.5
    valid = torch.arange(5) < torch.tensor([5, 3, 1])[:, None]
    foreground &= valid
    terms = []
    for b in range(3):
        for i in range(5):
            if valid[b, i]:
                p = 1 / (1 + math.exp(-logit[b, i].item()))
                terms.append(-math.log(p) if foreground[b, i] else -0.1 * math.log(1 - p))
    assert len(terms) == 9
    expected = sum(terms) / len(terms)
    padded = [torch.where(valid, logit, garbage) for garbage in (1e4, math.inf, math.nan)]
    for scores in (logit, *padded):
        got = foreground_loss(scores, foreground, valid, 0.1).item()
        assert got == pytest.approx(expected, rel=1e-5)


def test_intra_loss_against_the_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    saliency = 2 * torch.rand(3, 6, generator=generator) - 1
    relevance = torch.tensor(
        [[0.0, 0.5, 1.0, 1.0, 0.2, 0.0], [0.3, 0.1, 0.3, 0.0, 0.0, 0.0], [1.0] * 6]
    )
    valid = torch.arange(6) < torch.tensor([5, 3, 6])[:, None]
    positive = torch.tensor([1, 2, 0])
    terms = []
    for b, p in enumerate(positive.tolist()):
        negatives = [
            saliency[b, i].item()
            for i in range(6)
            if valid[b, i] and relevance[b, i] < relevance[b, p]
        ]
        terms.append(softmax_loss(saliency[b, p].item(), negatives))
    assert terms[2] == 0  # nothing is less relevant
    got = intra_loss(saliency, relevance, valid, positive).item()
    assert got == pytest.approx(sum(terms) / 3, rel=1e-5)


def test_inter_loss_against_the_loop_excludes_the_same_id() -> None:
    generator = torch.Generator().manual_seed(2)
    clips = nn.functional.normalize(torch.randn(5, 4, generator=generator), dim=1)
    queries = nn.functional.normalize(torch.randn(5, 4, generator=generator), dim=1)
    event = [7, 2, 7, -1, -1]
    terms = []
    for i in range(5):
        rivals = [j for j in range(5) if j != i and (event[i] != event[j] or event[i] == -1)]
        own = cosine(clips[i], queries[i])
        terms.append(softmax_loss(own, [cosine(clips[i], queries[j]) for j in rivals]))
        terms.append(softmax_loss(own, [cosine(clips[j], queries[i]) for j in rivals]))
    got = inter_loss(clips, queries, same_id(torch.tensor(event))).item()
    assert got == pytest.approx(sum(terms) / 10, rel=1e-5)


def test_a_batch_of_one_event_has_nothing_to_contrast() -> None:
    clips = nn.functional.normalize(torch.randn(3, 4), dim=1).requires_grad_()
    loss = inter_loss(clips, clips.detach().flip(0), same_id(torch.tensor([4, 4, 4])))
    loss.backward()
    assert loss.item() == 0
    assert clips.grad is not None
    assert torch.isfinite(clips.grad).all()


def test_same_id() -> None:
    assert same_id(torch.tensor([1, -1, 1, -1])).tolist() == [
        [True, False, True, False],
        [False, True, False, False],
        [True, False, True, False],
        [False, False, False, True],
    ]


@pytest.mark.usefixtures("_first")
def test_saliency_terms_against_the_loop() -> None:
    items = [*present(), item(7, []), item(4, [(0.0, 1.0)], event=4)]
    model, batch = build(), collate(items)
    output = model(batch)
    clips, queries = output.clip_embedding, output.query_embedding
    targets, event = known(batch), batch.event.tolist()
    inside = [row.nonzero()[:, 0].tolist() for row in targets.foreground]
    assert [len(row) for row in inside] == [4, 3, 4, 1, 0, 4]

    def apart(i: int, j: int) -> bool:
        return i != j and (event[i] != event[j] or event[i] < 0)

    rows = [0, 1, 2, 3, 5]  # the absent query takes no part
    intra, inter, contrast = [], [], []
    for i in rows:
        own = clips[i, inside[i][0]]
        outside = [j for j in range(len(items[i].video)) if j not in inside[i]]
        score = cosine(own, queries[i])
        intra.append(softmax_loss(score, [cosine(clips[i, j], queries[i]) for j in outside]))
        others = [j for j in rows if apart(i, j)]
        inter.append(softmax_loss(score, [cosine(own, queries[j]) for j in others]))
        inter.append(
            softmax_loss(score, [cosine(clips[j, inside[j][0]], queries[i]) for j in others])
        )
        if len(inside[i]) >= 2:
            negatives = [cosine(own, clips[j, inside[j][1]]) for j in others if len(inside[j]) >= 2]
            negatives += [cosine(own, clips[i, j]) for j in outside[:1]]
            contrast.append(softmax_loss(cosine(own, clips[i, inside[i][1]]), negatives))
    expected = [sum(part) / len(part) for part in (intra, inter, contrast)]
    got = [term.item() for term in saliency_terms(output, batch)]
    assert got == pytest.approx(expected, rel=1e-4)
    weights = LossWeights(saliency=0.3, clip_contrast=0.11)
    assert saliency_loss(output, batch, weights).item() == pytest.approx(
        0.3 * expected[0] + 0.3 * expected[1] + 0.11 * expected[2], rel=1e-4
    )


@pytest.mark.usefixtures("_first")
def test_queries_of_one_video_against_the_loop() -> None:
    """Two overlapping moments, a third apart, and a query that is absent, all in one video."""
    video = item(10, [(0.0, 0.45)], event=1)
    windows = [[(0.0, 0.45)], [(0.2, 0.6)], [(0.8, 1.0)], []]
    items = [
        replace(item(10, spans, event=number), video=video.video, vid=7)
        for number, spans in enumerate(windows)
    ]
    model, batch = build(), collate([*items, item(6, [(0.0, 0.5)], event=9)])
    assert batch.video.shape[0] == 2
    output = model(batch)
    clips, queries = output.clip_embedding, output.query_embedding
    first = [0, 2, 8, None, 0]  # the first clip of each moment
    # Clip 2 lies in the moment of query 0 as well, so these two must not repel.
    allowed = {
        0: [1, 2, 3, 4], 1: [2, 3, 4], 2: [0, 1, 3, 4], 4: [0, 1, 2, 3],
    }  # fmt: skip
    for absent_negatives in (False, True):
        terms = []
        for i, rivals in allowed.items():
            own = clips[i, first[i]]
            asked = [j for j in rivals if absent_negatives or j != 3]
            score = cosine(own, queries[i])
            terms.append(softmax_loss(score, [cosine(own, queries[j]) for j in asked]))
            # The other way round: clips whose owners do not bar this query.
            rival_clips = [clips[j, first[j]] for j in allowed if j != i and i in allowed[j]]
            terms.append(softmax_loss(score, [cosine(clip, queries[i]) for clip in rival_clips]))
        _, inter, contrast = saliency_terms(output, batch, absent_negatives)
        assert inter.item() == pytest.approx(sum(terms) / 8, rel=1e-4)
    # Contrast without the text keeps to other videos, and to a clip outside the moment.
    expected = []
    for i in allowed:
        inside = known(batch).foreground[i].nonzero()[:, 0].tolist()
        if len(inside) < 2:
            continue
        own, second = clips[i, inside[0]], clips[i, inside[1]]
        outside = next(j for j in range(10 if i < 4 else 6) if j not in inside)
        others = [4] if i < 4 else [j for j in (0, 1, 2) if known(batch).foreground[j].sum() >= 2]
        negatives = [clips[j, known(batch).foreground[j].nonzero()[1, 0]] for j in others]
        negatives.append(clips[i, outside])
        expected.append(softmax_loss(cosine(own, second), [cosine(own, n) for n in negatives]))
    assert contrast.item() == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_positives_are_drawn_from_the_foreground() -> None:
    """Whatever is drawn, one foreground clip of each video leaves intra and inter no choice."""
    items = [item(6, [(0.4, 0.45)]), item(7, [(0.9, 0.95)])]
    model, batch = build(), collate(items)
    values = set()
    for seed in range(5):
        torch.manual_seed(seed)
        intra, inter, contrast = saliency_terms(model(batch), batch)
        values.add((intra.item(), inter.item(), contrast.item()))
    assert len(values) == 1
    assert values.pop()[2] == 0  # no moment of two clips


def test_padding_is_no_negative_of_a_moment_that_fills_its_video() -> None:
    model, batch = build(), collate([item(4, [(0.0, 1.0)]), item(9, [])])
    assert [term.item() for term in saliency_terms(model(batch), batch)] == [0.0, 0.0, 0.0]


def test_alignment_adds_the_cross_entropy_of_the_matching() -> None:
    batch = collate([*present(), item(5, [])])
    torch.manual_seed(1)
    plain = build()
    weights = LossWeights()
    torch.manual_seed(5)
    saliency = saliency_loss(plain.embed(batch), batch, weights)
    torch.manual_seed(5)
    torch.testing.assert_close(alignment_loss(plain.embed(batch), batch, weights), saliency)

    architecture = Architecture(dim=16, heads=2, layers=1, hidden=24, matching=True)
    matched = DemrModel(8, 6, architecture).eval()
    output = matched.embed(batch)
    assert output.match_logit is not None
    total, count = 0.0, 0
    for row, logits in enumerate(output.match_logit.tolist()):
        for index in batch.video_mask[row].nonzero()[:, 0].tolist():
            inside = bool(known(batch).foreground[row, index])
            p = 1 / (1 + math.exp(-logits[index]))
            total -= math.log(p) if inside else 0.1 * math.log(1 - p)
            count += 1
    torch.manual_seed(5)
    alone = saliency_loss(output, batch, weights).item()
    torch.manual_seed(5)
    both = alignment_loss(output, batch, weights).item()
    assert both - alone == pytest.approx(4.0 * total / count, rel=1e-4)


# --- the sum ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("_first")
@pytest.mark.parametrize("regularizer", ["none", "der", "geom"])
def test_the_total_is_the_weighted_sum(regularizer: Literal["none", "der", "geom"]) -> None:
    model, batch = build(), collate(present())
    weights = LossWeights(lambda_der=0.3, lambda_geom=5.0, regularizer=regularizer)
    losses = retrieval_loss(model(batch), batch, weights)
    scale = {"none": 0.0, "der": 1e-2, "geom": 5.0}[regularizer]
    expected = (
        10 * losses.smooth_l1
        + 4 * losses.giou
        + 4 * losses.foreground
        + 0.2 * losses.intra
        + 0.2 * losses.inter
        + 0.5 * losses.clip_contrast
        + 0.3 * 2 * (losses.nll + scale * losses.regularizer)
    )
    torch.testing.assert_close(losses.total, expected)
    assert (losses.regularizer > 0) == (regularizer != "none")


def test_the_defaults_are_the_papers() -> None:
    weights = LossWeights()
    assert (weights.lambda_der, weights.lambda_geom, weights.saliency) == (1e-3, 1e-2, 0.2)
    assert (weights.background_weight, weights.regularizer) == (0.1, "geom")
    assert LossWeights(absent_negatives=True).background_weight == 1
    assert TEMPERATURE == 0.07


def test_evidential_terms_against_the_loop() -> None:
    model, batch = build(), collate(present())
    output, targets = model(batch), known(batch)
    nll, der, phi, delta = [], [], [], []
    for b, i in targets.foreground.nonzero().tolist():
        for side in range(2):
            loc, nu, alpha, beta = (
                getattr(output.nig, name)[b, i, side].item()
                for name in ("loc", "nu", "alpha", "beta")
            )
            gap = abs(targets.window_norm[b, i, side].item() - loc)
            w = 2 * beta * (1 + nu)
            nll.append(
                0.5 * math.log(math.pi / nu)
                - alpha * math.log(w)
                + (alpha + 0.5) * math.log(nu * gap**2 + w)
                + math.lgamma(alpha)
                - math.lgamma(alpha + 0.5)
            )
            phi.append(2 * nu + alpha)
            delta.append(gap)
            der.append(gap * phi[-1])
    geom = [
        ((p - min(phi)) / (max(phi) - min(phi)) + (d - min(delta)) / (max(delta) - min(delta)) - 1)
        ** 2
        for p, d in zip(phi, delta, strict=True)
    ]
    vanilla = retrieval_loss(output, batch, LossWeights(regularizer="der"))
    ours = retrieval_loss(output, batch, LossWeights())
    assert ours.nll.item() == pytest.approx(sum(nll) / len(nll), rel=1e-4)
    assert vanilla.regularizer.item() == pytest.approx(sum(der) / len(der), rel=1e-5)
    assert ours.regularizer.item() == pytest.approx(sum(geom) / len(geom), rel=1e-3)
    assert retrieval_loss(output, batch, LossWeights(regularizer="none")).regularizer.item() == 0


def test_noise_in_the_features_counts_against_evidence() -> None:
    model = build()
    items = [
        replace(one, noise=noise) for one, noise in zip(present(), (0, 0.5, 0.9, 0), strict=True)
    ]
    batch = collate(items)
    output, targets = model(batch), known(batch)
    plain = geom_regularizer(output.nig, targets.window_norm, targets.foreground)
    doubted = geom_regularizer(
        output.nig, targets.window_norm, targets.foreground, doubt=torch.tensor([0, 0.5, 0.9, 0])
    )
    assert (plain - doubted).abs().item() > 1e-3
    for wanted, noise in ((plain, torch.zeros(4)), (doubted, batch.noise)):
        losses = retrieval_loss(output, replace(batch, noise=noise), LossWeights())
        torch.testing.assert_close(losses.regularizer, wanted)


def test_the_anchored_geom_is_the_stages_and_ranks_start_and_end_together() -> None:
    batch = collate(present())
    output, targets = build()(batch), known(batch)
    weights = LossWeights(error_scale="anchored", lambda_geom=1.0)
    stage, other = anchored_geom(weights), AnchoredGeom()
    assert stage is not None
    for step in (1, 2):
        losses = retrieval_loss(output, batch, weights, stage)
        expected = other(output.nig, targets.window_norm, targets.foreground, doubt=batch.noise)
        torch.testing.assert_close(losses.regularizer, expected)
        remembered = int((stage.errors >= 0).sum())
        assert remembered == step * 2 * int(targets.foreground.sum())
    with pytest.raises(ValueError, match="needs the AnchoredGeom of anchored_geom"):
        retrieval_loss(output, batch, weights)
    # Nothing is kept, nor asked for, where another regulariser is chosen.
    for without in (LossWeights(), replace(weights, regularizer="der")):
        assert anchored_geom(without) is None
        retrieval_loss(output, batch, without)


# --- absent moments ---------------------------------------------------------------------------


def all_finite(losses: LossBreakdown, model: nn.Module) -> bool:
    terms = [getattr(losses, field.name) for field in fields(losses)]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return all(bool(torch.isfinite(value).all()) for value in [*terms, *gradients])


@pytest.mark.parametrize("regularizer", ["none", "der", "geom"])
def test_without_any_foreground_only_the_cross_entropy_is_left(
    regularizer: Literal["none", "der", "geom"],
) -> None:
    model, batch = build(), collate([item(6, []), item(3, [])])
    weights = LossWeights(regularizer=regularizer)
    losses = retrieval_loss(model(batch), batch, weights)
    assert {name: getattr(losses, name).item() for name in ONLY_FOREGROUND} == dict.fromkeys(
        ONLY_FOREGROUND, 0.0
    )
    assert losses.foreground.item() > 0
    torch.testing.assert_close(losses.total, 4 * losses.foreground)
    losses.total.backward()
    assert all_finite(losses, model)
    for head in (model.boundary_head, model.evidential_head):
        assert all(p.grad is None or not p.grad.any() for p in head.parameters())
    assert any(p.grad is not None and p.grad.any() for p in model.foreground_head.parameters())


def test_stage_one_without_any_foreground_is_zero_and_can_be_differentiated() -> None:
    model, batch = build(), collate([item(6, []), item(3, [])])
    loss = saliency_loss(model(batch), batch, LossWeights())
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_an_absent_query_enters_the_cross_entropy_alone() -> None:
    model, items = build(), present()
    alone, mixed = collate(items), collate([*items, item(12, [], event=3), item(2, [])])
    torch.manual_seed(5)
    without = retrieval_loss(model(alone), alone, LossWeights(clip_contrast=0))
    torch.manual_seed(5)
    # Equal widths, so that both batches draw the same clips.
    narrow = collate([*items, item(9, [], event=3), item(2, [])])
    within = retrieval_loss(model(narrow), narrow, LossWeights(clip_contrast=0))
    for name in ONLY_FOREGROUND:
        torch.testing.assert_close(
            getattr(within, name), getattr(without, name), rtol=1e-4, atol=1e-5
        )
    assert abs(within.foreground - without.foreground) > 1e-4
    losses = retrieval_loss(model(mixed), mixed, LossWeights())
    losses.total.backward()
    assert all_finite(losses, model)


def test_an_absent_query_gets_gradient_from_the_cross_entropy_alone() -> None:
    model, batch = build(), collate([*present(), item(9, [])])
    output = model(batch)
    for leaf in (output.foreground_logit, output.saliency, output.nig.loc, output.clip_embedding):
        leaf.retain_grad()
    losses = retrieval_loss(output, batch, LossWeights())
    (losses.total - 4 * losses.foreground).backward(retain_graph=True)
    for leaf in (output.saliency, output.nig.loc):
        assert leaf.grad is not None
        assert leaf.grad[:-1].any()
        assert not leaf.grad[-1].any()
    assert output.clip_embedding.grad is not None
    assert not output.clip_embedding.grad[-1].any()
    assert output.foreground_logit.grad is None or not output.foreground_logit.grad.any()
    losses.foreground.backward()
    assert output.foreground_logit.grad is not None
    assert output.foreground_logit.grad[-1].all()


@pytest.mark.usefixtures("_first")
def test_padding_more_changes_no_loss_and_no_gradient() -> None:
    items = [*present(), item(4, [])]
    # A long absent companion widens the batch; dropping its row leaves padding alone.
    wide = collate([*items, item(30, [])])
    columns = {
        name: getattr(wide, name)[:-1]
        for name in (
            "video", "video_idx", "video_mask", "text", "text_mask", "centre_norm", "duration_s",
            "vid", "first_clip", "event", "sentence", "noise",
        )
    }  # fmt: skip
    aims = [getattr(known(wide), field.name)[:-1] for field in fields(Targets)]
    cut = replace(wide, **columns, targets=Targets(*aims), shown=wide.shown[:-1, :-1])
    assert cut.video.shape[1] == 30
    values, gradients = [], []
    for batch in (collate(items), cut):
        model = build()
        losses = retrieval_loss(model(batch), batch, LossWeights(lambda_der=1.0))
        losses.total.backward()
        values.append([getattr(losses, field.name).item() for field in fields(losses)])
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-5)
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_a_loss_needs_targets() -> None:
    model, batch = build(), replace(collate(present()), targets=None)
    with pytest.raises(ValueError, match="needs a batch with targets"):
        retrieval_loss(model(batch), batch, LossWeights())
    with pytest.raises(ValueError, match="needs a batch with targets"):
        saliency_loss(model(batch), batch, LossWeights())


# --- what the gradient reaches ----------------------------------------------------------------


def head_gradient(loss: Tensor, head: nn.Module) -> float:
    gradients = torch.autograd.grad(
        loss, list(head.parameters()), retain_graph=True, materialize_grads=True
    )
    return sum(gradient.abs().sum().item() for gradient in gradients)


def test_geom_sends_nothing_to_the_boundary_head() -> None:
    model, batch = build(), collate(present())
    losses = retrieval_loss(model(batch), batch, LossWeights())
    assert head_gradient(losses.regularizer, model.boundary_head) == 0
    assert head_gradient(losses.regularizer, model.evidential_head) > 0


@pytest.mark.parametrize("reaches", [True, False])
def test_the_likelihoods_way_to_the_boundary_is_an_option(reaches: bool) -> None:
    model, batch = build(), collate(present())
    output = model(batch)
    for regularizer in ("geom", "der"):
        weights = LossWeights(
            location_gradient=reaches, regularizer="geom" if regularizer == "geom" else "der"
        )
        losses = retrieval_loss(output, batch, weights)
        assert (head_gradient(losses.nll, model.boundary_head) > 0) == reaches
        assert head_gradient(losses.nll, model.evidential_head) > 0
        if regularizer == "der":
            assert (head_gradient(losses.regularizer, model.boundary_head) > 0) == reaches


def test_detaching_the_location_changes_no_value() -> None:
    """Not even where alpha - 1 is smaller than float32 can hold beside 1."""
    batch = collate(present())
    output = build()(batch)
    nig = output.nig
    tiny = NormalInverseGamma.from_excess(nig.loc, nig.nu, nig.excess * 1e-7 + 2e-7, nig.beta)
    output = replace(output, nig=tiny)
    on = retrieval_loss(output, batch, LossWeights())
    off = retrieval_loss(output, batch, LossWeights(location_gradient=False))
    assert on.nll.item() == off.nll.item()
    assert on.regularizer.item() == off.regularizer.item()


# --- precision --------------------------------------------------------------------------------


@pytest.mark.usefixtures("_first")
def test_losses_are_float32_under_bfloat16_autocast() -> None:
    """Also to the last digits: no matrix product of theirs is rounded to bfloat16."""
    model, batch = build(), collate(present())
    output = model(batch)
    expected = retrieval_loss(output, batch, LossWeights())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = retrieval_loss(output, batch, LossWeights())
        whole = retrieval_loss(model(batch), batch, LossWeights())
    for field in fields(got):
        value = getattr(got, field.name)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, getattr(expected, field.name), rtol=1e-6, atol=1e-6)
        assert getattr(whole, field.name).dtype == torch.float32
    whole.total.backward()
    assert all_finite(whole, model)


def test_constant_outputs_give_finite_gradients() -> None:
    """All clips alike: Geom has nothing to put in order, cosines are all 1."""
    batch = collate(present())
    rows, clips = batch.video_mask.shape
    leaf = torch.zeros(rows, clips, requires_grad=True)
    flat = leaf[..., None].expand(rows, clips, 2)
    output = ModelOutput(
        foreground_logit=leaf,
        nig=NormalInverseGamma(flat, flat + 1, flat + 2, flat + 0.1),
        saliency=leaf + 0,
        clip_embedding=leaf[..., None].expand(rows, clips, 4) + 1,
        query_embedding=torch.ones(rows, 4),
        match_logit=None,
        fused_text=torch.zeros(rows, 4, 4),
    )
    losses = retrieval_loss(output, batch, LossWeights())
    losses.total.backward()
    assert losses.regularizer.item() == 0
    assert torch.isfinite(losses.total)
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()

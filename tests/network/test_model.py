"""The network: padding, order, heads, precision, position."""

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demr.batches.batch import Batch, Item, collate, make_targets
from demr.network.fusion import Attention
from demr.network.model import ConvHead, DemrModel, ModelOutput, QueryPool, sine_position
from demr.network.settings import Architecture

VIDEO_DIM, TEXT_DIM, D = 10, 6, 16
Kind = Literal["rff", "concat", "extended"]  # the last with all that is not in the paper
every_kind = pytest.mark.parametrize("kind", ["rff", "concat", "extended"])


def build(kind: Kind = "rff", *, dim: int = D) -> DemrModel:
    torch.manual_seed(0)
    extended = kind == "extended"
    return DemrModel(
        VIDEO_DIM,
        TEXT_DIM,
        Architecture(
            dim=dim,
            heads=4,
            layers=2,
            hidden=24,
            fusion="concat" if kind == "concat" else "rff",
            matching=extended,
            text_layers=2 if extended else 0,
        ),
    ).eval()


def item(clips: int, tokens: int) -> Item:
    generator = torch.Generator().manual_seed(100 * clips + tokens)
    edges = torch.linspace(0, 1, clips + 1)
    span = torch.stack([edges[:-1], edges[1:]], dim=1)
    return Item(
        video=torch.randn(clips, VIDEO_DIM, generator=generator),
        text=torch.randn(tokens, TEXT_DIM, generator=generator),
        span_norm=span,
        duration_s=2.0 * clips,
        targets=make_targets([(0.2, 0.7)], span),
    )


def some_batch() -> Batch:
    return collate([item(7, 3), item(4, 5), item(1, 1)])


def pad(batch: Batch, clips: int, tokens: int, garbage: float) -> Batch:
    """More padding on both sides, all of it filled with garbage."""
    return replace(
        batch,
        video=F.pad(
            torch.where(batch.video_mask[..., None], batch.video, garbage),
            (0, 0, 0, clips),
            value=-garbage,
        ),
        video_mask=F.pad(batch.video_mask, (0, clips)),
        text=F.pad(
            torch.where(batch.text_mask[..., None], batch.text, garbage),
            (0, 0, 0, tokens),
            value=-garbage,
        ),
        text_mask=F.pad(batch.text_mask, (0, tokens)),
        centre_norm=F.pad(
            torch.where(batch.video_mask, batch.centre_norm, garbage), (0, clips), value=garbage
        ),
        targets=None,
    )


def per_clip(output: ModelOutput) -> dict[str, Tensor]:
    nig = output.nig
    return {
        "foreground": output.foreground_logit,
        "loc": nig.loc,
        "nu": nig.nu,
        "alpha": nig.alpha,
        "beta": nig.beta,
        "saliency": output.saliency,
        "clip_embedding": output.clip_embedding,
        "match": output.saliency if output.match_logit is None else output.match_logit,
    }


def assert_same(
    got: ModelOutput, expected: ModelOutput, batch: Batch, order: Tensor | None = None
) -> None:
    """Compare every valid entry; ``expected`` belongs to ``batch``, rows taken in ``order``."""
    rows = torch.arange(len(batch)) if order is None else order
    clips, tokens = batch.video_mask.shape[1], batch.text_mask.shape[1]
    mask, text_mask = batch.video_mask[rows], batch.text_mask[rows]
    theirs = per_clip(expected)
    for name, mine in per_clip(got).items():
        torch.testing.assert_close(
            mine[:, :clips][mask], theirs[name][rows][mask],
            rtol=1e-5, atol=1e-5, msg=name,
        )  # fmt: skip
    torch.testing.assert_close(
        got.query_embedding, expected.query_embedding[rows], rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        got.fused_text[:, :tokens][text_mask], expected.fused_text[rows][text_mask],
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip


# --- padding and order ------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("garbage", [0.0, 3.0, 1e3])
@pytest.mark.parametrize(("clips", "tokens"), [(5, 0), (0, 4), (9, 2), (0, 0)])
def test_padding_more_changes_nothing(kind: Kind, garbage: float, clips: int, tokens: int) -> None:
    model, batch = build(kind), some_batch()
    assert_same(model(pad(batch, clips, tokens, garbage)), model(batch), batch)


@every_kind
def test_an_item_in_a_batch_is_answered_as_if_alone(kind: Kind) -> None:
    model = build(kind)
    items = [item(7, 3), item(4, 5), item(1, 1), item(12, 2)]
    together = model(collate(items))
    for row, one in enumerate(items):
        alone, single = model(collate([one])), collate([one])
        clips = len(one.video)
        theirs = per_clip(together)
        for name, mine in per_clip(alone).items():
            torch.testing.assert_close(
                mine[0], theirs[name][row, :clips],
                rtol=1e-5, atol=1e-5, msg=name,
            )  # fmt: skip
        tokens = single.text.shape[1]
        torch.testing.assert_close(
            alone.fused_text[0], together.fused_text[row, :tokens], rtol=1e-5, atol=1e-5
        )


@every_kind
def test_no_gradient_reaches_padding(kind: Kind) -> None:
    model, batch = build(kind), some_batch()
    batch = replace(batch, video=batch.video.requires_grad_(), text=batch.text.requires_grad_())
    output = model(batch)
    mask = batch.video_mask
    total = sum(
        (value[mask].square().sum() for value in per_clip(output).values()), torch.zeros(())
    )
    (total + output.query_embedding.square().sum()).backward()
    assert batch.video.grad is not None
    assert batch.text.grad is not None
    assert batch.video.grad[~mask].abs().sum() == 0
    assert batch.text.grad[~batch.text_mask].abs().sum() == 0
    assert batch.video.grad[mask].abs().amax(dim=1).min() > 0


@every_kind
def test_permuting_the_batch_permutes_the_output(kind: Kind) -> None:
    model, items = build(kind), [item(7, 3), item(4, 5), item(1, 1)]
    order = torch.tensor([2, 0, 1])
    shuffled = collate([items[index] for index in order.tolist()])
    assert_same(model(shuffled), model(collate(items)), collate(items), order)


def test_permuting_the_tokens_changes_nothing_but_their_order() -> None:
    """Text has no position."""
    model, batch = build(), collate([item(6, 5)])
    order = torch.tensor([3, 1, 4, 0, 2])
    got, expected = model(replace(batch, text=batch.text[:, order])), model(batch)
    torch.testing.assert_close(got.nig.loc, expected.nig.loc, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.fused_text, expected.fused_text[:, order], rtol=0, atol=1e-5)


@every_kind
def test_the_order_of_the_clips_matters(kind: Kind) -> None:
    model, batch = build(kind), collate([item(6, 5)])
    got, expected = model(replace(batch, video=batch.video.flip(1))), model(batch)
    assert not torch.allclose(got.fused_text, expected.fused_text, atol=1e-4)


def test_hidden_tokens_are_not_seen() -> None:
    model, batch = build(), some_batch()
    masked = torch.zeros_like(batch.text_mask)
    masked[0, 1] = True
    hidden = model(replace(batch, masked=masked))
    changed = batch.text.clone()
    changed[0, 1] = 99.0
    again = model(replace(batch, text=changed, masked=masked))
    assert torch.equal(hidden.fused_text[0], again.fused_text[0])
    assert not torch.allclose(hidden.fused_text[0], model(batch).fused_text[0])
    assert torch.equal(batch.text, some_batch().text)  # the batch itself is left as it was


# --- heads ------------------------------------------------------------------------------------


def test_boundaries_lie_on_either_side_of_the_clip() -> None:
    model, batch = build(), some_batch()
    output = model(batch)
    start, end = output.nig.loc.unbind(dim=-1)
    centre, mask = batch.centre_norm, batch.video_mask
    assert ((start < centre) & (centre < end))[mask].all()
    with torch.no_grad():
        last = model.boundary_head.convs[-1]
        assert isinstance(last, nn.Conv1d)
        assert last.bias is not None
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, math.log(3.0)]))
    start, end = model(batch).nig.loc.unbind(dim=-1)
    torch.testing.assert_close(start[mask], centre[mask] - 0.5)
    torch.testing.assert_close(end[mask], centre[mask] + 0.75)


def test_the_conv_head_is_three_convolutions_over_each_video_alone() -> None:
    torch.manual_seed(0)
    head = ConvHead(8, 2)
    x = torch.randn(2, 9, 8)
    mask = torch.arange(9) < torch.tensor([9, 4])[:, None]
    got = head(x, mask)
    for row, length in enumerate((9, 4)):
        y = x[row : row + 1, :length].transpose(1, 2)
        for index, conv in enumerate(head.convs):
            y = conv(y.relu() if index else y)
        torch.testing.assert_close(got[row, :length], y[0].T, rtol=1e-5, atol=1e-5)


def test_saliency_is_the_cosine_of_projected_clip_and_pooled_query() -> None:
    model, batch = build(), some_batch()
    output = model(batch)
    clips, text = model.video_projection(batch.video), model.text_projection(batch.text)
    for row in range(len(batch)):
        tokens = text[row][batch.text_mask[row]]
        query = (tokens @ model.query_pool.weight.weight[0]).softmax(dim=0) @ tokens
        for index in batch.video_mask[row].nonzero()[:, 0].tolist():
            clip = clips[row, index]
            cosine = (clip @ query / clip.norm() / query.norm()).item()
            assert output.saliency[row, index].item() == pytest.approx(cosine, abs=1e-5)


def test_features_are_standardised_by_hand() -> None:
    model, batch = build(), collate([item(3, 2)])
    # Eight features: so that a typical clip has unit length, deviations are root 8 times as long.
    root = math.sqrt(8)
    mean = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    deviation = torch.tensor([1.0, 2.0, 1e-9, 0.0, 1.0, 1.0, 1.0, 1.0])
    model.set_feature_statistics(mean, deviation)
    given: list[Tensor] = []
    model.video_projection.register_forward_hook(lambda _m, seen, _o: given.append(seen[0]))
    video = torch.zeros(1, 3, VIDEO_DIM)
    video[0, 0] = torch.tensor([0.5, 5.0, 1e-3, 2e-3, 0, 0, 0, 0, 0.25, 400.0])
    video[0, 1] = torch.tensor([-50.0, 1e6, 0.5, 0, 0, 0, 0, 0, -400.0, 1.0])
    model.embed(replace(batch, video=video))
    expected = torch.zeros(3, VIDEO_DIM)
    # 0.5 and 2 deviations; what hardly varied in training counts as if it had by 0.001.
    expected[0] = torch.tensor([0.5, 2.0, 1, 2, 0, 0, 0, 0, 0, 0]) / root
    # Cut off at 10 deviations.
    expected[1] = torch.tensor([-10.0, 10.0, 10, 0, 0, 0, 0, 0, 0, 0]) / root
    expected[1:, 1][expected[1:, 1] == 0] = -0.5 / root
    # The two appended fractions pass as they are.
    expected[:, 8:] = video[0, :, 8:]
    torch.testing.assert_close(given[0][0], expected)


def test_queries_of_one_video_share_it_and_are_answered_as_if_alone() -> None:
    model, one = build("extended"), item(7, 3)
    items = [one, replace(item(7, 5), video=one.video), item(4, 2), replace(one, text=one.text * 2)]
    batch = collate(items)
    assert batch.video.shape[0] == 2
    assert batch.video_idx.tolist() == [0, 0, 1, 0]
    assert len(batch) == 4
    apart = collate([replace(single, video=single.video.clone()) for single in items])
    assert apart.video.shape[0] == 4
    assert_same(model(batch), model(apart), apart)


def test_the_matching_reads_the_product_of_the_embeddings() -> None:
    model, batch = build("extended"), some_batch()
    output = model(batch)
    matching = model.matching
    assert matching is not None
    assert output.match_logit is not None
    for row in range(len(batch)):
        query = F.normalize(output.query_embedding[row], dim=0)
        for index in batch.video_mask[row].nonzero()[:, 0].tolist():
            agreement = F.normalize(output.clip_embedding[row, index], dim=0) * query * D
            assert agreement.mean().item() == pytest.approx(
                output.saliency[row, index].item(), abs=1e-5
            )
            hidden = F.gelu(matching.expand(agreement))
            expected = matching.readout(hidden).item()
            assert output.match_logit[row, index].item() == pytest.approx(expected, abs=1e-4)
    # Its verdict is part of the foreground's.
    with torch.no_grad():
        matching.readout.bias.add_(3.0)
    moved = model(batch).foreground_logit - output.foreground_logit
    torch.testing.assert_close(moved, torch.full_like(moved, 3.0), rtol=0, atol=1e-4)


def test_words_know_their_neighbours_through_text_layers_alone() -> None:
    def change(kind: Kind) -> float:
        """How much the first token's part in the pooled query depends on the second token."""
        model, batch = build(kind), collate([item(4, 2)])
        tokens: list[Tensor] = []
        model.query_pool.register_forward_hook(lambda _m, given, _o: tokens.append(given[0]))
        model(batch)
        text = batch.text.clone()
        text[0, 1, 0] += 3.0
        model(replace(batch, text=text))
        return (tokens[0][0, 0] - tokens[1][0, 0]).abs().max().item()

    assert change("rff") == 0
    assert change("extended") > 1e-3


def test_the_pool_reads_valid_tokens_only() -> None:
    torch.manual_seed(0)
    pool = QueryPool(4)
    text = torch.randn(1, 3, 4)
    mask = torch.tensor([[True, False, False]])
    torch.testing.assert_close(pool(text, mask), text[:, 0])


def test_parameters_of_the_evidence_are_valid() -> None:
    nig = build()(some_batch()).nig
    assert (nig.nu > 0).all()
    assert (nig.alpha > 1).all()
    assert (nig.beta > 0).all()


@every_kind
def test_every_parameter_is_used(kind: Kind) -> None:
    model = build(kind).train()
    output = model(some_batch())
    total = output.foreground_logit.sum() + output.saliency.sum() + output.fused_text.square().sum()
    nig = output.nig
    (total + (nig.loc + nig.nu + nig.alpha + nig.beta).sum()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_both_fusions_have_the_same_size() -> None:
    sizes = [sum(p.numel() for p in build(kind).parameters()) for kind in ("rff", "concat")]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


# --- precision --------------------------------------------------------------------------------


@every_kind
def test_bfloat16_autocast_keeps_the_evidence_in_float32(kind: Kind) -> None:
    model, batch = build(kind), some_batch()
    exact = model(batch)
    inside: list[torch.dtype] = []
    for part in model.modules():
        if isinstance(part, Attention):
            part.register_forward_hook(lambda _m, _a, out: inside.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(batch)
    assert set(inside) == {torch.bfloat16}  # else this test shows nothing
    nig = output.nig
    for tensor in (nig.loc, nig.nu, nig.alpha, nig.beta, output.foreground_logit, output.saliency):
        assert tensor.dtype == torch.float32
    # The sigmoid, too, ran in float32: its results do not fit into bfloat16.
    offset = (nig.loc - batch.centre_norm[..., None]).abs()
    assert (offset - offset.bfloat16().float()).abs().max() > 1e-5
    torch.testing.assert_close(
        nig.loc[batch.video_mask], exact.nig.loc[batch.video_mask], rtol=0, atol=0.02
    )


# --- the sine position ------------------------------------------------------------------------


def test_sine_position_by_hand() -> None:
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    position = sine_position(mask, 4)
    assert position.shape == (2, 4, 4)
    assert position.dtype == torch.float32
    # Clip k of n stands at the angle 2 pi k / n, k from 1; the second pair turns 100 times slower.
    for row, n in ((0, 4), (1, 2)):
        for k in range(1, n + 1):
            angle = 2 * math.pi * k / n
            expected = [
                math.sin(angle),
                math.cos(angle),
                math.sin(angle / 100),
                math.cos(angle / 100),
            ]
            torch.testing.assert_close(
                position[row, k - 1], torch.tensor(expected), rtol=1e-5, atol=1e-6
            )
    torch.testing.assert_close(
        position[0, 0], torch.tensor([1.0, 0.0, 0.0157073, 0.9998766]), rtol=0, atol=1e-5
    )


def test_the_position_depends_on_valid_clips_alone() -> None:
    short = torch.ones(1, 5, dtype=torch.bool)
    torch.testing.assert_close(
        sine_position(F.pad(short, (0, 20)), 8)[:, :5], sine_position(short, 8)
    )

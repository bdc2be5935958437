"""Reflective Flipped Fusion: what is shared, what is masked, and what the position reaches."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demr.network.fusion import (
    Attention,
    ConcatFusion,
    FeedForward,
    ReflectiveFlippedFusion,
    RFFLayer,
)

B, L, T, D = 3, 7, 5, 16
Fusion = ReflectiveFlippedFusion | ConcatFusion


def inputs(*, clips: int = L, tokens: int = T) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Video, text, their masks (rows of different lengths) and a position."""
    generator = torch.Generator().manual_seed(1)
    video = torch.randn(B, clips, D, generator=generator)
    text = torch.randn(B, tokens, D, generator=generator)
    position = torch.randn(B, clips, D, generator=generator)
    video_mask = torch.arange(clips) < torch.tensor([clips, clips - 2, 1])[:, None]
    text_mask = torch.arange(tokens) < torch.tensor([2, tokens, tokens - 1])[:, None]
    return video, text, video_mask, text_mask, position


def build(kind: type[Fusion], layers: int = 2) -> Fusion:
    torch.manual_seed(0)
    return kind(D, heads=4, layers=layers, hidden=24).eval()


def rff_layer() -> RFFLayer:
    torch.manual_seed(0)
    return RFFLayer(D, heads=4, hidden=24).eval()


def parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


both = pytest.mark.parametrize("kind", [ReflectiveFlippedFusion, ConcatFusion])


# --- attention --------------------------------------------------------------------------------


def test_attention_equals_the_textbook_loop() -> None:
    torch.manual_seed(0)
    attention = Attention(D, heads=4).double().eval()
    video, text, video_mask, _, _ = inputs()
    query, key, value = text.double(), video.double(), video.double().flip(2)
    got = attention(query, key, value, video_mask)
    q, k, v = attention.query(query), attention.key(key), attention.value(value)
    for b in range(B):
        valid = int(video_mask[b].sum())
        for t in range(T):
            mixed = []
            for h in range(4):
                part = slice(h * 4, h * 4 + 4)
                scores = torch.stack([q[b, t, part] @ k[b, n, part] / 2 for n in range(valid)])
                weight = scores.softmax(dim=0)
                mixed.append(
                    sum((weight[n] * v[b, n, part] for n in range(valid)), start=0 * v[0, 0, part])
                )
            expected = attention.out(torch.cat(mixed))
            torch.testing.assert_close(got[b, t], expected, rtol=1e-10, atol=1e-10)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads must divide dim"):
        Attention(10, heads=4)


def test_feed_forward_is_gelu_between_two_linears() -> None:
    torch.manual_seed(0)
    layer = FeedForward(4, 6).eval()
    x = torch.randn(3, 4)
    inner = x @ layer.expand.weight.T + layer.expand.bias
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    torch.testing.assert_close(layer(x), inner @ layer.contract.weight.T + layer.contract.bias)


@both
def test_attention_goes_through_the_fused_kernel(
    kind: type[Fusion], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, ...]] = []
    original = F.scaled_dot_product_attention

    def spy(query: Tensor, key: Tensor, value: Tensor, **rest: Any) -> Tensor:
        calls.append((query.shape[2], key.shape[2]))
        return original(query, key, value, **rest)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    video, text, video_mask, text_mask, position = inputs()
    build(kind)(video, text, video_mask, text_mask, position)
    layer = [(T, L), (L, T), (L, L), (T, T)]
    assert calls == (layer * 2 if kind is ReflectiveFlippedFusion else [(L + T, L + T)] * 2)


@both
def test_no_attention_weights_are_kept_for_the_backward_pass(kind: type[Fusion]) -> None:
    clips, tokens = 96, 80
    video, text, video_mask, text_mask, position = inputs(clips=clips, tokens=tokens)
    fusion = build(kind, layers=1)
    largest = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        fused, _ = fusion(video, text, video_mask, text_mask, position)
    fused.sum().backward()
    weights = B * 4 * tokens * tokens * 4  # the smallest of the weight matrices, all heads
    assert 0 < largest < weights


# --- one shared cross-attention ---------------------------------------------------------------


def test_a_layer_owns_one_cross_attention_and_one_self_attention_per_modality() -> None:
    layer = rff_layer()
    attentions = {name for name, part in layer.named_modules() if isinstance(part, Attention)}
    assert attentions == {"cross", "video_block.attention", "text_block.attention"}
    ids = [id(parameter) for parameter in layer.parameters()]
    assert len(ids) == len(set(ids))
    video_ids = {id(parameter) for parameter in layer.video_block.parameters()}
    assert video_ids.isdisjoint(id(parameter) for parameter in layer.text_block.parameters())


def test_the_cross_attention_is_used_twice_and_changing_it_changes_both_directions() -> None:
    layer = rff_layer()
    video, text, video_mask, text_mask, position = inputs()
    runs: list[nn.Module] = []
    layer.cross.register_forward_hook(lambda module, _args, _out: runs.append(module))
    before = layer(video, text, video_mask, text_mask, position)
    assert runs == [layer.cross, layer.cross]
    with torch.no_grad():
        layer.cross.query.weight.add_(0.5 * torch.randn(D, D))
    after = layer(video, text, video_mask, text_mask, position)
    for old, new, mask in zip(before, after, (video_mask, text_mask), strict=True):
        # A row with a single key attends to it whatever the query is.
        changed = (old - new).abs().amax(dim=2)[mask]
        assert (changed > 1e-4).float().mean() > 0.5


def test_both_directions_send_gradient_to_the_shared_attention() -> None:
    layer = rff_layer()
    video, text, video_mask, text_mask, position = inputs()
    for side in (0, 1):
        layer.zero_grad()
        layer(video, text, video_mask, text_mask, position)[side].square().sum().backward()
        assert layer.cross.value.weight.grad is not None
        assert layer.cross.value.weight.grad.abs().sum() > 0


def test_changing_one_modalitys_block_leaves_the_other_alone() -> None:
    layer = rff_layer()
    video, text, video_mask, text_mask, position = inputs()
    before = layer(video, text, video_mask, text_mask, position)
    with torch.no_grad():
        layer.video_block.attention.value.bias.add_(1)
    after = layer(video, text, video_mask, text_mask, position)
    assert not torch.allclose(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_swapping_roles_with_tied_modality_weights_swaps_the_outputs() -> None:
    torch.manual_seed(0)
    fusion = ReflectiveFlippedFusion(D, heads=4, layers=3, hidden=24).eval()
    video, text, video_mask, text_mask, _ = inputs()
    untied = fusion(text, video, text_mask, video_mask)[1]
    assert not torch.allclose(fusion(video, text, video_mask, text_mask)[0], untied, atol=1e-3)
    for layer in fusion.layers:
        assert isinstance(layer, RFFLayer)
        layer.text_block.load_state_dict(layer.video_block.state_dict())
    one_video, one_text = fusion(video, text, video_mask, text_mask)
    two_video, two_text = fusion(text, video, text_mask, video_mask)
    torch.testing.assert_close(one_video[video_mask], two_text[video_mask], rtol=0, atol=1e-5)
    torch.testing.assert_close(one_text[text_mask], two_video[text_mask], rtol=0, atol=1e-5)


def test_a_layer_is_what_the_paper_draws() -> None:
    """Both cross-attentions read the layer's inputs, not each other's result."""
    layer = rff_layer()
    video, text, video_mask, text_mask, position = inputs()
    placed = video + position
    video_1 = layer.cross_norm(video + layer.cross(placed, text, text, text_mask))
    text_1 = layer.cross_norm(text + layer.cross(text, placed, video, video_mask))
    block = layer.video_block
    placed = video_1 + position
    video_2 = block.attention_norm(video_1 + block.attention(placed, placed, video_1, video_mask))
    video_3 = block.feed_forward_norm(video_2 + block.feed_forward(video_2))
    block = layer.text_block
    text_2 = block.attention_norm(text_1 + block.attention(text_1, text_1, text_1, text_mask))
    text_3 = block.feed_forward_norm(text_2 + block.feed_forward(text_2))
    got_video, got_text = layer(video, text, video_mask, text_mask, position)
    torch.testing.assert_close(got_video, video_3)
    torch.testing.assert_close(got_text, text_3)


# --- the position -----------------------------------------------------------------------------


def test_the_position_goes_to_video_queries_and_keys_only() -> None:
    layer = rff_layer()
    video, text, video_mask, text_mask, position = inputs()
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def spy(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append((args[0], args[1], args[2]))

    for part in layer.modules():
        if isinstance(part, Attention):
            part.register_forward_pre_hook(spy)
    layer(video, text, video_mask, text_mask, position)
    (q1, k1, v1), (q2, k2, v2), (q3, k3, v3), (q4, k4, v4) = seen
    assert torch.equal(q1, text)
    assert torch.equal(k1, video + position)
    assert torch.equal(v1, video)
    assert torch.equal(q2, video + position)
    assert torch.equal(k2, text)
    assert torch.equal(v2, text)
    assert torch.equal(q3, v3 + position)
    assert torch.equal(k3, v3 + position)
    assert torch.equal(q4, v4)
    assert torch.equal(k4, v4)


@both
def test_a_position_that_scores_cannot_see_changes_nothing(kind: type[Fusion]) -> None:
    """With query and key weights at zero, a position in the values is all that could show."""
    fusion = build(kind)
    with torch.no_grad():
        for part in fusion.modules():
            if isinstance(part, Attention):
                part.query.weight.zero_()
                part.key.weight.zero_()
    video, text, video_mask, text_mask, position = inputs()
    without = fusion(video, text, video_mask, text_mask)
    placed = fusion(video, text, video_mask, text_mask, 10 * position)
    for a, b, mask in zip(without, placed, (video_mask, text_mask), strict=True):
        torch.testing.assert_close(a[mask], b[mask], rtol=0, atol=1e-6)


@both
def test_the_position_matters(kind: type[Fusion]) -> None:
    fusion = build(kind)
    video, text, video_mask, text_mask, position = inputs()
    without = fusion(video, text, video_mask, text_mask)[0]
    assert not torch.allclose(without, fusion(video, text, video_mask, text_mask, position)[0])


# --- padding, order, size ---------------------------------------------------------------------


@both
@pytest.mark.parametrize("garbage", [0.0, 1.0, 1e4])
def test_padding_more_changes_nothing(kind: type[Fusion], garbage: float) -> None:
    fusion = build(kind)
    video, text, video_mask, text_mask, position = inputs()
    expected = fusion(video, text, video_mask, text_mask, position)
    video = torch.where(video_mask[..., None], video, garbage)
    text = torch.where(text_mask[..., None], text, -garbage)
    got = fusion(
        F.pad(video, (0, 0, 0, 4), value=garbage),
        F.pad(text, (0, 0, 0, 3), value=-garbage),
        F.pad(video_mask, (0, 4)),
        F.pad(text_mask, (0, 3)),
        F.pad(position, (0, 0, 0, 4), value=garbage),
    )
    torch.testing.assert_close(
        got[0][:, :L][video_mask], expected[0][video_mask], rtol=0, atol=1e-5
    )
    torch.testing.assert_close(got[1][:, :T][text_mask], expected[1][text_mask], rtol=0, atol=1e-5)


@both
def test_permuting_the_batch_permutes_the_output(kind: type[Fusion]) -> None:
    fusion = build(kind)
    arguments = inputs()
    order = torch.tensor([2, 0, 1])
    expected = fusion(*arguments)
    got = fusion(*(argument[order] for argument in arguments))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b[order], rtol=0, atol=1e-5)


@both
def test_each_modality_hears_the_other(kind: type[Fusion]) -> None:
    fusion = build(kind)
    video, text, video_mask, text_mask, position = inputs()
    before = fusion(video, text, video_mask, text_mask, position)
    other_text = fusion(video, text.flip(2), video_mask, text_mask, position)[0]
    other_video = fusion(video.flip(2), text, video_mask, text_mask, position)[1]
    assert not torch.allclose(before[0], other_text, atol=1e-3)
    assert not torch.allclose(before[1], other_video, atol=1e-3)


@pytest.mark.parametrize(
    ("dim", "hidden", "heads", "layers"),
    [
        (16, 8, 4, 1),
        (64, 512, 8, 2),
        (128, 64, 8, 3),
        (128, 256, 8, 2),
        (256, 512, 8, 4),
        (512, 512, 8, 1),
    ],
)
def test_the_concat_partner_is_of_equal_size(
    dim: int, hidden: int, heads: int, layers: int
) -> None:
    with torch.device("meta"):
        rff = ReflectiveFlippedFusion(dim, heads, layers, hidden)
        concat = ConcatFusion(dim, heads, layers, hidden)
    assert parameters_of(concat) == pytest.approx(parameters_of(rff), rel=0.05)
    assert len(rff.layers) == len(concat.layers) == layers

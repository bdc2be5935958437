import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from demr.batches.masking import IGNORED, Vocabulary, plan_mask
from demr.errors import ModelError
from demr.network.reconstruction import (
    ReconstructionHead,
    mask_features,
    reconstruction_accuracy,
    reconstruction_loss,
)


def test_vocabulary_does_not_depend_on_the_order_of_queries() -> None:
    one = Vocabulary.build(["star", "circle", "star"])
    assert one == Vocabulary.build(["circle", "star"])
    assert one.words == ("circle", "star")
    assert (one.id_of("circle"), one.id_of("star"), one.id_of("dog")) == (0, 1, None)
    assert len(one) == 2
    assert "star" in one
    assert "dog" not in one


@given(st.sets(st.text()))
def test_vocabulary_survives_json(words: set[str]) -> None:
    vocabulary = Vocabulary.build(words)
    assert Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict()))) == vocabulary


@pytest.mark.parametrize("data", [{}, {"words": "abc"}, {"words": [1]}, {"words": ["a", "a"]}])
def test_a_damaged_vocabulary_is_a_model_error(data: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="vocabulary"):
        Vocabulary.from_dict(data)


def test_a_vocabulary_holds_each_word_once() -> None:
    with pytest.raises(ValueError, match="once"):
        Vocabulary(("a", "a"))


def test_every_known_word_is_hidden_equally_often() -> None:
    generator = np.random.default_rng(3)
    words, places = ("red", "star", "hits", "circle", "moon"), np.arange(5)
    vocabulary = Vocabulary(("circle", "red", "star"))
    drawn = Counter(
        int(plan_mask(words, places, (0, 1, 3, 4), vocabulary, generator).masked.int().argmax())
        for _ in range(3000)
    )
    assert set(drawn) == {0, 1, 3}
    # Three standard deviations of a binomial with n = 3000, p = 1/3 are 77.
    assert all(abs(times - 1000) < 77 for times in drawn.values())


def test_a_plan_hides_a_known_word_with_all_its_tokens() -> None:
    words = ("the", "hexagon", "hits", "zorgs")
    token_word = torch.tensor([-1, 0, 1, 1, 2, 3, -1])
    vocabulary = Vocabulary(("circle", "hexagon", "hits"))
    generator = np.random.default_rng(0)
    plan = plan_mask(words, token_word, (1, 3), vocabulary, generator)
    assert plan.masked.tolist() == [False, False, True, True, False, False, False]
    assert plan.label.tolist() == [-1, -1, 1, 1, -1, -1, -1]
    assert plan.label.dtype == torch.int64


def test_a_plan_hides_nothing_where_nothing_is_known() -> None:
    vocabulary = Vocabulary(("circle",))
    generator = np.random.default_rng(0)
    unknown = plan_mask(("a", "dog"), np.array([0, 1]), (1,), vocabulary, generator)
    without = plan_mask(("a", "circle"), np.array([0, 1]), (), vocabulary, generator)
    cut = plan_mask(("a", "circle"), np.array([0]), (1,), vocabulary, generator)
    for plan in (unknown, without, cut):
        assert not plan.masked.any()
        assert (plan.label == IGNORED).all()


def test_masking_zeroes_hidden_tokens_and_nothing_else() -> None:
    text = torch.arange(1.0, 13.0).reshape(1, 3, 4)
    kept = text.clone()
    hidden = mask_features(text, torch.tensor([[False, True, False]]))
    assert torch.equal(text, kept)
    assert hidden[0, 1].tolist() == [0, 0, 0, 0]
    assert torch.equal(hidden[0, [0, 2]], text[0, [0, 2]])


def test_no_gradient_reaches_a_hidden_token() -> None:
    text = torch.ones(1, 2, 3, requires_grad=True)
    torch.autograd.backward(mask_features(text, torch.tensor([[True, False]])).sum())
    assert text.grad is not None
    assert text.grad[0].tolist() == [[0, 0, 0], [1, 1, 1]]


def test_loss_worked_by_hand() -> None:
    # Hidden: token 0 (right word has odds 3 : 1) and token 2 (odds 1 : 4 : 5, right is the second).
    never = -1e9
    logits = torch.tensor(
        [[[math.log(3), 0.0, never], [9.0, 0.0, 0.0], [0.0, math.log(4), math.log(5)]]]
    )
    label = torch.tensor([[0, 2, 1]])
    masked = torch.tensor([[True, False, True]])
    expected = -(math.log(3 / 4) + math.log(4 / 10)) / 2
    assert reconstruction_loss(logits, label, masked).item() == pytest.approx(expected, rel=1e-6)
    assert reconstruction_accuracy(logits, label, masked).item() == 0.5


def slow_loss(logits: Tensor, label: Tensor, masked: Tensor) -> tuple[float, float]:
    losses, hits = [], []
    for b in range(logits.shape[0]):
        for t in range(logits.shape[1]):
            right = int(label[b, t])
            if masked[b, t] and right != IGNORED:
                row = [math.exp(value) for value in logits[b, t].tolist()]
                losses.append(-math.log(row[right] / sum(row)))
                hits.append(row.index(max(row)) == right)
    return sum(losses) / max(len(losses), 1), sum(hits) / max(len(hits), 1)


@given(st.integers(0, 10_000))
def test_loss_and_accuracy_agree_with_a_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 5, 7, generator=generator)
    label = torch.randint(-1, 7, (3, 5), generator=generator)
    masked = torch.rand(3, 5, generator=generator) < 0.4
    loss, accuracy = slow_loss(logits, label, masked)
    assert reconstruction_loss(logits, label, masked).item() == pytest.approx(loss, rel=1e-5)
    assert reconstruction_accuracy(logits, label, masked).item() == pytest.approx(accuracy)


def test_only_hidden_tokens_have_a_say() -> None:
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    label = torch.tensor([[0, 1, 2, -1], [4, 3, -1, -1]])
    masked = torch.tensor([[False, True, False, False], [True, False, False, False]])
    loss = reconstruction_loss(logits, label, masked)
    (grad,) = torch.autograd.grad(loss, logits)
    assert torch.equal(grad.abs().sum(-1) > 0, masked)
    # Twice as much padding, filled with nonsense, changes nothing.
    padded = torch.cat([logits, torch.full((2, 4, 5), float("nan"))], dim=1)
    more_label = torch.cat([label, torch.zeros(2, 4, dtype=torch.int64)], dim=1)
    more_masked = torch.cat([masked, torch.zeros(2, 4, dtype=torch.bool)], dim=1)
    assert torch.equal(reconstruction_loss(padded, more_label, more_masked), loss)


def test_nothing_hidden_gives_zero_and_a_gradient_of_zeros() -> None:
    head = ReconstructionHead(4, 6)
    text = torch.full((2, 3, 4), float("inf"))  # not even this may leak into the loss
    label = torch.full((2, 3), IGNORED)
    masked = torch.zeros(2, 3, dtype=torch.bool)
    loss = reconstruction_loss(head(text), label, masked)
    assert loss.item() == 0
    text = torch.randn(2, 3, 4)
    torch.autograd.backward(reconstruction_loss(head(text), label, masked))
    assert head.project.weight.grad is not None
    assert not head.project.weight.grad.any()
    assert reconstruction_accuracy(head(text), label, masked).item() == 0


def test_half_precision_logits_are_taken_to_float32() -> None:
    logits = torch.randn(1, 2, 5, dtype=torch.bfloat16)
    loss = reconstruction_loss(logits, torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool))
    assert loss.dtype == torch.float32


def test_shapes_that_disagree_are_refused() -> None:
    label = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="disagree"):
        reconstruction_loss(torch.zeros(2, 4, 5), label, label.bool())
    with pytest.raises(ValueError, match="disagree"):
        reconstruction_accuracy(torch.zeros(2, 3, 5), label, torch.zeros(2, 1, dtype=torch.bool))


def test_the_head_learns_the_hidden_word() -> None:
    torch.manual_seed(0)
    head = ReconstructionHead(8, 3)
    text, label = torch.randn(6, 1, 8), torch.tensor([0, 1, 2, 0, 1, 2]).unsqueeze(1)
    masked = torch.ones(6, 1, dtype=torch.bool)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward(reconstruction_loss(head(text), label, masked))
        optimizer.step()
    assert reconstruction_accuracy(head(text), label, masked).item() == 1


def test_all_tokens_that_may_be_a_words_are_hidden() -> None:
    vocabulary = Vocabulary.build(["circle", "square"])
    words, nowhere = ("a", "circle", "far"), np.full(6, -1)
    spans = np.array([[1, 2], [2, 4], [0, 0]])
    plan = plan_mask(words, nowhere, (1, 2), vocabulary, np.random.default_rng(0), spans)
    assert plan.masked.tolist() == [False, False, True, True, False, False]
    assert plan.label.tolist() == [IGNORED, IGNORED, 0, 0, IGNORED, IGNORED]
    without = plan_mask(words, nowhere, (1, 2), vocabulary, np.random.default_rng(0))
    assert not without.masked.any()

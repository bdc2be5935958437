"""Query reconstruction, stage 1 of training: hide a word of the query and predict it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demr.errors import ModelError

IGNORED = -1  # label of a token that is not to be predicted


@dataclass(frozen=True)
class Vocabulary:
    """The words that can be predicted; a word's id is its place.

    Args:
        words: Distinct words, lower-cased.

    Raises:
        ValueError: If a word occurs twice.
    """

    words: tuple[str, ...]
    _ids: Mapping[str, int] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        ids = {word: index for index, word in enumerate(self.words)}
        if len(ids) != len(self.words):
            raise ValueError("a vocabulary holds each word once")
        object.__setattr__(self, "_ids", ids)

    @classmethod
    def build(cls, words: Iterable[str]) -> Self:
        """Collect the maskable words of the training queries; repetitions are welcome.

        The order is alphabetical, so that ids do not hang on the order of the queries.
        """
        return cls(tuple(sorted(set(words))))

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._ids

    def id_of(self, word: str) -> int | None:
        """The id of a word; ``None`` if training never saw it."""
        return self._ids.get(word)

    def to_dict(self) -> dict[str, list[str]]:
        """Plain data for JSON."""
        return {"words": list(self.words)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild what :meth:`to_dict` gave.

        Raises:
            ModelError: If the data is not a list of distinct words under ``words``.
        """
        words = data.get("words")
        if (
            not isinstance(words, list)
            or not all(isinstance(word, str) for word in words)
            or len(set(words)) != len(words)
        ):
            raise ModelError(
                "vocabulary",
                expected="distinct words under the key 'words'",
                got=f"{type(words).__name__} that is none",
                remedy="the model's files are damaged; fetch or train it again",
            )
        return cls(tuple(words))


@dataclass(frozen=True)
class MaskPlan:
    """What to hide of one query, and what to predict there.

    Args:
        masked: True for hidden tokens, bool ``(T,)``.
        label: Vocabulary id at hidden tokens, :data:`IGNORED` elsewhere, int64 ``(T,)``.
    """

    masked: Tensor
    label: Tensor


def choose_mask(
    candidates: tuple[int, ...], count: int, generator: torch.Generator | np.random.Generator
) -> tuple[int, ...]:
    """Draw the words to hide, each set of ``count`` words equally likely.

    Args:
        candidates: Indices of the words that may be hidden.
        count: How many to draw; all of them if there are fewer.
        generator: Source of the draw (a torch one on the CPU).

    Returns:
        Increasing word indices.
    """
    drawn = min(count, len(candidates))
    if drawn <= 0:
        return ()
    if isinstance(generator, torch.Generator):
        order = torch.randperm(len(candidates), generator=generator).tolist()
    else:
        order = generator.permutation(len(candidates)).tolist()
    return tuple(sorted(candidates[index] for index in order[:drawn]))


def plan_mask(
    words: Sequence[str],
    token_word: Tensor | np.ndarray,
    candidates: tuple[int, ...],
    vocabulary: Vocabulary,
    count: int,
    generator: torch.Generator | np.random.Generator,
) -> MaskPlan:
    """Choose words of one query that the vocabulary knows, and mark all tokens of each.

    Args:
        words: The query's words.
        token_word: Index into ``words`` of each token, -1 for special tokens, ``(T,)``.
        candidates: Words whose part of speech may be hidden.
        vocabulary: What can be predicted.
        count: How many words to hide at most.
        generator: Source of the draw.

    Returns:
        The plan; it hides nothing if no candidate is known.
    """
    token_word = torch.as_tensor(token_word)
    # A word beyond the encoder's limit has no token left to hide.
    reached = set(token_word.tolist())
    ids = {i: vocabulary.id_of(words[i]) for i in candidates if i in reached}
    known = {i: word_id for i, word_id in ids.items() if word_id is not None}
    label = torch.full_like(token_word, IGNORED, dtype=torch.int64)
    for index in choose_mask(tuple(known), count, generator):
        label[token_word == index] = known[index]
    return MaskPlan(masked=label != IGNORED, label=label)


def mask_features(text: Tensor, masked: Tensor) -> Tensor:
    """Hide tokens by zeroing their features; the given tensor stays as it is.

    Args:
        text: Token features, ``(B, T, Dt)``.
        masked: True where a token is hidden, bool ``(B, T)``.

    Returns:
        A new tensor, ``(B, T, Dt)``.
    """
    return text.masked_fill(masked.unsqueeze(-1), 0.0)


class ReconstructionHead(nn.Module):
    """One Linear layer from fused text to the vocabulary.

    Args:
        features: Width D of the fused text.
        vocabulary_size: Number V of words that can be predicted.
    """

    def __init__(self, features: int, vocabulary_size: int) -> None:
        super().__init__()
        self.project = nn.Linear(features, vocabulary_size)

    def forward(self, text: Tensor) -> Tensor:
        """Logits ``(B, T, V)`` of fused text ``(B, T, D)``."""
        logits: Tensor = self.project(text)
        return logits


def reconstruction_loss(logits: Tensor, label: Tensor, masked: Tensor) -> Tensor:
    """Mean cross-entropy over hidden tokens; all others, padding among them, have no say.

    Args:
        logits: ``(B, T, V)``; taken to float32.
        label: Vocabulary ids, int64 ``(B, T)``; :data:`IGNORED` takes a token out.
        masked: True where a token is hidden, bool ``(B, T)``.

    Returns:
        Scalar; 0, with a gradient of zeros, if nothing is hidden.

    Raises:
        ValueError: If the shapes disagree.

    Reference:
        ``method.md`` section 4, stage 1.
    """
    counted = _counted(logits, label, masked)
    total = F.cross_entropy(logits[counted].float(), label[counted], reduction="sum")
    return total / counted.sum().clamp(min=1)


@torch.no_grad()
def reconstruction_accuracy(logits: Tensor, label: Tensor, masked: Tensor) -> Tensor:
    """Share of hidden tokens whose most probable word is the right one.

    Args:
        logits: ``(B, T, V)``.
        label: Vocabulary ids, int64 ``(B, T)``; :data:`IGNORED` takes a token out.
        masked: True where a token is hidden, bool ``(B, T)``.

    Returns:
        Scalar in 0..1; 0 if nothing is hidden.
    """
    counted = _counted(logits, label, masked)
    right = (logits.argmax(-1) == label) & counted
    return right.sum() / counted.sum().clamp(min=1)


def _counted(logits: Tensor, label: Tensor, masked: Tensor) -> Tensor:
    if logits.shape[:-1] != label.shape or label.shape != masked.shape:
        shapes = f"{tuple(logits.shape)}, {tuple(label.shape)}, {tuple(masked.shape)}"
        raise ValueError(f"logits (B, T, V), label (B, T) and masked (B, T) disagree: {shapes}")
    return masked & (label != IGNORED)

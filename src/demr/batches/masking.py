"""Which word of a query is hidden in query reconstruction, and the vocabulary of all."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from demr.encoders.base import Encoder
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

        The order is alphabetical, so that ids do not depend on the order of the queries.
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


@dataclass(frozen=True)
class Masking:
    """Which word of each query stage 1 hides.

    Attributes:
        vocabulary: Words that can be predicted.
        pos: Parts of speech that may be masked.
        at_input: Hide the word from the encoder instead of zeroing its feature.
        encoder: Needed to encode a query with hidden words.
        seed: With the epoch and the item, decides the choice.
    """

    vocabulary: Vocabulary
    pos: frozenset[str]
    at_input: bool
    encoder: Encoder
    seed: int


def plan_mask(
    words: Sequence[str],
    token_word: Tensor | np.ndarray,
    candidates: tuple[int, ...],
    vocabulary: Vocabulary,
    generator: np.random.Generator,
    word_span: np.ndarray | None = None,
) -> MaskPlan:
    """Choose one word of a query that the vocabulary knows, and mark all its tokens.

    Args:
        words: The query's words.
        token_word: Index into ``words`` of each token, -1 for special tokens, ``(T,)``.
        candidates: Words whose part of speech may be hidden.
        vocabulary: What can be predicted.
        generator: Source of the draw; each candidate that is known is equally likely.
        word_span: Tokens between which each word's lie, ``(W, 2)``, where no more is known: all
            of them are hidden then.

    Returns:
        The plan; it hides nothing if no candidate is known.
    """
    token_word = torch.as_tensor(token_word)
    # A word beyond the encoder's limit has no token left to hide.
    reached = reached_words(token_word, word_span)
    ids = {i: vocabulary.id_of(words[i]) for i in candidates if i in reached}
    known = {i: word_id for i, word_id in ids.items() if word_id is not None}
    label = torch.full_like(token_word, IGNORED, dtype=torch.int64)
    if known:
        index = tuple(known)[generator.permutation(len(known))[0]]
        if word_span is None:
            label[token_word == index] = known[index]
        else:
            first, behind = word_span[index].tolist()
            label[first:behind] = known[index]
    return MaskPlan(masked=label != IGNORED, label=label)


def reached_words(token_word: Tensor | np.ndarray, word_span: np.ndarray | None) -> set[int]:
    """Words whose tokens are known, and can be hidden."""
    if word_span is None:
        return set(token_word.tolist()) - {-1}
    return {index for index, (first, behind) in enumerate(word_span.tolist()) if first < behind}

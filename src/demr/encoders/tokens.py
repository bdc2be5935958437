"""Queries as tokenizers cut them: ids, and which word each token belongs to."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demr.encoders.words import locate_words, normalize_query, query_words


class QueryCutWarning(UserWarning):
    """A query has more tokens than the encoder reads; its last words are not read."""


@dataclass(frozen=True)
class Tokens:
    """One query as an encoder reads it.

    Attributes:
        words: Its words.
        ids: Of the tokens, ``(T,)``.
        token_word: int64, ``(T,)``; the word that each token belongs to, -1 for none.
    """

    words: tuple[str, ...]
    ids: list[int]
    token_word: NDArray[np.int64]


def tokenize(
    tokenizer: Any, queries: Sequence[str], limit: int, *, before: str = "", special: bool = True
) -> list[Tokens]:
    """Cut queries into tokens; a :class:`QueryCutWarning` names each that is too long.

    Letters are made small: tokenizers of the CLIP family do so anyway, or ought to (SigLIP 2 was
    trained on small letters, which not every copy of its tokenizer makes by itself), and to others
    a query is then the same however it was typed.

    Args:
        tokenizer: Of transformers; one that knows where in the text each token stands.
        queries: Sentences.
        limit: Tokens of a query that are read.
        before: Stands between what came before and the query, such as a space.
        special: Whether the tokenizer adds its start and end. If not, names of special tokens in
            a query are letters like any.

    Raises:
        InputError: If a query holds no word.
    """
    tokenized = []
    options: dict[str, Any] = {"return_offsets_mapping": True, "verbose": False}
    if not special:
        options |= {"add_special_tokens": False, "split_special_tokens": True}
    for query in queries:
        words = query_words(query)
        text = before + " ".join(normalize_query(query).split())
        row = tokenizer(text, **options)
        length = len(row["input_ids"])
        if length > limit:
            row = tokenizer(text, truncation=True, max_length=limit, **options)
        word_of = token_words(row["offset_mapping"], text)
        if length > limit:
            _warn_of_cut(text, words, word_of, length, limit)
        tokenized.append(Tokens(words, list(row["input_ids"]), word_of))
    return tokenized


def token_words(offsets: Sequence[tuple[int, int]], text: str) -> NDArray[np.int64]:
    """Word that each token belongs to, the one it shares most letters with; -1 for none.

    Args:
        offsets: Where each token begins and ends in the text; empty for special tokens.
        text: Normalised, as :func:`~demr.encoders.words.locate_words` reads it.

    >>> token_words([(0, 0), (0, 2), (2, 5), (5, 7), (7, 8), (0, 0)], "puppy's!").tolist()
    [-1, 0, 0, 0, -1, -1]
    """
    words = locate_words(text)
    word_of = np.full(len(offsets), -1, dtype=np.int64)
    for index, (begin, end) in enumerate(offsets):
        shared = [min(end, high) - max(begin, low) for _, low, high in words]
        if shared and max(shared) > 0:
            word_of[index] = int(np.argmax(shared))
    return word_of


def _warn_of_cut(
    text: str, words: tuple[str, ...], word_of: NDArray[np.int64], length: int, limit: int
) -> None:
    last = int(word_of.max())
    after = f"what follows {words[last]!r} is not read" if last >= 0 else "nothing of it is read"
    begin = text.strip() if len(text) <= 40 else f"{text.strip()[:40]}..."
    warnings.warn(
        f"query '{begin}' has {length} tokens, the encoder reads {limit}: {after}",
        QueryCutWarning,
        stacklevel=6,
    )

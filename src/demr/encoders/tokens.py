"""Queries as tokenizers cut them: ids, and which word each token belongs to."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demr.encoders.words import locate_words, normalize_query, query_words
from demr.errors import ModelError

# Sentences with no word in common, in which every tokenizer of English knows something.
_PROBES = ("a person opens the door", "two dogs run", "red cars stop near water")
# Share of a model's tokens that its tokenizer has: some models have rows to spare.
_KNOWN_SHARE = 0.9
# Words of the vocabulary that are tried, and the share that must come back as the one token.
_END_OF_WORD = "</w>"  # CLIP's
_TRIED, _FEW, _WHOLE_SHARE = 64, 8, 0.1


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


def check_tokenizer(tokenizer: Any, size: int, folder: Path) -> None:
    """Refuse a tokenizer that is not the model's, or lacks what makes sentences differ.

    Without its files, or with those of another model, a tokenizer still cuts every sentence into
    something, and a search then answers each of them alike, in full confidence.

    Args:
        tokenizer: Of transformers.
        size: Tokens that the model has embeddings of.
        folder: Where its files lie, for errors.

    Raises:
        ModelError: If it has other tokens than the model, cannot put its words together, or makes
            the same of different sentences.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    highest = max(vocabulary.values(), default=-1)
    if highest >= size or len(vocabulary) < _KNOWN_SHARE * size:
        raise unfit_tokenizer(
            folder,
            f"a vocabulary of the model's {size} tokens (config.json)",
            f"{len(vocabulary)} tokens, numbered up to {highest}",
        )
    probes = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in _PROBES]
    unknown = tokenizer.unk_token_id
    if any(set(ids) <= {unknown} for ids in probes) or len(set(map(tuple, probes))) < len(probes):
        raise unfit_tokenizer(
            folder,
            "a tokenizer that tells sentences apart",
            f"nothing known in, or the same for, {_PROBES[0]!r} and {_PROBES[1]!r}",
        )
    whole = [_is_whole(tokenizer, *word) for word in islice(_words(tokenizer, vocabulary), _TRIED)]
    if len(whole) >= _FEW and sum(whole) < _WHOLE_SHARE * len(whole):
        raise unfit_tokenizer(
            folder,
            "a tokenizer that puts the words of its vocabulary together",
            f"{sum(whole)} of {len(whole)} of them whole: its merges are missing or another's",
        )


def unfit_tokenizer(folder: Path, expected: str, got: str) -> ModelError:
    """The error of a tokenizer that is not its model's."""
    return ModelError(
        str(folder),
        expected=expected,
        got=got,
        remedy="copy the tokenizer's files (tokenizer.json, or vocab.json and merges.txt) again "
        "from where the model came from",
    )


def _words(tokenizer: Any, vocabulary: dict[str, int]) -> Iterator[tuple[str, int]]:
    """Words of the vocabulary that are made of several letters, and their tokens."""
    special = set(tokenizer.all_special_ids)
    for token, number in sorted(vocabulary.items(), key=lambda item: item[1]):
        word = tokenizer.convert_tokens_to_string([token]).strip().removesuffix(_END_OF_WORD)
        is_word = len(word) > 2 and word.isascii() and word.isalpha() and word.islower()
        if is_word and number not in special:
            yield word, number


def _is_whole(tokenizer: Any, word: str, number: int) -> bool:
    # Some tokens stand for a word behind a space.
    return any(
        tokenizer(text, add_special_tokens=False)["input_ids"] == [number]
        for text in (word, f" {word}")
    )


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

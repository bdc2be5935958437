"""Queries as tokenizers cut them: ids, and which word each token belongs to."""

import re
import unicodedata
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
_END_OF_WORD = "</w>"  # CLIP's
# Words of the vocabulary that are tried, and the share that must come back as the one token.
_TRIED, _FEW, _WHOLE_SHARE = 64, 8, 0.1
# Tokens that may be hidden with a word whose place is not known exactly.
_WIDEST_SPAN = 4
# Encoders read so many tokens at least: a query that is cut has as many.
_CUT_FROM = 16
_SPECIAL = re.compile(
    r"\[(?:CLS|SEP|PAD|MASK|BOS|EOS)\]|<\|?(?!unk|0x)[^<>|\s]{1,24}\|?>", re.IGNORECASE
)
_UNKNOWN = re.compile(r"\[UNK\]|<\|?unk\|?>|\ufffd+", re.IGNORECASE)
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


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


@dataclass(frozen=True)
class Cut:
    """How a kind of tokenizer takes a text apart before it looks for the parts of rarer words.

    Attributes:
        pattern: Of a piece, which becomes one token or more.
        before: Tokens that it adds at the start.
        after: Tokens that it adds at the end.
    """

    pattern: re.Pattern[str]
    before: int
    after: int

    def pieces(self, query: str) -> list[tuple[int, str]]:
        """Word (-1 for none) and letters of each piece of a query."""
        words = locate_words(query)
        return [
            (
                next((n for n, (_, low, high) in enumerate(words) if low <= at.start() < high), -1),
                at.group(),
            )
            for at in self.pattern.finditer(normalize_query(query))
        ]

    def token_word(self, query: str) -> NDArray[np.int64]:
        """Word of each token where every piece is one token, ``(T,)``."""
        inner = [word for word, _ in self.pieces(query)]
        return np.array([-1] * self.before + inner + [-1] * self.after, dtype=np.int64)


_CLIP_PIECE = re.compile(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]+|\d|[^\w\s]+|_+")
# BERT parts every sign from the next, GPT's kind keeps runs of them, and digits, together.
_BERT_PIECE = re.compile(r"[^\W_]+|[^\w\s]|_")
_GPT_PIECE = re.compile(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]+|\d+|(?:[^\w\s]|_)+")
CLIP_CUT = Cut(_CLIP_PIECE, 1, 1)
# The likeliest first: T5's kind ends a text, LLaMA's begins it, word vectors do neither.
CUTS = (
    CLIP_CUT,
    Cut(_BERT_PIECE, 1, 1),
    Cut(_GPT_PIECE, 1, 1),
    Cut(_BERT_PIECE, 0, 1),
    Cut(_BERT_PIECE, 1, 0),
    Cut(_GPT_PIECE, 1, 0),
    Cut(_GPT_PIECE, 0, 1),
    Cut(_GPT_PIECE, 0, 0),
    Cut(_BERT_PIECE, 0, 0),
    Cut(re.compile(r"[^\W_]+(?:['’][^\W_]+)*"), 0, 0),
)


def likeliest_cut(
    queries: Sequence[str], counts: Sequence[int], *, starts_alike: bool | None = None
) -> Cut | None:
    """The cut by which most queries have as many tokens as pieces.

    None where a quarter has not: nearly all words are in parts then, and numbers tell nothing.

    Args:
        queries: Sentences.
        counts: Tokens of each.
        starts_alike: Whether all begin with the same features, as behind a start token that sees
            nothing else; None where that is not known.
    """
    scores = []
    for rank, cut in enumerate(CUTS):
        whole = sum(
            len(cut.token_word(query)) == count
            for query, count in zip(queries, counts, strict=True)
        )
        # A start and an end make the same counts; what stands at the start tells them apart.
        odd = starts_alike is not None and cut.before + cut.after == 1
        scores.append((whole, -int(odd and starts_alike != bool(cut.before)), -rank, cut))
    best = max(scores, key=lambda score: score[:3])
    return best[3] if 4 * best[0] >= max(len(queries), 1) else None


def word_spans(query: str, cut: Cut, count: int) -> NDArray[np.int64] | None:
    """Tokens between which each word's lie, where some pieces became several tokens.

    Which pieces did is not known, but how many tokens a piece makes at least (one) and at most
    (one a byte, and one of short words and of signs) bounds where each can lie.

    Args:
        query: The sentence.
        cut: How it was taken apart.
        count: Tokens of it.

    Returns:
        First token and the one behind the last for every word, ``(W, 2)``; equal where more than
        a quarter of the query would have to be hidden with it. None if the tokens are too few or
        too many.
    """
    pieces = cut.pieces(query)
    inner = count - cut.before - cut.after
    most = [1 if len(text) <= 3 or word < 0 else len(text.encode()) for word, text in pieces]
    if not len(pieces) <= inner <= sum(most):
        most = [len(text.encode()) for _, text in pieces]
    if not pieces or not len(pieces) <= inner <= sum(most):
        return None
    upto = np.concatenate([[0], np.cumsum(most)])
    numbers = np.arange(len(pieces))
    first = np.maximum(numbers, inner - (upto[-1] - upto[:-1]))
    behind = np.minimum(inner - (len(pieces) - 1 - numbers), upto[1:])
    spans = np.zeros((len(locate_words(query)), 2), dtype=np.int64)
    widest = max(_WIDEST_SPAN, inner // 4)
    for word in range(len(spans)):
        mine = [n for n, (owner, _) in enumerate(pieces) if owner == word]
        if mine and behind[mine[-1]] - first[mine[0]] <= widest:
            spans[word] = cut.before + first[mine[0]], cut.before + behind[mine[-1]]
    return spans


def align_pieces(pieces: Sequence[str], query: str) -> NDArray[np.int64] | None:
    """Word that each token of a tokenizer's own spelling belongs to, -1 for none.

    Understood are WordPiece (``##ing``), SentencePiece (``▁door``, bytes as ``<0xC3>``), byte-level
    BPE (``Ġdoor``, ``Ã©``) and CLIP's (``door</w>``). Accents may be gone; a token that stands for
    unknown letters takes the words between its neighbours.

    Returns:
        ``(T,)``, or None if the tokens spell something else.

    >>> align_pieces(["[CLS]", "un", "##lock", "[UNK]", ".", "[SEP]"], "Unlock it.").tolist()
    [-1, 0, 0, 1, -1, -1]
    """
    words = [word for word, _, _ in locate_words(query)]
    letters = [(letter, n) for n, word in enumerate(words) for letter in _folded(word)]
    owner = np.full(len(pieces), -1, dtype=np.int64)
    at, unknown = 0, list[int]()
    for token, text in _spelled(pieces):
        if text is None:
            unknown.append(token[0])
            continue
        spelled = _folded(text)
        if not spelled:
            continue
        begin = _find(letters, spelled, at, skip=bool(unknown))
        if begin is None:
            return None
        _give_unknown(owner, unknown, letters[at:begin])
        unknown = []
        at = begin + len(spelled)
        for index in token:
            owner[index] = letters[begin][1]
    if at < len(letters) and not unknown and len(pieces) < _CUT_FROM:
        return None
    _give_unknown(owner, unknown, letters[at:])
    return owner


def _find(letters: list[tuple[str, int]], spelled: str, at: int, *, skip: bool) -> int | None:
    text = "".join(letter for letter, _ in letters)
    if text.startswith(spelled, at):
        return at
    found = text.find(spelled, at) if skip else -1
    return found if found >= 0 else None


def _give_unknown(
    owner: NDArray[np.int64], tokens: list[int], letters: list[tuple[str, int]]
) -> None:
    words = list(dict.fromkeys(word for _, word in letters))
    if len(words) == 1:
        owner[tokens] = words[0]
    elif len(words) == len(tokens):
        owner[tokens] = words


def _folded(text: str) -> str:
    """Letters and digits alone, without accents and case: what tokenizers leave of a text."""
    bare = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in bare if letter.isalnum())


def _spelled(pieces: Sequence[str]) -> Iterator[tuple[list[int], str | None]]:
    """Tokens and the text they spell, those together whose bytes make one letter; None unknown."""
    is_bytes = any("Ġ" in piece for piece in pieces)
    waiting, raw = list[int](), b""
    for index, piece in enumerate(pieces):
        if _SPECIAL.fullmatch(piece):
            continue
        byte = _BYTE.fullmatch(piece)
        if _UNKNOWN.fullmatch(piece):
            yield [index], None
        elif byte or (is_bytes and all(letter in _BYTES for letter in piece)):
            raw += bytes([int(byte[1], 16)]) if byte else bytes(_BYTES[c] for c in piece)
            waiting.append(index)
            try:
                yield waiting, raw.decode()
            except UnicodeDecodeError:
                continue  # the rest of the letter is in the next
            waiting, raw = [], b""
        else:
            yield [index], re.sub(r"^##|^▁|@@$|</w>$", "", piece)


def _byte_letters() -> dict[str, int]:
    """Letters by which byte-level tokenizers spell bytes, as GPT-2 began it."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): b for n, b in enumerate(rest)}


_BYTES = _byte_letters()

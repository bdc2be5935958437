"""Word vectors without a vocabulary and without weights: signs drawn from a hash.

Every word of every language has a vector of unit length. A large part of it belongs to the word
alone, so that two unrelated words are nearly orthogonal; the rest comes from its letters, so that
"bounce" and "bounces" are neighbours and a typing error does not lose the word.
"""

import re
import unicodedata
from functools import lru_cache
from hashlib import blake2b
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from demr.errors import InputError

TEXT_DIM = 128
MAX_WORDS = 77
# Shares of the squared length. Less for the letters than for the word, or "red" and "reads" would
# be hard to hold apart.
_WORD_SHARE = 0.7
_GRAM_SIZES = (3, 4, 5)
# A longer "word" is a pasted line of symbols; its first letters describe it well enough.
_MAX_LETTERS = 64
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def split_words(query: str) -> tuple[str, ...]:
    """Words of a sentence in lower case, without punctuation, at most 77.

    >>> split_words("The RED circle's_edge, please!")
    ('the', 'red', "circle's", 'edge', 'please')
    """
    return tuple(word for word, _, _ in locate_words(query))


def query_words(query: str) -> tuple[str, ...]:
    """Words of a query that is to be encoded word by word.

    Raises:
        InputError: If it holds none.
    """
    words = split_words(query)
    if not words:
        raise InputError(
            "query",
            expected="a sentence with at least one word",
            got=repr(query),
            remedy="describe the moment in words",
        )
    return words


def normalize_query(query: str) -> str:
    """The text that words are looked for in: compatible letters, lower case, one apostrophe.

    >>> normalize_query("The dog’s Ball")
    "the dog's ball"
    """
    return unicodedata.normalize("NFKC", query).lower().replace("’", "'")


def locate_words(query: str) -> list[tuple[str, int, int]]:
    """Each word of :func:`split_words`, with where it begins and ends in the normalised text.

    >>> locate_words("A dog.")
    [('a', 0, 1), ('dog', 2, 5)]
    """
    matches = islice(_WORD.finditer(normalize_query(query)), MAX_WORDS)
    return [(match.group()[:_MAX_LETTERS], match.start(), match.end()) for match in matches]


@lru_cache(maxsize=65536)
def word_vector(word: str) -> NDArray[np.float32]:
    """Hashed vector of one word.

    Args:
        word: A word in lower case.

    Returns:
        float32, ``(TEXT_DIM,)``, unit length, read-only; the same on every machine.
    """
    padded = f"<{word}>"
    grams = sorted(
        {
            padded[begin : begin + size]
            for size in _GRAM_SIZES
            for begin in range(len(padded) - size + 1)
        }
    )
    vector = np.sqrt(_WORD_SHARE) * _unit(_signs("word", word))
    if grams:
        letters = np.sum([_signs("gram", gram) for gram in grams], axis=0)
        vector = vector + np.sqrt(1 - _WORD_SHARE) * _unit(letters)
    result: NDArray[np.float32] = _unit(vector).astype(np.float32)
    result.flags.writeable = False
    return result


def _signs(kind: str, text: str) -> NDArray[np.float64]:
    # The person field keeps the word "red" apart from the letters "red".
    digest = blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=TEXT_DIM // 8, person=kind.encode()
    ).digest()
    return np.unpackbits(np.frombuffer(digest, dtype=np.uint8)).astype(np.float64) * 2 - 1


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else vector

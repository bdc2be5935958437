"""Queries whose features lie in files: tokens of a published pack, or a table of word vectors.

The encoder that made such features need not be installed, so nothing new can be encoded with
them: they serve to train and to measure.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demr.encoders.base import Encoder, EncoderIdentity, QueryFeatures, VideoFeatures
from demr.encoders.words import locate_words, normalize_query, query_words, split_words
from demr.errors import FeatureError, InputError
from demr.machine.arrays import UNREADABLE_ARRAYS, ArrayFile

# Pieces that CLIP's tokenizer takes text apart into, before it looks for rarer words' parts.
_PIECE = re.compile(r"'(?:s|t|re|ve|m|ll|d)\b|[^\W\d_]+|\d|[^\w\s]+|_+")


def open_text(path: Path, identity: EncoderIdentity) -> Encoder:
    """Open the text side of stored features.

    Args:
        path: A folder with one ``qid<qid>.npz`` or ``<qid>.npz`` a query, or one ``.npz`` with the
            arrays ``words`` and ``vectors``.
        identity: Identity of the video features that it belongs to.

    Raises:
        FeatureError: If there is neither.
    """
    return StoredText(path, identity) if path.is_dir() else WordVectors(path, identity)


class _Stored:
    """Shared by both forms: the identity of the video side, and no way to encode a video."""

    _identity: EncoderIdentity

    @property
    def identity(self) -> EncoderIdentity:
        """That of the video features."""
        return self._identity

    def encode_video(self, path: str | Path) -> VideoFeatures:
        """Refuse: the encoder is not here.

        Raises:
            InputError: Always.
        """
        raise InputError(
            str(path),
            expected="the encoder that made this model's features",
            got="stored features alone",
            remedy="train on features of an encoder that is here to search videos",
        )


class StoredText(_Stored):
    """Token features that were extracted elsewhere, one file a query.

    Args:
        folder: Where the files lie.
        identity: Identity of the video features that they belong to.
        qids: Query -> qid. Equal queries have equal features, whichever qid they are found under.
    """

    def __init__(
        self, folder: Path, identity: EncoderIdentity, qids: Mapping[str, str] | None = None
    ) -> None:
        self._folder = folder
        self._identity = identity
        self._qids = qids or {}

    def with_qids(self, qids: Mapping[str, str]) -> "StoredText":
        """The same files, for these queries."""
        return StoredText(self._folder, self._identity, qids)

    def encode_queries(
        self, queries: Sequence[str], hidden: Sequence[Collection[int]] | None = None
    ) -> list[QueryFeatures]:
        """Look queries up.

        A token belongs to a word where the tokenizer left every word whole, as the number of tokens
        shows. Otherwise no token belongs to any: such a query is never masked.

        Raises:
            FeatureError: If a query has no file or two, or the file is damaged.
            InputError: If words are to be hidden, for which the encoder itself is needed.
        """
        if hidden is not None:
            raise InputError(
                "reconstruction.masking",
                expected="feature, as the queries' features are stored",
                got="input",
                remedy="set reconstruction.masking to feature",
            )
        files = {query: self._find(query) for query in queries}
        missing = [query for query in queries if files[query] is None]
        if missing:
            raise FeatureError(
                str(self._folder),
                expected="a file qid<qid>.npz or <qid>.npz for every query",
                got=f"{len(missing)} of {len(queries)} without, such as qid "
                f"{self._qids.get(missing[0], '?')}",
                remedy="fetch them, or drop these queries",
            )
        return [_read(query, file) for query in queries if (file := files[query]) is not None]

    def _find(self, query: str) -> Path | None:
        qid = self._qids.get(query)
        if qid is None:
            return None
        places = (self._folder / f"qid{qid}.npz", self._folder / f"{qid}.npz")
        files = [place for place in places if place.exists()]
        if len(files) > 1:
            raise FeatureError(
                str(self._folder),
                expected=f"one file for qid {qid}",
                got=" and ".join(place.name for place in files),
                remedy="remove the one that is not this query's",
            )
        return files[0] if files else None


def _read(query: str, file: Path) -> QueryFeatures:
    try:
        with ArrayFile(file) as arrays:
            name = "last_hidden_state" if "last_hidden_state" in arrays.names else "features"
            table = np.asarray(arrays.read(name), dtype=np.float32)
    except UNREADABLE_ARRAYS as error:
        raise _damaged(file, error) from error
    if table.ndim != 2 or not len(table):
        raise FeatureError(
            str(file),
            expected="a table of tokens by features",
            got=f"shape {table.shape}",
            remedy="fetch or extract it again",
        )
    return QueryFeatures(query, table, split_words(query), _token_words(query, len(table)))


def _token_words(query: str, tokens: int) -> NDArray[np.int64]:
    """Word of each token, -1 for none: a start, the pieces of the text, an end."""
    word_of = [-1]
    words = locate_words(query)
    for piece in _PIECE.finditer(normalize_query(query)):
        inside = (n for n, (_, low, high) in enumerate(words) if low <= piece.start() < high)
        word_of.append(next(inside, -1))
    word_of.append(-1)
    if len(word_of) != tokens:
        return np.full(tokens, -1, dtype=np.int64)
    return np.array(word_of, dtype=np.int64)


class WordVectors(_Stored):
    """One vector a word, from a table such as GloVe's; unknown words are zeros.

    Args:
        path: ``.npz`` with ``words`` (N,) and ``vectors`` (N, Dt).
        identity: Identity of the video features that it belongs to.

    Raises:
        FeatureError: If the file is damaged or of another width than the identity's.
    """

    def __init__(self, path: Path, identity: EncoderIdentity) -> None:
        try:
            with ArrayFile(path) as arrays:
                # Text as bytes would know no word at all.
                words = arrays.read("words").astype(str)
                vectors = arrays.read("vectors").astype(np.float32)
        except UNREADABLE_ARRAYS as error:
            raise _damaged(path, error) from error
        fits = vectors.ndim == 2 and vectors.shape[1] == identity.text_dim
        if not fits or words.shape != vectors.shape[:1] or not vectors.any():
            raise FeatureError(
                str(path),
                expected=f"words and vectors of width {identity.text_dim} ({identity.spec})",
                got=f"words of shape {words.shape}, vectors of shape {vectors.shape}"
                + ("" if vectors.any() else ", all zero"),
                remedy="import the video features with the --text-dim of these vectors",
            )
        self._identity = identity
        self._place = {str(word): index for index, word in enumerate(words.tolist())}
        self._vectors = np.vstack([vectors, np.zeros((1, vectors.shape[1]), dtype=np.float32)])

    def encode_queries(
        self, queries: Sequence[str], hidden: Sequence[Collection[int]] | None = None
    ) -> list[QueryFeatures]:
        """Vectors of each query's words; words past the 77th are dropped.

        Raises:
            InputError: If a query holds no word.
        """
        encoded = []
        for number, query in enumerate(queries):
            words = query_words(query)
            features = self._vectors[[self._place.get(word, -1) for word in words]]
            if hidden is not None:
                features[list(hidden[number])] = 0
            token_word = np.arange(len(words), dtype=np.int64)
            encoded.append(QueryFeatures(query, features, words, token_word))
        return encoded


def _damaged(path: Path, error: Exception) -> FeatureError:
    return FeatureError(
        str(path),
        expected="a readable .npz of text features",
        got=f"{type(error).__name__}: {error}",
        remedy="fetch or extract it again",
    )

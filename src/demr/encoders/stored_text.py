"""Queries whose features lie in files: tokens of a published pack, or a table of word vectors.

The encoder that made such features need not be installed, so nothing new can be encoded with
them: they serve to train and to measure.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demr.encoders.base import Encoder, EncoderIdentity, QueryFeatures, VideoFeatures
from demr.encoders.tokens import CLIP_CUT, Cut, align_pieces, likeliest_cut, word_spans
from demr.encoders.words import query_words, split_words
from demr.errors import FeatureError, InputError
from demr.machine.arrays import UNREADABLE_ARRAYS, ArrayFile


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

        Which word a token belongs to is read from the file's array ``tokens`` (the tokenizer's
        own spellings) if it has one. Otherwise it is told by the number of tokens: exactly where
        all words were left whole, and elsewhere within bounds.

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
        read = {query: _read(file) for query, file in files.items() if file is not None}
        tables = [table for table, pieces in read.values() if pieces is None]
        asked = [query for query, (_, pieces) in read.items() if pieces is None]
        alike = None
        if len(tables) > 1:
            alike = all(np.allclose(table[0], tables[0][0], atol=1e-3) for table in tables[1:])
        cut = likeliest_cut(asked, list(map(len, tables)), starts_alike=alike)
        return [_place(query, *read[query], cut) for query in queries]

    def _find(self, query: str) -> Path | None:
        qid = self._qids.get(query)
        if qid is None:
            return None
        if Path(qid).name != qid or "\0" in qid:
            return None  # a path, and no file of this folder
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


def _read(file: Path) -> tuple[NDArray[np.float32], list[str] | None]:
    """Features of the tokens, ``(T, Dt)``, and how the tokenizer spells them if that is there."""
    try:
        with ArrayFile(file) as arrays:
            name = "last_hidden_state" if "last_hidden_state" in arrays.names else "features"
            table = np.asarray(arrays.read(name), dtype=np.float32)
            pieces = arrays.read("tokens") if "tokens" in arrays.names else None
    except UNREADABLE_ARRAYS as error:
        raise _damaged(file, error) from error
    if table.ndim != 2 or not len(table):
        raise FeatureError(
            str(file),
            expected="a table of tokens by features",
            got=f"shape {table.shape}",
            remedy="fetch or extract it again",
        )
    if pieces is None or pieces.dtype.kind != "U" or pieces.shape != table.shape[:1]:
        return table, None
    return table, [str(piece) for piece in pieces]


def _place(
    query: str, table: NDArray[np.float32], pieces: list[str] | None, cut: Cut | None
) -> QueryFeatures:
    """Features of a query whose tokens are matched with its words as far as can be."""
    words = split_words(query)
    owner = None if pieces is None else align_pieces(pieces, query)
    if owner is not None:
        return QueryFeatures(query, table, words, owner)
    if cut is None:
        return QueryFeatures(query, table, words, np.full(len(table), -1, dtype=np.int64))
    owner = _token_words(query, len(table), cut)
    spans = None if (owner >= 0).any() else word_spans(query, cut, len(table))
    return QueryFeatures(query, table, words, owner, spans)


def _token_words(query: str, tokens: int, cut: Cut = CLIP_CUT) -> NDArray[np.int64]:
    """Word of each token, -1 for none; none at all where some word is more than one token."""
    word_of = cut.token_word(query)
    return word_of if len(word_of) == tokens else np.full(tokens, -1, dtype=np.int64)


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

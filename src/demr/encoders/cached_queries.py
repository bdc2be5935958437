"""A cache of query features: each sentence is encoded once a run."""

from collections.abc import Collection, Sequence
from pathlib import Path

from demr.encoders.base import Encoder, EncoderIdentity, QueryFeatures, VideoFeatures


class CachedQueries:
    """An encoder with a cache of query features.

    A run encodes its validation queries to choose a checkpoint, to calibrate and to evaluate, and
    a language model takes minutes for some thousands. The cache costs no memory of its own: the
    data sets hold the same arrays.

    Args:
        encoder: Encodes what is not in the cache.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._cache: dict[str, QueryFeatures] = {}

    @property
    def identity(self) -> EncoderIdentity:
        """The encoder's."""
        return self._encoder.identity

    def encode_video(self, path: str | Path) -> VideoFeatures:
        """As the encoder does."""
        return self._encoder.encode_video(path)

    def encode_queries(
        self, queries: Sequence[str], hidden: Sequence[Collection[int]] | None = None
    ) -> list[QueryFeatures]:
        """As the encoder does: whole sentences from the cache, those with hidden words anew."""
        if hidden is not None:
            return self._encoder.encode_queries(queries, hidden)
        missing = [query for query in dict.fromkeys(queries) if query not in self._cache]
        if missing:
            made = self._encoder.encode_queries(missing)
            self._cache.update(zip(missing, made, strict=True))
        return [self._cache[query] for query in queries]

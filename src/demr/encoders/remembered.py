"""Queries that are encoded once, however often a run asks for them."""

from collections.abc import Collection, Sequence
from pathlib import Path

from demr.encoders.base import Encoder, EncoderIdentity, QueryFeatures, VideoFeatures


class RememberedQueries:
    """An encoder that keeps what it made of each sentence.

    A run encodes its validation queries to choose a checkpoint, to calibrate and to evaluate, and
    a language model takes minutes for some thousands. What is kept is what the data sets hold
    anyway.

    Args:
        encoder: Does the work.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._known: dict[str, QueryFeatures] = {}

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
        """As the encoder does, each whole sentence once; those with hidden words every time."""
        if hidden is not None:
            return self._encoder.encode_queries(queries, hidden)
        new = [query for query in dict.fromkeys(queries) if query not in self._known]
        if new:
            made = self._encoder.encode_queries(new)
            self._known.update(zip(new, made, strict=True))
        return [self._known[query] for query in queries]

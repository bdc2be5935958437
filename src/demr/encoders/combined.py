"""Two encoders as one: motion first, then CLIP, from one pass over the frames.

The order is that of the published features (SlowFast, then CLIP). Queries are CLIP's.
"""

from collections.abc import Collection, Sequence

from demr.encoders.base import EncoderIdentity, QueryFeatures
from demr.encoders.frames import FrameEncoder, FrameStream, ReadsFrames
from demr.encoders.loaded_model import short_digest
from demr.errors import InputError


class CombinedEncoder(ReadsFrames):
    """Rows of a motion encoder and of a CLIP, side by side, each to be normalised by itself.

    Args:
        motion: Its streams come first.
        clip: Its streams come last, and it reads the queries.

    Raises:
        InputError: If their clips differ in length, or in what is done to their rows.
    """

    def __init__(self, motion: FrameEncoder, clip: FrameEncoder) -> None:
        pair = motion.identity, clip.identity
        if pair[0].clip_s != pair[1].clip_s or pair[0].normalization != pair[1].normalization:
            raise InputError(
                f"encoder {pair[1].name}+{pair[0].name}",
                expected="one clip length and normalisation for both",
                got=f"{pair[1]} and {pair[0]}",
                remedy="give both the same clip_s",
            )
        self._motion = motion
        self._clip = clip

    @property
    def identity(self) -> EncoderIdentity:
        """Stored beside the features; weights of both count."""
        motion, clip = self._motion.identity, self._clip.identity
        return EncoderIdentity(
            name=f"{clip.name}+{motion.name}",
            version="1",
            clip_s=clip.clip_s,
            streams=(*motion.streams, *clip.streams),
            text_dim=clip.text_dim,
            normalization=clip.normalization,
            model=f"{clip.model},{motion.name}={motion.model}",
            digest=short_digest(motion.version, motion.digest, clip.version, clip.digest),
            dtype=clip.dtype,
        )

    @property
    def streams(self) -> tuple[FrameStream, ...]:
        """Motion, then CLIP."""
        return (*self._motion.streams, *self._clip.streams)

    def encode_queries(
        self, queries: Sequence[str], hidden: Sequence[Collection[int]] | None = None
    ) -> list[QueryFeatures]:
        """As :meth:`demr.encoders.clip.clip.ClipEncoder.encode_queries` does."""
        return self._clip.encode_queries(queries, hidden)

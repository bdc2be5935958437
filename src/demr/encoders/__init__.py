"""Frozen encoders: from frames and words to features."""

from demr.encoders.base import Encoder, EncoderIdentity, QueryFeatures, VideoFeatures, clip_count
from demr.errors import InputError

__all__ = [
    "Encoder",
    "EncoderIdentity",
    "QueryFeatures",
    "VideoFeatures",
    "clip_count",
    "get_encoder",
]

_KNOWN = ("builtin@1",)


def get_encoder(name: str) -> Encoder:
    """Encoder by its name, with or without the version.

    Args:
        name: Such as ``builtin`` or ``builtin@1``.

    Raises:
        InputError: If there is no such encoder; the message names those there are.
    """
    if name in ("builtin", "builtin@1"):
        # Imported here, so that reading an identity does not load the video decoder.
        from demr.encoders.builtin import BuiltinEncoder

        return BuiltinEncoder()
    raise InputError(
        f"encoder {name!r}",
        expected=f"one of {', '.join(_KNOWN)}",
        got=repr(name),
        remedy="choose an encoder of this list",
    )

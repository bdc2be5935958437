"""Frozen encoders: from frames and words to features."""

import re

from demr.encoders.base import (
    AlignedEncoder,
    Encoder,
    EncoderIdentity,
    QueryFeatures,
    VideoFeatures,
    clip_count,
)
from demr.errors import InputError

__all__ = [
    "AlignedEncoder",
    "Encoder",
    "EncoderIdentity",
    "QueryFeatures",
    "VideoFeatures",
    "clip_count",
    "get_encoder",
]

_KNOWN = "builtin@1, clip@1, clip:ORG/NAME or clip:/folder (with ,clip_s=SECONDS if wished)"
_SPEC = re.compile(r"(?P<name>[a-z+]+)(?:@1)?(?::(?P<model>[^,]+))?(?P<options>(?:,[^,=]+=[^,]*)*)")


def get_encoder(name: str, *, device: str = "auto") -> Encoder:
    """Encoder by its name, with or without the version.

    Args:
        name: ``builtin``; ``clip`` (OpenAI's ViT-B/32), ``clip:ORG/NAME`` or ``clip:/folder`` for
            another CLIP, SigLIP or SigLIP 2. ``@1`` after the name asks for that version, and
            ``,clip_s=1`` at the end makes clips of one second: ``clip@1:ORG/NAME,clip_s=1``.
        device: Where an encoder with weights runs.

    Raises:
        InputError: If there is no such encoder; the message names those there are. If it needs
            packages that are not installed.
        ModelError: If its weights cannot be found, fetched or used.
    """
    found = _SPEC.fullmatch(name)
    kind, model = (found["name"], found["model"]) if found else ("", None)
    options = _options(found["options"]) if found else {}
    clip_s = _seconds(name, options.pop("clip_s", None))
    # Imported here, so that reading an identity does not load the video decoder.
    if kind == "builtin" and model is None and clip_s is None and not options:
        from demr.encoders.builtin import BuiltinEncoder

        return BuiltinEncoder()
    if kind == "clip" and not options:
        from demr.encoders.clip import CLIP_S, DEFAULT_MODEL, ClipEncoder

        length = CLIP_S if clip_s is None else clip_s
        return ClipEncoder(model or DEFAULT_MODEL, clip_s=length, device=device)
    raise InputError(
        f"encoder {name!r}",
        expected=f"one of {_KNOWN}",
        got=repr(name),
        remedy="choose an encoder of this list",
    )


def _options(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split(",")[1:])


def _seconds(name: str, text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        raise InputError(
            f"encoder {name!r}",
            expected="clip_s=SECONDS, such as clip_s=1",
            got=f"clip_s={text}",
            remedy="leave it out for 2 seconds",
        ) from None

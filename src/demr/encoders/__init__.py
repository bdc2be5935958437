"""Frozen encoders: from frames and words to features."""

import re
from typing import TYPE_CHECKING

from demr.encoders.base import (
    AlignedEncoder,
    Encoder,
    EncoderIdentity,
    QueryFeatures,
    VideoFeatures,
    clip_count,
)
from demr.errors import InputError

if TYPE_CHECKING:
    from demr.encoders.slowfast import SlowFastEncoder

__all__ = [
    "AlignedEncoder",
    "Encoder",
    "EncoderIdentity",
    "QueryFeatures",
    "VideoFeatures",
    "clip_count",
    "get_encoder",
]

_KNOWN = (
    "builtin@1, clip@1, clip:ORG/NAME or clip:/folder, slowfast@1, slowfast:/file, "
    "clip+slowfast@1, clip+slowfast:ORG/NAME,slowfast=/file (with ,clip_s=SECONDS if wished)"
)
_SPEC = re.compile(r"(?P<name>[a-z+]+)(?:@1)?(?::(?P<model>[^,]+))?(?P<options>(?:,[^,=]+=[^,]*)*)")


def get_encoder(name: str, *, device: str = "auto") -> Encoder:
    """Encoder by its name, with or without the version.

    Args:
        name: ``builtin``; ``clip`` (OpenAI's ViT-B/32), ``clip:ORG/NAME`` or ``clip:/folder`` for
            another CLIP, SigLIP or SigLIP 2; ``slowfast`` (PyTorchVideo's R50 8x8) or
            ``slowfast:/file``; ``clip+slowfast`` for both, with ``:ORG/NAME`` for another CLIP and
            ``,slowfast=/file`` for other weights of SlowFast. ``@1`` after the name asks for that
            version, and ``,clip_s=1`` at the end makes clips of one second:
            ``clip@1:ORG/NAME,clip_s=1``. ``,short_side=256`` shows SlowFast larger pictures than
            those of the published features.
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
    if kind == "slowfast" and options.keys() <= {"short_side"}:
        return _slowfast(name, model, clip_s, options, device)
    if kind == "clip+slowfast" and options.keys() <= {"slowfast", "short_side"}:
        from demr.encoders.clip import DEFAULT_MODEL, ClipEncoder
        from demr.encoders.combined import CombinedEncoder

        motion = _slowfast(name, options.pop("slowfast", None), clip_s, options, device)
        clip = ClipEncoder(model or DEFAULT_MODEL, clip_s=motion.clip_s, device=device)
        return CombinedEncoder(motion, clip)
    raise InputError(
        f"encoder {name!r}",
        expected=f"one of {_KNOWN}",
        got=repr(name),
        remedy="choose an encoder of this list",
    )


def _slowfast(
    name: str, source: str | None, clip_s: float | None, options: dict[str, str], device: str
) -> "SlowFastEncoder":
    from demr.encoders.slowfast import CLIP_S, DEFAULT_MODEL, SHORT_SIDE, SlowFastEncoder

    side = options.get("short_side", str(SHORT_SIDE))
    if not (side.isascii() and side.isdigit()):
        raise InputError(
            f"encoder {name!r}",
            expected=f"short_side=PIXELS, such as short_side={SHORT_SIDE}",
            got=f"short_side={side}",
            remedy=f"leave it out for {SHORT_SIDE} pixels",
        )
    length = CLIP_S if clip_s is None else clip_s
    return SlowFastEncoder(
        source or DEFAULT_MODEL, clip_s=length, short_side=int(side), device=device
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

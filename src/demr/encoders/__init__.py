"""Frozen encoders: from frames and words to features."""

import re

from demr.encoders.base import (
    CLIP_S,
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

_KNOWN = (
    "builtin@1, clip@1, xclip@1, clip+xclip@1 and vlm@1; behind all but the first :ORG/NAME or "
    ":/folder and ,clip_s=SECONDS if wished"
)
_SPEC = re.compile(r"(?P<name>[a-z+]+)(?:@1)?(?::(?P<model>[^,]+))?(?P<options>(?:,[^,=]+=[^,]*)*)")
# What may be set of each, besides the model.
_OPTIONS: dict[str, set[str]] = {
    "builtin": set(),
    "clip": {"clip_s"},
    "xclip": {"clip_s"},
    "clip+xclip": {"clip_s", "xclip"},
    "vlm": {"clip_s", "layer"},
}


def get_encoder(name: str, *, device: str = "auto") -> Encoder:
    """Encoder by its name, with or without the version.

    Args:
        name: ``builtin``; ``clip`` (OpenAI's ViT-B/32), ``clip:ORG/NAME`` or ``clip:/folder`` for
            another CLIP, SigLIP or SigLIP 2; likewise ``xclip`` (an X-CLIP) and ``vlm`` (a SmolVLM
            or Idefics 3, with ``,layer=8`` if wished). ``clip+xclip:CLIP,xclip=XCLIP`` is both side
            by side. ``@1`` after the name asks for that version, and ``,clip_s=1`` at the end
            makes clips of one second: ``clip@1:ORG/NAME,clip_s=1``.
        device: Where an encoder with weights runs.

    Raises:
        InputError: If there is no such encoder; the message names those there are. If it needs
            packages that are not installed.
        ModelError: If its weights cannot be found, fetched or used.
    """
    found = _SPEC.fullmatch(name)
    kind, model = (found["name"], found["model"]) if found else ("", None)
    options = _options(found["options"]) if found else {}
    if set(options) - _OPTIONS.get(kind, set()) or kind not in _OPTIONS:
        raise _unknown(name)
    length = _seconds(name, options.get("clip_s"))
    # Imported here, so that reading an identity does not load the video decoder.
    if kind == "builtin":
        from demr.encoders.builtin import BuiltinEncoder

        if model is not None:
            raise _unknown(name)
        return BuiltinEncoder()
    if kind == "vlm":
        from demr.encoders import vlm

        layer = _whole(name, options.get("layer"))
        source = model or vlm.DEFAULT_MODEL
        return vlm.VlmEncoder(source, layer=layer, clip_s=length, device=device)
    if kind == "clip":
        from demr.encoders import clip

        return clip.ClipEncoder(model or clip.DEFAULT_MODEL, clip_s=length, device=device)
    from demr.encoders import xclip

    source = (model if kind == "xclip" else options.get("xclip")) or xclip.DEFAULT_MODEL
    motion = xclip.XClipEncoder(source, clip_s=length, device=device)
    if kind == "xclip":
        return motion
    from demr.encoders import clip
    from demr.encoders.combined import CombinedEncoder

    frames = clip.ClipEncoder(model or clip.DEFAULT_MODEL, clip_s=length, device=device)
    return CombinedEncoder(motion, frames)


def _unknown(name: str) -> InputError:
    return InputError(
        f"encoder {name!r}",
        expected=f"one of {_KNOWN}",
        got=repr(name),
        remedy="choose an encoder of this list",
    )


def _options(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split(",")[1:])


def _seconds(name: str, text: str | None) -> float:
    try:
        return CLIP_S if text is None else float(text)
    except ValueError:
        raise InputError(
            f"encoder {name!r}",
            expected="clip_s=SECONDS, such as clip_s=1",
            got=f"clip_s={text}",
            remedy="leave it out for 2 seconds",
        ) from None


def _whole(name: str, text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        raise InputError(
            f"encoder {name!r}",
            expected="layer=NUMBER, such as layer=8",
            got=f"layer={text}",
            remedy="leave it out for the middle layer",
        ) from None

"""Frozen encoders: from frames and words to features.

It imports :mod:`demr.video`, :mod:`demr.machine` and :mod:`demr.errors`, and encoders themselves
only in :func:`get_encoder`, which makes one from its name. Begin with ``base.py``, which defines
what an encoder is; each encoder has a folder of its own.
"""

import re
from typing import TYPE_CHECKING, TypedDict

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

if TYPE_CHECKING:
    from demr.encoders.frames import FrameEncoder

__all__ = [
    "AlignedEncoder",
    "Encoder",
    "EncoderIdentity",
    "QueryFeatures",
    "VideoFeatures",
    "clip_count",
    "get_encoder",
    "needs_training",
]

_KNOWN = (
    "builtin@1, clip@1, slowfast@1, clip+slowfast@1, xclip@1, clip+xclip@1 and vlm@1; behind all "
    "but the first :ORG/NAME or :/path and ,clip_s=SECONDS if wished"
)
_SPEC = re.compile(r"(?P<name>[a-z+]+)(?:@1)?(?::(?P<model>[^,]+))?(?P<options>(?:,[^,=]+=[^,]*)*)")
# What may be set of each, besides the model.
_OPTIONS: dict[str, set[str]] = {
    "builtin": set(),
    "clip": {"clip_s", "dtype"},
    "slowfast": {"clip_s", "dtype", "short_side"},
    "clip+slowfast": {"clip_s", "dtype", "short_side", "slowfast"},
    "xclip": {"clip_s", "dtype"},
    "clip+xclip": {"clip_s", "dtype", "xclip"},
    "vlm": {"clip_s", "dtype", "layer"},
}
# Whose clips and queries do not lie in one space; builtin has its model beside it.
_UNALIGNED = ("slowfast", "clip+slowfast", "clip+xclip", "vlm")


def needs_training(name: str) -> bool:
    """Whether only a model trained on an encoder can search with it.

    Known without its weights, which may have to be fetched.

    Args:
        name: What :func:`get_encoder` takes.
    """
    match = _SPEC.fullmatch(name)
    return match is not None and match["name"] in _UNALIGNED


class _Common(TypedDict):
    """Arguments of all encoders with weights."""

    clip_s: float
    device: str
    exact: bool


def get_encoder(name: str, *, device: str = "auto") -> Encoder:
    """Encoder by its name, with or without the version.

    Args:
        name: ``builtin``; ``clip`` (OpenAI's ViT-B/32), ``clip:ORG/NAME`` or ``clip:/folder`` for
            another CLIP, SigLIP or SigLIP 2; ``slowfast`` (PyTorchVideo's R50 8x8) or
            ``slowfast:/file``; ``xclip``, as ``clip``, for an X-CLIP; ``vlm``, as ``clip``, for a
            SmolVLM or Idefics 3, with ``,layer=8`` if wished. ``clip+slowfast`` and ``clip+xclip``
            are two side by side, with ``:ORG/NAME`` for another CLIP and ``,slowfast=/file`` or
            ``,xclip=ORG/NAME`` for other weights of the first. ``@1`` after the name asks for that
            version, and ``,clip_s=1`` at the end makes clips of one second:
            ``clip@1:ORG/NAME,clip_s=1``. ``,dtype=float32`` forgoes half precision, and
            ``,short_side=256`` shows SlowFast larger pictures than those of the published features.
        device: Where an encoder with weights runs.

    Raises:
        InputError: If there is no such encoder; the message names those there are. If it needs
            packages that are not installed.
        ModelError: If its weights cannot be found, fetched or used.
    """
    match = _SPEC.fullmatch(name)
    if match is None or match["name"] not in _OPTIONS:
        raise _unknown(name)
    kind, model = match["name"], match["model"]
    options = _options(name, match["options"], _OPTIONS[kind])
    common = _Common(
        clip_s=_seconds(name, options.get("clip_s")),
        device=device,
        exact=_is_exact(name, options.get("dtype")),
    )
    # Imported here, so that reading an identity does not load the video decoder.
    if kind == "builtin":
        from demr.encoders.builtin.encoder import BuiltinEncoder

        if model is not None:
            raise _unknown(name)
        return BuiltinEncoder()
    if kind == "vlm":
        from demr.encoders.vlm.encoder import VlmEncoder

        return VlmEncoder(model, layer=_whole(name, options.get("layer")), **common)
    from demr.encoders.clip.clip import ClipEncoder

    if kind == "clip":
        return ClipEncoder(model, **common)
    first = kind.removeprefix("clip+")
    motion = _motion(name, first, model if first == kind else options.get(first), options, common)
    if first == kind:
        return motion
    from demr.encoders.combined import CombinedEncoder

    return CombinedEncoder(motion, ClipEncoder(model, **common))


def _motion(
    name: str, kind: str, source: str | None, options: dict[str, str], common: _Common
) -> "FrameEncoder":
    if kind == "xclip":
        from demr.encoders.clip.xclip import XClipEncoder

        return XClipEncoder(source, **common)
    from demr.encoders.slowfast.encoder import SHORT_SIDE, SlowFastEncoder

    side = options.get("short_side", str(SHORT_SIDE))
    if not (side.isascii() and side.isdigit()):
        expected = f"short_side=PIXELS, such as short_side={SHORT_SIDE}"
        raise _bad_option(name, expected, f"short_side={side}", f"{SHORT_SIDE} pixels")
    return SlowFastEncoder(source, short_side=int(side), **common)


def _unknown(name: str) -> InputError:
    return InputError(
        f"encoder {name!r}",
        expected=f"one of {_KNOWN}",
        got=repr(name),
        remedy="choose an encoder of this list",
    )


def _options(name: str, text: str, known: set[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in text.split(",")[1:]:
        key, value = part.split("=", 1)
        if key not in known or key in options:
            takes = " or ".join(f",{option}=" for option in sorted(known))
            raise InputError(
                f"encoder {name!r}",
                expected=f"{takes} behind it, once each" if takes else "nothing behind it",
                got=f",{part}" + (" as well" if key in options else ""),
                remedy="leave it out, or check the spelling",
            )
        options[key] = value
    return options


def _seconds(name: str, text: str | None) -> float:
    try:
        return CLIP_S if text is None else float(text)
    except ValueError:
        expected = "clip_s=SECONDS, such as clip_s=1"
        raise _bad_option(name, expected, f"clip_s={text}", "2 seconds") from None


def _whole(name: str, text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        expected = "layer=NUMBER, such as layer=8"
        raise _bad_option(name, expected, f"layer={text}", "the middle layer") from None


def _is_exact(name: str, text: str | None) -> bool:
    if text not in (None, "float32"):
        raise InputError(
            f"encoder {name!r}",
            expected="dtype=float32, or none for what the device does fast",
            got=f"dtype={text}",
            remedy="leave it out",
        )
    return text is not None


def _bad_option(name: str, expected: str, got: str, default: str) -> InputError:
    remedy = f"leave it out for {default}"
    return InputError(f"encoder {name!r}", expected=expected, got=got, remedy=remedy)

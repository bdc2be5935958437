"""A model of the hub in memory: settings at once, weights when they are first needed."""

import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demr.encoders.model_folder import Family, ModelFolder, find_model_folder
from demr.encoders.preprocessing import LONGEST
from demr.errors import FeatureError, InputError, ModelError
from demr.machine.devices import has_fast_bfloat16, resolve_device

# Of the settings of a model, far beyond any that was published.
_NUMBERS = {
    "num_hidden_layers": (1, 1000),
    "num_attention_heads": (1, 1000),
    "hidden_size": (1, 100_000),
    "intermediate_size": (1, 1_000_000),
    "projection_dim": (1, 100_000),
    "vocab_size": (1, 10_000_000),
    "max_position_embeddings": (4, 10_000_000),
    "image_size": (1, LONGEST),
    "patch_size": (1, LONGEST),
    "num_channels": (3, 3),
    "num_frames": (1, 256),
    "scale_factor": (1, 100),
}


@dataclass(frozen=True)
class Precision:
    """Where a frozen network computes, and in what.

    Attributes:
        device: Where it runs.
        dtype: What weights are held in, and queries computed in.
        is_fast: Whether products of pictures are computed in bfloat16, on a CPU made for that.
    """

    device: torch.device
    dtype: torch.dtype
    is_fast: bool

    @classmethod
    def choose(cls, device: str, half: torch.dtype, *, exact: bool) -> Self:
        """Choose what a device does fast.

        Args:
            device: ``auto``, ``cpu``, or an accelerator.
            half: What is computed in on CUDA.
            exact: Compute in float32 everywhere.

        Raises:
            ModelError: If there is no such device.
        """
        there = resolve_device(device)
        dtype = half if there.type == "cuda" and not exact else torch.float32
        return cls(there, dtype, not exact and has_fast_bfloat16(there))

    @property
    def name(self) -> str:
        """Type that pictures are computed in, as an identity states it, such as ``float32``."""
        return str(torch.bfloat16 if self.is_fast else self.dtype).removeprefix("torch.")

    def fast_products(self) -> AbstractContextManager[Any]:
        """Compute products in bfloat16 within, if that is fast; sums and norms stay in float32.

        Rows move by less than a hundred-thousandth in cosine, on weights of the published sizes.
        """
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.is_fast)

    def to_numpy(self, values: Tensor, encoder: str) -> NDArray[np.float32]:
        """Features as float32 on the CPU.

        Args:
            values: What a network of ``encoder`` computed.
            encoder: Name and source, for the error.

        Raises:
            FeatureError: If one is not finite, or all are zero.
        """
        result: NDArray[np.float32] = values.float().cpu().numpy()
        is_zero = result.size > 0 and not result.any()
        if is_zero or not np.isfinite(result).all():
            raise FeatureError(
                f"encoder {encoder}",
                expected="finite features that are not all zero",
                got=f"{'zeros' if is_zero else 'NaN or infinity'} in {self.name}",
                remedy="add ,dtype=float32 to the encoder's name, or check the weights",
            )
        return result


class LoadedModel:
    """A frozen model, found by path or id.

    Args:
        source: Id on the Hugging Face hub, or a folder.
        family: Which models the encoder takes.
        device: ``auto``, ``cpu``, or an accelerator.
        half: What is computed in on CUDA.
        exact: Compute in float32 everywhere.

    Attributes:
        folder: The model's files.
        precision: Where it computes, and in what.
        settings: Its configuration. Layers that are cut off it before the weights are needed are
            not loaded.

    Raises:
        InputError: If transformers is not installed.
        ModelError: If there is no such model or device, or it is not of the family.
    """

    def __init__(
        self, source: str, family: Family, device: str, half: torch.dtype, *, exact: bool = False
    ) -> None:
        self.precision = Precision.choose(device, half, exact=exact)
        self.folder = find_model_folder(source, family)
        self.settings = self.folder.load_settings()
        for part in ("", "text_config", "vision_config"):
            values = getattr(self.settings, part, None) if part else self.settings
            _check_numbers(values, part, self.folder)

    @cached_property
    def model(self) -> Any:
        """The network, in evaluation mode."""
        model = self.folder.load(self.settings)
        return model.to(device=self.precision.device, dtype=self.precision.dtype)

    def digest(self, *also: object) -> str:
        """Sixteen hexadecimal digits that change with the weights and with whatever is given."""
        return short_digest(self.folder.digest(), *also)

    def to_numpy(self, values: Tensor) -> NDArray[np.float32]:
        """Features as float32 on the CPU.

        Raises:
            FeatureError: If one is not finite.
        """
        folder = self.folder
        return self.precision.to_numpy(values, f"{folder.family.encoder} ({folder.source})")


def _check_numbers(settings: Any, part: str, folder: ModelFolder) -> None:
    """Refuse sizes that no model has, before a network is built of them.

    Raises:
        ModelError: If there is one.
    """
    prefix = f"{part}." if part else ""

    def refuse(expected: str, got: object) -> ModelError:
        return ModelError(
            str(folder.path / "config.json"),
            expected=prefix + expected,
            got=repr(got)[:60],
            remedy="copy the file again from where the model came from",
        )

    for name, (least, most) in _NUMBERS.items():
        value = getattr(settings, name, least)
        if type(value) is not int or not least <= value <= most:
            raise refuse(f"{name} of {least} to {most:,}", value)
    heads, width = getattr(settings, "num_attention_heads", 1), getattr(settings, "hidden_size", 0)
    if width % heads and not getattr(settings, "head_dim", None):
        raise refuse(f"num_attention_heads that divide hidden_size {width}", heads)


def short_digest(*parts: object) -> str:
    """First sixteen hexadecimal digits of the SHA-256 of what the parts print as.

    Stored features are refused where it differs, so what goes into it must go on printing alike:
    dataclasses with the settings of preprocessing keep their names and the order of their fields.
    """
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:16]


def check_clip_length(clip_s: float, encoder: str) -> float:
    """The length itself, in seconds.

    Raises:
        InputError: If it is not a positive number of bearable size.
    """
    if not 0.01 <= clip_s <= 3600:
        raise InputError(
            f"encoder {encoder}, clip_s={clip_s:g}",
            expected="a clip length of 0.01 to 3600 seconds",
            got=f"{clip_s:g}",
            remedy="leave it out for 2 seconds",
        )
    return clip_s

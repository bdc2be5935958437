"""A model of the hub in memory: settings at once, weights when they are first needed."""

import hashlib
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demr.encoders.model_folder import Family, find_model_folder
from demr.errors import FeatureError, InputError
from demr.machine.devices import has_fast_bfloat16, resolve_device


class LoadedModel:
    """A frozen model, found by path or id.

    Args:
        source: Id on the Hugging Face hub, or a folder.
        family: What the encoder takes.
        device: ``auto``, ``cpu``, or an accelerator.
        half: What is computed in on CUDA.
        exact: Compute in float32 everywhere.

    Attributes:
        folder: Where it lies.
        device: Where it runs.
        dtype: What weights are held in, and queries computed in.
        is_fast: Whether products of pictures are computed in bfloat16, on a CPU made for that.
        settings: Its configuration. What is cut off it before the weights are needed is not loaded.

    Raises:
        InputError: If transformers is not installed.
        ModelError: If there is no such model or device, or it is not of the family.
    """

    def __init__(
        self, source: str, family: Family, device: str, half: torch.dtype, *, exact: bool = False
    ) -> None:
        self.device = resolve_device(device)
        self.dtype = half if self.device.type == "cuda" and not exact else torch.float32
        self.is_fast = not exact and has_fast_bfloat16(self.device)
        self.folder = find_model_folder(source, family)
        self.settings = self.folder.load_settings()

    @cached_property
    def model(self) -> Any:
        """The network, in evaluation mode."""
        return self.folder.load(self.settings).to(device=self.device, dtype=self.dtype)

    @property
    def dtype_name(self) -> str:
        """What pictures are computed in, as it stands in an identity, such as ``float32``."""
        return dtype_name(self.dtype, self.is_fast)

    def on_pictures(self) -> AbstractContextManager[Any]:
        """Within it, products are computed in what is fast for pictures."""
        return fast_products(self.device, self.is_fast)

    def digest(self, *also: object) -> str:
        """Sixteen hexadecimal digits that change with the weights and with whatever is given."""
        text = " ".join([self.folder.digest(), *map(str, also)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_numpy(self, values: Tensor) -> NDArray[np.float32]:
        """Features as float32 on the CPU.

        Raises:
            FeatureError: If one is not finite.
        """
        result: NDArray[np.float32] = values.float().cpu().numpy()
        if not np.isfinite(result).all():
            raise FeatureError(
                f"encoder {self.folder.family.encoder} ({self.folder.source})",
                expected="finite features",
                got=f"NaN or infinity in {self.dtype_name}",
                remedy="add ,dtype=float32 to the encoder's name, or check the weights",
            )
        return result


def fast_products(device: torch.device, is_fast: bool) -> AbstractContextManager[Any]:
    """Compute products in bfloat16 within, if that is fast; sums and norms stay in float32.

    Rows move by less than a hundred-thousandth in cosine, on weights of the published sizes.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_fast)


def dtype_name(dtype: torch.dtype, is_fast: bool) -> str:
    """As it stands in an identity, such as ``float32``."""
    return str(torch.bfloat16 if is_fast else dtype).removeprefix("torch.")


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

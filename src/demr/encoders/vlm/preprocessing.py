"""Image preprocessing of SmolVLM and Idefics 3, as the model's own processor treats one picture.

The frame is brought to the length that the model's larger pictures have and then squeezed to one
square, whatever its aspect: the way of frames of a video, without the tiles that a still picture
is cut into besides (up to sixteen squares, each as dear as the first). Both steps are Pillow's, as
in the model's own processor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demr.encoders.preprocessing import (
    LONGEST,
    normalized,
    other_size,
    read_settings,
    three_channels,
    usable_scale,
)
from demr.errors import ModelError

_LANCZOS = 1


@dataclass(frozen=True)
class SquarePictures:
    """How a model wants its pictures.

    Attributes:
        longest: Rows or columns of the longer side after the first resizing; 0 leaves it out.
        side: Rows and columns of the square.
        filter: Pillow's number of the interpolation.
        scale: What bytes are multiplied with.
        mean: Subtracted from the three channels after scaling.
        std: Divides them then.
    """

    longest: int
    side: int
    filter: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a model's preprocessor file.

        Args:
            folder: Where ``preprocessor_config.json`` or ``processor_config.json`` lies.

        Raises:
            ModelError: If there is no such file, or it asks for something else than these steps.
        """
        try:
            return cls._parse(read_settings(folder))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ModelError(
                str(folder),
                expected="an image preprocessor that makes squares, rescales and normalises",
                got=f"{type(error).__name__}: {error}",
                remedy="use a model in its published form",
            ) from error

    @classmethod
    def _parse(cls, values: Mapping[str, Any]) -> Self:
        def on(step: str) -> bool:
            return bool(values.get(step, True))

        longest = int(values["size"]["longest_edge"]) if on("do_resize") else 0
        side = int(values["max_image_size"]["longest_edge"])
        if not (0 <= longest <= LONGEST and 1 <= side <= LONGEST):
            raise ValueError(f"sides of {longest} and {side} pixels")
        half = (0.5, 0.5, 0.5)
        plain = not on("do_normalize")
        std = (1.0, 1.0, 1.0) if plain else three_channels(values.get("image_std") or half)
        if min(std) <= 0:
            raise ValueError(f"image_std {std}")
        return cls(
            longest=longest,
            side=side,
            filter=_known_filter(values.get("resample", _LANCZOS)),
            scale=usable_scale(values.get("rescale_factor", 1 / 255)) if on("do_rescale") else 1.0,
            mean=(0.0, 0.0, 0.0) if plain else three_channels(values.get("image_mean") or half),
            std=std,
        )

    def check_size(self, vision: Any, folder: Path) -> None:
        """Refuse squares that the model cannot read.

        Args:
            vision: The configuration of its image tower, of transformers.
            folder: Where its files lie, for errors.

        Raises:
            ModelError: If they are of another size than the model's pictures.
        """
        side = int(vision.image_size)
        if self.side != side:
            raise other_size(folder, "image_size", (side, side), (self.side, self.side))

    def enlarged(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns after the first resizing: the shorter side is even.

        >>> SquarePictures(100, 50, 1, 1 / 255, (0, 0, 0), (1, 1, 1)).enlarged(33, 60)
        (56, 100)
        """
        if not self.longest:
            return height, width
        aspect = width / height
        if width >= height:
            short = int(self.longest / aspect)
            return max(short + short % 2, 1), self.longest
        short = int(self.longest * aspect)
        return self.longest, max(short + short % 2, 1)

    def squeeze(self, frame: NDArray[np.uint8]) -> Tensor:
        """Resize one frame to the square.

        Args:
            frame: uint8 RGB ``(H, W, 3)``.

        Returns:
            uint8 ``(3, side, side)``.
        """
        # Only with weights at hand is there a frame to prepare for them: Pillow is in their extra.
        picture = import_module("PIL.Image").fromarray(np.ascontiguousarray(frame))
        for rows, columns in (self.enlarged(*frame.shape[:2]), (self.side, self.side)):
            picture = picture.resize((columns, rows), resample=self.filter)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()

    def normalize(self, pictures: Tensor, dtype: torch.dtype) -> Tensor:
        """Rescale and normalise pictures where they are, ``(N, 3, H, W)`` uint8 -> ``dtype``."""
        return normalized(pictures, self.scale, self.mean, self.std).to(dtype)


def _known_filter(number: Any) -> int:
    if int(number) not in range(6):
        raise ValueError(f"resample {number}, known are Pillow's 0 to 5")
    return int(number)

"""Image preprocessing of the CLIP family and of X-CLIP, as the model's own processor does it.

Resize, crop, rescale and normalise are done with torch, without torchvision. Resizing works on
bytes: Pillow, with which these models were trained, rounds to bytes between the horizontal and
the vertical pass, and torch does the same for uint8. In floating point, single pixels come out up
to 24 levels away from Pillow's; on bytes at most 2, in under 1 % of them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from demr.errors import ModelError
from demr.machine.documents import read_json

# Numbers that preprocessor files use for Pillow's filters.
_FILTERS: Mapping[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
LONGEST = 4096
"""Pixels of a side, or patches of a picture, at most; no published model asks for as many."""
# Model types whose processor keeps the aspect and crops the middle, if its file leaves it open.
_CROPPED = ("clip", "xclip")
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its pictures.

    Attributes:
        shortest: Rows or columns of the shorter side after resizing; None where ``size`` is given.
        size: Rows and columns after resizing, whatever the aspect was.
        crop: Rows and columns of the centre that is kept; None keeps all.
        filter: Interpolation.
        scale: What bytes are multiplied with.
        mean: Subtracted from the three channels after scaling.
        std: Divides them then.
        patch: Side of a square patch where the model reads a sequence of patches at nearly the
            picture's own aspect (NaFlex); 0 where it reads a picture.
        max_patches: Longest such sequence.
    """

    shortest: int | None
    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    filter: Literal["bilinear", "bicubic"]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch: int = 0
    max_patches: int = 0

    @classmethod
    def read(cls, folder: Path, model_type: str) -> Self:
        """Read a model's preprocessor file; what it leaves open is the model type's default.

        Args:
            folder: Where ``preprocessor_config.json`` or ``processor_config.json`` lies.
            model_type: ``clip``, ``siglip``, ``siglip2`` or ``xclip``.

        Raises:
            ModelError: If there is no such file, or it asks for something else than these steps.
        """
        values = read_settings(folder)
        try:
            return cls._parse(values, model_type)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ModelError(
                str(folder),
                expected="an image preprocessor that resizes, crops, rescales and normalises",
                got=f"{type(error).__name__}: {error}",
                remedy="use a model in its published form",
            ) from error

    @classmethod
    def _parse(cls, values: Mapping[str, Any], model_type: str) -> Self:
        def on(step: str, default: bool = True) -> bool:
            return bool(values.get(step, default))

        defaults = (_CLIP_MEAN, _CLIP_STD) if model_type == "clip" else (_HALF, _HALF)
        mean = three_channels(values.get("image_mean") or defaults[0])
        std = three_channels(values.get("image_std") or defaults[1])
        if min(std) <= 0:
            raise ValueError(f"image_std {std}")
        if not on("do_normalize"):
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        resample = int(values.get("resample", 2 if model_type in ("siglip2", "xclip") else 3))
        if resample not in _FILTERS:
            raise ValueError(f"resample {resample}, known are 2 (bilinear) and 3 (bicubic)")
        made = cls(
            shortest=None,
            size=None,
            crop=None,
            filter=_FILTERS[resample],
            scale=usable_scale(values.get("rescale_factor", 1 / 255)) if on("do_rescale") else 1.0,
            mean=mean,
            std=std,
        )
        if model_type == "siglip2":
            patch, most = int(values.get("patch_size", 16)), int(values.get("max_num_patches", 256))
            if not (1 <= patch <= LONGEST and 1 <= most <= LONGEST):
                raise ValueError(f"patch_size {patch}, max_num_patches {most}")
            return replace(made, patch=patch, max_patches=most)
        if not on("do_resize"):
            raise ValueError("do_resize false")
        size = values.get("size", 224)
        if model_type in _CROPPED and isinstance(size, int):
            size = {"shortest_edge": size}
        shortest = size.get("shortest_edge") if isinstance(size, dict) else None
        crop = None
        if on("do_center_crop", model_type in _CROPPED):
            crop = _both_sides(values.get("crop_size", 224))
        if shortest is not None:
            if "longest_edge" in size or crop is None:
                raise ValueError("pictures that differ in size")
            return replace(made, shortest=_both_sides(int(shortest))[0], crop=crop)
        return replace(made, size=_both_sides(size), crop=crop)

    def check_size(self, vision: Any, folder: Path) -> None:
        """Refuse pictures that the model cannot read.

        Args:
            vision: The configuration of its image tower, of transformers.
            folder: Where its files lie, for errors.

        Raises:
            ModelError: If their size, or that of their patches, is another than the model's.
        """
        if self.patch:
            made, wanted, name = (self.patch,) * 2, (int(vision.patch_size),) * 2, "patch_size"
        else:
            side = int(vision.image_size)
            made, wanted, name = self.crop or self.size or (0, 0), (side, side), "image_size"
        if made != wanted:
            raise other_size(folder, name, wanted, made)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns that a frame of this size is resized to."""
        if self.patch:
            return patch_grid(height, width, self.patch, self.max_patches)
        if self.size is not None:
            return self.size
        short = self.shortest or 0
        if width <= height:
            return int(short * height / width), short
        return short, int(short * width / height)

    def crop_frame(self, frame: NDArray[np.uint8]) -> Tensor:
        """Resize and crop one frame.

        Args:
            frame: uint8 RGB ``(H, W, 3)``.

        Returns:
            uint8 ``(3, H', W')``.
        """
        height, width = frame.shape[:2]
        target = self.resized(height, width)
        picture = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)
        if target != (height, width):
            picture = F.interpolate(
                picture[None], size=target, mode=self.filter, antialias=True, align_corners=False
            )[0]
        return picture if self.crop is None else _center_crop(picture, self.crop)

    def normalize(self, pictures: Tensor, dtype: torch.dtype) -> Tensor:
        """Rescale and normalise pictures where they are, ``(N, 3, H', W')`` uint8 -> ``dtype``."""
        return normalized(pictures, self.scale, self.mean, self.std).to(dtype)


def other_size(
    folder: Path, name: str, wanted: tuple[int, int], made: tuple[int, int]
) -> ModelError:
    """The error of a preprocessor that is not its model's."""
    return ModelError(
        str(folder),
        expected=f"a preprocessor that makes {wanted[0]} x {wanted[1]} pixels, the model's {name} "
        "(config.json)",
        got=f"one that makes {made[0]} x {made[1]}",
        remedy="copy preprocessor_config.json again from where the model came from",
    )


def normalized(
    pictures: Tensor, scale: float, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Pictures ``(N, 3, H, W)`` times ``scale``, less the mean, over the deviation; float32."""
    shape = (1, 3, 1, 1)
    lift = torch.tensor(mean, device=pictures.device).view(shape)
    spread = torch.tensor(std, device=pictures.device).view(shape)
    return (pictures.float() * scale - lift) / spread


def patch_grid(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    """Largest size near the picture's aspect that is made of at most ``most`` whole patches.

    The scale is bisected as in the published processor, to the same tolerance: another search
    would end at another grid where two are equally good.

    >>> patch_grid(360, 640, 16, 256)
    (192, 336)
    """
    tolerance = 1e-5
    low, high = tolerance / 10, 100.0

    def sides(scale: float) -> tuple[int, int]:
        rows, columns = (
            max(patch, math.ceil(side * scale / patch) * patch) for side in (height, width)
        )
        return rows, columns

    while high - low >= tolerance:
        middle = (low + high) / 2
        rows, columns = sides(middle)
        if (rows / patch) * (columns / patch) <= most:
            low = middle
        else:
            high = middle
    return sides(low)


def to_patches(pictures: Tensor, patch: int) -> Tensor:
    """Cut pictures ``(N, 3, H, W)`` into rows of patches ``(N, H W / patch^2, 3 patch^2)``."""
    count, channels, height, width = pictures.shape
    rows, columns = height // patch, width // patch
    tiles = pictures.view(count, channels, rows, patch, columns, patch)
    return tiles.permute(0, 2, 4, 3, 5, 1).reshape(count, rows * columns, -1)


def _center_crop(picture: Tensor, crop: tuple[int, int]) -> Tensor:
    """The middle of a picture; where it is smaller, black around it."""
    height, width = picture.shape[-2:]
    rows, columns = crop
    if rows > height or columns > width:
        # The odd row or column of the border lies above and to the left, as in the processors.
        above, left = math.ceil(max(0, rows - height) / 2), math.ceil(max(0, columns - width) / 2)
        below, right = max(0, rows - height) - above, max(0, columns - width) - left
        picture = F.pad(picture, (left, right, above, below))
        top = 0 if rows > height else (height - rows) // 2
        first = 0 if columns > width else (width - columns) // 2
    else:
        top, first = (height - rows) // 2, (width - columns) // 2
    return picture[..., top : top + rows, first : first + columns]


def read_settings(folder: Path) -> Mapping[str, Any]:
    """The image processor's settings from either of the files that hold them."""
    for name, inside in (
        ("preprocessor_config.json", ""),
        ("processor_config.json", "image_processor"),
    ):
        path = folder / name
        if not path.exists():
            continue
        try:
            values = read_json(path)
            if inside:
                values = values.get("image_processor")
            if isinstance(values, dict):
                return values
            raise ValueError("no settings of an image processor")
        except (OSError, ValueError, AttributeError) as error:
            raise ModelError(
                str(path),
                expected="the settings of an image processor, in JSON",
                got=f"{type(error).__name__}: {error}",
                remedy="copy the file again from where the model came from",
            ) from error
    raise ModelError(
        str(folder),
        expected="preprocessor_config.json, which says how the model wants its pictures",
        got="a folder without it",
        remedy="copy the file from where the model came from",
    )


def _both_sides(size: Any) -> tuple[int, int]:
    rows, columns = (size, size) if isinstance(size, int) else (size["height"], size["width"])
    if not (1 <= int(rows) <= LONGEST and 1 <= int(columns) <= LONGEST):
        raise ValueError(f"size {size}")
    return int(rows), int(columns)


def three_channels(values: Any) -> tuple[float, ...]:
    """Numbers of the channels red, green and blue.

    Raises:
        ValueError: If they are not three, or not finite.
    """
    three = tuple(float(value) for value in values)
    if len(three) != 3 or not all(map(math.isfinite, three)):
        raise ValueError(f"{len(three)} channels: {three}")
    return three


def usable_scale(value: Any) -> float:
    """What bytes are multiplied with.

    Raises:
        ValueError: If no picture would be left.
    """
    scale = float(value)
    if not 0 < scale < math.inf:
        raise ValueError(f"rescale_factor {scale}")
    return scale

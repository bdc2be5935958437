"""Image and text towers of the CLIP family: CLIP, SigLIP and SigLIP 2 from Hugging Face.

A clip of a video is described by the image embedding of one frame, the one shown at the clip's
middle; the last, possibly shorter clip by the one at the middle of what there is of it. Queries
are the text tower's: :mod:`demr.encoders.text_tower`.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demr.encoders.base import clip_count
from demr.encoders.clip.towers import TwoTowerEncoder
from demr.encoders.model_folder import Family
from demr.encoders.preprocessing import to_patches
from demr.video import VideoInfo


class ClipEncoder(TwoTowerEncoder):
    """A frozen CLIP, SigLIP or SigLIP 2: one frame a clip."""

    family = Family(
        "clip",
        "a CLIP, SigLIP or SigLIP 2",
        {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"},
        "openai/clip-vit-base-patch32",
    )
    version = "1"
    batch = 32

    def times(self, video: VideoInfo) -> NDArray[np.float64]:
        """The middle of each clip, ``(L, 1)`` seconds."""
        return middle_times(video.duration_s, self.clip_s)[:, None]

    def embed(self, clips: Tensor) -> NDArray[np.float32]:
        """Image embeddings of prepared frames.

        Args:
            clips: uint8 RGB ``(N, 1, 3, H, W)``, of the size that the model reads.

        Returns:
            ``(N, dims)``, not normalised.

        Raises:
            ModelError: If the weights are damaged.
            FeatureError: If an embedding is not finite.
        """
        precision, patch = self._loaded.precision, self.preprocessing.patch
        pictures = clips[:, 0].to(precision.device)
        pixels = self.preprocessing.normalize(pictures, precision.dtype)
        inputs = _patch_inputs(pixels, patch) if patch else {"pixel_values": pixels}
        with torch.inference_mode(), precision.fast_products():
            output = self._loaded.model.get_image_features(**inputs)
        # A tensor up to version 4 of transformers.
        return self._loaded.to_numpy(output if isinstance(output, Tensor) else output.pooler_output)


def _patch_inputs(pixels: Tensor, patch: int) -> dict[str, Tensor]:
    """Pictures ``(N, 3, H, W)`` as SigLIP 2 reads them at their own aspect (NaFlex)."""
    patches = to_patches(pixels, patch)
    count, length, _ = patches.shape
    rows = pixels.shape[-2] // patch
    # Nothing is padding: frames of a video are of one size.
    mask = torch.ones(count, length, dtype=torch.int64, device=pixels.device)
    shape = torch.tensor([[rows, length // rows]] * count, device=pixels.device)
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": shape}


def middle_times(duration_s: float, clip_s: float) -> NDArray[np.float64]:
    """Middle of each clip in seconds; the last clip ends with the video.

    >>> middle_times(5.0, 2.0).tolist()
    [1.0, 3.0, 4.5]
    """
    start = np.arange(clip_count(duration_s, clip_s)) * clip_s
    middle: NDArray[np.float64] = (start + np.minimum(start + clip_s, duration_s)) / 2
    return middle

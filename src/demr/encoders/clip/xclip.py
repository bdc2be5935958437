"""X-CLIP from Hugging Face: a CLIP whose frames exchange messages, as a stream that sees motion.

Ni et al. 2022, arXiv:2208.02816. A clip is described by the embedding of eight frames (as many as
the model was trained with), each from the middle of an eighth of the clip: the sampling of the
published evaluation, which takes the middle frames of equal parts of a video.

The model's own score of a video and a sentence changes the sentence's embedding by what the video
shows, times a learned factor that starts at 0.1. Here a query is embedded once, without that
change: an embedding of a query cannot depend on each clip that it is compared with.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demr.encoders.base import clip_count
from demr.encoders.clip.towers import TwoTowerEncoder
from demr.encoders.model_folder import Family
from demr.video import VideoInfo


class XClipEncoder(TwoTowerEncoder):
    """A frozen X-CLIP: some frames of each clip, embedded together."""

    family = Family("xclip", "an X-CLIP", {"xclip": "XCLIPModel"}, "microsoft/xclip-base-patch32")
    version = "1"
    # Eight frames each: as many pictures at once as the encoder clip reads.
    batch = 4

    @property
    def frames(self) -> int:
        """Number of frames of a clip, as the model was trained."""
        return int(self._loaded.settings.vision_config.num_frames)

    def _digest(self) -> str:
        return self._loaded.digest(self.preprocessing, self.frames)

    def times(self, video: VideoInfo) -> NDArray[np.float64]:
        """The middles of equal parts of each clip, ``(L, K)`` seconds."""
        return part_times(video.duration_s, self.clip_s, self.frames)

    def embed(self, clips: Tensor) -> NDArray[np.float32]:
        """Embeddings of prepared clips, without the model's prompts for queries.

        Args:
            clips: uint8 RGB ``(N, K, 3, H, W)``, of the size that the model reads.

        Returns:
            ``(N, dims)``, not normalised.

        Raises:
            ModelError: If the weights are damaged.
            FeatureError: If an embedding is not finite.
        """
        precision = self._loaded.precision
        pictures = clips.flatten(0, 1).to(precision.device)
        pixels = self.preprocessing.normalize(pictures, precision.dtype)
        pixels = pixels.unflatten(0, clips.shape[:2])
        with torch.inference_mode(), precision.fast_products():
            output = self._loaded.model.get_video_features(pixel_values=pixels)
        # A tensor up to version 4 of transformers.
        return self._loaded.to_numpy(output if isinstance(output, Tensor) else output.pooler_output)


def part_times(duration_s: float, clip_s: float, parts: int) -> NDArray[np.float64]:
    """Middles of equal parts of each clip in seconds, ``(L, parts)``; the last ends with the video.

    >>> part_times(3.0, 2.0, 2).tolist()
    [[0.5, 1.5], [2.25, 2.75]]
    """
    start = np.arange(clip_count(duration_s, clip_s)) * clip_s
    length = np.minimum(clip_s, duration_s - start)
    times: NDArray[np.float64] = start[:, None] + length[:, None] * (np.arange(parts) + 0.5) / parts
    return times

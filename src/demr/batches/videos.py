"""Videos of a feature pack as the network reads them, prepared when a batch asks for them."""

from collections.abc import Callable, Iterable, MutableMapping
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from demr.batches.stretches import Stretch, cut_features
from demr.encoders.base import VideoFeatures, clip_count
from demr.features.pack import FeaturePack
from demr.features.prepare import prepare_video

# Videos that take no more than this together stay in memory once they are prepared. Of more than
# that a batch prepares its own, a third of a millisecond each for 75 clips of 2,816 numbers: those
# of QVHighlights would take 8 GiB, and a shuffled epoch finds little in a smaller cache.
KEEP_BYTES = 1 << 31

VideoChange = Callable[[VideoFeatures], VideoFeatures]
_Key = tuple[str, Stretch | None]


class PreparedVideos:
    """Videos, or stretches of them, as input tensors.

    Whoever asks for one that is in use gets the same tensor, so that items of a batch share it.

    Args:
        pack: Holds the raw features.
        vids: Names of the videos.
        change: Applied to the raw features of a whole video; must give the same whenever it is
            asked about the same video. None leaves them as they are.
        keep_bytes: Videos that take more than this together are forgotten when nobody uses them.

    Attributes:
        clips: Number of clips of each video.

    Raises:
        FeatureError: If the pack lacks a video.
    """

    def __init__(
        self,
        pack: FeaturePack,
        vids: Iterable[str],
        change: VideoChange | None = None,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        self._pack = pack
        self._change = change
        self.clips = {vid: _clips(pack[vid]) for vid in vids}
        size = sum(self.clips.values()) * pack.identity.video_dim * torch.float32.itemsize
        self._prepared: MutableMapping[_Key, Tensor] = (
            {} if size <= keep_bytes else WeakValueDictionary()
        )

    def raw(self, vid: str, stretch: Stretch | None = None) -> VideoFeatures:
        """Features of a video or of a stretch of it, before any normalisation.

        Raises:
            FeatureError: If its shard is damaged.
        """
        video = self._pack[vid]
        if self._change is not None:
            video = self._change(video)
        return video if stretch is None else cut_features(video, stretch, self.clips[vid])

    def prepared(self, vid: str, stretch: Stretch | None = None) -> Tensor:
        """The network's input, ``(L, Dv + 2)``; see :func:`~demr.features.prepare.prepare_video`.

        Raises:
            FeatureError: If its features are damaged.
        """
        video = self._prepared.get((vid, stretch))
        if video is None:
            video = prepare_video(self.raw(vid, stretch), self._pack.identity)[0]
            self._prepared[vid, stretch] = video
        return video


def _clips(video: VideoFeatures) -> int:
    return min(len(video.features), clip_count(video.duration_s, video.clip_s))

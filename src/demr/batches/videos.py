"""Videos of a feature pack as the network reads them, prepared when a batch asks for them."""

from collections import OrderedDict
from collections.abc import Callable
from weakref import WeakValueDictionary

from torch import Tensor

from demr.batches.stretches import Stretch, cut_features
from demr.encoders.base import VideoFeatures, clip_count
from demr.features.pack import FeaturePack
from demr.features.prepare import prepare_video

# A pack of QVHighlights' size takes 7.3 GB once it is float32. What fits here is prepared once; of
# more than that a batch prepares its own videos, half a millisecond each for 75 clips of 2,816.
CACHE_BYTES = 1 << 30

VideoChange = Callable[[VideoFeatures], VideoFeatures]


class PreparedVideos:
    """Videos, or stretches of them, as input tensors.

    Whoever asks for one that is in use gets the same tensor, so that items of a batch share it.
    Those used last are kept beyond that.

    Args:
        pack: Holds the raw features.
        change: Applied to the raw features of a whole video; must give the same whenever it is
            asked about the same video. None leaves them as they are.
        cache_bytes: Most bytes of tensors to keep that nobody uses.
    """

    def __init__(
        self,
        pack: FeaturePack,
        change: VideoChange | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._pack = pack
        self._change = change
        self._cache_bytes = cache_bytes
        self._in_use: WeakValueDictionary[tuple[str, Stretch | None], Tensor] = (
            WeakValueDictionary()
        )
        self._recent: OrderedDict[tuple[str, Stretch | None], Tensor] = OrderedDict()
        self._recent_bytes = 0

    def clips(self, vid: str) -> int:
        """Clips of a video, without reading its features."""
        video = self._pack[vid]
        return min(len(video.features), clip_count(video.duration_s, video.clip_s))

    def raw(self, vid: str, stretch: Stretch | None = None) -> VideoFeatures:
        """Features of a video or of a stretch of it, before any normalisation.

        Raises:
            FeatureError: If the pack lacks the video, or its shard is damaged.
        """
        video = self._pack[vid]
        if self._change is not None:
            video = self._change(video)
        return video if stretch is None else cut_features(video, stretch, self.clips(vid))

    def prepared(self, vid: str, stretch: Stretch | None = None) -> Tensor:
        """The network's input, ``(L, Dv + 2)``; see :func:`~demr.features.prepare.prepare_video`.

        Raises:
            FeatureError: If the pack lacks the video, or its features are damaged.
        """
        key = vid, stretch
        video = self._in_use.get(key)
        if video is None:
            video = prepare_video(self.raw(vid, stretch), self._pack.identity)[0]
            self._in_use[key] = video
        self._keep(key, video)
        return video

    def _keep(self, key: tuple[str, Stretch | None], video: Tensor) -> None:
        if key not in self._recent:
            self._recent_bytes += video.nbytes
        self._recent[key] = video
        self._recent.move_to_end(key)
        while self._recent_bytes > self._cache_bytes:
            self._recent_bytes -= self._recent.popitem(last=False)[1].nbytes

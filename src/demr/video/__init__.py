"""A video file -> frames at exact times, the right way up, and frames -> a file.

It imports :mod:`demr.errors`, PyAV and NumPy. Begin with :class:`Video` in ``reading.py``;
``source.py`` decodes and deals with what containers get wrong, ``writing.py`` writes and cuts mp4.
"""

from demr.video.damage import DamagedVideoWarning
from demr.video.orientation import Pixels
from demr.video.reading import (
    Frame,
    Video,
    VideoInfo,
    iter_frames,
    probe_video,
    watch_decoding,
)
from demr.video.watchdog import decoder_watchdog
from demr.video.writing import VideoWriter, cut_clip

__all__ = [
    "DamagedVideoWarning",
    "Frame",
    "Pixels",
    "Video",
    "VideoInfo",
    "VideoWriter",
    "cut_clip",
    "decoder_watchdog",
    "iter_frames",
    "probe_video",
    "watch_decoding",
]

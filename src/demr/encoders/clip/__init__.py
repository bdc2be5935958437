"""CLIP, SigLIP and X-CLIP from Hugging Face folders.

It imports the rest of :mod:`demr.encoders` and :mod:`demr.video`. Begin with ``towers.py``, which
has what they share; ``clip.py`` reads a frame of each clip, ``xclip.py`` several.
"""

from demr.encoders.clip.clip import ClipEncoder, middle_times
from demr.encoders.clip.xclip import XClipEncoder, part_times

__all__ = ["ClipEncoder", "XClipEncoder", "middle_times", "part_times"]

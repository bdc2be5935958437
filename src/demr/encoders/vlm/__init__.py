"""Hidden states of a multimodal language model from Hugging Face.

It imports the rest of :mod:`demr.encoders` and :mod:`demr.video`. Begin with ``encoder.py``;
``preprocessing.py`` makes squares of frames.
"""

from demr.encoders.vlm.encoder import VlmEncoder

__all__ = ["VlmEncoder"]

"""Hidden states of a multimodal language model from Hugging Face.

It imports the rest of :mod:`demr.encoders` and :mod:`demr.video`. Begin with ``encoder.py``.
"""

"""CLIP, SigLIP and X-CLIP from Hugging Face folders.

It imports the rest of :mod:`demr.encoders` and :mod:`demr.video`. Begin with ``clip.py``.
"""

"""The encoder without weights: colour, shape and motion statistics, hashed word vectors.

It imports the rest of :mod:`demr.encoders` and :mod:`demr.video`. Begin with ``encoder.py``.
"""

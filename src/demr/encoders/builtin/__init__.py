"""The encoder without weights: colour, shape and motion statistics, hashed word vectors.

It imports the rest of :mod:`demr.encoders` and :mod:`demr.video`. Begin with ``encoder.py``;
frames go through ``objects.py`` (regions), ``tracking.py`` and ``track_codes.py``.
"""

from demr.encoders.builtin.encoder import BuiltinEncoder

__all__ = ["BuiltinEncoder"]

"""SlowFast R50 8x8 with published weights.

It imports the rest of :mod:`demr.encoders` and :mod:`demr.video`. Begin with ``encoder.py``;
``network.py`` is the network, ``weights.py`` reads the files of its three publishers.
"""

from demr.encoders.slowfast.encoder import SlowFastEncoder, window_times

__all__ = ["SlowFastEncoder", "window_times"]

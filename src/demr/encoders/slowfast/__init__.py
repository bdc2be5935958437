"""SlowFast R50 8x8 with published weights.

It imports the rest of :mod:`demr.encoders` and :mod:`demr.video`. Begin with ``encoder.py``;
``weights.py`` reads the three namings of the weights.
"""

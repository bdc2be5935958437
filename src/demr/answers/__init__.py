"""What the network says -> proposals -> ranked moments, calibrated intervals and presence.

It imports :mod:`demr.network` and what lies below. Begin with ``proposals.py``, then
``answering.py``.
"""

"""Encoder features as they are stored and as the network reads them.

It imports :mod:`demr.encoders` and what lies below. Begin with ``prepare.py``, which training and
search share; ``pack.py`` stores, ``imports.py`` reads what others published.
"""

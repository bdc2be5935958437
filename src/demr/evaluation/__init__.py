"""Predictions held against annotations: every number that a table shows.

It imports :mod:`demr.answers` and :mod:`demr.metrics`. Begin with ``measure.py``.
"""

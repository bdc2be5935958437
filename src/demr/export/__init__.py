"""A trained model as one file that runs without this package.

It imports :mod:`demr.search` and what lies below. Begin with ``exporting.py``.
"""

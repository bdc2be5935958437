"""The network of the paper: fusion, heads, losses, query reconstruction.

It imports :mod:`demr.batches` and :mod:`demr.evidential`. Begin with ``model.py``.
"""

"""Annotations and features -> items -> padded batches with masks and targets.

It imports :mod:`demr.features`, :mod:`demr.encoders`, :mod:`demr.annotations` and what lies below.
Begin with ``batch.py``, then ``dataset.py``.
"""

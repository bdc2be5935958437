"""Folders of videos -> a feature pack, resumable, by processes or a cluster.

It imports :mod:`demr.features`, :mod:`demr.encoders` and what lies below. Begin with ``job.py``.
"""

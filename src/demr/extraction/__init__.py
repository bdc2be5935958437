"""Folders of videos -> a feature pack, resumable, by processes or a cluster.

It imports :mod:`demr.features`, :mod:`demr.encoders` and what lies below. Begin with ``job.py``;
``parts.py`` is what happens to one video, ``workers.py`` and ``cluster.py`` to many at once.
"""

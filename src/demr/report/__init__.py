"""Results for people and for other programs: tables, files, pages, figures.

It imports :mod:`demr.search` and what lies below. Begin with ``formats.py``.
"""

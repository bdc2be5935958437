"""Two-stage training on Lightning, whole runs, and ablations.

It imports :mod:`demr.runs` and what lies below. Begin with ``run.py``.
"""

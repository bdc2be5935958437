"""The field's retrieval metrics and the measures of uncertainty, on NumPy alone.

It imports :mod:`demr.annotations` for the overlap of windows, and no torch. Begin with
``retrieval.py``; ``uncertainty.py`` holds scores of distributions and probabilities.
"""

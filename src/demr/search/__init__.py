"""A video and a sentence in, moments with intervals and a verdict out.

It imports :mod:`demr.answers`, :mod:`demr.encoders` and what lies below. Begin with
``retriever.py``; ``result.py`` is what users get.
"""

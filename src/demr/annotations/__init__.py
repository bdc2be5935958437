"""Queries about videos and the windows they describe, read from the field's files and mended.

It imports only :mod:`demr.machine` and :mod:`demr.errors`. Begin with :class:`Annotation` in
``annotations.py``; ``formats.py`` knows the foreign forms, ``windows.py`` the overlap.
"""

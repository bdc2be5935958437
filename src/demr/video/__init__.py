"""A video file -> frames at exact times, the right way up, and frames -> a file.

It imports only :mod:`demr.machine` and :mod:`demr.errors`. Begin with :class:`Video` in
``reading.py``; ``source.py`` deals with what containers get wrong.
"""

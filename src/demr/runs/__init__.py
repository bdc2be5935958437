"""A run folder: its config, its data, its model, and what is fitted and measured afterwards.

It imports everything below, and no Lightning. Begin with ``config.py`` and ``data.py``.
"""

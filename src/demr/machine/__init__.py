"""What the program owes to the machine it runs on: files, devices, processes, the hub, terminals.

It knows nothing of videos and imports only :mod:`demr.errors`. Begin with ``files.py``: everything
that is written goes through ``atomic_path``.
"""

"""The command line; it parses, calls and prints.

It may import every room, each where a command needs it. Begin with ``main.py``.
"""

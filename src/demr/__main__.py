"""``python -m demr``: the command line without its script."""

from demr.cli.main import main

main()

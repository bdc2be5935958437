"""Names of a package that are imported when they are first used."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module


def import_on_use(package: str, names: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """Make the ``__getattr__`` of a package whose modules are too heavy to import together.

    Importing one module of a package always runs the package's ``__init__``; without this, a room
    that exports its names would load torch or Lightning for whoever needs a small part of it.

    Args:
        package: ``__name__`` of the package.
        names: Module of the package -> names that it exports.
    """
    home = {name: module for module, exported in names.items() for name in exported}

    def get(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get

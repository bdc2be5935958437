"""What commands show and ask for while they work."""

from importlib.util import find_spec
from typing import Any

from demr.errors import InputError


def status(text: str) -> Any:
    """A line that says what is being done, while it is; for people, on stderr."""
    from rich.console import Console

    return Console(stderr=True).status(text)


def need_extra(extra: str, *modules: str) -> None:
    """Make sure that optional packages are here.

    Raises:
        InputError: If one is not.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise InputError(
            f"this command without {', '.join(missing)}",
            expected=f"the packages of the extra '{extra}'",
            got="an installation without them",
            remedy=f"pip install 'demr[{extra}]' (from a clone: make install)",
        )

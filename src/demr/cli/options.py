"""Options that several commands share, and how their values are checked."""

from typing import Annotated

import typer

from demr.errors import InputError

Device = Annotated[str, typer.Option(help="auto, cpu, or an accelerator.")]


def check_at_least(option: str, value: int, least: int) -> None:
    """Reject a number that is too small.

    Raises:
        InputError: If it is.
    """
    if value < least:
        raise InputError(option, expected=f"at least {least}", got=str(value), remedy="raise it")

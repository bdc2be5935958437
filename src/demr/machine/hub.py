"""The Hugging Face hub, with time-outs."""

from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

# Without an answer for so long the hub counts as out of reach.
_TIMEOUT_S = 20.0


def fetch(identifier: str, patterns: Sequence[str], *, or_cached: bool = False) -> Path:
    """Folder of a model's files.

    Args:
        identifier: ``owner/name``.
        patterns: Which files are wanted.
        or_cached: Whether a copy on this machine, whole or not, will do if the hub is out of reach.

    Raises:
        ImportError: If the hub's client is not installed.
        Exception: Whatever the client raises where there is no such model, or no hub.
    """
    client = import_module("huggingface_hub")
    files: dict[str, Any] = {"allow_patterns": list(patterns)}
    try:
        ask(identifier)
    except Exception:
        if or_cached:
            with suppress(Exception):
                return Path(client.snapshot_download(identifier, local_files_only=True, **files))
        raise
    return Path(client.snapshot_download(identifier, **files))


def ask(identifier: str) -> None:
    """Ask the hub whether there is such a model, before its files are asked for.

    The client's download has no time-out: it waits for ever for a hub, or a proxy before it, that
    accepts the connection and does not answer.
    """
    import_module("huggingface_hub").HfApi().model_info(identifier, timeout=_TIMEOUT_S)

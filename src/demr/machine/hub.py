"""The Hugging Face hub, asked with patience that ends."""

from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

_PATIENCE_S = 20.0


def fetch(identifier: str, patterns: Sequence[str], *, else_here: bool = False) -> Path:
    """Folder of a model's files.

    Args:
        identifier: ``owner/name``.
        patterns: Which files are wanted.
        else_here: Whether a copy that is here serves where the hub cannot be reached, whole or not.

    Raises:
        ImportError: If the hub's client is not installed.
        Exception: What the client makes of a model that is not there, or a hub that is not.
    """
    client = import_module("huggingface_hub")
    wanted: dict[str, Any] = {"allow_patterns": list(patterns)}
    try:
        ask(identifier)
    except Exception:
        if else_here:
            with suppress(Exception):
                return Path(client.snapshot_download(identifier, local_files_only=True, **wanted))
        raise
    return Path(client.snapshot_download(identifier, **wanted))


def ask(identifier: str) -> None:
    """Ask whether there is such a model.

    Asked for its files at once, the client waits for ever for a hub, or a proxy before it, that
    takes the call and says nothing.
    """
    import_module("huggingface_hub").HfApi().model_info(identifier, timeout=_PATIENCE_S)

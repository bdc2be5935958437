"""The machine below: files, devices, processes, terminals and the Hugging Face hub.

It knows nothing of videos, imports only :mod:`demr.errors`, and loads torch, rich or the hub's
client when a function needs them. Begin with :func:`atomic_path` in ``files.py``, through which
everything is written, and :func:`read_bytes` in ``reading.py``, through which files of others are
read.
"""

from demr.machine.devices import has_fast_bfloat16, resolve_device
from demr.machine.files import atomic_path, locked, sync, temporary_folder, write_json
from demr.machine.hub import ask, fetch
from demr.machine.memory import memory_left, readable_size
from demr.machine.processes import (
    end_with_parent,
    ignored_interrupts,
    late_interrupts,
    tied_process,
)
from demr.machine.reading import (
    check_regular,
    check_regular_tree,
    open_regular,
    read_bytes,
    read_records,
    read_text,
)
from demr.machine.terminal import clock, console, counted, need_extra, plain, printable, status

__all__ = [
    "ask",
    "atomic_path",
    "check_regular",
    "check_regular_tree",
    "clock",
    "console",
    "counted",
    "end_with_parent",
    "fetch",
    "has_fast_bfloat16",
    "ignored_interrupts",
    "late_interrupts",
    "locked",
    "memory_left",
    "need_extra",
    "open_regular",
    "plain",
    "printable",
    "read_bytes",
    "read_records",
    "read_text",
    "readable_size",
    "resolve_device",
    "status",
    "sync",
    "temporary_folder",
    "tied_process",
    "write_json",
]

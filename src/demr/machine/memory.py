"""How much memory is left: of the machine, of the group of processes, of this process's limit."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

# For each version of Linux's control groups: limit, use, and what of the use can be given back.
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def memory_left() -> int:
    """Bytes that this process can still take, as far as the machine tells."""
    return max(0, min(_machine(), _process(), *_groups(), (1 << 63) - 1))


def readable_size(count: int) -> str:
    """Bytes in the unit that people read.

    >>> readable_size(1_300_000), readable_size(41_000_000_000), readable_size(7 * 10**12)
    ('1.3 MB', '41 GB', '7,000 GB')
    """
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            scaled = count / size
            return f"{scaled:.2g} {unit}" if scaled < 10 else f"{scaled:,.0f} {unit}"
    return f"{count} bytes"


def _machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass  # no Linux, or one that tells nothing: all that is built in counts
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _process() -> int:
    """What ``ulimit -v`` leaves."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return (1 << 63) - 1
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        pages = 0
    return limit - pages * os.sysconf("SC_PAGE_SIZE")


def _groups() -> Iterator[int]:
    """What is left to each control group that this process is in, such as a container's."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup/memory" if controllers else "/sys/fs/cgroup")
        names = _VERSION_1 if controllers else _VERSION_2
        # Limits of the groups above hold, too. Within a container the path may be the host's.
        here = root / path.lstrip("/")
        for folder in (here, *here.parents):
            if folder.is_relative_to(root) and (left := _group(folder, *names)) is not None:
                yield left


def _group(folder: Path, limit: str, use: str, cache: str) -> int | None:
    try:
        # "max" is no number: no limit.
        most = int((folder / limit).read_text(encoding="ascii"))
        used = int((folder / use).read_text(encoding="ascii"))
        stat = dict(
            line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines()
        )
        return most - used + int(stat.get(cache, 0))
    except (OSError, ValueError):
        return None

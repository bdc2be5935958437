import gzip
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from demr.machine.memory import memory_left, readable_size
from demr.machine.reading import (
    check_regular,
    check_regular_tree,
    gunzip,
    open_regular,
    read_bytes,
    read_records,
    read_text,
)


@pytest.fixture
def odd_things(tmp_path: Path) -> dict[str, Path]:
    """What can lie where a file is expected, by the words that name it."""
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return {
        "a pipe": tmp_path / "pipe",
        "a socket": tmp_path / "socket",
        "a device": tmp_path / "link",
        "directory": tmp_path,
        "No such file": tmp_path / "none",
        "symbolic links": tmp_path / "loop",
        "no file can have": Path("a\0b"),
    }


@pytest.mark.parametrize("read", [check_regular, open_regular, read_bytes, read_text, read_records])
def test_only_regular_files_are_read(read: object, odd_things: dict[str, Path]) -> None:
    assert callable(read)
    for words, path in odd_things.items():
        with pytest.raises(OSError, match=words):
            read(path)
    for device in ("/dev/zero", "/dev/urandom", "/dev/full"):
        with pytest.raises(OSError, match="a device"):
            read(Path(device))


def test_folders_with_odd_things(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    check_regular_tree(tmp_path)
    os.mkfifo(tmp_path / "vocab.json")
    with pytest.raises(OSError, match=r"vocab\.json is a pipe"):
        check_regular_tree(tmp_path)


def test_sizes_are_bounded_before_reading(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"12345")
    assert read_bytes(file, 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes or more, where 4 bytes can be read"):
        read_bytes(file, 4)
    with file.open("r+b") as stream:
        stream.truncate(1 << 40)  # nothing but a hole
    with pytest.raises(OSError, match="or more, where"):
        read_text(file)
    with pytest.raises(OSError, match="or more, where"):
        read_records(file)
    # Such files have no size, and this one never ends.
    assert read_bytes(Path("/proc/self/status")) == b""


def test_gzip_in_pieces(tmp_path: Path) -> None:
    text = bytes(range(256)) * 9000
    parts = gzip.compress(text) + gzip.compress(b"more")
    assert gunzip(parts, 1 << 30) == text + b"more"
    file = tmp_path / "a.gz"
    file.write_bytes(parts)
    assert read_records(file) == text + b"more"
    with pytest.raises(EOFError):
        gunzip(parts[:-3], 1 << 30)
    with pytest.raises(EOFError):  # what a cut file ends with is not its size
        gunzip(parts[:20] + b"\xff" * 4, 1 << 20)
    bomb = gzip.compress(bytes(1 << 26)) + gzip.compress(b"")  # the last part tells its own size
    with pytest.raises(OSError, match="where 4 MB can be read"):
        gunzip(bomb, 4_000_000)


@pytest.mark.parametrize("path", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_what_the_shell_hands_down(path: str) -> None:
    script = (
        "import sys; from pathlib import Path; from demr.machine.reading import read_bytes\n"
        "try: print(read_bytes(Path(sys.argv[1]), 9))\n"
        "except OSError as error: print(error)"
    )

    def run(given: bytes | None, stdin: int | None = None) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, path],
            input=given, stdin=stdin, capture_output=True, timeout=30, check=True,
        )  # fmt: skip
        return done.stdout.decode().strip()

    assert run(b"hello") == "b'hello'"
    assert run(b"0123456789") == "10 bytes or more, where 9 bytes can be read"
    assert run(None, subprocess.DEVNULL) == "b''"
    zero = os.open("/dev/zero", os.O_RDONLY)
    try:
        assert run(None, zero) == "a device, no regular file"
    finally:
        os.close(zero)


def test_memory_left() -> None:
    assert 1 << 24 < memory_left() < 1 << 50
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (1 << 26), hard))
    try:
        assert memory_left() <= (1 << 26) + (1 << 22)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_readable_size() -> None:
    assert [readable_size(n) for n in (0, 999, 1000, 9_940_000, 99_600_000, 1_400_000_000)] == [
        "0 bytes",
        "999 bytes",
        "1 kB",
        "9.9 MB",
        "100 MB",
        "1.4 GB",
    ]

"""CONTRIBUTING's map names every file of the package, and no file that is not there."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SOURCE = ROOT / "src" / "demr"


def mapped() -> Iterator[tuple[str, str]]:
    """Path below src/demr and what the map says of it; rooms end with a slash."""
    (block,) = re.findall(r"```text\nsrc/demr/\n(.*?)```", CONTRIBUTING, re.DOTALL)
    rooms: list[str] = []
    for line in block.splitlines():
        indent, name, text = re.fullmatch(r"( *)(\S+)(?: +(.*))?", line).groups()  # type: ignore[union-attr]
        del rooms[len(indent) // 2 - 1 :]
        yield "".join([*rooms, name]), text or ""
        if name.endswith("/"):
            rooms.append(name)


def test_the_map_names_every_file_once_and_no_other() -> None:
    names = [name for name, _ in mapped()]
    assert len(names) == len(set(names))
    files = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*")
        if path.suffix in (".py", ".html", ".js", ".css", ".j2")
        # The line of a room stands for its __init__.py.
        and path.name != "__init__.py"
    }
    rooms = {f"{path.parent.relative_to(SOURCE)}/" for path in SOURCE.glob("*/**/__init__.py")}
    assert {name for name in names if not name.startswith("models/")} == files | rooms


def test_every_line_of_the_map_says_what_for() -> None:
    for name, text in mapped():
        assert len(text) >= 10, name


def test_rooms_stand_in_the_order_of_their_floors() -> None:
    from tests.test_layers import FLOOR

    rooms = [name[:-1] for name, _ in mapped() if name.count("/") == 1 and name[:-1] in FLOOR]
    assert [FLOOR[room] for room in rooms] == sorted(FLOOR[room] for room in rooms)


def test_every_path_in_the_text_exists() -> None:
    text = re.sub(r"```.*?```", "", CONTRIBUTING, flags=re.DOTALL)
    for name in re.findall(r"`([\w/.]+(?:/|\.py|\.md|\.yaml|\.txt))`", text):
        assert any((base / name).exists() for base in (ROOT, SOURCE)), name

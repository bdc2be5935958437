"""Rooms stand in the order data walks through them, and no import turns back."""

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "demr"
# Lowest first; rooms of one floor know nothing of each other. A new room gets its place here.
FLOORS = (
    ("errors", "evidential"),
    ("machine",),
    ("annotations", "video"),
    ("encoders", "metrics"),
    ("features",),
    ("batches",),
    ("network",),
    ("answers",),
    ("search", "evaluation", "shapes", "extraction"),
    ("export", "report"),
    ("runs",),
    ("training",),
    ("cli",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
MOST_FILES, MOST_LINES = 12, 450
# Packages and the rooms below which they may not be imported, at any depth of a function.
KEPT_OUT = {
    "lightning": ("evidential", "machine", "annotations", "video", "encoders", "features",
                  "metrics", "batches",
                  "network", "answers", "search", "evaluation", "report", "runs", "export"),
    "torch": ("annotations", "metrics", "report"),
}  # fmt: skip


def modules() -> list[Path]:
    return [path for path in sorted(SOURCE.rglob("*.py")) if path.parent != SOURCE]


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_downwards(path: Path) -> None:
    mine = room_of(path)
    assert mine in FLOOR, f"give the room {mine} a floor in FLOORS"
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] == "demr" and len(parts) > 1 and parts[1] not in (mine, "__version__"):
            assert FLOOR[parts[1]] < FLOOR[mine], f"{path}:{line} climbs to {name}"
        assert mine not in KEPT_OUT.get(parts[0], ()), f"{path}:{line} imports {name}"


def test_no_room_imports_in_a_circle() -> None:
    """Within a room, too, files stand in an order."""
    graph = {
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): {
            name for _, name in imports(path)
        }
        for path in modules()
    }
    known = {
        module: {
            other
            for name in names
            for other in (name, name.rpartition(".")[0])
            if other in graph and other != module
        }
        for module, names in graph.items()
        # What a package exports is of no concern to the order of its files.
        if not (SOURCE.parent / module.replace(".", "/") / "__init__.py").exists()
    }
    while ready := [module for module, needed in known.items() if not needed & known.keys()]:
        for module in ready:
            del known[module]
    assert not known, f"these import each other: {known}"


def test_rooms_and_files_are_small_enough_to_know() -> None:
    folders = {path.parent for path in modules()}
    crowded = {
        str(folder.relative_to(SOURCE)): count
        for folder in folders
        if (count := len(list(folder.glob("*.py")))) > MOST_FILES
    }
    assert not crowded
    long = {
        str(path.relative_to(SOURCE)): count
        for path in modules()
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert not long


def test_every_room_says_what_it_is_for() -> None:
    for folder in {path.parent for path in modules()}:
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8")))
        assert docstring is not None, folder
        assert "Begin with" in docstring, folder


@pytest.mark.parametrize("room", sorted({room_of(path) for path in modules()} - {"cli"}))
def test_what_rooms_export_is_there_and_sorted(room: str) -> None:
    module = import_module(f"demr.{room}")
    names = getattr(module, "__all__", [])
    assert names == sorted(names)
    assert all(hasattr(module, name) for name in names)
    if room != "extraction":
        assert names, f"say in demr/{room}/__init__.py which names are for others"

"""The scripts in benchmarks/ are listed in its README, and what they import exists."""

import ast
import importlib
import re
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted([*BENCHMARKS.glob("*.py"), *BENCHMARKS.glob("*/*.py")])


def test_the_readme_names_every_script_and_no_other() -> None:
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"(\w+\.py)", readme)) == {path.name for path in SCRIPTS}
    for path in re.findall(r"python (benchmarks/[\w/]+\.py)", readme):
        assert (BENCHMARKS.parent / path).exists()


# Ray, onnxruntime and the like are extras; what comes from demr has to be there for each.
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_script_takes_from_demr_exists(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("demr"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{path}:{node.lineno} {alias.name}"

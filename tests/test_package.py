import os
import re
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import demr

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 0.6


def best_of_three(*command: str) -> float:
    """Seconds of the fastest run: the other runs measure what else the machine does."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def test_import_is_fast() -> None:
    assert best_of_three(sys.executable, "-c", "import demr") < LIMIT_S


def test_help_is_fast() -> None:
    assert best_of_three(str(Path(sys.executable).with_name("demr")), "--help") < LIMIT_S


@pytest.mark.parametrize(
    ("module", "light"),
    [
        ("demr", ()),
        ("demr.cli.main", ()),
        ("demr.machine", ()),
        ("demr.annotations", ()),
        ("demr.encoders", ()),
        ("demr.metrics", ("scipy",)),
        ("demr.shapes", ("av",)),
    ],
)
def test_import_loads_nothing_heavy(module: str, light: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    heavy = {"torch", "scipy", "matplotlib", "lightning", "av", "tensorboard", "transformers"}
    assert not (heavy - set(light)) & set(done.stdout.split())


def test_version_has_one_source() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "demr.__version__"}
    assert metadata.version("demr") == demr.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", demr.__version__)


@pytest.mark.parametrize("name", demr.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(demr, name) is getattr(demr, name)
    assert name in dir(demr)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'moment'"):
        demr.moment  # noqa: B018  (reading the attribute is the test)


def test_torch_is_pinned_but_never_built_against() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert not any(need.startswith("torch") for need in project["build-system"]["requires"])
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().split()


def test_every_pip_call_takes_the_constraints() -> None:
    for name in ("Makefile", ".ci/run"):
        for line in (ROOT / name).read_text().splitlines():
            if "pip install" in line:
                assert "-c constraints.txt" in line, line


def test_scripts_are_executable() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)

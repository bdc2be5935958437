import os
import re
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

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


def pinned(name: str) -> dict[str, Version]:
    """Versions of a constraints file by package."""
    lines = (ROOT / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, version in pairs}


def requirements() -> dict[str, list[Requirement]]:
    """What pyproject.toml asks for, by extra; the core under the empty name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in lists.items()}


def test_lower_bounds_are_the_versions_that_are_tested() -> None:
    lowest = pinned("constraints-lowest.txt")
    for extra in ("", "cluster", "encoders", "export", "train"):
        for need in requirements()[extra]:
            floors = [Version(part.version) for part in need.specifier if part.operator == ">="]
            assert floors == [lowest[canonicalize_name(need.name)]], need


def test_pinned_versions_lie_in_the_ranges() -> None:
    tried, lowest = pinned("constraints.txt"), pinned("constraints-lowest.txt")
    for extra, needs in requirements().items():
        for need in needs:
            name = canonicalize_name(need.name)
            if name == "demr":
                continue
            assert tried[name] in need.specifier, need
            if extra != "dev":  # linters and types run with the pinned versions alone
                assert lowest[name] in need.specifier, need


def test_every_pip_call_takes_the_constraints() -> None:
    for name in ("Makefile", ".ci/run"):
        for line in (ROOT / name).read_text().splitlines():
            if "pip install" in line:
                assert re.search(r"-c constraints(-lowest)?\.txt", line), line


def test_scripts_are_executable() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)

import ast
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


# Licences that ask for nothing but their own text; those of the rest are named in the README.
PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|Unlicense|zlib|HPND|CNRI|Public Domain",
    re.IGNORECASE,
)
COPYLEFT = re.compile(r"GPL|MPL|Mozilla|EUPL|CDDL|EPL|Eclipse|SSPL|CC-BY-(SA|NC)", re.IGNORECASE)


def installed_with(
    name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]]
) -> None:
    """Collect what a package needs, all the way down, as far as it is installed here."""
    name = canonicalize_name(name)
    if (name, extras) in seen:
        return
    try:
        needs = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return
    seen.add((name, extras))
    for need in map(Requirement, needs):
        wanted = extras or {""}
        if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in wanted):
            installed_with(need.name, frozenset(need.extras), seen)


def licence_of(name: str) -> str:
    about = metadata.metadata(name).json
    classifiers = [text for text in about.get("classifier", []) if text.startswith("License ::")]
    texts = [about.get("license_expression", ""), about.get("license", "")[:200]]
    return " ".join(str(text) for text in (*texts, *classifiers))


def test_licences_that_are_not_permissive_are_named() -> None:
    seen: set[tuple[str, frozenset[str]]] = set()
    for needs in requirements().values():
        for need in needs:
            installed_with(need.name, frozenset(need.extras), seen)
    names = sorted({name for name, _ in seen} - {"demr"})
    assert {"torch", "pebble", "av", "huggingface-hub"} <= set(names)
    section = (ROOT / "README.md").read_text("utf-8").partition("## Licences")[2].lower()
    for name in names:
        licence = licence_of(name)
        if COPYLEFT.search(licence) or not PERMISSIVE.search(licence):
            assert name in section, f"{name} ({licence[:80]}) is not named under Licences"
    # Its own licence is permissive; what its wheels bundle is not.
    assert "x264 and x265 (gpl)" in section


def test_what_is_imported_is_declared() -> None:
    """Also inside functions; nothing may only happen to come along with another package."""
    declared = {canonicalize_name(n.name) for needs in requirements().values() for n in needs}
    # Of what is declared, under another name than the package's.
    modules = {"yaml": "pyyaml", "PIL": "pillow"}
    # Parts of pydantic and jinja2 that they document as such.
    along = {"annotated_types", "markupsafe", "pydantic_core"}
    for path in (ROOT / "src" / "demr").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for name in {name.partition(".")[0] for name in names}:
                if name == "demr" or name in sys.stdlib_module_names or name in along:
                    continue
                assert canonicalize_name(modules.get(name, name)) in declared, f"{path}: {name}"


def test_every_pip_call_takes_the_constraints() -> None:
    for name in ("Makefile", ".ci/run"):
        for line in (ROOT / name).read_text().splitlines():
            if "pip install" in line:
                assert re.search(r"-c constraints(-lowest)?\.txt", line), line


def test_scripts_are_executable() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)

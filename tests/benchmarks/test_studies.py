"""The tables of the studies, as docs/ and the README have them, are what the stored rows say."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
PAGES = {"track_study": "results.md", "shapes_study": "shapes_results.md"}


@pytest.fixture
def module(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> ModuleType:
    """A script of benchmarks/studies, which draws no figure."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "studies")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(importlib.import_module("study"), "FIGURES", tmp_path)
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    return importlib.import_module(request.param)


@pytest.mark.parametrize("module", PAGES, indirect=True)
def test_the_page_is_what_the_rows_say(module: ModuleType) -> None:
    page = ROOT / "docs" / PAGES[module.__name__]
    assert page.read_text(encoding="utf-8") == module.page()


@pytest.mark.parametrize("module", PAGES, indirect=True)
def test_every_stored_row_is_of_a_trial(module: ModuleType) -> None:
    planned: dict[Path, set[str]] = {}
    for part in module.PARTS.values():
        names = {trial.name for trial in part.ablation().different.values()}
        planned.setdefault(part.folder / "rows", set()).update(names)
    for folder, names in planned.items():
        stored = {path.stem for path in folder.glob("*.json")}
        # The words in a name are those of the grid that trained it first.
        assert {name[-10:] for name in stored} == {name[-10:] for name in names}
        assert stored


@pytest.mark.parametrize("module", ["readme_assets"], indirect=True)
def test_the_readme_has_the_tables(module: ModuleType) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for mark, table in (("results", module.results()), ("tracks", module.tracks())):
        (found,) = re.findall(rf"<!-- {mark} -->\n(.*?)<!-- end of {mark} -->", readme, re.DOTALL)
        assert found == table

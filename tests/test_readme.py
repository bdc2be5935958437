"""The README's commands exist with the options it names, and its Python runs."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from demr.cli.main import app
from demr.shapes import demo_scene, render_scene

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line.split("#")[0])[1:]
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith(".venv/bin/demr ")
]


def test_commands_were_found() -> None:
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_parses(words: list[str]) -> None:
    command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    # Parses without running: an unknown option or a missing argument raises.
    command.make_context(words[0], words[1:])


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    video = tmp_path / "runs" / "demo" / "shapes.mp4"
    video.parent.mkdir(parents=True)
    render_scene(demo_scene(0), video)
    exec(compile(code, "README.md", "exec"), {})  # noqa: S102
    assert re.match(r"(found|uncertain|not in this video) ", capsys.readouterr().out)

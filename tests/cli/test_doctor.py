import io
import re
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import av
import pytest
from rich.console import Console

from demr.cli import doctor
from demr.cli.doctor import Finding, examine, findings_table, is_healthy

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "torch"))


def printed(findings: list[Finding]) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(findings_table(findings))
    return console.export_text()


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_a_development_machine_is_healthy_and_lacks_only_weights(cli: Cli) -> None:
    findings = examine()
    assert is_healthy(findings)
    lacking = [finding.name for finding in findings if finding.state != "ok"]
    *fetched, by_hand = lacking
    assert fetched == ["encoder clip", "encoder xclip", "encoder vlm"]
    for name in fetched:
        assert re.search(rf"hf download \S+, .*--{name}:/path", by_name(findings)[name].remedy)
    assert by_hand == "encoder slowfast"
    assert "curl " in by_name(findings)[by_hand].remedy
    done = cli("doctor")
    assert done.code == 0
    assert done.err == ""
    for finding in findings:
        assert finding.name.split()[-1] in done.out


def test_weights_that_torch_hub_has_are_found(tmp_path: Path) -> None:
    path = tmp_path / "torch" / "checkpoints" / "SLOWFAST_8x8_R50.pyth"
    path.parent.mkdir(parents=True)
    path.touch()
    assert by_name(examine())["encoder slowfast"] == Finding("encoder slowfast", "ok", str(path))


def test_what_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(package: str) -> str:
        if package == "lightning":
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(doctor, "version", without)
    found = by_name(examine())["extra train"]
    assert found.state == "missing"
    assert "without lightning" in found.detail
    assert "demr[train]" in found.remedy
    assert is_healthy([found])


def test_extras_are_read_from_the_package() -> None:
    assert {"lightning", "HanTa", "h5py"} <= set(doctor._packages_of("train"))
    assert "transformers" in set(doctor._packages_of("encoders"))
    assert not list(doctor._packages_of("nope"))


def test_a_broken_part_is_told_and_changes_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.setattr(av, "codecs_available", {"h264", "mpeg4"})
    found = by_name(examine())["video"]
    assert found.state == "broken"
    assert "not av1, hevc, vp9" in found.detail
    assert cli("doctor").code == 1


def test_a_damaged_bundled_model_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from demr.search import retriever

    source = Path(retriever.__file__).parents[1] / "models" / "shapes"
    damaged = Path(shutil.copytree(source, tmp_path / "shapes"))
    (damaged / "model.safetensors").write_bytes(b"no weights")
    real = retriever.MomentRetriever.from_pretrained
    monkeypatch.setattr(
        retriever.MomentRetriever, "from_pretrained", lambda *_, **__: real(str(damaged))
    )
    found = by_name(examine())["bundled model"]
    assert found.state == "broken"
    assert "model.safetensors" in found.detail
    assert not is_healthy([found])


def test_the_table_fits_a_terminal() -> None:
    lines = printed(examine()).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(re.match(r"torch +ok ", line) for line in lines)


def test_commands_and_paths_are_printed_whole() -> None:
    finding = Finding("extra [x]", "missing", "in /talks[/b]\x1b[2J", "pip install 'demr[train]'")
    text = printed([finding])
    assert "extra [x]" in text
    assert r"in /talks[/b]\x1b[2J" in text
    assert "-> pip install 'demr[train]'" in text

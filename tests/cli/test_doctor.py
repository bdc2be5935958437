import io
import json
import os
import re
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from rich.console import Console

from demr.cli import doctor
from demr.cli.doctor import Finding, examine, examine_pack, findings_table, is_healthy
from demr.encoders.base import EncoderIdentity, VideoFeatures
from demr.features.pack import FeaturePack, FeaturePackWriter

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


# A feature pack


def make_pack(path: Path) -> Path:
    identity = EncoderIdentity("some", "1", 2.0, (("clip", 3),), 4, "l2")
    with FeaturePackWriter(path, identity) as writer:
        for vid, rows in (("a", 5), ("b", 4)):
            features = np.full((rows, 3), 0.5 + rows, np.float32)
            writer.add(VideoFeatures(vid, 2.0 * rows, 2.0, features))
    return path


def test_a_pack_that_is_as_it_was_packed(tmp_path: Path, cli: Cli) -> None:
    done = cli("doctor", make_pack(tmp_path / "pack"))
    assert (done.code, done.err) == (0, "")
    assert "1 of 1 are what was packed" in " ".join(done.out.split())


@pytest.mark.parametrize("place", [-1, -10, 9, 0])
def test_every_changed_byte_of_a_pack_is_found(tmp_path: Path, cli: Cli, place: int) -> None:
    shard = make_pack(tmp_path / "pack") / "video-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[place] ^= 1
    shard.write_bytes(data)
    done = cli("doctor", shard.parent)
    assert done.code == 1
    assert "video-00000.safetensors" in done.out
    assert "broken" in done.out
    assert by_name(examine_pack(shard.parent))["shards"].state == "broken"


def test_a_pack_without_checksums_says_so(tmp_path: Path, cli: Cli) -> None:
    """As packs of older versions are; they stay readable."""
    index = make_pack(tmp_path / "pack") / "index.json"
    values = json.loads(index.read_text())
    assert set(values.pop("sha256")) == {"video-00000.safetensors"}
    index.write_text(json.dumps(values))
    assert FeaturePack(index.parent)["a"].features.shape == (5, 3)
    done = cli("doctor", index.parent)
    assert done.code == 0
    assert "1 of 1 can be read; 1 without a checksum" in " ".join(done.out.split())
    values["videos"]["b"]["row"] = 3
    index.write_text(json.dumps(values))
    assert (
        "videos share row 3"
        in by_name(examine_pack(index.parent))["video-00000.safetensors"].detail
    )
    values["videos"]["b"]["row"] = 6
    index.write_text(json.dumps(values))
    assert "index expects 6 to 10" in printed(examine_pack(index.parent)).replace("\n", " ")


def test_what_is_no_pack(tmp_path: Path, cli: Cli) -> None:
    line = cli("doctor", tmp_path).one_line()
    assert "expected a folder with a feature pack" in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", True), ("version", 0), ("version", 1e400), ("version", None),
        ("encoder", []), ("videos", []), ("videos", {"a": []}), ("sha256", []),
        ("videos", {"a": {"shard": 1e400, "row": 0, "rows": 5, "duration_s": 10}}),
        ("videos", {"a": {"shard": 10**400, "row": 0, "rows": 5, "duration_s": 10}}),
        ("videos", {"a": {"shard": 0, "row": -1, "rows": 5, "duration_s": 10}}),
        ("videos", {"a": {"shard": 0, "row": 0, "rows": 10**18, "duration_s": 10}}),
        ("videos", {"a": {"shard": 0, "row": 0, "rows": 5, "duration_s": 10**400}}),
        ("encoder", {"name": "x", "version": "1", "clip_s": 0, "streams": [["a", 3]],
                     "text_dim": 4, "normalization": "l2"}),
        ("encoder", {"name": "x", "version": "1", "clip_s": 2, "streams": [["a", -3]],
                     "text_dim": 4, "normalization": "l2"}),
        ("encoder", {"name": "x", "version": "1", "clip_s": 2, "streams": [],
                     "text_dim": 4, "normalization": "l2"}),
        ("encoder", {"name": "x", "version": "1", "clip_s": 1e400, "streams": [["a", 1e400]],
                     "text_dim": 4, "normalization": "l2"}),
    ],
)  # fmt: skip
def test_an_index_that_is_none(tmp_path: Path, cli: Cli, key: str, value: object) -> None:
    index = make_pack(tmp_path / "pack") / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), key: value}))
    done = cli("doctor", index.parent)
    assert done.code in (1, 2)
    assert "Traceback" not in done.err
    if done.code == 2:
        done.one_line()


@pytest.mark.parametrize("name", ["index.json", "video-00000.safetensors"])
def test_a_pack_with_a_pipe_in_it(tmp_path: Path, cli: Cli, name: str) -> None:
    pack = make_pack(tmp_path / "pack")
    (pack / name).unlink()
    os.mkfifo(pack / name)
    done = cli("doctor", pack)
    assert done.code == (2 if name == "index.json" else 1)
    assert "no regular file" in " ".join((done.out + done.err).split())

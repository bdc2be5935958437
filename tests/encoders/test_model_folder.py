"""What can be wrong with a model of the hub: each is one line, and nothing is ever unpickled."""

import importlib.util
import json
import pickle
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from demr.answers.pretrained import find_model
from demr.encoders import get_encoder
from demr.encoders.clip.clip import ClipEncoder

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def clip(clip_models: dict[str, Path]) -> ClipEncoder:
    return ClipEncoder(str(clip_models["clip"]), device="cpu")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def search(cli: Cli, film: Path, model: object) -> str:
    """The one line that a search with this encoder complains in."""
    return str(cli("search", film, "a red circle", "--encoder", f"clip:{model}").one_line())


def test_an_id_that_is_not_here_fails_fast_offline(cli: Cli, film: Path) -> None:
    line = search(cli, film, "owner/no-such-model-here")
    assert "HF_HUB_OFFLINE is set" in line
    assert "hf download owner/no-such-model-here" in line
    assert "owner/no-such-model-here" in search(cli, film, "owner/no-such-model-here,clip_s=1")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("RepositoryNotFoundError", "no such model"),
        ("GatedRepoError", "licence"),
        ("LocalEntryNotFoundError", "could not be reached"),
        ("OSError", "OSError: full"),
    ],
)
def test_what_the_hub_may_answer(
    cli: Cli, film: Path, monkeypatch: pytest.MonkeyPatch, error: str, expected: str
) -> None:
    def refuse(*_args: object, **_options: object) -> str:
        raise type(error, (OSError,), {})("full")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("demr.machine.hub.ask", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    line = search(cli, film, "owner/model")
    assert expected in line
    assert "hf download owner/model" in line
    assert "unset" not in line


def test_a_hub_that_takes_the_call_and_says_nothing(
    cli: Cli, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("demr.machine.hub._TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        began = time.monotonic()
        line = search(cli, film, "owner/model")
    assert "no answer from the hub" in line
    assert time.monotonic() - began < 10


def test_a_trained_model_that_is_here_serves_without_the_hub(
    own_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(name: str) -> None:
        raise OSError(name)

    def download(_name: str, *, local_files_only: bool = False, **_options: Any) -> str:
        assert local_files_only
        return str(own_clip)

    monkeypatch.setattr("demr.machine.hub.ask", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_model("owner/model") == own_clip


def test_a_model_of_the_hub_is_fetched_once(
    clip_models: dict[str, Path], clip: ClipEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    here = False

    def download(name: str, *, local_files_only: bool = False, **_options: Any) -> str:
        nonlocal here
        if local_files_only and not here:
            raise FileNotFoundError(name)
        asked.append((name, local_files_only))
        here = True
        return str(clip_models["clip"])

    monkeypatch.setattr("demr.machine.hub.ask", lambda _: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for _ in range(2):
        fetched = get_encoder("clip:owner/model")
        assert fetched.identity == clip.identity
        assert fetched.identity.spec == "clip@1:owner/model"
    assert get_encoder("clip@1").identity.model == "openai/clip-vit-base-patch32"
    assert asked[:2] == [("owner/model", False), ("owner/model", True)]
    assert all(name != "owner/model" for name, _ in asked[2:])


@pytest.mark.parametrize(
    ("source", "expected"), [("/no/such/folder", "no such folder"), ("a b/c", "no such folder")]
)
def test_what_is_neither_folder_nor_id(cli: Cli, film: Path, source: str, expected: str) -> None:
    assert expected in search(cli, film, source)


def test_folders_that_are_no_model(cli: Cli, film: Path, own_clip: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json" in search(cli, film, tmp_path / "empty")
    for text, expected in (
        ("{}", "no model_type"),
        ('{"model_type": "bert"}', "model_type 'bert'"),
        ("[1]", "AttributeError"),
        ("{", "JSONDecodeError"),
    ):
        (own_clip / "config.json").write_text(text)
        assert expected in search(cli, film, own_clip)


def test_missing_and_damaged_weights(cli: Cli, film: Path, own_clip: Path) -> None:
    weights = own_clip / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "complete weights" in search(cli, film, own_clip)
    weights.write_bytes(b"")
    assert "complete weights" in search(cli, film, own_clip)
    weights.unlink()
    assert "model.safetensors" in search(cli, film, own_clip)


def test_a_wrong_path_of_a_video_is_told_before_a_model_is_fetched(cli: Cli) -> None:
    assert "nope.mp4: expected a readable video" in search(cli, Path("nope.mp4"), "owner/nothing")


def test_weights_that_may_not_be_read(
    cli: Cli, film: Path, own_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def deny(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == "model.safetensors":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", deny)
    line = search(cli, film, own_clip)
    assert f"{own_clip / 'model.safetensors'}: expected weights that can be read, got" in line
    assert "Permission denied" in line


def test_weights_with_a_tensor_missing_or_misshapen(cli: Cli, film: Path, own_clip: Path) -> None:
    """Transformers itself would draw the missing ones at random, and go on."""
    weights = own_clip / "model.safetensors"
    tensors = load_file(weights)
    name = "visual_projection.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, weights, {"format": "pt"})
    assert f"missing, such as {name}" in search(cli, film, own_clip)
    save_file(tensors | {name: torch.zeros(3, 4)}, weights, {"format": "pt"})
    assert "complete weights" in search(cli, film, own_clip)


def test_shards(cli: Cli, film: Path, own_clip: Path, clip: ClipEncoder) -> None:
    model = transformers.CLIPModel.from_pretrained(own_clip)
    (own_clip / "model.safetensors").unlink()
    model.save_pretrained(own_clip, max_shard_size="60KB")
    shards = sorted(own_clip.glob("model-*.safetensors"))
    assert len(shards) > 1
    sharded = ClipEncoder(str(own_clip), device="cpu")
    np.testing.assert_allclose(sharded.embed_queries(["a"]), clip.embed_queries(["a"]), atol=1e-5)
    shards[0].unlink()
    assert f"1 missing, such as {shards[0].name}" in search(cli, film, own_clip)
    (own_clip / "model.safetensors.index.json").write_text("{}")
    assert "index of weight files" in search(cli, film, own_clip)


def test_pickled_weights_are_read_as_tensors_or_not_at_all(
    cli: Cli, film: Path, own_clip: Path, clip: ClipEncoder, tmp_path: Path
) -> None:
    model = transformers.CLIPModel.from_pretrained(own_clip)
    (own_clip / "model.safetensors").unlink()
    torch.save(model.state_dict(), own_clip / "pytorch_model.bin")
    pickled = ClipEncoder(str(own_clip), device="cpu")
    np.testing.assert_allclose(pickled.embed_queries(["a"]), clip.embed_queries(["a"]), atol=1e-5)

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "owned",)

    torch.save({"a": Attack()}, own_clip / "pytorch_model.bin")
    assert "complete weights" in search(cli, film, own_clip)
    (own_clip / "pytorch_model.bin").write_bytes(pickle.dumps(Attack()))
    assert "complete weights" in search(cli, film, own_clip)
    assert not (tmp_path / "owned").exists()


def test_missing_and_damaged_settings(cli: Cli, film: Path, own_clip: Path) -> None:
    (own_clip / "vocab.json").write_text("{")
    assert "vocab.json and merges.txt" in search(cli, film, own_clip)
    (own_clip / "tokenizer.json").write_text("{}")
    assert "vocab.json and merges.txt" in search(cli, film, own_clip)
    (own_clip / "preprocessor_config.json").write_text("[]")
    assert "image processor" in search(cli, film, own_clip)
    (own_clip / "preprocessor_config.json").unlink()
    assert "preprocessor_config.json" in search(cli, film, own_clip)


def test_weights_that_are_not_finite(cli: Cli, film: Path, own_clip: Path) -> None:
    model = transformers.CLIPModel.from_pretrained(own_clip)
    with torch.no_grad():
        model.visual_projection.weight[0, 0] = float("nan")
    model.save_pretrained(own_clip)
    assert "NaN or infinity in " in search(cli, film, own_clip)


def test_without_transformers(
    cli: Cli, film: Path, clip_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "demr.encoders.model_folder.find_spec",
        lambda name: None if name == "transformers" else find(name),
    )
    line = search(cli, film, clip_models["clip"])
    assert "extra 'encoders'" in line
    assert "pip install 'demr[encoders]'" in line


def test_code_that_comes_with_a_model_never_runs(own_clip: Path) -> None:
    config = json.loads((own_clip / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (own_clip / "config.json").write_text(json.dumps(config))
    (own_clip / "evil.py").write_text("raise SystemExit('code of a model ran')\n")
    assert ClipEncoder(str(own_clip), device="cpu").embed_queries(["a"]).shape == (1, 24)

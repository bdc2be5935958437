import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from demr.answers import pretrained
from demr.answers.pretrained import Pretrained, load_pretrained, save_pretrained
from demr.batches.batch import Item, collate
from demr.encoders.base import EncoderIdentity
from demr.errors import ModelError
from demr.features.prepare import span_fractions
from demr.machine.devices import resolve_device
from demr.network.model import DemrModel
from demr.network.settings import Architecture

IDENTITY = EncoderIdentity("fake", "1", 2.0, (("colour", 3),), 4, "l2")
DOMAIN = {"low": [0.0, -1.0, 0.0], "high": [1.0, 1.0, 0.5], "edge": 0.01}
ARCHITECTURE: dict[str, Any] = {"dim": 8, "heads": 2, "layers": 1, "hidden": 16}
SIZE = Architecture(**ARCHITECTURE)


def make(seed: int = 0, **fields: Any) -> Pretrained:
    torch.manual_seed(seed)
    model = DemrModel(5, 4, SIZE).eval()
    return Pretrained(model, "tiny", IDENTITY, SIZE, **fields)


def outputs(model: DemrModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    video, text = torch.randn(6, 5, generator=generator), torch.randn(3, 4, generator=generator)
    batch = collate([Item(video, text, span_fractions(12.0, 2.0, 6), 12.0)])
    with torch.no_grad():
        output = model(batch)
    return torch.cat([output.foreground_logit[..., None], output.nig.loc, output.nig.nu], dim=-1)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_comes_back(tmp_path: Path) -> None:
    domain = {"scales": [DOMAIN | {"clips": 1}, DOMAIN | {"clips": 10}]}
    given = make(known_words=frozenset({"dog", "eats"}), domain=domain)
    save_pretrained(tmp_path / "deep" / "run", given)
    found = load_pretrained(tmp_path / "deep" / "run")
    assert torch.equal(outputs(found.model), outputs(given.model))
    assert not found.model.training
    assert (found.name, found.identity, found.architecture) == ("tiny", IDENTITY, SIZE)
    assert (found.known_words, found.domain) == (given.known_words, given.domain)
    plain = tmp_path / "plain"
    save_pretrained(plain, make())
    assert load_pretrained(plain).known_words is None
    assert load_pretrained(plain).domain is None
    assert sorted(contents(plain)) == ["config.json", "model.safetensors"]
    assert all(path.stat().st_mode & 0o044 for path in plain.iterdir())


def test_half_of_the_size_and_nearly_the_same_numbers(tmp_path: Path) -> None:
    given = make()
    save_pretrained(tmp_path / "full", given)
    save_pretrained(tmp_path / "half", given, half=True)
    found = load_pretrained(tmp_path / "half").model
    assert {value.dtype for value in found.state_dict().values()} == {torch.float32}
    assert next(given.model.parameters()).dtype == torch.float32
    torch.testing.assert_close(outputs(found), outputs(given.model), rtol=1e-2, atol=1e-2)
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("full", "half")]
    assert sizes[1] < 0.7 * sizes[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_pretrained(tmp_path / "run", make())
    return tmp_path / "run"


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_weights_cut_short_are_named(folder: Path, kept: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"model\.safetensors: expected the complete weights"):
        load_pretrained(folder)


def test_weights_of_another_model_are_named_briefly(folder: Path) -> None:
    other = {**ARCHITECTURE, "dim": 16}
    change(folder, architecture=other)
    message = r"model\.safetensors: .* of shape \(8, 5\) and not \(16, 5\)"
    with pytest.raises(ModelError, match=message) as caught:
        load_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(folder)) + 400


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("text", ["", '{"format_version": 1, "na', "\x00", "[" * 10])
def test_a_config_that_is_no_json(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match="a model folder with config"):
        load_pretrained(folder)


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"format_version": "1"}'])
def test_a_config_of_something_else(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"no object|under format_version.*name the run folder"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"format_version": 1, "a": ' + "[" * 900 + "]" * 900 + "}",
        '{"format_version": 1, "max_clips": 1' + "0" * 400 + "}",
        '{"format_version": 1, "max_clips": 1e400}',
        '{"format_version": 0}',
        '{"format_version": true}',
        '{"format_version": 1, "domain": NaN}',
    ],
)
def test_a_config_that_nothing_can_be_done_with(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match="a model folder with config") as caught:
        load_pretrained(folder)
    assert len(str(caught.value)) < len(str(folder)) + 400


@pytest.mark.parametrize("key", ["dim", "heads", "layers", "hidden", "text_layers"])
@pytest.mark.parametrize("value", [-4, 10**6, 10**7, 2**62, True, "8", 1.5, None, [8]])
def test_sizes_are_bounded_before_memory_is_taken(folder: Path, key: str, value: Any) -> None:
    change(folder, architecture=ARCHITECTURE | {key: value})
    with pytest.raises(ModelError, match=f"architecture {key}: expected a whole number"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text_dim", -1),
        ("text_dim", 10**12),
        ("text_dim", True),
        ("streams", [["a", -1]]),
        ("streams", [["a", 10**12]]),
        ("streams", [["a", 600_000], ["b", 600_000]]),
        ("clip_s", 0),
        ("clip_s", -1),
        ("clip_s", 1e300),
        ("name", "a\0b"),
        ("model", "x" * 10_000),
    ],
)
def test_an_encoder_is_bounded_as_well(folder: Path, key: str, value: Any) -> None:
    encoder = json.loads((folder / "config.json").read_text())["encoder"]
    change(folder, encoder=encoder | {key: value})
    with pytest.raises(ModelError, match="encoder identity"):
        load_pretrained(folder)


def weights_with(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    state = load_file(folder / "model.safetensors")
    name = "foreground_head.convs.0.weight"
    save_file(state | {name: change(state[name]).contiguous()}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.index_fill(0, torch.tensor([0]), math.nan), "numbers of .* are not finite"),
        (lambda w: w.index_fill(0, torch.tensor([0]), -math.inf), "numbers of .* are not finite"),
        (lambda w: w.to(torch.int8), "of I8, where weights are"),
        (lambda w: w.to(torch.int64), "of I64, where weights are"),
        (lambda w: w > 0, "of BOOL, where weights are"),
        (lambda w: w.flatten(), "of shape"),
        (lambda w: w[:-1], "of shape"),
        (lambda w: w[:0], "of shape"),
    ],
)
def test_weights_that_no_network_can_have(
    folder: Path, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    weights_with(folder, change)
    with pytest.raises(ModelError, match=message):
        load_pretrained(folder)


def test_a_file_that_promises_terabytes(folder: Path) -> None:
    size = 4 << 40
    tensors = {"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, size]}}
    header = json.dumps(tensors).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + size)  # with holes: on the disk it takes a few kilobytes
    with pytest.raises(ModelError, match="the complete weights that config"):
        load_pretrained(folder)


def test_a_newer_format(folder: Path) -> None:
    change(folder, format_version=2, architecture=None, encoder=None)
    with pytest.raises(ModelError, match="format 1 or older, got format 2; upgrade demr"):
        load_pretrained(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"encoder": {"name": "x"}},
        {"encoder": None},
        {"architecture": None},
        {"architecture": ARCHITECTURE | {"surprise": 1}},
        {"architecture": ARCHITECTURE | {"fusion": "other"}},
        {"architecture": ARCHITECTURE | {"dim": "8"}},
        {"architecture": ARCHITECTURE | {"dim": 9}},
        {"known_words": 3},
        {"domain": 3},
        {"domain": [1, 2]},
        {"domain": {}},
        {"domain": DOMAIN | {"low": [0.0, 1.0]}},
        {"domain": DOMAIN | {"low": "abc"}},
        {"domain": DOMAIN | {"high": [0.0, None, 1.0]}},
        {"domain": DOMAIN | {"high": [0.0, float("inf"), 1.0]}},
        {"domain": DOMAIN | {"edge": 0}},
        {"domain": DOMAIN | {"edge": float("nan")}},
        {"domain": DOMAIN | {"edge": [0.1]}},
    ],
)
def test_a_config_that_describes_no_model(folder: Path, values: dict[str, Any]) -> None:
    change(folder, **values)
    expected = "expected the architecture and encoder|is not a number"
    with pytest.raises(ModelError, match=expected):
        load_pretrained(folder)


def test_what_older_models_say_of_their_parts_is_read_or_refused(folder: Path) -> None:
    wanted = outputs(load_pretrained(folder).model)
    change(folder, architecture=ARCHITECTURE | {"saliency_hint": False, "dropout": 0.1})
    found = load_pretrained(folder)
    assert found.architecture == SIZE
    assert torch.equal(outputs(found.model), wanted)
    change(folder, architecture=ARCHITECTURE | {"saliency_hint": True})
    with pytest.raises(ModelError, match="got one with saliency_hint; train it again"):
        load_pretrained(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match="No such file"):
        load_pretrained(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="demr train"):
        load_pretrained(tmp_path / "missing")


def test_a_full_disk_leaves_the_old_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(folder)

    def half_written(state: Any, path: Path) -> None:
        del state
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "save_file", half_written)
        with pytest.raises(ModelError, match="No space left on device; free disk space"):
            save_pretrained(folder, make(seed=1))
    assert contents(folder) == before

    # The weights still found room, the config did not.
    def no_text(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", no_text)
        with pytest.raises(ModelError, match="No space left"):
            save_pretrained(folder, make(seed=1))
    assert contents(folder) == before
    save_pretrained(folder, make(seed=1))
    assert contents(folder) != before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="room to save the model"):
        save_pretrained(tmp_path / "file" / "run", make())


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert isinstance(resolve_device(), torch.device)


@pytest.mark.parametrize(
    "name",
    ["gpuu", "", "cuda:99", "hpu", "privateuseone", "vulkan", "lazy", "meta", "fpga", "auto:1"],
)
def test_a_device_that_is_not_here(name: str) -> None:
    with pytest.raises(ModelError, match="use --device cpu") as caught:
        resolve_device(name)
    line = str(caught.value)
    assert line.startswith(f"--device {name}: expected auto, cpu")
    assert len(line) < 300
    assert "\n" not in line


def test_auto_takes_no_accelerator_that_is_only_compiled_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def current(check_available: bool = False) -> torch.device | None:
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current)
    assert resolve_device() == torch.device("cpu")

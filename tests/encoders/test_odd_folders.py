"""Folders whose files do not belong together: one line when an encoder is made, for each of them.

Without these checks a search answers every sentence alike, or breaks in the middle of a video.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from demr.encoders import get_encoder
from demr.encoders.preprocessing import Preprocessing
from demr.errors import DemrError, FeatureError, ModelError

Change = Callable[[Path], object]
ENCODERS = {"smolvlm": "vlm", "idefics3": "vlm", "xclip": "xclip"}
CROPPED = ("clip", "xclip")
VLMS = ("smolvlm", "idefics3")


@pytest.fixture
def make(
    clip_models: dict[str, Path], vlm_models: dict[str, Path], tmp_path: Path
) -> Callable[[str, Change], Any]:
    """Copies the tiny model of a kind, changes the copy, and makes its encoder."""
    models = {**clip_models, **vlm_models}

    def build(kind: str, change: Change) -> Any:
        folder = Path(shutil.copytree(models[kind], tmp_path / "m"))
        change(folder)
        return get_encoder(f"{ENCODERS.get(kind, 'clip')}:{folder}", device="cpu")

    return build


def edit(name: str, **values: object) -> Change:
    """Sets values in a JSON file; ``a__b`` is b within a."""

    def change(folder: Path) -> None:
        settings = json.loads((folder / name).read_text())
        for key, value in values.items():
            *outer, last = key.split("__")
            inside = settings
            for part in outer:
                inside = inside[part]
            inside[last] = value
        (folder / name).write_text(json.dumps(settings))

    return change


def remove(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def write(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text)


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def first_half(folder: Path) -> None:
    """Tokens of another, smaller model."""
    vocabulary = json.loads((folder / "vocab.json").read_text())
    few = sorted(vocabulary.items(), key=lambda item: int(item[1]))[:300]
    (folder / "vocab.json").write_text(json.dumps(dict(few)))


def merges_gone(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def token_gone(name: str) -> Change:
    def change(folder: Path) -> None:
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != name]
        tokenizer["model"]["vocab"].pop(name, None)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        path = folder / "tokenizer_config.json"
        path.write_text(path.read_text().replace(name, "<other>"))

    return change


def one_more(folder: Path) -> None:
    vocabulary = json.loads((folder / "vocab.json").read_text())
    (folder / "vocab.json").write_text(json.dumps({**vocabulary, "zebra</w>": 9000}))


PICTURES = "preprocessor_config.json"
CASES: list[tuple[tuple[str, ...], Change, str]] = [
    (CROPPED, remove("vocab.json", "merges.txt"), "no vocab.json or merges.txt"),
    (CROPPED, remove("merges.txt"), "no merges.txt"),
    (CROPPED, write("merges.txt", "#version: 0.2\n"), "merges"),
    (CROPPED, write("vocab.json", "{}"), "out of vocabulary"),
    (CROPPED, one_more, "numbered up to 9000"),
    (CROPPED, first_half, "out of vocabulary"),
    (CROPPED, both(first_half, write("merges.txt", "")), "of the model's 586 tokens"),
    (CROPPED, edit("config.json", text_config__vocab_size=400), "of the model's 400 tokens"),
    (CROPPED, edit("config.json", text_config__vocab_size=49408), "of the model's 49408 tokens"),
    (("clip",), edit("config.json", text_config__eos_token_id=7), "the model's end token"),
    (("clip",), edit("config.json", text_config__eos_token_id=[]), "an eos_token_id"),
    (CROPPED, edit("config.json", model_type=["clip"]), "model_type"),
    (CROPPED, edit("tokenizer_config.json", model_max_length={"a": 1}), "TypeError"),
    (CROPPED, edit("tokenizer_config.json", unk_token=""), "RecursionError"),
    (CROPPED, edit(PICTURES, crop_size={"height": 224, "width": 224}), "got one that makes 224 x"),
    (CROPPED, edit(PICTURES, crop_size={"height": 48, "width": 40}), "makes 48 x 40"),
    (CROPPED, edit("config.json", vision_config__image_size=64), "64 x 64 pixels, the model's"),
    (CROPPED, edit(PICTURES, size={"shortest_edge": 10**9}), "size 1000000000"),
    (CROPPED, edit(PICTURES, size={"shortest_edge": 0}), "size 0"),
    (CROPPED, edit(PICTURES, image_mean=[0.5, 0.5]), "2 channels"),
    (CROPPED, edit(PICTURES, image_std=[0, 1, 1]), "image_std"),
    (
        CROPPED,
        edit(PICTURES, image_std=[float("nan"), 1, 1]),
        "NaN is not a number",
    ),
    (CROPPED, edit(PICTURES, rescale_factor=0), "rescale_factor 0"),
    (CROPPED, edit("config.json", text_config__num_hidden_layers=10**6), "num_hidden_layers of 1"),
    (CROPPED, edit("config.json", vision_config__num_channels=4), "num_channels of 3"),
    (("xclip",), edit("config.json", vision_config__num_attention_heads=3), "divide hidden_size"),
    (("xclip",), edit("config.json", vision_config__num_frames=10**9), "num_frames of 1 to 256"),
    (("siglip", "siglip2", "naflex"), remove("tokenizer.json"), "no tokenizer.json"),
    (("siglip", "naflex"), edit("config.json", text_config__vocab_size=100), "model's 100 tokens"),
    (("siglip2", "naflex"), merges_gone, "merges|sentences apart"),
    (("siglip",), edit(PICTURES, size={"height": 64, "width": 64}), "makes 64 x 64"),
    (("naflex",), edit(PICTURES, patch_size=16), "the model's patch_size"),
    (("naflex",), edit(PICTURES, max_num_patches=10**9), "max_num_patches 1000000000"),
    (VLMS, remove("tokenizer.json"), "tokenizer"),
    (VLMS, merges_gone, "merges"),
    (VLMS, token_gone("<end_of_utterance>"), "knows <end_of_utterance> as one token"),
    (VLMS, token_gone("<global-img>"), "knows <global-img> as one token"),
    (VLMS, edit("config.json", image_token_id=7), "knows <image> as token 7"),
    (VLMS, edit(PICTURES, max_image_size={"longest_edge": 64}), "makes 64 x 64"),
    (VLMS, edit(PICTURES, image_std=[0, 0, 0]), "image_std"),
    (VLMS, edit(PICTURES, resample=9), "resample 9"),
]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [(kind, change, message) for kinds, change, message in CASES for kind in kinds],
)
def test_files_that_do_not_belong_together(
    make: Callable[[str, Change], Any], kind: str, change: Change, message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        make(kind, change)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2", "naflex", "xclip", "smolvlm"])
def test_what_belongs_together_is_accepted(make: Callable[[str, Change], Any], kind: str) -> None:
    make(kind, lambda folder: folder)


def test_the_end_token_of_the_first_clips(make: Callable[[str, Change], Any]) -> None:
    """Published settings name token 2, and mean the highest of the sentence."""
    make("clip", edit("config.json", text_config__eos_token_id=2))


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "model.safetensors", "other.json"])
@pytest.mark.parametrize("device", [None, "/dev/zero"])
def test_pipes_and_devices_in_a_folder(
    make: Callable[[str, Change], Any], name: str, device: str | None
) -> None:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        if device is None:
            os.mkfifo(folder / name)
        else:
            (folder / name).symlink_to(device)

    with pytest.raises(ModelError, match=f"{name} is a (pipe|device), no regular file"):
        make("clip", change)


@pytest.mark.parametrize("place", ["/dev/zero", "../m/model.safetensors"])
def test_an_index_names_files_of_its_folder_alone(
    make: Callable[[str, Change], Any], place: str
) -> None:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": place}})
        )

    with pytest.raises(ModelError, match="weights in other folders"):
        make("clip", change)


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "tokenizer_config.json"]
)
def test_json_nested_without_end(make: Callable[[str, Change], Any], name: str) -> None:
    with pytest.raises(ModelError):
        make("clip", write(name, '{"a":' * 100_000 + "1" + "}" * 100_000))


def test_sizes_beyond_every_number(tmp_path: Path) -> None:
    (tmp_path / PICTURES).write_text('{"size": {"shortest_edge": 1e400}, "crop_size": 48}')
    with pytest.raises(ModelError, match="beyond all numbers"):
        Preprocessing.read(tmp_path, "clip")


@pytest.mark.parametrize("kind", ["sparse", "archive"])
def test_weights_larger_than_memory_are_refused_unread(
    make: Callable[[str, Change], Any], tmp_path: Path, kind: str
) -> None:
    def grow(path: Path) -> None:
        if kind == "sparse":
            with path.open("wb") as stream:
                stream.truncate(1 << 40)
            return
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"x")
        data = path.read_bytes()
        size = data.rindex(b"PK\x01\x02") + 24  # what the directory says of the unpacked size
        path.write_bytes(data[:size] + b"\xf0\xff\xff\xff" + data[size + 4 :])

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        grow(folder / "pytorch_model.bin")

    place = tmp_path / "w.pyth"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("demr.machine.arrays.memory_left", lambda: 1 << 31)
        with pytest.raises(ModelError, match=r"of weights, where 2\.1 GB are left"):
            make("clip", change)
        grow(place)
        with pytest.raises(ModelError, match=r"of weights, where 2\.1 GB are left"):
            get_encoder(f"slowfast:{place}", device="cpu")


def zeros(name: str) -> Change:
    """Overwrites a tensor of the weights with zeros."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        (whole,) = (key for key in tensors if name in key)
        tensors[whole] = torch.zeros_like(tensors[whole])
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("clip", "text_projection"),
        ("clip", "token_embedding"),
        ("siglip", "token_embedding"),
        ("siglip2", "text_model.head.weight"),
        ("xclip", "text_model.embeddings.token_embedding"),
    ],
)
def test_weights_that_make_the_same_of_every_sentence(
    make: Callable[[str, Change], Any], kind: str, name: str
) -> None:
    encoder = make(kind, zeros(name))
    for encode in (encoder.embed_queries, encoder.encode_queries):
        with pytest.raises(DemrError, match=r"that tell sentences apart|not all zero"):
            encode(["a person opens the door"])


def test_weights_that_make_nothing_of_a_picture(make: Callable[[str, Change], Any]) -> None:
    encoder = make("clip", zeros("visual_projection"))
    with pytest.raises(FeatureError, match=r"not all zero, got zeros in"):
        encoder.embed(torch.zeros(1, 1, 3, 48, 48, dtype=torch.uint8))


def test_a_length_that_only_the_tokenizer_states_limits_nothing(
    make: Callable[[str, Change], Any], capfd: pytest.CaptureFixture[str]
) -> None:
    encoder = make("clip", edit("tokenizer_config.json", model_max_length=1))
    capfd.readouterr()
    two = encoder.embed_queries(["a person opens the door", "a person opens the window"])
    assert not np.allclose(two[0], two[1])
    assert capfd.readouterr() == ("", "")

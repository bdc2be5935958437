"""Preprocessing of frames against the models' own processors on Pillow."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.encoders.clip_models import (
    KINDS,
    Picture,
    cosine,
    noise,
    own_processor,
    photo,
    pil_class,
    reference_embedding,
)

from demr.encoders.clip.clip import ClipEncoder
from demr.encoders.loaded_model import short_digest
from demr.encoders.preprocessing import Preprocessing, patch_grid, to_patches
from demr.encoders.vlm.preprocessing import SquarePictures
from demr.errors import ModelError


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def encoder(clip_models: dict[str, Path], kind: str) -> ClipEncoder:
    return ClipEncoder(str(clip_models[kind]), device="cpu", exact=True)


SIZES = [(361, 641), (641, 361), (17, 33), (49, 48), (48, 48), (240, 1), (1, 1), (223, 500)]


@pytest.mark.parametrize("draw", [photo, noise])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pixels_and_embeddings_are_those_of_the_models_own_processor(
    encoder: ClipEncoder,
    clip_models: dict[str, Path],
    kind: str,
    height: int,
    width: int,
    draw: Callable[[int, int], Picture],
) -> None:
    picture = draw(height, width)
    steps = Preprocessing.read(clip_models[kind], "siglip2" if kind == "naflex" else kind[:6])
    inputs = own_processor(kind)(picture, return_tensors="pt", input_data_format="channels_last")
    ours = steps.normalize(steps.crop_frame(picture)[None], torch.float32)
    theirs = inputs["pixel_values"]
    if kind == "naflex":
        ours = to_patches(ours, steps.patch)
        theirs = theirs[:, : int(inputs["pixel_attention_mask"].sum())]
    assert ours.shape == theirs.shape
    # In levels of 255: torch rounds a few pixels the other way.
    levels = (ours - theirs).abs().max() / steps.scale * min(steps.std)
    assert levels < 2.01
    mine = encoder.embed(steps.crop_frame(picture)[None, None])
    assert cosine(mine, reference_embedding(clip_models[kind], kind, [picture])) >= 0.9999


def test_pictures_smaller_than_the_crop_and_other_scales(tmp_path: Path) -> None:
    """Settings that no default uses: a crop beyond the picture, no rescaling, no normalising."""
    processor = pil_class("CLIPImageProcessor")(
        size={"shortest_edge": 21}, crop_size={"height": 30, "width": 26}, do_normalize=False
    )
    processor.save_pretrained(tmp_path)
    steps = Preprocessing.read(tmp_path, "clip")
    for height, width in ((40, 60), (60, 40), (33, 35)):
        picture = photo(height, width)
        theirs = processor(picture, return_tensors="pt", input_data_format="channels_last")
        ours = steps.normalize(steps.crop_frame(picture)[None], torch.float32)
        assert (ours - theirs["pixel_values"]).abs().max() * 255 < 2.01


def test_settings_of_the_first_clip_models_are_read(tmp_path: Path) -> None:
    """Sizes as plain numbers, and steps that are not named: the form of OpenAI's own files."""
    old = {"size": 224, "crop_size": 224, "resample": 3, "do_resize": True, "do_normalize": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    steps = Preprocessing.read(tmp_path, "clip")
    assert steps.resized(360, 640) == (224, 398)
    assert steps.resized(640, 360) == (398, 224)
    assert (steps.crop, steps.filter, steps.scale) == ((224, 224), "bicubic", 1 / 255)
    assert steps.mean[0] == pytest.approx(0.48145466)
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "processor_config.json")
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": old}))
    assert Preprocessing.read(tmp_path, "clip") == steps


@pytest.mark.parametrize(
    "settings",
    [
        {"resample": 1},
        {"image_mean": [0.5]},
        {"do_resize": False},
        {"size": {"shortest_edge": 48, "longest_edge": 99}},
        {"size": "large"},
        {"crop_size": {"height": 0, "width": 4}},
        {"do_center_crop": False},
    ],
)
def test_other_preprocessing_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="preprocessor"):
        Preprocessing.read(tmp_path, "clip")


def test_the_grid_of_patches_is_the_processors() -> None:
    found = own_processor("naflex")
    for height, width in ((1, 1), (9, 900), (360, 640), (1080, 1920), (101, 103)):
        inputs = found(noise(height, width), return_tensors="pt", input_data_format="channels_last")
        rows, columns = inputs["spatial_shapes"][0].tolist()
        assert patch_grid(height, width, 8, 64) == (rows * 8, columns * 8)


def test_digests_of_stored_features_stay_valid() -> None:
    """What goes into a digest is what these print as: another spelling refuses old packs."""
    steps = Preprocessing(224, None, (224, 224), "bicubic", 0.5, (0.1,), (0.2,))
    assert str(steps) == (
        "Preprocessing(shortest=224, size=None, crop=(224, 224), filter='bicubic', scale=0.5, "
        "mean=(0.1,), std=(0.2,), patch=0, max_patches=0)"
    )
    squares = SquarePictures(2048, 512, 1, 0.5, (0.1,), (0.2,))
    assert str(squares) == (
        "SquarePictures(longest=2048, side=512, filter=1, scale=0.5, mean=(0.1,), std=(0.2,))"
    )
    assert short_digest("weights", squares, 16) == "5d162b4afe69b425"

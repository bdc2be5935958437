"""The encoders xclip and clip+xclip on tiny, randomly drawn models in the hub's own file format."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tests.encoders.clip_models import SENTENCES, cosine
from tests.encoders.vlm_models import reference_xclip, xclip_processor

from demr.encoders import AlignedEncoder, EncoderIdentity, get_encoder, needs_training
from demr.encoders.clip.clip import ClipEncoder
from demr.encoders.clip.xclip import XClipEncoder, part_times
from demr.encoders.combined import CombinedEncoder
from demr.encoders.frames import FrameEncoder
from demr.encoders.preprocessing import Preprocessing
from demr.errors import InputError, ModelError
from demr.features.prepare import prepare_video
from demr.video.reading import iter_frames, probe_video

Cli = Callable[..., Any]
FRAMES = 4


@pytest.fixture(scope="module")
def encoder(vlm_models: dict[str, Path]) -> XClipEncoder:
    return XClipEncoder(str(vlm_models["xclip"]), device="cpu", exact=True)


@pytest.fixture
def own(vlm_models: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny X-CLIP, to be damaged at will."""
    return Path(shutil.copytree(vlm_models["xclip"], tmp_path / "own"))


def complaint(cli: Cli, film: Path, encoder: str, *others: str) -> str:
    """The one line that a search with this encoder complains in."""
    return str(cli("search", film, "a ball", "--encoder", encoder, *others).one_line())


# Videos


def test_frames_are_the_middles_of_equal_parts() -> None:
    """Nine seconds: the last clip is one second long, and so are its parts a half of the others."""
    times = part_times(9.0, 2.0, FRAMES)
    np.testing.assert_allclose(times[0], [0.25, 0.75, 1.25, 1.75])
    np.testing.assert_allclose(times[4], [8.125, 8.375, 8.625, 8.875])
    assert times.shape == (5, FRAMES)


def test_a_clip_is_the_embedding_of_its_frames(
    encoder: XClipEncoder, vlm_models: dict[str, Path], film: Path
) -> None:
    video = encoder.encode_video(film)
    assert video.features.shape == (5, 24)
    assert encoder.frames == FRAMES
    frames = [
        frame.rgb
        for frame in iter_frames(film, sorted(part_times(video.duration_s, 2.0, FRAMES).ravel()))
    ]
    clips = [frames[low : low + FRAMES] for low in range(0, 20, FRAMES)]
    wanted = reference_xclip(vlm_models["xclip"], clips)
    assert cosine(video.features, wanted) >= 0.9999
    assert cosine(video.features[1:], wanted[:-1]) < 0.99
    # Its frames tell each other what they show: one that is another changes the whole.
    changed = reference_xclip(vlm_models["xclip"], [[*clips[0][:3], clips[1][0]]])
    assert cosine(video.features[:1], changed) < 0.999


def test_more_clips_than_a_batch(vlm_models: dict[str, Path], film: Path) -> None:
    short = XClipEncoder(str(vlm_models["xclip"]), clip_s=0.5, device="cpu", exact=True)
    rows = short.encode_video(film).features
    assert len(rows) == 18 > short.batch
    (stream,) = short.streams
    times = stream.times(probe_video(film))[13]
    clip = torch.stack([stream.prepare(frame.rgb) for frame in iter_frames(film, times)])
    np.testing.assert_allclose(rows[13], stream.embed(clip[None])[0], atol=1e-5)


def test_the_published_preprocessor_in_its_old_form(own: Path) -> None:
    """The size as one number, and what it leaves open as its processor has it."""
    settings = own / "preprocessor_config.json"
    settings.write_text(json.dumps({"size": 48, "image_processor_type": "VideoMAEImageProcessor"}))
    pixels = Preprocessing.read(own, "xclip")
    assert (pixels.shortest, pixels.crop, pixels.filter) == (48, (224, 224), "bilinear")
    assert pixels.mean == (0.5, 0.5, 0.5)
    assert xclip_processor().resample == 2


# Queries


def test_tokens_and_embeddings_are_the_models_own(
    encoder: XClipEncoder, vlm_models: dict[str, Path]
) -> None:
    model: Any = transformers.XCLIPModel.from_pretrained(vlm_models["xclip"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(vlm_models["xclip"])
    encoded, pooled = encoder.encode_queries(SENTENCES), encoder.embed_queries(SENTENCES)
    for query, found, row in zip(SENTENCES, encoded, pooled, strict=True):
        inputs = tokenizer([query], return_tensors="pt")
        with torch.no_grad():
            states = model.text_model(input_ids=inputs["input_ids"]).last_hidden_state[0]
            whole: Any = model.get_text_features(input_ids=inputs["input_ids"])
        np.testing.assert_allclose(found.features, states.numpy(), atol=2e-5)
        whole = getattr(whole, "pooler_output", whole)[0]
        np.testing.assert_allclose(row, whole.numpy(), atol=2e-5)
    hidden = encoder.encode_queries(["the red ball", "the red p"], hidden=[{2}, {2}])
    assert hidden[0].words == ("the", "red", "ball")
    np.testing.assert_allclose(hidden[0].features[:3], hidden[1].features[:3], atol=1e-6)


def test_zero_shot(cli: Cli, film: Path, vlm_models: dict[str, Path]) -> None:
    name = f"xclip:{vlm_models['xclip']}"
    assert isinstance(get_encoder(name), AlignedEncoder)
    done = cli("search", film, "a red circle", "--encoder", name, "--json")
    assert (done.code, done.err) == (0, "")
    (answer,) = json.loads(done.out)["answers"]
    assert answer["verdict"] == "uncertain"
    assert len(answer["saliency"]) == 5


# Identity


def test_identity(encoder: XClipEncoder, own: Path) -> None:
    identity = encoder.identity
    assert (identity.name, identity.streams, identity.text_dim) == ("xclip", (("xclip", 24),), 32)
    assert EncoderIdentity.from_dict(json.loads(json.dumps(identity.to_dict()))) == identity
    assert get_encoder(identity.request, device="cpu").identity == identity
    assert XClipEncoder(str(own), device="cpu", exact=True).identity == identity
    settings = own / "preprocessor_config.json"
    before = settings.read_text()
    settings.write_text(json.dumps({**json.loads(before), "resample": 3}))
    assert XClipEncoder(str(own), device="cpu", exact=True).identity != identity
    settings.write_text(before)
    tensors = load_file(own / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] += 1
    save_file(tensors, own / "model.safetensors", {"format": "pt"})
    assert XClipEncoder(str(own), device="cpu", exact=True).identity != identity


def test_clip_and_xclip_side_by_side(
    vlm_models: dict[str, Path], clip_models: dict[str, Path], encoder: XClipEncoder, film: Path
) -> None:
    name = f"clip+xclip:{clip_models['clip']},xclip={vlm_models['xclip']},clip_s=2,dtype=float32"
    both = get_encoder(name, device="cpu")
    assert isinstance(both, CombinedEncoder)
    assert isinstance(both, FrameEncoder)
    assert not isinstance(both, AlignedEncoder)
    assert needs_training(name)
    identity = both.identity
    assert identity.name == "clip+xclip"
    assert identity.streams == (("xclip", 24), ("clip", 24))
    assert get_encoder(identity.request, device="cpu").identity == identity
    frames = ClipEncoder(str(clip_models["clip"]), device="cpu", exact=True)
    rows = both.encode_video(film).features
    np.testing.assert_allclose(rows[:, :24], encoder.encode_video(film).features, atol=1e-5)
    np.testing.assert_allclose(rows[:, 24:], frames.encode_video(film).features, atol=1e-5)
    (query,) = both.encode_queries(["a dog"])
    np.testing.assert_array_equal(query.features, frames.encode_queries(["a dog"])[0].features)
    # Each stream is brought to length one by itself.
    ready = prepare_video(both.encode_video(film), identity)[0]
    np.testing.assert_allclose(ready[:, :24].norm(dim=1), 1, atol=1e-5)
    np.testing.assert_allclose(ready[:, 24:48].norm(dim=1), 1, atol=1e-5)
    assert get_encoder(name.replace("clip_s=2", "clip_s=1")).identity != identity


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("xclip:{},xclip=a/b", "expected ,clip_s= or ,dtype= behind it"),
        ("clip+xclip:{},layer=2", "expected ,clip_s= or ,dtype= or ,xclip= behind it"),
        ("xclip+clip:{}", "xclip@1"),
    ],
)
def test_wrong_spellings(vlm_models: dict[str, Path], name: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        get_encoder(name.format(vlm_models["xclip"]))


# What can be wrong with a model


def test_models_of_another_architecture(
    cli: Cli, film: Path, vlm_models: dict[str, Path], clip_models: dict[str, Path]
) -> None:
    line = complaint(cli, film, f"xclip:{clip_models['clip']}")
    assert "for encoder xclip an X-CLIP model (model_type xclip), got model_type 'clip'" in line
    line = complaint(cli, film, f"clip:{vlm_models['xclip']}")
    assert "for encoder clip a CLIP" in line
    both = f"clip+xclip:{clip_models['clip']},xclip={clip_models['clip']}"
    line = complaint(cli, film, both, "--model", "shapes")
    assert "for encoder xclip" in line


def test_what_is_not_here(cli: Cli, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = complaint(cli, film, "xclip:owner/no-such-model-here")
    assert "encoder xclip (owner/no-such-model-here)" in line
    assert "HF_HUB_OFFLINE is set" in line
    assert "xclip:/path/to/folder" in line


def test_damaged_weights(cli: Cli, film: Path, own: Path) -> None:
    tensors = load_file(own / "model.safetensors")
    missing = "mit.position_embedding"
    kept = {name: value for name, value in tensors.items() if name != missing}
    save_file(kept, own / "model.safetensors", {"format": "pt"})
    assert f"1 tensors missing, such as {missing}" in complaint(cli, film, f"xclip:{own}")
    (own / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        XClipEncoder(str(own), device="cpu", exact=True)

"""The encoder vlm on tiny, randomly drawn models in the hub's own file format."""

import json
import shutil
import warnings
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
from tests.encoders.clip_models import SENTENCES, cosine, noise, photo
from tests.encoders.vlm_models import (
    CLASSES,
    IMAGE_TOKENS,
    LAYERS,
    SIDE,
    VLM_KINDS,
    reference_turn,
    reference_vlm,
    vlm_processor,
)

from demr.encoders import AlignedEncoder, EncoderIdentity, get_encoder, needs_training
from demr.encoders.cached_queries import CachedQueries
from demr.encoders.loaded_model import Precision
from demr.encoders.tokens import QueryCutWarning
from demr.encoders.vlm import encoder as vlm
from demr.encoders.vlm.encoder import VlmEncoder
from demr.encoders.vlm.preprocessing import SquarePictures
from demr.errors import InputError, ModelError
from demr.features.pack import FeaturePack, FeaturePackWriter
from demr.video.reading import iter_frames
from demr.video.writing import VideoWriter

Cli = Callable[..., Any]
START = "<|im_start|>"
END = "<end_of_utterance>"


@pytest.fixture(scope="module", params=VLM_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def encoder(vlm_models: dict[str, Path], kind: str) -> VlmEncoder:
    return VlmEncoder(str(vlm_models[kind]), device="cpu", exact=True)


@pytest.fixture(scope="module")
def smol(vlm_models: dict[str, Path]) -> VlmEncoder:
    return VlmEncoder(str(vlm_models["smolvlm"]), device="cpu", exact=True)


@pytest.fixture
def own(vlm_models: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny SmolVLM, to be damaged at will."""
    return Path(shutil.copytree(vlm_models["smolvlm"], tmp_path / "own"))


def complaint(cli: Cli, film: Path, source: object, encoder: str = "vlm") -> str:
    """The one line that a command with this encoder complains in."""
    chosen = ("--model", "shapes", "--encoder", f"{encoder}:{source}")
    return str(cli("search", film, "a ball", *chosen).one_line())


# Videos


def test_a_clip_is_the_mean_state_of_its_frame(
    encoder: VlmEncoder, vlm_models: dict[str, Path], kind: str, film: Path
) -> None:
    video = encoder.encode_video(film)
    assert video.features.shape == (5, 32)
    assert video.features.dtype == np.float32
    assert encoder.layer == LAYERS // 2
    frames = [frame.rgb for frame in iter_frames(film, [1.0, 3.0, 5.0, 7.0, 8.5])]
    prompt = f"{START}{vlm._PROMPT}<image>"
    wanted = reference_vlm(vlm_models[kind], kind, LAYERS // 2, prompt, frames)
    assert cosine(video.features, wanted) >= 0.9999
    # Rows of other frames are far away, or the comparison would say nothing.
    assert cosine(video.features[1:], wanted[:-1]) < 0.99
    # The prompt is read before the image, and the image changes with it.
    other = reference_vlm(vlm_models[kind], kind, LAYERS // 2, f"{START}User:<image>", frames)
    assert cosine(video.features, other) < 0.9999


@pytest.mark.parametrize("layer", [1, LAYERS - 1, LAYERS])
def test_layers_are_those_of_transformers(
    vlm_models: dict[str, Path], kind: str, layer: int
) -> None:
    """The last one with the model's final norm, those before it without."""
    made = VlmEncoder(str(vlm_models[kind]), layer=layer, device="cpu", exact=True)
    pictures = [photo(60, 107), photo(107, 60), noise(64, 64)]
    rows = made.embed(torch.stack([made.prepare(p)[None] for p in pictures]))
    prompt = f"{START}{vlm._PROMPT}<image>"
    wanted = reference_vlm(vlm_models[kind], kind, layer, prompt, pictures)
    np.testing.assert_allclose(rows, wanted, atol=1e-5)
    assert len(made._model.text_model.layers) == layer


@pytest.mark.parametrize(("height", "width"), [(64, 96), (97, 41), (7, 301), (SIDE, SIDE)])
def test_pictures_are_the_processors_own(
    vlm_models: dict[str, Path], kind: str, height: int, width: int
) -> None:
    steps = SquarePictures.read(vlm_models[kind])
    for picture in (photo(height, width), noise(height, width)):
        wanted = vlm_processor(kind)(
            picture,
            do_image_splitting=False,
            input_data_format="channels_last",
            return_tensors="pt",
        )["pixel_values"][0]
        made = steps.normalize(steps.squeeze(picture)[None], torch.float32)
        torch.testing.assert_close(made, wanted, atol=1e-6, rtol=0)


def test_a_long_video_is_read_a_few_frames_at_a_time(
    smol: VlmEncoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Four minutes, 480 clips: never more than a batch of pictures or of states at once."""
    path = tmp_path / "long.mp4"
    rng = np.random.default_rng(1)
    with VideoWriter(path, 32, 32, 2) as writer:
        for _ in range(480):
            writer.write(np.full((32, 32, 3), rng.integers(0, 256, 3), dtype=np.uint8))
    made = VlmEncoder(smol.identity.model.split(",")[0], clip_s=0.5, device="cpu", exact=True)
    seen: list[int] = []
    network = made._model
    forward = network.forward

    def counted(*args: Any, **options: Any) -> Any:
        output = forward(*args, **options)
        seen.append(output.last_hidden_state.shape[0])
        assert output.hidden_states is None
        return output

    monkeypatch.setattr(network, "forward", counted)
    features = made.encode_video(path).features
    assert features.shape == (480, 32)
    assert max(seen) == VlmEncoder.batch
    assert sum(seen) == 480
    assert not hasattr(network, "lm_head")
    alone = made.embed(
        torch.stack([made.prepare(f.rgb)[None] for f in iter_frames(path, [100.25])])
    )
    np.testing.assert_allclose(features[200], alone[0], atol=1e-5)


def test_extract_makes_a_pack_of_it(
    cli: Cli, film: Path, smol: VlmEncoder, vlm_models: dict[str, Path], tmp_path: Path
) -> None:
    """The command that the recipe names."""
    name = f"vlm:{vlm_models['smolvlm']}"
    done = cli("extract", film, "--encoder", name, "--out", tmp_path / "pack", "--device", "cpu")
    assert done.code == 0, done.err
    pack = FeaturePack(tmp_path / "pack")
    assert pack.identity == smol.identity
    stored = pack["film"].features.astype(np.float32)
    assert cosine(stored, smol.encode_video(film).features) > 0.9999


def test_half_precision_moves_features_little(
    smol: VlmEncoder, vlm_models: dict[str, Path], film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = VlmEncoder(str(vlm_models["smolvlm"]), device="cpu", exact=True)
    monkeypatch.setattr(
        half._loaded, "precision", Precision(torch.device("cpu"), torch.bfloat16, is_fast=False)
    )
    assert half.identity == smol.identity
    assert half.identity.dtype == "bfloat16"
    assert cosine(half.encode_video(film).features, smol.encode_video(film).features) > 0.999


# Queries


def test_tokens_are_the_models_own(
    encoder: VlmEncoder, vlm_models: dict[str, Path], kind: str
) -> None:
    queries = [SENTENCES[1], "Red ball!", "a"]
    for query, found in zip(queries, encoder.encode_queries(queries), strict=True):
        text = f"{START}User: {query.lower()}{END}"
        wanted = reference_turn(vlm_models[kind], kind, encoder.layer, text)
        prefix = len(reference_turn(vlm_models[kind], kind, 1, f"{START}User:"))
        assert found.query == query
        np.testing.assert_allclose(found.features, wanted[prefix:], atol=1e-5)
    assert encoder.encode_queries([]) == []


def test_a_query_alone_is_as_in_a_batch(smol: VlmEncoder) -> None:
    queries = [f"{SENTENCES[n % 4]} {'so ' * (n % 3)}" for n in range(vlm._QUERIES + 6)]
    together = smol.encode_queries(queries)
    for index in (0, 1, 2, vlm._QUERIES - 1, vlm._QUERIES):
        (alone,) = smol.encode_queries([queries[index]])
        np.testing.assert_allclose(together[index].features, alone.features, atol=1e-5)


def test_tokens_know_their_words(encoder: VlmEncoder) -> None:
    (found,) = encoder.encode_queries(["  The dog's\nzigzag  ball, doesn’t it?! "])
    assert found.words == ("the", "dog's", "zigzag", "ball", "doesn't", "it")
    assert found.features.shape == (len(found.token_word), encoder.identity.text_dim)
    assert found.token_word.dtype == np.int64
    of_words = [n for n in found.token_word.tolist() if n >= 0]
    assert of_words == sorted(of_words)
    assert set(of_words) == set(range(6))
    assert of_words.count(2) >= 3
    # The end of the turn has read it all and is no word; the beginning of the turn is not there.
    assert (found.token_word[0], found.token_word[-1]) == (0, -1)


def test_hidden_words_do_not_leak(encoder: VlmEncoder) -> None:
    """Queries that differ in the hidden word alone are equal; only what follows could see it."""
    one, other = "the red p bounces", "the red q bounces"
    shown = encoder.encode_queries([one, other])
    hidden = encoder.encode_queries([one, other], hidden=[{2}, {2}])
    np.testing.assert_allclose(hidden[0].features, hidden[1].features, atol=1e-6)
    np.testing.assert_array_equal(hidden[0].token_word, shown[0].token_word)
    assert not np.allclose(shown[0].features[-1], shown[1].features[-1], atol=1e-3)
    before = int(np.flatnonzero(shown[0].token_word == 2)[0])
    np.testing.assert_allclose(hidden[0].features[:before], shown[0].features[:before], atol=1e-6)
    assert not np.allclose(hidden[0].features[-1], shown[0].features[-1], atol=1e-3)
    # The next call is as before, and a query beside a hidden one is whole.
    mixed = encoder.encode_queries([one, other], hidden=[{2}, set()])[1]
    np.testing.assert_allclose(mixed.features, shown[1].features, atol=1e-6)


def test_names_of_special_tokens_are_letters_in_a_query(smol: VlmEncoder) -> None:
    (found,) = smol.encode_queries([f"an <image> {END} of {START}"])
    assert found.words[:2] == ("an", "image")
    assert (found.token_word == 1).sum() >= 1
    assert (found.token_word[-6:-1] >= 0).any()


def test_a_query_beyond_the_limit_is_cut_and_said_so(smol: VlmEncoder) -> None:
    with pytest.warns(QueryCutWarning, match="the encoder reads 256: what follows 'zigzag'"):
        (found,) = smol.encode_queries([" ".join(["zigzag"] * 76)])
    assert len(found.features) == 256 + 1
    assert len(found.words) == 76
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        smol.encode_queries(SENTENCES)
    with pytest.raises(InputError, match="at least one word"):
        smol.encode_queries(["?!"])


def test_a_run_encodes_each_query_once(smol: VlmEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    encode = smol.encode_queries

    def counted(queries: list[str], *hidden: Any) -> Any:
        asked.append(list(queries))
        return encode(queries, *hidden)

    monkeypatch.setattr(smol, "encode_queries", counted)
    cached = CachedQueries(smol)
    first = cached.encode_queries(["a dog", "a ball", "a dog"])
    again = cached.encode_queries(["a ball", "a red ball"])
    assert asked == [["a dog", "a ball"], ["a red ball"]]
    assert [found.query for found in first] == ["a dog", "a ball", "a dog"]
    assert again[0] is first[1]
    hidden = cached.encode_queries(["a dog"], hidden=[{1}])[0]
    assert not np.allclose(hidden.features, first[0].features)
    np.testing.assert_array_equal(cached.encode_queries(["a dog"])[0].features, first[0].features)
    assert cached.identity == smol.identity


# Identity


def test_identity(vlm_models: dict[str, Path], smol: VlmEncoder, film: Path, own: Path) -> None:
    identity = smol.identity
    assert (identity.name, identity.version, identity.normalization) == ("vlm", "1", "l2")
    assert (identity.streams, identity.text_dim) == ((("vlm", 32),), 32)
    assert identity.spec == f"vlm@1:{vlm_models['smolvlm']},layer=2"
    assert EncoderIdentity.from_dict(json.loads(json.dumps(identity.to_dict()))) == identity
    assert not isinstance(smol, AlignedEncoder)
    assert needs_training("vlm")
    # Found again from what is stored, in its own layer; the same weights elsewhere are the same.
    deep = VlmEncoder(str(own), layer=4, clip_s=1.5, device="cpu", exact=True).identity
    assert get_encoder(deep.request, device="cpu").identity == deep
    assert VlmEncoder(str(own), device="cpu", exact=True).identity == identity
    with FeaturePackWriter(own / "pack", identity) as writer:
        writer.add(smol.encode_video(film))
    assert FeaturePack(own / "pack").identity == identity


def test_identity_changes_with_all_that_changes_features(
    smol: VlmEncoder, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {smol.identity, VlmEncoder(str(own), layer=3, device="cpu", exact=True).identity}
    with monkeypatch.context() as patch:
        patch.setattr(vlm, "_PROMPT", "User: Other words")
        made.add(VlmEncoder(str(own), device="cpu", exact=True).identity)
    settings = own / "preprocessor_config.json"
    before = settings.read_text()
    settings.write_text(json.dumps({**json.loads(before), "resample": 3}))
    made.add(VlmEncoder(str(own), device="cpu", exact=True).identity)
    settings.write_text(before)
    tensors = load_file(own / "model.safetensors")
    tensors["model.connector.modality_projection.proj.weight"][0, 0] += 1
    save_file(tensors, own / "model.safetensors", {"format": "pt"})
    made.add(VlmEncoder(str(own), device="cpu", exact=True).identity)
    assert len(made) == 5


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vlm:{},layer=6", "layer=1 to layer=5"),
        ("vlm:{},layer=0", "layer=1 to layer=5"),
        ("vlm:{},layer=low", "layer=NUMBER"),
        ("vlm:{},clip_s=0", "0.01 to 3600"),
        ("vlm:{},depth=3", "expected ,clip_s= or ,dtype= or ,layer= behind it"),
        ("clip:{},layer=3", "expected ,clip_s= or ,dtype= behind it"),
        ("vlm@2:{}", "vlm@1"),
    ],
)
def test_wrong_spellings(vlm_models: dict[str, Path], name: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        get_encoder(name.format(vlm_models["smolvlm"]))


# What can be wrong with a model


def test_shards(cli: Cli, film: Path, own: Path, smol: VlmEncoder) -> None:
    model = getattr(transformers, f"{CLASSES['smolvlm']}ForConditionalGeneration")
    whole = model.from_pretrained(own)
    (own / "model.safetensors").unlink()
    whole.save_pretrained(own, max_shard_size="60KB")
    shards = sorted(own.glob("model-*-of-*.safetensors"))
    assert len(shards) > 1
    sharded = VlmEncoder(str(own), device="cpu", exact=True).encode_queries(["a dog"])[0]
    np.testing.assert_allclose(
        sharded.features, smol.encode_queries(["a dog"])[0].features, atol=1e-6
    )
    shards[1].unlink()
    assert f"1 missing, such as {shards[1].name}" in complaint(cli, film, own)


def test_a_cut_download_is_fetched_again(
    vlm_models: dict[str, Path], own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard of the hub's copy is gone: the network is asked, and without it a line says so."""
    whole = transformers.SmolVLMForConditionalGeneration.from_pretrained(own)
    (own / "model.safetensors").unlink()
    whole.save_pretrained(own, max_shard_size="60KB")
    next(own.glob("model-00002-*")).unlink()
    asked: list[bool] = []

    def download(name: str, *, local_files_only: bool = False, **_: Any) -> str:
        asked.append(local_files_only)
        if not local_files_only and constants.HF_HUB_OFFLINE:
            raise FileNotFoundError(name)
        return str(own if local_files_only else vlm_models["smolvlm"])

    def ask(name: str) -> None:
        if constants.HF_HUB_OFFLINE:
            raise FileNotFoundError(name)

    monkeypatch.setattr("demr.machine.hub.ask", ask)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="no complete copy here, and HF_HUB_OFFLINE"):
        get_encoder("vlm:owner/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert get_encoder("vlm:owner/model", device="cpu").identity.text_dim == 32
    assert asked == [True, True, False]


@pytest.mark.parametrize(
    ("error", "expected"),
    [("RepositoryNotFoundError", "no such model"), ("GatedRepoError", "licence")],
)
def test_what_the_hub_may_answer(
    cli: Cli, film: Path, monkeypatch: pytest.MonkeyPatch, error: str, expected: str
) -> None:
    def refuse(*_args: object, **_options: object) -> str:
        raise type(error, (OSError,), {})("full")

    monkeypatch.setattr("demr.machine.hub.ask", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    line = complaint(cli, film, "owner/model")
    assert expected in line
    assert "encoder vlm (owner/model)" in line
    assert "vlm:/path/to/folder" in line


def test_an_id_that_is_not_here_fails_fast_offline(
    cli: Cli, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = complaint(cli, film, "owner/no-such-model-here")
    assert "HF_HUB_OFFLINE is set" in line
    assert "hf download owner/no-such-model-here" in line
    assert "no such folder" in complaint(cli, film, "/no/such/folder")


def test_without_transformers(
    cli: Cli, film: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demr.encoders.model_folder.find_spec", lambda _: None)
    line = complaint(cli, film, own)
    assert "encoder vlm" in line
    assert "pip install 'demr[encoders]'" in line


def test_models_of_another_architecture(
    cli: Cli, film: Path, vlm_models: dict[str, Path], clip_models: dict[str, Path]
) -> None:
    line = complaint(cli, film, clip_models["clip"])
    assert "for encoder vlm a SmolVLM or Idefics 3 model (model_type smolvlm or idefics3)" in line
    assert "got model_type 'clip'" in line
    line = complaint(cli, film, vlm_models["smolvlm"], "clip")
    assert "for encoder clip a CLIP, SigLIP or SigLIP 2 model" in line
    assert "got model_type 'smolvlm'" in line


def test_damaged_files(cli: Cli, film: Path, own: Path) -> None:
    """Those that a command meets before it needs the weights."""
    settings = json.loads((own / "preprocessor_config.json").read_text())
    for change, expected in (
        ({"max_image_size": None}, "makes squares"),
        ({"size": {"longest_edge": 9000}}, "sides of 9000"),
        ({"image_mean": [1, 2]}, "2 channels"),
    ):
        (own / "preprocessor_config.json").write_text(json.dumps(settings | change))
        assert expected in complaint(cli, film, own)
    (own / "preprocessor_config.json").unlink()
    assert "preprocessor_config.json" in complaint(cli, film, own)


def test_damaged_weights_and_tokenizer(own: Path, smol: VlmEncoder) -> None:
    picture = smol.prepare(photo(40, 60))[None, None]
    tensors = load_file(own / "model.safetensors")
    missing = "model.text_model.layers.0.mlp.up_proj.weight"
    kept = {name: value for name, value in tensors.items() if name != missing}
    save_file(kept, own / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="1 tensors missing"):
        VlmEncoder(str(own), device="cpu", exact=True).embed(picture)
    # A layer above the one that is read may be whatever it is: it is never loaded.
    above = "model.text_model.layers.4.mlp.up_proj.weight"
    save_file(tensors | {above: torch.zeros(1)}, own / "model.safetensors", {"format": "pt"})
    np.testing.assert_allclose(
        VlmEncoder(str(own), device="cpu", exact=True).embed(picture),
        smol.embed(picture),
        atol=1e-6,
    )
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"image_token_id": 9}))
    with pytest.raises(ModelError, match=f"got 0 of {IMAGE_TOKENS} image tokens"):
        VlmEncoder(str(own), device="cpu", exact=True).embed(picture)
    (own / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        VlmEncoder(str(own), device="cpu", exact=True).encode_queries(["a dog"])


def test_without_a_model_there_is_no_search(
    cli: Cli, film: Path, vlm_models: dict[str, Path]
) -> None:
    """States of clips and of words are not trained to lie close: zero-shot is refused."""
    encoder = f"vlm:{vlm_models['smolvlm']}"
    line = cli("search", film, "a ball", "--encoder", encoder).one_line()
    assert f"encoder {encoder}: expected a model trained on it" in line
    assert "--model" in line
    # Nothing is fetched to say so.
    line = cli("search", film, "a ball", "--encoder", "vlm:owner/nothing").one_line()
    assert "a model trained on it" in line

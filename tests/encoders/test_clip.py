"""The encoder clip on tiny, randomly drawn models in the hub's own file format."""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests.encoders.clip_models import (
    KINDS,
    LIMIT,
    SENTENCES,
    cosine,
    reference_embedding,
    reference_text,
)

from demr.annotations.annotations import Annotation
from demr.answers.judging import LEAST_SHARE
from demr.answers.pretrained import APPENDED_DIMS, Pretrained, load_pretrained, save_pretrained
from demr.batches.dataset import MomentDataset
from demr.batches.masking import Masking, Vocabulary
from demr.encoders import AlignedEncoder, EncoderIdentity, VideoFeatures, get_encoder
from demr.encoders.clip.clip import ClipEncoder, middle_times
from demr.encoders.loaded_model import Precision
from demr.encoders.tokens import QueryCutWarning
from demr.errors import FeatureError, InputError, ModelError
from demr.features.pack import FeaturePack, FeaturePackWriter
from demr.features.prepare import prepare_query
from demr.network.model import DemrModel
from demr.network.settings import Architecture
from demr.search.retriever import MomentRetriever
from demr.video.reading import iter_frames

Cli = Callable[..., Any]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def encoder(clip_models: dict[str, Path], kind: str) -> ClipEncoder:
    return ClipEncoder(str(clip_models[kind]), device="cpu", exact=True)


@pytest.fixture(scope="module")
def clip(clip_models: dict[str, Path]) -> ClipEncoder:
    return ClipEncoder(str(clip_models["clip"]), device="cpu", exact=True)


# Videos


def test_a_clip_is_the_frame_in_its_middle(
    encoder: ClipEncoder, clip_models: dict[str, Path], kind: str, film: Path
) -> None:
    video = encoder.encode_video(film)
    assert (video.vid, video.clip_s) == ("film", 2.0)
    assert video.duration_s == pytest.approx(9.0, abs=0.01)
    assert video.features.shape == (5, encoder.identity.video_dim)
    assert video.features.dtype == np.float32
    frames = [frame.rgb for frame in iter_frames(film, [1.0, 3.0, 5.0, 7.0, 8.5])]
    wanted = reference_embedding(clip_models[kind], kind, frames)
    assert cosine(video.features, wanted) >= 0.9999
    # Rows of other frames are far away, or the comparison would say nothing.
    assert cosine(video.features[1:], wanted[:-1]) < 0.99
    np.testing.assert_array_equal(encoder.encode_video(str(film)).features, video.features)


def test_more_clips_than_a_batch_and_other_lengths(
    clip_models: dict[str, Path], film: Path
) -> None:
    short = ClipEncoder(
        str(clip_models["clip"]), clip_s=0.25, device="cpu", exact=True
    ).encode_video(film)
    assert short.features.shape[0] == 36
    # Two quarter seconds show the same picture, the next two another.
    assert cosine(short.features[::2], short.features[1::2]) > 0.99
    assert cosine(short.features[:-2:2], short.features[2::2]) < 0.9
    np.testing.assert_allclose(middle_times(9.0, 4.0), [2.0, 6.0, 8.5])


def test_half_precision_moves_features_little(
    clip_models: dict[str, Path], clip: ClipEncoder, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an accelerator computes serves a search on the CPU."""
    half = ClipEncoder(str(clip_models["clip"]), device="cpu", exact=True)
    monkeypatch.setattr(
        half._loaded, "precision", Precision(torch.device("cpu"), torch.float16, is_fast=False)
    )
    assert half.identity == clip.identity
    assert (half.identity.dtype, clip.identity.dtype) == ("float16", "float32")
    exact = clip.encode_video(film).features
    assert cosine(half.encode_video(film).features, exact) > 0.9995
    assert cosine(half.embed_queries(SENTENCES), clip.embed_queries(SENTENCES)) > 0.9995


def test_a_cpu_made_for_it_multiplies_in_bfloat16(
    clip_models: dict[str, Path], clip: ClipEncoder, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures alone: queries are few, and the same on every machine."""
    monkeypatch.setattr("demr.encoders.loaded_model.has_fast_bfloat16", lambda _: True)
    fast = ClipEncoder(str(clip_models["clip"]), device="cpu")
    assert fast.identity == clip.identity
    assert (fast.identity.dtype, clip.identity.dtype) == ("bfloat16", "float32")
    quick, exact = fast.encode_video(film).features, clip.encode_video(film).features
    assert cosine(quick, exact) > 0.999
    assert not np.array_equal(quick, exact)
    np.testing.assert_array_equal(fast.embed_queries(SENTENCES), clip.embed_queries(SENTENCES))
    spelled = get_encoder(f"clip:{clip_models['clip']},dtype=float32", device="cpu")
    np.testing.assert_array_equal(spelled.encode_video(film).features, exact)


# Queries


def test_tokens_and_embeddings_are_the_models_own(
    encoder: ClipEncoder, clip_models: dict[str, Path], kind: str
) -> None:
    queries = [SENTENCES[1], "Red ball!", SENTENCES[0], "a"]
    encoded, pooled = encoder.encode_queries(queries), encoder.embed_queries(queries)
    assert pooled.shape == (4, encoder.identity.video_dim)
    for query, features, row in zip(queries, encoded, pooled, strict=True):
        states, whole = reference_text(clip_models[kind], kind, query)
        assert features.query == query
        np.testing.assert_allclose(features.features, states, atol=2e-5)
        np.testing.assert_allclose(row, whole, atol=2e-5)
    assert encoder.encode_queries([]) == []
    assert encoder.embed_queries([]).shape == (0, encoder.identity.video_dim)


def test_a_query_alone_is_as_in_a_batch(encoder: ClipEncoder) -> None:
    queries = [f"{SENTENCES[n % 4]} {'so ' * (n % 3)}" for n in range(70)]
    together = encoder.encode_queries(queries)
    for index in (0, 1, 2, 63, 64, 69):
        (alone,) = encoder.encode_queries([queries[index]])
        np.testing.assert_allclose(together[index].features, alone.features, atol=1e-5)


def test_tokens_know_their_words(encoder: ClipEncoder, kind: str) -> None:
    query = "  The dog's\nzigzag  ball, doesn’t it?! "
    (found,) = encoder.encode_queries([query])
    assert found.words == ("the", "dog's", "zigzag", "ball", "doesn't", "it")
    assert found.features.shape == (len(found.token_word), encoder.identity.text_dim)
    assert found.token_word.dtype == np.int64
    # Every word has tokens, in order; the unknown one has several, all of them its own_clip.
    of_words = [n for n in found.token_word.tolist() if n >= 0]
    assert of_words == sorted(of_words)
    assert set(of_words) == set(range(6))
    assert of_words.count(2) >= 3
    assert found.token_word[-1] == -1
    assert (found.token_word[0] == -1) == (kind == "clip")


def test_hidden_words_do_not_leak(encoder: ClipEncoder) -> None:
    """Queries that differ in the hidden word alone are equal, and only where it is hidden."""
    one, other = "the red ball bounces", "the red door bounces"
    shown = encoder.encode_queries([one, other])
    if len(shown[0].features) != len(shown[1].features):
        one, other = "the red p bounces", "the red q bounces"
        shown = encoder.encode_queries([one, other])
    hidden = encoder.encode_queries([one, other], hidden=[{2}, {2}])
    np.testing.assert_allclose(hidden[0].features, hidden[1].features, atol=1e-6)
    assert not np.allclose(shown[0].features[-1], shown[1].features[-1], atol=1e-3)
    # The place is kept, the neighbours still see the rest, and the next call is as before.
    np.testing.assert_array_equal(hidden[0].token_word, shown[0].token_word)
    assert np.linalg.norm(hidden[0].features, axis=1).min() > 0
    rest = encoder.encode_queries([one.replace("red", "two")], hidden=[{2}])[0]
    assert not np.allclose(hidden[0].features[-1], rest.features[-1], atol=1e-3)
    np.testing.assert_array_equal(
        encoder.encode_queries([one])[0].features[0], shown[0].features[0]
    )
    np.testing.assert_allclose(
        encoder.encode_queries([one, other], hidden=[{2}, set()])[1].features,
        shown[1].features,
        atol=1e-6,
    )


def test_reconstruction_hides_all_tokens_of_a_word_at_the_input(
    encoder: ClipEncoder, film: Path, tmp_path: Path
) -> None:
    """The training's own way: an item of stage 1 whose word was hidden before the tower ran."""
    with FeaturePackWriter(tmp_path / "pack", encoder.identity) as writer:
        writer.add(encoder.encode_video(film))
    query = "someone opens the zigzag"
    annotation = Annotation("0", query, "film", 9.0, ((1.0, 4.0),))
    masking = Masking(Vocabulary(("zigzag",)), frozenset({"noun"}), True, encoder, seed=0)
    dataset = MomentDataset([annotation], FeaturePack(tmp_path / "pack"), encoder, masking)
    item = dataset[0]
    assert item.masked is not None
    owners = dataset.queries[0].token_word
    assert (owners == 3).sum() >= 3
    np.testing.assert_array_equal(item.masked.numpy(), owners == 3)
    hidden = prepare_query(encoder.encode_queries([query], hidden=[{3}])[0], encoder.identity)
    assert torch.equal(item.text, hidden)
    assert torch.isfinite(item.text).all()


def test_a_query_beyond_the_limit_is_cut_and_said_so(encoder: ClipEncoder, kind: str) -> None:
    limit = 77 if kind == "clip" else LIMIT
    query = " ".join(["zigzag"] * 40)
    with pytest.warns(QueryCutWarning, match=rf"the encoder reads {limit}: what follows 'zigzag'"):
        (found,) = encoder.encode_queries([query])
    assert len(found.features) == limit
    assert found.token_word[-1] == -1
    assert len(found.words) == 40
    assert found.token_word.max() < 39
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode_queries(SENTENCES[:1])


@pytest.mark.parametrize("empty", ["", "  ", "?!", "🙂"])
def test_a_query_without_words_is_refused(clip: ClipEncoder, empty: str) -> None:
    with pytest.raises(InputError, match="at least one word"):
        clip.encode_queries([empty])
    with pytest.raises(InputError, match="at least one word"):
        clip.embed_queries(["a dog", empty])


# Identity


def test_identity(clip_models: dict[str, Path], clip: ClipEncoder, own_clip: Path) -> None:
    identity = clip.identity
    assert (identity.name, identity.version, identity.normalization) == ("clip", "1", "l2")
    assert (identity.streams, identity.text_dim) == ((("clip", 24),), 32)
    assert identity.spec == f"clip@1:{clip_models['clip']}"
    assert EncoderIdentity.from_dict(json.loads(json.dumps(identity.to_dict()))) == identity
    assert isinstance(clip, AlignedEncoder)
    # The same weights elsewhere are the same encoder.
    copy = ClipEncoder(str(own_clip), device="cpu", exact=True).identity
    assert copy == identity
    assert copy.model != identity.model
    again = get_encoder(replace(identity, clip_s=1.5).request).identity
    assert again == replace(identity, clip_s=1.5)
    assert again != identity
    for kind in KINDS[1:]:
        assert ClipEncoder(str(clip_models[kind])).identity != identity


def test_identity_changes_with_weights_and_with_preprocessing(
    clip: ClipEncoder, own_clip: Path
) -> None:
    settings = own_clip / "preprocessor_config.json"
    before = settings.read_text()
    settings.write_text(json.dumps({**json.loads(before), "resample": 2}))
    assert ClipEncoder(str(own_clip)).identity != clip.identity
    settings.write_text(before)
    model = transformers.CLIPModel.from_pretrained(own_clip)
    with torch.no_grad():
        model.visual_projection.weight[0, 0] += 1
    model.save_pretrained(own_clip)
    changed = ClipEncoder(str(own_clip)).identity
    assert changed != clip.identity
    assert changed.digest in str(changed)
    assert clip.identity.digest in str(clip.identity)


def test_identities_stored_before_there_were_weights_still_load() -> None:
    builtin = get_encoder("builtin").identity
    stored = builtin.to_dict()
    assert list(stored) == [
        *("name", "version", "clip_s", "streams", "text_dim", "normalization"),
    ]
    assert EncoderIdentity.from_dict(stored) == builtin
    assert builtin.request == "builtin"


def test_a_pack_and_a_model_refuse_other_weights(
    clip_models: dict[str, Path],
    clip: ClipEncoder,
    own_clip: Path,
    film: Path,
    run: Path,
    tmp_path: Path,
) -> None:
    identity = clip.identity
    with FeaturePackWriter(tmp_path / "pack", identity) as writer:
        writer.add(clip.encode_video(film))
    assert FeaturePack(tmp_path / "pack").identity == identity
    torch.manual_seed(0)
    architecture = Architecture(dim=16, heads=2, layers=1, hidden=16)
    model = DemrModel(identity.video_dim + APPENDED_DIMS, identity.text_dim, architecture)
    folder = tmp_path / "run"
    folder.mkdir()
    save_pretrained(folder, Pretrained(model, "tiny-clip", identity, architecture))
    shutil.copy(run / "calibration.json", folder)
    assert load_pretrained(folder).identity == identity
    # Found again by what the model says about it, without naming the encoder.
    retriever = MomentRetriever.from_pretrained(folder, device="cpu")
    video = retriever.encode_video(film)
    assert retriever.search(video, "a red circle").moments
    assert video.encoder == identity.spec
    other = transformers.CLIPModel.from_pretrained(own_clip)
    with torch.no_grad():
        other.text_projection.weight += 1
    other.save_pretrained(own_clip)
    wrong = ClipEncoder(str(own_clip), device="cpu", exact=True)
    for made in (wrong, ClipEncoder(str(clip_models["clip"]), clip_s=1, device="cpu", exact=True)):
        with pytest.raises(ModelError) as caught:
            MomentRetriever.from_pretrained(folder, device="cpu", encoder=made)
        assert str(identity) in str(caught.value)
        assert str(made.identity) in str(caught.value)
    with pytest.raises(FeatureError, match=wrong.identity.digest):
        retriever.search(replace(video, identity=wrong.identity), "a red circle")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("clip:{},clip_s=0", "0.01 to 3600"),
        ("clip:{},clip_s=nan", "0.01 to 3600"),
        ("clip:{},clip_s=long", "clip_s=SECONDS"),
        ("clip:{},dtype=float16", "dtype=float32, or none"),
        ("clip@2:{}", "clip@1"),
        ("builtin,clip_s=2", "expected nothing behind it, got ,clip_s=2"),
        ("clip:{},clips=1", "expected ,clip_s= or ,dtype= behind it, once each, got ,clips=1"),
        ("clip:{},clip_s=1,clip_s=2", "got ,clip_s=2 as well"),
        ("slowfast,layer=8", "expected ,clip_s= or ,dtype= or ,short_side= behind it"),
        ("clip:{},clip_s", "one of builtin@1"),
    ],
)
def test_wrong_spellings(clip_models: dict[str, Path], name: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        get_encoder(name.format(clip_models["clip"]))


# Zero-shot search on the command line


def test_zero_shot_json(cli: Cli, film: Path, clip_models: dict[str, Path]) -> None:
    arguments = ("search", film, "a red circle", "two people", "--encoder")
    done = cli(*arguments, f"clip:{clip_models['clip']}", "--json", "--top", 2)
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert list(found) == ["video", "duration", "model", "encoder", "interval_level", "answers"]
    assert (found["model"], found["interval_level"]) == ("zero-shot", None)
    assert found["encoder"] == f"clip@1:{clip_models['clip']}"
    assert [answer["query"] for answer in found["answers"]] == ["a red circle", "two people"]
    assert any(answer["moments"] for answer in found["answers"])
    for answer in found["answers"]:
        assert (answer["verdict"], answer["present"]) == ("uncertain", None)
        assert len(answer["saliency"]) == 5
        assert any(note.startswith("zero-shot, uncalibrated") for note in answer["notes"])
        assert len(answer["moments"]) <= 2
        for moment in answer["moments"]:
            assert 0 <= moment["start"] < moment["end"] <= found["duration"]
            # The rule of all answers: what falls below the threshold is not a moment.
            assert LEAST_SHARE * answer["moments"][0]["score"] <= moment["score"] <= 1
            for key in ("start_interval", "end_interval", "aleatoric", "epistemic"):
                assert moment[key] is None


def test_zero_shot_for_people(
    cli: Cli, film: Path, clip_models: dict[str, Path], tmp_path: Path
) -> None:
    arguments = ("search", film, "a red circle", "--encoder", f"clip:{clip_models['siglip']}")
    table = cli(*arguments)
    assert table.code == 0
    text = " ".join(table.out.split())
    assert "note: zero-shot, uncalibrated" in text
    assert "uncertain" in text
    assert "nan" not in text.lower()
    csv = cli(*arguments, "--csv").out.splitlines()
    assert csv[1].startswith("a red circle,uncertain,,1,")
    assert ',,,,,,,,,uncertain,"zero-shot, uncalibrated' in csv[1]
    assert "nan" not in "".join(csv)
    srt = cli(*arguments, "--srt").out
    assert "uncertain, not known" in srt
    clips = cli(*arguments, "--csv", "--save-clips", tmp_path / "clips")
    assert clips.code == 0
    assert len(list((tmp_path / "clips").glob("*.mp4"))) == len(csv) - 1


def test_an_encoder_that_does_not_compare_needs_a_model(
    cli: Cli, film: Path, run: Path, clip_models: dict[str, Path]
) -> None:
    """Without a model, builtin is the bundled model; a model of another encoder is refused."""
    assert cli("search", film, "a red circle", "--encoder", "builtin", "--json").code == 0
    name = f"clip:{clip_models['clip']}"
    line = cli("search", film, "a red circle", "--encoder", name, "--model", run).one_line()
    assert "builtin@1" in line
    assert "clip@1" in line


def test_a_video_that_stops_early_has_no_moment_where_nothing_was_seen(clip: ClipEncoder) -> None:
    from demr import ZeroShotRetriever

    retriever = ZeroShotRetriever(clip)
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(size=(6, 24)), np.zeros((4, 24))]).astype(np.float32)
    video = retriever.prepare(VideoFeatures("v", 20.0, 2.0, features), "v.mp4", ("cut off",))
    answer = retriever.search(video, "a red circle")
    assert len(answer.saliency) == 10
    assert answer.saliency[6:] == (0.0,) * 4
    assert all(moment.end <= 12.0 for moment in answer.moments)
    assert answer.notes[0] == "cut off"
    with pytest.raises(FeatureError, match="at least one clip"):
        retriever.prepare(VideoFeatures("v", 20.0, 2.0, features * 0), "v.mp4")
    with pytest.raises(InputError, match="model"):
        ZeroShotRetriever(get_encoder("builtin"))
    for wrong, top in (([], 5), (["a"], 0), ([" "], 5)):
        with pytest.raises(InputError):
            retriever.search(video, wrong, top=top)

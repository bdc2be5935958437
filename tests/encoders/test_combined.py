"""Two encoders as one, and models of published features with features of one's own."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.encoders.clip_models import build_model

from demr.annotations.annotations import Annotation, write_annotations
from demr.answers.pretrained import APPENDED_DIMS, Pretrained, save_pretrained
from demr.encoders import EncoderIdentity, get_encoder
from demr.encoders.base import clip_count
from demr.encoders.clip.clip import ClipEncoder
from demr.encoders.combined import CombinedEncoder
from demr.encoders.frames import FrameEncoder
from demr.encoders.slowfast.encoder import SlowFastEncoder
from demr.errors import InputError, ModelError
from demr.features.pack import FeaturePack
from demr.features.prepare import prepare_video
from demr.network.model import DemrModel
from demr.network.settings import Architecture
from demr.search.retriever import UNKNOWN_WEIGHTS_NOTE, MomentRetriever
from demr.video.reading import iter_frames, probe_video

Cli = Callable[..., Any]
SMALL = 32


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP as wide as ViT-B/32: 512 for a clip and 512 for a token."""
    return build_model(tmp_path_factory.mktemp("clip") / "wide", "clip", text_dim=512, dims=512)


@pytest.fixture(scope="module")
def name(clip_folder: Path, slowfast_file: Path) -> str:
    return f"clip+slowfast@1:{clip_folder},slowfast={slowfast_file},short_side={SMALL}"


@pytest.fixture(scope="module")
def encoder(name: str) -> CombinedEncoder:
    made = get_encoder(name, device="cpu")
    assert isinstance(made, CombinedEncoder)
    return made


@pytest.fixture(scope="module")
def motion(slowfast_file: Path) -> SlowFastEncoder:
    return SlowFastEncoder(str(slowfast_file), short_side=SMALL, device="cpu")


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> ClipEncoder:
    return ClipEncoder(str(clip_folder), device="cpu")


def test_one_pass_gives_what_two_give(
    encoder: CombinedEncoder, motion: SlowFastEncoder, clip: ClipEncoder, film: Path
) -> None:
    assert isinstance(encoder, FrameEncoder)
    both = encoder.encode_video(film)
    assert both.features.shape == (5, 2304 + 512)
    np.testing.assert_array_equal(both.features[:, :2304], motion.encode_video(film).features)
    np.testing.assert_array_equal(both.features[:, 2304:], clip.encode_video(film).features)
    mine, theirs = (made.encode_queries(["a red circle"])[0] for made in (encoder, clip))
    np.testing.assert_array_equal(mine.features, theirs.features)


def test_each_stream_has_unit_length_and_the_times_stand_last(
    encoder: CombinedEncoder, film: Path
) -> None:
    video = encoder.encode_video(film)
    table, spans = prepare_video(video, encoder.identity)
    assert table.shape == (5, 2304 + 512 + 2)
    for part, raw in (
        (table[:, :2304], video.features[:, :2304]),
        (table[:, 2304:-2], video.features[:, 2304:]),
    ):
        lengths = np.linalg.norm(raw, axis=1, keepdims=True)
        np.testing.assert_allclose(part.numpy(), raw / lengths, atol=1e-5)
    torch.testing.assert_close(table[:, -2:], spans)
    torch.testing.assert_close(spans[:, 0], torch.arange(5) * 2 / video.duration_s)
    assert spans[-1, 1] == 1


def test_identity(
    encoder: CombinedEncoder, motion: SlowFastEncoder, clip: ClipEncoder, clip_folder: Path
) -> None:
    identity = encoder.identity
    assert (identity.name, identity.version, identity.clip_s) == ("clip+slowfast", "1", 2.0)
    assert identity.streams == (("slowfast", 2304), ("clip", 512))
    assert (identity.text_dim, identity.normalization) == (512, "l2")
    # What is stored is enough to make it again.
    stored = EncoderIdentity.from_dict(identity.to_dict())
    assert stored == identity
    assert get_encoder(stored.request, device="cpu").identity == identity
    # Either's weights or pictures change it.
    source = motion.identity.model.split(",", maxsplit=1)[0]
    large = CombinedEncoder(SlowFastEncoder(source, device="cpu", exact=True), clip)
    assert large.identity != identity
    assert replace(large.identity, digest="") == replace(identity, digest="")
    with pytest.raises(InputError, match="one clip length"):
        CombinedEncoder(motion, ClipEncoder(str(clip_folder), clip_s=1, device="cpu", exact=True))


@pytest.mark.parametrize(
    ("options", "clip_s"), [("", 2.0), (",clip_s=1.5", 1.5), (",clip_s=4", 4.0)]
)
def test_both_get_the_clip_length(name: str, options: str, clip_s: float) -> None:
    assert get_encoder(name + options, device="cpu").identity.clip_s == clip_s


@pytest.mark.parametrize(
    ("wrong", "error", "expected"),
    [
        ("clip+slowfast@2:{clip},slowfast={slowfast}", InputError, r"clip\+slowfast@1"),
        ("clip+slowfast:{clip},fast={slowfast}", InputError, ",short_side= or ,slowfast= behind"),
        ("slowfast+clip:{clip},slowfast={slowfast}", InputError, r"clip\+slowfast@1"),
        ("clip+slowfast:{clip},slowfast=/nope.pyth", ModelError, "no such file"),
        ("clip+slowfast:/nope,slowfast={slowfast}", ModelError, "no such folder"),
    ],
)
def test_wrong_spellings(
    clip_folder: Path, slowfast_file: Path, wrong: str, error: type[Exception], expected: str
) -> None:
    with pytest.raises(error, match=expected):
        get_encoder(wrong.format(clip=clip_folder, slowfast=slowfast_file))


def test_a_model_of_published_features_reads_ones_own(
    cli: Cli, run: Path, tmp_path: Path, name: str, encoder: CombinedEncoder, film: Path
) -> None:
    """From imported rows to a search of a video file, as a user of the released packs goes."""
    rng = np.random.default_rng(0)
    # CLIP's rows are one fewer, as in the published packs.
    for stream, rows, dims in (("slowfast", 76, 2304), ("clip", 75, 512)):
        (tmp_path / stream).mkdir()
        table = rng.standard_normal((rows, dims)).astype(np.float16)
        np.savez(tmp_path / stream / "v.npz", features=table)
    asked = Annotation(
        qid="1", query="a red circle", vid="v", duration_s=150.0, windows_s=((0.0, 9.0),)
    )
    write_annotations(tmp_path / "a.jsonl", [asked])
    done = cli(
        *("import", "features", "--encoder", "clip+slowfast@1", "--clip-length", "2"),
        *("--stream", f"slowfast={tmp_path / 'slowfast'}", "--stream", f"clip={tmp_path / 'clip'}"),
        *("--annotations", tmp_path / "a.jsonl", "--out", tmp_path / "pack"),
    )
    assert done.code == 0, done.err
    pack = FeaturePack(tmp_path / "pack")
    assert len(pack["v"].features) == clip_count(150.0, 2.0)
    assert pack.identity.digest == ""
    assert pack.identity.fits(encoder.identity)
    architecture = Architecture(dim=16, heads=2, layers=1, hidden=16)
    torch.manual_seed(0)
    width = pack.identity.video_dim + APPENDED_DIMS
    model = DemrModel(width, pack.identity.text_dim, architecture)
    folder = tmp_path / "model"
    folder.mkdir()
    save_pretrained(folder, Pretrained(model, "published", pack.identity, architecture))
    shutil.copy(run / "calibration.json", folder)
    retriever = MomentRetriever.from_pretrained(folder, device="cpu", encoder=encoder)
    answer = retriever.search(retriever.encode_video(film), "a red circle")
    assert answer.moments
    assert len(answer.saliency) == 5
    unknown = UNKNOWN_WEIGHTS_NOTE.format(model=encoder.identity.model)
    assert unknown in answer.notes
    assert unknown not in retriever.search(retriever.prepare(pack["v"], "v"), "a star").notes
    options = ("--model", folder, "--encoder", name, "--device", "cpu", "--json")
    searched = cli("search", film, "a red circle", *options)
    assert searched.code == 0, searched.err
    assert '"encoder": "clip+slowfast@1' in searched.out
    # SlowFast alone is no encoder of this model.
    motion = name.partition("slowfast=")[2]
    refused = cli("search", film, "a red circle", *options[:2], "--encoder", f"slowfast:{motion}")
    assert "an encoder that is clip+slowfast@1" in refused.one_line()


# What the published rows say of how they were made; docs/encoders.md draws the conclusions.


def alike(rows: NDArray[Any]) -> NDArray[Any]:
    """Cosine of every two rows around their mean."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    unit = unit - unit.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    product: NDArray[Any] = unit @ unit.T
    return product


def agreement(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Correlation of what two descriptions find alike in one video."""
    places = np.triu_indices(len(one), 1)
    return float(np.corrcoef(one[places], other[places])[0, 1])


@pytest.mark.data
def test_the_published_rows_of_a_video(data_dir: Path) -> None:
    folder, file = data_dir / "samples/qvh_official_format", "NUsG9BgSes0_210.0_360.0.npz"
    slowfast, clip = (
        np.load(folder / f"{stream}_features" / file)["features"] for stream in ("slowfast", "clip")
    )
    assert (slowfast.shape, clip.shape) == ((76, 2304), (75, 512))
    assert slowfast.dtype == clip.dtype == np.float16
    # Means of what a ReLU let through; neither is normalised.
    assert slowfast.min() >= 0
    assert clip.min() < 0
    for table, low, high in ((slowfast, 9, 30), (clip, 9, 12)):
        lengths = np.linalg.norm(table.astype(np.float64), axis=1)
        assert low < lengths.min() < lengths.max() < high
        assert np.ptp(lengths) > 1
    # Row i of both is the same clip: a row later or earlier they agree less.
    motion, looks = alike(slowfast.astype(np.float64)), alike(clip.astype(np.float64))
    inner = slice(2, 73)
    at = {
        shift: agreement(
            motion[2 + shift : 73 + shift, 2 + shift : 73 + shift], looks[inner, inner]
        )
        for shift in (-2, -1, 0, 1, 2)
    }
    assert max(at, key=lambda shift: at[shift]) == 0, at
    assert at[0] > 0.9


@pytest.mark.data
def test_a_published_clip_row_is_a_frame_near_the_clips_middle(data_dir: Path) -> None:
    rows = np.load(data_dir / "samples/vid.npz")["features"].astype(np.float64)
    film = data_dir / "samples/charades.mp4"
    # 30.7 s are rounded to 15 clips, where ours are 16.
    assert rows.shape == (15, 512)
    assert clip_count(probe_video(film).duration_s, 2.0) == 16
    looks, at = alike(rows), {}
    for offset in (0.0, 0.4, 0.97, 1.4, 1.9):
        frames = [
            frame.rgb
            for frame in iter_frames(film, np.arange(15) * 2 + offset, height=14, width=24)
        ]
        at[offset] = agreement(alike(np.stack(frames).reshape(15, -1).astype(np.float64)), looks)
    assert max(at, key=lambda offset: at[offset]) == 0.97, at

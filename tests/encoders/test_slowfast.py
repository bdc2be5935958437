"""The encoder slowfast on randomly drawn weights of the published names and shapes."""

import math
import pickle
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from email.message import Message
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.encoders.clip_models import cosine
from tests.encoders.slowfast_models import CAFFE2, Reference, disturb, layers, random_state

from demr.encoders import get_encoder
from demr.encoders.frames import FrameEncoder
from demr.encoders.loaded_model import Precision
from demr.encoders.slowfast import network
from demr.encoders.slowfast.encoder import SlowFastEncoder, _fold_norms, window_times
from demr.encoders.slowfast.network import (
    HEAD,
    NAMINGS,
    SLOW_FRAMES,
    SlowFastNetwork,
    names_in,
    tensor_shapes,
)
from demr.encoders.slowfast.weights import PUBLISHED, URL, find_weights
from demr.errors import FeatureError, InputError, ModelError
from demr.video.reading import iter_frames

Cli = Callable[..., Any]
SMALL = 32
GUIDE = Path(__file__).parents[2] / "docs" / "encoders.md"


@pytest.fixture(scope="module")
def encoder(slowfast_file: Path) -> SlowFastEncoder:
    return SlowFastEncoder(str(slowfast_file), short_side=SMALL, device="cpu", exact=True)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where torch.hub keeps the published file, empty."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "hub" / "checkpoints" / f"{PUBLISHED}.pyth"


# The network


def test_shapes_at_every_depth() -> None:
    with torch.device("meta"):
        built, clip = SlowFastNetwork().eval(), torch.empty(2, 3, 32, 224, 224)
    slow, fast = clip[:, :, list(SLOW_FRAMES)], clip
    shapes = []
    for level in built.blocks:
        slow, fast = level(slow, fast)
        shapes.append((tuple(slow.shape), tuple(fast.shape)))
    assert shapes == [
        ((2, 80, 8, 56, 56), (2, 8, 32, 56, 56)),
        ((2, 320, 8, 56, 56), (2, 32, 32, 56, 56)),
        ((2, 640, 8, 28, 28), (2, 64, 32, 28, 28)),
        ((2, 1280, 8, 14, 14), (2, 128, 32, 14, 14)),
        ((2, 2048, 8, 7, 7), (2, 256, 32, 7, 7)),
    ]
    assert built(clip).shape == (2, 2304)


def test_parameters_are_as_many_as_published() -> None:
    """34.57 million with the head in PyTorchVideo's model zoo.

    Convolutions by hand: stems 9408 + 5880; laterals 14 (8^2 + 32^2 + 64^2 + 128^2) = 301952.
    A block without a shortcut has inner (in k + 9 inner + out) weights. Norms: 2 a channel.
    """
    with torch.device("meta"):
        built = SlowFastNetwork()
    count = sum(parameter.numel() for parameter in built.parameters())
    listed = sum(math.prod(layer.shape) + 2 * layer.shape[0] for layer in layers())
    assert 14 * (8**2 + 32**2 + 64**2 + 128**2) == 301952
    laterals = [value for name, value in built.named_parameters() if "fast_to_slow" in name]
    assert sum(value.numel() for value in laterals) == 301952
    assert count == listed == 33_644_488
    assert count + 400 * 2304 + 400 == 34_566_488


@pytest.mark.parametrize("naming", NAMINGS)
def test_names_and_shapes_are_the_publishers(naming: network.Naming) -> None:
    published = {
        name: tuple(value.shape)
        for name, value in random_state(naming).items()
        if not name.endswith("num_batches_tracked")
    }
    shapes = tensor_shapes() | {HEAD[0]: (400, 2304), HEAD[1]: (400,)}
    own = names_in(naming, shapes)
    assert {name: shapes[here] for name, here in own.items()} == published


def test_the_slow_frames_are_those_of_the_publishers() -> None:
    assert torch.linspace(0, 31, 32 // 4).long().tolist() == list(SLOW_FRAMES)


def test_each_kind_of_block_computes_what_it_says() -> None:
    rng = np.random.default_rng(0)

    def compare(block: torch.nn.Module, shape: tuple[int, ...], wanted: Callable[..., Any]) -> None:
        reference = Reference({f"x.{name}": value for name, value in disturb(block).items()})
        x = rng.standard_normal(shape)
        with torch.inference_mode():
            found = block.eval()(torch.from_numpy(x[None]).float())[0].numpy()
        expected = wanted(reference, x)
        assert found.shape == expected.shape
        assert np.ptp(expected) > 1
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

    for frames in (1, 5):
        stem = network._Stem(6, frames)
        compare(stem, (3, 7, 20, 23), lambda reference, x: reference.stem(x, "x"))
    lateral = network._Lateral(3)
    compare(lateral, (3, 32, 4, 5), lambda reference, x: reference.lateral(x, "x"))
    for channels, reach, stride in ((8, 3, 1), (8, 1, 2), (6, 3, 2), (6, 1, 1)):
        block = network._ResidualBlock(channels, 4, 8, reach, stride)
        assert (block.branch1_conv is None) == (channels == 8 and stride == 1)
        compare(
            block, (channels, 5, 6, 7), lambda reference, x, s=stride: reference.residual(x, "x", s)
        )


def test_the_whole_network_computes_what_it_says() -> None:
    depths = (2, 1, 1, 1)
    built = SlowFastNetwork(16, depths).eval()
    reference = Reference(disturb(built))
    clips = np.random.default_rng(1).standard_normal((2, 3, 32, 40, 48))
    with torch.inference_mode():
        found = built(torch.from_numpy(clips).float()).numpy()
        _fold_norms(built)
        folded = built(torch.from_numpy(clips).float()).numpy()
    assert not any(isinstance(part, torch.nn.BatchNorm3d) for part in built.modules())
    expected = np.stack([reference.feature(clip, depths) for clip in clips])
    assert found.shape == (2, 16 * 32 + 2 * 32)
    size = np.abs(expected).max()
    np.testing.assert_allclose(found / size, expected / size, atol=1e-5)
    np.testing.assert_allclose(folded / size, expected / size, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 0.01 * size


# Weights


def test_every_naming_loads_to_the_same_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slowfast_file: Path
) -> None:
    wanted = find_weights(str(slowfast_file)).load().state_dict()
    theirs = random_state("pyslowfast")
    torch.save({"epoch": 3, "cfg": "NUM_GPUS: 1", "model_state": theirs}, tmp_path / "a.pyth")
    # As Caffe2 left it, what it needed to go on training included, made tensors as we advise.
    blobs = {name: value.numpy() for name, value in random_state("caffe2").items()}
    training = {"lr": np.ones(1), "model_iter": np.ones(1, int), "conv1_w_momentum": np.ones(3)}
    with (tmp_path / f"{PUBLISHED}.pkl").open("wb") as stream:
        pickle.dump({"blobs": blobs | training}, stream, 2)
    advice = re.search(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert advice
    monkeypatch.chdir(tmp_path)
    exec(advice[1], {})  # noqa: S102  (our own words)
    bare = {name: value for name, value in random_state("pytorchvideo").items() if name not in HEAD}
    save_file({name: value.half() for name, value in bare.items()}, tmp_path / "b.safetensors")
    for name in ("a.pyth", "slowfast_caffe2.pt", "b.safetensors"):
        found = find_weights(str(tmp_path / name)).load()
        assert not found.training
        for key, value in found.state_dict().items():
            if key.endswith("num_batches_tracked"):
                continue
            assert value.dtype == torch.float32
            half = name.startswith("b.")
            torch.testing.assert_close(
                value, wanted[key], rtol=1e-3 if half else 0, atol=1e-3 if half else 0
            )


def test_files_of_older_torch_load_too(tmp_path: Path) -> None:
    state = {name: torch.ones(1).expand(shape) for name, shape in pyslowfast_shapes().items()}
    torch.save(state, tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    found = find_weights(str(tmp_path / "old.pkl")).load()
    assert all((value == 1).all() for value in found.parameters())


def _without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


S2 = "s2.pathway1_res1.branch2.b.weight"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda state: _without(state, S2), f"1 tensors missing, such as {S2}"),
        (lambda state: state | {"s6.x": state[S2]}, "1 tensors unknown, such as s6.x"),
        (lambda state: state | {S2: state[S2][:4]}, r"\(4, 8, 1, 3, 3\) and not \(8, 8, 1, 3, 3\)"),
        (lambda state: state | {"head.projection.weight": torch.zeros(9, 5)}, r"not \(N, 2304\)"),
        (lambda state: state | {S2: [1.0]}, f"no numbers under {S2}"),
        (lambda _: {"conv.weight": torch.zeros(1)}, "such as conv.weight, not those of PyTorch"),
        (lambda _: {}, "none at all"),
        (lambda _: [1, 2], "no attribute 'get'|list"),
    ],
)
def test_what_is_not_whole_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], expected: str
) -> None:
    # Each a single number spread over its shape: the file stays small.
    shapes = pyslowfast_shapes()
    state = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
    torch.save({"model_state": change(dict(state))}, tmp_path / "x.pyth")
    with pytest.raises(ModelError, match=expected) as caught:
        find_weights(str(tmp_path / "x.pyth")).load()
    assert "x.pyth" in str(caught.value)


def pyslowfast_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers():
        conv, norm = layer.pyslowfast
        shapes[f"{conv}.weight"] = layer.shape
        shapes |= {f"{norm}.{kind}": layer.shape[:1] for kind in CAFFE2}
    return shapes


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("the trap went off",))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trap.pyth", pickle.dumps(_Trap(), 2)),
        ("text.pt", b"hello"),
        ("empty.pth", b""),
        ("cut.safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}"),
    ],
)
def test_damaged_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match="tensors by name") as caught:
        find_weights(str(tmp_path / name)).load()
    assert name in str(caught.value)
    assert "went off" not in capsys.readouterr().out


def test_files_that_cannot_be_weights(cli: Cli, film: Path, tmp_path: Path) -> None:
    # As Caffe2 saved it: a dict of blobs, pickled as such.
    (tmp_path / "c2.pkl").write_bytes(pickle.dumps({"blobs": {"conv1_w": np.zeros(3)}}, 2))
    line = search(cli, film, tmp_path / "c2.pkl")
    assert "a pickle of Caffe2" in line
    assert "docs/encoders.md" in line
    assert "a file of weights" in search(cli, film, film)


def search(cli: Cli, film: Path, source: object) -> str:
    chosen = ("--model", "shapes", "--encoder", f"slowfast:{source}")
    return str(cli("search", film, "a red circle", *chosen).one_line())


def test_paths_that_lead_nowhere(cli: Cli, film: Path, tmp_path: Path) -> None:
    assert "no such file" in search(cli, film, "nope")
    assert "got a folder" in search(cli, film, tmp_path)


class _Answer(BytesIO):
    def __init__(self, content: bytes, length: int) -> None:
        super().__init__(content)
        self.headers = Message()
        self.headers["Content-Length"] = str(length)


def test_the_published_file_is_fetched_once(
    monkeypatch: pytest.MonkeyPatch, cache: Path, slowfast_file: Path
) -> None:
    content, asked = slowfast_file.read_bytes(), []

    def answer(url: str, **_options: object) -> _Answer:
        asked.append(url)
        return _Answer(content, len(content))

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    first = SlowFastEncoder(device="cpu", exact=True)
    assert cache.read_bytes() == content
    assert first.identity == SlowFastEncoder(device="cpu", exact=True).identity
    assert first.identity.model == PUBLISHED
    assert asked == [URL]


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        (urllib.error.URLError("no route"), "no route"),
        (urllib.error.HTTPError(URL, 403, "Forbidden", Message(), None), "403"),
        (TimeoutError("timed out"), "timed out"),
        (None, "ended after 3 of 9 bytes"),
    ],
)
def test_what_a_publisher_may_answer(
    cli: Cli,
    film: Path,
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
    trouble: Exception | None,
    expected: str,
) -> None:
    def answer(*_args: object, **_options: object) -> _Answer:
        if trouble is not None:
            raise trouble
        return _Answer(b"abc", 9)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    line = search(cli, film, PUBLISHED)
    assert expected in line
    assert f"-o {cache} {URL}" in line
    assert not list(cache.parent.glob("*"))


def test_offline_nobody_is_asked(
    cli: Cli, film: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_args, **_options: pytest.fail("asked"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in search(cli, film, PUBLISHED)
    assert not cache.exists()


# The encoder


@pytest.mark.parametrize(
    ("fps", "places"),
    [
        # 64 frames of the video, by 32: at 30 a second they outlast the clip of 60.
        (30.0, {0: 0, 1: 2, 2: 4, 15: 30, 16: 32, 28: 56, 29: 58, 30: 59, 31: 59}),
        # 29.97 counts as 29: 60.87 over 31 is 1.9634.
        (30000 / 1001, {0: 0, 1: 1, 2: 3, 3: 5, 15: 29, 30: 58, 31: 59}),
        # 50.2 over 31 is 1.6194.
        (24.0, {0: 0, 1: 1, 2: 3, 3: 4, 15: 24, 30: 48, 31: 50}),
        # One place after the other: the second half of a clip is not looked at.
        (15.0, {0: 0, 1: 1, 15: 15, 31: 31}),
        # 127 over 31 is 4.0968: half of what is seen is the clip's last frame.
        (60.0, {0: 0, 1: 4, 14: 57, 15: 59, 31: 59}),
    ],
)
def test_frames_of_a_clip_by_hand(fps: float, places: dict[int, int]) -> None:
    times = window_times(10.0, fps, 2.0)
    assert times.shape == (5, 32)
    assert (np.diff(times, axis=1) >= 0).all()
    for index, place in places.items():
        # A place holds what is shown within half a place of it.
        np.testing.assert_allclose(
            times[:, index], np.arange(5) * 2 + (place + 0.5) / 30, atol=2e-4
        )


def test_the_last_clip_stands_still_at_its_end() -> None:
    times = window_times(5.0, 30.0, 2.0)
    assert times.shape == (3, 32)
    # One second of it is there: fifteen places of two frames, then the video's last frame.
    np.testing.assert_allclose(times[2, :3], [4.0166, 4.0832, 4.1499], atol=1e-4)
    np.testing.assert_allclose(times[2, 15:], 5.0 - 0.5 / 30)
    assert (times[2, :15] < 4.97).all()
    short = window_times(0.01, 30.0, 2.0)
    assert short.shape == (1, 32)
    assert (short == 0).all()
    # Clips of a second hold thirty places.
    assert window_times(2.0, 30.0, 1.0)[0].max() == pytest.approx(29.5 / 30, abs=2e-4)


def test_a_clip_is_what_its_frames_say(
    encoder: SlowFastEncoder, slowfast_file: Path, film: Path
) -> None:
    video = encoder.encode_video(film)
    assert (video.vid, video.clip_s) == ("film", 2.0)
    assert video.features.shape == (5, 2304)
    assert video.features.dtype == np.float32
    np.testing.assert_array_equal(encoder.encode_video(str(film)).features, video.features)
    plain = find_weights(str(slowfast_file)).load()
    for row, times in enumerate(window_times(9.0, 8.0, 2.0)):
        clip = []
        for frame in iter_frames(film, times):
            pixels = torch.from_numpy(frame.rgb.copy()).permute(2, 0, 1)[None]
            small = torch.nn.functional.interpolate(
                pixels, size=(SMALL, SMALL * 96 // 64), mode="bicubic", antialias=True
            )
            clip.append((small[0, :, :, 8:40].float() / 255 - 0.45) / 0.225)
        with torch.inference_mode():
            wanted = plain(torch.stack(clip, dim=1)[None])[0].numpy()
        np.testing.assert_allclose(
            video.features[row], wanted, atol=1e-4 * float(np.abs(wanted).max())
        )
    # The slow pathway stands first; both have something to say, and each clip something else.
    assert (np.linalg.norm(video.features[:, :2048], axis=1) > 0).all()
    assert (np.linalg.norm(video.features[:, 2048:], axis=1) > 0).all()
    assert np.abs(video.features[0] - video.features[1]).max() > 1e-3


def test_half_precision_moves_features_little(
    encoder: SlowFastEncoder, slowfast_file: Path, film: Path
) -> None:
    """What an accelerator computes serves a search on the CPU."""
    half = SlowFastEncoder(str(slowfast_file), short_side=SMALL, device="cpu", exact=True)
    half._precision = Precision(torch.device("cpu"), torch.float16, is_fast=False)
    assert half.identity.dtype == "float16"
    assert half.identity == encoder.identity
    clips = [half.prepare(frame.rgb) for frame in iter_frames(film, window_times(4, 8, 2)[0])]
    block = torch.stack(clips)[None]
    one, other = encoder.embed(block), half.embed(block)
    assert (one != other).any()
    assert cosine(one, other) > 0.9999


def test_identity(encoder: SlowFastEncoder, slowfast_file: Path, tmp_path: Path) -> None:
    identity = encoder.identity
    assert isinstance(encoder, FrameEncoder)
    assert identity.streams == (("slowfast", 2304),)
    assert (identity.text_dim, identity.normalization) == (0, "l2")
    assert len(identity.digest) == 16
    # Found again by what it says of itself, at the size it was made with.
    assert get_encoder(identity.request, device="cpu").identity == identity
    assert type(identity).from_dict(identity.to_dict()) == identity
    large = get_encoder(f"slowfast@1:{slowfast_file}", device="cpu").identity
    assert large.digest != identity.digest
    assert large.model == str(slowfast_file)
    moved = tmp_path / "moved.pyth"
    moved.hardlink_to(slowfast_file)
    assert SlowFastEncoder(str(moved), device="cpu", exact=True).identity == large
    other = tmp_path / "other.pyth"
    torch.save(torch.load(slowfast_file, weights_only=True), other)
    assert SlowFastEncoder(str(other), device="cpu", exact=True).identity != large


def test_it_reads_no_queries(encoder: SlowFastEncoder) -> None:
    with pytest.raises(InputError, match=r"clip\+slowfast"):
        encoder.encode_queries(["a red circle"])


def test_numbers_that_are_none_are_refused(encoder: SlowFastEncoder) -> None:
    own = SlowFastEncoder(encoder.identity.model.split(",", maxsplit=1)[0], short_side=SMALL)
    with torch.no_grad():
        next(own._network.parameters()).fill_(math.nan)
    with pytest.raises(FeatureError, match="NaN or infinity"):
        own.embed(torch.zeros(1, 32, 3, SMALL, SMALL, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("slowfast:{},clip_s=0", "0.1 to 60"),
        ("slowfast:{},clip_s=long", "clip_s=SECONDS"),
        ("slowfast:{},short_side=8", "32 to 1024"),
        ("slowfast:{},short_side=big", "short_side=PIXELS"),
        ("slowfast@2:{}", "slowfast@1"),
        ("slowfast:{},slowfast=x", "expected ,clip_s= or ,dtype= or ,short_side= behind it"),
    ],
)
def test_wrong_spellings(slowfast_file: Path, name: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        get_encoder(name.format(slowfast_file))

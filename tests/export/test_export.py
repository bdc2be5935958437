import errno
import functools
import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import locked
from torch import Tensor

import demr
from demr import MomentRetriever
from demr.answers.inference import RawPrediction, predict
from demr.answers.predictions import rank_all, rank_moments
from demr.answers.pretrained import Pretrained, find_model, load_pretrained, save_pretrained
from demr.batches.batch import Item
from demr.encoders import VideoFeatures
from demr.encoders.base import EncoderIdentity
from demr.errors import InputError, ModelError
from demr.export import exporting as export
from demr.export.exporting import INPUTS, OUTPUTS, Localiser, deviation, export_model, random_batch
from demr.features.pack import FeaturePack
from demr.features.prepare import prepare_query
from demr.network.model import DemrModel
from demr.network.settings import Architecture

Cli = Callable[..., Any]
Exports = Callable[[str, str], Path]
ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "run_onnx.py"
IDENTITY = EncoderIdentity("fake", "1", 2.0, (("colour", 3), ("motion", 2)), 4, "l2")
SMALL = Architecture(dim=8, heads=2, layers=1, hidden=16)
MODELS = {
    "rff": SMALL,
    "concat": replace(SMALL, fusion="concat", matching=True, text_layers=1),
}
# Both formats hold both fusions, and a head with a density; the bundled model is of reflective
# flipped fusion.
KINDS = [("shapes", "onnx"), ("rff", "pt2"), ("concat", "onnx"), ("concat", "pt2")]
SENTENCE = "a red circle"


def small(architecture: Architecture) -> Pretrained:
    """A model whose branches speak as loud as trained ones."""
    torch.manual_seed(0)
    model = DemrModel(7, 4, architecture).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.set_feature_statistics(torch.randn(5) / 10, torch.rand(5))
    if architecture.matching:
        model.evidential_head.fit_density(torch.randn(300, architecture.dim))
    return Pretrained(model, "small", IDENTITY, architecture)


@pytest.fixture(scope="session")
def folder_of(shared: Path) -> Callable[[str], Path]:
    """Folder of the bundled model or of a small one; tests must not change it."""

    def find(name: str) -> Path:
        if name not in MODELS:
            return find_model(name)
        folder = shared / f"small-{name}"
        with locked(shared, f"small-{name}"):
            if not folder.exists():
                save_pretrained(folder, small(MODELS[name]))
        return folder

    return find


@pytest.fixture(scope="session")
def exports(shared: Path, folder_of: Callable[[str], Path]) -> Exports:
    """Exported files by model and format, each made once."""

    def make(name: str, file_format: str) -> Path:
        out = shared / "exports" / f"{name}.{file_format}"
        with locked(shared, f"export-{out.name}"):
            if not out.exists():
                assert export_model(folder_of(name), file_format, out).deviation < 5e-5
        return out

    return make


@functools.cache
def load(path: Path) -> Callable[..., tuple[Tensor, ...]]:
    return export.load_onnx(path) if path.suffix == ".onnx" else export.load_pt2(path)


def assert_equal_outputs(found: Any, expected: Any, mask: Tensor) -> None:
    for name, ours, theirs in zip(OUTPUTS, found, expected, strict=True):
        # What is positive may be tiny, and must be right all the same.
        least = 1e-4 if OUTPUTS.index(name) < 4 else 0.0
        np.testing.assert_allclose(
            ours[mask].detach(), theirs[mask].detach(), rtol=1e-4, atol=least, err_msg=name
        )


@pytest.mark.parametrize(("name", "file_format"), KINDS)
def test_a_file_says_what_the_model_says(
    name: str, file_format: str, exports: Exports, folder_of: Callable[[str], Path]
) -> None:
    pretrained = load_pretrained(folder_of(name))
    model, run = Localiser(pretrained.model), load(exports(name, file_format))
    for seed, sizes in enumerate([(1, 1, 1), (1, 40, 1), (5, 1, 3), (2, 7, 5), (3, 61, 12)]):
        batch = random_batch(pretrained, *sizes, seed=seed + 1)
        assert_equal_outputs(run(*batch), model(*batch), batch[1])
    # The same as the model itself says, not only as its wrapping does.
    video, video_mask, text, text_mask = batch
    lengths = zip(video_mask.sum(1).tolist(), text_mask.sum(1).tolist(), strict=True)
    items = [
        Item(video[row, :clips], text[row, :tokens], video[row, :clips, -2:], 10.0)
        for row, (clips, tokens) in enumerate(lengths)
    ]
    said = dict(zip(OUTPUTS, run(*batch), strict=True))
    for row, raw in enumerate(predict(pretrained.model, items, 1.0)):
        proposals, clips = raw.proposals, len(items[row].video)
        for found, expected in (
            ("window", proposals.window_norm),
            ("foreground", proposals.foreground),
            ("saliency", raw.saliency),
            ("nig_alpha", proposals.alpha),
            ("aleatoric", np.sqrt(proposals.aleatoric) / 10),
            ("epistemic", np.sqrt(proposals.epistemic) / 10),
        ):
            ours = said[found][row, :clips].detach()
            np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5, err_msg=found)


@pytest.mark.parametrize(("name", "file_format"), KINDS)
def test_padding_changes_nothing(
    name: str, file_format: str, exports: Exports, folder_of: Callable[[str], Path]
) -> None:
    pretrained = load_pretrained(folder_of(name))
    run = load(exports(name, file_format))
    video, video_mask, text, text_mask = random_batch(pretrained, 1, 11, 4)
    alone = run(video, video_mask, text, text_mask)
    wide, wide_mask = torch.full((2, 24, video.shape[2]), 50.0), torch.zeros(2, 24).bool()
    long, long_mask = torch.full((2, 9, text.shape[2]), -50.0), torch.zeros(2, 9).bool()
    wide[:, :11], wide_mask[:, :11] = video, True
    long[:, :4], long_mask[:, :4] = text, True
    # The second item is longer: its clips are not the first one's affair either.
    wide_mask[1], long_mask[1] = True, True
    padded = [part[:1, :11] for part in run(wide, wide_mask, long, long_mask)]
    assert_equal_outputs(padded, alone, video_mask)
    changed = run(wide, wide_mask, long, long_mask)[1][1, :11]
    assert not np.allclose(changed.detach(), alone[1][0].detach(), atol=1e-3)


def metadata_of(path: Path) -> dict[str, str]:
    if path.suffix == ".onnx":
        import onnxruntime

        found = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
        return dict(found)
    facts: dict[str, Any] = dict.fromkeys(
        ("name", "demr_version", "config.json", "calibration.json"), ""
    )
    with path.open("rb") as stream:
        torch.export.load(stream, extra_files=facts)
    return facts


@pytest.mark.parametrize(("name", "file_format"), [("shapes", "onnx"), ("concat", "pt2")])
def test_a_file_tells_what_one_has_to_know(
    name: str, file_format: str, exports: Exports, folder_of: Callable[[str], Path]
) -> None:
    facts, folder = metadata_of(exports(name, file_format)), folder_of(name)
    pretrained = load_pretrained(folder)
    assert (facts["name"], facts["demr_version"]) == (pretrained.name, demr.__version__)
    for file in ("config.json", "calibration.json"):
        if (folder / file).exists():
            assert json.loads(facts[file]) == json.loads((folder / file).read_text()), file
        else:
            assert not facts.get(file)
    encoder = EncoderIdentity.from_dict(json.loads(facts["config.json"])["encoder"])
    assert encoder == pretrained.identity


@pytest.mark.parametrize("file_format", ["onnx", "pt2"])
def test_a_file_tells_nothing_of_this_machine(file_format: str, exports: Exports) -> None:
    content = exports("concat", file_format).read_bytes()
    for place in (str(Path(demr.__file__).parent), str(Path(torch.__file__).parent)):
        assert place.encode() not in content


def test_sizes_have_names(exports: Exports) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exports("concat", "onnx"))
    shapes = {part.name: part.shape for part in (*session.get_inputs(), *session.get_outputs())}
    assert tuple(shapes) == (*INPUTS, *OUTPUTS)
    assert shapes["video"] == ["B", "L", 7]
    assert shapes["text_mask"] == ["B", "T"]
    assert shapes["saliency"] == ["B", "L"]
    assert shapes["epistemic"] == ["B", "L", 2]


def test_the_documents_name_everything() -> None:
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    for name in (*INPUTS, *OUTPUTS, "config.json", "calibration.json", "demr_version"):
        assert f"`{name}`" in text, name


# The example


@pytest.fixture(scope="session")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("run_onnx", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def retriever() -> MomentRetriever:
    return MomentRetriever.from_pretrained(device="cpu")


@pytest.fixture(scope="session")
def stored(world: Path) -> VideoFeatures:
    """Features of a video, as a pack gives them."""
    return FeaturePack(world / "features" / "iid")[pack_vid(world)]


def pack_vid(world: Path) -> str:
    return FeaturePack(world / "features" / "iid").vids[0]


@pytest.fixture
def query(retriever: MomentRetriever, tmp_path: Path) -> Path:
    path = tmp_path / "query.npz"
    np.savez(path, features=retriever.encoder.encode_queries([SENTENCE])[0].features)
    return path


def run_alone(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The example, where nothing but NumPy and onnxruntime can be imported of what demr needs."""
    banned = ["demr", "torch", "scipy", "safetensors", "onnx", "onnxscript"]
    code = (
        f"import runpy, sys\nfor name in {banned}: sys.modules[name] = None\n"
        f"sys.argv[0] = {str(EXAMPLE)!r}\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-I", "-c", code, *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
    )


def raw_prediction(retriever: MomentRetriever, stored: VideoFeatures) -> RawPrediction:
    encoded = retriever.encoder.encode_queries([SENTENCE])[0]
    video = retriever.prepare(stored, "v")
    text = prepare_query(encoded, retriever.pretrained.identity)
    item = Item(video.inputs, text, video.span_norm, video.duration_s)
    return predict(retriever.pretrained.model, [item], video.clip_s)[0]


def test_the_example_finds_without_demr_what_demr_finds(
    exports: Exports,
    retriever: MomentRetriever,
    world: Path,
    stored: VideoFeatures,
    query: Path,
    tmp_path: Path,
) -> None:
    raw = raw_prediction(retriever, stored)
    expected = rank_all([raw], retriever.calibration, 3)[0].moments
    pack = world / "features" / "iid"
    done = run_alone(
        exports("shapes", "onnx"), pack, query, "--vid", pack_vid(world), "--top", 3, "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    np.testing.assert_allclose(found["window_s"], expected.window_s, atol=1e-3)
    np.testing.assert_allclose(found["score"], expected.score, atol=1e-4)
    for name in ("aleatoric", "epistemic"):
        variance = getattr(expected, name)
        np.testing.assert_allclose(found[f"{name}_s"], np.sqrt(variance), rtol=1e-3)

    clips = tmp_path / "video.npz"
    np.savez(clips, features=stored.features, duration_s=stored.duration_s)
    done = run_alone(exports("shapes", "onnx"), clips, query, "--top", 1)
    assert done.returncode == 0, done.stderr
    np.savez(clips, features=stored.features)
    refused = run_alone(exports("shapes", "onnx"), clips, query)
    assert refused.returncode == 2
    assert "duration_s" in refused.stderr
    spreads = np.sqrt(expected.aleatoric + expected.epistemic)[0]
    assert done.stdout.count("\n") == 1
    for second, spread in zip(expected.window_s[0], spreads, strict=True):
        assert f"{second:.2f} s ± {spread:.2f} (" in done.stdout


@pytest.mark.parametrize("ranking", ["score", "uncertainty", "fusion", "voting"])
def test_the_example_ranks_as_demr_does(
    ranking: Any, exports: Exports, retriever: MomentRetriever, stored: VideoFeatures, example: Any
) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exports("shapes", "onnx"))
    facts = dict(session.get_modelmeta().custom_metadata_map)
    options = {"ranking": ranking, "tau": 0.3, "disagreement": 2.0}
    facts["calibration.json"] = json.dumps(options)
    encoded = retriever.encoder.encode_queries([SENTENCE])[0]
    found = example.search(session, facts, stored.features, stored.duration_s, encoded.features, 5)
    raw = raw_prediction(retriever, stored)
    expected = rank_moments(raw, top=5, **options).moments
    assert len(expected) > 1
    np.testing.assert_allclose(found["window_s"], expected.window_s, atol=1e-3)
    np.testing.assert_allclose(found["score"], expected.score, rtol=1e-3)
    for name in ("aleatoric", "epistemic"):
        variance = getattr(expected, name)
        np.testing.assert_allclose(found[f"{name}_s"], np.sqrt(variance), rtol=1e-3)


def test_the_example_says_what_does_not_fit(
    exports: Exports, stored: VideoFeatures, example: Any, world: Path
) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exports("shapes", "onnx"))
    facts = dict(session.get_modelmeta().custom_metadata_map)
    features, tokens = stored.features, np.ones((2, 128), np.float32)
    search = example.search
    with pytest.raises(SystemExit, match=r"clips, where 500 s by 1 s make 500"):
        search(session, facts, features, 500.0, tokens, 1)
    with pytest.raises(SystemExit, match="tokens of 3 numbers, where the model was trained on"):
        search(session, facts, features, stored.duration_s, tokens[:, :3], 1)
    many = np.ones((121, features.shape[1]), np.float32)
    with pytest.raises(SystemExit, match="121 clips, where the model reads 120 at once"):
        search(session, facts, many, 121.0, tokens, 1)
    with pytest.raises(SystemExit, match="--vid must be one of"):
        example.read_pack(world / "features" / "iid", "nope")


# What goes wrong


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Localiser]:
    """Formats that are written at once: a file of eight bytes, which stands for the model."""
    known: list[Localiser] = []

    def write(localiser: Localiser, batch: Any, facts: Any) -> bytes:
        del batch, facts
        known.append(localiser)
        return b"exported"

    def load(path: Path) -> Localiser:
        assert path.read_bytes() == b"exported"
        return known[-1]

    for name in ("onnx", "pt2"):
        monkeypatch.setattr(export, f"_to_{name}", write)
        monkeypatch.setattr(export, f"load_{name}", load)
    return known


@pytest.fixture
def own(tmp_path: Path) -> Path:
    save_pretrained(tmp_path / "own", small(SMALL))
    return tmp_path / "own"


@pytest.mark.usefixtures("written")
def test_where_a_file_is_put(
    own: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(export, "find_model", lambda _: own)
        assert cli("export", "owner/hub").out.startswith("hub.onnx: ")
    done = cli("export", own)
    assert done.out == f"{own}/model.onnx: 0.0 MB, within 0.0e+00 of the model\n"
    assert cli("export", "own", "--format", "pt2").out.startswith("own/model.pt2: ")
    assert cli("export", "shapes", "--format", "pt2").out.startswith("shapes.pt2: ")
    assert cli("export", "shapes", "--out", "new/folder/a.bin").out.startswith("new/folder/a.bin")
    for name in ("own/model.onnx", "own/model.pt2", "shapes.pt2", "new/folder/a.bin"):
        assert (tmp_path / name).read_bytes() == b"exported"
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o644


@pytest.mark.usefixtures("written")
def test_what_is_there_stays(own: Path, cli: Cli, tmp_path: Path) -> None:
    (own / "model.onnx").write_bytes(b"old")
    line = cli("export", own).one_line()
    assert "model.onnx: expected a new file, got one that is there" in line
    assert (own / "model.onnx").read_bytes() == b"old"
    assert "got a folder" in cli("export", own, "--out", tmp_path).one_line()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nope"], "no such model"),
        (["{tmp}"], "config.json"),
        (["{tmp}/missing"], "no such model"),
        (["{own}", "--format", "tflite"], "tflite"),
        (["{own}", "--out", "{own}/config.json/a.onnx"], "choose another file with --out"),
        ([], "run"),
    ],
)
def test_what_cannot_be_exported(
    own: Path, cli: Cli, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    filled = [part.replace("{own}", str(own)).replace("{tmp}", str(tmp_path)) for part in arguments]
    assert expected in cli("export", *filled).one_line().lower()  # older typer: RUN
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_format_of_the_function(own: Path) -> None:
    with pytest.raises(InputError, match="format tflite: expected onnx or pt2"):
        export_model(own, "tflite")


@pytest.mark.usefixtures("written")
def test_a_full_disk_leaves_nothing(own: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(own.iterdir())

    def half_written(path: Path, content: bytes) -> int:
        path.open("wb").write(content[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half_written)
    line = cli("export", own).one_line()
    assert "model.onnx" in line
    assert "No space left on device; free disk space" in line
    assert sorted(own.iterdir()) == before


@pytest.mark.parametrize("off", [2e-4, math.nan])
def test_a_file_that_says_something_else_is_refused(
    off: float, own: Path, written: list[Localiser], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path) -> Callable[..., tuple[Tensor, ...]]:
        del path
        return lambda *batch: tuple(part + off for part in written[-1](*batch))

    monkeypatch.setattr(export, "load_pt2", load)
    with pytest.raises(ModelError, match=r"a file within 0\.0001 of the model"):
        export_model(own, "pt2")
    assert not (own / "model.pt2").exists()
    assert len(list(own.iterdir())) == 2


def test_deviation() -> None:
    zero = [torch.zeros(1, 2)] * 4 + [torch.ones(1, 2)] * 5

    def off(name: str, found: list[float], expected: list[float]) -> float:
        ours, theirs = list(zero), list(zero)
        ours[OUTPUTS.index(name)] = torch.tensor([found])
        theirs[OUTPUTS.index(name)] = torch.tensor([expected])
        return deviation(ours, theirs)

    assert deviation(zero, zero) == 0
    assert off("window", [0.5, 0.25], [0.5, 0.125]) == pytest.approx(0.125)
    assert off("foreground_logit", [9.0, 0.0], [8.0, 0.0]) == pytest.approx(1 / 8)
    assert off("nig_beta", [3e-6, 1.0], [2e-6, 1.0]) == pytest.approx(0.5)
    assert math.isnan(off("saliency", [math.nan, 0.0], [0.0, 0.0]))


def test_without_the_packages(own: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> Any:
        return None if name == "onnxruntime" else real(name, package)

    monkeypatch.setattr("demr.machine.terminal.find_spec", without)
    line = cli("export", own).one_line()
    assert "without onnxruntime" in line
    assert "demr[export]" in line


@pytest.mark.usefixtures("written")
def test_calibration_is_checked_and_not_needed(own: Path, cli: Cli) -> None:
    assert "calibration.json" not in export.metadata(own, load_pretrained(own))
    (own / "calibration.json").write_text('{"version": 1, "inter')
    assert "calibration.json" in cli("export", own).one_line()
    assert not (own / "model.onnx").exists()

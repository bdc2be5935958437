"""What tests share: rules for real data, and one tiny trained run.

Tests on real data are skipped without ``DEMR_DATA``, never skipped with it.
"""

import fcntl
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

# Of the worlds with two training, two validation and two test videos one of the shortest.
WORLD_SEED = 32


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("data") and not os.environ.get("DEMR_DATA"):
        pytest.skip("DEMR_DATA is not set")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get("DEMR_DATA") and item.get_closest_marker("data"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped although DEMR_DATA is set: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data; only tests marked ``data`` may ask for it."""
    return Path(os.environ["DEMR_DATA"])


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def one_line(self) -> str:
        """The complaint, checked to be what a user may see: one line, code 2, nothing printed."""
        assert self.code == 2, self
        assert self.out == "", self
        assert self.err.startswith("demr: "), self
        assert self.err.count("\n") == 1, self
        assert self.err.endswith("\n"), self
        assert len(self.err) < 1000, self
        return self.err.strip()


Cli = Callable[..., Finished]


def call_main(*arguments: object) -> int:
    """Run the command line in this process and return its exit code."""
    from demr.cli.main import main

    argv, show = sys.argv, warnings.showwarning
    sys.argv = ["demr", *map(str, arguments)]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv, warnings.showwarning = argv, show
    return 0


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command in this process: arguments -> code, output and errors."""

    def run(*arguments: object) -> Finished:
        capsys.readouterr()
        code = call_main(*arguments)
        printed = capsys.readouterr()
        return Finished(code, printed.out, printed.err)

    return run


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: sums must come in the same order as in another process."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(name="one_thread")
def one_thread_for_tests() -> Callable[[], AbstractContextManager[None]]:
    """The context above, for tests."""
    return one_thread


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test session; all workers see the same one."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Let one worker at a time through."""
    with (folder / f"{name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


# Trains on the tiny world within seconds.
TINY_RECIPE = """\
name: tiny
seed: 3
precision: "32"
gradient_clip: 1.0
data:
  root: {world}
  tests: {{iid: iid.jsonl, ood: ood.jsonl}}
model:
  {{dim: 16, heads: 2, layers: 1, hidden: 32, input_dropout: 0.1, matching: true, text_layers: 1}}
losses: {{error_scale: rank, absent_negatives: true}}
reconstruction: {{align_epochs: 1, epochs: 2, batch_size: 12, queries_per_video: 4, lr: 1.0e-3}}
retrieval:
  epochs: 3
  batch_size: 12
  queries_per_video: 4
  queries_per_epoch: 40
  lr: 1.0e-3
  warmup_epochs: 0.5
  refit_epochs: 1
  refit_share: 0.5
"""


def build_world(root: Path) -> None:
    """Render a shapes world of six short videos, with features, annotations and the mp4 files."""
    from demr.shapes.dataset import build_dataset

    counts = {"train": 2, "val": 2, "iid": 1, "ood": 1}
    build_dataset(root, counts, seed=WORLD_SEED, workers=1, keep_videos=True)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def world(shared: Path) -> Path:
    """The tiny world; tests must not change it."""
    root = shared / "world"
    with locked(shared, "world"):
        build_world(root)
    return root


@pytest.fixture(scope="session")
def recipe(shared: Path, world: Path) -> Path:
    """A config that trains on the tiny world within seconds."""
    path = shared / "tiny.yaml"
    with locked(shared, "recipe"):
        if not path.exists():
            path.write_text(TINY_RECIPE.format(world=world), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def run(shared: Path, recipe: Path) -> Path:
    """The finished run of ``demr train`` on the tiny world; tests must not change it."""
    folder = shared / "run"
    with locked(shared, "run"):
        if not (folder / "metrics.json").exists():
            with one_thread():
                assert call_main("train", recipe, "--out", folder) == 0
    return folder


@pytest.fixture
def own_run(run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed at will."""
    return Path(shutil.copytree(run, tmp_path / "own"))


@pytest.fixture(scope="session")
def clip_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny models of the CLIP family by kind; tests must not change them."""
    from tests.encoders.clip_models import KINDS, build_model

    root = tmp_path_factory.mktemp("models")
    return {kind: build_model(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="session")
def vlm_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a tiny SmolVLM, Idefics 3 and X-CLIP by kind; tests must not change them."""
    from tests.encoders.vlm_models import VLM_KINDS, build_vlm, build_xclip

    root = tmp_path_factory.mktemp("vlm")
    folders = {kind: build_vlm(root / kind, kind) for kind in VLM_KINDS}
    return {**folders, "xclip": build_xclip(root / "xclip")}


@pytest.fixture
def own_clip(clip_models: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny CLIP, to be damaged at will."""
    return Path(shutil.copytree(clip_models["clip"], tmp_path / "own"))


@pytest.fixture(scope="session")
def slowfast_file(shared: Path) -> Path:
    """Randomly drawn weights of SlowFast as PyTorchVideo publishes them; not to be changed."""
    import torch
    from tests.encoders.slowfast_models import random_state

    path = shared / "slowfast.pyth"
    with locked(shared, "slowfast"):
        if not path.exists():
            torch.save({"model_state": random_state("pytorchvideo")}, path)
    return path


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames at 10 a second, written by `VideoWriter`."""
    from tests.video.numbered_videos import grey

    from demr.video.writing import VideoWriter

    path = tmp_path_factory.mktemp("plain") / "plain.mp4"
    with VideoWriter(path, 64, 48, 10) as writer:
        for index in range(40):
            writer.write(grey(index, 48, 64))
    return path


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine seconds in which every half second looks different."""
    import numpy as np

    from demr.video.writing import VideoWriter

    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with VideoWriter(path, 96, 64, 8) as writer:
        for _ in range(18):
            coarse = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
            picture = coarse.repeat(8, axis=0).repeat(8, axis=1)
            for _ in range(4):
                writer.write(picture)
    return path

"""What ends a training early is one line, and the way on that the line names is one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.training.test_training import assert_same_run

from demr.errors import ConfigError
from demr.network.weights import check_finite
from demr.runs.config import load_config
from demr.runs.folder import check_processes
from demr.training.run import make_masking, train_run
from demr.training.trainer import read_checkpoint

Cli = Callable[..., Any]
OneThread = Callable[[], AbstractContextManager[None]]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def change_one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def fill_with_others(path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file({"weight": torch.zeros(3)}, path)
    else:
        torch.save(torch.zeros(3), path)


def drop_the_optimizer(path: Path) -> None:
    kept = torch.load(path, weights_only=True)
    torch.save({name: kept[name] for name in kept if name != "optimizer_states"}, path)


def diverge(path: Path) -> None:
    kept = torch.load(path, weights_only=True)
    next(iter(kept["state_dict"].values())).fill_(torch.inf)
    torch.save(kept, path)


def lay_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("name", "damages"),
    [
        ("stage1.safetensors", [cut, empty, fill_with_others, lay_a_pipe]),
        *(
            (
                f"{stage}.ckpt",
                [cut, change_one_bit, empty, fill_with_others, drop_the_optimizer, diverge,
                 lay_a_pipe],
            )
            for stage in ("stage2/last", "stage2/best", "refit/last")
        ),
    ],
)  # fmt: skip
def test_a_damaged_state_is_one_line_that_names_the_way_on(
    own_run: Path, recipe: Path, cli: Cli, name: str, damages: list[Callable[[Path], None]]
) -> None:
    path = own_run / "checkpoints" / name
    whole = path.read_bytes()
    for damage in damages:
        damage(path)
        done = cli("train", recipe, "--out", own_run, "--resume")
        assert done.code == 2, damage.__name__
        assert done.out == "", damage.__name__
        assert "Traceback" not in done.err, damage.__name__
        last = done.err.strip().splitlines()[-1]
        assert last.startswith(f"demr: {path}: expected "), last
        assert f"remove the folder {path.parent} and run --resume again" in last
        path.unlink()
        path.write_bytes(whole)


@pytest.mark.parametrize("folder", ["stage2", "refit", "."])
def test_without_the_damaged_folder_the_run_ends_as_it_would_have(
    run: Path, own_run: Path, recipe: Path, cli: Cli, one_thread: OneThread, folder: str
) -> None:
    for name in ("model.safetensors", "metrics.json", "predictions.jsonl"):
        (own_run / name).unlink()
    shutil.rmtree(own_run / "checkpoints" / folder)
    with one_thread():
        assert cli("train", recipe, "--out", own_run, "--resume").code == 0
    assert_same_run(run, own_run)


def test_a_checkpoint_is_compared_with_its_checksums(tmp_path: Path) -> None:
    """PyTorch itself reads other numbers than were saved, and says nothing."""
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"weight": torch.ones(4096)}}, path)
    assert read_checkpoint(path)["state_dict"]["weight"].sum() == 4096
    change_one_bit(path)
    assert torch.load(path, weights_only=True)["state_dict"]["weight"].sum() != 4096
    with pytest.raises(Exception, match="is not what was written"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("settings", "epoch"),
    [
        # The alignment ends with finite weights, out of which nothing finite comes.
        (["reconstruction.lr=1e30"], "training, qr epoch 2"),
        (["reconstruction.epochs=0", "retrieval.lr=1e30"], "training, train epoch 1"),
    ],
)
def test_a_training_that_diverges_is_one_line(
    recipe: Path, tmp_path: Path, cli: Cli, settings: list[str], epoch: str
) -> None:
    overrides = [part for setting in settings for part in ("--set", setting)]
    done = cli("train", recipe, "--out", tmp_path / "run", *overrides)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    last = done.err.strip().splitlines()[-1]
    assert last.startswith(f"demr: {epoch}: expected finite losses and weights, got ")
    assert ".lr below 1e+30" in last
    for path in tmp_path.rglob("*.ckpt"):
        check_finite(read_checkpoint(path)["state_dict"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("RANK", "x", "a whole number from 0 on"),
        ("RANK", "", "a whole number from 0 on"),
        ("LOCAL_RANK", "-1", "a whole number from 0 on"),
        ("GROUP_RANK", "\u0663", "a whole number from 0 on"),
        ("SLURM_PROCID", "1.0", "a whole number from 0 on"),
        ("WORLD_SIZE", "9" * 5000, "a whole number from 0 on"),
        # Who is no process of this training would train, and write nothing.
        ("RANK", "2", "no more than 1 in a training with devices: 2"),
        ("LOCAL_RANK", "7", "no more than 1 in a training with devices: 2"),
        ("NODE_RANK", "1", "no more than 0 in a training with devices: 2"),
    ],
)
def test_the_environment_is_checked(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv("RANK", "1")
    check_processes(2)
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"environment variable {name}.*{message}") as caught:
        check_processes(2)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID"])
def test_the_environment_is_checked_before_lightning_reads_it(
    recipe: Path, tmp_path: Path, name: str
) -> None:
    """As it is imported, it takes what there is for a number."""
    done = subprocess.run(
        [sys.executable, "-m", "demr", "train", str(recipe), "--out", str(tmp_path / "run")],
        check=False, capture_output=True, text=True, env=os.environ | {name: "x"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        f"demr: environment variable {name}: expected a whole number from 0 on, as torchrun and "
        f"clusters set it, got 'x'; unset {name}\n"
    )
    assert not (tmp_path / "run").exists()


def test_a_cluster_that_starts_other_processes_is_one_line(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "night"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"devices: expected .* got .*ntasks=4.*--resume"):
        train_run(load_config(recipe), tmp_path / "run")


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((0, 0), None),
        ((3, 0), "never masks 15.0% of the training queries: 3 have no noun"),
        ((0, 2), "never masks 10.0% of the training queries: of 2 it is not known which token is"),
        ((3, 1), "20.0% of the training queries: 3 have no noun, of 1 it is not known which"),
    ],
)
def test_queries_that_are_never_masked_are_counted(
    recipe: Path, capsys: pytest.CaptureFixture[str], counts: tuple[int, int], said: str | None
) -> None:
    class Queries(SimpleNamespace):
        def __len__(self) -> int:
            return 20

    train: Any = Queries(words_of=lambda _: ["circle"], never_masked=lambda _: counts)
    make_masking(load_config(recipe), train, encoder=None)
    printed = capsys.readouterr().err
    assert printed == "" if said is None else said in printed

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from safetensors.torch import load_file

from demr.answers.domain import describe_domain
from demr.answers.inference import predict_dataset
from demr.answers.pretrained import APPENDED_DIMS
from demr.batches.batch import collate
from demr.batches.dataset import MomentDataset
from demr.encoders.words import split_words
from demr.errors import ConfigError, ModelError
from demr.network.losses import LossBreakdown, evidential_terms, retrieval_loss
from demr.network.model import DemrModel
from demr.runs.config import TrainConfig, load_config
from demr.runs.data import open_data
from demr.training import stages as training
from demr.training import trainer
from demr.training.run import (
    _describe,
    make_masking,
    open_training_data,
    train_run,
    train_stages,
)
from demr.training.stages import rate_factor
from demr.training.trainer import AtomicCheckpointIO, use_bf16

# Runs the real command, but dies like a process that the machine kills: without any clean-up.
KILLED = """
import os, signal, sys
from demr.training import stages as training
from demr.training import trainer
from demr.cli.main import main

stage, epoch, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
kind = getattr(training, stage)
step = kind.training_step

def training_step(self, data, batch_idx):
    if self.current_epoch == epoch and batch_idx == batch:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, data, batch_idx)

kind.training_step = training_step
sys.argv = ["demr", *sys.argv[4:]]
main()
"""
Cli = Callable[..., Any]
OneThread = Callable[[], AbstractContextManager[None]]


def train_until_killed(stage: str, epoch: int, batch: int, *arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, stage, str(epoch), str(batch), "train"]
        + [str(argument) for argument in arguments],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("model.safetensors", "config.json", "calibration.json", "predictions.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_resume_after_kills_in_both_stages_is_bit_for_bit_the_same(
    run: Path, recipe: Path, tmp_path: Path, cli: Cli, one_thread: OneThread
) -> None:
    killed = tmp_path / "killed"
    checkpoints = killed / "checkpoints"
    train_until_killed("ReconstructionStage", 1, 1, recipe, "--out", killed)
    assert (checkpoints / "stage1" / "last.ckpt").exists()
    assert not (checkpoints / "stage1.safetensors").exists()
    train_until_killed("RetrievalStage", 2, 1, recipe, "--out", killed, "--resume")
    assert (checkpoints / "stage1.safetensors").exists()
    assert (checkpoints / "stage2" / "last.ckpt").exists()
    assert not (killed / "model.safetensors").exists()
    first = load_file(checkpoints / "stage1.safetensors")
    for name, value in load_file(run / "checkpoints" / "stage1.safetensors").items():
        assert torch.equal(value, first[name]), name
    with one_thread():
        assert cli("train", recipe, "--out", killed, "--resume").code == 0
    assert_same_run(run, killed)


class StoppedError(Exception):
    """Raised by a test in the middle of a training."""


def test_a_run_that_was_moved_keeps_its_best_epoch(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's checkpoints hold absolute paths, and forget the best score where they changed."""
    settings = ("reconstruction.epochs=0", "reconstruction.align_epochs=0")
    config = load_config(recipe, [*settings, "retrieval.epochs=4", "retrieval.refit_epochs=0"])

    def worse_each_epoch(stage: training.RetrievalStage) -> dict[str, float]:
        stage.log("val/quality", 90.0 - stage.current_epoch)
        return {"quality": 90.0 - stage.current_epoch}

    step = training.RetrievalStage.training_step

    def step_until_epoch_two(stage: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        if stage.current_epoch == 2:
            raise StoppedError
        return step(stage, batch, batch_idx)

    monkeypatch.setattr(training.RetrievalStage, "_validate", worse_each_epoch)
    with monkeypatch.context() as stopping:
        stopping.setattr(training.RetrievalStage, "training_step", step_until_epoch_two)
        with pytest.raises(StoppedError):
            train_run(config, tmp_path / "begun")
    moved = Path(shutil.move(tmp_path / "begun", tmp_path / "moved"))
    train_run(config, moved, resume=True)
    best = torch.load(moved / "checkpoints" / "stage2" / "best.ckpt", weights_only=True)
    assert best["epoch"] == 0
    weights = load_file(moved / "model.safetensors")
    for name, value in weights.items():
        assert torch.equal(value, best["state_dict"][f"model.{name}"]), name
    # Nothing is trained again where the finished run is moved and resumed.
    again = Path(shutil.move(moved, tmp_path / "again"))
    before = (again / "model.safetensors").read_bytes()
    train_run(config, again, resume=True)
    assert (again / "model.safetensors").read_bytes() == before


def test_in_bfloat16_a_resumed_run_repeats_and_all_that_is_stored_is_float32(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: OneThread
) -> None:
    settings = ["precision=bf16", "reconstruction.align_epochs=0", "reconstruction.epochs=1"]
    # Whose state, the errors it has seen, has to be resumed as well.
    settings += ["losses.error_scale=anchored", "retrieval.epochs=2"]
    config = load_config(recipe, settings)
    step = training.RetrievalStage.training_step
    predicted: list[tuple[bool, torch.dtype]] = []
    predict = predict_dataset

    def step_until_epoch_one(stage: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        if stage.current_epoch == 1:
            raise StoppedError
        return step(stage, batch, batch_idx)

    def watched(model: Any, *given: Any, **named: Any) -> Any:
        dtype = next(model.parameters()).dtype
        predicted.append((torch.is_autocast_enabled("cpu"), dtype))
        return predict(model, *given, **named)

    monkeypatch.setattr(training, "predict_dataset", watched)
    with one_thread():
        train_run(config, tmp_path / "whole")
        with monkeypatch.context() as stopping:
            stopping.setattr(training.RetrievalStage, "training_step", step_until_epoch_one)
            with pytest.raises(StoppedError):
                train_run(config, tmp_path / "stopped")
        train_run(config, tmp_path / "stopped", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    for stage in ("stage2", "refit"):
        whole, resumed = (
            torch.load(tmp_path / run / "checkpoints" / stage / "last.ckpt", weights_only=True)
            for run in ("whole", "stopped")
        )
        errors = whole["state_dict"]["anchored.errors"]
        assert (errors >= 0).any()
        assert torch.equal(errors, resumed["state_dict"]["anchored.errors"])
    # The checkpoint is chosen by what the saved model will predict.
    assert set(predicted) == {(False, torch.float32)}
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert (tmp_path / "whole" / "config.yaml").read_text().count("precision: bf16") == 1


def test_a_full_disk_loses_nothing(
    run: Path, recipe: Path, tmp_path: Path, cli: Cli, one_thread: OneThread
) -> None:
    full = tmp_path / "full"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow beyond 100 kB: the first checkpoint does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        done = cli("train", recipe, "--out", full)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    last = done.err.strip().splitlines()[-1]
    assert done.code == 2
    assert last.startswith("demr: ")
    assert os.strerror(errno.EFBIG) in last
    assert "Traceback" not in done.err
    assert not [path for path in full.rglob("*") if path.name.startswith(".")]
    with one_thread():
        assert cli("train", recipe, "--out", full, "--resume").code == 0
    assert_same_run(run, full)


def data_of(recipe: Path, **changes: Any) -> tuple[TrainConfig, Any, MomentDataset, MomentDataset]:
    config = load_config(recipe, [f"{key}={value}" for key, value in changes.items()])
    data = open_data(config.data)
    train, val = (data.dataset(part[:12]) for part in (data.read(config.data.train), data.val()))
    return config, data, train, val


def test_stage_one_moves_the_text_and_stage_two_spares_the_head(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"reconstruction.epochs": 1, "retrieval.epochs": 1, "precision": "bf16"}
    config, data, train, val = data_of(recipe, **changes)
    lightning.seed_everything(3, verbose=False)
    identity = data.encoder.identity
    model = DemrModel(identity.video_dim + APPENDED_DIMS, identity.text_dim, config.model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds: list[tuple[torch.dtype, ...]] = []
    real = retrieval_loss

    def watched(output: Any, batch: Any, weights: Any, anchored: Any) -> LossBreakdown:
        assert not torch.is_autocast_enabled("cpu")
        nig = output.nig
        kinds.append((nig.loc.dtype, nig.nu.dtype, nig.excess.dtype, nig.beta.dtype))
        kinds.append((output.clip_embedding.dtype,))
        return real(output, batch, weights, anchored)

    monkeypatch.setattr(training, "retrieval_loss", watched)
    masking = make_masking(config, train, data.encoder)
    train_stages(config, tmp_path, model, train, val, masking)
    # The network runs in bfloat16, the evidence does not.
    assert set(kinds) == {(torch.float32,) * 4, (torch.bfloat16,)}

    stage1 = load_file(tmp_path / "checkpoints" / "stage1.safetensors")
    for part in ("text_projection", "query_pool", "fusion"):
        names = [name for name in before if name.startswith(part)]
        assert names
        moved = [not torch.equal(stage1[f"model.{name}"], before[name]) for name in names]
        assert any(moved), part
    # Stage 1 has no loss on boundaries or evidence.
    for name, value in before.items():
        if name.startswith(("evidential_head", "boundary_head", "foreground_head")):
            assert torch.equal(stage1[f"model.{name}"], value), name

    last = torch.load(tmp_path / "checkpoints" / "stage2" / "last.ckpt", weights_only=True)
    state = last["state_dict"]
    heads = [name for name in state if name.startswith("head.")]
    assert heads
    assert all(torch.equal(state[name], stage1[name]) for name in heads)
    trained = sum(len(group["params"]) for group in last["optimizer_states"][0]["param_groups"])
    assert trained == len(list(model.parameters()))
    assert not torch.equal(
        state["model.text_projection.2.weight"], stage1["model.text_projection.2.weight"]
    )


def test_the_refit_changes_the_evidential_head_alone(run: Path) -> None:
    checkpoints = run / "checkpoints"
    best = torch.load(checkpoints / "stage2" / "best.ckpt", weights_only=True)["state_dict"]
    saved = load_file(run / "model.safetensors")
    changed = {
        name for name, value in saved.items() if not torch.equal(value, best[f"model.{name}"])
    }
    assert changed
    assert {name.split(".")[0] for name in changed} == {"evidential_head"}
    refit = torch.load(checkpoints / "refit" / "last.ckpt", weights_only=True)
    trained = sum(len(group["params"]) for group in refit["optimizer_states"][0]["param_groups"])
    assert trained == 2


def test_the_refit_runs_the_network_as_a_prediction_does(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout its evidence would be that of a noisier network than the one that answers."""
    config, data, train, _ = data_of(recipe, **{"model.input_dropout": 0.5})
    identity = data.encoder.identity
    model = DemrModel(identity.video_dim + APPENDED_DIMS, identity.text_dim, config.model)
    stage = training.RefitStage(model, config, train)
    monkeypatch.setattr(stage, "log_dict", lambda *_args, **_named: None)
    batch = collate([train[row] for row in range(6)])
    stage.train()  # as Lightning leaves it before the first step
    assert model.training
    loss = stage.training_step(batch, 0)
    model.eval()
    nll, regularizer = evidential_terms(model(batch), batch, stage.weights)
    torch.testing.assert_close(loss, nll + stage.weights.lambda_geom * regularizer)


def test_what_is_known_of_the_training_data(recipe: Path) -> None:
    config = load_config(recipe, ["retrieval.refit_epochs=0"])
    opened = open_training_data(config)
    pack, asked = opened.data.pack, opened.data.read(config.data.train)
    present = [one for one in asked if one.windows_s]
    strange = replace(present[0], qid="strange", query="a zebra juggles", windows_s=())
    opened = replace(opened, train=opened.data.dataset([*present, strange], training=True, seed=3))
    model = DemrModel(4, 4, config.model)
    known = _describe(config, model, opened)
    # "zebra" stood in a query whose moment is not in its video: no clip ever showed one.
    assert known.known_words
    assert not known.known_words & {"zebra", "juggles"}
    assert known.known_words == {word for one in present for word in split_words(one.query)}
    # The edge of the domain is where videos lie that were not trained on.
    shown, held_out = (
        [pack[vid].features for vid in sorted({one.vid for one in part})]
        for part in (present, opened.splits["val"])
    )
    assert known.domain == describe_domain(shown, held_out)
    assert known.domain != describe_domain(shown, [])


def test_the_best_epoch_is_kept(run: Path) -> None:
    folder = run / "checkpoints" / "stage2"
    best, last = (
        torch.load(folder / f"{name}.ckpt", weights_only=True) for name in ("best", "last")
    )
    callbacks = [
        state for name, state in last["callbacks"].items() if "'monitor': 'val/quality'" in name
    ]
    assert len(callbacks) == 1
    assert Path(callbacks[0]["best_model_path"]).name == "best.ckpt"
    weights = load_file(run / "model.safetensors")
    # The refit replaces the evidential head, and nothing else: the test above.
    kept = {name for name in weights if not name.startswith("evidential_head.")}
    assert len(kept) == len(weights) - 2
    for name in kept:
        assert torch.equal(weights[name], best["state_dict"][f"model.{name}"]), name


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 0.01), (0.5, 0.25), (2, 1.0), (6, 0.5), (10, 0.0), (12, 0.0)],
)
def test_cosine_schedule(epoch: float, expected: float) -> None:
    found = rate_factor(epoch, warmup=2, total=10, schedule="cosine")
    assert found == pytest.approx(expected, abs=1e-3)


def test_step_schedule_without_warmup() -> None:
    rates = [rate_factor(epoch, warmup=0, total=10, schedule=4) for epoch in (0, 3.99, 4, 9)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1])


@pytest.mark.parametrize("fast", [True, False])
def test_precision_asks_the_hardware_only_where_it_may(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("avx512_bf16", "amx_bf16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(trainer, "resolve_device", lambda: torch.device("cpu"))
    for name in names:
        known = dict.fromkeys(names, False) | {name: fast}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known)
        assert use_bf16("bf16")
        assert not use_bf16("32")
        assert use_bf16("auto") is fast
    # Another accelerator than CUDA would train, whatever the CPU beside it can do.
    monkeypatch.setattr(trainer, "resolve_device", lambda: torch.device("mps"))
    assert not use_bf16("auto")


@pytest.mark.parametrize("fast", [True, False])
def test_precision_takes_an_accelerator_s_bfloat16_only_if_it_is_no_emulation(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: fast or including_emulation
    )
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": not fast})
    assert use_bf16("auto") is fast


def test_a_failed_save_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    store = AtomicCheckpointIO()
    store.save_checkpoint({"epoch": 1}, path)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(ModelError, match=r"No space.*--resume"):
        store.save_checkpoint({"epoch": 2}, path)
    assert store.load_checkpoint(path) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_that_hides_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.ckpt"
    torch.save({"epoch": SimpleNamespace(a=1)}, path)
    with pytest.raises(Exception, match=r"Weights only"):
        AtomicCheckpointIO().load_checkpoint(path)


def drop_version(state: dict[str, Any]) -> None:
    del state["pytorch-lightning_version"]


def fewer_groups(state: dict[str, Any]) -> None:
    del state["optimizer_states"][0]["param_groups"][0]


def number_for_moments(state: dict[str, Any]) -> None:
    state["optimizer_states"][0]["state"][0] = 3.5


@pytest.mark.parametrize("damage", [drop_version, fewer_groups, number_for_moments])
def test_a_checkpoint_that_cannot_be_restored_is_one_line(
    own_run: Path, recipe: Path, cli: Cli, damage: Callable[[dict[str, Any]], None]
) -> None:
    for name in ("model.safetensors", "config.json", "calibration.json", "metrics.json"):
        (own_run / name).unlink()
    path = own_run / "checkpoints" / "stage2" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    damage(state)
    torch.save(state, path)
    done = cli("train", recipe, "--out", own_run, "--resume")
    assert done.code == 2
    assert f"{path}: expected a checkpoint of this training, got" in done.err.splitlines()[-1]


def test_masking_needs_words_of_the_kind_asked_for(recipe: Path) -> None:
    config = load_config(recipe)
    nothing: Any = SimpleNamespace(words_of=lambda _: [])
    with pytest.raises(ConfigError, match=r"reconstruction\.pos.*noun"):
        make_masking(config, nothing, encoder=None)
    without = load_config(recipe, ["reconstruction.epochs=0"])
    assert make_masking(without, nothing, encoder=None) is None

import json
import os
import pickletools
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from demr.annotations.annotations import Annotation, read_annotations, write_annotations
from demr.answers.calibration import Calibration
from demr.answers.pretrained import load_pretrained
from demr.batches.absent import make_absent
from demr.errors import ConfigError, DemrError, ModelError
from demr.evaluation.measuring import PredictionWarning, evaluate_predictions
from demr.evaluation.predictions import read_predictions
from demr.runs import folder as runs
from demr.runs.calibrating import calibrate_run
from demr.runs.config import load_config
from demr.runs.data import open_data
from demr.runs.evaluating import evaluate_run
from demr.runs.folder import default_run_folder, load_run
from demr.runs.splits import hold_out
from demr.training.run import train_run

Cli = Callable[..., Any]


def test_a_run_folder_is_complete(run: Path, recipe: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert names == {
        *("config.yaml", "config.json", "model.safetensors", "calibration.json"),
        *("metrics.json", "predictions.jsonl", "error_bins.json", "uncertainty.png"),
        *("train.log", "logs", "checkpoints"),
    }
    assert load_config(run / "config.yaml") == load_config(recipe)
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    assert resolved["losses"]["lambda_geom"] == 0.01  # what the recipe leaves out is there too
    assert list((run / "logs").rglob("events.out.tfevents*"))
    assert Calibration.load(run / "calibration.json").presence is not None
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics.keys() == {"val", "iid", "ood", "gap"}
    assert metrics["gap"]["R1@0.5"] == metrics["iid"]["R1@0.5"] - metrics["ood"]["R1@0.5"]


def test_predictions_are_of_all_queries_that_have_one_moment_or_none(
    run: Path, world: Path
) -> None:
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    annotations = [
        annotation
        for split in ("val", "iid", "ood")
        for annotation in read_annotations(world / f"{split}.jsonl")
        if annotation.kind != "vague"
    ]
    assert [row["query"] for row in rows] == [a.query for a in annotations]
    assert all(row["present"] is None or 0 <= row["present"] <= 1 for row in rows)
    assert all(row["verdict"] == "uncertain" for row in rows if row["present"] is None)
    # Evaluators need the whole ranking, whatever a search lists.
    assert all(len(row["pred_relevant_windows"]) > 1 for row in rows)


def test_no_file_of_a_run_needs_unpickling(run: Path) -> None:
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".ckpt", ".safetensors", ".json", ".yaml"}
    for path in files:
        if path.suffix == ".ckpt":
            assert torch.load(path, weights_only=True)["state_dict"]
            continue
        assert not path.read_bytes().startswith(b"PK"), path
        with pytest.raises((ValueError, UnicodeDecodeError)):
            list(pickletools.genops(path.read_bytes()))


def test_the_model_knows_its_words_and_its_videos(run: Path) -> None:
    pretrained = load_pretrained(run)
    assert pretrained.name == "tiny"
    assert pretrained.known_words is not None
    assert {"the", "a"} & pretrained.known_words
    assert pretrained.domain is not None
    for scale in pretrained.domain["scales"]:
        assert len(scale["low"]) == pretrained.identity.video_dim
        assert scale["edge"] > 0


def test_evaluating_again_gives_the_same_numbers(own_run: Path) -> None:
    before = json.loads((own_run / "metrics.json").read_text())
    lines = (own_run / "predictions.jsonl").read_bytes()
    (own_run / "metrics.json").unlink()
    evaluate_run(own_run)
    after = json.loads((own_run / "metrics.json").read_text())
    assert after.keys() == before.keys()
    for split, metrics in before.items():
        for name, value in metrics.items():
            assert after[split][name] == pytest.approx(value, abs=1e-3), (split, name)
    assert len((own_run / "predictions.jsonl").read_bytes().splitlines()) == len(lines.splitlines())


@pytest.mark.parametrize("command", ["evaluate", "calibrate", "balance"])
def test_nothing_is_rendered_where_the_data_are_missing(
    own_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli, command: str
) -> None:
    config = own_run / "config.yaml"
    values = yaml.safe_load(config.read_text())
    values["data"]["root"] = "data/elsewhere"
    config.write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    line = cli(command, own_run).one_line()
    assert line.startswith("demr: data/elsewhere: expected the run's data folder")
    assert "run this in the folder that training was started in, or train first" in line
    assert not (tmp_path / "data").exists()


def test_a_split_whose_answers_are_not_public_is_predicted(own_run: Path, world: Path) -> None:
    hidden = [replace(a, windows_s=None) for a in read_annotations(world / "iid.jsonl")]
    metrics = evaluate_run(own_run, splits={"test": hidden})
    assert metrics["test"] == {}
    lines = (own_run / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == len([a for a in hidden if a.kind != "vague"])


def test_calibrating_again_gives_the_same_file(own_run: Path) -> None:
    before = Calibration.load(own_run / "calibration.json")
    again = calibrate_run(own_run)
    assert (again.ranking, again.tau) == (before.ranking, before.tau)
    assert Calibration.load(own_run / "calibration.json") == again


def test_a_run_never_overwrites_another(run: Path, recipe: Path, cli: Cli) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    line = cli("train", recipe, "--out", run).one_line()
    assert "existing" in line
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_file_is_no_run_folder(recipe: Path, tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "taken"
    path.write_text("mine")
    assert "got a file" in cli("train", recipe, "--out", path).one_line()
    assert path.read_text() == "mine"


def test_of_two_runs_that_begin_at_once_one_gets_the_folder(recipe: Path, tmp_path: Path) -> None:
    config = load_config(recipe)
    runs.claim_folder(config, tmp_path / "new", resume=False)
    with pytest.raises(ConfigError, match="existing one"):
        runs.claim_folder(config, tmp_path / "new", resume=False)


def test_default_folders_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_run_folder("x") == Path("runs/x")
    Path("runs/x").mkdir(parents=True)
    assert default_run_folder("x") == Path("runs/x-2")
    Path("runs/x-2").mkdir()
    assert default_run_folder("x") == Path("runs/x-3")


@pytest.mark.parametrize("rank", ["RANK", "LOCAL_RANK", "NODE_RANK"])
def test_all_processes_take_the_folder_of_the_main_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEMR_RUN_FOLDER", raising=False)
    with monkeypatch.context() as other:
        # As under torchrun, where nothing is inherited.
        other.setenv(rank, "1")
        with pytest.raises(ConfigError, match="--out"):
            default_run_folder("x")
    Path("runs/x").mkdir(parents=True)
    assert default_run_folder("x") == Path("runs/x-2")
    Path("runs/x-2").mkdir()
    with monkeypatch.context() as other:
        other.setenv(rank, "1")
        assert default_run_folder("x") == Path("runs/x-2")
    # What a former training left in the environment does not bind the next one.
    assert default_run_folder("x") == Path("runs/x-3")


@pytest.mark.slow
def test_two_processes_train_one_run(recipe: Path, tmp_path: Path) -> None:
    demr = Path(sys.executable).with_name("demr")
    command = [str(demr), "train", str(recipe), "--set", "devices=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["tiny"]
    assert "Traceback" not in done.stderr
    assert done.stderr.count("run finished") == 1
    assert (tmp_path / "runs/tiny/metrics.json").exists()


@pytest.mark.parametrize("change", ["retrieval.lr=0.5", "seed=4", "model.dim=32"])
def test_resume_with_another_config_is_refused(
    run: Path, recipe: Path, cli: Cli, change: str
) -> None:
    line = cli("train", recipe, "--out", run, "--resume", "--set", change).one_line()
    assert "config this run was started with" in line


def test_a_run_killed_as_it_began_is_resumed(recipe: Path, tmp_path: Path) -> None:
    """Its config was created, to claim the folder, and not yet written."""
    run, config = tmp_path / "run", load_config(recipe)
    run.mkdir()
    (run / "config.yaml").touch()
    runs.check_folder(config, run, resume=True)
    runs.claim_folder(config, run, resume=True)
    assert load_config(run / "config.yaml") == config
    assert [path.name for path in run.iterdir()] == ["config.yaml"]


def test_resuming_what_is_no_run_is_refused(recipe: Path, tmp_path: Path, cli: Cli) -> None:
    out = tmp_path / "nothing"
    assert "run to resume" in cli("train", recipe, "--out", out, "--resume").one_line()
    assert not out.exists()


def test_resuming_a_finished_run_changes_no_weight(own_run: Path, recipe: Path) -> None:
    before = (own_run / "model.safetensors").read_bytes()
    train_run(load_config(recipe), own_run, resume=True)
    assert (own_run / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        "data.train=missing.jsonl",
        "data.tests={iid: missing.jsonl}",
        "data.encoder=clap",
        "data.features=nowhere",
    ],
)
def test_a_typo_in_the_data_leaves_nothing_behind(
    recipe: Path, tmp_path: Path, cli: Cli, change: str
) -> None:
    out = tmp_path / "out"
    done = cli("train", recipe, "--out", out, "--set", change)
    assert done.code == 2
    assert done.out == ""
    assert done.err.strip().splitlines()[-1].startswith("demr: ")
    assert "Traceback" not in done.err
    assert not out.exists()


def test_an_empty_split_is_refused(recipe: Path, world: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    config = load_config(recipe, [f"data.tests={{none: {empty}}}"])
    assert config.data.root == world
    with pytest.raises(DemrError, match=r"empty\.jsonl"):
        train_run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_says_so(own_run: Path, tmp_path: Path) -> None:
    (own_run / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="unfinished run"):
        load_run(own_run)
    with pytest.raises(ModelError, match="got no run"):
        load_run(tmp_path)


def test_calibrating_on_labels_of_ones_own(own_run: Path, world: Path, cli: Cli) -> None:
    own = own_run / "own.jsonl"
    labels = read_annotations(world / "iid.jsonl") + read_annotations(world / "ood.jsonl")
    write_annotations(own, labels)
    done = cli("calibrate", own_run, "--annotations", own)
    assert done.code == 0
    assert "intervals from 16 queries" in done.out
    interval = Calibration.load(own_run / "calibration.json").interval
    assert interval is not None
    assert interval.points == 16


def switch_off_absent_queries(run: Path) -> None:
    """No absent queries are made for splits that have none."""
    config = run / "config.yaml"
    values = yaml.safe_load(config.read_text())
    values["data"]["absent_queries"] = False
    config.write_text(yaml.safe_dump(values))


def test_present_labels_alone_keep_what_is_known_of_presence(
    own_run: Path, world: Path, cli: Cli
) -> None:
    switch_off_absent_queries(own_run)
    before = Calibration.load(own_run / "calibration.json")
    own = own_run / "own.jsonl"
    labels = read_annotations(world / "iid.jsonl") + read_annotations(world / "ood.jsonl")
    write_annotations(own, [label for label in labels if label.windows_s])
    done = cli("calibrate", own_run, "--annotations", own)
    assert done.code == 0
    assert "no absent queries, so presence cannot be calibrated: the one there is kept" in done.err
    after = Calibration.load(own_run / "calibration.json")
    assert before.presence is not None
    assert after.presence == before.presence
    assert f"presence from {before.presence.points} queries" in done.out
    assert (after.ranking, after.tau) == (before.ranking, before.tau)
    assert after.interval != before.interval
    # A file that cannot be read may hold a presence: it is not written over.
    damaged = (own_run / "calibration.json").read_bytes()[:-50]
    (own_run / "calibration.json").write_bytes(damaged)
    assert "add absent queries" in cli("calibrate", own_run, "--annotations", own).one_line()
    assert (own_run / "calibration.json").read_bytes() == damaged
    (own_run / "calibration.json").unlink()
    done = cli("calibrate", own_run, "--annotations", own)
    assert "search will say so" in done.err
    assert "presence from no queries" in done.out
    assert Calibration.load(own_run / "calibration.json").presence is None


def test_present_labels_calibrate_presence_by_absent_queries_made_of_them(
    own_run: Path, world: Path, cli: Cli
) -> None:
    before = Calibration.load(own_run / "calibration.json")
    own = own_run / "own.jsonl"
    labels = [a for a in read_annotations(world / "train.jsonl") if a.windows_s]
    write_annotations(own, labels)
    done = cli("calibrate", own_run, "--annotations", own)
    assert done.code == 0
    after = Calibration.load(own_run / "calibration.json")
    assert before.presence is not None
    assert after.presence is not None
    assert after.presence != before.presence
    made = make_absent(labels)
    assert len(made) > 5
    assert after.presence.points == 2 * len(made)


def test_absent_queries_made_for_a_split_change_no_other_number(own_run: Path, world: Path) -> None:
    config = load_run(own_run)[0]
    data = open_data(config.data)
    train = [a for a in read_annotations(world / "train.jsonl") if a.windows_s]
    made = data.absent_queries(train)
    assert len(made) > 5
    found = evaluate_run(own_run, splits={"own": train})["own"]
    assert found["absent_queries"] == len(made)
    assert 0 <= found["presence/AUROC"] <= 1
    rows = [json.loads(line) for line in (own_run / "predictions.jsonl").read_text().splitlines()]
    kept = [a.qid for a in train if a.kind != "vague"]
    assert [row["qid"] for row in rows] == kept
    absent = own_run / "absent_predictions.jsonl"
    assert [prediction.qid for prediction in read_predictions(absent)] == [a.qid for a in made]
    assert read_annotations(own_run / "absent_queries.jsonl") == made
    # Both files together say what the run's metrics do.
    both = own_run / "both.jsonl"
    both.write_text((own_run / "predictions.jsonl").read_text() + absent.read_text())
    write_annotations(own_run / "asked.jsonl", [*train, *made])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PredictionWarning)
        again = evaluate_predictions(both, own_run / "asked.jsonl")
    np.testing.assert_equal(again, found)  # unlike ==, it takes NaN to be NaN

    switch_off_absent_queries(own_run)
    without = open_data(load_run(own_run)[0].data)
    assert without.absent_queries(train) == []
    plain = evaluate_run(own_run, splits={"own": train})["own"]
    expected = {
        name: 0.0 if name == "absent_queries" else value
        for name, value in found.items()
        if not name.startswith("presence/")
    }
    np.testing.assert_equal(plain, expected)  # unlike ==, it takes NaN to be NaN


@pytest.mark.parametrize("keep", ["too few", "nothing"])
def test_too_few_labels_leave_the_calibration_alone(
    own_run: Path, world: Path, cli: Cli, keep: str
) -> None:
    before = (own_run / "calibration.json").read_bytes()
    own = own_run / "own.jsonl"
    own.write_text("")
    if keep == "too few":
        write_annotations(own, read_annotations(world / "iid.jsonl")[:5])
    done = cli("calibrate", own_run, "--annotations", own)
    assert done.one_line()
    assert (own_run / "calibration.json").read_bytes() == before


def test_holding_videos_out_keeps_their_queries_together() -> None:
    def query(vid: int, number: int, present: bool) -> Annotation:
        windows = ((1.0, 2.0),) if present else ()
        return Annotation(f"{vid}_{number}", "a dog", f"v{vid:02d}", 9.0, windows_s=windows)

    every = [query(vid, number, number < 2) for vid in range(20) for number in range(4)]
    left, kept = hold_out(every, 0.2, "retrieval.refit_share")
    assert {a.vid for a in left}.isdisjoint({a.vid for a in kept})
    assert len({a.vid for a in kept}) == 4
    assert len(left) == 16 * 4
    assert len(kept) == 4 * 4
    assert hold_out(every, 0.0, "x") == (every, [])
    with pytest.raises(ConfigError, match="refit_share"):
        hold_out(every[:4], 0.5, "retrieval.refit_share")
    with pytest.raises(ConfigError, match="refit_share"):
        hold_out([a for a in every if not a.windows_s], 0.5, "retrieval.refit_share")

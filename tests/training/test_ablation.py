import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demr.errors import ConfigError
from demr.runs.config import load_config
from demr.training.ablation import plan_ablation
from demr.training.ablation_report import cell, collect, figures, splits_of, tables
from demr.training.grids import GRIDS, Grid, load_grid
from demr.training.trials import Trial, Trials, is_row_of, plan, read_rows

Cli = Callable[..., Any]
QUICK = ("--set", "retrieval.epochs=1", "--set", "retrieval.refit_epochs=0")
RECIPE = Path(__file__).resolve().parents[2] / "configs" / "charades_cd.yaml"


def trials_of(planned: Trials) -> list[Trial]:
    return [
        trial
        for variants in planned.values()
        for of_seed in variants.values()
        for trial in of_seed.values()
    ]


def test_every_grid_fits_the_recipe_and_its_variants_differ() -> None:
    for name, grid in GRIDS.items():
        planned = plan(RECIPE, {name: grid}, [0])
        keys = [trial.key for trial in trials_of(planned)]
        assert len(keys) == len(set(keys)) >= 2, name


def test_a_variant_that_two_grids_share_is_one_run() -> None:
    planned = plan(RECIPE, {"steps": GRIDS["steps"], "lambda_geom": GRIDS["lambda_geom"]}, [0, 1])
    whole = planned["steps"]["+ Geom (DEMR)"]
    # 1e-2 is what the recipe itself says.
    assert planned["lambda_geom"]["0.01"][1].name == whole[1].name
    assert whole[0].name != whole[1].name
    assert whole[0].key == whole[1].key
    assert len({trial.name for trial in trials_of(planned)}) == 2 * (4 + 5 - 1)


def test_a_variant_of_any_name_has_a_folder(tmp_path: Path) -> None:
    grid = Grid(title="x", variants={name: {} for name in ("", "../../x", "a" * 300, "é\n\0")})
    for trial in trials_of(plan(RECIPE, {"own": grid}, [0])):
        assert Path(trial.name).name == trial.name
        (tmp_path / f"{trial.name}.yaml").touch()


def test_trials_go_seed_by_seed(tmp_path: Path) -> None:
    grids = {name: GRIDS[name] for name in ("fusion", "reconstruction")}
    different = plan_ablation(RECIPE, grids, [3, 1], out=tmp_path).different
    # An ablation that was stopped has complete seeds: fusion's two, then what "off" adds to them.
    assert [trial.seed for trial in different.values()] == [3, 3, 3, 1, 1, 1]
    assert list(different) == [trial.id for trial in different.values()]


def test_without_a_folder_it_is_named_by_the_recipe() -> None:
    ablation = plan_ablation(RECIPE, {"fusion": GRIDS["fusion"]}, [0])
    assert ablation.out == Path("runs") / f"{load_config(RECIPE).name}-ablation"


def test_rows_without_binned_errors_have_no_figure_of_them(tmp_path: Path) -> None:
    grid = Grid(title="x", variants={"a": {}, "b": {}})
    bins = {"ood": {"error s": [1.0, 2.0], "evidence": [3, 2], "EU s": [1, 2], "AU+EU s": [1, 3]}}
    old, new = row(0, 60, 0.1, True), row(0, 61, 0.1, True) | {"error_bins": bins}
    written = figures("x", grid, {"a": {0: old}, "b": {0: new}}, tmp_path)
    assert [path.name for path in written] == ["x.png", "x-noise.png"]
    written = figures("x", grid, {"a": {0: new}, "b": {0: new}}, tmp_path)
    assert [path.name for path in written] == ["x.png", "x-noise.png", "x-errors.png"]


def test_variants_say_what_they_change_and_go_before_overrides() -> None:
    planned = plan(RECIPE, {"steps": GRIDS["steps"]}, [7], ["model.dim=64", "model.fusion=concat"])
    first = planned["steps"]["concat + DER"][7].config
    assert (first.seed, first.model.dim, first.model.fusion) == (7, 64, "concat")
    assert first.reconstruction.epochs == 0
    assert first.losses.regularizer == "der"
    last = planned["steps"]["+ Geom (DEMR)"][7].config
    assert last == load_config(RECIPE, ["model.dim=64", "model.fusion=concat", "seed=7"])
    other = plan(RECIPE, {"steps": GRIDS["steps"]}, [7])
    assert other["steps"]["+ Geom (DEMR)"][7].key != planned["steps"]["+ Geom (DEMR)"][7].key


def test_a_grid_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "rate.yaml"
    path.write_text("title: Rate\nsweep: retrieval.lr\nvalues: [1.0e-4, 1.0e-3]\n")
    name, grid = load_grid(str(path))
    assert name == "rate"
    assert grid.settings == {"0.0001": {"retrieval.lr": 1e-4}, "0.001": {"retrieval.lr": 1e-3}}
    assert load_grid("fusion") == ("fusion", GRIDS["fusion"])
    # Where null is a value of its own, a variant can say so.
    path.write_text("title: x\nvariants: {a: {}, b: {calibration.disagreement: null}}")
    variants = plan(RECIPE, dict([load_grid(str(path))]), [0])["rate"]
    assert [v[0].config.calibration.disagreement for v in variants.values()] == [1.0, None]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("variants: {a: {}}", "title"),
        ("title: x", "either variants, or a sweep"),
        ("title: x\nsweep: seed\nvalues: [1]\nvariants: {a: {}}", "either variants, or a sweep"),
        ("title: x\nsweep: seed", "either variants, or a sweep"),
        ("title: x\nvariants: {a: {}}\nfoo: 1", "foo"),
        ("- 1", "a grid"),
        ("title: x\nvariants: {a: {seed: 1}}", "other than seed"),
        ("title: x\nsweep: seed\nvalues: [1, 2]", "other than seed"),
        ("title: [", "a grid"),
    ],
)
def test_a_file_that_is_no_grid(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load_grid(str(path))


def test_bad_input_is_one_line(cli: Cli, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert "steps" in cli("ablate", RECIPE, "--grid", "nope", *out).one_line()
    assert "--seeds" in cli("ablate", RECIPE, "--seeds", "0,0", *out).one_line()
    assert "--seeds" in cli("ablate", RECIPE, "--seeds", "a", *out).one_line()
    assert "--jobs" in cli("ablate", RECIPE, "--jobs", "0", *out).one_line()
    assert "val, iid, ood" in cli("ablate", RECIPE, "--balance", "x", *out).one_line()
    assert "nope" in cli("ablate", RECIPE, "--set", "model.nope=1", *out).one_line()
    grid = tmp_path / "grid.yaml"
    grid.write_text("title: x\nvariants: {a: {model.layerz: 1}}")
    assert "model.layerz" in cli("ablate", RECIPE, "--grid", grid, *out).one_line()
    assert not (tmp_path / "out").exists()


def test_list_trains_nothing(cli: Cli) -> None:
    done = cli("ablate", RECIPE, "--list", "--grid", "steps", "--grid", "fusion")
    assert done.code == 0
    assert "model.fusion=concat" in done.out
    # RFF with everything is in both; concat with everything is the fifth variant.
    assert "15 different runs" in done.out


def test_another_grid_finds_the_row_of_a_run_that_it_calls_otherwise(tmp_path: Path) -> None:
    step = plan(RECIPE, {"steps": GRIDS["steps"]}, [0])["steps"]["+ QR"][0]
    other = plan(RECIPE, {"regularizer": GRIDS["regularizer"]}, [0])["regularizer"]
    assert other["DER"][0].name != step.name
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / f"{step.name}.json").write_text(json.dumps(row(0, 60, 0.1, True)))
    assert list(collect(other, read_rows(tmp_path))) == ["DER"]


def test_a_row_of_other_settings_is_not_the_trials() -> None:
    trial = plan(RECIPE, {"fusion": GRIDS["fusion"]}, [0])["fusion"]["RFF"][0]
    known = trial.config.model_dump(mode="json")
    assert is_row_of({"config": known}, trial)
    # A setting that came later is no other setting; a default that changed is one.
    del known["losses"]["error_scale"]
    assert is_row_of({"config": known}, trial)
    known["losses"]["saliency"] = 5.0
    assert not is_row_of({"config": known}, trial)


def row(seed: int, recall: float, dvar: float, rise: bool) -> dict[str, Any]:
    curve = {"video": [0, 0.5, 1], "text": [0, 0.4, 2], "dVar": dvar, "both rise": rise}
    return {
        "variant": "x",
        "seed": seed,
        "minutes": 2.0,
        "ranking": "score",
        "metrics": {
            "val": {"R1@0.5": recall + 1},
            "iid": {"R1@0.5": recall},
            "ood": {"R1@0.5": recall - 5},
            "gap": {"R1@0.3": 5.0},
        },
        "error_bins": {},
        "config": {"seed": seed},
        "balance": {"levels": [0, 1, 2], "EU": curve, "AU+EU": curve},
    }


def test_tables_by_hand() -> None:
    grid = Grid(title="Steps", variants={"a": {}, "b": {}, "c": {}}, against="previous")
    results = {
        "a": {0: row(0, 60, 0.2, False), 1: row(1, 62, 0.4, True)},
        "b": {0: row(0, 63, 0.1, True), 1: row(1, 67, 0.1, True)},
        "c": {1: row(1, 66, 0.1, True)},
    }
    assert splits_of(results) == ["iid", "ood"]
    text = "\n".join(tables(grid, results))
    assert "seeds (a: 0, 1; b: 0, 1; c: 1)" in text
    assert "| R1@0.5 | 61.0 ± 1.4 | 65.0 ± 2.8 | 66.0 |" in text
    assert "| R1@0.5 | 56.0 ± 1.4 | 60.0 ± 2.8 | 61.0 |" in text
    # 63 - 60 and 67 - 62; then seed 1 alone: 66 - 67.
    assert "| iid | b minus a | c minus b |" in text
    assert "| R1@0.5 | +4.0 ± 1.4 | -1.0 |" in text
    assert "0.300 ± 0.141 (1/2 rise)" in text
    first = grid.model_copy(update={"against": "first"})
    assert "| R1@0.5 | +4.0 ± 1.4 | +4.0 |" in "\n".join(tables(first, results))


def test_cells() -> None:
    assert cell([1.25], 1) == "1.2"
    assert cell([-0.5, 0.5], 2, signed=True) == "+0.00 ± 0.71"


@pytest.fixture
def grid_file(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(
        "title: Own\nvariants:\n  whole: {}\n  concat: {model.fusion: concat}\n"
        # Fails as late as the training itself, in its own process.
        "  broken: {retrieval.lr: 1.0e+30, gradient_clip: 0, retrieval.warmup_epochs: 0}\n"
    )
    return path


@pytest.mark.slow
def test_an_ablation_end_to_end(cli: Cli, recipe: Path, grid_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "ablation"
    rest = ("--limit", "4", "--jobs", "2")
    call = ("ablate", recipe, "--grid", grid_file, "--seeds", "3", "--out", out, *QUICK, *rest)
    done = cli(*call)
    assert done.code == 1
    assert "1 runs failed" in done.err
    assert done.err.count("done in") == 2
    rows = read_rows(out)
    assert len(rows) == 2
    assert {r["seed"] for r in rows.values()} == {3}
    report = (out / "report.md").read_text()
    assert "| iid | concat minus whole |" in report
    for figure in ("own.png", "own-noise.png", "own-errors.png"):
        assert f"({figure})" in report
        assert (out / figure).read_bytes().startswith(b"\x89PNG")
    assert done.out.strip() == str(out / "report.md")

    # What is finished is kept, what failed is tried again; the runs' folders are not needed.
    before = {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}
    assert len(before) == 2
    for path in before:
        shutil.rmtree(out / "runs" / path.stem)
    again = cli(*call)
    assert again.code == 1
    assert "3 runs, 2 of them finished" in again.err
    assert before == {path: path.stat().st_mtime_ns for path in (out / "rows").iterdir()}
    reported = cli(*call, "--report-only")
    assert reported.code == 0
    assert "training" not in reported.err

    damaged = next((out / "rows").glob("*.json"))
    damaged.write_text("{")
    assert damaged.name in cli(*call).one_line()


@pytest.mark.slow
def test_interrupted_it_stops_its_run_and_goes_on_later(
    recipe: Path, tmp_path: Path, cli: Cli
) -> None:
    out, grid = tmp_path / "ablation", tmp_path / "own.yaml"
    options = ["--grid", str(grid), "--seeds", "3", "--out", str(out), "--balance", "none", *QUICK]
    command = [sys.executable, "-m", "demr", "ablate", str(recipe), *options]
    grid.write_text("title: Own\nvariants: {first: {}, second: {model.fusion: concat}}\n")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ, text=True
    )
    deadline = time.monotonic() + 300
    while not list(out.glob("runs/*/config.yaml")) and time.monotonic() < deadline:
        time.sleep(0.1)
    # To the ablation alone, not to its children: it has to stop them itself.
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=300)
    assert process.returncode == 130, text
    assert "interrupted" in text[1]
    assert "Traceback" not in text[1]
    assert len(list(out.glob("runs/*/config.yaml"))) == 1, "the second run must not start"
    assert not read_rows(out)
    # The first alone is what is taken up again: a grid without the second finds it.
    grid.write_text("title: Own\nvariants: {first: {}}\n")
    done = cli("ablate", recipe, *options)
    assert done.code == 0, done.err
    assert "own: first, seed 3: going on" in done.err
    (row,) = read_rows(out).values()
    assert (row["minutes"], row["balance"]) == (None, None)


def test_collect_leaves_out_what_is_not_finished() -> None:
    planned = plan(RECIPE, {"fusion": GRIDS["fusion"]}, [0, 1])["fusion"]
    rows = {planned["RFF"][1].id: row(1, 60, 0.1, True)}
    assert list(collect(planned, rows)) == ["RFF"]
    assert list(collect(planned, rows)["RFF"]) == [1]

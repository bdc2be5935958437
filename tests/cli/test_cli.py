import csv
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demr.video.reading import probe_video

Cli = Callable[..., Any]
DEMR = Path(sys.executable).with_name("demr")
ANSWER_KEYS = ["query", "present", "verdict", "moments", "saliency", "unknown_words", "notes"]
MOMENT_KEYS = [
    *("start", "end", "score", "start_interval", "end_interval", "aleatoric", "epistemic"),
    *("confidence", "verdict"),
]


@pytest.fixture(scope="module")
def clip(world: Path) -> Path:
    return next((world / "videos").glob("iid*.mp4"))


@pytest.fixture(scope="module")
def believer(run: Path, shared: Path) -> Path:
    """The tiny model with thresholds under which everything counts as found."""
    return with_thresholds(run, shared / f"believer-{os.getpid()}", found=0.0, absent=-1.0)


@pytest.fixture(scope="module")
def doubter(run: Path, shared: Path) -> Path:
    """The tiny model with thresholds under which nothing is in any video."""
    return with_thresholds(run, shared / f"doubter-{os.getpid()}", found=3.0, absent=2.0)


def with_thresholds(run: Path, folder: Path, *, found: float, absent: float) -> Path:
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "calibration.json"):
        shutil.copy(run / name, folder)
    path = folder / "calibration.json"
    calibration = json.loads(path.read_text())
    calibration["thresholds"] = {"found": found, "absent": absent}
    path.write_text(json.dumps(calibration))
    # Two training videos draw an edge that every other one is beyond.
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"domain": None}))
    return folder


def real(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(DEMR), *map(str, arguments)], check=False, capture_output=True, text=True, **options
    )


# The ways out of a search


def test_json_has_the_keys_of_the_contract_and_stands_alone(run: Path, clip: Path) -> None:
    done = real("search", clip, "a red circle spins", "a zebra", "--model", run, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert list(found) == ["video", "duration", "model", "encoder", "interval_level", "answers"]
    assert found["video"] == str(clip)
    assert found["duration"] == pytest.approx(probe_video(clip).duration_s, abs=1e-3)
    assert (found["model"], found["encoder"], found["interval_level"]) == (
        *("tiny", "builtin@1", 0.9),
    )
    assert [answer["query"] for answer in found["answers"]] == ["a red circle spins", "a zebra"]
    for answer in found["answers"]:
        assert list(answer) == ANSWER_KEYS
        assert answer["verdict"] in ("found", "uncertain", "not in this video")
        assert len(answer["saliency"]) == int(-(-found["duration"] // 1))
        assert len(answer["moments"]) <= 3
        for number, moment in enumerate(answer["moments"]):
            assert list(moment) == MOMENT_KEYS
            for key in MOMENT_KEYS[3:7]:
                # There may be too few labels to calibrate the intervals of later moments, and
                # there are none where the model cannot judge.
                may_lack = (number or answer["present"] is None) and key.endswith("interval")
                assert (may_lack and moment[key] is None) or len(moment[key]) == 2
            assert moment["verdict"] in ("found", "uncertain")
    assert found["answers"][1]["unknown_words"] == ["zebra"]


def test_table(run: Path, clip: Path, cli: Cli) -> None:
    done = cli("search", clip, "a red circle spins", "--model", run)
    assert done.code == 0
    assert "red circle" in " ".join(done.out.split())


def test_csv(believer: Path, clip: Path, cli: Cli) -> None:
    done = cli(
        "search", clip, "a red circle", "it, spins", "--model", believer, "--csv", "--top", 2
    )
    assert done.code == 0
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert {row["query"] for row in rows} == {"a red circle", "it, spins"}
    assert all(float(row["start"]) <= float(row["end"]) for row in rows)


def test_srt_and_queries_of_a_file(
    believer: Path, clip: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "queries.txt"
    path.write_bytes("\ufeffa red circle spins\r\n\r\n  a blue square  \n".encode())
    done = cli("search", clip, "--queries", path, "--model", believer, "--srt")
    assert done.code == 0
    assert re.search(r"^1\n\d\d:\d\d:\d\d,\d\d\d --> \d\d:\d\d:\d\d,\d\d\d\n", done.out)
    assert "a blue square" in done.out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a green star\n")))
    piped = cli("search", clip, "a circle", "--queries", "-", "--model", believer, "--json")
    asked = [answer["query"] for answer in json.loads(piped.out)["answers"]]
    assert asked == ["a circle", "a green star"]
    found = cli("search", clip, "--queries", path, "--model", believer, "--json")
    asked = [answer["query"] for answer in json.loads(found.out)["answers"]]
    assert asked == ["a red circle spins", "a blue square"]


def test_clips_are_cut_out(believer: Path, clip: Path, cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "clips"
    arguments = ("search", clip, "a red circle", "a zebra", "--json", "--save-clips", folder)
    done = cli(*arguments, "--model", believer)
    assert done.code == 0
    # The zebra is only uncertain, as the word is unknown; what is shown is cut all the same.
    for number, answer in enumerate(json.loads(done.out)["answers"], start=1):
        top = answer["moments"][0]
        saved = folder / f"{clip.stem}-{number:02d}-{top['start']:.1f}-{top['end']:.1f}.mp4"
        assert probe_video(saved).duration_s == pytest.approx(top["end"] - top["start"], abs=0.3)
        assert str(saved) in done.err
    there = {path.name: probe_video(path).duration_s for path in folder.iterdir()}
    line = cli(*arguments, "--model", believer).one_line()
    assert f"got {len(there)} clips" in line
    assert "--overwrite" in line
    for name in there:
        (folder / name).write_bytes(b"old")
    again = cli(*arguments, "--model", believer, "--overwrite")
    assert again.code == 0, again.err
    assert {path.name: probe_video(path).duration_s for path in folder.iterdir()} == there


@pytest.mark.parametrize("place", ["file", "file/clips", "closed/clips"])
def test_no_folder_for_clips(
    run: Path, clip: Path, cli: Cli, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir()
    # Of root's tests, too, whom no mode of a folder keeps out.
    monkeypatch.setattr(os, "access", lambda path, _: "closed" not in str(path))
    done = cli("search", clip, "a star", "--model", run, "--save-clips", tmp_path / place)
    assert "expected a folder that can be written to" in done.one_line()


def test_nothing_to_cut_is_said(doubter: Path, clip: Path, cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    done = cli(
        *("search", clip, "a red circle", "--model", doubter, "--json", "--save-clips", folder)
    )
    assert done.code == 0
    assert "no clip saved" in done.err
    assert json.loads(done.out)


def test_evaluate_calibrate_and_balance(own_run: Path, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "numbers.json"
    done = cli("evaluate", own_run, "--json", out)
    assert done.code == 0
    assert "R1@0.5" in done.out
    assert json.loads(out.read_text()) == json.loads((own_run / "metrics.json").read_text())
    assert "intervals from 20 queries" in cli("calibrate", own_run).out
    assert "dVar" in cli("balance", own_run, "--limit", 3).out


def test_evaluating_predictions_of_others(run: Path, world: Path, cli: Cli, tmp_path: Path) -> None:
    annotations = tmp_path / "all.jsonl"
    wanted = {
        json.loads(line)["qid"]: line for line in (world / "iid.jsonl").read_text().splitlines()
    }
    rows = [
        line
        for line in (run / "predictions.jsonl").read_text().splitlines()
        if json.loads(line)["qid"] in wanted
    ]
    annotations.write_text("\n".join(wanted[json.loads(row)["qid"]] for row in rows) + "\n")
    predictions = tmp_path / "p.jsonl"
    predictions.write_text("\n".join(rows) + "\n")
    out = tmp_path / "out.json"
    arguments = ("--predictions", predictions, "--annotations", annotations, "--json", out)
    done = cli("evaluate", *arguments)
    assert done.code == 0, done.err
    own = json.loads((run / "metrics.json").read_text())["iid"]
    theirs = json.loads(out.read_text())["all"]
    for name in ("R1@0.5", "R1@0.7", "mIoU"):
        assert theirs[name] == pytest.approx(own[name], abs=0.01), name


# Bad input: one line, code 2, nothing made


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A folder of files that cannot be used."""
    (tmp_path / "text.mp4").write_text("This is no video.\n" * 20)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text("\n   \n")
    (tmp_path / "latin.txt").write_bytes("der Würfel".encode("latin-1"))
    return tmp_path


@pytest.mark.parametrize(
    ("video", "expected"),
    [("missing.mp4", "missing.mp4"), ("text.mp4", "video"), ("empty.mp4", "")],
)
def test_what_is_no_video(run: Path, bad: Path, cli: Cli, video: str, expected: str) -> None:
    clips = bad / "clips"
    arguments = ("search", bad / video, "a red circle", "--model", run, "--save-clips", clips)
    assert expected in cli(*arguments).one_line()
    assert not clips.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "at least one sentence"),
        ([""], "an empty one"),
        (["a circle", "   "], "an empty one"),
        (["word " * 500], "got 500"),
        (["😀🎉"], "no word"),
        (["--queries", "{bad}/empty.txt"], "at least one sentence"),
        (["--queries", "{bad}/blank.txt"], "at least one sentence"),
        (["--queries", "{bad}/missing.txt"], "missing.txt"),
        (["--queries", "{bad}"], "one sentence a line"),
        (["--queries", "{bad}/latin.txt"], "UTF-8"),
        (["a circle", "--encoder", "nope"], "builtin@1"),
        (["a circle", "--top", "0"], "--top"),
        (["a circle", "--top", "many"], "--top"),
        (["a circle", "--level", "1.5"], "--level"),
        (["a circle", "--level", "0"], "--level"),
        (["a circle", "--level", "nan"], "--level"),
        (["a circle", "--device", "nonsense"], "--device nonsense"),
        (["a circle", "--json", "--csv"], "--json and --csv"),
        (["a circle", "--csv", "--srt"], "--csv and --srt"),
        (["a circle", "--nope"], "--nope"),
    ],
)
def test_what_cannot_be_asked(
    run: Path, clip: Path, bad: Path, cli: Cli, arguments: list[str], expected: str
) -> None:
    before = sorted(bad.iterdir())
    filled = [argument.replace("{bad}", str(bad)) for argument in arguments]
    assert expected in cli("search", clip, *filled, "--model", run).one_line()
    assert sorted(bad.iterdir()) == before


def test_missing_argument_and_unknown_command(cli: Cli) -> None:
    assert "video" in cli("search").one_line().lower()  # older typer: VIDEO
    assert "nope" in cli("nope").one_line()
    assert "RUN" in cli("balance").one_line().upper()


def test_a_bare_command_shows_the_help(cli: Cli) -> None:
    done = cli()
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("Usage: demr")
    asked = cli("--help")
    assert asked.code == 0
    assert asked.out.startswith("Usage: demr")


def test_a_model_that_is_none(clip: Path, cli: Cli, tmp_path: Path) -> None:
    search = ("search", clip, "a circle", "--model")
    assert "no such model" in cli(*search, "nope").one_line()
    assert "config.json" in cli(*search, tmp_path).one_line()


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        ("model.safetensors", "half", "complete weights"),
        ("model.safetensors", "empty", "complete weights"),
        ("config.json", "half", "config.json"),
        ("config.json", "newer", "upgrade demr"),
        ("calibration.json", "half", "calibration.json"),
        ("calibration.json", "newer", "update demr"),
        ("calibration.json", "gone", "demr calibrate"),
    ],
)
def test_damaged_models(
    own_run: Path, clip: Path, cli: Cli, name: str, damage: str, expected: str
) -> None:
    path = own_run / name
    if damage == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "gone":
        path.unlink()
    else:
        key = "format_version" if name == "config.json" else "version"
        edit_json(path, **{key: 99})
    assert expected in cli("search", clip, "a circle", "--model", own_run).one_line()


def test_a_model_trained_on_other_features(own_run: Path, clip: Path, cli: Cli) -> None:
    path = own_run / "config.json"
    encoder = json.loads(path.read_text())["encoder"]
    edit_json(path, encoder=encoder | {"version": "0"})
    search = ("search", clip, "a circle", "--model", own_run)
    assert "train it again" in cli(*search).one_line()
    assert "builtin@0" in cli(*search, "--encoder", "builtin").one_line()


@pytest.mark.parametrize(
    ("text", "arguments", "expected"),
    [
        (None, [], "bad.yaml"),
        ("a: [", [], "valid YAML"),
        ("\x00\x01", [], "bad.yaml"),
        ("- 1\n", [], "mapping"),
        ("", [], "mapping"),
        ("name: x\ndata: {root: x}\nlearning_rate: 1\n", [], "learning_rate"),
        ("name: x\ndata: {root: x}\nmodel: {dim: wide}\n", [], "model.dim"),
        ("name: x\ndata: {root: x}\n", ["--set", "retrieval.lr"], "a.b=value"),
        ("name: x\ndata: {root: x}\n", ["--set", "retrieval.lr=fast"], "retrieval.lr"),
        ("name: x\ndata: {root: x}\n", ["--set", "nope.lr=1"], "nope"),
        ("name: x\ndata: {root: x}\n", ["--resume"], "--out"),
    ],
)
def test_bad_configs(
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str | None,
    arguments: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.yaml"
    if text is not None:
        path.write_text(text)
    assert expected in cli("train", path, *arguments).one_line()
    assert [found for found in tmp_path.iterdir() if found != path] == []


@pytest.mark.parametrize(
    "arguments",
    [[], ["{run}", "--predictions", "x"], ["--predictions", "x"], ["--annotations", "x"]],
)
def test_evaluate_needs_a_run_or_two_files(cli: Cli, run: Path, arguments: list[str]) -> None:
    filled = [argument.replace("{run}", str(run)) for argument in arguments]
    assert "--predictions together with --annotations" in cli("evaluate", *filled).one_line()


@pytest.mark.parametrize("command", ["evaluate", "calibrate", "balance"])
def test_commands_on_what_is_no_run(cli: Cli, tmp_path: Path, command: str) -> None:
    assert "got no run" in cli(command, tmp_path).one_line()
    assert "got no run" in cli(command, tmp_path / "missing").one_line()


# Real processes


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["missing.mp4", "a red circle"], "missing.mp4"),
        (["{clip}", "a red circle", "--device", "nonsense"], "nonsense"),
    ],
)
def test_a_real_process_complains_in_one_line(
    run: Path, clip: Path, arguments: list[str], expected: str
) -> None:
    filled = [argument.replace("{clip}", str(clip)) for argument in arguments]
    done = real("search", *filled, "--model", run)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("demr: ")
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr


@pytest.mark.slow
def test_ctrl_c_while_rendering(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    root = tmp_path / "world"
    # All of them would take an hour alone: a machine with much else to do needs some minutes to
    # end what has been begun, and none to wait for the rest.
    many = [f"data.root={root}", "data.shapes={train: 5000, val: 2, iid: 1, ood: 1}"]
    settings = [part for change in many for part in ("--set", change)]
    process = subprocess.Popen(
        [str(DEMR), "train", str(recipe), "--out", str(out), *settings],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 300
        while not (root / "features").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (root / "features").exists()
        time.sleep(1.5)
        # As a terminal does: to the command and to the processes it started.
        os.killpg(process.pid, signal.SIGINT)
        printed, complaint = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 130
    assert printed == ""
    assert complaint.strip().splitlines()[-1] == "demr: interrupted"
    assert "Traceback" not in complaint
    assert not out.exists()
    assert not list((root / "features").iterdir())


INTERRUPTED = """
import os, signal, sys
from demr.training import stages as training
from demr.cli.main import main

def training_step(self, data, batch_idx):
    os.kill(os.getpid(), signal.SIGINT)
    return step(self, data, batch_idx)

step = training.RetrievalStage.training_step
training.RetrievalStage.training_step = training_step
sys.argv = ["demr", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
def test_ctrl_c_while_training(recipe: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "train", str(recipe), "--out", str(tmp_path / "out")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip().splitlines()[-1] == "demr: interrupted"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_reader_that_has_seen_enough(run: Path, clip: Path) -> None:
    command = f"'{DEMR}' search '{clip}' 'a red circle' --model '{run}' --json | head -c 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], check=False, capture_output=True, text=True
    )
    assert done.stdout == "{"
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr


# Importing


def test_import_mends_annotations_and_says_so(tmp_path: Path, cli: Cli) -> None:
    source, out = tmp_path / "captions.json", tmp_path / "new" / "captions.jsonl"
    captions = {
        "timestamps": [[3.0, 1.0], [2.0, 40.0]],
        "sentences": [" a dog\nruns", "it sleeps"],
        "duration": 10.0,
    }
    source.write_text(json.dumps({"v1": captions}))
    done = cli("import", "annotations", source, "--out", out)
    assert done.code == 0
    assert "2 queries" in done.out
    assert "1 windows clipped to the duration" in done.out
    assert "1 windows reversed" in done.out
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["relevant_windows"] for row in rows] == [[[1.0, 3.0]], [[2.0, 10.0]]]
    assert rows[0]["query"] == "a dog runs"
    before = out.read_bytes()
    again = cli("import", "annotations", source, "--out", out)
    assert again.code == 2
    assert "expected a new file, got one that is there" in again.err
    assert out.read_bytes() == before


def test_import_takes_durations_from_elsewhere(tmp_path: Path, cli: Cli) -> None:
    source, known = tmp_path / "sta.txt", tmp_path / "known.jsonl"
    source.write_text("AB1CD 2.0 31.0##a person opens a door.\n")
    known.write_text(
        json.dumps({"qid": 1, "query": "x", "vid": "AB1CD", "duration": 30, "relevant_windows": []})
    )
    out = tmp_path / "sta.jsonl"
    assert cli("import", "annotations", source, "--out", out, "--durations", known).code == 0
    row = json.loads(out.read_text())
    assert (row["duration"], row["relevant_windows"]) == (30.0, [[2.0, 30.0]])


def test_a_video_of_several_stretches_is_searched_end_to_end(
    cli: Cli, own_run: Path, world: Path
) -> None:
    path = own_run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_clips": 10}))
    clip = next((world / "videos").glob("iid*.mp4"))
    done = cli("search", clip, "a red circle spins", "--model", own_run, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    (answer,) = found["answers"]
    assert len(answer["saliency"]) == math.ceil(found["duration"])
    assert all(0 <= m["start"] <= m["end"] <= found["duration"] for m in answer["moments"])

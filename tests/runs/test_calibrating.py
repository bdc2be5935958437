"""Calibrating a model on labels of one's own, for any videos."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demr import MomentRetriever
from demr.annotations.annotations import read_annotations, write_annotations
from demr.answers.calibration import Calibration
from demr.answers.pretrained import find_model
from demr.encoders.words import query_words

Cli = Callable[..., Any]


@pytest.fixture
def labels(world: Path, tmp_path: Path) -> Path:
    """Labels for the videos of two splits."""
    path = tmp_path / "labels.jsonl"
    splits = [read_annotations(world / f"{name}.jsonl") for name in ("iid", "ood")]
    write_annotations(path, [a for split in splits for a in split if a.kind != "vague"])
    return path


def test_the_bundled_model_is_calibrated_on_videos_of_ones_own(
    world: Path, labels: Path, tmp_path: Path, cli: Cli
) -> None:
    bundled = find_model("shapes")
    before = {path.name: path.read_bytes() for path in bundled.iterdir() if path.is_file()}
    out = tmp_path / "mine"
    done = cli(
        *("calibrate", "shapes", "--annotations", labels, "--videos", world / "videos"),
        *("--out", out),
    )
    assert done.code == 0, done.err
    assert f"{out}/calibration.json: ranking voting" in done.out
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "model.safetensors", "calibration.json")
    }
    fitted = Calibration.load(out / "calibration.json")
    present = [a for a in read_annotations(labels) if a.windows_s]
    assert fitted.interval is not None
    assert fitted.interval.points == len(present)
    # It may judge what it was calibrated on; of so few videos no domain is described.
    assert fitted.domain is None
    assert set(fitted.known_words) == {w for a in present for w in query_words(a.query)}
    # The ranking was chosen on far more queries than these.
    assert fitted.ranking == Calibration.load(bundled / "calibration.json").ranking
    retriever = MomentRetriever.from_pretrained(out, device="cpu")
    found = retriever.search(world / "videos" / f"{present[0].vid}.mp4", "a red circle moves")
    assert found.present is not None
    assert 0 <= found.present <= 1
    assert before == {p.name: p.read_bytes() for p in bundled.iterdir() if p.is_file()}


def test_a_run_is_calibrated_on_features_of_ones_own(
    own_run: Path, world: Path, labels: Path, cli: Cli
) -> None:
    before = Calibration.load(own_run / "calibration.json")
    done = cli("calibrate", own_run, "--annotations", labels, "--features", world / "features")
    assert done.code == 0, done.err
    after = Calibration.load(own_run / "calibration.json")
    assert after.interval != before.interval
    assert after.ranking == before.ranking


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["shapes", "--annotations", "LABELS", "--videos", "VIDEOS"], "name it with --out"),
        (["shapes", "--videos", "VIDEOS"], "got videos without labels"),
        (["RUN", "--out", "new"], "got --out alone"),
        (
            ["RUN", "--annotations", "LABELS", "--videos", "VIDEOS", "--features", "PACK"],
            "got --videos and --features",
        ),
        (["RUN", "--annotations", "LABELS", "--videos", "EMPTY"], "VIDEOS"),
        (
            ["shapes", "--annotations", "LABELS", "--features", "PACK", "--out", "EMPTY"],
            "a new folder for the calibrated model, got an existing one",
        ),
        (["nobody", "--annotations", "LABELS", "--videos", "VIDEOS"], "no such model"),
    ],
)
def test_what_cannot_be_calibrated(
    own_run: Path,
    world: Path,
    labels: Path,
    tmp_path: Path,
    cli: Cli,
    arguments: list[str],
    line: str,
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    named = {
        "LABELS": labels,
        "VIDEOS": world / "videos",
        "PACK": world / "features",
        "RUN": own_run,
        "EMPTY": empty,
    }
    before = (own_run / "calibration.json").read_bytes()
    done = cli("calibrate", *(named.get(a, a) for a in arguments))
    assert line.replace("VIDEOS", str(empty)) in done.one_line()
    assert (own_run / "calibration.json").read_bytes() == before
    assert list(empty.iterdir()) == []


def test_a_labelled_video_that_is_missing_is_named(
    own_run: Path, world: Path, labels: Path, tmp_path: Path, cli: Cli
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    vids = sorted({a.vid for a in read_annotations(labels)})
    (folder / f"{vids[0]}.mp4").symlink_to(world / "videos" / f"{vids[0]}.mp4")
    done = cli("calibrate", own_run, "--annotations", labels, "--videos", folder)
    assert f"got 1 of 2 missing, such as {vids[1]}" in done.one_line()

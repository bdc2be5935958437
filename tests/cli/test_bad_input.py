"""What annotations, features and predictions of others get wrong, through the command line.

Each ends in one line and code 2, or in a repair that is told with its count.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demr.features.pack import FeaturePack

Cli = Callable[..., Any]
Record = dict[str, Any]

ASKED: list[Record] = [
    {"qid": n, "query": "a dog runs", "vid": f"v{n}", "duration": 10, "relevant_windows": [[2, 6]]}
    for n in range(4)
]
ANSWERED: list[Record] = [
    {"qid": n, "vid": f"v{n}", "pred_relevant_windows": [[2, 6, 0.9]]} for n in range(4)
]


def save(path: Path, records: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


# Predictions against annotations


@pytest.fixture
def evaluate(tmp_path: Path, cli: Cli) -> Callable[..., Any]:
    """Measure records against records: finished command and, if it went well, its numbers."""

    def run(
        predictions: Sequence[object], annotations: Sequence[object] = ASKED, *options: str
    ) -> Any:
        out = tmp_path / "out.json"
        done = cli(
            *("evaluate", "--predictions", save(tmp_path / "p.jsonl", predictions)),
            *("--annotations", save(tmp_path / "a.jsonl", annotations), "--json", out, *options),
        )
        return done, json.loads(out.read_text())["all"] if out.exists() else {}

    return run


def test_all_is_well(evaluate: Any) -> None:
    done, metrics = evaluate(ANSWERED)
    assert (done.code, done.err, metrics["R1@0.7"]) == (0, "", 100.0)


def test_recall_at_any_iou_and_windows_as_annotated(evaluate: Any) -> None:
    longer = [{**record, "relevant_windows": [[2, 12]]} for record in ASKED]  # of 10 s
    predictions = [{**record, "pred_relevant_windows": [[2, 6, 0.9]]} for record in ANSWERED]
    done, metrics = evaluate(predictions, longer, "--iou", "0.45,0.4", "--unclipped")
    assert (done.code, metrics["R1@0.4"], metrics["R1@0.45"], metrics["mIoU"]) == (0, 100, 0, 40)
    rows = [line.split()[:2] for line in done.out.splitlines() if "R1@" in line]
    assert rows == [
        ["R1@0.3", "100.0"],
        ["R1@0.4", "100.0"],
        ["R1@0.45", "0.0"],
        ["R1@0.5", "0.0"],
        ["R1@0.7", "0.0"],
    ]
    done, metrics = evaluate(predictions, longer)
    assert metrics["mIoU"] == 50
    assert "mIoU 40.00 instead of 50.00" in done.err


@pytest.mark.parametrize("iou", ["x", "0", "1.1", "nan", "0.3;0.4", ",", "-0.5"])
def test_what_is_no_iou_is_refused(evaluate: Any, iou: str) -> None:
    done, _ = evaluate(ANSWERED, ASKED, "--iou", iou)
    assert "expected numbers above 0, at most 1, with commas" in done.one_line()


def test_a_run_is_measured_as_it_is(cli: Cli, tmp_path: Path) -> None:
    for options in (("--iou", "0.4"), ("--unclipped",)):
        assert "with --predictions" in cli("evaluate", tmp_path, *options).one_line()


def test_highlights_are_printed_where_saliency_is_given(evaluate: Any) -> None:
    scored = {"relevant_clip_ids": [1, 2], "saliency_scores": [[4, 4, 4], [3, 3, 3]]}
    saliency = {"pred_saliency_scores": [0.0, 1.0, 0.5, 0.0, 0.0]}
    done, _ = evaluate([r | saliency for r in ANSWERED], [r | scored for r in ASKED])
    rows = [line.split(":") for line in done.out.splitlines() if "highlights" in line]
    assert [(name.split(",")[1].strip(), value.split()) for name, value in rows] == [
        (grade, [metric, "100.0"])
        for grade in ("fair", "good", "very good")
        for metric in ("mAP", "HIT@1")
    ]


@pytest.mark.parametrize(
    ("predictions", "warning", "recall"),
    [
        (
            [*ANSWERED, *({**ANSWERED[0], "qid": qid} for qid in (77, 78))],
            "2 predictions for queries that the annotations do not have: ignored (such as 77)",
            100.0,
        ),
        (
            ANSWERED[:2],
            "2 of 4 annotated queries without a prediction: counted as misses (such as 2)",
            50.0,
        ),
        (
            [*ANSWERED[:3], {**ANSWERED[3], "pred_relevant_windows": []}],
            "1 predictions without windows: counted as misses (such as 3)",
            75.0,
        ),
        (
            [*ANSWERED[:3], {**ANSWERED[3], "pred_relevant_windows": [[6, 2, 0.9]]}],
            (
                "1 predictions with windows of no length or reversed: they overlap nothing (such "
                "as 3)"
            ),
            75.0,
        ),
    ],
)
def test_what_can_be_measured_is_measured_and_counted(
    evaluate: Any, predictions: list[Record], warning: str, recall: float
) -> None:
    done, metrics = evaluate(predictions)
    assert done.code == 0
    assert done.err == f"demr: warning: {warning}\n"
    assert metrics["R1@0.5"] == metrics["mAP"] == recall


@pytest.mark.parametrize(
    ("predictions", "annotations", "line"),
    [
        ([], ASKED, "p.jsonl: expected at least one prediction, got none; check the file"),
        (ANSWERED, [], "a.jsonl: expected at least one query, got none; add a query"),
        (ANSWERED, [{}], "a.jsonl: expected at least one query, got none; add a query"),
        (
            [{**record, "qid": f"x{record['qid']}"} for record in ANSWERED],
            ASKED,
            (
                "expected at least one query in both, got no common qid (such as 'x0' and 0); "
                "choose the annotations that were predicted"
            ),
        ),
        (
            [ANSWERED[0], {"qid": 1, "vid": "v1"}],
            ASKED,
            (
                "p.jsonl:2: expected the key pred_relevant_windows or pred_saliency_scores, got "
                "qid, vid; correct the record"
            ),
        ),
        (
            [ANSWERED[0], {"qid": 1, "pred_relevant_windows": [[2, 6, math.nan]]}],
            ASKED,
            (
                "p.jsonl:2: expected finite numbers under pred_relevant_windows, got [2.0, 6.0, "
                "nan] at 0; correct the record"
            ),
        ),
        (
            [{"qid": 1, "pred_relevant_windows": [[2, 6, 1], [math.inf, 6, 1]]}],
            ASKED,
            (
                "p.jsonl:1: expected finite numbers under pred_relevant_windows, got [inf, 6.0, "
                "1.0] at 1; correct the record"
            ),
        ),
        (
            [{"qid": 1, "pred_relevant_windows": [[2, 6, None]]}],
            ASKED,
            (
                "p.jsonl:1: expected [[start, end, score], ...] under pred_relevant_windows, got "
                "[[2, 6, None]]; correct the record"
            ),
        ),
        (
            [*ANSWERED, ANSWERED[1]],
            ASKED,
            "p.jsonl:5: expected one prediction a query, got qid 1 again",
        ),
        (
            ANSWERED,
            [*ASKED, {**ASKED[1], "query": "a cat sleeps"}],
            (
                "a.jsonl:5: expected a qid of its own, got qid 1 again, with other content; "
                "rename one of the two"
            ),
        ),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    evaluate: Any, predictions: list[Record], annotations: list[Record], line: str
) -> None:
    done, metrics = evaluate(predictions, annotations)
    assert line in done.one_line()
    assert metrics == {}


def test_what_was_predicted_for_another_sentence_is_noted(evaluate: Any) -> None:
    given = [{**record, "query": " a  dog runs"} for record in ANSWERED]
    done, _ = evaluate([*given[:3], {**given[3], "query": "a cat sleeps"}])
    expected = "1 predictions whose query reads otherwise in the annotations (such as 3)"
    assert done.err == f"demr: warning: {expected}\n"


def test_where_nothing_can_be_compared(evaluate: Any) -> None:
    past = [{**record, "relevant_windows": [[12, 14]]} for record in ASKED]  # of 10 s
    line = evaluate(ANSWERED, past)[0].one_line()
    assert "all windows lie past the end of their video" in line
    assert line.endswith("or try --unclipped")
    assert evaluate(ANSWERED, past, "--unclipped")[1]["R1@0.3"] == 0
    scored = {"relevant_windows": None, "relevant_clip_ids": [1], "saliency_scores": [[4, 4, 4]]}
    unlike = [{**record, **scored} for record in ASKED]
    assert "or saliency in both" in evaluate(ANSWERED, unlike)[0].one_line()


def test_an_output_that_is_a_folder_is_named(tmp_path: Path, cli: Cli) -> None:
    predictions, annotations = (
        save(tmp_path / name, records) for name, records in (("p", ANSWERED), ("a", ASKED))
    )
    (tmp_path / "out").mkdir()
    done = cli(
        *("evaluate", "--predictions", predictions, "--annotations", annotations),
        *("--json", tmp_path / "out"),
    )
    assert done.one_line() == f"demr: {tmp_path / 'out'}: Is a directory"


# Features against annotations


def test_features_and_annotations_that_do_not_meet(tmp_path: Path, cli: Cli) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    for vid in ("v0", "v1", "nobody", "asks"):
        np.savez(folder / f"{vid}.npz", features=np.ones((5, 3), np.float32))

    def bring_in(*records: Record) -> Any:
        annotations = save(tmp_path / "a.jsonl", records)
        return cli(
            *("import", "features", "--stream", f"clip={folder}", "--annotations", annotations),
            *("--out", tmp_path / "pack", "--clip-length", 2, "--encoder", "clip@1"),
        )

    line = bring_in(*ASKED).one_line()
    assert line.startswith(
        "demr: 2 of 4 videos: expected features that fit, got video v2: expected"
    )
    assert "video v3: expected features in every stream, got none in clip; mend them, or" in line
    assert "a.jsonl: expected at least one query, got none" in bring_in().one_line()
    assert not (tmp_path / "pack").exists()
    done = bring_in(*ASKED[:2])
    assert (done.code, done.err) == (0, "")
    assert "2 videos, 10 clips" in done.out
    assert "2 videos without a query left out" in done.out
    assert set(FeaturePack(tmp_path / "pack").vids) == {"v0", "v1"}


# Training


@pytest.mark.parametrize(
    ("split", "change", "line"),
    [
        ("train", "ghosts", "got 2 videos without, such as ghost0; extract them or drop their"),
        ("val", "ghosts", "got 2 videos without, such as ghost0; extract them or drop their"),
        ("train", "empty", "changed.jsonl: expected at least one query, got none; add a query"),
        ("val", "empty", "changed.jsonl: expected at least one query, got none; add a query"),
        ("train", "absent", "got 52 queries, none with windows; use another split"),
        (
            "val",
            "same qid",
            (
                "splits train and val: expected qids of their own, or the same queries under them, "
                "got 1 qids with other content"
            ),
        ),
        (
            "val",
            "few",
            (
                "validation split: expected at least 10 queries with windows to calibrate "
                "intervals on, got 3; add labelled queries"
            ),
        ),
        (
            "val",
            "few absent",
            (
                "validation split: expected at least 5 absent queries to calibrate presence on, or "
                "none, got 3; add absent queries, or leave these out"
            ),
        ),
    ],
)
def test_a_training_that_could_not_end_does_not_begin(
    recipe: Path, world: Path, tmp_path: Path, cli: Cli, split: str, change: str, line: str
) -> None:
    train, val = (
        [json.loads(row) for row in (world / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "val")
    )
    present = [row for row in val if row["relevant_windows"]]
    absent = [row for row in val if not row["relevant_windows"]]
    changed = {
        "ghosts": [*train, *({**train[0], "qid": f"g{n}", "vid": f"ghost{n}"} for n in range(2))],
        "empty": [],
        "absent": [{**row, "relevant_windows": []} for row in train[:52]],
        "same qid": [{**val[0], "qid": train[0]["qid"]}, *val[1:]],
        "few": [*present[:3], *absent],
        "few absent": [*present, *absent[:3]],
    }[change]
    path, out = save(tmp_path / "changed.jsonl", changed), tmp_path / "out"
    done = cli("train", recipe, "--out", out, "--set", f"data.{split}={path}")
    assert done.code == 2
    assert done.out == ""
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("demr: ")
    assert line in last
    assert not out.exists()


def test_videos_that_nobody_asks_about_are_counted(
    recipe: Path, world: Path, tmp_path: Path, cli: Cli
) -> None:
    rows = [json.loads(row) for row in (world / "val.jsonl").read_text().splitlines()]
    # Too few to calibrate on, so that the command ends before it trains.
    few = save(tmp_path / "few.jsonl", rows[:1])
    done = cli("train", recipe, "--out", tmp_path / "out", "--set", f"data.val={few}")
    assert "1 of 6 videos in " in done.err
    assert "without a query in any split: not used (such as val_" in done.err

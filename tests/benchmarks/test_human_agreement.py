"""Five people against a data set: benchmarks/studies/human_agreement.py."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from demr.annotations.annotations import Annotation
from demr.evaluation.predictions import PredictionRecord

ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "studies")
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)
    return importlib.import_module("human_agreement")


def asked(study: ModuleType, vid: str, people: Sequence[tuple[float, float]]) -> Any:
    annotation = Annotation(vid, "a person sits", vid, 30.0, ((0.0, 10.0),))
    return study.Reannotated(annotation, np.array(people) / 30 * 100)


def test_agreement_by_hand(study: ModuleType) -> None:
    # Four say what the data set says, one says something else.
    query = asked(study, "v", [(0, 10)] * 4 + [(10, 30)])
    found = study.people_figures([query, query])
    assert (found["queries"], found["videos"]) == (2, 1)
    one = found["one person"]
    assert one["the data set"]["R1@0.5"] == pytest.approx(80)
    # Six of the ten pairs of people agree; nobody agrees with the fifth.
    assert one["another person"]["mIoU"] == pytest.approx(60)
    assert one["any of the other five"]["R1@0.7"] == pytest.approx(80)
    assert found["the data set"]["any of the five"]["mIoU"] == pytest.approx(100)
    assert one["another person"]["start s"] == 0  # the median of 0 six times, 10 four times
    # Four of ten pairs are 10 and 20 s apart.
    assert query.disagreement_s == pytest.approx(0.4 * 15)
    assert query.dissimilarity == pytest.approx(0.4)


def test_partial_correlation_is_that_of_what_a_third_thing_leaves(study: ModuleType) -> None:
    rng = np.random.default_rng(0)
    held = rng.normal(size=4000)
    a, b = (np.exp(held + rng.normal(size=4000)) for _ in range(2))
    assert stats.spearmanr(a, b).statistic > 0.4
    assert study.partial_spearman(a, b, held) == pytest.approx(0, abs=0.05)
    ranks = np.column_stack([stats.rankdata(x) for x in (a, b, held)])
    residual = ranks[:, :2] - np.column_stack([np.ones(4000), ranks[:, 2]]) @ np.linalg.lstsq(
        np.column_stack([np.ones(4000), ranks[:, 2]]), ranks[:, :2], rcond=None
    )[0]  # fmt: skip
    slow = np.corrcoef(residual.T)[0, 1]
    assert study.partial_spearman(a, b, held) == pytest.approx(slow)


def test_a_model_by_hand(study: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    queries, records = [], []
    for number in range(60):
        spread = 0.1 * (number + 1)
        people = np.array([2.0, 12.0]) + spread * np.array([-2, -1, 0, 1, 2])[:, None]
        queries.append(asked(study, f"v{number // 2}-{number % 2}", people.tolist()))
        deviation = np.full((1, 2), spread)
        records.append(
            PredictionRecord(
                number,
                np.array([[2.0, 12.0, 0.9]]),
                vid=f"v{number // 2}-{number % 2}",
                query="a person sits",
                aleatoric=deviation,
                epistemic=rng.permutation(deviation + rng.uniform(0, 9, (1, 2))),
                scale=deviation,
                alpha=np.full((1, 2), 1.5),
                intervals=np.stack([[2, 12] - 1.5 * deviation, [2, 12] + 1.5 * deviation], axis=-1),
            )
        )
    found = study.model_figures(records[::-1], queries)
    assert found["against"]["the median of the five"]["mIoU"] == pytest.approx(100)
    assert found["against"]["the data set"]["mIoU"] == pytest.approx(100 * 8 / 12)
    assert found["against"]["any of the six"]["mIoU"] == pytest.approx(100)
    assert found["ranking"]["AU"]["seconds"] == pytest.approx([1, 1, 1])
    value, low, high = found["ranking"]["EU"]["seconds"]
    assert low < value < high < 1
    # Three of the five lie within 1.5 spreads; the Student-t's 0.9 reaches 2.35, so all.
    assert found["coverage"]["calibrated 0.9"]["people"] == pytest.approx([0.6] * 3)
    assert found["coverage"]["Student-t 0.9"]["all five"] == pytest.approx([1] * 3)
    assert stats.t.ppf(0.95, 3) == pytest.approx(2.353, abs=1e-3)
    assert len(found["bins"]["AU s"]) == 10
    assert np.diff(found["bins"]["disagreement s"]).min() > 0
    study.draw(found, tmp_path / "figure.png")
    (tmp_path / "config.yaml").write_text(
        "name: n\ndata: {root: r}\nretrieval: {epochs: 4}\n", encoding="utf-8"
    )
    found["made"] = study.how_it_was_made(tmp_path)
    text = study.page({"people": study.people_figures(queries), "model": found})
    assert "4 of retrieval" in " ".join(text.split())
    assert "| AU | 1.00 (1.00 to 1.00) |" in text
    with pytest.raises(SystemExit, match="1 queries are not answered"):
        study.model_figures(records[1:], queries)


def test_the_page_is_what_was_measured(study: ModuleType) -> None:
    stored = json.loads(study.STORED.read_text(encoding="utf-8"))
    assert study.PAGE.read_text(encoding="utf-8") == study.page(stored)


@pytest.mark.data
def test_the_thousand_queries(study: ModuleType, data_dir: Path) -> None:
    found = study.people_figures(study.read_queries(data_dir))
    assert (found["queries"], found["videos"]) == (1000, 723)
    one = found["one person"]
    for whom, expected in {
        "the data set": (44.0, 18.2, 44.7),
        "another person": (57.0, 29.8, 52.1),
    }.items():
        got = [one[whom][key] for key in ("R1@0.5", "R1@0.7", "mIoU")]
        assert got == pytest.approx(expected, abs=0.05)
    # What is known of this set was computed in seconds, where ties at 0.5 are lost to rounding.
    seconds = [one["another person, in seconds"][key] for key in ("R1@0.5", "R1@0.7", "mIoU")]
    assert seconds == pytest.approx((55.8, 29.4, 52.1), abs=0.2)
    apart = one["the data set"]["start s"], one["the data set"]["end s"]
    assert apart == pytest.approx((1.8, 2.2), abs=0.05)
    stored = json.loads(study.STORED.read_text(encoding="utf-8"))["people"]
    assert stored == json.loads(json.dumps(found))

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demr.answers.calibration import Calibration
from demr.batches.noise import FeatureDeviation
from demr.errors import InputError
from demr.runs.balance import LEVELS, dvar, measure_balance, noise_curves, rises
from demr.runs.data import open_data
from demr.runs.folder import load_run


def test_dvar_by_hand() -> None:
    # Without the undisturbed points 100 and -50: variances of 1, 2, 3 and of 2, 4, 9.
    assert dvar((100, 1, 2, 3), (-50, 2, 4, 9)) == pytest.approx(26 / 3 - 2 / 3)
    assert dvar((0, 2, 4, 9), (0, 1, 2, 3)) == pytest.approx(8)
    assert dvar((0, 1, 2, 3), (5, 7, 8, 9)) == pytest.approx(0)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ((0, 0.1, 0.2, 3), True),
        ((0, 0.1, 0.1, 3), False),
        ((0, -0.1, 0.2, 3), False),
        ((0, 1, 2, 1.9), False),
        ((0, 1, float("nan"), 3), False),
    ],
)
def test_rises(curve: tuple[float, ...], expected: bool) -> None:
    assert rises(curve) is expected


def test_undisturbed_queries_lie_at_zero_and_no_noise_moves_nothing(run: Path) -> None:
    config, pretrained = load_run(run)
    data = open_data(config.data)
    queries = [a for a in data.val() if a.windows_s][:8]
    calibration = Calibration.load(run / "calibration.json")
    video, text = data.encoder.identity.video_dim, data.encoder.identity.text_dim
    curves = noise_curves(
        pretrained.model,
        data.dataset(queries),
        calibration,
        FeatureDeviation(np.zeros(video), np.full(text, 0.1)),
    )
    assert curves["video"].epistemic == pytest.approx([0] * len(LEVELS), abs=1e-5)
    assert curves["video"].predictive == pytest.approx([0] * len(LEVELS), abs=1e-5)
    assert curves["text"].epistemic[0] == pytest.approx(0, abs=1e-12)
    assert np.abs(curves["text"].epistemic[1:]).min() > 1e-4


def test_balance_of_a_run(own_run: Path, cli: Callable[..., Any]) -> None:
    done = cli("balance", own_run, "--split", "iid", "--limit", 4)
    assert done.code == 0
    assert "dVar" in done.out
    written = json.loads((own_run / "balance.json").read_text())
    assert written["split"] == "iid"
    assert written["queries"] == 4
    assert written["levels"] == list(LEVELS)
    for measure in ("EU", "AU+EU"):
        part = written[measure]
        assert part["dVar"] == pytest.approx(dvar(tuple(part["video"]), tuple(part["text"])))
        assert part["both rise"] == (rises(tuple(part["video"])) and rises(tuple(part["text"])))
        assert len(part["video"]) == len(part["text"]) == len(LEVELS)


@pytest.mark.parametrize("limit", [-3, 1])
def test_a_limit_that_cannot_be_averaged_is_refused(run: Path, limit: int) -> None:
    with pytest.raises(InputError, match="at least 2 queries"):
        measure_balance(run, "val", limit)


def test_an_unknown_split_is_named_with_those_there_are(run: Path, cli: Callable[..., Any]) -> None:
    assert "one of val, iid, ood" in cli("balance", run, "--split", "nope").one_line()

"""The UCI benchmark on small tables: its parts, its stack, its folds and its measures."""

import gzip
import importlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from demr.evidential import NormalInverseGamma

ROOT = Path(__file__).parents[2]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("uci_training")


@pytest.fixture
def uci(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(importlib.import_module("uci_page"), "PAGE", tmp_path / "uci.md")
    return importlib.import_module("uci")


def write_set(folder: Path, rows: int = 60, splits: int = 3) -> None:
    """A table of three features, of which one is constant, in the form of the real ones."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(4)
    x = generator.normal(size=(rows, 2))
    y = 100 + 5 * x[:, 0] + generator.normal(size=rows)
    table = np.column_stack([x[:, 0], np.full(rows, 7.0), x[:, 1], y])
    text = "\n".join(" ".join(f"{value:.6g}" for value in row) for row in table)
    (folder / "data.txt.gz").write_bytes(gzip.compress((text + "\n\n").encode()))
    (folder / "index_features.txt").write_text("0\n1\n2\n")
    (folder / "index_target.txt").write_text("3\n")
    tests = [generator.permutation(rows)[:6] for _ in range(splits)]
    lines = "\n".join(" ".join(map(str, rows)) for rows in tests) + "\n"
    (folder / "index_test_splits.txt.gz").write_bytes(gzip.compress(lines.encode()))


def test_parts_hold_every_row_once_and_are_standardised_by_what_is_learned(
    training: ModuleType, tmp_path: Path
) -> None:
    write_set(tmp_path / "set")
    table = training.read_table(tmp_path / "set")
    parts = training.split_table(table, 0.2, [0, 2])
    assert parts.x.shape == (2, 43, 3)
    assert parts.x_val.shape == (2, 11, 3)
    assert parts.x_test.shape == (2, 6, 3)
    torch.testing.assert_close(parts.y.mean(1), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.y.std(1, unbiased=False), torch.ones(2))
    assert not parts.x[..., 1].any()  # constant, and no division by its deviation
    for place, number in enumerate((0, 2)):
        scale = parts.scale[place].double()
        shift = table.y[table.test[number]][0] - parts.y_test[place, 0].double() * scale
        everything = torch.cat([parts.y[place], parts.y_val[place], parts.y_test[place]])
        back = (everything.double() * scale + shift).sort().values
        torch.testing.assert_close(back, table.y.sort().values, rtol=0, atol=1e-4)
        there = parts.y_test[place].double() * scale + shift
        torch.testing.assert_close(there, table.y[table.test[number]], rtol=0, atol=1e-4)


def test_a_network_learns_the_same_alone_and_in_a_stack(
    training: ModuleType, tmp_path: Path
) -> None:
    write_set(tmp_path / "set")
    table = training.read_table(tmp_path / "set")
    parts = training.split_table(table, 0.2, range(3))
    variants = [
        training.Variant("likelihood alone", members=2),
        training.Variant("DER", der=0.1),
        training.Variant("Geom", geom=0.1),
        training.Variant("anchored", anchored=1.0),
    ]
    together = training.Stack(variants, parts)
    found = training.train(together, 100)
    for variant, networks in zip(variants[1:], together.networks()[1:], strict=True):
        alone = training.Stack([variant], parts)
        # With members the first split's networks start alike, and their batches are drawn alike.
        alone.parameters = {
            name: value.detach()[together.start[networks[0]]].clone().requires_grad_()
            for name, value in training.Stack(variants, parts).parameters.items()
        }
        loss = alone.loss(rows := torch.arange(32).expand(3, 32))
        fresh = training.Stack(variants, parts)
        wide = rows[:1].expand(len(fresh.split), 32)
        torch.testing.assert_close(loss, fresh.loss(wide)[networks[0]], rtol=1e-5, atol=1e-6)
    assert all(value.isfinite().all() for value in found.parameters.values())
    # Trained, the best step is no worse on held-out rows than the last.
    last = together.predict(parts.x_val[together.split])
    nll = -last.log_prob(parts.y_val[together.split]).mean(1)
    assert (found.least[1] <= nll + 1e-5).all()


def test_folds_predict_rows_they_have_not_seen(training: ModuleType, tmp_path: Path) -> None:
    write_set(tmp_path / "set")
    parts = training.split_table(training.read_table(tmp_path / "set"), 0.2, range(2))
    before = training.unseen_predictions(parts, 100)
    assert before.shape == parts.y.shape
    # A row's target changes the predictions of other folds, never those of its own.
    parts.y[0, 3] += 50.0
    after = training.unseen_predictions(parts, 100)
    assert after[0, 3] == before[0, 3]
    assert not torch.equal(after[0, 20:], before[0, 20:])
    assert torch.equal(after[1], before[1])


def test_measures_of_one_network_and_of_a_mixture(uci: ModuleType) -> None:
    generator = torch.Generator().manual_seed(3)
    loc, y = torch.randn(2, 40, generator=generator).double()
    nu, beta = (0.5 + torch.rand(2, 40, generator=generator)).double()
    nig = NormalInverseGamma(loc, nu, 3.0, beta)
    found: dict[str, Any] = uci.measure(nig[None], y)
    error = (y - loc).abs()
    assert found["RMSE"] == pytest.approx(math.sqrt((error**2).mean()))
    assert found["NLL"] == pytest.approx(-nig.log_prob(y).mean().item())
    assert found["rho EU"] == pytest.approx(spearmanr(error, nig.epistemic).statistic)
    assert found["rho -evidence"] == pytest.approx(spearmanr(error, -nig.evidence).statistic)
    assert found["nu 50%"] == pytest.approx(nu.quantile(0.5).item())
    # Two members that agree are one; of two that do not, EU has their disagreement.
    pair = NormalInverseGamma(*(torch.stack([p, p]) for p in (loc, nu, nig.alpha, beta)))
    same = uci.measure(pair, y)
    assert same == pytest.approx(found)
    apart = NormalInverseGamma(torch.stack([loc, loc + 1]), pair.nu, pair.alpha, pair.beta)
    mixed = uci.measure(apart, y)
    density = torch.stack([nig.log_prob(y).exp(), nig.log_prob(y - 1).exp()]).mean(0)
    assert mixed["NLL"] == pytest.approx(-density.log().mean().item())
    between = (y - loc - 0.5).abs()
    assert mixed["rho EU"] == pytest.approx(spearmanr(between, nig.epistemic + 0.25).statistic)


def test_the_script_end_to_end(
    uci: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path / "data" / "uci" / "yacht")
    monkeypatch.setenv("DEMR_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(uci, "RESULTS", tmp_path / "results")
    for module in (uci, importlib.import_module("uci_training")):
        monkeypatch.setattr(module, "GROWTH", (5, 10))
    monkeypatch.setattr("sys.argv", ["uci.py", "yacht", "--steps", "100"])
    uci.main()
    stored = json.loads((tmp_path / "results" / "yacht.json").read_text())
    assert set(stored) >= {"honest", "published", "growth"}
    assert {len(rows) for rows in stored["honest"].values()} == {3}
    page = (tmp_path / "uci.md").read_text()
    for words in ("folds + anchored Geom", "ensemble of 5", "DER as published", "stay put"):
        assert words in page
    monkeypatch.setattr("sys.argv", ["uci.py", "iris"])
    with pytest.raises(SystemExit):
        uci.main()


def test_least_values_over_training_are_of_test_batches(
    training: ModuleType, tmp_path: Path
) -> None:
    write_set(tmp_path / "set")
    parts = training.split_table(training.read_table(tmp_path / "set"), 0.0, range(2))
    stack = training.Stack([training.Variant("likelihood alone")], parts)
    done = training.train(stack, 100)
    # One look, at all six test rows, after the last step.
    nig = stack.predict(parts.x_test).detach()
    error: Tensor = (parts.y_test - nig.loc).square().mean(1).sqrt() * parts.scale
    torch.testing.assert_close(done.least[0], error)
    torch.testing.assert_close(
        done.least[1], parts.scale.log() - nig.log_prob(parts.y_test).mean(1)
    )

"""Evidential regression on six UCI tables: likelihood alone, DER, the paper's Geom, ours.

    DEMR_DATA=... python benchmarks/uci.py [SET...] [--parts honest published growth]
    python benchmarks/uci.py --page

Twenty splits into train and test rows, as others published them, one hidden layer of 50 units,
targets standardised in training and measured in their own units. All splits, weights and members
of an ensemble are trained at once, as one stack of networks (``torch.func``); each has its own
batches and optimiser state, so that being in a stack changes nothing. Three parts:

- **honest**: a fifth of the training rows is held out. The step of the lowest negative
  log-likelihood on it is kept, and of a regulariser's weights the best by it, split by split; test
  rows are measured once.
- **published**: what the published figures of DER are, by their authors' script: trained on all
  training rows, the least value over training on batches of at most 100 test rows, for RMSE and
  NLL each. It is better than what anyone would get by what choosing on test rows gains.
- **growth**: the median of nu on test rows over 8,000 steps at a constant rate, three splits.

What is found goes to results/uci/SET.json; every run, and ``--page`` alone, writes docs/uci.md from
the sets that are there.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from uci_page import write_page
from uci_training import (
    FOLDS,
    GROWTH,
    Stack,
    Table,
    Variant,
    read_table,
    split_table,
    train,
    unseen_predictions,
)

from demr.evidential import NormalInverseGamma
from demr.machine.files import atomic_path
from demr.metrics.scores import quantile_calibration_error
from demr.metrics.uncertainty import spearman, uncertainty_metrics

RESULTS = Path(__file__).parent / "results" / "uci"
FOLDERS = {
    "boston": "bostonHousing",
    "concrete": "concrete",
    "energy": "energy",
    "power": "power-plant",
    "wine": "wine-quality-red",
    "yacht": "yacht",
}
STEPS = 1500
HELD_OUT = 0.2


VARIANTS = (
    Variant("likelihood alone", members=FOLDS),
    Variant("DER", der=0.01),
    Variant("DER", der=0.1),
    Variant("Geom (paper)", geom=0.01),
    Variant("Geom (paper)", geom=0.1),
    Variant("anchored Geom", anchored=1.0),
    Variant("folds", folds=True),
    Variant("folds + anchored Geom", anchored=1.0, folds=True),
)


def measure(nig: NormalInverseGamma, y: Tensor) -> dict[str, float]:
    """Measures of one split's test rows, in original units.

    Args:
        nig: Predictions of an ensemble's members, ``(members, N)``.
        y: ``(N,)``.
    """
    loc = nig.loc.mean(0)
    spread = nig.loc.var(0, unbiased=False)
    error = (y - loc).abs().numpy()
    aleatoric, epistemic = nig.aleatoric.mean(0), nig.epistemic.mean(0) + spread
    evidence = nig.evidence.mean(0)
    scale = (nig.scale.square().mean(0) + spread).sqrt()
    ordered = uncertainty_metrics(error, aleatoric.numpy(), epistemic.numpy(), evidence.numpy())
    log_density = nig.log_prob(y).logsumexp(0) - math.log(len(nig.loc))
    found = {
        "RMSE": float((y - loc).square().mean().sqrt()),
        "NLL": -float(log_density.mean()),
        "rho EU": ordered["spearman/EU"],
        "rho -evidence": ordered["spearman/-evidence"],
        "rho AU+EU": ordered["spearman/AU+EU"],
        "rho scale": spearman(error, scale.numpy()),
        "AUSE": ordered["AUSE/EU"],
        "QCE": quantile_calibration_error(nig.cdf(y).mean(0).clamp(0, 1).numpy()),
    }
    for name in ("nu", "alpha"):
        values = getattr(nig, name).flatten().numpy()
        for share in (5, 50, 95):
            found[f"{name} {share}%"] = float(np.percentile(values, share))
    return found


def honest(table: Table, steps: int) -> dict[str, Any]:
    """Measure every method by the honest protocol: rows of measures, one a split."""
    parts = split_table(table, HELD_OUT, range(len(table.test)))
    stack = Stack(VARIANTS, parts, unseen_predictions(parts, steps))
    done = train(stack, steps)
    with torch.no_grad():
        predicted = stack.predict(parts.x_test[stack.split], done.parameters).detach()
    predicted = predicted.map_parameters(Tensor.double)
    methods: dict[str, list[Tensor]] = {}
    for variant, networks in zip(VARIANTS, stack.networks(), strict=True):
        methods.setdefault(variant.method, []).append(networks[:1])
        if variant.members > 1:
            methods[f"ensemble of {variant.members}"] = [networks]
    found = {}
    for method, choices in methods.items():
        # Of the variants of a method the best by held-out rows, in each split.
        loss = torch.stack([done.least[1][networks].mean(0) for networks in choices])
        rows = []
        for split, choice in enumerate(loss.argmin(0).tolist()):
            scale = parts.scale[split].double()
            nig = predicted[choices[choice][:, split]].rescale(scale)
            rows.append(measure(nig, parts.y_test[split].double() * scale) | {"choice": choice})
        found[method] = rows
    return found


def published(table: Table, steps: int) -> dict[str, Any]:
    """RMSE and NLL of every method by the published protocol, least over splits' trainings."""
    parts = split_table(table, 0.0, range(len(table.test)))
    variants = [
        Variant("likelihood alone"),
        Variant("DER", der=0.01),
        Variant("Geom (paper)", geom=0.01),
        Variant("folds + anchored Geom", anchored=1.0, folds=True),
    ]
    stack = Stack(variants, parts, unseen_predictions(parts, steps))
    least = train(stack, steps).least
    return {
        variant.method: [
            {"RMSE": float(least[0, i]), "NLL": float(least[1, i])} for i in networks[0].tolist()
        ]
        for variant, networks in zip(variants, stack.networks(), strict=True)
    }


def growth(table: Table, steps: int) -> dict[str, Any]:
    """Median nu by step at a constant rate; ``steps`` is 8,000 whatever is asked for."""
    del steps
    variants = [
        Variant("likelihood alone"),
        Variant("DER 0.01", der=0.01),
        Variant("Geom (paper) 0.01", geom=0.01),
        Variant("Geom (paper) 0.1", geom=0.1),
        Variant("anchored Geom 1", anchored=1.0),
    ]
    stack = Stack(variants, split_table(table, HELD_OUT, range(3)))
    nu = train(stack, max(GROWTH), decay=False).nu
    return {
        variant.method: {str(step): float(nu[step][networks].mean()) for step in GROWTH}
        for variant, networks in zip(variants, stack.networks(), strict=True)
    }


PARTS = {"honest": honest, "published": published, "growth": growth}


def main() -> None:
    """Measure what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(FOLDERS)}; all")
    parser.add_argument("--data", type=Path, help="the folder uci; that of DEMR_DATA")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--page", action="store_true", help="write the page alone")
    asked = parser.parse_args()
    unknown = sorted(set(asked.sets) - set(FOLDERS))
    if unknown:
        parser.error(f"no set {unknown[0]!r}; there are {', '.join(FOLDERS)}")
    root = asked.data or Path(os.environ.get("DEMR_DATA", "")) / "uci"
    if not asked.page and not root.is_dir():
        parser.error(f"no folder {root}: name it with --data, or its parent with DEMR_DATA")
    torch.set_num_threads(1)
    for name in [] if asked.page else asked.sets or list(FOLDERS):
        path = RESULTS / f"{name}.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        table = read_table(root / FOLDERS[name])
        for part in asked.parts:
            start = time.process_time()
            found[part] = PARTS[part](table, asked.steps)
            found[part + " seconds"] = round(time.process_time() - start, 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(_short(found), indent=1), encoding="utf-8")
            print(f"{name}, {part}: {found[part + ' seconds']:.0f} s of one core", flush=True)
    write_page(RESULTS)


def _short(value: Any) -> Any:
    """Numbers of five digits, so that a table of results can be read."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_short(one) for one in value]
    return value


if __name__ == "__main__":
    main()

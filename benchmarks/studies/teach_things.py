"""Go on with a trained model of the embedded world, on a world that asks for things as well.

    python benchmarks/studies/teach_things.py MODEL WORLD OUT

The bundled model was made so, from the recipe's run with seed 0 on the world before (the model of
commit 36dcdb1), as the machine was too busy for the whole recipe. WORLD is what `demr train
configs/shapes.yaml` renders. Three rounds of alignment and retrieval on the first training videos,
less those that the first training kept out for the evidential head, which is fitted to all of these
again; before that the weights are mixed with those at the start. Rates are half of the recipe's or
less: most is known. What the model says about its domain and its words stays, but for new words.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import lightning
import numpy as np
import torch

from demr.annotations import Annotation, read_annotations
from demr.answers.pretrained import Pretrained, load_pretrained, save_pretrained
from demr.network.model import DemrModel
from demr.runs.calibrating import calibrate_run
from demr.runs.config import TrainConfig, load_config
from demr.runs.data import RunData, open_data
from demr.runs.evaluating import evaluate_run
from demr.runs.folder import claim_folder
from demr.training import stages
from demr.training.run import train_stages
from demr.training.trainer import fit_stage

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "shapes.yaml"
# Share of the new weights: the old ones bring back most of what queries with actions lost.
_MIX = 0.85
# Of the 2,000 training videos the recipe keeps out every fourteenth.
_HELD_OUT = {f"train_{int(i):04d}" for i in np.linspace(0, 1999, 140).round()}


@dataclass(frozen=True)
class Round:
    """Training videos from the first, peak rate of the alignment, and settings of the recipe."""

    videos: int
    align_lr: float
    settings: tuple[str, ...]


ROUNDS = (
    Round(385, 5e-4, ("seed=0", "reconstruction.align_epochs=2", "retrieval.epochs=1",
                      "retrieval.queries_per_epoch=20000", "retrieval.lr=4.0e-4")),
    Round(385, 5e-4, ("seed=1", "reconstruction.align_epochs=2", "retrieval.epochs=1",
                      "retrieval.queries_per_epoch=12000", "retrieval.lr=4.0e-4")),
    Round(576, 1e-3, ("seed=2", "reconstruction.align_epochs=5", "retrieval.epochs=2",
                      "retrieval.queries_per_epoch=30000", "retrieval.lr=6.0e-4")),
)  # fmt: skip


def main() -> None:
    """Train, fit the evidential head, calibrate and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "world", "out"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    out: Path = arguments.out
    recipe = load_config(RECIPE, [f"data.root={arguments.world}"])
    data = open_data(recipe.data)
    queries = read_annotations(arguments.world / "train.jsonl")
    claim_folder(recipe, out, resume=False)
    pretrained = load_pretrained(arguments.model)
    before = {name: value.clone() for name, value in pretrained.model.state_dict().items()}
    for number, one in enumerate(ROUNDS):
        pretrained = teach(one, pretrained, data, queries, out / f"round{number}")
    after = pretrained.model.state_dict()
    mixed = {name: torch.lerp(before[name], after[name], _MIX) for name in after}
    pretrained.model.load_state_dict(mixed)
    save_pretrained(out, replace(pretrained, model=refit(recipe, pretrained.model, data, out)))
    calibrate_run(out)
    evaluate_run(out)


def teach(
    one: Round, pretrained: Pretrained, data: RunData, queries: list[Annotation], run: Path
) -> Pretrained:
    """One round; its evidential head is not fitted to anything yet."""
    fixed = ("reconstruction.epochs=0", "retrieval.refit_epochs=0", f"data.root={data.config.root}")
    config = load_config(RECIPE, [*one.settings, *fixed])
    shown = {f"train_{number:04d}" for number in range(one.videos)} - _HELD_OUT
    train = data.dataset([a for a in queries if a.vid in shown], training=True, seed=config.seed)
    stages._ALIGN_LR = one.align_lr
    claim_folder(config, run, resume=False)
    lightning.seed_everything(config.seed, verbose=False)
    validation = data.dataset(data.val())
    model = train_stages(config, run, pretrained.model.train(), train, validation, None)
    words = {
        word
        for query, annotation in zip(train.queries, train.annotations, strict=True)
        if annotation.windows_s
        for word in query.words
    }
    known = None if pretrained.known_words is None else pretrained.known_words | words
    return replace(pretrained, model=model, known_words=known)


def refit(config: TrainConfig, model: DemrModel, data: RunData, run: Path) -> DemrModel:
    """Fit a fresh evidential head to the videos that were kept out of all training."""
    queries = read_annotations(data.config.root / "train.jsonl")
    held_out = [a for a in queries if a.vid in _HELD_OUT and a.windows_s]
    stage = stages.RefitStage(model, config, data.dataset(held_out, training=True))
    last = fit_stage(stage, config, run, "refit", config.retrieval.refit_epochs)
    stage.load_state_dict(torch.load(last, map_location="cpu", weights_only=True)["state_dict"])
    return stage.model.eval()


if __name__ == "__main__":
    main()

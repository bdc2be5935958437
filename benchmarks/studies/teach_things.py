"""Go on with a trained model of the embedded world, on a world that asks for things as well.

    python benchmarks/studies/teach_things.py MODEL WORLD OUT

The bundled model was made so: from the weights of the recipe's run with seed 0 on the world before
(commit 36dcdb1), as no machine was free for the hour that the whole recipe takes. WORLD is what
`demr train configs/shapes.yaml` renders. Only the first 385 training videos are trained on, less
those that the first training kept out for the evidential head, which is fitted to all of these
again. Both rates are a quarter or less of the recipe's: most is known. What the model says about
its domain and its words stays, but for new words.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import lightning
import numpy as np

from demr.annotations import read_annotations
from demr.answers.pretrained import load_pretrained, save_pretrained
from demr.runs.calibrating import calibrate_run
from demr.runs.config import load_config
from demr.runs.data import open_data
from demr.runs.evaluating import evaluate_run
from demr.runs.folder import claim_folder
from demr.training import stages
from demr.training.run import train_stages

ROOT = Path(__file__).resolve().parents[2]
VIDEOS = 385
SETTINGS = (
    "reconstruction.align_epochs=2",
    "reconstruction.epochs=0",
    "retrieval.epochs=1",
    "retrieval.queries_per_epoch=20000",
    "retrieval.lr=4.0e-4",
)
_ALIGN_LR = 5e-4
# Of the 2,000 training videos the recipe keeps out every fourteenth.
_HELD_OUT = {f"train_{int(i):04d}" for i in np.linspace(0, 1999, 140).round()}


def main() -> None:
    """Train, fit the evidential head, calibrate and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "world", "out"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    former = load_pretrained(arguments.model)
    recipe = ROOT / "configs" / "shapes.yaml"
    config = load_config(recipe, [f"data.root={arguments.world}", *SETTINGS])
    data = open_data(config.data)
    queries = read_annotations(arguments.world / "train.jsonl")
    first = {f"train_{number:04d}" for number in range(VIDEOS)} - _HELD_OUT
    train = data.dataset([a for a in queries if a.vid in first], training=True)
    held_out = [a for a in queries if a.vid in _HELD_OUT and a.windows_s]
    stages._ALIGN_LR = _ALIGN_LR
    claim_folder(config, arguments.out, resume=False)
    lightning.seed_everything(config.seed, verbose=False)
    refit = data.dataset(held_out, training=True)
    validation = data.dataset(data.val())
    model = train_stages(
        config, arguments.out, former.model.train(), train, validation, None, refit
    )
    words = {
        word
        for query, annotation in zip(train.queries, train.annotations, strict=True)
        if annotation.windows_s
        for word in query.words
    }
    known = None if former.known_words is None else former.known_words | words
    save_pretrained(arguments.out, replace(former, model=model, known_words=known))
    calibrate_run(arguments.out)
    evaluate_run(arguments.out)


if __name__ == "__main__":
    main()

"""Put a finished run into the package as the bundled model.

    python benchmarks/studies/bundle_model.py runs/shapes

Takes what loading needs (weights in float16), the calibration, the recipe with its seed, the
metrics and the training log. Calibration and metrics are made again with the rounded weights.
"""

import argparse
import shutil
from pathlib import Path

from demr.answers.pretrained import load_pretrained, save_pretrained
from demr.runs.calibrating import calibrate_run
from demr.runs.evaluating import evaluate_run

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "src" / "demr" / "models" / "shapes"
LIMIT_BYTES = 8_000_000


def main() -> None:
    """Copy the run's files and check their size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    run: Path = parser.parse_args().run
    save_pretrained(TARGET, load_pretrained(run), half=True)
    shutil.copy(run / "config.yaml", TARGET / "config.yaml")
    shutil.copy(run / "train.log", TARGET / "train.log")
    calibrate_run(TARGET)
    evaluate_run(TARGET)
    for written in ("predictions.jsonl", "error_bins.json", "uncertainty.png"):
        (TARGET / written).unlink()
    size = sum(path.stat().st_size for path in TARGET.iterdir())
    if size > LIMIT_BYTES:
        raise SystemExit(f"{TARGET} takes {size} bytes, more than {LIMIT_BYTES}")
    print(f"{TARGET}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

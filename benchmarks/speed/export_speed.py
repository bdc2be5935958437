"""How far an exported file is from the model, and how fast it is beside it, on one thread.

    python benchmarks/speed/export_speed.py

Exports the bundled model in both formats and asks it, and both files, about random features of
several sizes. A time is the fastest of 30: the others measure what else the machine does. Rewrites
the section on speed in docs/export.md.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnxruntime
import torch

from demr.answers.pretrained import DEFAULT_MODEL, find_model, load_pretrained
from demr.export.exporting import (
    INPUTS,
    OUTPUTS,
    Localiser,
    deviation,
    export_model,
    load_onnx,
    load_pt2,
    random_batch,
)

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- speed -->", "<!-- end of speed -->"
SIZES = [(1, 60, 8), (1, 120, 8), (16, 120, 8), (64, 120, 16)]
REPEATS = 30


def main() -> None:
    """Measure and rewrite the section."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    pretrained = load_pretrained(find_model(DEFAULT_MODEL))
    model = Localiser(pretrained.model).eval()
    lines = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        took = {}
        for name in ("onnx", "pt2"):
            began = time.perf_counter()
            export_model(DEFAULT_MODEL, name, Path(folder) / f"model.{name}")
            took[name] = time.perf_counter() - began
        onnx, pt2 = Path(folder) / "model.onnx", Path(folder) / "model.pt2"
        sizes_mb = [path.stat().st_size / 1e6 for path in (onnx, pt2)]
        program, options = load_pt2(pt2), onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        for sizes in SIZES:
            batch = random_batch(pretrained, *sizes, seed=1)
            given = {name: part.numpy() for name, part in zip(INPUTS, batch, strict=True)}
            expected = model(*batch)
            off = [deviation(ours(*batch), expected) for ours in (load_onnx(onnx), program)]
            times = [
                fastest(partial(model, *batch)),
                fastest(partial(session.run, list(OUTPUTS), given)),
                fastest(partial(program, *batch)),
            ]
            row = [" x ".join(map(str, sizes))]
            row += [f"{1e3 * seconds:.1f}" for seconds in times]
            row += [f"{value:.0e}" for value in off]
            lines.append(f"| {' | '.join(row)} |")
    head = f"""\
Made by `python benchmarks/speed/export_speed.py` with the bundled model, {platform.machine()}, one
thread of cores shared with other work, torch {torch.__version__}, onnxruntime
{onnxruntime.__version__}. Milliseconds are the fastest of {REPEATS}; a deviation is relative for
evidence and uncertainties, and for whatever exceeds 1, else absolute. Files have
{sizes_mb[0]:.1f} MB (ONNX) and {sizes_mb[1]:.1f} MB (pt2), in float32; writing and trying one took
{took["onnx"]:.0f} s and {took["pt2"]:.0f} s.

| queries x clips x tokens | demr, ms | ONNX, ms | pt2, ms | ONNX off by | pt2 off by |
|---|---|---|---|---|---|
"""
    path = ROOT / "docs" / "export.md"
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    section = f"{BEGIN}\n{head}{chr(10).join(lines)}\n{END}"
    path.write_text(before + section + rest.split(END)[1], encoding="utf-8")


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of many runs."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    main()

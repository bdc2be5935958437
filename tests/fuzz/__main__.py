"""The long fuzz: ``python -m tests.fuzz --minutes 60 [--seed 0] [--target NAME]``.

Prints every problem with the trial that shows it, and a table of targets; exit code 1 where there
was any. ``--trial NAME SEED`` repeats one.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from pebble import ProcessPool
from tests.conftest import TINY_RECIPE, build_world, call_main
from tests.fuzz.corpus import build_corpus
from tests.fuzz.trials import TARGETS, Outcome, run_trials, trial_pool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=sorted(TARGETS))
    parser.add_argument("--corpus", type=Path, help="kept between runs; made where it is not")
    parser.add_argument("--trial", nargs=2, metavar=("NAME", "SEED"))
    options = parser.parse_args()
    corpus = options.corpus or Path(tempfile.mkdtemp(prefix="demr-corpus-")) / "corpus"
    if not corpus.exists():
        world, run = corpus.with_name("world"), corpus.with_name("run")
        recipe = corpus.with_name("tiny.yaml")
        recipe.write_text(TINY_RECIPE.format(world=world), encoding="utf-8")
        build_world(world)
        assert call_main("train", recipe, "--out", run) == 0
        build_corpus(corpus, world, run)
    with trial_pool() as pool:
        if options.trial:
            name, seed = options.trial[0], int(options.trial[1])
            for _, _, outcome in run_trials(pool, [(name, seed)], corpus):
                print(outcome.problem or outcome)
            return 0
        names = options.target or list(TARGETS)
        outcomes = _run(pool, names, options.seed, options.minutes * 60, corpus)
    _print_table(outcomes)
    return int(any(outcome.problem for found in outcomes.values() for outcome in found))


def _run(
    pool: ProcessPool, names: list[str], seed: int, length_s: float, corpus: Path
) -> dict[str, list[Outcome]]:
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
    end = time.monotonic() + length_s
    while time.monotonic() < end:
        # Extraction starts processes of its own each time, and reads as the search does; a run
        # that goes on may go on to its end.
        is_slow = seed % 5 == 0
        trials = [(n, seed) for n in names if is_slow or not n.startswith(("extract", "resume"))]
        for name, number, outcome in run_trials(pool, trials, corpus):
            outcomes[name].append(outcome)
            if outcome.problem:
                print(f"--- {name} {number}: {outcome.problem}\n{outcome.output}", flush=True)
        seed += 1
    return outcomes


def _print_table(outcomes: dict[str, list[Outcome]]) -> None:
    print(f"{'target':30} {'trials':>6} {'code 0':>6} {'1':>5} {'2':>5} {'wrong':>5} {'s':>6} MB")
    for name, found in outcomes.items():
        codes = Counter(outcome.code for outcome in found)
        wrong = sum(bool(outcome.problem) for outcome in found)
        slowest = max((outcome.seconds for outcome in found), default=0.0)
        memory = max((outcome.memory_mb for outcome in found), default=0.0)
        print(
            f"{name:30} {len(found):6} {codes[0]:6} {codes[1]:5} {codes[2]:5} {wrong:5} "
            f"{slowest:6.1f} {memory:.0f}"
        )


if __name__ == "__main__":
    sys.exit(main())

"""The fuzz in a short form: ``python -m tests.fuzz --minutes 60`` is the long one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pebble import ProcessPool
from tests.fuzz.corpus import build_corpus
from tests.fuzz.trials import TARGETS, run_trials, trial_pool

SEEDS = (101, 102)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, world: Path, run: Path) -> Path:
    return build_corpus(tmp_path_factory.mktemp("fuzz") / "corpus", world, run)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    with trial_pool() as processes:
        yield processes


@pytest.mark.slow
@pytest.mark.parametrize("group", sorted({name.split()[0] for name in TARGETS}))
def test_damage_costs_a_user_one_line_at_most(corpus: Path, pool: ProcessPool, group: str) -> None:
    names = [name for name in TARGETS if name.split()[0] == group]
    trials = [(name, seed) for name in names for seed in SEEDS]
    wrong = [
        f"{name} {seed}: {outcome.problem}\n{outcome.output}"
        for name, seed, outcome in run_trials(pool, trials, corpus)
        if outcome.problem
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_whole_files_are_read_so_the_fuzz_reaches_the_readers(
    corpus: Path, pool: ProcessPool
) -> None:
    trials: list[tuple[str, int | None]] = [(name, None) for name in TARGETS]
    codes = {
        name: (outcome.code, outcome.output)
        for name, _, outcome in run_trials(pool, trials, corpus)
        if outcome.code != 0
    }
    assert not codes

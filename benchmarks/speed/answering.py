"""How long an answer takes once the network has spoken: expected overlap against suppression.

    python benchmarks/speed/answering.py

A batch of 1,550 queries of 75 proposals, as of a validation split, and one query about long
videos; proposals are random, of a few moments each. Prints milliseconds of processor time a query.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from demr.answers.mixture import answer
from demr.answers.proposals import Proposals, select

QUERIES, CLIPS = 1_550, 75
LONG = (600, 3_600, 43_200)


def main() -> None:
    """Time both, of the best moment and of ten."""
    rng = np.random.default_rng(0)
    batch = [make_proposals(rng, CLIPS, 3) for _ in range(QUERIES)]
    print(f"{QUERIES} queries of {CLIPS} proposals, ms a query")
    for top in (1, 10):
        print(f"  {top:2d} moments: {per_query(lambda of, n=top: answer(of, top=n), batch):6.3f}")
    print(f"  score, suppressed: {per_query(lambda of: [select(one) for one in of], batch):6.3f}")
    print("one query about a long video, ms")
    for clips in LONG:
        long = [make_proposals(rng, clips, clips // 25)]
        print(f"  {clips:6d} clips: {per_query(answer, long):8.2f}")


def per_query(work: Callable[[Sequence[Proposals]], object], batch: Sequence[Proposals]) -> float:
    """Milliseconds of processor time a query, the least of three."""
    spent = []
    for _ in range(3):
        began = time.process_time()
        work(batch)
        spent.append(time.process_time() - began)
    return 1e3 * min(spent) / len(batch)


def make_proposals(rng: np.random.Generator, clips: int, moments: int) -> Proposals:
    """Clips inside a moment propose it with noise, others something short with little belief."""
    middle = (np.arange(clips) + 0.5) / clips
    window = middle[:, None] + np.array([-1, 1]) / clips
    foreground = rng.beta(0.3, 8, clips)
    for _ in range(moments):
        start = rng.integers(0, clips - 12)
        inside = slice(start, start + int(rng.integers(3, 12)))
        window[inside] = np.array([inside.start, inside.stop]) / clips
        foreground[inside] = rng.beta(4, 1, len(foreground[inside]))
    window = np.sort(window + rng.normal(0, 0.5 / clips, window.shape), axis=1)
    nu, alpha = rng.uniform(1, 3, (2, clips, 2))
    beta = (rng.uniform(0.3, 1, (clips, 2)) / clips) ** 2
    index = np.arange(clips)
    return Proposals(window, foreground, nu, alpha + 1, beta, index, foreground, float(clips))


if __name__ == "__main__":
    main()

"""Which items make a batch: by length, by video, by seed and epoch alone."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from demr.batches.dataset import MomentDataset


class LengthBatches(Sampler[list[int]]):
    """Batches of items of similar length, shuffled by seed and epoch alone.

    The order depends on nothing else, so a resumed run sees the same batches. With several
    processes each takes its own share of every shuffled order.

    Args:
        dataset: Gives the lengths.
        batch_size: Items per batch, at most.
        together: Queries of one video that go into a batch together, as far as there are so
            many. They share the projection of the video, and each is a hard negative to the
            others. Divides ``batch_size``.
        limit: Queries to draw, to within one group; 0 takes all.
        seed: Seed of the shuffle.
        epoch: Also seeds the shuffle.
        rank: This process.
        world: Number of processes.
    """

    def __init__(
        self,
        dataset: MomentDataset,
        batch_size: int,
        *,
        together: int = 1,
        limit: int = 0,
        seed: int,
        epoch: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        generator = np.random.default_rng((seed, epoch))
        groups = [[index] for index in generator.permutation(len(dataset)).tolist()]
        if together > 1:
            groups = _by_video(dataset, groups, together)
            groups = [groups[index] for index in generator.permutation(len(groups))]
        if limit:
            count = int(np.searchsorted(np.cumsum([len(group) for group in groups]), limit)) + 1
            groups = groups[:count]
        # Every process must run equally many steps, or the others wait for it forever.
        share = np.resize(np.arange(len(groups)), -(-len(groups) // world) * world)[rank::world]
        lengths = np.array([dataset.length(groups[index][0]) for index in share])
        size = batch_size // together
        pool = size * 16
        batches = []
        for low in range(0, len(share), pool):
            part = share[low : low + pool]
            part = part[np.argsort(lengths[low : low + pool], kind="stable")]
            batches += [
                [item for index in part[i : i + size] for item in groups[index]]
                for i in range(0, len(part), size)
            ]
        # The seed must not depend on the rank: all processes take equally long batches together.
        shuffle = np.random.default_rng((seed, epoch, 1)).permutation(len(batches))
        self._batches = [batches[index] for index in shuffle]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def _by_video(dataset: MomentDataset, singles: list[list[int]], size: int) -> list[list[int]]:
    """Regroup single items, in their order, to groups of at most ``size`` of one video."""
    of_video: dict[str, list[int]] = {}
    for (index,) in singles:
        of_video.setdefault(dataset.annotations[index].vid, []).append(index)
    return [
        items[low : low + size] for items in of_video.values() for low in range(0, len(items), size)
    ]


def sequential_batches(dataset: MomentDataset, batch_size: int) -> list[list[int]]:
    """All items once, neighbours of similar length together, longest first."""
    order = sorted(range(len(dataset)), key=dataset.length, reverse=True)
    return [order[low : low + batch_size] for low in range(0, len(order), batch_size)]

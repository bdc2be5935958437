"""A model over every query of a split."""

import torch

from demr.answers.inference import RawPrediction, predict
from demr.batches.dataset import MomentDataset
from demr.batches.sampling import sequential_batches
from demr.batches.stretches import MAX_CLIPS
from demr.network.model import DemrModel


def run_model(
    model: DemrModel,
    dataset: MomentDataset,
    *,
    device: torch.device | None = None,
    batch_size: int = 128,
    max_clips: int = MAX_CLIPS,
) -> list[RawPrediction]:
    """Predict every item of a dataset, in its order, in float32.

    Args:
        model: In evaluation mode.
        dataset: Queries and features.
        device: Where to run; the model is moved there.
        batch_size: Items at once.
        max_clips: Clips to read at once; of longer videos stretches are read, as in a search.
    """
    device = torch.device("cpu") if device is None else device
    model = model.to(device).eval()
    results: dict[int, RawPrediction] = {}
    for indices in sequential_batches(dataset, batch_size):
        items = [dataset[index] for index in indices]
        said = predict(model, items, dataset.clip_s, max_clips=max_clips, device=device)
        results |= zip(indices, said, strict=True)
    return [results[index] for index in range(len(dataset))]

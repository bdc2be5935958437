"""Numbers recorded on 2026-11-28, before settings that nobody used were taken out of the code."""

from dataclasses import fields, replace

import pytest
import torch

from demr.batches.batch import Item, collate, make_targets
from demr.network.losses import alignment_loss, retrieval_loss
from demr.network.model import DemrModel
from demr.network.settings import Architecture, LossWeights

PAPER = LossWeights()
# Those of configs/shapes.yaml.
SHAPES = LossWeights(
    saliency=0.5, clip_contrast=0.2, absent_negatives=True, lambda_der=1e-2, lambda_geom=1,
    error_scale="rank",
)  # fmt: skip
RFF = Architecture(dim=16, heads=4, layers=2, hidden=24)
CONCAT = replace(RFF, fusion="concat")
WITH_TEXT = replace(RFF, matching=True, text_layers=2)


def recorded_items() -> list[Item]:
    generator = torch.Generator().manual_seed(11)
    items = []
    for clips, windows, event in (
        (9, [(0.1, 0.5)], 3),
        (6, [(0.5, 0.9), (0.0, 0.2)], 4),
        (8, [(0.3, 0.8)], 3),
        (5, [(0.5, 0.95)], -1),
    ):
        edges = torch.linspace(0, 1, clips + 1)
        span = torch.stack([edges[:-1], edges[1:]], dim=1)
        video = torch.randn(clips, 8, generator=generator)
        text = torch.randn(4, 6, generator=generator)
        items.append(Item(video, text, span, 2.0 * clips, make_targets(windows, span), event=event))
    return items


@pytest.mark.parametrize(
    ("architecture", "weights", "losses", "gradient", "alignment"),
    [
        (
            RFF,
            PAPER,
            "9.395885 0.04667459 0.55926 0.396394 2.099835 3.449839 7.989336 0.9588001 0.1617291",
            16.58973,
            5.617346,
        ),
        (
            CONCAT,
            PAPER,
            "6.226381 0.05191546 0.5772837 0.3800676 1.306946 2.821864 2.099824 1.072001 0.145759",
            11.62258,
            5.617346,
        ),
        (
            WITH_TEXT,
            SHAPES,
            "12.67881 0.0475317 0.5637426 0.7147754 4.884911 5.333677 9.782124 0.931584 0.2537817",
            27.54656,
            6.472719,
        ),
    ],
    ids=["rff", "concat", "shapes"],
)
def test_losses_and_gradients_are_those_recorded(
    architecture: Architecture,
    weights: LossWeights,
    losses: str,
    gradient: float,
    alignment: float,
) -> None:
    """In training mode, so that initialisation, dropout and every draw are the same too."""
    items = recorded_items()
    if architecture is WITH_TEXT:
        absent = recorded_items()[3]
        nothing = make_targets([], absent.span_norm)
        items = [
            items[0],
            replace(items[1], noise=0.5),
            *items[2:],
            replace(absent, targets=nothing),
        ]
    batch = collate(items)
    torch.manual_seed(0)
    model = DemrModel(8, 6, architecture).train()
    torch.manual_seed(1)
    found = retrieval_loss(model(batch), batch, weights)
    values = [getattr(found, field.name).item() for field in fields(found)]
    assert values == pytest.approx([float(value) for value in losses.split()], rel=1e-4)
    found.total.backward()
    squares = [p.grad.square().sum().item() for p in model.parameters() if p.grad is not None]
    assert sum(squares) ** 0.5 == pytest.approx(gradient, rel=1e-4)
    torch.manual_seed(2)
    again = alignment_loss(model.embed(batch), batch, weights).item()
    assert again == pytest.approx(alignment, rel=1e-4)

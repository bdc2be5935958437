"""The released code's formulas that the study of departures puts in the place of ours."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from demr.batches import dataset
from demr.batches.batch import Batch, Item, collate, make_targets
from demr.features import prepare
from demr.network import losses
from demr.network.model import DemrModel
from demr.network.settings import Architecture

CHANGED: tuple[tuple[Any, str], ...] = (
    (losses, "SMOOTH_L1_WEIGHT"),
    (losses, "inter_loss"),
    (losses, "intra_loss"),
    (losses, "_clip_contrast"),
    (DemrModel, "_embed"),
    (DemrModel, "__init__"),
    (prepare, "span_fractions"),
    (dataset.MomentDataset, "_targets_of"),
)


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script; what it changes is as it was after the test."""
    for place, name in CHANGED:
        monkeypatch.setattr(place, name, getattr(place, name))
    monkeypatch.syspath_prepend("benchmarks/studies")
    return importlib.import_module("departures_study")


def three_items() -> Batch:
    """Moments of three videos."""
    generator = torch.Generator().manual_seed(0)

    def item(vid: int, clips: int, window: tuple[float, float]) -> Item:
        start = torch.arange(clips) / clips
        span = torch.stack([start, start + 1 / clips], dim=1)
        video = torch.cat([torch.randn(clips, 6, generator=generator), span], dim=1)
        text = torch.randn(4, 5, generator=generator)
        return Item(video, text, span, float(clips), make_targets([window], span), vid, 0, vid, vid)

    return collate([item(0, 9, (0.2, 0.6)), item(1, 7, (0, 0.5)), item(2, 8, (0.5, 1))])


def new_model() -> DemrModel:
    torch.manual_seed(1)
    model = DemrModel(8, 5, Architecture(dim=16, heads=2, layers=1, hidden=16, input_dropout=0))
    torch.nn.init.normal_(model.modality.weight)
    return model


def test_both_sums_are_twice_the_means(study: Any) -> None:
    clips, queries = torch.nn.functional.normalize(torch.randn(2, 3, 4), dim=-1)
    same = torch.eye(3, dtype=torch.bool)
    mean, weight = losses.inter_loss(clips, queries, same), losses.SMOOTH_L1_WEIGHT
    study.sum_inter()
    study.sum_smooth_l1()
    torch.testing.assert_close(losses.inter_loss(clips, queries, same), 2 * mean)
    assert 2 * weight == losses.SMOOTH_L1_WEIGHT


def test_the_column_compares_clips_of_one_index(study: Any) -> None:
    saliency = torch.tensor([[0.3, 0.1, 0.2], [0.05, 0.2, 0.0]])
    relevance = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    positive = torch.tensor([0, 1])
    alone = losses.intra_loss(saliency, relevance, valid, positive)
    study.add_intra_column()
    both = losses.intra_loss(saliency, relevance, valid, positive)
    # Column 0 holds 0.3, the positive, and 0.05, a negative of the other video; column 1 likewise
    # 0.2 and 0.1.
    logit = torch.tensor([[0.3, 0.05], [0.2, 0.1]]) / 0.07
    torch.testing.assert_close(both - alone, -logit.log_softmax(dim=1)[:, 0].mean())


def test_pairs_are_ranked_by_dissimilarity(study: Any) -> None:
    study.contrast_pairs()
    # One clip inside and one outside each, so that nothing is left to chance.
    clips = torch.tensor([[[1.0, 0.0], [0.6, 0.8]], [[0.0, 1.0], [0.8, 0.6]]])
    foreground = torch.tensor([[True, False], [True, False]])
    found = losses._clip_contrast(clips, foreground, torch.ones(2, 2) > 0, torch.eye(2) > 0)
    logit = -torch.tensor([[0.6, 0.8], [0.8, 0.6]]) / 0.07
    torch.testing.assert_close(found, -logit.log_softmax(dim=1).diagonal().mean())


def test_the_type_reaches_the_cosine_and_the_fusion_once(study: Any) -> None:
    batch, model = three_items(), new_model().eval()
    seen: list[tuple[Tensor, Tensor]] = []
    model.fusion.register_forward_pre_hook(lambda _, given: seen.append(given[:2]))
    ours = model(batch)
    study.type_before_saliency()
    theirs = model(batch)
    for one, other in zip(*seen, strict=True):
        torch.testing.assert_close(one, other)
    video_type, text_type = model.modality.weight
    clip = model.video_projection(batch.video) + video_type
    query = model.query_pool(model.text_projection(batch.text) + text_type, batch.text_mask)
    expected = torch.cosine_similarity(clip, query[:, None], dim=-1)
    torch.testing.assert_close(theirs.saliency, expected)
    assert not torch.allclose(ours.saliency, expected)


def test_without_dropout_two_passes_agree(study: Any) -> None:
    batch = three_items()
    model = new_model().train()
    assert not torch.equal(model(batch).nig.loc, model(batch).nig.loc)
    study.no_fusion_dropout()
    model = new_model().train()
    assert torch.equal(model(batch).nig.loc, model(batch).nig.loc)


@pytest.mark.parametrize(("name", "late"), [("whole_clips", 0.0), ("half_a_clip_late", 0.5)])
def test_clips_are_whole(study: Any, name: str, late: float) -> None:
    getattr(study, name)()
    # 3.4 s in clips of 1 s: four, the last one as long as the others.
    found = prepare.span_fractions(3.4, 1.0, 4)
    start = (torch.arange(4) + late) / 4
    torch.testing.assert_close(found, torch.stack([start, start + 0.25], dim=1))

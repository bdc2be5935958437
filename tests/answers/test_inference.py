"""Long videos stretch by stretch: what fits is untouched, what does not is put back in place."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from demr.answers.inference import RawPrediction, decode, join, predict
from demr.answers.proposals import Proposals
from demr.batches.batch import Item, collate
from demr.batches.stretches import cut_item, plan_stretches
from demr.features.prepare import span_fractions
from demr.network.model import DemrModel
from demr.network.settings import Architecture

FIELDS = ("window_norm", "foreground", "nu", "alpha", "beta", "clip_idx", "score")


@pytest.fixture(scope="module")
def model() -> DemrModel:
    torch.manual_seed(0)
    return DemrModel(5, 4, Architecture(dim=16, heads=2, layers=1, hidden=16, matching=True)).eval()


def item(clips: int, seed: int, duration_s: float | None = None) -> Item:
    generator = torch.Generator().manual_seed(seed)
    duration_s = clips * 2.0 if duration_s is None else duration_s
    span = span_fractions(duration_s, 2.0, clips)
    video = torch.cat([torch.randn(clips, 3, generator=generator), span], dim=1)
    return Item(video, torch.randn(3, 4, generator=generator), span, duration_s)


def whole(model: DemrModel, items: list[Item]) -> list[RawPrediction]:
    """What a single pass says, as it was written before there were stretches."""
    batch = collate(items)
    with torch.inference_mode():
        output = model(batch)
    records = decode(output, batch.video_mask, batch.duration_s)
    saliency = output.saliency.double().numpy()
    return [RawPrediction(r, saliency[i, : len(r)]) for i, r in enumerate(records)]


def assert_equal(one: RawPrediction, other: RawPrediction) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one.proposals, name), getattr(other.proposals, name))
    assert one.proposals.duration_s == other.proposals.duration_s
    np.testing.assert_array_equal(one.saliency, other.saliency)


def test_videos_that_fit_are_predicted_to_the_same_bits(model: DemrModel) -> None:
    items = [item(9, 0), item(7, 1, 13.3), item(9, 2)]
    for limit in (9, 1000):
        for said, expected in zip(
            predict(model, items, 2.0, max_clips=limit), whole(model, items), strict=True
        ):
            assert_equal(said, expected)
            assert said.parts == ()
            assert said.part_of_clip is None


def test_a_boundary_is_put_back_in_place_by_hand() -> None:
    # A video of 14 s in clips of 2 s, read four at a time: stretches of 8 s from 0, 4 and 6 s.
    def said(low: float) -> RawPrediction:
        rows = Proposals(
            window_norm=np.tile([low, 0.75], (4, 1)),
            foreground=np.full(4, 0.5) + low,
            nu=np.full((4, 2), 0.3),
            alpha=np.full((4, 2), 2.5),
            beta=np.full((4, 2), 0.04),
            clip_idx=np.arange(4),
            score=np.full(4, 0.5) + low,
            duration_s=8.0,
        )
        return RawPrediction(rows, np.arange(4, dtype=np.float64) + 10 * low)

    parts = [said(0.0), said(0.25), said(0.125)]
    found = join(parts, plan_stretches(7, 4), 14.0, 2.0)
    # Clips 0-2 of the first, 3-4 of the second, 5-6 of the third.
    assert found.part_of_clip is not None
    assert found.part_of_clip.tolist() == [0, 0, 0, 1, 1, 2, 2]
    starts, ends = found.proposals.window_s.T
    np.testing.assert_allclose(starts, [0, 0, 0, 4 + 2, 4 + 2, 6 + 1, 6 + 1])
    np.testing.assert_allclose(ends, [6, 6, 6, 4 + 6, 4 + 6, 6 + 6, 6 + 6])
    # 0.04 squared fractions of 8 s are 2.56 s^2, and stay that.
    np.testing.assert_allclose(found.proposals.beta, 0.04 * (8 / 14) ** 2)
    np.testing.assert_allclose(found.proposals.aleatoric, 2.56 / 1.5)
    np.testing.assert_allclose(found.proposals.epistemic, 2.56 / 1.5 / 0.3)
    np.testing.assert_allclose(found.proposals.scale_s[2], parts[0].proposals.scale_s[2])
    np.testing.assert_array_equal(found.proposals.nu, 0.3)
    np.testing.assert_array_equal(found.proposals.alpha, 2.5)
    assert found.proposals.clip_idx.tolist() == list(range(7))
    np.testing.assert_allclose(found.saliency, [0, 1, 2, 3.5, 4.5, 3.25, 4.25])
    assert found.parts == tuple(parts)


@pytest.mark.parametrize("limit", [1, 2, 5, 8])
def test_a_long_video_says_what_its_stretches_say(model: DemrModel, limit: int) -> None:
    long, other = item(19, 3, 37.1), item(6, 4)
    asked = [long, other, replace(long, text=other.text)]
    shares: list[float] = []
    found = predict(model, asked, 2.0, max_clips=limit, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    for source, raw in zip(asked, found, strict=True):
        plan = plan_stretches(len(source.video), limit)
        if len(plan) == 1:
            continue
        alone = [whole(model, [cut_item(source, s, 2.0)])[0] for s in plan]
        assert len(raw.parts) == len(plan)
        assert raw.proposals.duration_s == source.duration_s
        assert len(raw.proposals) == len(raw.saliency) == len(source.video)
        for stretch, part in zip(plan, alone, strict=True):
            kept = slice(stretch.core_start, stretch.core_stop)
            own = slice(stretch.core_start - stretch.start, stretch.core_stop - stretch.start)
            np.testing.assert_allclose(raw.saliency[kept], part.saliency[own], atol=1e-6)
            for name in ("aleatoric", "epistemic", "scale_s", "foreground"):
                np.testing.assert_allclose(
                    getattr(raw.proposals, name)[kept],
                    getattr(part.proposals, name)[own],
                    rtol=1e-4,
                )
            np.testing.assert_allclose(
                raw.proposals.window_norm[kept] * source.duration_s,
                part.proposals.window_norm[own] * part.proposals.duration_s + 2.0 * stretch.start,
                atol=1e-4,
            )


def test_an_item_without_a_clip_is_refused(model: DemrModel) -> None:
    empty = replace(item(3, 0), video=torch.zeros(0, 5), span_norm=torch.zeros(0, 2))
    with pytest.raises(ValueError, match="at least one clip"):
        predict(model, [empty], 2.0)
    assert predict(model, [], 2.0) == []

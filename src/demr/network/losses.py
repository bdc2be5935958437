"""Training losses of the retrieval branch and their weighted sum."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from demr.batches.batch import Batch, Targets
from demr.evidential import (
    AnchoredGeom,
    der_regularizer,
    geom_regularizer,
    nig_nll,
)
from demr.network.model import Embeddings, ModelOutput
from demr.network.settings import LossWeights

TEMPERATURE = 0.07
# Of the paper's sums, varied by nobody; beside them stand the weights in ``network.settings``. All
# weigh means: of both boundaries in smooth-L1, of both directions in inter [ours: the release adds
# the two, so that its weights of 10 and 0.2 count twice; the paper gives no sum, and which it is
# changes less than the seed does]. This and the other departures marked here, measured:
# docs/results.md.
SMOOTH_L1_WEIGHT = 10.0
GIOU_WEIGHT = 4.0
FOREGROUND_WEIGHT = 4.0
DER_REGULARIZER_WEIGHT = 1e-2


@dataclass(frozen=True)
class LossBreakdown:
    """Every term of the loss before weighting, and the weighted total."""

    total: Tensor
    smooth_l1: Tensor
    giou: Tensor
    foreground: Tensor
    intra: Tensor
    inter: Tensor
    clip_contrast: Tensor
    nll: Tensor
    regularizer: Tensor


def retrieval_loss(
    output: ModelOutput,
    batch: Batch,
    weights: LossWeights,
    anchored: AnchoredGeom | None = None,
) -> LossBreakdown:
    """The loss of stage 2, ``L = L_mr + lambda_der * 2 * mean(L_e)``.

    Args:
        output: Output of the model for ``batch``.
        batch: Must carry targets.
        weights: Weights of the terms.
        anchored: As in `evidential_terms`.

    Raises:
        ValueError: If the batch carries no targets, or as `evidential_terms`.
    """
    targets = _targets(batch)
    mask = targets.foreground
    smooth_l1 = _boundary_distance(output.nig.loc, targets)
    giou = (1 - _masked_giou(output.nig.loc, targets)) if mask.any() else smooth_l1 * 0
    foreground = foreground_loss(
        output.foreground_logit, mask, batch.video_mask, weights.background_weight
    )
    intra, inter, contrast = saliency_terms(output, batch, weights.absent_negatives)
    nll, regularizer = evidential_terms(output, batch, weights, anchored)
    evidential = evidential_sum(nll, regularizer, weights)
    total = (
        SMOOTH_L1_WEIGHT * smooth_l1
        + GIOU_WEIGHT * giou
        + FOREGROUND_WEIGHT * foreground
        + weights.saliency * intra
        + weights.saliency * inter
        + weights.clip_contrast * contrast
        + weights.lambda_der * 2 * evidential
    )
    return LossBreakdown(
        total, smooth_l1, giou, foreground, intra, inter, contrast, nll, regularizer
    )


def evidential_sum(nll: Tensor, regularizer: Tensor, weights: LossWeights) -> Tensor:
    """``L_e``: the likelihood, and the configured regulariser times its weight."""
    if weights.regularizer == "none":
        return nll
    geom = weights.regularizer == "geom"
    return nll + (weights.lambda_geom if geom else DER_REGULARIZER_WEIGHT) * regularizer


def saliency_loss(output: Embeddings, batch: Batch, weights: LossWeights) -> Tensor:
    """The weighted saliency terms alone, as used in stage 1."""
    intra, inter, contrast = saliency_terms(output, batch, weights.absent_negatives)
    return weights.saliency * intra + weights.saliency * inter + weights.clip_contrast * contrast


def alignment_loss(output: Embeddings, batch: Batch, weights: LossWeights) -> Tensor:
    """Saliency terms and, in a model with matching, its foreground cross-entropy; no fusion."""
    loss = saliency_loss(output, batch, weights)
    if output.match_logit is None:
        return loss
    return loss + FOREGROUND_WEIGHT * foreground_loss(
        output.match_logit,
        _targets(batch).foreground,
        batch.video_mask,
        weights.background_weight,
    )


def anchored_geom(weights: LossWeights) -> AnchoredGeom | None:
    """The regulariser that the stages keep, with the errors it has seen; None without one.

    Start and end err in one unit, and so share a memory.
    """
    if weights.regularizer == "geom" and weights.error_scale == "anchored":
        return AnchoredGeom()
    return None


def evidential_terms(
    output: ModelOutput,
    batch: Batch,
    weights: LossWeights,
    anchored: AnchoredGeom | None = None,
) -> tuple[Tensor, Tensor]:
    """Likelihood and regulariser over the foreground, unweighted.

    Noise in the features of an item counts against its evidence in the Geom-regulariser: without
    it, no loss says that evidence has to fall where features are worse than ever seen.

    Args:
        output: Output of the model for ``batch``.
        batch: Must carry targets.
        weights: Which regulariser.
        anchored: What `anchored_geom` made for these weights, the same in every step.

    Raises:
        ValueError: If the batch carries no targets, or ``anchored`` is missing.
    """
    targets = _targets(batch)
    nig, mask, target = output.nig, targets.foreground, targets.window_norm
    scored = nig if weights.location_gradient else nig.with_loc(nig.loc.detach())
    nll = nig_nll(scored, target, mask)
    if weights.regularizer == "none":
        return nll, nll.new_zeros(())
    if weights.regularizer == "der":
        return nll, der_regularizer(scored, target, mask)
    if weights.error_scale == "anchored":
        if anchored is None:
            raise ValueError("error_scale 'anchored' needs the AnchoredGeom of anchored_geom")
        return nll, anchored(scored, target, mask, doubt=batch.noise)
    return nll, geom_regularizer(
        scored, target, mask, error_scale=weights.error_scale, doubt=batch.noise
    )


def giou(predicted: Tensor, true: Tensor) -> Tensor:
    """Generalised IoU of paired windows.

    Args:
        predicted: ``(N, 2)``; an end before its start counts as an empty window at its middle.
        true: ``(N, 2)``.

    Returns:
        ``IoU - (hull - union) / hull`` in (-1, 1], ``(N,)``.
    """
    middle = predicted.mean(dim=-1)
    start = torch.minimum(predicted[..., 0], middle)
    end = torch.maximum(predicted[..., 1], middle)
    overlap = (torch.minimum(end, true[..., 1]) - torch.maximum(start, true[..., 0])).clamp(min=0)
    union = (end - start) + (true[..., 1] - true[..., 0]) - overlap
    hull = torch.maximum(end, true[..., 1]) - torch.minimum(start, true[..., 0])
    tiny = torch.finfo(union.dtype).eps
    return overlap / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def foreground_loss(
    logit: Tensor, foreground: Tensor, valid: Tensor, background_weight: float
) -> Tensor:
    """Weighted binary cross-entropy, averaged over the valid clips.

    Args:
        logit: ``(B, L)``.
        foreground: ``(B, L)`` bool.
        valid: ``(B, L)`` bool.
        background_weight: Weight of a clip outside the foreground; foreground weighs 1.
    """
    weight = torch.where(foreground, 1.0, background_weight) * valid
    loss = F.binary_cross_entropy_with_logits(logit, foreground.float(), reduction="none")
    return (loss.masked_fill(~valid, 0) * weight).sum() / valid.sum()


def saliency_terms(
    output: Embeddings, batch: Batch, absent_negatives: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Intra-video, inter-video and clip contrast; 0 where there is nothing to contrast.

    All compare by cosine at temperature 0.07 and work on projected, pre-fusion features.
    Positive clips are drawn from the foreground by torch's global generator.
    """
    targets = _targets(batch)
    zero = output.saliency.sum() * 0
    rows = targets.foreground.any(dim=1).nonzero()[:, 0]
    if len(rows) == 0:
        return zero, zero, zero
    positive = torch.multinomial(targets.foreground[rows].float(), 1)[:, 0]
    # A matrix product under autocast would round similarities to bfloat16, whose steps, divided
    # by the temperature, are as large as the differences that are learned from.
    with torch.autocast(output.saliency.device.type, enabled=False):
        intra = intra_loss(
            output.saliency[rows], targets.saliency[rows], batch.video_mask[rows], positive
        )
        clips = output.clip_embedding
        # All queries of the batch, or those with a moment; `pair` says which is whose.
        compared = torch.arange(len(batch), device=rows.device) if absent_negatives else rows
        pair = rows if absent_negatives else torch.arange(len(rows), device=rows.device)
        # A clip of a moment is no counterexample to a query of the same event or sentence, nor to
        # one about another video whose event its own video holds as well,
        neighbours = same_id(batch.vid)[rows]
        elsewhere = batch.shown[rows] & ~neighbours
        same = (same_id(batch.event) | same_id(batch.sentence))[rows] | elsewhere
        # nor to one about its own video in whose moment it lies as well.
        shared = neighbours & _may_lie_in_moment(batch, targets, rows, positive)
        inter = inter_loss(
            F.normalize(clips[rows, positive].float(), dim=-1),
            F.normalize(output.query_embedding[compared].float(), dim=-1),
            (same | shared)[:, compared],
            pair,
        )
        # A pair of clips is drawn for each query: too many to tell which lie in which moment.
        contrast = _clip_contrast(
            clips[rows],
            targets.foreground[rows],
            batch.video_mask[rows],
            (same | neighbours)[:, rows] | elsewhere[:, rows].T,
        )
    return intra, inter, contrast


def intra_loss(saliency: Tensor, relevance: Tensor, valid: Tensor, positive: Tensor) -> Tensor:
    """Cross-entropy of a positive clip against the less relevant clips of its video.

    [ours] as in the paper. The release adds a comparison with the clips at the same index in the
    other videos of the batch, each measured against its own query: an index means nothing there.

    Args:
        saliency: Cosine of clip and query, ``(B, L)``.
        relevance: Annotated saliency, ``(B, L)``.
        valid: ``(B, L)`` bool.
        positive: Index of each item's positive clip, ``(B,)``.
    """
    chosen = positive[:, None]
    negative = (relevance < relevance.gather(1, chosen)) & valid
    logit = (saliency / TEMPERATURE).masked_fill(~negative.scatter(1, chosen, True), -torch.inf)
    return F.cross_entropy(logit, positive)


def inter_loss(clips: Tensor, queries: Tensor, same: Tensor, pair: Tensor | None = None) -> Tensor:
    """Symmetric cross-entropy of (clip, query) pairs over a batch.

    A clip is compared with every query, and the query of every clip with every clip. Queries that
    no clip belongs to are negatives alone.

    Args:
        clips: Unit-length positive clips, ``(R, D)``.
        queries: Unit-length pooled queries, Q >= R of them, ``(Q, D)``.
        same: True where a query is, or may be, also true of another's clip, and the two must not
            repel, ``(R, Q)``.
        pair: Index of each clip's own query, ``(R,)``; None where they stand in the same order.
    """
    pair = torch.arange(len(clips), device=clips.device) if pair is None else pair
    mine = torch.zeros_like(same).scatter(1, pair[:, None], True)
    logit = (clips @ queries.T / TEMPERATURE).masked_fill(same & ~mine, -torch.inf)
    paired = logit[:, pair].T
    label = torch.arange(len(clips), device=clips.device)
    return (F.cross_entropy(logit, pair) + F.cross_entropy(paired, label)) / 2


def same_id(ids: Tensor) -> Tensor:
    """True where two items have the same id, ``(B, B)``; -1 equals only itself."""
    itself = torch.eye(len(ids), dtype=torch.bool, device=ids.device)
    return ((ids[:, None] == ids) & (ids >= 0)) | itself


def _may_lie_in_moment(batch: Batch, targets: Targets, rows: Tensor, clip_idx: Tensor) -> Tensor:
    """Whether a clip of one item lies in the moment of each item about the same video.

    Also true where an item holds another stretch of the video, which the clip is not in: nothing
    is known then, and what is not known does not repel.

    Args:
        batch: Items; the result has no meaning for those about other videos.
        targets: Of the batch.
        rows: Items that the clips belong to, ``(R,)``.
        clip_idx: Place of each clip within its item, ``(R,)``.

    Returns:
        ``(R, B)``.
    """
    place = (batch.first_clip[rows] + clip_idx)[:, None] - batch.first_clip
    held = (place >= 0) & (place < batch.video_mask.sum(dim=1))
    item = torch.arange(len(batch), device=place.device)
    inside = targets.foreground[item, place.clamp(0, targets.foreground.shape[1] - 1)]
    return inside | ~held


def _clip_contrast(clips: Tensor, foreground: Tensor, valid: Tensor, same: Tensor) -> Tensor:
    """Two clips of one moment against one clip outside it, and against other events' clips.

    [ours] The paper says no more than "positive against sampled negative clips". The release ranks
    the pair (a moment's clip, its video's background) by dissimilarity among the pairs of the same
    clip with other videos' backgrounds, and so draws a moment to what it has nothing to do with:
    4 to 5 points of mIoU less (docs/results.md).
    """
    rows = (foreground.sum(dim=1) >= 2).nonzero()[:, 0]
    if len(rows) == 0:
        return clips.sum() * 0
    pair = torch.multinomial(foreground[rows].float(), 2)
    outside = valid[rows] & ~foreground[rows]
    has_outside = outside.any(dim=1)
    # multinomial needs one candidate a row; rows without one are masked right after.
    drawn = torch.multinomial(outside.float() + (~has_outside)[:, None].float(), 1)[:, 0]
    # Made unit length only now: of all clips a few take part.
    anchor, positive, negative = (
        F.normalize(clips[rows, index].float(), dim=-1) for index in (pair[:, 0], pair[:, 1], drawn)
    )
    logit_positive = (anchor * positive).sum(dim=-1, keepdim=True)
    # Negatives: every other event's positive, and one clip of the same video outside the moment.
    others = (anchor @ positive.T).masked_fill(same[rows][:, rows], -torch.inf)
    outside_logit = (anchor * negative).sum(dim=-1).masked_fill(~has_outside, -torch.inf)
    logit = torch.cat([logit_positive, others, outside_logit[:, None]], dim=1) / TEMPERATURE
    return F.cross_entropy(logit, torch.zeros(len(rows), dtype=torch.long, device=logit.device))


def _boundary_distance(window: Tensor, targets: Targets) -> Tensor:
    mask = targets.foreground
    if not mask.any():
        return window.sum() * 0
    return F.smooth_l1_loss(window[mask], targets.window_norm[mask])


def _masked_giou(window: Tensor, targets: Targets) -> Tensor:
    mask = targets.foreground
    return giou(window[mask], targets.window_norm[mask]).mean()


def _targets(batch: Batch) -> Targets:
    if batch.targets is None:
        raise ValueError("a loss needs a batch with targets")
    return batch.targets

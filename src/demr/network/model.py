"""The DEMR network: projections, fusion, and the heads that read the fused clips."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demr.batches.batch import Batch
from demr.evidential import EvidentialHead, NormalInverseGamma
from demr.network.fusion import ConcatFusion, Dropout, ModalityBlock, ReflectiveFlippedFusion
from demr.network.reconstruction import mask_features
from demr.network.settings import Architecture

_TYPICAL_OFFSET_CLIPS = 4.0
# Standardised features are cut off here: beyond it lies damage, not information.
_LARGEST_DEVIATION = 10.0


@dataclass(frozen=True)
class Embeddings:
    """Both modalities before fusion.

    Attributes:
        saliency: Cosine between projected clip and pooled query, ``(B, L)``.
        clip_embedding: Projected clips, ``(B, L, D)``.
        query_embedding: Attention-pooled projected query, ``(B, D)``.
        match_logit: Logit of "this clip lies in the moment" from the matching, ``(B, L)``; None
            in a model without.
    """

    saliency: Tensor
    clip_embedding: Tensor
    query_embedding: Tensor
    match_logit: Tensor | None


@dataclass(frozen=True)
class ModelOutput(Embeddings):
    """What the network says about every clip of every item.

    Attributes:
        foreground_logit: Logit of "this clip lies in the moment", ``(B, L)``.
        nig: Normal-inverse-gamma over start and end; ``nig.loc`` is the predicted
            ``(start, end)`` as fractions of the duration, ``(B, L, 2)``.
        fused_text: Text after fusion, ``(B, T, D)``.
    """

    foreground_logit: Tensor
    nig: NormalInverseGamma
    fused_text: Tensor


class Projection(nn.Sequential):
    """``[LayerNorm, Dropout, Linear, ReLU], [LayerNorm, Dropout, Linear]``."""

    def __init__(self, in_dim: int, dim: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(in_dim),
            Dropout(dropout),
            nn.Linear(in_dim, dim),
            nn.ReLU(),
            nn.LayerNorm(dim),
            Dropout(dropout),
            nn.Linear(dim, dim),
        )


class ConvHead(nn.Module):
    """Three convolutions over time with ReLU between.

    Padded clips are zeroed before every convolution: they then look like the zeros beyond the
    end of an unpadded video, so that padding cannot change a result.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(dim, width, kernel_size=3, padding=1) for width in (dim, dim, out_dim)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map ``(B, L, D)`` to ``(B, L, out_dim)``."""
        x = x.transpose(1, 2)
        valid = mask[:, None, :]
        for index, conv in enumerate(self.convs):
            x = conv((x.relu() if index else x) * valid)
        return x.transpose(1, 2)


class QueryPool(nn.Module):
    """Attention pooling of tokens to one vector per query."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Linear(dim, 1, bias=False)

    def forward(self, text: Tensor, mask: Tensor) -> Tensor:
        """Pool ``(B, T, D)`` to ``(B, D)``."""
        logit = self.weight(text)[..., 0].float().masked_fill(~mask, -torch.inf)
        return torch.einsum("bt,btd->bd", logit.softmax(dim=1).to(text.dtype), text)


class Matching(nn.Module):
    """Compares clips with a query feature by feature, before any fusion.

    A cosine adds up agreement over all features: a clip in which the colour and the action agree
    and the form does not scores two thirds. Here a hidden layer reads the agreements one by one,
    and can ask for all of them together.

    Args:
        dim: Size D of the embeddings.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, dim)
        self.readout = nn.Linear(dim, 1)
        self.out = nn.Linear(dim, dim)

    def forward(self, agreement: Tensor) -> tuple[Tensor, Tensor]:
        """Judge every clip.

        Args:
            agreement: Product of unit-length clip and query embeddings times D, ``(B, L, D)``.

        Returns:
            Logit of "this clip lies in the moment", ``(B, L)``, and what is added to the input of
            the fusion, ``(B, L, D)``.
        """
        hidden = F.gelu(self.expand(agreement))
        return self.readout(hidden)[..., 0].float(), self.out(hidden)


class DemrModel(nn.Module):
    """Deep Evidential Moment Retrieval.

    Args:
        video_dim: Width of a clip's features, the two appended fractions included.
        text_dim: Width of a token's features.
        architecture: Size and wiring.

    Reference:
        DEMR, arXiv:2512.00953.
    """

    def __init__(self, video_dim: int, text_dim: int, architecture: Architecture) -> None:
        super().__init__()
        dim, heads, hidden = architecture.dim, architecture.heads, architecture.hidden
        self.dim = dim
        self.feature_mean: Tensor
        self.feature_scale: Tensor
        self.register_buffer("feature_mean", torch.zeros(video_dim))
        self.register_buffer("feature_scale", torch.ones(video_dim))
        self.video_projection = Projection(video_dim, dim, architecture.input_dropout)
        self.text_projection = Projection(text_dim, dim, architecture.input_dropout)
        self.text_context = nn.ModuleList(
            ModalityBlock(dim, heads, hidden) for _ in range(architecture.text_layers)
        )
        self.modality = nn.Embedding(2, dim)
        nn.init.normal_(self.modality.weight, std=0.02)
        self.query_pool = QueryPool(dim)
        fusion_class = {"rff": ReflectiveFlippedFusion, "concat": ConcatFusion}[architecture.fusion]
        self.fusion = fusion_class(dim, heads, architecture.layers, hidden)
        self.foreground_head = ConvHead(dim, 1)
        self.boundary_head = ConvHead(dim, 2)
        self.evidential_head = EvidentialHead(dim, targets=2)
        self.matching = Matching(dim) if architecture.matching else None

    def set_feature_statistics(self, mean: Tensor, deviation: Tensor) -> None:
        """Let the model standardise its clip features from now on; stored with the weights.

        A typical clip then has unit length, as one of the L2-normalised features of the
        published recipes has, so that the two appended fractions stand out as much as there.

        Args:
            mean: Of each feature over the training clips, fractions left out, ``(Dv - 2,)``.
            deviation: Likewise, ``(Dv - 2,)``.
        """
        count = len(mean)
        self.feature_mean[:count] = mean
        # A feature that hardly varies in training would blow up on the first video where it does.
        self.feature_scale[:count] = 1 / (deviation.clamp(min=1e-3) * math.sqrt(count))

    def _standardize(self, video: Tensor) -> Tensor:
        limit = _LARGEST_DEVIATION / math.sqrt(max(len(self.feature_mean) - 2, 1))
        scaled = (video - self.feature_mean) * self.feature_scale
        return torch.where(self.feature_scale == 1, scaled, scaled.clamp(-limit, limit))

    def embed(self, batch: Batch) -> Embeddings:
        """Project both modalities and compare them, without fusing them."""
        return self._embed(batch)[0]

    def _embed(self, batch: Batch) -> tuple[Embeddings, Tensor, Tensor | None]:
        """Embeddings, projected text ``(B, T, D)``, the matching's part of the fusion's input."""
        text_in = batch.text if batch.masked is None else mask_features(batch.text, batch.masked)
        projected = self.video_projection(self._standardize(batch.video))
        # Not by [...], whose backward adds up one number at a time.
        clip_embedding = projected.index_select(0, batch.video_idx)
        text_embedding = self.text_projection(text_in)
        for block in self.text_context:
            text_embedding = block(text_embedding, batch.text_mask)
        query_embedding = self.query_pool(text_embedding, batch.text_mask)
        match_logit, match_embedding = None, None
        # Without the modality's embedding, which the fusion's input alone has [ours: the release
        # compares after adding it; one vector on all clips and one on all queries tell no match].
        # Cosines in bfloat16 would be steps of 0.004, as large as what is learned from.
        with torch.autocast(projected.device.type, enabled=False):
            unit_clip = F.normalize(projected.float(), dim=-1).index_select(0, batch.video_idx)
            unit_query = F.normalize(query_embedding.float(), dim=-1)
            if self.matching is None:
                saliency = (unit_clip @ unit_query[..., None])[..., 0]
            else:
                agreement = unit_clip * unit_query[:, None]
                saliency = agreement.sum(dim=-1)
        if self.matching is not None:
            match_logit, match_embedding = self.matching(agreement * self.dim)
        embeddings = Embeddings(saliency, clip_embedding, query_embedding, match_logit)
        return embeddings, text_embedding, match_embedding

    def forward(self, batch: Batch) -> ModelOutput:
        """Score every clip of every item.

        Args:
            batch: Padded items. Tokens marked in ``batch.masked`` are hidden from the model.

        Returns:
            One entry per clip; entries under padding are meaningless and must be masked.
        """
        embeddings, text_embedding, match_embedding = self._embed(batch)
        clip_embedding, saliency = embeddings.clip_embedding, embeddings.saliency
        position = sine_position(batch.video_mask, self.dim).to(clip_embedding.dtype)
        video_in = clip_embedding + self.modality.weight[0]
        if match_embedding is not None:
            video_in = video_in + match_embedding
        video, text = self.fusion(
            video_in,
            text_embedding + self.modality.weight[1],
            batch.video_mask,
            batch.text_mask,
            position,
        )
        foreground = self.foreground_head(video, batch.video_mask)[..., 0].float()
        if embeddings.match_logit is not None:
            foreground = foreground + embeddings.match_logit
        # Boundaries feed the evidential loss, whose curvature bfloat16 cannot resolve.
        offset_logit = self.boundary_head(video, batch.video_mask).float()
        offset = (offset_logit + _offset_prior(batch.centre_norm)[..., None]).sigmoid()
        sign = offset.new_tensor([-1.0, 1.0])
        boundary = batch.centre_norm[..., None] + sign * offset
        return ModelOutput(
            saliency=saliency,
            clip_embedding=clip_embedding,
            query_embedding=embeddings.query_embedding,
            match_logit=embeddings.match_logit,
            foreground_logit=foreground,
            nig=self.evidential_head(video, boundary),
            fused_text=text,
        )


def _offset_prior(centre_norm: Tensor) -> Tensor:
    """Logit of an offset of four clips, as a fraction of each video's duration, ``(B, 1)``.

    The head predicts offsets relative to it [ours: in the release relative to half of the video].
    An offset is a fraction of the video, so without the prior a head had to know the duration to
    say "three more seconds", and an untrained one proposed windows as wide as the video.
    """
    clip_norm = (2 * centre_norm[:, :1]).clamp(max=1)
    return (_TYPICAL_OFFSET_CLIPS * clip_norm).clamp(max=0.5).logit()


def sine_position(mask: Tensor, dim: int, temperature: float = 10_000.0) -> Tensor:
    """Sine position of each clip, normalised to 2 pi over the valid clips.

    Args:
        mask: True where a clip is valid, ``(B, L)``.
        dim: Even number of channels D.
        temperature: Ratio of the longest to the shortest wavelength.

    Returns:
        ``(B, L, D)`` in float32.
    """
    order = mask.float().cumsum(dim=1)
    angle = order / order.amax(dim=1, keepdim=True).clamp(min=1) * (2 * math.pi)
    exponent = torch.arange(0, dim, 2, device=mask.device, dtype=torch.float32) / dim
    phase = angle[..., None] / temperature**exponent
    return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(2)

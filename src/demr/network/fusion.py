"""Fusion of video and text: Reflective Flipped Fusion, and the plain partner of its ablation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Dropout whose mask costs little on a CPU.

    PyTorch draws one Bernoulli number an element there, serially, which was a third of a
    training step. Here one random byte decides for an element, so the rate is rounded to a
    multiple of 1/256; the scaling matches the rounded rate. Accelerators use PyTorch's own.

    Args:
        p: Share of elements set to zero while training, in ``[0, 1)``.

    Raises:
        ValueError: If ``p`` is outside that range.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout must be in [0, 1), is {p}")
        self.p = p
        self.threshold = min(round(p * 256), 255)

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of ``x`` while training; the same tensor otherwise."""
        if not self.training or self.threshold == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64)
        # Both bounds explicit: by default random_() never sets the sign bit.
        draw = words.random_(-(2**63), None).view(torch.uint8)[: x.numel()]
        keep = (draw >= self.threshold).view(x.shape)
        return x * keep.to(x.dtype).mul_(256 / (256 - self.threshold))


# On what attention and feed-forward give. [ours] The paper names none, and the release has none;
# measured: docs/results.md.
_DROPOUT = 0.1
# Post-norm layers train badly while their branches outweigh the residual stream: three fresh
# layers learnt nothing in 500 steps, with branches scaled down they learn like one. [ours] The
# paper warms up for ten epochs instead.
_BRANCH_GAIN = 0.1


class Attention(nn.Module):
    """Multi-head attention whose weights are never materialised.

    There is no dropout on the attention weights: with it the fused kernels are not available
    on a CPU, the weights get materialised, and a training step takes twice as long. Dropout
    on the outputs remains.

    Args:
        dim: Hidden size D.
        heads: Number of heads; divides ``dim``.

    Raises:
        ValueError: If ``heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads must divide dim, got dim {dim} and {heads} heads")
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        for linear in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.xavier_uniform_(self.out.weight, gain=_BRANCH_GAIN)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor) -> Tensor:
        """Attend from ``query`` to the valid entries of ``key`` and ``value``.

        Args:
            query: ``(B, Q, D)``.
            key: ``(B, K, D)``.
            value: ``(B, K, D)``.
            key_mask: True where a key is valid, ``(B, K)``; at least one per row.

        Returns:
            ``(B, Q, D)``.
        """
        q, k, v = self.query(query), self.key(key), self.value(value)
        on_cpu = query.device.type == "cpu"
        if on_cpu and q.dtype == torch.bfloat16:
            # The fused kernel's backward is five times slower in bfloat16 than in float32 there.
            q, k, v = q.float(), k.float(), v.float()
        autocast = not on_cpu and torch.is_autocast_enabled(query.device.type)
        with torch.autocast(query.device.type, enabled=autocast):
            attended = F.scaled_dot_product_attention(
                self._split(q), self._split(k), self._split(v), attn_mask=key_mask[:, None, None, :]
            )
        return self.out(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (self.heads, -1))
        return heads.transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with GELU between: D -> hidden -> D."""

    def __init__(self, dim: int, hidden: int, dropout: float = _DROPOUT) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.drop = Dropout(dropout)
        self.contract = nn.Linear(hidden, dim)
        nn.init.xavier_uniform_(self.contract.weight, gain=_BRANCH_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., D)`` to ``(..., D)``."""
        return self.contract(self.drop(F.gelu(self.expand(x))))  # type: ignore[no-any-return]


class ModalityBlock(nn.Module):
    """The modality-specific part of an RFF layer: self-attention, then feed-forward."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float = _DROPOUT) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.attention_norm = nn.LayerNorm(dim)
        self.feed_forward = FeedForward(dim, hidden, dropout)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor, position: Tensor | None = None) -> Tensor:
        """Map ``(B, N, D)`` to ``(B, N, D)``; the position goes to queries and keys only."""
        placed = x if position is None else x + position
        x = self.attention_norm(x + self.drop(self.attention(placed, placed, x, mask)))
        return self.feed_forward_norm(x + self.drop(self.feed_forward(x)))  # type: ignore[no-any-return]


class RFFLayer(nn.Module):
    """One layer of Reflective Flipped Fusion.

    A single cross-attention is used twice with its roles flipped, both times from the layer's
    inputs: text queries video, and video queries text. Each modality then has its own
    self-attention and feed-forward. Post-norm throughout.

    Args:
        dim: Hidden size D.
        heads: Attention heads.
        hidden: Width of the feed-forward.
        dropout: Dropout rate inside the layer.

    Reference:
        DEMR, arXiv:2512.00953, section "Reflective Flipped Fusion".
    """

    def __init__(self, dim: int, heads: int, hidden: int = 512, dropout: float = _DROPOUT) -> None:
        super().__init__()
        self.cross = Attention(dim, heads)
        self.cross_norm = nn.LayerNorm(dim)
        self.drop = Dropout(dropout)
        self.video_block = ModalityBlock(dim, heads, hidden, dropout)
        self.text_block = ModalityBlock(dim, heads, hidden, dropout)

    def forward(
        self,
        video: Tensor,
        text: Tensor,
        video_mask: Tensor,
        text_mask: Tensor,
        position: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Fuse both modalities once.

        Args:
            video: ``(B, L, D)``.
            text: ``(B, T, D)``.
            video_mask: True where a clip is valid, ``(B, L)``.
            text_mask: True where a token is valid, ``(B, T)``.
            position: Added to video queries and keys, never to values, ``(B, L, D)``.

        Returns:
            Fused video ``(B, L, D)`` and fused text ``(B, T, D)``.
        """
        placed = video if position is None else video + position
        text_in = self.drop(self.cross(text, placed, video, video_mask))
        video_in = self.drop(self.cross(placed, text, text, text_mask))
        video = self.cross_norm(video + video_in)
        text = self.cross_norm(text + text_in)
        return self.video_block(video, video_mask, position), self.text_block(text, text_mask)


class ReflectiveFlippedFusion(nn.Module):
    """A stack of :class:`RFFLayer`; layer n + 1 takes both outputs of layer n."""

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        layers: int = 4,
        hidden: int = 512,
        dropout: float = _DROPOUT,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(RFFLayer(dim, heads, hidden, dropout) for _ in range(layers))

    def forward(
        self,
        video: Tensor,
        text: Tensor,
        video_mask: Tensor,
        text_mask: Tensor,
        position: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Fuse; shapes as in :meth:`RFFLayer.forward`."""
        for layer in self.layers:
            video, text = layer(video, text, video_mask, text_mask, position)
        return video, text


class ConcatFusion(nn.Module):
    """The ablation partner of RFF: one self-attention encoder over ``[video; text]``.

    Its feed-forward is widened until it has as many parameters as an RFF stack of the same
    size, so that a comparison is about the wiring and not about capacity.

    Args:
        dim: Hidden size D.
        heads: Attention heads.
        layers: Number of layers.
        hidden: Feed-forward width of the *RFF stack* that this one is matched to.
        dropout: Dropout rate inside the layers.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        layers: int = 4,
        hidden: int = 512,
        dropout: float = _DROPOUT,
    ) -> None:
        super().__init__()
        attention = 4 * dim * dim + 4 * dim
        norm = 2 * dim
        rff_layer = 3 * attention + 2 * (2 * dim * hidden + hidden + dim) + 5 * norm
        width = round((rff_layer - attention - 2 * norm - dim) / (2 * dim + 1))
        self.layers = nn.ModuleList(
            ModalityBlock(dim, heads, width, dropout) for _ in range(layers)
        )

    def forward(
        self,
        video: Tensor,
        text: Tensor,
        video_mask: Tensor,
        text_mask: Tensor,
        position: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Fuse; shapes as in :meth:`RFFLayer.forward`."""
        length = video.shape[1]
        joint = torch.cat([video, text], dim=1)
        mask = torch.cat([video_mask, text_mask], dim=1)
        if position is not None:
            # Text has no position of its own.
            position = F.pad(position, (0, 0, 0, text.shape[1]))
        for layer in self.layers:
            joint = layer(joint, mask, position)
        return joint[:, :length], joint[:, length:]

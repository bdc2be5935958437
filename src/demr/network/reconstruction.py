"""Query reconstruction, stage 1 of training: hide a word of the query and predict it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demr.batches.masking import IGNORED


def mask_features(text: Tensor, masked: Tensor) -> Tensor:
    """Hide tokens by zeroing their features; the given tensor stays as it is.

    Args:
        text: Token features, ``(B, T, Dt)``.
        masked: True where a token is hidden, bool ``(B, T)``.

    Returns:
        A new tensor, ``(B, T, Dt)``.
    """
    return text.masked_fill(masked.unsqueeze(-1), 0.0)


class ReconstructionHead(nn.Module):
    """One Linear layer from fused text to the vocabulary.

    Args:
        features: Width D of the fused text.
        vocabulary_size: Number V of words that can be predicted.
    """

    def __init__(self, features: int, vocabulary_size: int) -> None:
        super().__init__()
        self.project = nn.Linear(features, vocabulary_size)

    def forward(self, text: Tensor) -> Tensor:
        """Logits ``(B, T, V)`` of fused text ``(B, T, D)``."""
        logits: Tensor = self.project(text)
        return logits


def reconstruction_loss(logits: Tensor, label: Tensor, masked: Tensor) -> Tensor:
    """Mean cross-entropy over hidden tokens; all others, padding among them, do not count.

    Args:
        logits: ``(B, T, V)``; taken to float32.
        label: Vocabulary ids, int64 ``(B, T)``; :data:`IGNORED` takes a token out.
        masked: True where a token is hidden, bool ``(B, T)``.

    Returns:
        Scalar; 0, with a gradient of zeros, if nothing is hidden.

    Raises:
        ValueError: If the shapes disagree.

    Reference:
        ``method.md`` section 4, stage 1.
    """
    counted = _counted(logits, label, masked)
    total = F.cross_entropy(logits[counted].float(), label[counted], reduction="sum")
    return total / counted.sum().clamp(min=1)


@torch.no_grad()
def reconstruction_accuracy(logits: Tensor, label: Tensor, masked: Tensor) -> Tensor:
    """Share of hidden tokens whose most probable word is the right one.

    Args:
        logits: ``(B, T, V)``.
        label: Vocabulary ids, int64 ``(B, T)``; :data:`IGNORED` takes a token out.
        masked: True where a token is hidden, bool ``(B, T)``.

    Returns:
        Scalar in 0..1; 0 if nothing is hidden.
    """
    counted = _counted(logits, label, masked)
    right = (logits.argmax(-1) == label) & counted
    return right.sum() / counted.sum().clamp(min=1)


def _counted(logits: Tensor, label: Tensor, masked: Tensor) -> Tensor:
    if logits.shape[:-1] != label.shape or label.shape != masked.shape:
        shapes = f"{tuple(logits.shape)}, {tuple(label.shape)}, {tuple(masked.shape)}"
        raise ValueError(f"logits (B, T, V), label (B, T) and masked (B, T) disagree: {shapes}")
    return masked & (label != IGNORED)

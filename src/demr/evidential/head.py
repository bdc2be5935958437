"""The layer that predicts the evidence about a regressed value."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from demr.evidential.distribution import NormalInverseGamma


class EvidentialHead(nn.Module):
    """One linear layer from features to the evidence about each target.

    The value itself (``loc``) is predicted elsewhere and passed in. Computed in float32 (float64
    if the weights are) even under autocast, the linear layer included: bfloat16 holds ``alpha``
    near 1 in steps of 0.008, coarser than the ``alpha - 1`` that the variances divide by.

    Args:
        in_features: Size D of the features.
        targets: Number of regressed values per feature vector.
        eps: Added to nu, alpha - 1 and beta; what keeps variances finite.

    Raises:
        ValueError: If ``eps`` is too small for ``1 + eps`` to exceed 1 in float32.

    Example:
        >>> head = EvidentialHead(in_features=16, targets=2)
        >>> nig = head(torch.randn(4, 75, 16), loc=torch.rand(4, 75, 2))
        >>> nig.variance.shape
        torch.Size([4, 75, 2])
    """

    def __init__(self, in_features: int, targets: int = 1, *, eps: float = 1e-6) -> None:
        super().__init__()
        if eps < torch.finfo(torch.float32).eps:
            raise ValueError(f"eps must be at least 1.2e-7 so that alpha exceeds 1, got {eps}")
        self.targets = targets
        self.eps = eps
        self.linear = nn.Linear(in_features, 3 * targets)

    def forward(self, x: Tensor, loc: Tensor) -> NormalInverseGamma:
        """Predict the evidence.

        The parameters are valid by construction and not checked again, so padding may hold
        anything, and no device has to be waited for.

        Args:
            x: Features, ``(..., D)``.
            loc: Predicted values, ``(..., targets)``.

        Returns:
            A distribution of ``loc``'s shape.

        Raises:
            ValueError: If ``loc`` does not have one value per feature vector and target.
        """
        if loc.shape != (*x.shape[:-1], self.targets):
            raise ValueError(
                f"loc must have shape {(*x.shape[:-1], self.targets)} "
                f"for features {tuple(x.shape)}, got {tuple(loc.shape)}"
            )
        weight, bias = self.linear.weight, self.linear.bias
        dtype = torch.promote_types(weight.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            raw = functional.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))
            positive = functional.softplus(raw) + self.eps
            nu, excess, beta = positive.chunk(3, dim=-1)
            return NormalInverseGamma.from_excess(
                loc.to(dtype), nu, excess, beta, validate_args=False
            )

    def extra_repr(self) -> str:
        """Describe the head in a printed module."""
        return f"targets={self.targets}, eps={self.eps}"

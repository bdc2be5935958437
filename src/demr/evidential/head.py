"""The layer that predicts the evidence about a regressed value."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from demr.evidential.density import Density
from demr.evidential.distribution import NormalInverseGamma
from demr.evidential.student_t import ArrayLike


class EvidentialHead(nn.Module):
    """One linear layer from features to the evidence about each target.

    The value itself (``loc``) is predicted elsewhere and passed in. Computed in float32 (float64
    if the weights are) even under autocast, the linear layer included: bfloat16 holds ``alpha``
    near 1 in steps of 0.008, coarser than the ``alpha - 1`` that the variances divide by.

    Far from the training data nothing has ever been asked of the layer, and the evidence that it
    gives there means nothing. `fit_density`, once after the training, mends that: from then on
    ``nu`` is multiplied by how much features resemble those of the training
    (:class:`demr.evidential.density.Density`), so that the epistemic uncertainty grows with the
    distance from them, and inside stays as it is. It is stored with the weights; a state without
    it loads, and is that of a head without.

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
        >>> inside = torch.randn(1000, 16)
        >>> head.fit_density(inside)
        >>> print(bool((head.strangeness(inside) < 1).float().mean() > 0.9))
        True
        >>> print(bool((head.strangeness(inside + 9) > 1).all()))
        True
    """

    def __init__(self, in_features: int, targets: int = 1, *, eps: float = 1e-6) -> None:
        super().__init__()
        if eps < torch.finfo(torch.float32).eps:
            raise ValueError(f"eps must be at least 1.2e-7 so that alpha exceeds 1, got {eps}")
        self.targets = targets
        self.eps = eps
        self.linear = nn.Linear(in_features, 3 * targets)
        self.density = Density(in_features)

    def fit_density(self, features: ArrayLike, held_out: ArrayLike | None = None) -> None:
        """Fit what the training features look like; from now on evidence falls far from them.

        Args:
            features: What the finished network gives this head for the training data,
                ``(..., D)``; as many as one likes, of which a part of bounded size is kept.
            held_out: Likewise for data of the same kind that it was not trained on. Where a
                network has learnt its training data by heart, they show how far others lie.

        Raises:
            ValueError: If there are fewer than 4, one has another size or is not finite, or all
                are equal.
        """
        self.density.fit(features, held_out)

    def strangeness(self, x: Tensor) -> Tensor:
        """How far features lie from those of the training; 1 is the edge, 95 % lie within.

        Args:
            x: Features, ``(..., D)``.

        Returns:
            ``(...)``.

        Raises:
            ValueError: If no density was fitted.
        """
        return self.density.strangeness(x)[..., 0]

    def forward(
        self, x: Tensor, loc: Tensor, resemblance: Tensor | None = None
    ) -> NormalInverseGamma:
        """Predict the evidence.

        The parameters are valid by construction and not checked again, so padding may hold
        anything, and no device has to be waited for.

        Args:
            x: Features, ``(..., D)``.
            loc: Predicted values, ``(..., targets)``.
            resemblance: What else is known of how much the input is like the training's, 0 to 1,
                which ``nu`` is multiplied by as well; broadcast with ``loc``.

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
            nu, excess, beta = functional.softplus(raw).chunk(3, dim=-1)
            if self.density.fitted:
                nu = nu * self.density(x)
            if resemblance is not None:
                nu = nu * resemblance.to(dtype)
            nu, excess, beta = nu + self.eps, excess + self.eps, beta + self.eps
            return NormalInverseGamma.from_excess(
                loc.to(dtype), nu, excess, beta, validate_args=False
            )

    def extra_repr(self) -> str:
        """Describe the head in a printed module."""
        return f"targets={self.targets}, eps={self.eps}"

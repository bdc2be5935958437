"""How much features resemble those of the training, and what that leaves of the evidence.

No term of an evidential loss is ever evaluated where there are no data, so that evidence there is
whatever a network extrapolates to. What the data could have told can be measured: by the distance
to the nearest features of the training.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from demr.evidential.student_t import ArrayLike, as_tensor

# Fewer features have no neighbourhoods to speak of.
_LEAST = 4
# Training features that are kept, of those that differ: to look for the nearest costs a product of
# this size a vector. So many at most, where one asks for more.
_ROWS, _MOST_ROWS = 512, 4_096
# Of how many the principal components are found, and of how many others the distances.
_SEEN = 32_768
_PROBES = 4_096
# Share of the training features within the edge.
_INSIDE = 0.95
# Principal components that are looked at; what lies beside them all is one number more.
_COMPONENTS = 64
# Directions in which features hardly vary are not blown up further than one with this part of the
# mean variance would be.
_RIDGE = 0.1
# Where nearly all features are repeated, as words are, the edge is this part of the distance that
# two of them usually have.
_LEAST_EDGE = 0.02
# Of a function that is known at the edge and may have any slope from there on, the variance grows
# with the square of the distance: the least power. The most keeps numbers within float32.
_LEAST_POWER, _MOST_POWER = 2.0, 16.0
# In n dimensions the number of features within a distance grows with its n-th power, so that this
# is n times the logarithm of the distance that 95 % lie within over the one that half lie within.
_SPREAD = math.log(math.log(0.05) / math.log(0.5))
# How sharp the edge is, in powers: 16 % of the evidence is gone at it, and within it soon nothing.
_SHARPNESS = 4.0
# Share of the features that are further away than is usual at all.
_BEYOND = 1e-3
# Further than anything is, whitened and not, and their squares are no infinities yet.
_FURTHEST, _LARGEST = 1e9, 1e15
_BUFFERS = ("centre", "axes", "scale", "bank", "power", "limit")


class Density(nn.Module):
    r"""Resemblance of features to those of the training, 1 (like them) to 0 (like nothing seen).

    Features are whitened: principal components brought to deviation 1, with some shrinkage, and
    the length of what lies beside them. Their *strangeness* ``r`` is the distance to the nearest
    of up to 512 training features that are kept, over the one within which 95 % of the others
    lie (the edge). The resemblance is ``(1 + r^4n)^(-1/4)``: 1 inside, ``r^-n`` outside, smooth
    between. It is the part of the evidence that the neighbourhood of the training data supports:
    the number of features around a place falls with the n-th power of the distance to the
    nearest, n being the dimension that they fill (from 2 to 16, by how much the distances inside
    differ). At least the square, as the variance of a function that is known at the edge, and of
    unknown slope from there on, grows with it.

    Nearest neighbours and not a Gaussian, since a curve, a gap and clusters are no ellipsoid.
    What is kept are buffers, stored with the weights; their size is bounded by that of a feature.
    A state without them is one of a network whose density was not fitted: it resembles nothing
    and everything, and changes no evidence.

    Args:
        in_features: Size D of the features.
    """

    centre: Tensor | None
    axes: Tensor | None
    scale: Tensor | None
    bank: Tensor | None
    power: Tensor | None
    limit: Tensor | None

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.in_features = in_features
        for name in _BUFFERS:
            self.register_buffer(name, None)

    @property
    def fitted(self) -> bool:
        """Whether it was fitted."""
        return self.bank is not None

    @torch.no_grad()
    def fit(
        self, features: ArrayLike, held_out: ArrayLike | None = None, *, rows: int = _ROWS
    ) -> None:
        """Keep what the features of the training look like; what was known before is forgotten.

        One half of them draws the picture, and the other says where its edge is: also of few
        features in many dimensions, which all lie apart. The draw is fixed.

        Args:
            features: ``(..., D)``, finite, a tensor or an array.
            held_out: Of data of the same kind that the network was not trained on, ``(..., D)``:
                what it has learnt by heart is closer together than what it will be asked about.
            rows: Features that are kept, of those that differ; 4,096 at most.

        Raises:
            ValueError: If there are fewer than 4, one has another size or is not finite, or all
                are equal.
        """
        known = self._check(features, "features")
        others = None if held_out is None else self._check(held_out, "held-out features")
        if len(known) < _LEAST:
            raise ValueError(f"a density needs at least {_LEAST} features, got {len(known)}")
        total = known.var(dim=0, unbiased=False)
        if not total.sum() > (1e-6 * known.abs().amax()).square():
            raise ValueError(
                "a density needs features that differ: all of these are equal, so that nothing "
                "can be told from them; take them from the training data, after training"
            )
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
        half = len(known) // 2
        seen = known[order[: len(known) - half][:_SEEN]]
        probes = known[order[len(known) - half :][:_PROBES]]
        self._set_axes(seen, float(total.mean()))
        rows = min(rows, _MOST_ROWS)
        white = self._whiten(seen)
        self.bank = _distinct(white, rows)
        usual = (2 * white.var(dim=0, unbiased=False).sum()).sqrt()
        # What the network was not trained on tells more, where it lies further away.
        distances = [self._distances(each) for each in (probes, others) if each is not None]
        far = max(
            (each for each in distances if len(each)), key=lambda each: float(_at(each, _INSIDE))
        )
        edge = torch.maximum(_at(far, _INSIDE), _LEAST_EDGE * usual)
        spread = (edge / _at(far, 0.5).clamp(min=1e-9)).log().clamp(min=1e-9)
        self.power = (_SPREAD / spread).clamp(_LEAST_POWER, _MOST_POWER)[None]
        self.limit = (
            torch.stack([_at(each, 1 - _BEYOND) for each in distances if len(each)]).amax() / edge
        ).clamp(min=1)[None]
        # The edge is known; what is like the other half is no stranger for it.
        self.bank = _distinct(self._whiten(known[order[:_SEEN]]), rows) / edge
        self.scale = self._part("scale", edge) / edge
        given = as_tensor(features, known, "features")
        for name in _BUFFERS:
            part = getattr(self, name).to(given.device).to(_wide(given.dtype))
            setattr(self, name, part.contiguous())

    def _set_axes(self, seen: Tensor, variance_of_each: float) -> None:
        """How features are whitened from now on."""
        self.centre = seen.mean(dim=0)
        away = seen - self.centre
        variance, axes = torch.linalg.eigh(away.T @ away / len(seen))
        count = min(len(variance), _COMPONENTS, len(seen) - 1)
        variance, self.axes = variance.flip(0)[:count].clamp(min=0), axes.flip(1)[:, :count]
        if count < self.in_features:
            beside = _beside(away, away @ self.axes, self.axes)
            variance = torch.cat([variance, beside.var(dim=0, unbiased=False)])
        self.scale = (variance + _RIDGE * variance_of_each).rsqrt()

    def _check(self, features: ArrayLike, name: str) -> Tensor:
        """Features as rows in float64."""
        table = as_tensor(features, torch.empty(0), name)
        if not table.dim() or table.shape[-1] != self.in_features:
            raise ValueError(
                f"{name} must be (..., {self.in_features}), got shape {tuple(table.shape)}"
            )
        # On the CPU, as some devices have no float64.
        table = table.detach().reshape(-1, self.in_features).cpu().double()
        bad = int((~table.isfinite()).any(dim=1).sum())
        if bad:
            raise ValueError(f"{name} must be finite, got {bad:,} of {len(table):,} that are not")
        return table

    def _distances(self, probes: Tensor) -> Tensor:
        """Distance of each to the nearest feature that is kept, ascending."""
        parts = [self._squared(self._whiten(part))[:, 0] for part in probes.split(1024)]
        return torch.cat(parts).sqrt().sort().values

    def _part(self, name: str, like: Tensor) -> Tensor:
        part = getattr(self, name)
        if part is None:
            raise ValueError("this density was not fitted: call fit(features) first")
        known: Tensor = part.to(like)
        return known

    def _whiten(self, x: Tensor) -> Tensor:
        away = (x - self._part("centre", x)).clamp(-_LARGEST, _LARGEST)
        axes = self._part("axes", x)
        parts = away @ axes
        if axes.shape[1] < self.in_features:
            parts = torch.cat([parts, _beside(away, parts, axes)], dim=-1)
        return (parts * self._part("scale", x)).clamp(-_FURTHEST, _FURTHEST)

    def _squared(self, white: Tensor) -> Tensor:
        """Squared distance to the nearest feature that is kept, ``(..., 1)``."""
        bank = self._part("bank", white)
        lengths = white.square().sum(dim=-1, keepdim=True) + bank.square().sum(dim=-1)
        # The product loses digits where both are nearly the same: a thousandth of an edge.
        return (lengths - 2 * (white @ bank.T)).amin(dim=-1, keepdim=True).clamp(min=0)

    def _log_strangeness(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"features must be (..., {self.in_features}), got {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            white = self._whiten(x.to(_wide(x.dtype)))
            return (self._squared(white) + 1e-6).log() / 2

    def strangeness(self, x: Tensor) -> Tensor:
        """Distance to the nearest training feature; 1 is the edge, within which 95 % of them lie.

        Args:
            x: ``(..., D)``.

        Returns:
            ``(..., 1)``, in float32 at least, differentiable.

        Raises:
            ValueError: If nothing was fitted, or the features have another size.
        """
        return self._log_strangeness(x).exp()

    def forward(self, x: Tensor) -> Tensor:
        """Resemblance of features to those of the training.

        Args:
            x: ``(..., D)``. NaN gives NaN, and no other feature is moved by it.

        Returns:
            Between 0 and 1, ``(..., 1)``, in float32 at least, differentiable.

        Raises:
            ValueError: As :meth:`strangeness`.
        """
        away = self._log_strangeness(x)
        sharp = _SHARPNESS * self._part("power", away)
        return (functional.softplus(sharp * away) / -_SHARPNESS).exp()

    def doubt(self, x: Tensor) -> Tensor:
        """Strangeness over what 1 in 1000 features like those of the training exceed, ``(..., 1)``.

        Beyond 1 nothing that was learnt or measured on the training data need hold.

        Args:
            x: ``(..., D)``.

        Raises:
            ValueError: As :meth:`strangeness`.
        """
        strange = self.strangeness(x)
        return strange / self._part("limit", strange)

    def expect(self, shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> None:
        """Make room for what a stored state holds, which `load_state_dict` then fills.

        Args:
            shapes: Of the state's tensors, by name; without those of this density it is one that
                was not fitted.
            prefix: Of this density's names, with the dot.

        Raises:
            ValueError: If a part is missing, or the parts do not fit each other or the features.
        """
        found = {name: shapes[prefix + name] for name in _BUFFERS if prefix + name in shapes}
        if found:
            axes, bank = found.get("axes", ()), found.get("bank", ())
            kept = axes[1] if len(axes) == 2 else 0
            width = kept + (kept < self.in_features)
            rows = bank[0] if len(bank) == 2 else 0
            size = self.in_features
            right = dict(
                zip(
                    _BUFFERS,
                    ((size,), (size, kept), (width,), (rows, width), (1,), (1,)),
                    strict=True,
                )
            )
            if found != right or not (0 < kept <= _COMPONENTS and 0 < rows <= _MOST_ROWS):
                raise ValueError(f"{prefix[:-1] or 'density'} of shapes that fit no density")
        like = next(self.buffers(), torch.empty(0))
        for name in _BUFFERS:
            setattr(self, name, like.new_zeros(found[name]) if found else None)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        names = [prefix + name for name in _BUFFERS if prefix + name in state_dict]
        self.expect({name: tuple(state_dict[name].shape) for name in names}, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Describe the density in a printed module."""
        kept = "not fitted" if self.bank is None else f"{len(self.bank)} features kept"
        return f"{self.in_features}, {kept}"


def _wide(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for anything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _at(ascending: Tensor, share: float) -> Tensor:
    """The value that this share of sorted ones lies within."""
    return ascending[min(int(share * len(ascending)), len(ascending) - 1)]


def _distinct(table: Tensor, most: int) -> Tensor:
    """The first rows of those that differ, in their order."""
    _, place = torch.unique(table, dim=0, return_inverse=True)
    count = torch.arange(len(table))
    first = torch.full((int(place.max()) + 1,), len(table)).scatter_reduce(
        0, place, count, reduce="amin"
    )
    return table[first.sort().values[:most]]


def _beside(away: Tensor, parts: Tensor, axes: Tensor) -> Tensor:
    """Length of what lies beside the principal components, ``(..., 1)``; smooth at none."""
    rest = away - parts @ axes.T
    return (rest.square().sum(dim=-1, keepdim=True) + 1e-12).sqrt()

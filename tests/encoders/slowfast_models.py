"""SlowFast R50 8x8 written a second time: its layers by all their names, and its arithmetic.

The layers are those of the published definitions (PyTorchVideo's ``create_slowfast`` with depth
50, PySlowFast's ``SLOWFAST_8x8_R50.yaml`` and its table of Caffe2 names). The arithmetic is NumPy
in float64, window by window.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

# Blocks; slow: channels in, inside, out, frames of the first kernel; the same of fast.
STAGES = (
    (3, (80, 64, 256, 1), (8, 8, 32, 3)),
    (4, (320, 128, 512, 1), (32, 16, 64, 3)),
    (6, (640, 256, 1024, 3), (64, 32, 128, 3)),
    (3, (1280, 512, 2048, 3), (128, 64, 256, 3)),
)
CAFFE2 = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
CLASSES = 400


@dataclass(frozen=True)
class Layer:
    """A convolution and the norm behind it, by their names in three publications."""

    pytorchvideo: tuple[str, str]
    pyslowfast: tuple[str, str]
    caffe2: tuple[str, str]
    shape: tuple[int, int, int, int, int]


def layers() -> Iterator[Layer]:
    for path, frames, channels in ((0, 1, 64), (1, 5, 8)):
        t = "t_" * path
        yield Layer(
            (
                f"blocks.0.multipathway_blocks.{path}.conv",
                f"blocks.0.multipathway_blocks.{path}.norm",
            ),
            (f"s1.pathway{path}_stem.conv", f"s1.pathway{path}_stem.bn"),
            (f"{t}conv1", f"{t}res_conv1_bn"),
            (channels, 3, frames, 7, 7),
        )
    for level, fast in enumerate((8, 32, 64, 128)):
        place = ("pool1", "res2_2_branch2c_bn", "res3_3_branch2c_bn", "res4_5_branch2c_bn")[level]
        fusion = f"blocks.{level}.multipathway_fusion"
        yield Layer(
            (f"{fusion}.conv_fast_to_slow", f"{fusion}.norm"),
            (f"s{level + 1}_fuse.conv_f2s", f"s{level + 1}_fuse.bn"),
            (f"t_{place}_subsample", f"t_{place}_subsample_bn"),
            (2 * fast, fast, 7, 1, 1),
        )
    for number, (depth, *paths) in enumerate(STAGES, start=1):
        for path, (first, inner, out, frames) in enumerate(paths):
            for block in range(depth):
                into = first if block == 0 else out
                parts = {
                    "a": (inner, into, frames, 1, 1),
                    "b": (inner, inner, 1, 3, 3),
                    "c": (out, inner, 1, 1, 1),
                }
                one = f"blocks.{number}.multipathway_blocks.{path}.res_blocks.{block}"
                two = f"s{number + 1}.pathway{path}_res{block}"
                three = f"{'t_' * path}res{number + 1}_{block}"
                if block == 0:
                    yield Layer(
                        (f"{one}.branch1_conv", f"{one}.branch1_norm"),
                        (f"{two}.branch1", f"{two}.branch1_bn"),
                        (f"{three}_branch1", f"{three}_branch1_bn"),
                        (out, first, 1, 1, 1),
                    )
                for letter, shape in parts.items():
                    yield Layer(
                        (f"{one}.branch2.conv_{letter}", f"{one}.branch2.norm_{letter}"),
                        (f"{two}.branch2.{letter}", f"{two}.branch2.{letter}_bn"),
                        (f"{three}_branch2{letter}", f"{three}_branch2{letter}_bn"),
                        shape,
                    )


@cache
def _drawn() -> list[tuple[Layer, Tensor, dict[str, Tensor]]]:
    drawn = torch.Generator().manual_seed(0)
    found = []
    for layer in layers():
        fan = math.prod(layer.shape[1:])
        weight = torch.randn(layer.shape, generator=drawn) * (2 / fan) ** 0.5
        # Small where a residual ends: sixteen of them would grow beyond any bound.
        scale = 0.3 if layer.caffe2[0].endswith("branch2c") else 1.0
        one, two, three, four = torch.rand(4, layer.shape[0], generator=drawn)
        norm = {
            "weight": scale * (0.5 + one),
            "bias": 0.2 * (two - 0.5),
            "running_mean": 0.2 * (three - 0.5),
            "running_var": 0.5 + four,
        }
        found.append((layer, weight, norm))
    return found


def random_state(naming: str) -> dict[str, Tensor]:
    """Every tensor of a published file; equal numbers whatever the naming."""
    state: dict[str, Tensor] = {}
    is_caffe2 = naming == "caffe2"
    for layer, weight, statistics in _drawn():
        conv, norm = getattr(layer, naming)
        state[conv + ("_w" if is_caffe2 else ".weight")] = weight
        for kind, value in statistics.items():
            state[f"{norm}_{CAFFE2[kind]}" if is_caffe2 else f"{norm}.{kind}"] = value
        if not is_caffe2:
            state[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    head = {
        "pytorchvideo": ("blocks.6.proj.weight", "blocks.6.proj.bias"),
        "pyslowfast": ("head.projection.weight", "head.projection.bias"),
        "caffe2": ("pred_w", "pred_b"),
    }[naming]
    state[head[0]] = torch.zeros(CLASSES, 2304)
    state[head[1]] = torch.zeros(CLASSES)
    return state


def convolve(x: Array, weight: Array, stride: tuple[int, int, int], pad: tuple[int, ...]) -> Array:
    """``(C, T, H, W)`` by ``(O, C, kt, kh, kw)``: a product at every place of the window."""
    padded = np.pad(x, [(0, 0), *((side, side) for side in pad)])
    windows = sliding_window_view(padded, weight.shape[2:], axis=(1, 2, 3))
    windows = windows[:, :: stride[0], :: stride[1], :: stride[2]]
    found: Array = np.einsum("cthwijk,ocijk->othw", windows, weight, optimize=True)
    return found


class Reference:
    """The network in NumPy, from a state by PyTorchVideo's names."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = {name: value.double().numpy() for name, value in state.items()}

    def layer(
        self,
        x: Array,
        conv: str,
        norm: str,
        stride: tuple[int, int, int] = (1, 1, 1),
    ) -> Array:
        weight = self.state[f"{conv}.weight"]
        # Every kernel of the network is odd and sees as far to both sides.
        y = convolve(x, weight, stride, tuple(side // 2 for side in weight.shape[2:]))
        mean, var, scale, shift = (
            self.state[f"{norm}.{kind}"].reshape(-1, 1, 1, 1)
            for kind in ("running_mean", "running_var", "weight", "bias")
        )
        result: Array = (y - mean) / np.sqrt(var + 1e-5) * scale + shift
        return result

    def stem(self, x: Array, name: str) -> Array:
        y = np.maximum(self.layer(x, f"{name}.conv", f"{name}.norm", (1, 2, 2)), 0)
        edge = ((0, 0), (0, 0), (1, 1), (1, 1))
        padded = np.pad(y, edge, constant_values=-np.inf)
        windows = sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
        largest: Array = windows.max((-2, -1))
        return largest

    def lateral(self, fast: Array, name: str) -> Array:
        y = self.layer(fast, f"{name}.conv_fast_to_slow", f"{name}.norm", (4, 1, 1))
        return np.maximum(y, 0)

    def residual(self, x: Array, name: str, stride: int) -> Array:
        inside = f"{name}.branch2"
        y = np.maximum(self.layer(x, f"{inside}.conv_a", f"{inside}.norm_a"), 0)
        step = (1, stride, stride)
        y = np.maximum(self.layer(y, f"{inside}.conv_b", f"{inside}.norm_b", step), 0)
        y = self.layer(y, f"{inside}.conv_c", f"{inside}.norm_c")
        if f"{name}.branch1_conv.weight" in self.state:
            x = self.layer(x, f"{name}.branch1_conv", f"{name}.branch1_norm", step)
        return np.maximum(x + y, 0)

    def feature(self, frames: Array, depths: tuple[int, ...]) -> Array:
        """The pooled feature of ``(3, 32, H, W)``."""
        paths = [frames[:, [0, 4, 8, 13, 17, 22, 26, 31]], frames]
        for level, depth in enumerate((0, *depths)):
            for path in (0, 1):
                name = f"blocks.{level}.multipathway_blocks.{path}"
                if level == 0:
                    paths[path] = self.stem(paths[path], name)
                for block in range(depth):
                    stride = 2 if block == 0 and level > 1 else 1
                    paths[path] = self.residual(paths[path], f"{name}.res_blocks.{block}", stride)
            if level < 4:
                beside = self.lateral(paths[1], f"blocks.{level}.multipathway_fusion")
                paths[0] = np.concatenate([paths[0], beside])
        return np.concatenate([path.reshape(len(path), -1).mean(1) for path in paths])


def disturb(module: torch.nn.Module) -> dict[str, Any]:
    """Draw a module's weights and statistics so that nothing is 0 or 1; returns its state."""
    torch.manual_seed(1)
    state = module.state_dict()
    for name, value in state.items():
        if name.endswith(("norm.weight", "running_var")) or ".norm_" in name:
            value.copy_(torch.rand(value.shape) + 0.5)
        elif value.is_floating_point():
            value.copy_(torch.randn(value.shape) * 0.3)
    return state

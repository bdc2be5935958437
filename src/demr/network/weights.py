"""Weights from files: compared with the network they are for before memory is taken for them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from demr.evidential.density import Density
from demr.machine.memory import memory_left, readable_size
from demr.machine.reading import check_regular

# How safetensors calls numbers that weights can be stored as; whole numbers need a scale.
_FLOATS = ("F16", "BF16", "F32", "F64")


def read_weights(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """Read a safetensors file with exactly the tensors of a network, as float32.

    Args:
        path: The file.
        network: What they are for; it may lie on the meta device.

    Returns:
        What :meth:`~torch.nn.Module.load_state_dict` takes.

    Raises:
        OSError: If it is no regular file, or cannot be read.
        ValueError: If a tensor is missing, unknown, of another shape, of whole numbers, or holds a
            number that is not finite; or if memory does not hold them.
    """
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no dict
            found = {name: tuple(part.get_shape()) for name, part in slices.items()}
            wanted = _expected(network, found)
            _compare(wanted, found)
            for name, part in slices.items():
                if (kind := part.get_dtype()) not in _FLOATS:
                    raise ValueError(f"{name} of {kind}, where weights are {', '.join(_FLOATS)}")
            size = 4 * sum(_count(shape) for shape in wanted.values())
            if size > memory_left():
                raise ValueError(f"{readable_size(size)}, which is more than memory holds")
            state = {name: file.get_tensor(name).float() for name in slices}
    except SafetensorError as error:
        raise ValueError(f"damaged: {error}") from error
    check_finite(state)
    return state


def check_state(state: object, network: nn.Module) -> None:
    """Check that a state read elsewhere fits a network and holds finite numbers.

    Raises:
        ValueError: If it does not.
    """
    if not isinstance(state, dict):
        raise ValueError("no tensors by name")
    tensors: dict[str, Any] = {str(name): value for name, value in state.items()}
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ValueError(f"no weights under {name}")
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _compare(_expected(network, found), found)
    check_finite(tensors)


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Check that tensors hold finite numbers.

    Raises:
        ValueError: Naming the first that does not.
    """
    for name, tensor in state.items():
        bad = int(tensor.numel() - torch.isfinite(tensor).sum())
        if bad:
            raise ValueError(f"{bad:,} of {tensor.numel():,} numbers of {name} are not finite")


def _expected(
    network: nn.Module, found: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Shapes of what a network has to be given; densities are as large as the stored ones."""
    for name, module in network.named_modules():
        if isinstance(module, Density):
            module.expect(found, f"{name}.")
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _compare(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    for kind, names in (("missing", missing), ("unknown", unknown)):
        if names:
            raise ValueError(f"{len(names)} tensors {kind}, such as {names[0][:80]}")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ValueError(f"{name} of shape {found[name]} and not {shape}")


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count

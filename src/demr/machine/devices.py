"""Where to compute: a device by its name."""

import textwrap
from typing import TYPE_CHECKING

from demr.errors import ModelError

if TYPE_CHECKING:
    import torch


def has_fast_bfloat16(device: "torch.device") -> bool:
    """Whether a device is a CPU that multiplies bfloat16 itself, several times as fast as float32.

    False where torch is too old to know.
    """
    import torch

    get_capabilities = getattr(torch.cpu, "get_capabilities", None)
    if device.type != "cpu" or get_capabilities is None:
        return False
    capabilities = get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))


def resolve_device(name: str = "auto") -> "torch.device":
    """The device called ``name``; ``auto`` takes an accelerator if there is one.

    Raises:
        ModelError: If there is no such device here.
    """
    import torch

    # Asked without the check, a CUDA build names an accelerator on machines that have none.
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    available = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
    try:
        device = torch.device(name)
        # Others are not even tried: torch answers with pages of text, a missing module, or (meta)
        # with tensors that hold nothing.
        if device.type not in available:
            raise RuntimeError(f"{device.type}, which torch cannot use here")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"--device {name}",
            expected=f"auto, {' or '.join(available)}",
            got=textwrap.shorten(str(error), 150, placeholder=" ..."),
            remedy="use --device cpu",
        ) from error
    return device

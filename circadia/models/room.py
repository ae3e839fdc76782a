"""A model that does not fit is refused before anything is allocated, with both numbers."""

import torch

from circadia import machine
from circadia.models.config import HopeConfig


def need(config: HopeConfig, head: bool = True) -> int:
    """Bytes of the parameters in torch's default type: one block of each kind is built on the meta device."""
    from circadia.models.presets import count  # the model asks us before it is built

    return count(config, head) * torch.get_default_dtype().itemsize


def free(device: torch.device) -> int | None:
    """Bytes that can still be allocated there; None if that is not known, or nothing is allocated."""
    if device.type == "cpu":
        return machine.memory()[1]
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return None


def check(config: HopeConfig, head: bool = True, available: int | None = None) -> None:
    """``MemoryError`` if the parameters alone are larger than what is available on torch's default device."""
    device = torch.get_default_device()
    if available is None:
        available = free(device)
    if available is None:
        return
    needed = need(config, head)
    if needed > available:
        numbers = needed // torch.get_default_dtype().itemsize
        raise MemoryError(
            f"this model needs {needed:,} bytes ({needed / 2**30:.1f} GiB) for {numbers:,} parameters, but "
            f"{device} has {available:,} bytes ({available / 2**30:.1f} GiB) available: take a smaller hidden_size="
            f"{config.hidden_size} or num_hidden_layers={config.num_hidden_layers}, a smaller preset, or half "
            "precision (torch.set_default_dtype); `with torch.device('meta')` builds it without memory"
        )

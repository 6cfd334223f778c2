"""The device that a process computes on, and in which precision."""

from __future__ import annotations

import torch


def best_device() -> torch.device:
    """The GPU of this process where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision as configured: `auto` is bf16 where the device has instructions for it, else fp32."""
    bf16 = precision == "bf16" or (precision == "auto" and _multiplies_bf16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())

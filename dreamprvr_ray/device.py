"""The device and the precision that a process computes with."""

from __future__ import annotations

import os
from typing import Literal, cast, get_args

import torch

from dreamprvr_ray.config import AUTO_PRECISION
from dreamprvr_ray.errors import UserError

Precision = Literal["fp32", "bf16"]


def best_device() -> torch.device:
    """Return the current GPU if there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def resolve_precision(configured: str, device: torch.device) -> Precision:
    """Return the precision that `training.precision` stands for on `device`.

    `auto` is bf16 if the device has bfloat16 instructions, else fp32. The environment variable
    DREAMPRVR_RAY_AUTO_PRECISION overrides this; a device without such instructions then emulates them.

    Raises `UserError` if the variable is neither `fp32` nor `bf16`.
    """
    if configured != "auto":
        return cast(Precision, configured)
    forced = os.environ.get(AUTO_PRECISION)
    if forced is None:
        return "bf16" if _supports_bf16(device) else "fp32"
    if forced not in get_args(Precision):
        raise UserError(f"{AUTO_PRECISION}={forced}: must be fp32 or bf16")
    return cast(Precision, forced)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which torch computes with this precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _supports_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))  # emulated, it is slower than fp32
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())

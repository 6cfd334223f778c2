"""torchvision next to a build of torch that it was not compiled for.

timm and open_clip import torchvision. PyPI's wheel of torchvision is compiled for CUDA, and its operators cannot be
loaded next to the CPU build of torch. Importing torchvision then fails ("operator torchvision::nms does not exist"),
because it registers properties of two of these operators, which are for detecting objects and which no encoder calls.
With a declaration of these two, the rest of torchvision works: it is Python.

This module declares them only if torchvision's own cannot be loaded. Calling them then fails: torch reports that they
have no implementation.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def make_torchvision_importable() -> bool:
    """Declare torchvision's operators if its own cannot be loaded. Call it before importing what imports torchvision.

    Returns whether they were declared, by this call or an earlier one. Without torchvision, nothing happens.
    """
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    if all(_exists(name) for name in SCHEMAS):
        return not _has_implementation("nms")
    libraries = sorted(Path(spec.origin).parent.glob("_C*.so"))
    try:
        for library in libraries:
            torch.ops.load_library(str(library))
    except OSError:  # compiled for another build of torch
        pass
    missing = [name for name in SCHEMAS if not _exists(name)]
    for name in missing:
        torch.library.define(f"torchvision::{name}", SCHEMAS[name])
    return bool(missing)


def _exists(name: str) -> bool:
    import torch

    return hasattr(torch.ops.torchvision, name)


def _has_implementation(name: str) -> bool:
    import torch

    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"torchvision::{name}", "CPU"))

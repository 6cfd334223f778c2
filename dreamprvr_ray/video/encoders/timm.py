"""Frame encoders of timm: `timm:MODEL`, or a directory as timm's `save_for_hf` writes it, `timm:/path`.

A frame's embedding is the model's pooled feature in front of the classifier.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.video.encoders.hub import hub
from dreamprvr_ray.video.encoders.protocols import Settings
from dreamprvr_ray.video.encoders.torch_models import (
    choose_device,
    encode_in_batches,
    import_error,
    is_directory_name,
    model_directory,
    not_loaded,
    plain_settings,
    versions,
    weights_hash,
)
from dreamprvr_ray.video.encoders.torchvision_operators import make_torchvision_importable


class TimmEncoder:
    """A `FrameEncoder`."""

    def __init__(self, name: str, model: str, device: torch.device | None = None) -> None:
        make_torchvision_importable()
        try:
            import timm
        except ImportError as error:
            raise import_error(name, error) from None
        local = is_directory_name(model)
        source = f"local-dir:{model_directory(name, model)}" if local else model
        if not local and not model.startswith("hf-hub:") and not timm.is_model(model):
            similar = timm.list_models(f"*{model.split('.')[0]}*")[:3]
            raise UserError(f"encoder {name}: timm has no such model" + (f"; similar: {similar}" if similar else ""))
        try:
            with hub():
                loaded = timm.create_model(source, pretrained=True, num_classes=0)
        except Exception as error:
            raise not_loaded(name, "timm", error, None if local else _repository(model)) from None
        self.name = name
        self._device, self.precision = choose_device(device)
        self._model = loaded.eval().to(self._device)
        self.size = int(self._model.num_features)
        config = timm.data.resolve_model_data_config(self._model)
        self._transform = timm.data.create_transform(**config, is_training=False)
        self.version: Settings = {
            "library": "timm",
            **versions("timm", "torch"),
            "model": str(loaded.pretrained_cfg.get("architecture") or model),
            "weights_sha256": weights_hash(self._model),
            **plain_settings("input_", config),
        }

    def encode_frames(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Return the embeddings of frames, (N, D) float32."""
        return encode_in_batches(frames, self._prepare, self._model, self._device, self.precision, self.size)

    def _prepare(self, frame: np.ndarray) -> torch.Tensor:
        from PIL import Image

        image: torch.Tensor = self._transform(Image.fromarray(frame))
        return image


def _repository(model: str) -> str:
    """Return the hub's repository of a model of timm."""
    import timm

    if model.startswith("hf-hub:"):
        return model.removeprefix("hf-hub:")
    config = timm.get_pretrained_cfg(model)
    return str((config and config.hf_hub_id) or f"timm/{model}")

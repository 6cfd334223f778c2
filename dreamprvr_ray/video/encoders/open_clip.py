"""Joint encoders of open_clip: `open_clip:MODEL/WEIGHTS`, `open_clip:hf-hub:ORGANISATION/REPOSITORY`, or a directory
with `open_clip_config.json`, `open_clip:/path`.

The tokens of a sentence are the text model's last hidden states, projected into the joint space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dreamprvr_ray.errors import UserError, did_you_mean
from dreamprvr_ray.video.encoders.hub import hub
from dreamprvr_ray.video.encoders.protocols import SentenceFeatures, Settings
from dreamprvr_ray.video.encoders.torch_models import (
    SENTENCES_AT_ONCE,
    batches,
    choose_device,
    computing,
    encode_in_batches,
    import_error,
    is_directory_name,
    model_directory,
    not_loaded,
    plain_settings,
    to_array,
    versions,
    weights_hash,
)
from dreamprvr_ray.video.encoders.torchvision_operators import make_torchvision_importable


class OpenCLIPEncoder:
    """A `FrameEncoder` and a `SentenceEncoder`."""

    def __init__(self, name: str, model: str, device: torch.device | None = None) -> None:
        make_torchvision_importable()
        try:
            import open_clip
        except ImportError as error:
            raise import_error(name, error) from None
        source, weights, repository = _source(name, model)
        self.name = name
        self._device, self.precision = choose_device(device)
        try:
            with hub():
                loaded, _, self._transform = open_clip.create_model_and_transforms(source, weights)
                self._tokenizer = open_clip.get_tokenizer(source)
        except Exception as error:
            raise not_loaded(name, "open_clip", error, repository) from None
        self._model = loaded.eval().to(self._device)
        if not hasattr(getattr(self._model, "text", self._model), "forward_intermediates"):
            raise UserError(f"encoder {name}: the tokens of its text model, {type(loaded).__name__}, cannot be read")
        with torch.inference_mode():
            self.size = int(self._encode_text([""])[0].sentence.shape[0])
        self.version: Settings = {
            "library": "open_clip",
            **versions("open_clip_torch", "torch"),
            "model": "local directory" if is_directory_name(model) else model,
            "weights_sha256": weights_hash(self._model),
            "token_limit": int(self._model.context_length),
            **plain_settings("input_", open_clip.get_model_preprocess_cfg(self._model)),
        }

    def encode_frames(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Return the embeddings of frames in the joint space, (N, D) float32."""
        encode, size = self._model.encode_image, self.size
        return encode_in_batches(frames, self._prepare, encode, self._device, self.precision, size)

    def encode_sentences(self, sentences: Sequence[str]) -> list[SentenceFeatures]:
        """Return the features of each sentence in the joint space."""
        return [each for batch in batches(sentences, SENTENCES_AT_ONCE) for each in self._encode_text(batch)]

    def _prepare(self, frame: np.ndarray) -> torch.Tensor:
        from PIL import Image

        image: torch.Tensor = self._transform(Image.fromarray(frame))
        return image

    def _encode_text(self, sentences: Sequence[str]) -> list[SentenceFeatures]:
        ids = self._tokenizer(list(sentences)).to(self._device)
        with computing(self._device, self.precision):
            output = self._model.forward_intermediates(
                text=ids, text_indices=1, normalize_intermediates=True, normalize=False
            )
            tokens = _project(output["text_intermediates"][-1], getattr(self._model, "text", self._model))
        return [
            SentenceFeatures(to_array(rows[real]), to_array(sentence))
            for rows, real, sentence in zip(tokens, self._real(ids), output["text_features"], strict=True)
        ]

    def _real(self, ids: torch.Tensor) -> list[slice]:
        """Return where each sentence's own tokens are: between the padding, whose id may also be a token's."""
        padding = getattr(getattr(self._tokenizer, "tokenizer", None), "pad_token_id", None) or 0
        found = []
        for row in ids:
            places = (row != padding).nonzero().flatten().tolist() or [0]
            found.append(slice(places[0], places[-1] + 1))
        return found


def _project(tokens: torch.Tensor, text: Any) -> torch.Tensor:
    """Return hidden states in the joint space: the text model's projection is a matrix, a layer, or missing."""
    projection = getattr(text, "text_projection", None)
    if projection is None:
        return tokens
    projected: torch.Tensor = projection(tokens) if callable(projection) else tokens @ projection
    return projected


def _source(name: str, model: str) -> tuple[str, str | None, str | None]:
    """Return what open_clip calls the model and the weights, and the hub's repository if known."""
    import open_clip

    if is_directory_name(model):
        return f"local-dir:{model_directory(name, model)}", None, None
    if model.startswith("hf-hub:"):
        return model, None, model.removeprefix("hf-hub:")
    architecture, _, weights = model.partition("/")
    models = open_clip.list_models()
    if architecture not in models:
        raise UserError(f"encoder {name}: open_clip has no model '{architecture}'{did_you_mean(architecture, models)}")
    known = open_clip.list_pretrained_tags_by_model(architecture)
    if weights not in known:
        raise UserError(
            f"encoder {name}: must be open_clip:{architecture}/WEIGHTS; '{weights}' is not among the weights of "
            f"{architecture}: {', '.join(known)}{did_you_mean(weights, known)}"
        )
    repository = open_clip.get_pretrained_cfg(architecture, weights).get("hf_hub") or ""
    return architecture, weights, repository.strip("/") or None

"""Joint encoders of transformers, such as CLIP and SigLIP: `transformers:ORGANISATION/REPOSITORY`, or a directory of a
saved model and its processor, `transformers:/path`.

The tokens of a sentence are the text model's last hidden states, projected into the joint space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.video.encoders.hub import hub
from dreamprvr_ray.video.encoders.protocols import SentenceFeatures, Settings
from dreamprvr_ray.video.encoders.torch_models import (
    FRAMES_AT_ONCE,
    SENTENCES_AT_ONCE,
    batches,
    choose_device,
    computing,
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


class TransformersEncoder:
    """A `FrameEncoder` and a `SentenceEncoder`."""

    def __init__(self, name: str, model: str, device: torch.device | None = None) -> None:
        make_torchvision_importable()
        try:
            from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
        except ImportError as error:
            raise import_error(name, error) from None
        local = is_directory_name(model)
        source = str(model_directory(name, model)) if local else model
        self.name = name
        self._device, self.precision = choose_device(device)
        try:
            with hub():
                loaded = AutoModel.from_pretrained(source, trust_remote_code=False, dtype=torch.float32)
                self._processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
                self._tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except Exception as error:
            raise not_loaded(name, "transformers", error, None if local else model) from None
        if not hasattr(loaded, "get_image_features") or not hasattr(loaded, "get_text_features"):
            raise UserError(f"encoder {name}: {type(loaded).__name__} does not encode images and text in one space")
        self._model = loaded.eval().to(self._device)
        self._limit = int(self._model.config.text_config.max_position_embeddings)
        # SigLIP was trained on padded sentences and reads its embedding from the last place.
        self._padding = "max_length" if "siglip" in self._model.config.model_type else "longest"
        self.size = int(self._encode_text([""])[0].sentence.shape[0])
        self.version: Settings = {
            "library": "transformers",
            **versions("transformers", "torch"),
            "model": "local directory" if local else model,
            "weights_sha256": weights_hash(self._model),
            "token_limit": self._limit,
            **plain_settings("input_", self._processor.to_dict()),
        }

    def encode_frames(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """Return the embeddings of frames in the joint space, (N, D) float32."""
        from PIL import Image

        rows = [np.empty((0, self.size), np.float32)]
        for batch in batches(frames, FRAMES_AT_ONCE):
            # As images: of arrays, the processor guesses which axis holds the colours.
            inputs = self._processor(images=[Image.fromarray(frame) for frame in batch], return_tensors="pt")
            with computing(self._device, self.precision):
                rows.append(to_array(_pooled(self._model.get_image_features(**inputs.to(self._device)))))
        return np.concatenate(rows)

    def encode_sentences(self, sentences: Sequence[str]) -> list[SentenceFeatures]:
        """Return the features of each sentence in the joint space."""
        return [each for batch in batches(sentences, SENTENCES_AT_ONCE) for each in self._encode_text(batch)]

    def _encode_text(self, sentences: Sequence[str]) -> list[SentenceFeatures]:
        settings = {"padding": self._padding, "max_length": self._limit, "truncation": True, "return_tensors": "pt"}
        # Whether the model sees a mask of the padding is up to its tokenizer; SigLIP's leaves it out.
        inputs = self._tokenizer(list(sentences), **settings).to(self._device)
        mask = self._tokenizer(list(sentences), **settings, return_attention_mask=True)["attention_mask"].bool()
        mask[mask.sum(1) == 0, 0] = True  # an empty sentence of a tokenizer without special tokens
        with computing(self._device, self.precision):
            output = self._model.get_text_features(**inputs)
            tokens = self._project(output.last_hidden_state)
        return [
            SentenceFeatures(to_array(rows[real]), to_array(sentence))
            for rows, real, sentence in zip(tokens, mask.to(self._device), _pooled(output), strict=True)
        ]

    def _project(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return hidden states in the joint space: CLIP's model has a projection, SigLIP's text model a head."""
        text: Any = getattr(self._model, "text_model", None)
        projection = getattr(self._model, "text_projection", None) or getattr(text, "head", None)
        return tokens if projection is None else projection(tokens)


def _pooled(output: Any) -> torch.Tensor:
    pooled: torch.Tensor = getattr(output, "pooler_output", output)
    return pooled

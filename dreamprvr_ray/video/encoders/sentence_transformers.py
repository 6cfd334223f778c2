"""Sentence encoders of sentence-transformers: `sentence_transformers:MODEL`, or a directory of a saved model.

The tokens of a sentence are the model's last hidden states; its embedding is the pooled one. The library's own limit of
tokens holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.video.encoders.hub import hub
from dreamprvr_ray.video.encoders.protocols import SentenceFeatures, Settings
from dreamprvr_ray.video.encoders.torch_models import (
    SENTENCES_AT_ONCE,
    choose_device,
    computing,
    import_error,
    is_directory_name,
    model_directory,
    not_loaded,
    to_array,
    versions,
    weights_hash,
)
from dreamprvr_ray.video.encoders.torchvision_operators import make_torchvision_importable


class SentenceTransformersEncoder:
    """A `SentenceEncoder`."""

    def __init__(self, name: str, model: str, device: torch.device | None = None) -> None:
        make_torchvision_importable()
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise import_error(name, error) from None
        local = is_directory_name(model)
        source = str(model_directory(name, model)) if local else model
        self.name = name
        self._device, self.precision = choose_device(device)
        try:
            with hub():
                # A repository's own code must not run.
                self._model = SentenceTransformer(source, device=str(self._device), trust_remote_code=False).eval()
        except Exception as error:
            raise not_loaded(name, "sentence_transformers", error, None if local else model) from None
        self.size = int(self._model.get_embedding_dimension() or 0)
        self._sizes_differ = False
        self.version: Settings = {
            "library": "sentence-transformers",
            **versions("sentence-transformers", "transformers", "torch"),
            "model": "local directory" if local else model,
            "weights_sha256": weights_hash(self._model),
            "token_limit": int(self._model.max_seq_length or 0),
        }

    def encode_sentences(self, sentences: Sequence[str]) -> list[SentenceFeatures]:
        """Return the features of each sentence."""
        with computing(self._device, self.precision):
            outputs = self._model.encode(
                list(sentences), output_value=None, batch_size=SENTENCES_AT_ONCE, show_progress_bar=False
            )
        return [self._features(each["token_embeddings"], each) for each in outputs]

    def _features(self, tokens: torch.Tensor, output: dict[str, torch.Tensor]) -> SentenceFeatures:
        sentence = output["sentence_embedding"]
        if tokens.shape[-1] != sentence.shape[-1]:
            raise UserError(
                f"encoder {self.name}: its tokens have {tokens.shape[-1]} values and its sentences "
                f"{sentence.shape[-1]}; a model whose pooled output is projected is not supported"
            )
        return SentenceFeatures(to_array(tokens[output["attention_mask"].bool()]), to_array(sentence))

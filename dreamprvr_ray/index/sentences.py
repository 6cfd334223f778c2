"""From sentences to the vectors that an index compares with videos.

Shapes: Q sentences, L tokens of the longest, D hidden size of the model, Dt values of a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dreamprvr_ray.config_sections import QUERY_TOKENS
from dreamprvr_ray.data import pooling
from dreamprvr_ray.data.encoding import EncoderRecord
from dreamprvr_ray.device import autocast
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.curves import QueryVectors
from dreamprvr_ray.index.record import IndexRecord
from dreamprvr_ray.index.scoring import unit_rows
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.video.encoders.protocols import SentenceEncoder, SentenceFeatures
from dreamprvr_ray.video.encoders.registry import open_sentence_encoder

LONGEST = 10_000  # characters of a sentence


def check_sentence(sentence: str) -> str:
    """Return a sentence without blanks around it. Raises `UserError` if it is empty or far too long."""
    stripped = sentence.strip()
    if not stripped:
        raise UserError("the sentence is empty")
    if len(stripped) > LONGEST:
        raise UserError(f"the sentence has {len(stripped):,} characters; at most {LONGEST:,} are allowed")
    if not any(character.isprintable() and not character.isspace() for character in stripped):
        raise UserError("the sentence has no printable characters")
    try:
        stripped.encode()
    except UnicodeEncodeError:
        raise UserError("the sentence is not valid Unicode") from None
    return stripped


def open_encoder_of(record: IndexRecord, index: str, chosen: str | SentenceEncoder | None = None) -> SentenceEncoder:
    """Return the encoder of an index's sentences, or the chosen one, which is loaded by its name.

    Raises `UserError` if it is not known, cannot be loaded, or is not the one that the model was trained with.
    """
    recorded = None if record.encoding is None else record.encoding.sentences
    name = chosen or record.sentence_encoder or (None if recorded is None else recorded.name)
    if name is None:
        raise UserError(f"{index}: its features came without a record of their encoder; name it: --sentence-encoder")
    if isinstance(name, str):
        try:
            encoder = open_sentence_encoder(name)
        except UserError as error:
            hint = "" if chosen else "; if it has moved, name it: --sentence-encoder"
            raise UserError(*error.mistakes[:-1], f"{error.mistakes[-1]}{hint}") from None
    else:
        encoder = name
    if encoder.size != record.text_size:
        raise UserError(
            f"encoder {encoder.name}: its tokens have {encoder.size} values, but those of {index} {record.text_size}"
        )
    if recorded is not None:
        _check_weights(encoder, recorded, index)
    return encoder


def _check_weights(encoder: SentenceEncoder, recorded: EncoderRecord, index: str) -> None:
    key = "weights_sha256"
    now, before = encoder.version.get(key), recorded.version.get(key)
    if now is not None and before is not None and now != before:
        raise UserError(f"encoder {encoder.name}: its weights are not those that {index} was encoded with")


def encode(features: Sequence[SentenceFeatures], record: IndexRecord, model: DreamPRVR | None) -> QueryVectors:
    """Return the vectors, of length 1, of encoded sentences; they are pooled and rounded as those of shards are."""
    rows = [pooling.query_tokens(each.tokens).astype(record.dtype) for each in features]
    tokens, mask = pad(rows)
    sentences = np.stack([pooling.unit(each.sentence).astype(record.dtype) for each in features]).astype(np.float32)
    return query_vectors(tokens, mask, torch.from_numpy(sentences), model)


@torch.no_grad()
def query_vectors(
    tokens: torch.Tensor, mask: torch.Tensor, sentences: torch.Tensor, model: DreamPRVR | None
) -> QueryVectors:
    """Return the vectors, of length 1 and on the CPU, of pooled queries.

    Args:
        tokens: (Q, L, Dt) float32.
        mask: (Q, L) bool.
        sentences: (Q, Dt) float32, the encoder's embeddings.
        model: The model; None for an index of an encoder alone.
    """
    embeddings = None
    if model is not None:
        device = next(model.parameters()).device
        with autocast(device, "fp32"):
            embeddings = unit_rows(model.encode_queries(tokens.to(device), mask.to(device)).float()).cpu()
    return QueryVectors(embeddings, unit_rows(sentences))


def pad(rows: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens (Q, L, Dt) float32, padded with zeros, and their mask (Q, L): of each query's rows."""
    longest = min(QUERY_TOKENS, max(len(each) for each in rows))
    tokens = np.zeros((len(rows), longest, rows[0].shape[1]), dtype=np.float32)
    counts = np.array([len(each) for each in rows])
    for padded, each in zip(tokens, rows, strict=True):
        padded[: len(each)] = each
    return torch.from_numpy(tokens), torch.from_numpy(np.arange(longest) < counts[:, None])

"""The attributes that fast implementations read from the model's modules.

Protocols, because the model imports `kernels` and not the other way round. The classes have the same names in
`attention.py` and `dreamprvr.py`, except that `Affine` is any of LayerNorm, Linear, StackedLayerNorm and StackedLinear.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class Affine(Protocol):
    weight: nn.Parameter
    bias: nn.Parameter

    def __call__(self, x: Tensor, /) -> Tensor: ...


class Dropout(Protocol):
    probability: float
    keep: Tensor  # (): 1 - probability
    training: bool


class InputLayer(Protocol):
    norm: Affine
    dropout: Dropout
    project: Affine


class PostNormFeedForward(Protocol):
    attention_norm: Affine
    widen: Affine
    narrow: Affine
    output_norm: Affine
    dropout: Dropout


class SelfAttention(Protocol):
    heads: int
    query: Affine
    key_value: Affine
    dropout: Dropout
    feed_forward: PostNormFeedForward


class FusionBlock(Protocol):
    temperature: float

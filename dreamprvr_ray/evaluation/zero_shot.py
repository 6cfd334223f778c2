"""The retrieval of a split by the encoder alone, without any model: the baselines that a trained model has to beat.

They cost little compared with encoding the split with a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from dreamprvr_ray.data.shards import Split
from dreamprvr_ray.evaluation.encoder import COMPARISONS, compare
from dreamprvr_ray.evaluation.metrics import ENCODER, Retrieval
from dreamprvr_ray.evaluation.own_moments import encoder_moments
from dreamprvr_ray.evaluation.ranks import summarise
from dreamprvr_ray.evaluation.retrieval import rank_queries


@torch.no_grad()
def zero_shot(split: Split, device: torch.device) -> dict[str, Retrieval]:
    """Return the retrieval of a split's queries by the encoder's comparisons.

    The last, `encoder`, is the encoder's score of `evaluation.encoder_weight`, `best windows`. The features must be of
    one encoder. For `encoder` alone, it is also measured how often moments are found.
    """
    results = {}
    for name, scores in _scores(split, device):
        result = summarise(rank_queries(scores, split), len(split), split.moment_fractions)
        results[name] = replace(result, moments=encoder_moments(split, scores)) if name == ENCODER else result
    return results


def _scores(split: Split, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    scores: dict[str, Tensor] = dict(zip(COMPARISONS, compare(split, COMPARISONS, device), strict=True))
    windows = scores.pop("best windows")
    yield from scores.items()
    yield "best frame + pooled video", (scores["best frame"] + scores["pooled video"]) / 2
    yield ENCODER, windows

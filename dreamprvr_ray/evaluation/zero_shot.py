"""The retrieval of a split by the encoder alone, without any model: the baselines that a trained model has to beat.

They cost little compared with encoding the split with a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from dreamprvr_ray.data.shards import Split
from dreamprvr_ray.evaluation.encoder import Comparison, Encoder
from dreamprvr_ray.evaluation.metrics import ENCODER, Retrieval
from dreamprvr_ray.evaluation.own_moments import encoder_moments
from dreamprvr_ray.evaluation.ranks import summarise
from dreamprvr_ray.evaluation.retrieval import rank_scores
from dreamprvr_ray.evaluation.score_blocks import ScoreBlock, blocks_of_like_length

_RESULTS: Mapping[str, tuple[Comparison, ...]] = {  # the comparisons whose mean gives the scores
    "best frame": ("best frame",),
    "best clip": ("best clip",),
    "pooled video": ("pooled video",),
    "best frame + pooled video": ("best frame", "pooled video"),
    ENCODER: ("best windows",),
}


@torch.no_grad()
def zero_shot(split: Split, device: torch.device) -> dict[str, Retrieval]:
    """Return the retrieval of a split's queries by the encoder's comparisons.

    The last, `encoder`, is the encoder's score of `evaluation.encoder_weight`, `best windows`. The features must be of
    one encoder. For `encoder` alone, it is also measured how often moments are found.
    """
    encoder, results = Encoder(split, device), {}
    for name, comparisons in _RESULTS.items():
        scores = _Scores(encoder, split, comparisons, device)
        ranks = rank_scores(scores, encoder.queries * len(split), split, device)
        results[name] = summarise(ranks.ranks, len(split), split.moment_fractions)
    return results | {ENCODER: replace(results[ENCODER], moments=encoder_moments(split, ranks.is_own_first))}


@dataclass(frozen=True)
class _Scores:
    """The means of some comparisons of all queries of a split with its videos, in blocks."""

    encoder: Encoder
    split: Split
    comparisons: tuple[Comparison, ...]
    device: torch.device

    def __iter__(self) -> Iterator[ScoreBlock]:
        for videos in blocks_of_like_length(self.split.frame_counts):
            rows = self.encoder.rows(videos, self.comparisons)
            yield ScoreBlock(torch.from_numpy(videos).to(self.device), partial(self._score, rows))

    def _score(self, rows: Sequence[Sequence[tuple[Tensor, Tensor | None]]], queries: slice) -> Tensor:
        return torch.stack([self.encoder.score(each, queries) for each in rows]).mean(0)

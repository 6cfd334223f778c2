"""The evaluation on val after every epoch of a training, with the choice of the encoder's weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from dreamprvr_ray.config import Experiment
from dreamprvr_ray.data.shards import Split
from dreamprvr_ray.distributed import Workers
from dreamprvr_ray.evaluation.encoder import encoder_scores
from dreamprvr_ray.evaluation.metrics import Retrieval, mean_retrieval
from dreamprvr_ray.evaluation.ranks import summarise
from dreamprvr_ray.evaluation.retrieval import KEPT_SCORES, evaluate, rank_queries, score_split
from dreamprvr_ray.evaluation.weights import USUAL_WEIGHT, ScoreWeights, ValScores, choose_weight
from dreamprvr_ray.evaluation.zero_shot import zero_shot
from dreamprvr_ray.model.dreamprvr import DreamPRVR


@dataclass(frozen=True)
class ValResult:
    """The retrieval on val of each collection, and the weights of the score by which it was measured."""

    by_collection: Mapping[str, Retrieval]
    weights: ScoreWeights

    @property
    def retrieval(self) -> Retrieval:
        """The mean over the collections: that of a single one itself."""
        return mean_retrieval(list(self.by_collection.values()))

    @property
    def sumr_by_collection(self) -> dict[str, float]:
        """SumR on each of several collections; empty for one."""
        several = self.by_collection if len(self.by_collection) > 1 else {}
        return {name: retrieval.recall.sumr for name, retrieval in several.items()}


class ValEvaluation:
    """Evaluates the model of a training on its val splits, by collection.

    The encoder's scores are computed once and kept. Large splits are ranked without holding their scores, unless the
    encoder's weight is chosen on them.
    """

    def __init__(
        self, splits: Mapping[str, Split], experiment: Experiment, device: torch.device, workers: Workers
    ) -> None:
        self._splits, self._device, self._workers = splits, device, workers
        self._settings, self._chooses = experiment.evaluation, experiment.chooses_encoder_weight

    def __call__(self, model: DreamPRVR) -> ValResult:
        """Evaluate the current weights of the model. Every worker gets the whole result.

        Raises `ScoresNotFinite` as `score_split`.
        """
        clip, encoder = self._settings.clip_weight, self._settings.encoder_weight
        if encoder != "auto" and any(len(split.owner) * len(split) > KEPT_SCORES for split in self._splits.values()):
            weights = ScoreWeights(clip, encoder)
            results = {name: evaluate(model, split, weights, self._workers) for name, split in self._splits.items()}
            return ValResult(results, weights)
        scores = {
            name: score_split(model, split, ScoreWeights(clip), self._workers) for name, split in self._splits.items()
        }
        weights = ScoreWeights(clip, self._choose(scores))
        by_collection = {}
        for name, split in self._splits.items():
            own = weights.combine(scores[name], self._encoder[name]) if weights.encoder else scores[name]
            by_collection[name] = summarise(rank_queries(own, split), len(split), split.moment_fractions)
        return ValResult(by_collection, weights)

    def _choose(self, scores: Mapping[str, Tensor]) -> float:
        """Return the encoder's weight, the same on every worker."""
        if self._settings.encoder_weight != "auto":
            return self._settings.encoder_weight
        if not self._chooses:  # the model is trained on val
            return USUAL_WEIGHT
        weight = choose_weight(
            [
                ValScores(scores[name], self._encoder[name], right_videos(split, self._device))
                for name, split in self._splits.items()
            ]
        ).weight
        chosen = torch.tensor(weight, dtype=torch.float64, device=self._device)
        self._workers.copy_from_first([chosen])  # machines may round differently
        return float(chosen)

    @cached_property
    def zero_shot_sumr(self) -> float:
        """The best SumR of the encoder alone on val, the mean over the collections. Features must be of one encoder."""
        results = [zero_shot(split, self._device) for split in self._splits.values()]
        return max(fmean(each[name].recall.sumr for each in results) for name in results[0])

    @cached_property
    def _encoder(self) -> dict[str, Tensor]:
        return {name: encoder_scores(split, self._device, self._workers) for name, split in self._splits.items()}


def right_videos(split: Split, device: torch.device) -> Tensor:
    """Return which videos of a split are right for each of its queries, bool (Q, V)."""
    queries, videos = np.arange(len(split.owner)), split.owner
    if split.right_videos is not None:
        offsets, videos = split.right_videos
        queries = np.repeat(queries, np.diff(offsets))
    right = torch.zeros(len(split.owner), len(split), dtype=torch.bool)
    right[torch.from_numpy(queries), torch.from_numpy(np.array(videos))] = True
    return right.to(device)

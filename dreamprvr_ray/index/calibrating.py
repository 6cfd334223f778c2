"""Making a calibration from shards: val's queries are scored against its videos and, for larger collections, train's.

Shapes: Q queries, V videos, where windows of one long video are one video.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dreamprvr_ray.checkpoints.checkpoint import TrainedModel
from dreamprvr_ray.checkpoints.layout import METRICS
from dreamprvr_ray.data.shards import ShardSet, Split
from dreamprvr_ray.device import best_device
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.encoder import compare
from dreamprvr_ray.evaluation.retrieval import score_between
from dreamprvr_ray.evaluation.val import right_videos
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.index.calibration import (
    DRAWS,
    SIZES,
    Answers,
    Calibration,
    CalibrationSource,
    draw_answers,
    fit,
)
from dreamprvr_ray.model.dreamprvr import DreamPRVR

MOST_QUERIES = 2000  # more do not make a calibration better, but slower
MOST_OTHER_VIDEOS = 2500  # of train, more than the largest collection needs
LEAST_QUERIES = 20  # with fewer, a calibration would mean nothing


@dataclass(frozen=True, eq=False)
class ScoredQueries:
    """Queries of a split with their scores against its videos and those of train.

    Attributes:
        scores: (Q, V) float32.
        own: (Q,) the number of each query's own video.
        right: (Q, V) bool, which videos are right for a query.
    """

    scores: np.ndarray
    own: np.ndarray
    right: np.ndarray

    def draw(self, sizes: Sequence[int] = SIZES, draws: int = DRAWS, seed: int = 0) -> Answers:
        """Return answers by collections of these sizes, as far as there are videos for them; see `draw_answers`."""
        return draw_answers(self.scores, self.own, self.right, self._possible(sizes), draws, seed)

    def _possible(self, sizes: Sequence[int]) -> list[int]:
        """Return the sizes that every query has enough wrong videos for; for a small split, its own size alone."""
        most = int((~self.right).sum(1).min())
        return [size for size in sizes if size <= most] or [most]


def calibrate(trained: TrainedModel | None, shards: ShardSet, path: str = "", seed: int = 0) -> Calibration:
    """Return the calibration of a model, or of the encoder alone, by the val split of shards.

    Args:
        trained: The model; None for the encoder alone.
        shards: With the split val, and train for collections that are larger than val.
        path: Where the model is, for messages.
        seed: Of the drawn collections, and of the queries and videos that are used if there are very many.

    Raises:
        UserError: There is no val split, it is too small, or the features are not of one encoder.
    """
    model, weights = None, ScoreWeights(0.0, 1.0)
    if trained is not None:
        model = trained.model.to(best_device())
        weights = ScoreWeights.of(trained.experiment.evaluation, trained.metrics, f"{path}/{METRICS}")
    shards.check_encoder_weight(weights.encoder)
    val = shards.split("val")
    scored = score_queries(model, weights, val, _train(shards), seed)
    most = int((~scored.right).sum(1).min()) if len(scored.own) else 0
    if len(scored.own) < LEAST_QUERIES or most < 3:
        raise UserError(
            f"{shards.directory}: val has {len(scored.own)} queries; at least {LEAST_QUERIES} are needed to calibrate"
        )
    source = CalibrationSource(
        shards.manifest.collection, "val", len(scored.own), scored.scores.shape[1], shards.manifest.fingerprint
    )
    return fit(scored.draw(seed=seed), source)


def _train(shards: ShardSet) -> Split | None:
    """Return the train split, unless val shares videos with it."""
    overlap = (shards.manifest.overlaps or {}).get("train and val")
    if "train" not in shards.manifest.splits or (overlap is not None and overlap.videos):
        return None
    return shards.split("train")


def score_queries(
    model: DreamPRVR | None, weights: ScoreWeights, split: Split, others: Split | None, seed: int = 0
) -> ScoredQueries:
    """Return the scores of a split's queries against its videos and those of another split, which must not share any.

    `model` is None where the encoder alone has a weight. Of very many queries and other videos, `MOST_QUERIES` and
    `MOST_OTHER_VIDEOS` are drawn.
    """
    random = np.random.default_rng(seed)
    queries = _some(len(split.owner), MOST_QUERIES, random)
    parts, names = [_scores(model, weights, split, queries, split, np.arange(len(split)))], _sources(split)
    right = right_videos(split, torch.device("cpu")).numpy()[queries]
    if others is not None:
        videos = _some(len(others), MOST_OTHER_VIDEOS, random)
        parts.append(_scores(model, weights, split, queries, others, videos))
        all_names = _sources(others)
        names = [*names, *(all_names[video] for video in videos.tolist())]
        right = np.pad(right, ((0, 0), (0, len(videos))))
    # A long video that was cut into windows is one video, which its best window stands for.
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    place = np.array([numbers[name] for name in names])
    scores = np.full((len(queries), len(numbers)), -np.inf, np.float32)
    np.maximum.at(scores.T, place, np.concatenate(parts, axis=1).T)
    is_right = np.zeros(scores.shape, dtype=bool)
    np.logical_or.at(is_right.T, place, right.T)
    return ScoredQueries(scores, place[split.owner[queries]], is_right)


def _some(count: int, most: int, random: np.random.Generator) -> np.ndarray:
    return np.arange(count) if count <= most else np.sort(random.choice(count, most, replace=False))


def _sources(split: Split) -> list[str]:
    """Return the id of the video that each row of a split is or that it is a window of."""
    return split.videos if split.times is None else [times.source for times in split.times]


def _scores(
    model: DreamPRVR | None,
    weights: ScoreWeights,
    queries: Split,
    query_numbers: np.ndarray,
    videos: Split,
    video_numbers: np.ndarray,
) -> np.ndarray:
    if model is not None:
        scores = score_between(model, queries, query_numbers, videos, video_numbers, weights)
    else:
        sentences = queries.sentences(query_numbers)
        (scores,) = compare(videos, ["best windows"], torch.device("cpu"), video_numbers, sentences)
    result: np.ndarray = scores.cpu().numpy()
    return result

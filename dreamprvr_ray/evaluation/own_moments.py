"""The curves of queries along their own videos, and the moments found in them against the annotated windows.

Shapes: Q queries and V videos of a split, B videos of a block, L frame rows of a video, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dreamprvr_ray.data.shards import Split
from dreamprvr_ray.evaluation.curves import ENCODER_ALONE, QueryVectors, VideoRows, similarity_curves
from dreamprvr_ray.evaluation.moment_metrics import MomentRecall
from dreamprvr_ray.evaluation.moments import best_overlap, find_moment, to_shares
from dreamprvr_ray.evaluation.retrieval import SplitPart, SplitScores
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.model.dreamprvr import DreamPRVR, VideoEncoding
from dreamprvr_ray.model.moment_network import MomentNetwork


class OwnCurves:
    """Computes the curves of some queries along their own videos while the videos of a split are encoded.

    Of a video, no more than its own queries' curves exist at a time.

    Args:
        split: Of the queries and videos.
        queries: (n,) numbers of the queries, ascending.
        weights: Of the score.
        receive: Is called with the number of each query and its curve (L,), unless that is not finite.
    """

    def __init__(
        self, split: Split, queries: np.ndarray, weights: ScoreWeights, receive: Callable[[int, np.ndarray], None]
    ) -> None:
        self._split, self._queries, self._weights, self._receive = split, queries, weights, receive

    def add(self, videos: np.ndarray, embeddings: Tensor | None = None, encoding: VideoEncoding | None = None) -> None:
        """Compute the curves along a block of videos, which are numbers in the split.

        `embeddings` are the model's of all queries of the split (Q, D) or of these queries (n, D), `encoding` is that
        of the block's videos; both may be missing if only the encoder has a weight.
        """
        split = self._split
        for row, video in enumerate(videos.tolist()):
            first, last = np.searchsorted(self._queries, [split.first_query[video], split.first_query[video + 1]])
            own = self._queries[first:last]
            if not len(own):
                continue
            model = None
            if embeddings is not None:
                rows = own if len(embeddings) == len(split.owner) else np.arange(first, last)
                model = embeddings[torch.from_numpy(rows).to(embeddings.device)].cpu()
            frames = None if encoding is None else encoding.frame_tokens[row, : int(split.frame_counts[video])].cpu()
            curves = similarity_curves(
                QueryVectors(model, split.sentences(own) if self._weights.encoder else None),
                VideoRows(frames=frames, features=split.frames(video).float() if self._weights.encoder else None),
                self._weights,
            )
            for query, curve in zip(own.tolist(), curves.numpy(), strict=True):
                if np.isfinite(curve).all():  # otherwise the scores are not finite either, which is reported with them
                    self._receive(query, curve)


def own_curves(model: DreamPRVR, weights: ScoreWeights, split: Split, queries: np.ndarray) -> dict[int, np.ndarray]:
    """Return the finite curves (L,) of some queries along their own videos, by the number of the query.

    `queries` (n,) are ascending numbers in the split.
    """
    curves: dict[int, np.ndarray] = {}
    collector = OwnCurves(split, queries, weights, curves.__setitem__)
    parts = SplitPart(split, queries), SplitPart(split, np.unique(split.owner[queries]))
    for _ in SplitScores(model, weights, *parts, on_encoded=collector.add):
        pass
    return curves


def queries_with_windows(split: Split) -> np.ndarray:
    """Return the numbers (n,) of the queries of a split whose annotated windows are known, ascending."""
    windows = split.moment_windows or []
    return np.array([query for query, known in enumerate(windows) if len(known)], dtype=np.int64)


class OwnMoments:
    """Finds the moment of each query in its own video while the videos of a split are encoded.

    Only queries with annotated windows count.
    """

    def __init__(self, split: Split, weights: ScoreWeights, network: MomentNetwork | None = None) -> None:
        self._windows, self._network = split.moment_windows or [], network
        self._overlaps = np.full(len(split.owner), np.nan)
        self.add = OwnCurves(split, queries_with_windows(split), weights, self._find).add

    def _find(self, query: int, curve: np.ndarray) -> None:
        found = to_shares(find_moment(curve, self._network), len(curve))
        self._overlaps[query] = best_overlap(found, self._windows[query])

    def result(self, is_own_first: Tensor) -> MomentRecall | None:
        """Return how often the moments were found; `is_own_first` (Q,) is that of `SplitRanks`.

        None if no query has an annotated window.
        """
        known = ~np.isnan(self._overlaps)
        return MomentRecall.of(self._overlaps[known], is_own_first.cpu().numpy()[known])


def encoder_moments(split: Split, is_own_first: Tensor) -> MomentRecall | None:
    """Return how often moments are found by the encoder alone; None without windows.

    `is_own_first` (Q,) is that of its `SplitRanks`. The features must be of one encoder.
    """
    if split.moment_windows is None:
        return None
    moments = OwnMoments(split, ENCODER_ALONE)
    moments.add(np.arange(len(split)))
    return moments.result(is_own_first)

"""The moments that are found in the queries' own videos, against the annotated windows.

Shapes: Q queries and V videos of a split, B videos of a block, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dreamprvr_ray.data.shards import Split
from dreamprvr_ray.evaluation.curves import ENCODER_ALONE, QueryVectors, VideoRows, similarity_curves
from dreamprvr_ray.evaluation.moment_metrics import MomentRecall
from dreamprvr_ray.evaluation.moments import best_overlap, find_moment, to_shares
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.model.dreamprvr import VideoEncoding
from dreamprvr_ray.model.moment_network import MomentNetwork


class OwnMoments:
    """Finds the moment of each query in its own video while the videos of a split are encoded.

    Only queries with annotated windows count. Of a video, no more than its own queries' curves exist at a time.
    """

    def __init__(self, split: Split, weights: ScoreWeights, network: MomentNetwork | None = None) -> None:
        self._split, self._weights, self._network = split, weights, network
        self._windows = split.moment_windows or [np.empty((0, 2))] * len(split.owner)
        self._overlaps = np.full(len(split.owner), np.nan)

    def add(self, videos: np.ndarray, queries: Tensor | None = None, encoding: VideoEncoding | None = None) -> None:
        """Find the moments in a block of videos, which are numbers in the split.

        `queries` (Q, D) are the model's embeddings of all queries of the split, `encoding` is that of the block's
        videos; both may be missing if only the encoder has a weight.
        """
        split = self._split
        for row, video in enumerate(videos.tolist()):
            first, last = split.first_query[video], split.first_query[video + 1]
            own = np.array([query for query in range(first, last) if len(self._windows[query])], dtype=np.int64)
            if not len(own):
                continue
            count = int(split.frame_counts[video])
            curves = similarity_curves(
                QueryVectors(
                    None if queries is None else queries[torch.from_numpy(own).to(queries.device)].cpu(),
                    split.sentences(own) if self._weights.encoder else None,
                ),
                VideoRows(
                    frames=None if encoding is None else encoding.frame_tokens[row, :count].cpu(),
                    features=split.frames(video).float() if self._weights.encoder else None,
                ),
                self._weights,
            )
            if not curves.isfinite().all():
                continue  # the scores are not finite either, which is reported with them
            for query, curve in zip(own.tolist(), curves.numpy(), strict=True):
                found = to_shares(find_moment(curve, self._network), count)
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


def encoder_curves(split: Split, queries: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the curve (L,) of the encoder alone of each query, given by number in ascending order, along its own video.

    The features must be of one encoder.
    """
    videos, places = np.unique(split.owner[queries], return_index=True)
    for video, own in zip(videos.tolist(), np.split(queries, places[1:]), strict=True):
        rows = VideoRows(features=split.frames(video).float())
        yield from similarity_curves(QueryVectors(encoder=split.sentences(own)), rows, ENCODER_ALONE).numpy()

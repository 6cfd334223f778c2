"""Scores of all queries of a split against all its videos, and their evaluation.

Shapes: Q queries, B or V videos, L tokens of a video, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dreamprvr_ray.data.batches import collate_queries, collate_videos
from dreamprvr_ray.data.shards import Split
from dreamprvr_ray.device import autocast
from dreamprvr_ray.distributed import Workers
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.encoder import Encoder
from dreamprvr_ray.evaluation.metrics import Retrieval
from dreamprvr_ray.evaluation.ranks import BestVideos, Ranks, best_videos, exact_ranks, rank_blocks, summarise
from dreamprvr_ray.evaluation.score_blocks import QUERY_BLOCK, ScoreBlock, blocks_of_like_length
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.model.dreamprvr import DreamPRVR, VideoEncoding
from dreamprvr_ray.model.scoring import fused_scores

KEPT_SCORES = 2**26  # kept at most, on each worker, to rank without computing them a second time

# Receives the numbers (B,) of videos, the embeddings (Q, D) of all queries, and the encoding of the videos.
OnEncoded = Callable[[np.ndarray, Tensor, VideoEncoding], None]


class ScoresNotFinite(UserError):
    """Some scores of a split are NaN or infinite, so that ranks would have no meaning."""


@dataclass(frozen=True)
class SplitRanks:
    """How the queries of a split rank its videos.

    Attributes:
        ranks: Of their right videos.
        is_own_first: (Q,) bool, whether no other video scores as high as the query's own.
        best: The videos with the highest scores; None if they were not asked for.
    """

    ranks: Ranks
    is_own_first: Tensor
    best: BestVideos | None = None


@torch.no_grad()
def evaluate(model: DreamPRVR, split: Split, weights: ScoreWeights, workers: Workers | None = None) -> Retrieval:
    """Evaluate the retrieval of all queries of a split among all its videos, scored as by `score_split`.

    Every worker gets the whole result. Raises `ScoresNotFinite` as `score_split`.
    """
    return summarise(rank_split(model, split, weights, workers).ranks, len(split), split.moment_fractions)


@torch.no_grad()
def rank_split(
    model: DreamPRVR,
    split: Split,
    weights: ScoreWeights,
    workers: Workers | None = None,
    on_encoded: OnEncoded | None = None,
    best: int = 0,
) -> SplitRanks:
    """Rank all videos of a split for each of its queries by the scores of `score_split`, on every worker.

    No worker holds more than `KEPT_SCORES` scores: if its own are more, its videos are encoded and scored twice.
    `on_encoded` receives each block of this worker's videos. If there is one worker, the `best` videos of each query
    are a part of the result.

    Raises `ScoresNotFinite` as `score_split`.
    """
    scores = SplitScores(model, weights, *_whole(split), workers, on_encoded)
    ranks = rank_scores(scores, scores.count, split, scores.device, scores.workers, best)
    scores.check_finite()
    return ranks


def rank_scores(
    scores: Iterable[ScoreBlock],
    count: int,
    split: Split,
    device: torch.device,
    workers: Workers | None = None,
    best: int = 0,
) -> SplitRanks:
    """Rank by the scores of all queries of a split with this worker's part of its videos, `count` of them.

    Iterated again, `scores` computes them again; they are kept if they are at most `KEPT_SCORES`. `best` is that of
    `rank_split`.
    """
    queries = len(split.owner)
    if count <= KEPT_SCORES:
        scores = [block.computed(queries) for block in scores]
    ranks = rank_blocks(scores, *_right_videos(split, device), workers)
    own = ranks
    if split.right_videos is not None:
        own = rank_blocks(scores, torch.from_numpy(np.array(split.owner)).to(device), workers=workers)
    return SplitRanks(ranks, own.rank == 1, best_videos(scores, queries, best, device) if best else None)


def rank_queries(scores: Tensor, split: Split) -> Ranks:
    """Rank the right videos of each query of a split among its scores (Q, V), as `exact_ranks` does."""
    return exact_ranks(scores, *_right_videos(split, scores.device))


def _right_videos(split: Split, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the right videos of a split's queries and their offsets, as `rank_blocks` takes them."""
    if split.right_videos is None:
        return torch.from_numpy(np.array(split.owner)).to(device), None
    offsets, right = (torch.from_numpy(numbers).to(device) for numbers in split.right_videos)
    return right, offsets


@torch.no_grad()
def score_split(
    model: DreamPRVR,
    split: Split,
    weights: ScoreWeights,
    workers: Workers | None = None,
    on_encoded: OnEncoded | None = None,
) -> Tensor:
    """Return the fused scores (Q, V) of all queries and videos of a split, on the model's device and on every worker.

    Where the encoder has a weight, its own score is a part of them; the features must then be of one encoder.

    The workers divide the videos and the queries among them. The model's training mode is restored afterwards.
    `on_encoded` receives each block of this worker's videos.

    Scores are computed in float32, whatever the precision of the training: autocast is off. Raises `ScoresNotFinite`
    if any score is NaN or infinite.
    """
    scores = SplitScores(model, weights, *_whole(split), workers, on_encoded)
    counts = [len(part) for part in scores.workers.divide(np.arange(len(split)))]
    own = scores.computed()
    scores.check_finite()
    return scores.workers.gather_for_same_loss(own.T.contiguous(), counts).T


@torch.no_grad()
def score_between(
    model: DreamPRVR,
    queries: Split,
    query_numbers: np.ndarray,
    videos: Split,
    video_numbers: np.ndarray,
    weights: ScoreWeights,
) -> Tensor:
    """Return the fused scores (query_numbers, video_numbers) of queries of one split and videos of another.

    They are those that `score_split` would give if the videos were of the queries' split.
    """
    parts = SplitPart(queries, query_numbers), SplitPart(videos, video_numbers)
    return SplitScores(model, weights, *parts).computed()


class SplitPart(NamedTuple):
    """Some of the queries or videos of a split, by their numbers in it."""

    split: Split
    numbers: np.ndarray


class SplitScores:
    """The scores of queries with this worker's part of videos; each iteration computes them again.

    They are those of `score_split`, in blocks of videos. The features are of one encoder if that has a weight.

    Attributes:
        workers: All workers; each must construct the same scores, with the same queries and videos.
        device: The model's.
        count: Number of scores of this worker.
    """

    def __init__(
        self,
        model: DreamPRVR,
        weights: ScoreWeights,
        queries: SplitPart,
        videos: SplitPart,
        workers: Workers | None = None,
        on_encoded: OnEncoded | None = None,
    ) -> None:
        self.workers = workers or Workers()
        self.device = next(model.parameters()).device
        self._model, self._weights, self._on_encoded = model, weights, on_encoded
        self._split, self._videos = videos.split, self.workers.divide(videos.numbers)[self.workers.rank]
        self.count = len(queries.numbers) * len(self._videos)
        self._queries = self._encode_queries(queries)
        self._encoder: Encoder | None = None
        if weights.encoder:
            self._encoder = Encoder(videos.split, self.device, queries.split.sentences(queries.numbers))
        self._not_finite = torch.zeros(len(queries.numbers), dtype=torch.bool, device=self.device)

    def __iter__(self) -> Iterator[ScoreBlock]:
        for block in self._blocks():
            yield self._encode(block)

    def computed(self) -> Tensor:
        """Return all scores of this worker, (Q, its videos)."""
        scores = torch.zeros(len(self._queries), len(self._videos), device=self.device)
        for columns in self._blocks():
            block = self._encode(columns)
            for part in block.parts(len(scores)):
                scores[part, torch.from_numpy(columns).to(self.device)] = block.score(part)
        return scores

    def check_finite(self) -> None:
        """Raise `ScoresNotFinite`, on every worker, if any score so far was NaN or infinite."""
        count = int((self.workers.sum_for_same_loss(self._not_finite.long()) > 0).sum())
        if count:
            queries = len(self._not_finite)
            raise ScoresNotFinite(
                f"split {self._split.name}: {count} of {queries} queries have scores that are not finite"
            )

    def _blocks(self) -> Iterator[np.ndarray]:
        return blocks_of_like_length(self._split.frame_counts[self._videos])

    def _encode_queries(self, queries: SplitPart) -> Tensor:
        """Return the embeddings (Q, D) of all queries; the workers divide them among them."""
        parts = self.workers.divide(queries.numbers)
        embeddings = []
        with self._evaluating():
            for block in _blocks(parts[self.workers.rank], QUERY_BLOCK):
                with torch.autocast("cpu", enabled=False):  # autocast's concatenation rejects the shards' float16 rows
                    tokens, mask = collate_queries(queries.split, block)
                tokens, mask = tokens.to(self.device), mask.to(self.device)
                embeddings.append(self._model.encode_queries(tokens, mask).float())
        size = self._model.config.hidden_size
        own = torch.cat(embeddings) if embeddings else torch.zeros(0, size, device=self.device)
        return self.workers.gather_for_same_loss(own, [len(part) for part in parts])

    def _encode(self, block: np.ndarray) -> ScoreBlock:
        """Encode a block of this worker's videos, and return what scores them."""
        videos = self._videos[block]
        with self._evaluating():
            clips, frames, mask = collate_videos(self._split, videos, self._model.trimmed)
            encoding = self._model.encode_videos(clips.to(self.device), frames.to(self.device), mask.to(self.device))
        if self._on_encoded is not None:
            self._on_encoded(videos, self._queries, encoding)
        rows = None if self._encoder is None else self._encoder.rows(videos)[0]
        return ScoreBlock(torch.from_numpy(videos).to(self.device), partial(self._score, encoding, rows))

    def _score(
        self, encoding: VideoEncoding, rows: Sequence[tuple[Tensor, Tensor | None]] | None, queries: slice
    ) -> Tensor:
        """Return the scores (q, B) of some of the queries with a block of videos."""
        with self._evaluating():
            scores = fused_scores(self._queries[queries], encoding, self._weights.clip)
        self._not_finite[queries] |= (~scores.isfinite()).any(1)
        if self._encoder is None or rows is None:
            return scores
        return self._weights.combine(scores, self._encoder.score(rows, queries))

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Compute in float32 and without dropout while the block runs."""
        training = self._model.training
        self._model.eval()
        try:
            with torch.no_grad(), autocast(self.device, "fp32"):
                yield
        finally:
            self._model.train(training)


def _whole(split: Split) -> tuple[SplitPart, SplitPart]:
    return SplitPart(split, np.arange(len(split.owner))), SplitPart(split, np.arange(len(split)))


def _blocks(indices: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (indices[start : start + size] for start in range(0, len(indices), size))

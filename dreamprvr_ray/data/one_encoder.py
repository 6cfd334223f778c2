"""Whether frames and queries come from one encoder, so that their embeddings can be compared. Imports no torch.

Features of unrelated encoders may have one size too (I3D and RoBERTa: 1,024). What tells them apart is that a sentence
of one encoder resembles the video that it describes more than other videos.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dreamprvr_ray.data.shard_files import MappedShard

SPLITS = ("train", "val", "test")  # the first of them that exists is measured; test only if there is nothing else
VIDEOS, QUERIES = 201, 1000  # of the sample, at most
LEAST = 0.6  # the area of features of one encoder; that of unrelated ones is 0.5, give or take a few hundredths
_SEED = 0


def encoder_area(shards: Sequence[MappedShard]) -> float | None:
    """Return how often a sentence resembles its own video more than another one; a tie counts as half.

    This is the area under the ROC curve of own against other videos, over a sample of a split. Compared are the means
    of two cosines of the sentence: with the video's best frame, and with the mean of its frames. None if rows of videos
    and queries differ in size, or if there is no other video.
    """
    videos = [(shard, row) for shard in shards for row in range(shard.video_count)]
    if len(videos) < 2 or shards[0].frames.shape[1] != shards[0].tokens.shape[1]:
        return None
    random = np.random.default_rng(_SEED)
    sample = random.permutation(len(videos))[:VIDEOS]
    column_of = {int(video): column for column, video in enumerate(sample)}
    sentences, columns, first = [], [], 0
    for shard in shards:
        own = [column_of.get(first + video, -1) for video in shard.owner.tolist()]
        rows = np.flatnonzero(np.array(own) >= 0)
        sentences.append(shard.sentences(rows))
        columns += [own[row] for row in rows.tolist()]
        first += shard.video_count
    kept = random.permutation(len(columns))[:QUERIES]
    queries, owner = np.concatenate(sentences)[kept], np.array(columns)[kept]
    scores = np.stack([_encoder_scores(queries, *videos[video]) for video in sample.tolist()], axis=1)
    place = np.arange(len(owner))
    own_score = scores[place, owner][:, None]
    wins = (own_score > scores) + 0.5 * (own_score == scores)
    wins[place, owner] = 0
    return float(wins.sum() / (len(owner) * (len(sample) - 1)))


def _encoder_scores(queries: np.ndarray, shard: MappedShard, video: int) -> np.ndarray:
    """Return the encoder's scores of queries (q, D) and a video, (q,) float32."""
    frames = shard.frames[shard.frame_offsets[video] : shard.frame_offsets[video + 1]].astype(np.float32)
    mean = frames.mean(0)
    scores: np.ndarray = ((queries @ frames.T).max(1) + queries @ (mean / max(float(np.linalg.norm(mean)), 1e-12))) / 2
    return scores

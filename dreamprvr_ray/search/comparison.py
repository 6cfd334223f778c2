"""The difference between two candidates' test SumR, with a bootstrap interval."""

from __future__ import annotations

import numpy as np

from dreamprvr_ray.evaluation.metrics import RECALL_RANKS
from dreamprvr_ray.search.final_result import Comparison

RESAMPLES = 10_000
CONFIDENCE = 0.95
_CHUNK = 1000  # resamples drawn at a time, which bounds the memory


def compare_on_test(
    better: str, ranks: np.ndarray, than: str, other_ranks: np.ndarray, owner: np.ndarray
) -> Comparison:
    """Estimate the difference in SumR between two candidates with a paired bootstrap over videos and seeds.

    `ranks` and `other_ranks` (seeds, Q) hold the rank of each query's own video; `owner` (Q,) is that video's index.
    A resample draws videos together with all their queries, since the queries of one video are not independent, and
    seeds. Both candidates get the same draw.
    """
    random = np.random.default_rng(0)
    hits = [(ranks <= k).astype(float) - (other_ranks <= k) for k in RECALL_RANKS]
    gains = 100.0 * np.sum(hits, axis=0)  # (seeds, Q)
    videos = int(owner.max()) + 1
    gains_by_video = np.stack([np.bincount(owner, weights=row, minlength=videos) for row in gains])  # (seeds, V)
    queries = np.bincount(owner, minlength=videos)
    seeds = len(gains)
    differences = []
    for _ in range(RESAMPLES // _CHUNK):
        # How often each video and each seed is drawn in each resample.
        video_counts = random.multinomial(videos, np.full(videos, 1 / videos), _CHUNK)
        seed_counts = random.multinomial(seeds, np.full(seeds, 1 / seeds), _CHUNK)
        differences.append((video_counts @ gains_by_video.T * seed_counts).sum(1) / seeds / (video_counts @ queries))
    tail = 50 * (1 - CONFIDENCE)  # percent
    low, high = np.percentile(np.concatenate(differences), [tail, 100 - tail])
    return Comparison(better, than, float(gains.mean()), (float(low), float(high)), CONFIDENCE, RESAMPLES)

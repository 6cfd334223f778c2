"""How far two candidates are apart on test, with an interval."""

from __future__ import annotations

import numpy as np

from dreamprvr_ray.evaluation.retrieval import RECALL_RANKS
from dreamprvr_ray.search.results import Comparison

RESAMPLES = 10_000
CONFIDENCE = 0.95


def compared(better: str, ranks: np.ndarray, than: str, other_ranks: np.ndarray, owner: np.ndarray) -> Comparison:
    """A paired bootstrap of the difference in SumR: ranks are (seeds, Q), `owner` (Q,) each query's video.

    A resample draws videos with all their queries, since queries of one video are not independent, and seeds; both sides get the same.
    """
    random = np.random.default_rng(0)
    hits = [(ranks <= k).astype(float) - (other_ranks <= k) for k in RECALL_RANKS]
    gained = 100.0 * np.sum(hits, axis=0)  # (seeds, Q)
    videos = int(owner.max()) + 1
    by_video = np.stack([np.bincount(owner, weights=row, minlength=videos) for row in gained])  # (seeds, V)
    queries = np.bincount(owner, minlength=videos)
    seeds = len(gained)
    differences = []
    for _ in range(RESAMPLES // 1000):
        drawn = random.multinomial(videos, np.full(videos, 1 / videos), 1000)  # how often each video is drawn
        drawn_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), 1000)
        differences.append((drawn @ by_video.T * drawn_seeds).sum(1) / seeds / (drawn @ queries))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.concatenate(differences), [tail, 100 - tail])
    return Comparison(better, than, float(gained.mean()), (float(low), float(high)))

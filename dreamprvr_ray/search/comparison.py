"""The difference between two candidates' test SumR, with an interval for what chance contributes to it."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import stdtrit

from dreamprvr_ray.evaluation.metrics import RECALL_RANKS
from dreamprvr_ray.search.final_result import Comparison

RESAMPLES = 10_000
CONFIDENCE = 0.95
_CHUNK = 1000  # resamples drawn at a time, which bounds the memory


def compare_on_test(
    better: str,
    ranks: np.ndarray,
    than: str,
    other_ranks: np.ndarray,
    owner: np.ndarray,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Estimate the difference in SumR between two candidates, with an interval for the choice of videos and of seeds.

    `ranks` and `other_ranks` (seeds, Q) hold the rank of each query's own video; `owner` (Q,) is that video's index.
    Row i of both was trained with the same seed.

    Videos: a paired bootstrap of the mean over the seeds. A resample draws videos together with all their queries,
    since the queries of one video are not independent, and both candidates get the same draw. Seeds: Student's t for
    the mean of their differences. Resampling the seeds as well would claim too much, because two or three values, drawn
    again, vary far less than new ones. The squares of both distances from the difference add up (the "method of
    variance estimates recovery", Zou and Donner 2008). A single seed says nothing about others: its interval covers
    the choice of videos only.
    """
    hits = [(ranks <= k).astype(float) - (other_ranks <= k) for k in RECALL_RANKS]
    gains = 100.0 * np.sum(hits, axis=0)  # (seeds, Q)
    difference, seeds = float(gains.mean()), len(gains)
    low, high = _video_interval(gains.mean(0), owner, resamples)
    tail = (1 - CONFIDENCE) / 2
    spread = 0.0
    if seeds > 1:
        deviation = float(gains.mean(1).std(ddof=1))
        spread = float(stdtrit(seeds - 1, 1 - tail)) * deviation / math.sqrt(seeds)
    interval = difference - math.hypot(difference - low, spread), difference + math.hypot(high - difference, spread)
    return Comparison(better, than, difference, interval, CONFIDENCE, resamples, seeds)


def _video_interval(gains: np.ndarray, owner: np.ndarray, resamples: int) -> tuple[float, float]:
    """Return the interval of the mean gain (Q,) over resampled videos. The same videos give the same interval."""
    random = np.random.default_rng(0)
    videos = int(owner.max()) + 1
    gains_by_video = np.bincount(owner, weights=gains, minlength=videos)  # (V,)
    queries = np.bincount(owner, minlength=videos)
    means = []
    for first in range(0, resamples, _CHUNK):
        # How often each video is drawn in each resample.
        counts = random.multinomial(videos, np.full(videos, 1 / videos), min(_CHUNK, resamples - first))
        means.append((counts @ gains_by_video) / (counts @ queries))
    tail = 50 * (1 - CONFIDENCE)  # percent
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return float(low), float(high)

"""The difference between two candidates' test SumR, with an interval for what chance contributes to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from dreamprvr_ray.evaluation.metrics import RECALL_RANKS
from dreamprvr_ray.search.final_result import Comparison

RESAMPLES = 10_000
CONFIDENCE = 0.95
_CHUNK = 1000  # resamples drawn at a time, which bounds the memory


@dataclass(frozen=True)
class RanksOnTest:
    """What two candidates are compared by on the test split of one collection.

    Attributes:
        better, than: (seeds, Q): the rank of each query's own video. Row i of both was trained with the same seed.
        owner: (Q,): that video's index.
    """

    better: np.ndarray
    than: np.ndarray
    owner: np.ndarray


def compare_on_test(
    better: str,
    ranks: np.ndarray,
    than: str,
    other_ranks: np.ndarray,
    owner: np.ndarray,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Return the comparison of two candidates on one collection, as `compare_on_tests`."""
    return compare_on_tests(better, than, [RanksOnTest(ranks, other_ranks, owner)], resamples)


def compare_on_tests(better: str, than: str, tested: Sequence[RanksOnTest], resamples: int = RESAMPLES) -> Comparison:
    """Estimate the difference in SumR between two candidates, with an interval for the choice of videos and of seeds.

    On several collections it is the mean of their differences.

    Videos: a paired bootstrap of the mean over the seeds. A resample draws videos together with all their queries,
    since the queries of one video are not independent, and both candidates get the same draw. Each collection has its
    own draws. Seeds: Student's t for the mean of their differences. Resampling the seeds as well would claim too much,
    because two or three values, drawn again, vary far less than new ones. The squares of both distances from the
    difference add up (the "method of variance estimates recovery", Zou and Donner 2008). A single seed says nothing
    about others: its interval covers the choice of videos only.
    """
    gains = [_gains(each) for each in tested]  # (seeds, Q) of each collection
    by_seed = np.mean([each.mean(1) for each in gains], axis=0)  # (seeds,)
    difference, seeds = float(np.mean([each.mean() for each in gains])), len(by_seed)
    draws = [
        _resampled_means(own.mean(0), each.owner, resamples, number)
        for number, (own, each) in enumerate(zip(gains, tested, strict=True))
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = map(float, np.percentile(np.mean(draws, axis=0), [50 * (1 - CONFIDENCE), 100 - 50 * (1 - CONFIDENCE)]))
    spread = 0.0
    if seeds > 1:
        deviation = float(by_seed.std(ddof=1))
        spread = float(stdtrit(seeds - 1, 1 - tail)) * deviation / math.sqrt(seeds)
    interval = difference - math.hypot(difference - low, spread), difference + math.hypot(high - difference, spread)
    return Comparison(better, than, difference, interval, CONFIDENCE, resamples, seeds)


def _gains(tested: RanksOnTest) -> np.ndarray:
    """Return what each query contributes to the difference in SumR for each seed (seeds, Q)."""
    hits = [(tested.better <= k).astype(float) - (tested.than <= k) for k in RECALL_RANKS]
    gains: np.ndarray = 100.0 * np.sum(hits, axis=0)
    return gains


def _resampled_means(gains: np.ndarray, owner: np.ndarray, resamples: int, number: int) -> np.ndarray:
    """Return the mean gain (Q,) of each resample of videos (resamples,). The same videos and number give the same."""
    random = np.random.default_rng(number)
    videos = int(owner.max()) + 1
    gains_by_video = np.bincount(owner, weights=gains, minlength=videos)  # (V,)
    queries = np.bincount(owner, minlength=videos)
    means = []
    for first in range(0, resamples, _CHUNK):
        # How often each video is drawn in each resample.
        counts = random.multinomial(videos, np.full(videos, 1 / videos), min(_CHUNK, resamples - first))
        means.append((counts @ gains_by_video) / (counts @ queries))
    return np.concatenate(means)

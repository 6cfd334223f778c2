"""python -m benchmarks.interval_coverage --json: how often the interval of a comparison contains the true difference.

Two settings that are equally good are trained with the same seeds and tested on the same videos, over and over, with
new seeds and new videos each time. The true difference is 0, and a 95% interval should contain it in 95 of 100 cases.
Before, the interval was a bootstrap over videos and seeds, which `resampled_interval` still computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.evaluation.metrics import RECALL_RANKS
from dreamprvr_ray.search.comparison import CONFIDENCE, compare_on_test

SEEDS = (1, 2, 3, 5)
SPREADS = (0.0, 0.1, 0.3)  # how far a seed moves all queries; ranks are exponentials, so 0.1 is a rank of 10 to 11
QUERIES_PER_VIDEO = 2
Interval = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[float, float]]


@dataclass(frozen=True)
class Coverage:
    """The share of intervals that contain the true difference, and their mean width in SumR."""

    covered: float
    width: float


def simulate_ranks(
    random: np.random.Generator, seeds: int, videos: int, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ranks of the queries' videos, (seeds, Q), for two settings that are equally good."""
    queries = videos * QUERIES_PER_VIDEO
    difficulty = random.normal(2.0, 1.5, queries)

    def setting() -> np.ndarray:
        by_video = random.normal(0.0, 0.3, videos).repeat(QUERIES_PER_VIDEO)  # what suits the setting
        by_seed = random.normal(0.0, spread, (seeds, 1))
        by_training = random.normal(0.0, 0.4, (seeds, queries))
        return np.ceil(np.exp(difficulty + by_video + by_seed + by_training))

    return setting(), setting()


def own_interval(ranks: np.ndarray, other: np.ndarray, owner: np.ndarray) -> tuple[float, float]:
    """Return the interval of `compare_on_test`, from a tenth of its resamples."""
    return compare_on_test("one", ranks, "other", other, owner, resamples=1000).interval


def resampled_interval(ranks: np.ndarray, other: np.ndarray, owner: np.ndarray) -> tuple[float, float]:
    """Return the interval of a bootstrap over videos and seeds."""
    random, videos, seeds = np.random.default_rng(0), int(owner.max()) + 1, len(ranks)
    gains = 100.0 * np.sum([(ranks <= k).astype(float) - (other <= k) for k in RECALL_RANKS], axis=0)
    by_video = np.stack([np.bincount(owner, weights=row, minlength=videos) for row in gains])
    video_counts = random.multinomial(videos, np.full(videos, 1 / videos), 1000)
    seed_counts = random.multinomial(seeds, np.full(seeds, 1 / seeds), 1000)
    means = (video_counts @ by_video.T * seed_counts).sum(1) / seeds / (video_counts @ np.bincount(owner))
    low, high = np.percentile(means, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return float(low), float(high)


def coverage(interval: Interval, seeds: int, videos: int, spread: float, repeats: int) -> Coverage:
    """Return how often an interval contains 0, the true difference."""
    random, owner = np.random.default_rng(0), np.arange(videos).repeat(QUERIES_PER_VIDEO)
    covered, widths = 0, []
    for _ in range(repeats):
        low, high = interval(*simulate_ranks(random, seeds, videos, spread), owner)
        covered += low <= 0 <= high
        widths.append(high - low)
    return Coverage(covered / repeats, float(np.mean(widths)))


def main(arguments: list[str]) -> None:
    parser = Parser(
        "interval_coverage", "How often the interval of a comparison contains the true difference.", "benchmarks"
    )
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=1000)
    options = parser.parse_args(arguments)
    results = []
    for spread in SPREADS:
        for seeds in SEEDS:
            row: dict[str, float] = {"spread": spread, "seeds": seeds}
            for name, interval in (("before", resampled_interval), ("now", own_interval)):
                found = coverage(interval, seeds, options.videos, spread, options.repeats)
                row |= {f"{name}_covered": found.covered, f"{name}_width": found.width}
            results.append(row)
            print(
                f"seeds differ by {spread:.1f}, {seeds} of them:"
                f" before {row['before_covered']:.1%} covered, width {row['before_width']:.1f};"
                f" now {row['now_covered']:.1%}, width {row['now_width']:.1f}",
                flush=True,
            )
    if options.json:
        print_json({"videos": options.videos, "repeats": options.repeats, "results": results})


if __name__ == "__main__":
    run(main)

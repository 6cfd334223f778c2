"""python -m benchmarks.ranking: exact ranks at the size of TVR's test split, against a sort per query in Python.

Random embeddings of 10,895 queries are scored against random tokens of 2,179 videos (32 clips and 128 frames each), a block of videos at a
time as `evaluate` does, and ranked by counting. The plain way sorts each query's videos by score in Python and looks for its own by name.
"""

from __future__ import annotations

import os
import statistics
import time
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.sides import Side, peak_memory
from dreamprvr_ray import retrieval
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.config import CLIPS, FRAMES
from dreamprvr_ray.model.dreamprvr import VideoEncoding
from dreamprvr_ray.retrieval import exact_ranks


class Ranking:
    """A split's scores, and both ways to rank them."""

    def __init__(self, queries: int, videos: int, size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        embeddings = torch.randn(queries, size, generator=generator)
        self._own = torch.randint(videos, (queries,), generator=generator).sort().values
        self._names = [f"video {number}" for number in range(videos)]
        began = time.perf_counter()
        columns = []
        for first, last in pairwise([*range(0, videos, retrieval.VIDEO_BLOCK), videos]):
            clips, frames = torch.randn(last - first, CLIPS + FRAMES, size, generator=generator).split([CLIPS, FRAMES], 1)
            block = VideoEncoding(clips, frames, None, None, None, None, None)
            columns.append(retrieval.fused_scores(embeddings, block, 0.5))
        self._scores = torch.cat(columns, 1)
        self._scored = time.perf_counter() - began

    def __call__(self, way: str) -> tuple[float, list[int], float, float]:
        """Seconds that ranking takes, the ranks, the seconds that scoring took, and the peak memory in GiB."""
        began = time.perf_counter()
        ranks = exact_ranks(self._scores, self._own).rank.tolist() if way == "fast" else self._sorted(self._scores)
        return time.perf_counter() - began, ranks, self._scored, peak_memory()

    def _sorted(self, scores: Tensor) -> list[int]:
        ranks = []
        for row, own in zip(scores.tolist(), self._own.tolist(), strict=True):
            order = sorted(range(len(row)), key=row.__getitem__, reverse=True)
            ranks.append([self._names[video] for video in order].index(self._names[own]) + 1)
        return ranks


def main(arguments: list[str]) -> None:
    parser = Parser("benchmarks.ranking", "The speed of scoring and ranking a split.")
    parser.add_argument("--queries", type=int, default=10_895)
    parser.add_argument("--videos", type=int, default=2_179)
    parser.add_argument("--hidden-size", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    sides = {way: Side(options.threads, Ranking, options.queries, options.videos, options.hidden_size) for way in ("fast", "plain")}
    taken: dict[str, list[float]] = {way: [] for way in sides}
    ranks, memory = {}, {}
    for _ in range(options.rounds):
        for way, side in sides.items():
            seconds, ranks[way], scored, memory[way] = side(way)
            taken[way].append(seconds)
        print(", ".join(f"{way} {1000 * each[-1]:.0f} ms" for way, each in taken.items()), flush=True)
    for side in sides.values():
        side.close()
    assert ranks["fast"] == ranks["plain"], "the ranks differ"
    results = {
        "queries": options.queries,
        "videos": options.videos,
        "ms": {way: round(1000 * statistics.median(each), 1) for way, each in taken.items()},
        "scoring_seconds": round(scored, 2),
        "peak_gib": {way: round(gib, 2) for way, gib in memory.items()},
        "ratio": round(statistics.median(plain / fast for fast, plain in zip(taken["fast"], taken["plain"], strict=True)), 1),
    }
    print(f"scoring took {scored:.1f} s; scoring and ranking held at most {results['peak_gib']['fast']} GiB")
    print(f"counting is {results['ratio']:.0f} times as fast as sorting (median of {options.rounds} rounds); the ranks are the same")
    if options.json:
        print_json(results)


if __name__ == "__main__":
    run(main)

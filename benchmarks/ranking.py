"""python -m benchmarks.ranking: exact ranks at the size of TVR's test split, against a sort per query in Python.

Random scores of 10,895 queries and 2,179 videos are ranked by counting, and the plain way: sort each query's videos by score in Python and
look for its own by name. Then random embeddings are scored against random tokens of as many videos (32 clips and 128 frames each), a block of
videos at a time as `evaluate` does, and ranked: the peak memory is of all that.
"""

from __future__ import annotations

import os
import statistics
import time
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.sides import Side, peak_memory
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.config import CLIPS, FRAMES
from dreamprvr_ray.evaluation import retrieval
from dreamprvr_ray.evaluation.retrieval import exact_ranks
from dreamprvr_ray.model.dreamprvr import VideoEncoding


class Ranking:
    """A split's scores, and both ways to rank them."""

    def __init__(self, queries: int, videos: int) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._scores = torch.randn(queries, videos, generator=self._generator)
        self._own = torch.randint(videos, (queries,), generator=self._generator)
        self._names = [f"video {number}" for number in range(videos)]

    def __call__(self, what: str, size: int) -> tuple[float, list[int], float]:
        """Ranks the `fast` or the `plain` way, or scores embeddings of `size`: the seconds it takes, the ranks, and the peak memory in GiB."""
        if what == "score":
            taken, self._scores = self._scored(size)
            return taken, exact_ranks(self._scores, self._own).rank.tolist(), peak_memory()
        began = time.perf_counter()
        ranks = exact_ranks(self._scores, self._own).rank.tolist() if what == "fast" else self._sorted(self._scores)
        return time.perf_counter() - began, ranks, peak_memory()

    def _scored(self, size: int) -> tuple[float, Tensor]:
        videos, columns, taken = len(self._names), [], 0.0
        embeddings = torch.randn(len(self._own), size, generator=self._generator)
        for first, last in pairwise([*range(0, videos, retrieval.VIDEO_BLOCK), videos]):
            clips, frames = torch.randn(last - first, CLIPS + FRAMES, size, generator=self._generator).split(
                [CLIPS, FRAMES], 1
            )
            began = time.perf_counter()
            columns.append(
                retrieval.fused_scores(embeddings, VideoEncoding(clips, frames, None, None, None, None, None), 0.5)
            )
            taken += time.perf_counter() - began
        return taken, torch.cat(columns, 1)

    def _sorted(self, scores: Tensor) -> list[int]:
        ranks = []
        for row, own in zip(scores.tolist(), self._own.tolist(), strict=True):
            order = sorted(range(len(row)), key=row.__getitem__, reverse=True)
            ranks.append([self._names[video] for video in order].index(self._names[own]) + 1)
        return ranks


def main(arguments: list[str]) -> None:
    parser = Parser("ranking", "The speed of scoring and ranking a split.", package="benchmarks")
    parser.add_argument("--queries", type=int, default=10_895)
    parser.add_argument("--videos", type=int, default=2_179)
    parser.add_argument("--hidden-size", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    sides = {way: Side(options.threads, Ranking, options.queries, options.videos) for way in ("fast", "plain")}
    taken: dict[str, list[float]] = {way: [] for way in sides}
    ranks = {}
    for _ in range(options.rounds):
        for way, side in sides.items():
            seconds, ranks[way], _ = side(way, options.hidden_size)
            taken[way].append(seconds)
        print(", ".join(f"{way} {1000 * each[-1]:.0f} ms" for way, each in taken.items()), flush=True)
    scored, _, memory = sides["fast"]("score", options.hidden_size)
    for side in sides.values():
        side.close()
    assert ranks["fast"] == ranks["plain"], "the ranks differ"
    results = {
        "queries": options.queries,
        "videos": options.videos,
        "ms": {way: round(1000 * statistics.median(each), 1) for way, each in taken.items()},
        "scoring_seconds": round(scored, 2),
        "peak_gib": round(memory, 2),
        "ratio": round(
            statistics.median(plain / fast for fast, plain in zip(taken["fast"], taken["plain"], strict=True)), 1
        ),
    }
    print(f"scoring took {scored:.1f} s; scoring and ranking held at most {memory:.2f} GiB")
    print(
        f"counting is {results['ratio']:.0f} times as fast as sorting (median of {options.rounds} rounds); the ranks are the same"
    )
    if options.json:
        print_json(results)


if __name__ == "__main__":
    run(main)

"""Time exact ranking at the size of TVR's test split, and compare it with a sort per query in Python.

    python -m benchmarks.ranking

Random scores of 10,895 queries and 2,179 videos are ranked by counting, and in the plain way: sort each query's videos
by score in Python and find the correct video by name. Then random embeddings are scored against random tokens of as
many videos (32 clips and 128 frames each), one block of videos at a time as in `evaluate`, and ranked. The peak memory
covers all of that.
"""

from __future__ import annotations

import os
import statistics
import time
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.measured_process import MeasuredProcess, peak_memory
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.config import CLIPS, FRAMES
from dreamprvr_ray.evaluation import retrieval
from dreamprvr_ray.evaluation.retrieval import exact_ranks
from dreamprvr_ray.model.dreamprvr import VideoEncoding


class Ranking:
    """The scores of a split, and two methods to rank them."""

    def __init__(self, queries: int, videos: int) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._scores = torch.randn(queries, videos, generator=self._generator)
        self._own = torch.randint(videos, (queries,), generator=self._generator)
        self._names = [f"video {number}" for number in range(videos)]

    def __call__(self, task: str, size: int) -> tuple[float, list[int], float]:
        """Rank with the `fast` or `plain` method, or `score` embeddings of `size`; return seconds, ranks, peak GiB."""
        if task == "score":
            taken, self._scores = self._score(size)
            return taken, exact_ranks(self._scores, self._own).rank.tolist(), peak_memory()
        began = time.perf_counter()
        ranks = (
            exact_ranks(self._scores, self._own).rank.tolist()
            if task == "fast"
            else self._rank_by_sorting(self._scores)
        )
        return time.perf_counter() - began, ranks, peak_memory()

    def _score(self, size: int) -> tuple[float, Tensor]:
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

    def _rank_by_sorting(self, scores: Tensor) -> list[int]:
        ranks = []
        for row, own in zip(scores.tolist(), self._own.tolist(), strict=True):
            order = sorted(range(len(row)), key=row.__getitem__, reverse=True)
            ranks.append([self._names[video] for video in order].index(self._names[own]) + 1)
        return ranks


def main(arguments: list[str]) -> None:
    parser = Parser("ranking", "Time scoring and ranking a split.", package="benchmarks")
    parser.add_argument("--queries", type=int, default=10_895)
    parser.add_argument("--videos", type=int, default=2_179)
    parser.add_argument("--hidden-size", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    processes = {
        method: MeasuredProcess(options.threads, Ranking, options.queries, options.videos)
        for method in ("fast", "plain")
    }
    taken: dict[str, list[float]] = {method: [] for method in processes}
    ranks = {}
    for _ in range(options.rounds):
        for method, process in processes.items():
            seconds, ranks[method], _ = process(method, options.hidden_size)
            taken[method].append(seconds)
        print(", ".join(f"{method} {1000 * rounds[-1]:.0f} ms" for method, rounds in taken.items()), flush=True)
    scored, _, memory = processes["fast"]("score", options.hidden_size)
    for process in processes.values():
        process.close()
    assert ranks["fast"] == ranks["plain"], "the ranks differ"
    results = {
        "queries": options.queries,
        "videos": options.videos,
        "ms": {method: round(1000 * statistics.median(rounds), 1) for method, rounds in taken.items()},
        "scoring_seconds": round(scored, 2),
        "peak_gib": round(memory, 2),
        "ratio": round(
            statistics.median(plain / fast for fast, plain in zip(taken["fast"], taken["plain"], strict=True)), 1
        ),
    }
    print(f"scoring: {scored:.1f} s; peak memory of scoring and ranking: {memory:.2f} GiB")
    print(
        f"counting is {results['ratio']:.0f} times as fast as sorting (median of {options.rounds} rounds);"
        " the ranks are identical"
    )
    if options.json:
        print_json(results)


if __name__ == "__main__":
    run(main)

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
from dreamprvr_ray.config_sections import CLIPS, FRAMES
from dreamprvr_ray.evaluation.ranks import exact_ranks
from dreamprvr_ray.evaluation.score_blocks import VIDEO_BLOCK
from dreamprvr_ray.model.dreamprvr import VideoEncoding
from dreamprvr_ray.model.scoring import fused_scores


class Ranking:
    """A split's random scores and the ways to rank them."""

    def __init__(self, queries: int, videos: int) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._scores = torch.randn(queries, videos, generator=self._generator)
        self._own = torch.randint(videos, (queries,), generator=self._generator)
        self._names = [f"video {number}" for number in range(videos)]

    def __call__(self, task: str, hidden_size: int) -> tuple[float, list[int], float]:
        """Run a task and return its seconds, the ranks and the peak memory in GiB.

        The task is "fast" or "plain" for a way of ranking, or "score" to compute the scores of random embeddings first;
        its seconds are then those of scoring.
        """
        if task == "score":
            seconds, self._scores = self._score(hidden_size)
            return seconds, exact_ranks(self._scores, self._own).rank.tolist(), peak_memory()
        start = time.perf_counter()
        ranks = exact_ranks(self._scores, self._own).rank.tolist() if task == "fast" else self._rank_by_sorting()
        return time.perf_counter() - start, ranks, peak_memory()

    def _score(self, hidden_size: int) -> tuple[float, Tensor]:
        videos, columns, seconds = len(self._names), [], 0.0
        embeddings = torch.randn(len(self._own), hidden_size, generator=self._generator)
        for first, last in pairwise([*range(0, videos, VIDEO_BLOCK), videos]):
            tokens = torch.randn(last - first, CLIPS + FRAMES, hidden_size, generator=self._generator)
            encoding = VideoEncoding(*tokens.split([CLIPS, FRAMES], 1), None, None, None, None, None, None)
            start = time.perf_counter()
            columns.append(fused_scores(embeddings, encoding, 0.5))
            seconds += time.perf_counter() - start
        return seconds, torch.cat(columns, 1)

    def _rank_by_sorting(self) -> list[int]:
        ranks = []
        for row, own in zip(self._scores.tolist(), self._own.tolist(), strict=True):
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
        way: MeasuredProcess(options.threads, Ranking, options.queries, options.videos) for way in ("fast", "plain")
    }
    seconds: dict[str, list[float]] = {way: [] for way in processes}
    ranks = {}
    for _ in range(options.rounds):
        for way, process in processes.items():
            taken, ranks[way], _ = process(way, options.hidden_size)
            seconds[way].append(taken)
        print(", ".join(f"{way} {1000 * rounds[-1]:.0f} ms" for way, rounds in seconds.items()), flush=True)
    scoring_seconds, _, memory = processes["fast"]("score", options.hidden_size)
    for process in processes.values():
        process.close()
    assert ranks["fast"] == ranks["plain"], "the ranks differ"
    ratios = [plain / fast for fast, plain in zip(seconds["fast"], seconds["plain"], strict=True)]
    results = {
        "queries": options.queries,
        "videos": options.videos,
        "ms": {way: round(1000 * statistics.median(rounds), 1) for way, rounds in seconds.items()},
        "scoring_seconds": round(scoring_seconds, 2),
        "peak_gib": round(memory, 2),
        "ratio": round(statistics.median(ratios), 1),
    }
    print(f"scoring took {scoring_seconds:.1f} s; the peak memory of scoring and ranking was {memory:.2f} GiB")
    print(
        f"counting is {results['ratio']:.0f} times as fast as sorting (median of {options.rounds} rounds);"
        " the ranks are the same"
    )
    if options.json:
        print_json(results)


if __name__ == "__main__":
    run(main)

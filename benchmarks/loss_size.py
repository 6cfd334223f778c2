"""Measure the time and memory of the loss alone, which every worker computes of the whole batch.

    python -m benchmarks.loss_size

Its largest tensors are matrices of queries by queries, so both grow with the square of the global batch. The forward
and backward pass of `losses.combine` run at two sizes, on random queries and scores; the differences of time and of
peak memory, per pair of queries, leave out what does not grow.
"""

from __future__ import annotations

import time

import torch

from benchmarks.measured_process import MeasuredProcess, peak_memory
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.training.losses import NegativeDraws, Scores, combine

QUERIES_PER_VIDEO = 5


class Loss:
    """The loss of random queries and scores, `hidden_size` entries a query."""

    def __init__(self, hidden_size: int) -> None:
        self._hidden_size = hidden_size
        self._config = load_experiment("tvr").loss

    def __call__(self, queries: int) -> tuple[float, float]:
        """Return seconds of CPU time, and the peak memory of the process so far in GiB."""
        random = torch.Generator().manual_seed(0)
        videos = queries // QUERIES_PER_VIDEO
        columns = torch.randn(4, queries, videos, generator=random, requires_grad=True)
        vectors = torch.randn(queries, self._hidden_size, generator=random, requires_grad=True)
        began = time.process_time()
        losses = combine(
            self._config,
            Scores(*columns.unbind()),
            vectors,
            torch.arange(videos).repeat_interleave(QUERIES_PER_VIDEO),
            NegativeDraws.draw(videos, queries, random),
            True,
            torch.zeros(()),
            torch.zeros(()),
        )
        losses.total.backward()
        return time.process_time() - began, peak_memory()


def main(arguments: list[str]) -> None:
    parser = Parser("loss_size", "Measure the time and memory of the loss.", package="benchmarks")
    parser.add_argument("--queries", type=int, nargs=2, default=(2000, 6000), metavar="NUMBER")
    parser.add_argument("--hidden-size", type=int, default=384)
    options = parser.parse_args(arguments)
    found = []
    for queries in options.queries:
        process = MeasuredProcess(1, Loss, options.hidden_size)
        process(10)
        found.append(process(queries))
        process.close()
    pairs = options.queries[1] ** 2 - options.queries[0] ** 2
    seconds, memory = ((large - small) / pairs for small, large in zip(*found, strict=True))
    print(f"a pair of queries: {memory * 2**30:.1f} bytes and {seconds * 1e9:.1f} ns of CPU time")
    if options.json:
        print_json({"bytes_per_pair": memory * 2**30, "seconds_per_pair": seconds})


if __name__ == "__main__":
    run(main)

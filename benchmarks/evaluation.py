"""Time and peak memory of ranking many queries among many videos by blocks, with one and with several workers.

    python -m benchmarks.evaluation --queries 50000 --videos 50000 [--workers 1 2] [--json]

Random encodings (32 clip tokens and up to 128 frame tokens a video, in float16) are written to a file beforehand. Each
worker is a process with one thread that reads, scores and counts its own videos, as `evaluation.retrieval.rank_split`
does; only the counts are exchanged, through gloo. A query resembles a token of its own video. Before that, the ranks of
a collection that is small enough are compared with those of the whole matrix of scores.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.measured_process import ENVIRONMENT, peak_memory
from dreamprvr_ray.command_line import Parser, print_json, print_progress, run
from dreamprvr_ray.config_sections import CLIPS, FRAMES
from dreamprvr_ray.distributed import Workers
from dreamprvr_ray.evaluation.metrics import Recall
from dreamprvr_ray.evaluation.ranks import Ranks, exact_ranks, rank_blocks
from dreamprvr_ray.evaluation.score_blocks import VIDEO_BLOCK, ScoreBlock
from dreamprvr_ray.model.dreamprvr import VideoEncoding
from dreamprvr_ray.model.scoring import fused_scores

TOKENS = CLIPS + FRAMES
CHECKED = 2_000  # queries and videos of the collection whose ranks are compared with the plain way
LINE_SECONDS = 30.0


class Encodings:
    """Encoded videos in a file, and the embeddings of queries; query q belongs to video q * V // Q."""

    def __init__(self, folder: Path, queries: int, videos: int, size: int) -> None:
        self.folder, self.queries, self.videos, self.size = folder, queries, videos, size

    def write(self) -> None:
        """Write both, with a fixed seed."""
        random = torch.Generator().manual_seed(0)
        owner = self.owner
        embeddings = torch.randn(self.queries, self.size, generator=random)
        with (self.folder / "tokens").open("wb") as file:
            for start in range(0, self.videos, 1024):
                tokens = torch.randn(min(1024, self.videos - start), TOKENS, self.size, generator=random)
                own = ((owner >= start) & (owner < start + len(tokens))).nonzero()[:, 0]
                places = torch.randint(TOKENS, own.shape, generator=random)
                embeddings[own] = embeddings[own] * 0.7 + tokens[owner[own] - start, places]
                file.write(tokens.half().numpy().tobytes())
        np.save(self.folder / "queries.npy", embeddings.numpy())

    @property
    def owner(self) -> Tensor:
        """The video (Q,) of each query."""
        return torch.arange(self.queries) * self.videos // self.queries

    def embeddings(self) -> Tensor:
        """Return the embeddings (Q, D) of the queries."""
        return torch.from_numpy(np.load(self.folder / "queries.npy"))

    def read(self, start: int, stop: int) -> VideoEncoding:
        """Return the videos start:stop."""
        bytes_each = TOKENS * self.size * 2
        with (self.folder / "tokens").open("rb") as file:
            file.seek(start * bytes_each)
            values = np.frombuffer(bytearray(file.read((stop - start) * bytes_each)), np.float16)
        tokens = torch.from_numpy(values.astype(np.float32)).view(stop - start, TOKENS, self.size)
        return VideoEncoding(*tokens.split([CLIPS, FRAMES], 1), None, None, None, None, None, None)


class Blocks:
    """The scores of all queries with a worker's videos; each iteration computes them again."""

    def __init__(self, encodings: Encodings, videos: np.ndarray, report: bool) -> None:
        self._encodings, self._videos, self._queries = encodings, videos, encodings.embeddings()
        self._report, self._passes = report, 0

    def __iter__(self) -> Iterator[ScoreBlock]:
        self._passes += 1
        began = line = time.monotonic()
        for first in range(0, len(self._videos), VIDEO_BLOCK):
            videos = self._videos[first : first + VIDEO_BLOCK]
            encoding = self._encodings.read(int(videos[0]), int(videos[-1]) + 1)
            yield ScoreBlock(torch.from_numpy(videos), partial(self._score, encoding))
            now, done = time.monotonic(), first + len(videos)
            if self._report and now - line > LINE_SECONDS:
                line, left = now, (now - began) / done * (len(self._videos) - done)
                print_progress(f"pass {self._passes} of 2: {done:,}/{len(self._videos):,} videos, {left:.0f} s left")

    def _score(self, encoding: VideoEncoding, queries: slice) -> Tensor:
        return fused_scores(self._queries[queries], encoding, 0.5)


def rank(encodings: Encodings, workers: Workers, report: bool = False) -> Ranks:
    """Rank by blocks; every worker must call this."""
    videos = workers.divide(np.arange(encodings.videos))[workers.rank]
    return rank_blocks(Blocks(encodings, videos, report), encodings.owner, workers=workers)


def rank_plainly(encodings: Encodings) -> Ranks:
    """Rank by the whole matrix of scores."""
    scores = fused_scores(encodings.embeddings(), encodings.read(0, encodings.videos), 0.5)
    return exact_ranks(scores, encodings.owner)


def work(number: int, count: int, encodings: Encodings, results: Connection) -> None:
    """Run a worker, and send the seconds, its memory before and at its peak in GiB, and the ranks."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    before = peak_memory()
    if count > 1:
        meeting = f"file://{encodings.folder / f'meeting-{count}'}"
        dist.init_process_group("gloo", init_method=meeting, rank=number, world_size=count)
    began = time.perf_counter()
    ranks = rank(encodings, Workers(number, count), report=number == 0)
    results.send((time.perf_counter() - began, before, peak_memory(), ranks.rank.numpy()))
    if count > 1:
        dist.destroy_process_group()


def measure(count: int, encodings: Encodings) -> tuple[float, float, float, np.ndarray]:
    """Return the seconds that `count` workers take, the largest memory before and at the peak, and the ranks."""
    os.environ |= ENVIRONMENT
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [
        context.Process(target=work, args=(number, count, encodings, pipe[1]), daemon=True)
        for number, pipe in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    answers = [pipe[0].recv() for pipe in pipes]
    for process in processes:
        process.join()
    seconds, before, peak = (max(answer[place] for answer in answers) for place in range(3))
    return seconds, before, peak, answers[0][3]


def main(arguments: list[str]) -> None:
    parser = Parser("evaluation", "Measure ranking by blocks.", package="benchmarks")
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--videos", type=int, default=50_000)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers (default: 1 2)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="dreamprvr-evaluation-") as folder:
        small = Encodings(Path(folder), CHECKED, CHECKED, options.hidden_size)
        small.write()
        assert torch.equal(rank(small, Workers()).rank, rank_plainly(small).rank), "the ranks differ from the plain way"
        print(f"{CHECKED:,} queries and videos: the ranks equal those of the whole matrix", flush=True)
        encodings = Encodings(Path(folder), options.queries, options.videos, options.hidden_size)
        began = time.perf_counter()
        encodings.write()
        written = time.perf_counter() - began
        print(f"{options.videos:,} encodings written in {written:.0f} s", flush=True)
        results, ranks = {}, []
        for count in options.workers:
            seconds, before, peak, rank_of = measure(count, encodings)
            ranks.append(rank_of)
            results[count] = {"seconds": round(seconds, 1), "gib_before": round(before, 2), "gib_peak": round(peak, 2)}
            print(f"{count} workers: {seconds:.0f} s, peak {peak:.2f} GiB each ({before:.2f} before)", flush=True)
        assert all(np.array_equal(each, ranks[0]) for each in ranks), "the ranks differ between numbers of workers"
        recall = Recall.from_ranks(ranks[0])
        print(recall.line())
    if options.json:
        sizes = {"queries": options.queries, "videos": options.videos, "hidden_size": options.hidden_size}
        print_json(sizes | {"written_seconds": round(written, 1), "workers": results, **recall.to_dict()})


if __name__ == "__main__":
    run(main)

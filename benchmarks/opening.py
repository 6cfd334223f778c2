"""python -m benchmarks.opening: time to open shards of 20,000 videos and map one of their splits.

The shards are written first, with two values per feature row: opening maps the files without reading features.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.config_sections import CLIPS
from dreamprvr_ray.data.manifest import Manifest, SplitRecord
from dreamprvr_ray.data.shard_files import ShardContent, write_shard
from dreamprvr_ray.data.shards import ShardSet

SIZE = 2  # values per feature row


def write(directory: Path, videos: int, queries_per_video: int, videos_per_shard: int) -> None:
    """Write the shards of one split."""
    random, files, stems = np.random.default_rng(0), {}, []
    for first in range(0, videos, videos_per_shard):
        count = min(videos_per_shard, videos - first)
        frames, tokens = random.integers(1, 129, count), random.integers(1, 31, count * queries_per_video)
        content = ShardContent(
            videos=[f"video {first + number}" for number in range(count)],
            clips=np.zeros((count, CLIPS, SIZE), np.float16),
            frames=np.zeros((frames.sum(), SIZE), np.float16),
            frame_counts=frames,
            queries=[f"query {first * queries_per_video + number}" for number in range(len(tokens))],
            texts=["something happens"] * len(tokens),
            owner=np.repeat(np.arange(count), queries_per_video),
            tokens=np.zeros((tokens.sum(), SIZE), np.float16),
            token_counts=tokens,
            moments=None,
        )
        stems.append(f"train-{len(stems):05}")
        files |= write_shard(directory, stems[-1], content)
    splits = {"train": SplitRecord(videos, videos * queries_per_video, tuple(stems))}
    Manifest(1, "synthetic", "synthetic", SIZE, SIZE, "float16", "own splits", splits, {}, {}, files).write(directory)


def main(arguments: list[str]) -> None:
    parser = Parser("opening", "Measure the time to open shards.", package="benchmarks")
    parser.add_argument("--videos", type=int, default=20_000, help="number of videos (default: 20000)")
    parser.add_argument("--queries", type=int, default=5, help="queries per video (default: 5)")
    parser.add_argument("--videos-per-shard", type=int, default=273, help="as for TVR (default: 273)")
    parser.add_argument("--rounds", type=int, default=9, help="number of measurements, of which the median is printed")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="dreamprvr-opening-") as folder:
        write(Path(folder), options.videos, options.queries, options.videos_per_shard)
        seconds = []
        for _ in range(options.rounds):
            began = time.perf_counter()
            split = ShardSet.open(Path(folder)).split("train")
            opened = time.perf_counter()
            assert (
                len(split) == options.videos
                and split.first_query[-1] == options.videos * options.queries
                and len(split.frame_counts)
            )
            seconds.append((opened - began, time.perf_counter() - began))
    opening, counting = (1000 * statistics.median(measured) for measured in zip(*seconds, strict=True))
    shards = -(-options.videos // options.videos_per_shard)
    print(
        f"{options.videos:,} videos in {shards} shards: open after {opening:.1f} ms,"
        f" with all counts and owners after {counting:.1f} ms"
    )
    if options.json:
        print_json(
            {"videos": options.videos, "shards": shards, "open_ms": round(opening, 2), "counted_ms": round(counting, 2)}
        )


if __name__ == "__main__":
    run(main)

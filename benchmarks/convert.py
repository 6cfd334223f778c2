"""python -m benchmarks.convert: throughput of conversion to shards, on a synthetic source with TVR's feature sizes."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.data.conversion import ConversionSettings, convert
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.data.source_writer import write_random_source_tree


def main(arguments: list[str]) -> None:
    parser = Parser(
        "convert",
        "Measure the throughput of conversion, in megabytes of raw features per second.",
        package="benchmarks",
    )
    parser.add_argument("--videos", type=int, default=400, help="number of videos (default: 400)")
    parser.add_argument("--video-size", type=int, default=3072, help="values per frame (default: 3072)")
    parser.add_argument("--text-size", type=int, default=768, help="values per query token (default: 768)")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="number of processes (default: one per core)"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="dreamprvr-convert-") as folder:
        splits = {
            "train": options.videos - options.videos // 5,
            "val": options.videos // 10,
            "test": options.videos // 10,
        }
        root = Path(folder)
        write_random_source_tree(
            root, "synthetic", "features", options.video_size, options.text_size, splits, queries=5
        )
        began = time.perf_counter()
        conversion = convert(Source.open(root, "synthetic"), root / "shards", ConversionSettings(), options.workers)
        seconds = time.perf_counter() - began
    raw, written = conversion.progress.raw_bytes, sum(record.bytes for record in conversion.manifest.files.values())
    rate = raw / 1e6 / seconds
    print(
        f"{raw / 1e6:,.0f} MB of raw features to {written / 1e6:,.0f} MB of shards in {seconds:.1f} s: {rate:,.0f} MB/s"
    )
    if options.json:
        results = {
            "raw_mb": raw / 1e6,
            "written_mb": written / 1e6,
            "seconds": seconds,
            "mb_per_second": rate,
        }
        print_json({name: round(value, 2) for name, value in results.items()} | {"workers": options.workers})


if __name__ == "__main__":
    run(main)

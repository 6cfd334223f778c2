"""python -m benchmarks.convert: megabytes of raw features that conversion to shards takes in a second, on a made source of TVR's sizes."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.data.conversion import ConversionSettings, convert
from dreamprvr_ray.data.source import Source
from tests.support.source_trees import write_source


def main(arguments: list[str]) -> None:
    parser = Parser("convert", "The speed of conversion.", package="benchmarks")
    parser.add_argument("--videos", type=int, default=400)
    parser.add_argument("--video-size", type=int, default=3072)
    parser.add_argument("--text-size", type=int, default=768)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="dreamprvr-convert-") as folder:
        splits = {
            "train": options.videos - options.videos // 5,
            "val": options.videos // 10,
            "test": options.videos // 10,
        }
        write_source(Path(folder), "made", "features", options.video_size, options.text_size, splits, queries=5)
        began = time.perf_counter()
        conversion = convert(
            Source.open(Path(folder), "made", None), Path(folder) / "shards", ConversionSettings(), options.workers
        )
        seconds = time.perf_counter() - began
    raw, written = conversion.progress.raw_bytes, sum(record.bytes for record in conversion.manifest.files.values())
    print(
        f"{raw / 1e6:,.0f} MB of raw features became {written / 1e6:,.0f} MB of shards in {seconds:.1f} s: {raw / 1e6 / seconds:,.0f} MB/s"
    )
    if options.json:
        results = {
            "raw_mb": raw / 1e6,
            "written_mb": written / 1e6,
            "seconds": seconds,
            "mb_per_second": raw / 1e6 / seconds,
        }
        print_json({name: round(value, 2) for name, value in results.items()} | {"workers": options.workers})


if __name__ == "__main__":
    run(main)

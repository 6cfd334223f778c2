"""Search in large collections: time of a query, recall against scoring all videos, bytes of a video, time to build.

    python -m benchmarks.find --model runs/qvh/best --shards shards/qvh --out DIR --videos 100000 1000000

The videos are perturbed encodings of real ones: a part of their deviation from the mean row is replaced by noise of the
same variance, one part for a whole video and one for each row. How much is chosen such that a video's nearest neighbour
is as far away as a real video's; the first two lines show it. Queries are the sentences of the split. `--compare` also
measures usearch as the coarse stage, which must be installed. Indexes that exist in DIR are used again.
"""

from __future__ import annotations

import argparse
import resource
import time
from dataclasses import replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from dreamprvr_ray.command_line import print_json, print_progress
from dreamprvr_ray.data.batches import collate_queries
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.evaluation.curves import QueryVectors
from dreamprvr_ray.index.building import COMPACT_PART_ROWS, update_index
from dreamprvr_ray.index.coarse import moment_vectors
from dreamprvr_ray.index.collections import ShardCollection
from dreamprvr_ray.index.compression import Compression, Compressor
from dreamprvr_ray.index.index import Index
from dreamprvr_ray.index.parts import Block, IndexedRow, PartContent, write_part
from dreamprvr_ray.index.record import PARTS, PartRecord
from dreamprvr_ray.index.sentences import query_vectors
from dreamprvr_ray.index.windows import window_norms
from dreamprvr_ray.storage.locks import is_lock

VIDEO_NOISE, ROW_NOISE = 0.4, 0.25  # of the standard deviation of real components, for a whole video and for each row
WRITERS = 2  # processes
NORMAL_ROWS = 2**17
SAMPLE = 400  # videos whose nearest neighbours are compared
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def perturbed(real: Block, count: int, random: np.random.Generator, noise: tuple[float, float]) -> Block:
    """Return `count` videos in the place of real ones drawn at random, in components of a compact index."""
    block = real.take(random.integers(0, len(real), count).tolist())
    kept = np.float32(np.sqrt(1 - noise[0] ** 2 - noise[1] ** 2))  # the variance stays that of real rows
    arrays: dict[str, np.ndarray] = {}
    for name in ("clips", "frames", "features"):
        rows = getattr(block, name)
        flat = rows.reshape(-1, rows.shape[-1])
        owner = np.repeat(np.arange(count), 32 if name == "clips" else block.counts)
        mean, spread, lengths = flat.mean(0), flat.std(0), np.linalg.norm(flat, axis=1, keepdims=True)
        whole = random.standard_normal((count, flat.shape[1]), np.float32) * (noise[0] * spread)
        moved = mean + kept * (flat - mean) + whole[owner]
        moved += _normal_rows(flat.shape[1])[_pieces(random, owner)] * (noise[1] * spread)
        arrays[name] = (moved * (lengths / np.linalg.norm(moved, axis=1, keepdims=True))).reshape(rows.shape)
    return replace(block, norms=window_norms(arrays["features"], block.counts), coarse=None, **arrays)


@cache
def _normal_rows(size: int) -> np.ndarray:
    """Return normal random rows (NORMAL_ROWS, size), which many videos share: drawing them takes long."""
    return np.random.default_rng(size).standard_normal((NORMAL_ROWS, size), np.float32)


def _pieces(random: np.random.Generator, owner: np.ndarray) -> np.ndarray:
    """Return the numbers of normal rows for rows with these owners: for each owner, one piece at a random place."""
    starts = random.integers(0, NORMAL_ROWS, int(owner[-1]) + 1)
    pieces: np.ndarray = (starts[owner] + np.arange(len(owner))) % NORMAL_ROWS
    return pieces


def quantised(block: Block, compressor: Compressor) -> Block:
    """Return videos, given by components, in the form of a compact index."""
    compression: Compression = compressor.compression
    assert compression.model is not None and block.clips is not None and block.frames is not None
    size = block.clips.shape[-1]
    return Block(
        block.counts,
        compression.encoder.quantise(block.features),
        block.norms.astype(np.float16),
        compression.model.quantise(block.clips.reshape(-1, size)).reshape(len(block), 32, -1),
        compression.model.quantise(block.frames),
        compressor.quantizer.encode(block),
    )


def nearest(block: Block) -> np.ndarray:
    """Return the similarity (V,) of each video to the most similar other: its clips' mean cosine with the best clips.

    `block` holds components.
    """
    assert block.clips is not None
    clips = torch.from_numpy(block.clips)
    clips = clips / clips.norm(dim=2, keepdim=True)
    best = []
    for number, own in enumerate(clips):
        similarities = (own @ clips.flatten(0, 1).T).view(32, -1, 32).amax(2).mean(0)
        similarities[number] = -1
        best.append(float(similarities.max()))
    return np.array(best)


def synthetic(out: Path, real: Index, videos: int, seed: int, noise: tuple[float, float]) -> float:
    """Write an index of perturbed videos by `WRITERS` processes, and return the seconds that this took."""
    out.mkdir(parents=True)
    for name in ("compression.safetensors", "coarse.safetensors", "model"):
        (out / name).symlink_to((real.directory / name).resolve())
    starts, records, begin = range(0, videos, COMPACT_PART_ROWS), [], time.perf_counter()
    parts = [(number, range(start, min(start + COMPACT_PART_ROWS, videos))) for number, start in enumerate(starts)]
    write = partial(write_videos, out, real.directory, seed, noise)
    with get_context("spawn").Pool(WRITERS) as pool:
        for record in pool.imap(write, parts):
            records.append(record)
            seconds, done = time.perf_counter() - begin, parts[len(records) - 1][1].stop
            left = seconds / done * (videos - done)
            print_progress(f"{done:,} of {videos:,} videos written, {left:.0f} s left")
    replace(real.record, parts=tuple(records), next_part=len(records)).write(out)
    return time.perf_counter() - begin


def write_videos(out: Path, real: Path, seed: int, noise: tuple[float, float], part: tuple[int, range]) -> PartRecord:
    """Write a part of an index, given by its number and those of its videos, and return its record."""
    torch.set_num_threads(1)
    (number, videos), (compressor, restored) = part, _cached(real)
    block = perturbed(restored, len(videos), np.random.default_rng((seed, number)), noise)
    rows = [IndexedRow(f"v{video}", "", int(count), None) for video, count in zip(videos, block.counts, strict=True)]
    return write_part(out / PARTS / f"{number:06d}", PartContent(rows, quantised(block, compressor)))


@cache
def _cached(real: Path) -> tuple[Compressor, Block]:
    return _restored(Index.open(real))


def _restored(real: Index) -> tuple[Compressor, Block]:
    compressor = Compressor.read(real.directory, real.weights)
    return compressor, Block.joined([compressor.compression.restore(part.block) for part in real.parts])


def exact_best(index: Index, queries: QueryVectors, top: int) -> list[set[int]]:
    """Return the numbers of the best videos of each query, by scoring all, part by part."""
    scores, numbers, first = [], [], 0
    for part in index.parts:
        own = index._block_scores(replace(part.block), queries)  # a copy, whose windows are not kept
        best = np.argpartition(-own, min(top, own.shape[1] - 1), axis=1)[:, :top]
        scores.append(np.take_along_axis(own, best, 1))
        numbers.append(best + first)
        first += len(part)
    order = np.argsort(-np.concatenate(scores, 1), axis=1)[:, :top]
    return [set(row.tolist()) for row in np.take_along_axis(np.concatenate(numbers, 1), order, 1)]


def measure(index: Index, queries: QueryVectors, exact: list[set[int]]) -> dict[str, float]:
    """Return recall@10 of the two-stage search against scoring all videos, and its times."""
    count = len(exact)
    seconds, hits = [], []
    for number in range(-3, count):  # the first three warm up
        query = QueryVectors(*(None if each is None else each[[number % count]] for each in vars(queries).values()))
        begin = time.perf_counter()
        (results,) = index.search(query, 10)
        if number >= 0:
            seconds.append(1000 * (time.perf_counter() - begin))
            hits.append(len({int(found.video[1:]) for found in results} & exact[number]) / 10)
    p50, p95 = np.percentile(seconds, [50, 95])
    return {"recall@10": float(np.mean(hits)), "p50_ms": float(p50), "p95_ms": float(p95)}


def compare(index: Index, queries: QueryVectors, exact: list[set[int]], videos: int) -> None:
    """Measure faiss's codes and usearch's graph as the coarse stage of the first `videos` videos."""
    import faiss
    from usearch.index import Index as Graph

    compressor = Compressor.read(index.directory, index.weights)
    block = Block.joined([part.block for part in index.parts]).take(range(videos))
    vectors = moment_vectors(compressor.compression.restore(block), index.weights)
    rows = vectors.reshape(-1, vectors.shape[-1]) @ compressor.quantizer.basis.T
    projected = compressor.compression.project(queries)
    vectors_of_queries = torch.cat([each for each in vars(projected).values() if each is not None], 1).numpy()
    sought = vectors_of_queries @ compressor.quantizer.basis.T
    threads = torch.get_num_threads()

    def report(name: str, build: float, add: float, size: int, search: float, numbers: np.ndarray) -> None:
        found = [set((own // vectors.shape[1]).tolist()) for own in numbers]
        recall = np.mean([len(own & best) / len(best) for own, best in zip(found, exact, strict=True)])
        print(
            f"| {name} | {recall:.3f} | {size / videos:,.0f} | {build:.1f} | {1000 * add:.1f} | {1000 * search:.1f} |"
        )

    print("| coarse stage | recall@10 of the candidates | bytes a video | build, s | add 1%, ms | query, ms |")
    print("|---|---|---|---|---|---|")
    last = max(1, len(rows) // 100)
    begin = time.perf_counter()
    codes = compressor.quantizer.index()
    codes.add_sa_codes(codes.sa_encode(rows[:-last]))
    build, begin = time.perf_counter() - begin, time.perf_counter()
    codes.add_sa_codes(codes.sa_encode(rows[-last:]))
    add, fast = time.perf_counter() - begin, faiss.IndexPQFastScan(codes)
    begin = time.perf_counter()
    numbers = np.concatenate([fast.search(query[None], 4000)[1] for query in sought])
    report(
        "faiss, 4-bit codes",
        build,
        add,
        codes.code_size * len(rows),
        (time.perf_counter() - begin) / len(sought),
        numbers,
    )
    graph = Graph(ndim=rows.shape[1], metric="ip", dtype="i8", connectivity=16)
    keys, scale = np.arange(len(rows)), np.linalg.norm(rows, axis=1).max()
    begin = time.perf_counter()
    graph.add(keys[:-last], rows[:-last] / scale, threads=threads)
    build, begin = time.perf_counter() - begin, time.perf_counter()
    graph.add(keys[-last:], rows[-last:] / scale, threads=threads)
    add, begin = time.perf_counter() - begin, time.perf_counter()
    numbers = np.stack([np.asarray(graph.search(query, 4000).keys).astype(np.int64) for query in sought])
    report("usearch, int8 graph", build, add, graph.memory_usage, (time.perf_counter() - begin) / len(sought), numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--videos", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--split", default="val")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, nargs=2, default=[VIDEO_NOISE, ROW_NOISE], metavar=("VIDEO", "ROW"))
    parser.add_argument("--compare", type=int, metavar="VIDEOS", help="measure faiss and usearch on the first videos")
    options = parser.parse_args()
    shards = ShardSet.open(options.shards)
    update_index(options.out / "real", ShardCollection(shards), options.model, compact=True)
    real = Index.open(options.out / "real")
    split = shards.split(options.split)
    numbers = np.sort(np.random.default_rng(options.seed).permutation(len(split.owner))[: options.queries])
    queries = query_vectors(*collate_queries(split, numbers), split.sentences(numbers), real._network)

    noise = (options.noise[0], options.noise[1])
    _, restored = _restored(real)
    random = np.random.default_rng(options.seed)
    sample = restored.take(random.permutation(len(restored))[:SAMPLE].tolist())
    for name, block in (("real", sample), ("synthetic", perturbed(restored, SAMPLE, random, noise))):
        similarities = np.quantile(nearest(block), QUANTILES)
        print(
            f"similarity to the nearest video, {name}: {' '.join(f'{each:.3f}' for each in similarities)}", flush=True
        )

    results = []
    for videos in options.videos:
        out = options.out / f"synthetic-{videos}"
        build = None if out.exists() else synthetic(out, real, videos, options.seed, noise)
        begin = time.perf_counter()
        index = Index.open(out)
        index.search(QueryVectors(*(each[:1] for each in vars(queries).values())))
        opened, begin = time.perf_counter() - begin, time.perf_counter()
        exact = exact_best(index, queries, 10)
        scanned = 1000 * (time.perf_counter() - begin) / len(exact)
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file() and not is_lock(path.name)) / videos
        results.append(
            {"videos": videos, "bytes_per_video": size, "build_s": build, "open_s": opened, "exact_ms": scanned}
            | measure(index, queries, exact)
            | {"peak_memory_MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        )
        print(results[-1], flush=True)
        if options.compare:
            best = exact_best(_first(index, options.compare), queries, 10)
            compare(index, queries, best, options.compare)
    print_json({"benchmark": "find", "results": results})


def _first(index: Index, videos: int) -> Index:
    """Return an index of the first videos, a whole number of parts."""
    parts = index.record.parts[: videos // COMPACT_PART_ROWS]
    return Index(index.directory, replace(index.record, parts=parts), index._model)


if __name__ == "__main__":
    main()

"""Making shards, in this process or in several: read, pool, normalise and write one shard per task.

Imports no torch, which would take seconds to start and hundreds of megabytes in every process.

Shapes as in `shard_files`.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dreamprvr_ray.config import CLIPS, FRAMES, QUERY_TOKENS
from dreamprvr_ray.data import pooling
from dreamprvr_ray.data.feature_files import RawFeatures
from dreamprvr_ray.data.manifest import UNFINISHED, FeatureType, FileRecord
from dreamprvr_ray.data.shard_files import ShardContent, write_shard
from dreamprvr_ray.data.shard_plan import ShardPlan
from dreamprvr_ray.storage.files import write_json

PROCESS_BYTES = 256 * 2**20  # size of features that justifies starting another process


@dataclass(frozen=True)
class ShardTask:
    """All that a process needs to make one shard."""

    plan: ShardPlan
    raw: RawFeatures
    moment_fractions: np.ndarray | None  # (Q,) float64, in the order of the plan's captions
    dtype: FeatureType
    out: Path


@dataclass(frozen=True)
class FinishedShard:
    """A written shard: its name, its files' records by name, and the bytes of raw features that were read for it."""

    stem: str
    files: dict[str, FileRecord]
    raw_bytes: int


def make_shards(tasks: Sequence[ShardTask], workers: int) -> Iterator[FinishedShard]:
    """Make shards with up to `workers` processes and yield each as it is finished, in any order.

    An error in a task ends the iteration with it.
    """
    workers = min(workers, len(tasks), 1 + int(sum(task.plan.max_bytes for task in tasks) / PROCESS_BYTES))
    if workers <= 1:
        for task in tasks:
            yield make_shard(task)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # modules are imported once, not by every process
    executor = ProcessPoolExecutor(workers, context, _follow_parent)
    try:
        futures: list[Future[FinishedShard]] = [executor.submit(make_shard, task) for task in tasks]
        for future in as_completed(futures):
            yield future.result()
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Initialise a worker process: leave Ctrl-C to the parent, and exit when the parent does, even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def make_shard(task: ShardTask) -> FinishedShard:
    """Read, pool, normalise and write one shard, then its record, which marks it as finished."""
    content, raw_bytes = _pool(task)
    files = write_shard(task.out, task.plan.stem, content)
    records = {name: asdict(record) for name, record in files.items()}
    write_json(task.out / UNFINISHED / f"{task.plan.stem}.json", records)
    return FinishedShard(task.plan.stem, files, raw_bytes)


def _pool(task: ShardTask) -> tuple[ShardContent, int]:
    """Return a shard's content and the number of bytes of raw features read for it."""
    raw = task.raw
    videos = [video for video, _ in task.plan.captions]
    captions = [caption for _, own in task.plan.captions for caption in own]
    clips = np.empty((len(videos), CLIPS, raw.video_size), dtype=task.dtype)
    # The most rows that there can be: the system provides memory only for those that are written.
    frames = np.empty((len(videos) * FRAMES, raw.video_size), dtype=task.dtype)
    tokens = np.empty((len(captions) * QUERY_TOKENS, raw.text_size), dtype=task.dtype)
    frame_counts, token_counts = [], []
    raw_bytes = end = 0
    for row, video in enumerate(videos):
        features = raw.video(video)
        raw_bytes += features.nbytes
        clips[row] = pooling.clips(features)
        rows = pooling.frames(features)
        frames[end : end + len(rows)] = rows
        frame_counts.append(len(rows))
        end += len(rows)
    frames = frames[:end]
    end = 0
    for caption in captions:
        features = raw.query(caption.query)
        raw_bytes += features.nbytes
        rows = pooling.query_tokens(features)
        tokens[end : end + len(rows)] = rows
        token_counts.append(len(rows))
        end += len(rows)
    content = ShardContent(
        videos=videos,
        clips=clips,
        frames=frames,
        frame_counts=np.array(frame_counts),
        queries=[caption.query for caption in captions],
        texts=[caption.text for caption in captions],
        owner=np.repeat(np.arange(len(videos)), [len(own) for _, own in task.plan.captions]),
        tokens=tokens[:end],
        token_counts=np.array(token_counts),
        moment_fractions=task.moment_fractions,
    )
    return content, raw_bytes

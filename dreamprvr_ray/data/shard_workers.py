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
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamprvr_ray.config_sections import CLIPS, FRAMES, QUERY_TOKENS
from dreamprvr_ray.data import pooling
from dreamprvr_ray.data.captions import KnownMoment
from dreamprvr_ray.data.conversion_records import PooledRows, ShardRecord, write_record
from dreamprvr_ray.data.encoding import VIDEO_TIMES, VideoTimes
from dreamprvr_ray.data.feature_files import RawFeatures
from dreamprvr_ray.data.manifest import FeatureType
from dreamprvr_ray.data.right_videos import right_videos
from dreamprvr_ray.data.shard_files import ShardContent, write_shard
from dreamprvr_ray.data.shard_plan import ShardPlan
from dreamprvr_ray.errors import Failure, UserError

NORM_TOLERANCE = 1e-3  # by which the norm of a pooled row that is not zero may differ from 1
PROCESS_BYTES = 256 * 2**20  # size of features that justifies starting another process


@dataclass(frozen=True)
class ShardTask:
    """All that a process needs to make one shard."""

    plan: ShardPlan
    raw: RawFeatures
    moments: Sequence[KnownMoment] | None  # (Q,), in the order of the plan's captions
    dtype: FeatureType
    out: Path
    times: Sequence[VideoTimes] | None = None  # (V,), in the order of the plan's videos


@dataclass(frozen=True)
class FinishedShard:
    """A written shard: its name, its record, and the bytes of raw features that were read for it."""

    stem: str
    record: ShardRecord
    raw_bytes: int


def make_shards(tasks: Sequence[ShardTask], workers: int) -> Iterator[FinishedShard]:
    """Make shards with up to `workers` processes and yield each as it is finished, in any order.

    An error in a task ends the iteration with it. Raises `Failure` if a process is killed.
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
    except BrokenProcessPool:
        raise Failure(
            "a process that makes shards was killed, perhaps because memory ran out; run the same command again to"
            " resume, with fewer --workers"
        ) from None
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
    content, rows, raw_bytes = _pool(task)
    record = ShardRecord(write_shard(task.out, task.plan.stem, content), rows)
    write_record(task.out, task.plan.stem, record)
    return FinishedShard(task.plan.stem, record, raw_bytes)


class _RowChecks:
    """Checks rows after pooling, and collects the ids of odd ones."""

    def __init__(self) -> None:
        self._odd: dict[str, dict[str, None]] = {"zero": {}, "short": {}, "huge": {}}

    def check(self, id: str, features: np.ndarray, *pooled: np.ndarray) -> None:
        """Check the pooled rows of a video or query, whose raw features are given.

        Raises `UserError` if a row is not finite or longer than 1.
        """
        norms = np.concatenate([pooling.norms(rows) for rows in pooled])
        if not np.isfinite(norms).all() or (norms > 1 + NORM_TOLERANCE).any():
            raise UserError(f"{id}: features that cannot be normalised: values up to {np.abs(features).max():g}")
        if not norms.any():
            self._odd["zero" if not features.any() else "short"][id] = None
        elif ((norms > 0) & (norms < 1 - NORM_TOLERANCE)).any():
            self._odd["short"][id] = None
        if np.abs(features).max() > pooling.LARGEST_FLOAT32:
            self._odd["huge"][id] = None

    def found(self) -> PooledRows:
        return PooledRows(**{name: tuple(ids) for name, ids in self._odd.items()})


def _pool(task: ShardTask) -> tuple[ShardContent, PooledRows, int]:
    """Return a shard's content, what is odd in it, and the number of bytes of raw features read for it."""
    raw, checks = task.raw, _RowChecks()
    videos = [video for video, _ in task.plan.captions]
    captions = [caption for _, own in task.plan.captions for caption in own]
    clips = np.empty((len(videos), CLIPS, raw.video_size), dtype=task.dtype)
    # The most rows that there can be: the system provides memory only for those that are written.
    frames = np.empty((len(videos) * FRAMES, raw.video_size), dtype=task.dtype)
    tokens = np.empty((len(captions) * QUERY_TOKENS, raw.text_size), dtype=task.dtype)
    # Where their sizes differ, a sentence cannot be compared with frames.
    sentences = np.empty((len(captions), raw.text_size), task.dtype) if raw.video_size == raw.text_size else None
    frame_counts, token_counts = [], []
    raw_bytes = end = 0
    for row, video in enumerate(videos):
        features = raw.video(video)
        if task.times is not None and task.times[row].frames != len(features):
            raise UserError(f"video {video}: {len(features)} frames, but {VIDEO_TIMES} lists {task.times[row].frames}")
        raw_bytes += features.nbytes
        pooled = pooling.clips(features)
        rows = pooling.frames(features)
        checks.check(f"video {video}", features, pooled, rows)
        clips[row] = pooled
        frames[end : end + len(rows)] = rows
        frame_counts.append(len(rows))
        end += len(rows)
    frames = frames[:end]
    end = 0
    for row, caption in enumerate(captions):
        features = raw.query(caption.query)
        raw_bytes += features.nbytes
        rows = pooling.query_tokens(features)
        checks.check(f"query {caption.query}", features[: len(rows)], rows)
        if sentences is not None:
            embedding = raw.sentence(caption.query)
            sentences[row] = pooling.sentence(features) if embedding is None else pooling.unit(embedding)
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
        token_counts=np.array(token_counts, dtype=np.int64),
        moments=task.moments,
        sentences=sentences,
        right_videos=right_videos(captions),
        times=task.times,
    )
    return content, checks.found(), raw_bytes

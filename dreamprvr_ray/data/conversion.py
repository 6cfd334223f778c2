"""Conversion of a source tree into shards: which video goes where, in parallel, and so that a killed conversion can go on.

While it runs, SHARDS/conversion/ holds `settings.json` and a record of sizes and checksums for every finished shard; files get their final
names when they are whole, the manifest comes last and the folder goes. A shard's bytes depend on source and settings alone.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dreamprvr_ray.config import CLIPS, FRAMES, QUERY_TOKENS
from dreamprvr_ray.data import pooling
from dreamprvr_ray.data.shards import (
    MANIFEST,
    SCHEMA_VERSION,
    UNFINISHED,
    FeatureType,
    FileRecord,
    Manifest,
    Protocol,
    ShardContent,
    ShardSet,
    SplitRecord,
    file_record,
    write_json,
    write_shard,
)
from dreamprvr_ray.data.source import Caption, RawFeatures, Source
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.files import writing

MEGABYTE = 2**20
SHARD_BYTES = 256 * MEGABYTE  # the most that a shard's features take
SMALLEST_SHARD_BYTES = (
    8 * MEGABYTE
)  # a split is divided into 16 shards to have work for all processes, but no finer than this
SHARDS_PER_SPLIT = 16
PROCESS_BYTES = 256 * MEGABYTE  # of features that make another process worth its start
HASHED_BYTES = (
    64 * MEGABYTE
)  # larger source files are known by size and time of change, reading them again would take minutes


@dataclass(frozen=True, kw_only=True)
class ConversionSettings:
    """What is chosen about a conversion; `protocol` says what to do where the source has no test split of its own."""

    dtype: FeatureType = "float16"
    protocol: Literal["dev", "paper"] = "dev"
    dev_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.dev_fraction < 1:
            raise UserError(f"--dev-fraction {self.dev_fraction}: must be above 0 and below 1")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must be 0 or more")


@dataclass(frozen=True)
class Progress:
    """How far a conversion is; `raw_bytes` and `seconds` are this run's, videos all runs'."""

    videos: int
    all_videos: int
    converted_videos: int
    raw_bytes: int
    seconds: float


@dataclass(frozen=True)
class Conversion:
    """What a conversion came to; `kept_shards` were there from an earlier run, all of them where it was finished already."""

    manifest: Manifest
    already_converted: bool
    kept_shards: int
    progress: Progress


@dataclass(frozen=True)
class _ShardPlan:
    """One shard to be: each video with its captions, and the most bytes that its features can take."""

    stem: str
    bound: float
    captions: tuple[tuple[str, tuple[Caption, ...]], ...]


@dataclass(frozen=True)
class _ShardTask:
    """All that a process needs to make one shard."""

    plan: _ShardPlan
    raw: RawFeatures
    moment_fractions: np.ndarray | None  # (q,), in the captions' order
    dtype: FeatureType
    out: Path


def convert(
    source: Source,
    out: Path,
    settings: ConversionSettings,
    workers: int,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Conversion:
    """Writes `source` as shards into the folder `out`, by up to `workers` processes, and calls `report` after each.

    Goes on where an earlier run with the same source and settings was stopped, and does nothing where it was finished. Raises
    `UserError` where `out` holds anything else, or the source is at fault: then nothing is left behind. Stopped in any other way,
    it leaves what is needed to go on.
    """
    protocol, splits = _chosen_splits(source, settings)
    conversion = {"settings": _settings_that_matter(protocol, settings), "source": _fingerprint(source)}
    if (out / MANIFEST).is_file():
        return _already_converted(out, conversion)
    plans, stems = _planned(splits, source.raw, settings.dtype)
    records = _opened_records(out, conversion)
    with _locked(records):
        files = _kept_files(out, records, plans)
        kept = [plan for plan in plans if plan.stem in files]
        todo = [_task(plan, source, settings.dtype, out) for plan in plans if plan.stem not in files]
        tally = _Tally(plans, kept, report)
        try:
            for stem, shard_files, raw_bytes in _run(todo, workers):
                files[stem] = shard_files
                tally.add(stem, raw_bytes)
        except UserError:
            _discard(out, plans)
            raise
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            collection=source.collection,
            features=source.features,
            video_size=source.raw.video_size,
            text_size=source.raw.text_size,
            dtype=settings.dtype,
            protocol=protocol,
            splits={split: _split_record(captions, stems[split]) for split, captions in splits.items()},
            preprocessing=pooling.PREPROCESSING,
            conversion=conversion,
            files={name: record for plan in plans for name, record in files[plan.stem].items()},
        )
        manifest.write(out)
        shutil.rmtree(records)
    return Conversion(manifest, False, len(kept), tally.progress())


def _chosen_splits(source: Source, settings: ConversionSettings) -> tuple[Protocol, dict[str, list[Caption]]]:
    """The protocol and the captions of train, val and test (design page, Protocol); val is test itself under `paper`."""
    train, val, test = (source.splits.get(split) for split in ("train", "val", "test"))
    assert train is not None
    if val and test and {caption.query for caption in val} != {caption.query for caption in test}:
        if settings.protocol == "paper":
            raise UserError(
                f"--protocol paper: {source.collection} has a val and a test split of its own; leave the option out"
            )
        return "own splits", {"train": train, "val": val, "test": test}
    test = test or val
    if not test:
        raise UserError(f"{source.files[0].parent}: neither a val nor a test split of {source.collection}")
    if settings.protocol == "paper":
        return "paper", {"train": train, "val": test, "test": test}
    videos = list(dict.fromkeys(caption.video for caption in train))
    count = max(1, round(len(videos) * settings.dev_fraction))
    if count >= len(videos):
        raise UserError(f"--dev-fraction {settings.dev_fraction}: leaves nothing of {len(videos)} train videos")
    order = np.random.default_rng(settings.seed).permutation(len(videos))
    dev = {videos[i] for i in order[:count]}
    return "dev", {
        "train": [caption for caption in train if caption.video not in dev],
        "val": [caption for caption in train if caption.video in dev],
        "test": test,
    }


def _settings_that_matter(protocol: Protocol, settings: ConversionSettings) -> dict[str, Any]:
    carving = {"dev_fraction": settings.dev_fraction, "seed": settings.seed} if protocol == "dev" else {}
    return {"dtype": settings.dtype, "protocol": protocol, **carving}


def _fingerprint(source: Source) -> dict[str, dict[str, Any]]:
    """Each source file by size and SHA-256, large ones by size and time of change."""
    fingerprint: dict[str, dict[str, Any]] = {}
    for path in source.files:
        status = path.stat()
        small = status.st_size <= HASHED_BYTES
        fingerprint[f"{path.parent.name}/{path.name}"] = (
            asdict(file_record(path)) if small else {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}
        )
    return fingerprint


def _planned(
    splits: dict[str, list[Caption]], raw: RawFeatures, dtype: FeatureType
) -> tuple[list[_ShardPlan], dict[str, tuple[str, ...]]]:
    """The shards to make, and each split's shards by name. A shard is bounded by the most that its videos and queries can take."""
    itemsize = np.dtype(dtype).itemsize
    video_bytes = (CLIPS + FRAMES) * raw.video_size * itemsize
    query_bytes = QUERY_TOKENS * raw.text_size * itemsize
    plans: list[_ShardPlan] = []
    stems: dict[str, tuple[str, ...]] = {}
    for split, captions in splits.items():
        if split == "test" and captions is splits["val"]:
            stems[split] = stems["val"]
            continue
        by_video: dict[str, list[Caption]] = {}
        for caption in captions:
            by_video.setdefault(caption.video, []).append(caption)
        limit = (len(by_video) * video_bytes + len(captions) * query_bytes) / SHARDS_PER_SPLIT
        limit = min(max(limit, SMALLEST_SHARD_BYTES), SHARD_BYTES)
        shards: list[list[tuple[str, tuple[Caption, ...]]]] = []
        sizes = [limit]
        for video, own in by_video.items():
            own_bytes = video_bytes + len(own) * query_bytes
            if sizes[-1] + own_bytes > limit:
                shards.append([])
                sizes.append(0)
            shards[-1].append((video, tuple(own)))
            sizes[-1] += own_bytes
        stems[split] = tuple(f"{split}-{number:05d}" for number in range(len(shards)))
        plans += [
            _ShardPlan(stem, size, tuple(shard))
            for stem, size, shard in zip(stems[split], sizes[1:], shards, strict=True)
        ]
    return plans, stems


def _split_record(captions: Sequence[Caption], stems: tuple[str, ...]) -> SplitRecord:
    return SplitRecord(len({caption.video for caption in captions}), len(captions), stems)


def _already_converted(out: Path, conversion: dict[str, Any]) -> Conversion:
    manifest = ShardSet.open(out).manifest
    differences = _differences(dict(manifest.conversion), conversion)
    if differences:
        raise UserError(f"{out}: holds shards that differ ({differences}); choose another --out or remove the folder")
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)  # of a run killed between the manifest and its end
    shards = {stem for record in manifest.splits.values() for stem in record.shards}
    return Conversion(manifest, True, len(shards), Progress(0, 0, 0, 0, 0.0))


def _differences(there: dict[str, Any], wanted: dict[str, Any]) -> str:
    parts = []
    for part in ("settings", "source"):
        for key in dict.fromkeys([*wanted[part], *there[part]]):
            before, now = there[part].get(key), wanted[part].get(key)
            if before != now:
                parts.append(f"{key}: {before} there, {now} now" if part == "settings" else f"another {key}")
    return "; ".join(parts)


def _opened_records(out: Path, conversion: dict[str, Any]) -> Path:
    """The folder of records in `out`, new or of an earlier run of the same conversion."""
    records = out / UNFINISHED
    settings_path = records / "settings.json"
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file, must be a folder for the shards")
    if settings_path.is_file():
        difference = _differences(json.loads(settings_path.read_text(encoding="utf-8")), conversion)
        if difference:
            raise UserError(
                f"{out}: holds an unfinished conversion that differs ({difference}); choose another --out or remove the folder"
            )
    elif out.is_dir() and [entry for entry in out.iterdir() if entry != records]:
        raise UserError(f"{out}: holds other files; choose another --out")
    with writing(out):
        records.mkdir(parents=True, exist_ok=True)
        write_json(settings_path, conversion)
    return records


def has_finished_shards(out: Path) -> bool:
    """Whether an unfinished conversion has left shards in the folder from which the same one goes on."""
    return any(path.name != "settings.json" for path in (out / UNFINISHED).glob("*.json"))


@contextmanager
def _locked(records: Path) -> Iterator[None]:
    with open(records / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{records.parent}: another conversion is writing there") from None
        yield


def _kept_files(out: Path, records: Path, plans: Sequence[_ShardPlan]) -> dict[str, dict[str, FileRecord]]:
    """The files of every shard that an earlier run finished, by shard; those whose checksums are wrong are made anew."""
    _remove_partial_files(out)
    kept = {}
    for plan in plans:
        try:
            values = json.loads((records / f"{plan.stem}.json").read_text(encoding="utf-8"))
            files = {name: FileRecord(**record) for name, record in values.items()}
            if all(file_record(out / name) == record for name, record in files.items()):
                kept[plan.stem] = files
        except (OSError, ValueError, TypeError):
            continue
    return kept


def _remove_partial_files(out: Path) -> None:
    for path in out.glob(".*.partial-*"):
        path.unlink(missing_ok=True)


def _discard(out: Path, plans: Sequence[_ShardPlan]) -> None:
    """Removes what a conversion has written, and `out` where nothing else is in it."""
    for plan in plans:
        for kind in ("videos", "queries"):
            (out / f"{plan.stem}.{kind}.arrow").unlink(missing_ok=True)
    _remove_partial_files(out)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    with suppress(OSError):
        out.rmdir()


def _task(plan: _ShardPlan, source: Source, dtype: FeatureType, out: Path) -> _ShardTask:
    fractions = None
    if source.moment_fractions is not None:
        known = source.moment_fractions
        fractions = np.array([known.get(caption.query, np.nan) for _, own in plan.captions for caption in own])
    return _ShardTask(plan, source.raw.subset([video for video, _ in plan.captions]), fractions, dtype, out)


def _run(tasks: Sequence[_ShardTask], workers: int) -> Iterator[tuple[str, dict[str, FileRecord], int]]:
    """Makes shards in any order; yields name, files and raw bytes read of each."""
    workers = min(workers, len(tasks), 1 + int(sum(task.plan.bound for task in tasks) / PROCESS_BYTES))
    if workers <= 1:
        for task in tasks:
            yield _make_shard(task)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once, not by every process
    executor = ProcessPoolExecutor(workers, context, _follow_parent)
    try:
        futures: list[Future[tuple[str, dict[str, FileRecord], int]]] = [
            executor.submit(_make_shard, task) for task in tasks
        ]
        for future in as_completed(futures):
            yield future.result()
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """In a worker process: leave Ctrl-C to the parent, and end when it is gone, even if killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _make_shard(task: _ShardTask) -> tuple[str, dict[str, FileRecord], int]:
    """Reads, pools, normalises and writes one shard, and then its record."""
    content, raw_bytes = _content(task)
    files = write_shard(task.out, task.plan.stem, content)
    write_json(
        task.out / UNFINISHED / f"{task.plan.stem}.json", {name: asdict(record) for name, record in files.items()}
    )
    return task.plan.stem, files, raw_bytes


def _content(task: _ShardTask) -> tuple[ShardContent, int]:
    raw = task.raw
    videos = [video for video, _ in task.plan.captions]
    captions = [caption for _, own in task.plan.captions for caption in own]
    dtype = getattr(torch, task.dtype)
    clips = torch.empty(len(videos), CLIPS, raw.video_size, dtype=dtype)
    frames = torch.empty(len(videos) * FRAMES, raw.video_size, dtype=dtype)  # memory is used as far as it is filled
    tokens = torch.empty(len(captions) * QUERY_TOKENS, raw.text_size, dtype=dtype)
    frame_counts, token_counts = [], []
    raw_bytes = end = 0
    for row, video in enumerate(videos):
        features = raw.video(video)
        raw_bytes += features.nbytes
        # torch converts to float16 twenty times as fast as numpy.
        clips[row].copy_(torch.from_numpy(pooling.clips(features)))
        rows = pooling.frames(features)
        frames[end : end + len(rows)].copy_(torch.from_numpy(rows))
        frame_counts.append(len(rows))
        end += len(rows)
    frames = frames[:end]
    end = 0
    for caption in captions:
        features = raw.query(caption.query)
        raw_bytes += features.nbytes
        rows = pooling.query_tokens(features)
        tokens[end : end + len(rows)].copy_(torch.from_numpy(rows))
        token_counts.append(len(rows))
        end += len(rows)
    content = ShardContent(
        videos=videos,
        clips=clips.numpy(),
        frames=frames.numpy(),
        frame_counts=np.array(frame_counts),
        queries=[caption.query for caption in captions],
        texts=[caption.text for caption in captions],
        owner=np.repeat(np.arange(len(videos)), [len(own) for _, own in task.plan.captions]),
        tokens=tokens[:end].numpy(),
        token_counts=np.array(token_counts),
        moment_fractions=task.moment_fractions,
    )
    return content, raw_bytes


class _Tally:
    """Counts finished shards and reports after each."""

    def __init__(
        self, plans: Sequence[_ShardPlan], kept: Sequence[_ShardPlan], report: Callable[[Progress], None]
    ) -> None:
        self._videos = {plan.stem: len(plan.captions) for plan in plans}
        self._done = sum(self._videos[plan.stem] for plan in kept)
        self._converted = 0
        self._raw_bytes = 0
        self._start = time.perf_counter()
        self._report = report

    def add(self, stem: str, raw_bytes: int) -> None:
        self._done += self._videos[stem]
        self._converted += self._videos[stem]
        self._raw_bytes += raw_bytes
        self._report(self.progress())

    def progress(self) -> Progress:
        return Progress(
            self._done, sum(self._videos.values()), self._converted, self._raw_bytes, time.perf_counter() - self._start
        )

"""Conversion of a source into a directory of shards, in parallel and resumable after a kill.

While it runs, SHARDS/conversion/ holds `settings.json` and, for every finished shard, a record of its files' sizes and
checksums. Files are renamed into place once they are complete; at the end the manifest is written and that directory
removed. A shard's bytes depend on the source and settings only. Imports no torch.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamprvr_ray.data import pooling
from dreamprvr_ray.data.captions import Caption
from dreamprvr_ray.data.checked_files import remember_files
from dreamprvr_ray.data.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    UNFINISHED,
    FeatureType,
    FileRecord,
    Manifest,
    Protocol,
    SplitRecord,
)
from dreamprvr_ray.data.overlaps import find_overlaps
from dreamprvr_ray.data.shard_plan import ConversionSettings, ShardPlan, choose_splits, plan_shards
from dreamprvr_ray.data.shard_workers import FinishedShard, ShardTask, make_shards
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.files import remove_partial_files, write_json, writing

_SETTINGS = "settings.json"  # in the directory of an unfinished conversion


@dataclass(frozen=True)
class Progress:
    """Progress of a conversion. `videos` of `all_videos` are finished.

    This run converted `converted_videos` of them, read `raw_bytes` and took `seconds`; earlier runs did the others.
    """

    videos: int
    all_videos: int
    converted_videos: int
    raw_bytes: int
    seconds: float


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion.

    Attributes:
        manifest: The manifest that was written, or found if `already_converted`.
        already_converted: An earlier run had finished; nothing was done.
        kept_shards: Number of shards that earlier runs had finished.
        progress: Final progress.
    """

    manifest: Manifest
    already_converted: bool
    kept_shards: int
    progress: Progress


def convert(
    source: Source,
    out: Path,
    settings: ConversionSettings,
    workers: int,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Conversion:
    """Write `source` as shards into the directory `out` with up to `workers` processes; call `report` after each shard.

    Resumes an earlier run with the same source and settings that was stopped, and does nothing if it had finished. An
    interrupt, a kill or a full disk leaves what is needed to resume.

    Raises:
        UserError: `out` holds anything else, or the source is invalid; in the latter case nothing is left behind.
    """
    protocol, splits = choose_splits(source, settings)
    conversion = {"settings": _relevant_settings(protocol, settings), "source": source.fingerprint()}
    if (out / MANIFEST).is_file():
        return _already_converted(out, conversion)
    plans, stems = plan_shards(splits, source.raw, settings.dtype)
    records = _open_records(out, conversion)
    with _lock(records):
        files = _finished_files(out, records, plans)
        finished = [plan for plan in plans if plan.stem in files]
        tasks = [_task(plan, source, settings.dtype, out) for plan in plans if plan.stem not in files]
        tally = _Tally(plans, finished, report)
        try:
            for shard in make_shards(tasks, workers):
                files[shard.stem] = shard.files
                tally.add(shard)
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
        ).with_overlaps(find_overlaps(splits))
        manifest.write(out)
        remember_files(out, manifest.files)
        shutil.rmtree(records)
    return Conversion(manifest, False, len(finished), tally.progress())


def has_finished_shards(out: Path) -> bool:
    """Return whether an unfinished conversion has left shards in `out` that running it again will keep."""
    return any(path.name != _SETTINGS for path in (out / UNFINISHED).glob("*.json"))


def _relevant_settings(protocol: Protocol, settings: ConversionSettings) -> dict[str, Any]:
    """Return the settings on which the shards depend."""
    carving = {"dev_fraction": settings.dev_fraction, "seed": settings.seed} if protocol == "dev" else {}
    return {"dtype": settings.dtype, "protocol": protocol, **carving}


def _split_record(captions: Sequence[Caption], stems: tuple[str, ...]) -> SplitRecord:
    return SplitRecord(len({caption.video for caption in captions}), len(captions), stems)


def _already_converted(out: Path, conversion: Mapping[str, Any]) -> Conversion:
    manifest = Manifest.open(out)
    differences = _differences(manifest.conversion, conversion)
    if differences:
        raise UserError(
            f"{out}: already holds shards of another conversion ({differences}); choose another directory or remove it"
        )
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)  # of a run killed just after it wrote the manifest
    shards = {stem for record in manifest.splits.values() for stem in record.shards}
    return Conversion(manifest, True, len(shards), Progress(0, 0, 0, 0, 0.0))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words how two conversions differ; an empty string if they do not."""
    parts = []
    for part in ("settings", "source"):
        for key in dict.fromkeys([*now[part], *before[part]]):
            old, new = before[part].get(key), now[part].get(key)
            if old != new:
                parts.append(f"{key}: {old} before, {new} now" if part == "settings" else f"{key} changed")
    return "; ".join(parts)


def _open_records(out: Path, conversion: Mapping[str, Any]) -> Path:
    """Return the directory of records in `out`, new or of an earlier run of the same conversion."""
    records = out / UNFINISHED
    settings_path = records / _SETTINGS
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; must be a directory")
    if settings_path.is_file():
        differences = _differences(json.loads(settings_path.read_text(encoding="utf-8")), conversion)
        if differences:
            raise UserError(
                f"{out}: holds another, unfinished conversion ({differences}); choose another directory or remove it"
            )
    elif out.is_dir() and [entry for entry in out.iterdir() if entry != records]:
        raise UserError(f"{out}: holds other files; choose another directory")
    with writing(out):
        records.mkdir(parents=True, exist_ok=True)
        write_json(settings_path, conversion)
    return records


@contextmanager
def _lock(records: Path) -> Iterator[None]:
    with open(records / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{records.parent}: another conversion is using this directory; wait for it to finish"
            ) from None
        yield


def _finished_files(out: Path, records: Path, plans: Sequence[ShardPlan]) -> dict[str, dict[str, FileRecord]]:
    """Return the files of each shard that an earlier run finished and whose checksums are right, by shard."""
    remove_partial_files(out)
    finished = {}
    for plan in plans:
        try:
            values = json.loads((records / f"{plan.stem}.json").read_text(encoding="utf-8"))
            files = {name: FileRecord(**record) for name, record in values.items()}
            if all(FileRecord.of(out / name) == record for name, record in files.items()):
                finished[plan.stem] = files
        except (OSError, ValueError, TypeError):
            continue
    return finished


def _discard(out: Path, plans: Sequence[ShardPlan]) -> None:
    """Remove what a conversion has written, and `out` if nothing else is in it."""
    for plan in plans:
        for kind in ("videos", "queries"):
            (out / f"{plan.stem}.{kind}.arrow").unlink(missing_ok=True)
    remove_partial_files(out)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    with suppress(OSError):
        out.rmdir()


def _task(plan: ShardPlan, source: Source, dtype: FeatureType, out: Path) -> ShardTask:
    fractions = None
    if source.moment_fractions is not None:
        known = source.moment_fractions
        fractions = np.array([known.get(caption.query, np.nan) for _, own in plan.captions for caption in own])
    return ShardTask(plan, source.raw.subset([video for video, _ in plan.captions]), fractions, dtype, out)


class _Tally:
    """Counts finished shards and reports after each."""

    def __init__(
        self, plans: Sequence[ShardPlan], finished: Sequence[ShardPlan], report: Callable[[Progress], None]
    ) -> None:
        self._videos = {plan.stem: len(plan.captions) for plan in plans}
        self._done = sum(self._videos[plan.stem] for plan in finished)
        self._converted = 0
        self._raw_bytes = 0
        self._start = time.perf_counter()
        self._report = report

    def add(self, shard: FinishedShard) -> None:
        self._done += self._videos[shard.stem]
        self._converted += self._videos[shard.stem]
        self._raw_bytes += shard.raw_bytes
        self._report(self.progress())

    def progress(self) -> Progress:
        seconds = time.perf_counter() - self._start
        return Progress(self._done, sum(self._videos.values()), self._converted, self._raw_bytes, seconds)

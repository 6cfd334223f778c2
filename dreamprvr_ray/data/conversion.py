"""Conversion of a source into a directory of shards, in parallel and resumable after a kill.

While it runs, SHARDS/conversion/ holds `settings.json` and, for every finished shard, a record of its files' sizes and
checksums (`conversion_records`). Files are renamed into place once they are complete; at the end the manifest is
written and that directory removed. A shard's bytes depend on the source and settings only. Imports no torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dreamprvr_ray.data import pooling
from dreamprvr_ray.data.captions import Caption, KnownMoment
from dreamprvr_ray.data.checked_files import remember_files
from dreamprvr_ray.data.conversion_records import (
    ShardRecord,
    describe_differences,
    discard,
    has_records,
    lock_records,
    open_records,
    read_record,
    remove_partial_shards,
    remove_records,
)
from dreamprvr_ray.data.encoding import SEARCH
from dreamprvr_ray.data.manifest import (
    MANIFEST,
    SCHEMA_VERSION,
    FeatureType,
    Manifest,
    Protocol,
    SplitRecord,
)
from dreamprvr_ray.data.near_misses import quoted
from dreamprvr_ray.data.one_encoder import LEAST, encoder_area
from dreamprvr_ray.data.one_encoder import SPLITS as MEASURED
from dreamprvr_ray.data.overlaps import find_overlaps
from dreamprvr_ray.data.right_videos import left_out_notes, within_splits
from dreamprvr_ray.data.shard_files import MappedShard
from dreamprvr_ray.data.shard_plan import ConversionSettings, ShardPlan, choose_splits, plan_shards
from dreamprvr_ray.data.shard_workers import FinishedShard, ShardTask, make_shards
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.files import reading, remove_empty

_NAMED = 3  # how many ids a note names


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
        notes: What is odd in the features and no error, a line each.
        encoder_area: What `one_encoder.encoder_area` measured; None if it was not measured.
    """

    manifest: Manifest
    already_converted: bool
    kept_shards: int
    progress: Progress
    notes: tuple[str, ...]
    encoder_area: float | None = None


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
    protocol, chosen = choose_splits(source, settings)
    splits = within_splits(chosen)
    conversion = {"settings": _relevant_settings(protocol, settings), "source": source.fingerprint()}
    with reading(out):
        finished = (out / MANIFEST).is_file()
    if finished:
        return _already_converted(out, conversion, settings, source)
    uncaptioned = source.uncaptioned
    plans, stems = plan_shards(splits, source.raw, settings.dtype, uncaptioned)
    created = [parent for parent in out.absolute().parents if not parent.exists()]
    open_records(out, conversion)
    names = [plan.stem for plan in plans]
    with lock_records(out):
        remove_partial_shards(out, names)
        records = {stem: record for stem in names if (record := read_record(out, stem)) is not None}
        kept = [plan for plan in plans if plan.stem in records]
        tasks = [_task(plan, source, settings.dtype, out) for plan in plans if plan.stem not in records]
        tally = _Tally(plans, kept, report)
        try:
            for shard in make_shards(tasks, workers):
                records[shard.stem] = shard.record
                tally.add(shard)
        except (UserError, OSError) as error:
            if isinstance(error, UserError) or not has_records(out):  # else a full disk: what is finished is kept
                discard(out, names)
                remove_empty(created)
            raise
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            collection=source.collection,
            features=source.features,
            video_size=source.raw.video_size,
            text_size=source.raw.text_size,
            dtype=settings.dtype,
            protocol=protocol,
            splits={split: _split_record(captions, stems[split]) for split, captions in splits.items()}
            | ({SEARCH: SplitRecord(len(uncaptioned), 0, stems[SEARCH])} if uncaptioned else {}),
            preprocessing=pooling.PREPROCESSING,
            conversion=conversion,
            files={name: record for stem in names for name, record in records[stem].files.items()},
            encoding=source.encoding,
        ).with_overlaps(find_overlaps(splits))
        area = _encoder_area(out, manifest) if settings.one_encoder is None else None
        known = settings.one_encoder if area is None else area >= LEAST
        if known is None and source.encoding is not None and source.encoding.sentences is not None and not splits:
            known = source.encoding.frames.name == source.encoding.sentences.name
        manifest = replace(manifest, one_encoder=known if manifest.video_size == manifest.text_size else False)
        manifest.write(out)
        remember_files(out, manifest.files)
        remove_records(out, names)
    return Conversion(
        manifest, False, len(kept), tally.progress(), (*left_out_notes(chosen), *_notes(source, plans, records)), area
    )


def _relevant_settings(protocol: Protocol, settings: ConversionSettings) -> dict[str, Any]:
    """Return the settings on which the shards depend."""
    carving = {"dev_fraction": settings.dev_fraction, "seed": settings.seed} if protocol == "dev" else {}
    return {"dtype": settings.dtype, "protocol": protocol, **carving}


def _split_record(captions: Sequence[Caption], stems: tuple[str, ...]) -> SplitRecord:
    return SplitRecord(len({caption.video for caption in captions}), len(captions), stems)


def _encoder_area(out: Path, manifest: Manifest) -> float | None:
    """Return what tells whether frames and queries of the shards in `out` come from one encoder."""
    split = next((split for split in MEASURED if split in manifest.splits), None)
    if split is None:  # no captions
        return None
    sizes = (manifest.dtype, manifest.video_size, manifest.text_size)
    return encoder_area([MappedShard(out, stem, *sizes) for stem in manifest.splits[split].shards])


def _already_converted(
    out: Path, conversion: Mapping[str, Any], settings: ConversionSettings, source: Source
) -> Conversion:
    manifest = Manifest.open(out)
    differences = describe_differences(manifest.conversion, conversion)
    if differences:
        raise UserError(
            f"{out}: already holds shards of another conversion ({differences}); choose another directory or remove it"
        )
    if settings.one_encoder not in (None, manifest.one_encoder):
        manifest = replace(manifest, one_encoder=settings.one_encoder)
        manifest.write(out)
    shards = sorted({stem for record in manifest.splits.values() for stem in record.shards})
    remove_records(out, shards)  # of a run killed just after it wrote the manifest
    notes: tuple[str, ...] = ()
    if _lacks_windows(out, manifest, source):
        notes = (
            f"{out}: written by an earlier version, without the annotated windows of moments, so `evaluate` cannot say"
            " how well moments are found; to measure it, convert into another directory",
        )
    return Conversion(manifest, True, len(shards), Progress(0, 0, 0, 0, 0.0), notes)


def _lacks_windows(out: Path, manifest: Manifest, source: Source) -> bool:
    """Return whether the source knows windows of moments, but the shards do not."""
    if not any(moment.windows for moment in (source.moments or {}).values()):
        return False
    sizes = (manifest.dtype, manifest.video_size, manifest.text_size)
    stems = [stem for record in manifest.splits.values() for stem in record.shards]
    return any(MappedShard(out, stem, *sizes).moment_windows is None for stem in stems)


def _task(plan: ShardPlan, source: Source, dtype: FeatureType, out: Path) -> ShardTask:
    moments = None
    if source.moments is not None:
        unknown, known = KnownMoment(np.nan), source.moments
        moments = [known.get(caption.query, unknown) for _, own in plan.captions for caption in own]
    videos = [video for video, _ in plan.captions]
    times = None if source.times is None else [source.times[video] for video in videos]
    return ShardTask(plan, source.raw.subset(videos), moments, dtype, out, times)


def _notes(source: Source, plans: Sequence[ShardPlan], records: Mapping[str, ShardRecord]) -> Iterator[str]:
    """Yield a line for each kind of odd features: zero, too short to be normalised, or huge."""
    videos = sum(len(plan.captions) for plan in plans)
    queries = sum(len(own) for plan in plans for _, own in plan.captions)
    for name, problem in (
        ("zero", "are all zeros: were they missing?"),
        ("short", f"have rows of almost no length ({pooling.SHORT:g} or less), which normalising leaves short: is the"
         " scale right?"),
        ("huge", f"hold values above {pooling.LARGEST_FLOAT32:g}: are they damaged?"),
    ):  # fmt: skip
        ids = list(dict.fromkeys(id for plan in plans for id in getattr(records[plan.stem].rows, name)))
        for kind, count, own in (
            ("videos", videos, [id.removeprefix("video ") for id in ids if id.startswith("video ")]),
            ("queries", queries, [id.removeprefix("query ") for id in ids if id.startswith("query ")]),
        ):
            if own:
                named = ", ".join(map(quoted, own[:_NAMED])) + (", ..." if len(own) > _NAMED else "")
                yield f"{source.origin}: features of {len(own):,} of {count:,} {kind} {problem} {named}"


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

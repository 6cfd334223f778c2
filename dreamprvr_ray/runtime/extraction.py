"""An extraction from start to end: from a directory of videos and a table of captions to a source tree.

Every finished video is kept in SOURCE/extraction at once (`extraction_store`), so that a second run does only what is
missing. Ray starts only if anything is.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dreamprvr_ray.data.encoding import EncoderRecord, EncodingRecord
from dreamprvr_ray.data.near_misses import quoted
from dreamprvr_ray.errors import Failure, UserError, first_few
from dreamprvr_ray.runtime.extraction_progress import ExtractionProgress, Tally
from dreamprvr_ray.runtime.extraction_settings import ExtractionSettings, check_settings
from dreamprvr_ray.runtime.session import ray_session
from dreamprvr_ray.storage.files import writing
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.video.captions import CaptionRow, read_caption_table
from dreamprvr_ray.video.directory import FoundVideos, ListedVideo, MatchedCaptions, find_videos, match_captions
from dreamprvr_ray.video.extracted_source import SourceCounts, SourcePlan, choose_splits, write_source
from dreamprvr_ray.video.extraction_store import ExtractionStore, VideoFeatures, WrittenTree, video_key
from dreamprvr_ray.video.tree_files import move_files, new_tree, remove_file

FAILURES = "failures.jsonl"
SENTENCES_PER_PART = 1024
_RESUME = "run the same command again"


@dataclass(frozen=True)
class Extraction:
    """The result of an extraction.

    Attributes:
        collection: Name of the collection.
        counts: What the source tree holds.
        encoding: How it was encoded.
        videos: Number of files that were found.
        encoded: How many this run encoded.
        failures: Why files were skipped, by path.
        missing_captions: Captions of videos that do not exist.
        failed_captions: Captions of videos that failed.
        already_extracted: Nothing was left to do.
        files: The files of the source tree, relative to it.
        notes: What should be known, a line each.
    """

    collection: str
    counts: SourceCounts
    encoding: EncodingRecord
    videos: int
    encoded: int
    failures: Mapping[str, str]
    missing_captions: int
    failed_captions: int
    already_extracted: bool
    files: tuple[str, ...]
    notes: tuple[str, ...]


def extract(
    settings: ExtractionSettings,
    log: Callable[[str], None] = lambda line: None,
    report: Callable[[ExtractionProgress], None] = lambda progress: None,
) -> Extraction:
    """Encode what is missing, and write the source tree.

    Raises:
        UserError: Something in the settings, the captions or the videos' names is wrong, `out` holds something else or
            was extracted with other settings, or an encoder cannot be loaded.
        Failure: No video could be encoded, or the encoder failed.
    """
    if importlib.util.find_spec("av") is None:
        raise UserError("decoding videos requires PyAV; install with pip install 'dreamprvr_ray[video]'")
    found = find_videos(settings.videos)
    matched = _matched(settings, found)
    source = Storage.of(settings.out)
    collection = settings.collection or source.name
    if not collection or "/" in collection:
        raise UserError(f"--collection {quoted(collection)}: must be the name of a collection, such as kitchen")
    store = ExtractionStore(source)
    with source.lock():
        store.check_is_own()
        known = store.settings()
        if known is not None:
            check_settings(settings, known, source)
        run = _Run(settings, store, found, matched, report)
        if run.is_needed or known is None:
            with ray_session(dashboard=False, log=log, resume=_RESUME):
                run.encode(known, source)
            known = store.settings()
        assert known is not None
        _write_failures(source, run.failures)
        if not run.available:
            raise Failure(f"none of {len(found.videos) + len(found.left_out):,} videos could be encoded: {_first(run)}")
        return _finish(settings, source, store, run, known, collection)


def _matched(settings: ExtractionSettings, found: FoundVideos) -> MatchedCaptions:
    if settings.captions is None:
        return MatchedCaptions((), ())
    rows = read_caption_table(settings.captions, settings.columns)
    return match_captions(rows, found.videos, settings.videos, settings.captions, settings.skip_missing)


class _Run:
    """What one run encodes."""

    def __init__(
        self,
        settings: ExtractionSettings,
        store: ExtractionStore,
        found: FoundVideos,
        matched: MatchedCaptions,
        report: Callable[[ExtractionProgress], None],
    ) -> None:
        self._settings, self._store, self._found, self._report = settings, store, found, report
        self._finished = store.finished_videos()
        self._todo = [video for video in found.videos if video_key(video) not in self._finished]
        sentences = dict.fromkeys(row.sentence for _, row in matched.rows)
        known = store.finished_sentences() if sentences else set()
        self._sentences = [sentence for sentence in sentences if sentence not in known]
        self.matched = matched
        self.failures = dict(found.left_out)
        self.encoded = 0

    @property
    def is_needed(self) -> bool:
        """Whether anything is left to encode."""
        return bool(self._todo or self._sentences)

    @property
    def available(self) -> list[ListedVideo]:
        """The videos whose features exist."""
        return [video for video in self._found.videos if video_key(video) in self._finished]

    def encode(self, known: EncodingRecord | None, source: Storage) -> None:
        """Encode the videos and sentences that are missing; Ray must be connected."""
        from dreamprvr_ray.runtime.video_pipeline import Pools, describe_encoders

        settings = self._settings
        pools = Pools.plan(settings.workers)
        needs_sentences = settings.captions is not None or settings.sentence_encoder is not None
        frames, sentences = describe_encoders(pools, settings.encoder, settings.sentences, needs_sentences)
        if known is not None:
            _check_encoder(known.frames, frames, source)
            if known.sentences is not None and sentences is not None:
                _check_encoder(known.sentences, sentences, source)
        if known is None or (known.sentences is None and sentences is not None):
            self._store.write_settings(EncodingRecord(frames, sentences, settings.fps))
        if self._todo:
            self._encode_videos(pools)
        if self._sentences:
            self._encode_sentences(pools)

    def _encode_videos(self, pools: object) -> None:
        from dreamprvr_ray.runtime import video_pipeline as pipeline

        assert isinstance(pools, pipeline.Pools)
        settings = self._settings
        root = settings.videos.resolve()
        tasks = [pipeline.VideoTask(video.id, str(root / video.file), video.bytes) for video in self._todo]
        videos = {video.id: video for video in self._todo}
        files = len(self._found.videos) + len(self._found.left_out)
        tally = Tally(self._todo, len(self.available), files, settings.fps)
        self._report(tally.progress(len(self.failures)))
        for event in pipeline.encode_videos(tasks, settings.encoder, settings.fps, pools):
            if isinstance(event, pipeline.StartedVideo):
                tally.start(event.id, event.seconds)
            elif isinstance(event, pipeline.EncodedFrames):
                tally.add(event.id, event.count)
            elif isinstance(event, pipeline.FailedVideo):
                self.failures[videos[event.id].file] = event.reason
                tally.end(event.id, encoded=False)
            else:
                key = video_key(videos[event.id])
                self._store.write_video(
                    key, videos[event.id], VideoFeatures(event.features, event.duration, event.warning)
                )
                self._finished.add(key)
                self.encoded += 1
                tally.end(event.id, encoded=True, frames=len(event.features))
            self._report(tally.progress(len(self.failures)))

    def _encode_sentences(self, pools: object) -> None:
        from dreamprvr_ray.runtime import video_pipeline as pipeline

        assert isinstance(pools, pipeline.Pools) and self._settings.sentences is not None
        waiting = []
        for batch in pipeline.encode_sentences(self._sentences, self._settings.sentences, pools):
            waiting += batch
            while len(waiting) >= SENTENCES_PER_PART:
                self._store.write_sentences(waiting[:SENTENCES_PER_PART])
                waiting = waiting[SENTENCES_PER_PART:]
        if waiting:
            self._store.write_sentences(waiting)


def _check_encoder(before: EncoderRecord, now: EncoderRecord, source: Storage) -> None:
    if differences := before.differences(now):
        raise UserError(
            f"{source}: was extracted with another version of {now.name} ({'; '.join(first_few(differences))});"
            " choose another --out, or install that version"
        )


def _first(run: _Run) -> str:
    file, why = min(run.failures.items())
    return f"{file}: {why}"


def _write_failures(source: Storage, failures: Mapping[str, str]) -> None:
    if failures or source.exists(FAILURES):
        lines = [
            json.dumps({"file": file, "reason": why}, ensure_ascii=False) for file, why in sorted(failures.items())
        ]
        source.write_text(FAILURES, "".join(f"{line}\n" for line in lines))


def _finish(
    settings: ExtractionSettings,
    source: Storage,
    store: ExtractionStore,
    run: _Run,
    known: EncodingRecord,
    collection: str,
) -> Extraction:
    """Write the source tree unless it is up to date, and return the result."""
    window = settings.windows
    overlap = None if window.length is None or window.stride is None else window.length - window.stride
    encoding = replace(known, window=window.length, overlap=overlap)
    videos = run.available
    ids = {video.id for video in videos}
    captions = [(id, row) for id, row in run.matched.rows if id in ids]
    # Of all captioned videos, so that a file that is repaired later does not change the others' splits.
    splits = choose_splits(run.matched.rows, settings.splits)
    plan = SourcePlan(collection, encoding, videos, captions, splits, str(settings.captions))
    before, digest = store.written(), plan.digest()
    files = before.files
    known_summary = before.summary.keys() == vars(SourceCounts()).keys()
    up_to_date = before.digest == digest and known_summary and all(source.exists(file) for file in files)
    if up_to_date:
        counts = SourceCounts(**before.summary)
    else:
        with new_tree(source) as folder:
            with writing(folder):
                counts = write_source(folder, plan, store)
            new = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            store.record_written(WrittenTree(files=tuple({*files, *new})))
            move_files(folder, new, source)
        for file in set(files) - set(new):
            remove_file(source, file)
        files = tuple(new)
        store.record_written(WrittenTree(digest, files, vars(counts)))
    return Extraction(
        collection=collection,
        counts=counts,
        encoding=encoding,
        videos=len(run.available) + len(run.failures),
        encoded=run.encoded,
        failures=run.failures,
        missing_captions=len(run.matched.missing),
        failed_captions=len(run.matched.rows) - len(captions),
        already_extracted=up_to_date and not run.encoded,
        files=files,
        notes=tuple(_notes(settings, plan, counts, run.matched.rows)),
    )


def _notes(
    settings: ExtractionSettings, plan: SourcePlan, counts: SourceCounts, rows: Sequence[tuple[str, CaptionRow]]
) -> Iterator[str]:
    yield from first_few([f"warning: {warning}" for warning in counts.warnings], 5)
    if counts.long_videos and settings.windows.length is None:
        yield (
            f"{counts.long_videos:,} videos have more than 128 frames, up to {counts.longest_frames:,}: a row of the"
            f" longest stands for {counts.longest_frames / 128 / plan.encoding.fps:.1f} s, in which short moments"
            f" disappear; --window {128 / plan.encoding.fps:g} cuts them into windows"
        )
    if plan.splits:
        names = [f"{name} {list(plan.splits.values()).count(name):,}" for name in dict.fromkeys(plan.splits.values())]
        yield f"splits drawn by video, with seed {settings.splits.seed}: {', '.join(sorted(names))}"

"""Writing the source tree of an extraction, in the layout that `convert` reads (docs/data.md). Imports no torch.

FeatureData/<features>/feature.hdf5            the frames of each video or window
TextData/<collection><split>.caption.jsonl     the captions, with all windows that are right
TextData/<collection>_query_feat.hdf5, <collection>_sentence_feat.hdf5
moments.jsonl, encoding.json, video_times.jsonl
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dreamprvr_ray.config_sections import FRAMES
from dreamprvr_ray.data.caption_files import SPLITS
from dreamprvr_ray.data.encoding import ENCODING, VIDEO_TIMES, EncodingRecord, VideoTimes, format_video_times
from dreamprvr_ray.data.shard_plan import carve
from dreamprvr_ray.data.source_writer import new_hdf5
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.files import write_json
from dreamprvr_ray.video.captions import CaptionRow
from dreamprvr_ray.video.directory import ListedVideo
from dreamprvr_ray.video.extraction_store import ExtractionStore, VideoFeatures, video_key
from dreamprvr_ray.video.windows import Window, WindowSettings, cut, windows_of_moment

LATE = 1.0  # seconds by which a moment may exceed its video without a warning
LEAST_CARVED = 3  # captioned videos that are divided into splits


@dataclass(frozen=True)
class SplitSettings:
    """How captioned videos are divided if the table of captions has no splits."""

    val: float = 0.1
    test: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, fraction in (("val", self.val), ("test", self.test)):
            if not 0 < fraction < 1:
                raise UserError(f"--{name}-fraction {fraction:g}: must be above 0 and below 1")
        if self.val + self.test >= 1:
            raise UserError(f"--val-fraction {self.val:g} --test-fraction {self.test:g}: leave no video to train on")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must be 0 or more")


@dataclass(frozen=True, eq=False)
class SourcePlan:
    """What a source tree is made from.

    Attributes:
        collection: Name of the collection.
        encoding: How videos and sentences are encoded, and the windows.
        videos: The encoded videos, in order.
        captions: Each caption with the id of its video, in the order of the table.
        splits: The split of each video that has captions, unless the captions have their own.
        origin: The table of captions, for messages.
    """

    collection: str
    encoding: EncodingRecord
    videos: Sequence[ListedVideo]
    captions: Sequence[tuple[str, CaptionRow]]
    splits: Mapping[str, str]
    origin: str = ""

    def digest(self) -> str:
        """Return what changes if anything does that the source tree depends on."""
        content = [
            self.collection,
            self.encoding.to_dict(),
            [(video.id, video_key(video)) for video in self.videos],
            [(video, row.sentence, row.start, row.end, row.split) for video, row in self.captions],
            dict(self.splits),
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass
class SourceCounts:
    """What was written, and what is odd, a line each."""

    videos: int = 0
    windows: int = 0
    seconds: float = 0.0
    long_videos: int = 0  # those with more than 128 frames
    longest_frames: int = 0
    captions: dict[str, int] = field(default_factory=dict)
    dropped_captions: int = 0  # those that begin after the end of what could be decoded
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Query:
    """A caption with the windows that it is right for, its own first, and its moment in its own window."""

    id: str
    windows: tuple[Window, ...]
    sentence: str
    moment: tuple[float, float] | None


def choose_splits(captions: Sequence[tuple[str, CaptionRow]], settings: SplitSettings) -> dict[str, str]:
    """Return the split of each video that has captions: as the table says (nothing is returned), or drawn by video.

    With fewer than three captioned videos, all are test.
    """
    if any(row.split for _, row in captions):
        return {}
    videos = sorted({video for video, _ in captions})
    if len(videos) < LEAST_CARVED:
        return dict.fromkeys(videos, "test")
    test = carve(videos, settings.test, settings.seed)
    rest = [video for video in videos if video not in test]
    val = carve(rest, min(0.5, settings.val / (1 - settings.test)), settings.seed)
    return {video: "test" if video in test else "val" if video in val else "train" for video in videos}


def write_source(folder: Path, plan: SourcePlan, store: ExtractionStore) -> SourceCounts:
    """Write the source tree into the new directory `folder`. Raises OSError if the disk is full."""
    counts = SourceCounts()
    features_folder, text_folder = (
        folder / "FeatureData" / features_name(plan.encoding.frames.name),
        folder / "TextData",
    )
    features_folder.mkdir(parents=True)
    text_folder.mkdir(parents=True)
    by_video: defaultdict[str, list[CaptionRow]] = defaultdict(list)
    for id, row in plan.captions:
        by_video[id].append(row)
    settings = WindowSettings(plan.encoding.window, plan.encoding.overlap)
    fps = plan.encoding.fps
    times: list[tuple[str, VideoTimes]] = []
    queries: defaultdict[str, list[_Query]] = defaultdict(list)
    with new_hdf5(features_folder / "feature.hdf5") as (frames, target):
        for video in plan.videos:
            target.check()
            features = store.read_video(video_key(video))
            windows = cut(video.id, len(features.rows), fps, settings)
            for window in windows:
                frames[window.id] = features.rows[window.first : window.stop]
                count = window.stop - window.first
                times.append((window.id, VideoTimes(video.id, video.file, window.start, fps, count, features.duration)))
            for split, query in _queries(plan, video, by_video[video.id], windows, features, counts):
                queries[split].append(query)
            counts.videos += 1
            counts.long_videos += len(features.rows) > FRAMES
            counts.longest_frames = max(counts.longest_frames, len(features.rows))
            counts.windows += len(windows)
            counts.seconds += features.duration
            if features.warning:
                counts.warnings.append(f"{video.file}: {features.warning}")
    for split in SPLITS:
        if queries[split]:
            counts.captions[split] = len(queries[split])
            path = text_folder / f"{plan.collection}{split}.caption.jsonl"
            path.write_text("".join(map(_caption_line, queries[split])), encoding="utf-8")
    written = [query for split in SPLITS for query in queries[split]]
    if written:
        _write_sentences(text_folder, plan.collection, written, store)
    moments = "".join(_moment_line(query) for query in written if query.moment is not None)
    if moments:
        (folder / "moments.jsonl").write_text(moments, encoding="utf-8")
    (folder / VIDEO_TIMES).write_text(format_video_times(times), encoding="utf-8")
    write_json(folder / ENCODING, plan.encoding.to_dict())
    return counts


def features_name(encoder: str) -> str:
    """Return the name of an encoder's features, as a directory: the library and the last part of a local path."""
    library, _, model = encoder.partition(":")
    if model.startswith(("/", ".", "~")):
        model = model.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{library}-{model}").strip("-.") or "features"


def _queries(
    plan: SourcePlan,
    video: ListedVideo,
    rows: Sequence[CaptionRow],
    windows: Sequence[Window],
    features: VideoFeatures,
    counts: SourceCounts,
) -> Iterator[tuple[str, _Query]]:
    """Yield the captions of a video with their splits."""
    end = max(features.duration, len(features.rows) / plan.encoding.fps)
    for number, row in enumerate(rows):
        where = f"{plan.origin}, line {row.line}"
        start, stop = row.start, row.end
        if start is not None and stop is not None:
            if start >= end:
                counts.warnings.append(
                    f"{where}: starts at {start:g} s, but {video.file} ends at {features.duration:.1f} s; left out"
                )
                counts.dropped_captions += 1
                continue
            if stop > end + LATE:
                counts.warnings.append(f"{where}: ends at {stop:g} s, but {video.file} at {features.duration:.1f} s")
            stop = min(stop, end)
        right = windows_of_moment(windows, start, stop)
        own = right[0]
        moment = None
        if start is not None and stop is not None:
            moment = (max(start, own.start) - own.start, min(stop, own.end) - own.start)
        split = row.split or plan.splits[video.id]
        yield split, _Query(f"{video.id}#{number}", tuple(right), row.sentence, moment)


def _caption_line(query: _Query) -> str:
    values = {"query": query.id, "videos": [window.id for window in query.windows], "sentence": query.sentence}
    return json.dumps(values, ensure_ascii=False) + "\n"


def _moment_line(query: _Query) -> str:
    assert query.moment is not None
    window = query.windows[0]
    start, end = (round(seconds, 6) for seconds in query.moment)
    values = {"query": query.id, "video": window.id, "start": start, "end": end, "duration": window.end - window.start}
    return json.dumps(values, ensure_ascii=False) + "\n"


def _write_sentences(folder: Path, collection: str, queries: Sequence[_Query], store: ExtractionStore) -> None:
    """Write the features of the queries' sentences. Raises `UserError` if a sentence has none."""
    by_sentence: defaultdict[str, list[str]] = defaultdict(list)
    for query in queries:
        by_sentence[query.sentence].append(query.id)
    with (
        new_hdf5(folder / f"{collection}_query_feat.hdf5") as (tokens, tokens_target),
        new_hdf5(folder / f"{collection}_sentence_feat.hdf5") as (embeddings, embeddings_target),
    ):
        for part in store.sentence_parts():
            tokens_target.check()
            embeddings_target.check()
            stop = 0
            for place, (sentence, count) in enumerate(zip(part.sentences, part.counts.tolist(), strict=True)):
                start, stop = stop, stop + count
                for query_id in by_sentence.pop(sentence, ()):
                    tokens[query_id] = part.tokens[start:stop]
                    embeddings[query_id] = part.embeddings[place]
    if by_sentence:
        raise UserError(f"a sentence has no features: {next(iter(by_sentence))[:80]}; run the command again")

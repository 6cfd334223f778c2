"""A source tree: the layouts in which the benchmarks distribute features and captions.

    ROOT/<collection>/FeatureData/<features>/feature.hdf5                    one dataset (n, Dv) per video id, or
                                             feature.bin                     float32 rows (R, Dv) of all frames,
                                             id.txt, shape.txt               the rows' frame ids; "R Dv"
                                             video2frames.txt                {video id: [frame ids]}, a Python literal
    ROOT/<collection>/TextData/<collection><split>.caption.txt               lines "<video id>#<anything> <caption>"
                               <collection><split>.caption.jsonl             instead: JSON lines (`json_captions`)
                               <collection><split>.labels.jsonl              optional: right videos of queries
                               <anything>query_feat.hdf5                     one dataset (Lq, Dt) or (Dt,) per query id
                               <anything>sentence_feat.hdf5                  optional, one dataset (Dt,) per query id:
                                                                             the encoder's own embedding of a whole
                                                                             sentence where that is not the mean of
                                                                             its tokens (CLIP, SigLIP)
    ROOT/<collection>/moments.jsonl                                          optional, lines in seconds:
                                                                             {"query", "video", "start", "end"}
                                                                             and "duration", or durations are in
                      frame_captions.jsonl                                   lines [video, duration, ...]
                      encoding.json, video_times.jsonl                       optional: how the features were made
                                                                             (`encoding`)

If a directory holds both, `feature.hdf5` is used. Files of other names are found if these are missing (`source_files`),
and datasets may be in groups (`hdf5_features`). A collection may have any of the splits. Nothing is written to a source
tree. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamprvr_ray.data.caption_files import SPLITS, unused_captions
from dreamprvr_ray.data.captions import Caption, KnownMoment, read_captions, read_moments
from dreamprvr_ray.data.encoding import (
    ENCODING,
    VIDEO_TIMES,
    EncodingRecord,
    VideoTimes,
    read_encoding,
    read_video_times,
)
from dreamprvr_ray.data.feature_files import RawFeatures
from dreamprvr_ray.data.hdf5_features import HDF5Features
from dreamprvr_ray.data.json_captions import read_json_captions, with_labels
from dreamprvr_ray.data.manifest import FileRecord
from dreamprvr_ray.data.matrix_features import MatrixFeatures
from dreamprvr_ray.data.near_misses import quoted
from dreamprvr_ray.data.overlaps import overlap_notes
from dreamprvr_ray.data.source_files import SourceFiles, find_files
from dreamprvr_ray.errors import UserError, first_few
from dreamprvr_ray.storage.files import reading

HASHED_BYTES = 64 * 2**20  # larger files are identified by size and modification time: hashing them would take minutes
_NAMED = 3  # how many ids a message names

__all__ = ["SPLITS", "Source"]


@dataclass(frozen=True, eq=False)
class Source:
    """One collection's raw features and captions.

    Attributes:
        origin: Where the captions are, for messages.
        collection: Name of the collection.
        features: Name of the video features.
        raw: The features, read and checked on demand.
        splits: The captions of train, val and test, as far as they exist, in file order.
        moments: The moments of queries in their own videos, by query id; None if the collection has no moments.
        files: Every file that was or will be read.
        found: Which files were chosen, in a line; empty if there are no files.
        remarks: What is odd in the files and no error, a line each.
        encoding: How the features were made, if that is known.
        times: Which seconds the rows of each video show, if that is known; videos in it need no captions.
    """

    origin: str
    collection: str
    features: str
    raw: RawFeatures
    splits: Mapping[str, list[Caption]]
    moments: Mapping[str, KnownMoment] | None
    files: tuple[Path, ...]
    found: str = ""
    remarks: tuple[str, ...] = ()
    encoding: EncodingRecord | None = None
    times: Mapping[str, VideoTimes] | None = None

    @staticmethod
    def open(directory: str | Path, collection: str, features: str | None = None, queries: str | None = None) -> Source:
        """Open a source tree. Values of features are checked later, as they are read.

        Args:
            directory: The root that holds the collection, or the collection's own directory.
            collection: Name of the collection, the prefix of its caption files.
            features: A directory or file under FeatureData, or a path; may be omitted if there is only one.
            queries: A file of query features: its name, a part of it, or a path; may be omitted if there is only one.

        Raises:
            UserError: Something is missing or malformed, or a caption's video or query has no features.
        """
        with reading(directory):
            return Source._open(Path(directory), collection, features, queries)

    @staticmethod
    def _open(directory: Path, collection: str, features: str | None, queries: str | None) -> Source:
        found = find_files(directory, collection, features, queries)
        query_reader = HDF5Features(found.queries, "query") if found.queries else None
        matrix = found.videos.suffix == ".bin"
        video_reader = MatrixFeatures(found.videos) if matrix else HDF5Features(found.videos, "video")
        splits, moments = _read_captions(found, query_reader, video_reader)
        own, right, queries_in = _named_in(splits, found.captions)
        encoding, times = _read_encoding(found.folder, own)
        mistakes = []
        if times is not None:
            own |= dict.fromkeys([video for video in times if video not in own], found.folder / VIDEO_TIMES)
        if isinstance(video_reader, MatrixFeatures):
            video_reader = video_reader.choose([*own, *(video for video in right if video in video_reader)])
        else:
            mistakes = _without_features(video_reader, own, "video")
        mistakes += _without_features(video_reader, right, "right video")
        if query_reader:
            mistakes += _without_features(query_reader, queries_in, "query")
        sentences = HDF5Features(found.sentences, "query") if found.sentences else None
        if sentences:
            mistakes += _without_features(sentences, queries_in, "query")
        if mistakes:
            raise UserError(*mistakes)
        moment_files = [found.folder / name for name in ("moments.jsonl", "frame_captions.jsonl")]
        moment_files = [path for path in moment_files if os.path.lexists(path)]
        if os.path.lexists(found.folder / "moments.jsonl"):
            moments |= _read_moments(moment_files, splits, queries_in)
        else:
            moment_files = []
        first = next(iter(splits.values()), [])
        return Source(
            origin=str(found.folder / "TextData"),
            collection=collection,
            features=found.features,
            raw=RawFeatures(
                video_reader,
                query_reader,
                [caption.video for caption in first] or list(own),
                [caption.query for caption in first],
                sentences,
                encoding.sentences.size if encoding and encoding.sentences else 0,
            ),
            splits=splits,
            moments=moments if moments or moment_files else None,
            files=(
                *found.captions.values(), *([found.queries] if found.queries else []),
                *([found.sentences] if found.sentences else []), *video_reader.files, *moment_files,
                *found.labels.values(), *(found.folder / name for name in (ENCODING, VIDEO_TIMES)
                                          if os.path.lexists(found.folder / name))
            ),
            found=found.describe(),
            remarks=(*_remarks(found, collection), *video_reader.remarks),
            encoding=encoding,
            times=times,
        )  # fmt: skip

    @property
    def uncaptioned(self) -> list[str]:
        """Ids of the videos that no caption is about, if the source lists its videos."""
        named = {caption.video for captions in self.splits.values() for caption in captions}
        return [video for video in self.times or () if video not in named]

    def notes(self) -> list[str]:
        """Return what is not an error but should be known, such as videos and queries that two splits share."""
        return [*self.remarks, *overlap_notes(self.splits)]

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Return size and SHA-256 of each source file by name; for large files, size and modification time."""
        fingerprint: dict[str, dict[str, Any]] = {}
        for path in self.files:
            with reading(path):
                status = path.stat()
                fingerprint[f"{path.parent.name}/{path.name}"] = (
                    asdict(FileRecord.of(path))
                    if status.st_size <= HASHED_BYTES
                    else {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}
                )
        return fingerprint

    def video(self, id: str) -> np.ndarray:
        """Return a video's raw frames (n, Dv), float32. Raises `UserError` as `RawFeatures.video` does."""
        return self.raw.video(id)

    def query(self, id: str) -> np.ndarray:
        """Return a query's raw tokens (Lq, Dt), float32. Raises `UserError` as `RawFeatures.query` does."""
        return self.raw.query(id)


def _read_captions(
    found: SourceFiles, queries: HDF5Features | None, videos: HDF5Features | MatrixFeatures
) -> tuple[dict[str, list[Caption]], dict[str, KnownMoment]]:
    """Return the captions of each split, with their labels, and the moments that caption files hold."""
    splits: dict[str, list[Caption]] = {}
    moments: dict[str, KnownMoment] = {}
    for split, path in found.captions.items():
        if path.suffix == ".jsonl":
            captions = read_json_captions(path, queries or ())
            splits[split] = captions.captions
            moments |= captions.moments
        else:
            splits[split] = read_captions(path, queries or (), videos)
        if split in found.labels:
            splits[split] = with_labels(splits[split], found.labels[split])
    return splits, moments


def _read_encoding(
    folder: Path, captioned: Mapping[str, Path]
) -> tuple[EncodingRecord | None, dict[str, VideoTimes] | None]:
    """Return how a collection was encoded, and its videos' times. Raises `UserError` if a captioned video has none."""
    encoding = read_encoding(folder / ENCODING) if os.path.lexists(folder / ENCODING) else None
    path = folder / VIDEO_TIMES
    if not os.path.lexists(path):
        return encoding, None
    times = read_video_times(path)
    if missing := [video for video in captioned if video not in times]:
        raise UserError(f"{captioned[missing[0]]}: video {quoted(missing[0])} is not listed in {path}")
    if not times:
        raise UserError(f"{path}: no videos")
    return encoding, times


def _named_in(
    splits: Mapping[str, Sequence[Caption]], files: Mapping[str, Path]
) -> tuple[dict[str, Path], dict[str, Path], dict[str, Path]]:
    """Return the queries' own videos, their other right videos, and the queries, each with a file that names it."""
    own: dict[str, Path] = {}
    right: dict[str, Path] = {}
    queries: dict[str, Path] = {}
    for split, captions in splits.items():
        for caption in captions:
            own[caption.video] = queries[caption.query] = files[split]
            right |= dict.fromkeys(caption.also, files[split])
    return own, {video: path for video, path in right.items() if video not in own}, queries


def _read_moments(
    files: Sequence[Path], splits: Mapping[str, Sequence[Caption]], queries: Mapping[str, Path]
) -> dict[str, KnownMoment]:
    also = {caption.query: caption.also for captions in splits.values() for caption in captions if caption.also}
    moments = read_moments(files[0], files[1] if len(files) > 1 else None, also)
    if moments and not moments.keys() & queries.keys():
        raise UserError(
            f"{files[0]}: none of its queries has a caption: its ids look like '{next(iter(moments))}',"
            f" the captions' like '{next(iter(queries))}'"
        )
    return moments


def _remarks(found: SourceFiles, collection: str) -> list[str]:
    if "train" in found.captions:
        return []
    if not found.captions:
        return [f"{found.folder}: no captions, so the shards serve to search, not to train or to evaluate"]
    text = found.folder / "TextData"
    others = unused_captions(text, found.captions.values())
    listed = ", ".join(map(quoted, others[:_NAMED]))
    return [
        f"{text}: no train split ({collection}train.caption.txt), so the shards serve to evaluate, not to train"
        + (f"; it also holds {listed}" if others else "")
    ]


def _without_features(reader: HDF5Features | MatrixFeatures, named_in: Mapping[str, Path], kind: str) -> list[str]:
    """Return a mistake for each id that the reader does not have, with the caption file that names it."""
    missing = reader.missing(list(named_in))
    if not missing:
        return []
    ids = reader.ids()
    mistakes = [f"{named_in[id]}: {kind} {quoted(id)} has no features in {reader.origin}" for id in missing]
    mistakes[:_NAMED] = [mistake + ids.hint(id) for mistake, id in zip(mistakes, missing[:_NAMED], strict=False)]
    return first_few(mistakes, _NAMED)

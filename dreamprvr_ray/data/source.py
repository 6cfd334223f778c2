"""A source tree: the layout in which the benchmarks distribute features and captions.

    ROOT/<collection>/FeatureData/<features>/feature.hdf5                    one dataset (n, Dv) per video id, or
                                             feature.bin                     float32 rows (R, Dv) of all frames,
                                             id.txt, shape.txt               the rows' frame ids; "R Dv"
                                             video2frames.txt                {video id: [frame ids]}, a Python literal
    ROOT/<collection>/TextData/<collection><split>.caption.txt               lines "<video id>#<anything> <caption>"
                               <anything>query_feat.hdf5                     one dataset (Lq, Dt) per query id
    ROOT/<collection>/moments.jsonl                                          optional, lines in seconds:
                                                                             {"query", "video", "start", "end"}
                                                                             and "duration", or durations are in
                      frame_captions.jsonl                                   lines [video, duration, ...]

If a directory holds both, `feature.hdf5` is used. Nothing is written to a source tree. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamprvr_ray.data.captions import Caption, read_captions, read_moment_fractions
from dreamprvr_ray.data.feature_files import RawFeatures
from dreamprvr_ray.data.hdf5_features import HDF5Features
from dreamprvr_ray.data.manifest import FileRecord
from dreamprvr_ray.data.matrix_features import MatrixFeatures
from dreamprvr_ray.data.near_misses import feature_files, quoted, same_name
from dreamprvr_ray.data.overlaps import overlap_notes
from dreamprvr_ray.errors import UserError, did_you_mean, first_few
from dreamprvr_ray.storage.files import reading

SPLITS = ("train", "val", "test")
HASHED_BYTES = 64 * 2**20  # larger files are identified by size and modification time: hashing them would take minutes
_CAPTIONS = ".caption.txt"
_NAMED = 3  # how many ids or files a message names


@dataclass(frozen=True, eq=False)
class Source:
    """One collection's raw features and captions.

    Attributes:
        origin: Where the captions are, for messages.
        collection: Name of the collection.
        features: Name of the video features.
        raw: The features, read and checked on demand.
        splits: The captions of train and, as far as they exist, val and test, in file order.
        moment_fractions: Moment length / video length by query id, NaN if unknown; None if the collection has no
            moments.
        files: Every file that was or will be read.
    """

    origin: str
    collection: str
    features: str
    raw: RawFeatures
    splits: Mapping[str, list[Caption]]
    moment_fractions: Mapping[str, float] | None
    files: tuple[Path, ...]

    @staticmethod
    def open(directory: str | Path, collection: str, features: str | None = None) -> Source:
        """Open a source tree. Values of features are checked later, as they are read.

        Args:
            directory: The root that holds the collection, or the collection's own directory.
            collection: Name of the collection, the prefix of its caption files.
            features: A directory under FeatureData; may be omitted if there is only one.

        Raises:
            UserError: Something is missing or malformed, or a caption's video or query has no features.
        """
        with reading(directory):
            return Source._open(Path(directory), collection, features)

    @staticmethod
    def _open(directory: Path, collection: str, features: str | None) -> Source:
        folder = _find_collection(directory, collection)
        caption_files = _find_captions(folder / "TextData", collection)
        splits = {split: read_captions(path) for split, path in caption_files.items()}
        query_file = _find_query_features(folder / "TextData", collection)
        feature_folder = _find_video_features(folder / "FeatureData", features)
        named_in = {caption.video: path for split, path in caption_files.items() for caption in splits[split]}
        videos: HDF5Features | MatrixFeatures
        if os.path.lexists(feature_folder / "feature.hdf5"):
            videos = HDF5Features(feature_folder / "feature.hdf5", "video")
            mistakes = _without_features(videos, named_in)
        else:
            videos = MatrixFeatures(feature_folder, list(named_in))
            mistakes = []
        queries = HDF5Features(query_file, "query")
        named_in = {caption.query: path for split, path in caption_files.items() for caption in splits[split]}
        mistakes += _without_features(queries, named_in)
        if mistakes:
            raise UserError(*mistakes)
        moment_files = [folder / name for name in ("moments.jsonl", "frame_captions.jsonl")]
        moment_files = [path for path in moment_files if os.path.lexists(path)]
        fractions = read_moment_fractions(*moment_files) if os.path.lexists(folder / "moments.jsonl") else None
        if fractions and not fractions.keys() & named_in.keys():
            raise UserError(
                f"{moment_files[0]}: none of its queries has a caption: its ids look like '{next(iter(fractions))}',"
                f" the captions' like '{next(iter(named_in))}'"
            )
        return Source(
            origin=str(folder / "TextData"),
            collection=collection,
            features=feature_folder.name,
            raw=RawFeatures(
                videos,
                queries,
                [caption.video for caption in splits["train"]],
                [caption.query for caption in splits["train"]],
            ),
            splits=splits,
            moment_fractions=fractions,
            files=(
                *caption_files.values(), query_file, *videos.files, *(moment_files if fractions is not None else [])
            ),
        )  # fmt: skip

    def notes(self) -> list[str]:
        """Return what is not an error but should be known: videos and queries that two splits share."""
        return overlap_notes(self.splits)

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


def _find_collection(directory: Path, collection: str) -> Path:
    if not collection or "/" in collection or "\0" in collection:
        raise UserError(f"--collection {quoted(collection)}: must be the name of a collection, such as tvr")
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory")
    folder = directory / collection
    if not folder.is_dir():
        folder = directory
        if not (folder / "TextData").is_dir():
            names = sorted(entry.name for entry in directory.iterdir() if (entry / "TextData").is_dir())
            raise UserError(f"{directory}: no collection '{collection}'{_available(names, collection)}")
    for part in ("TextData", "FeatureData"):
        if not (folder / part).is_dir():
            names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
            raise UserError(f"{folder / part}: no such directory{did_you_mean(part, names)}")
    return folder


def _find_captions(folder: Path, collection: str) -> dict[str, Path]:
    expected = {split: folder / f"{collection}{split}{_CAPTIONS}" for split in SPLITS}
    # A file that exists and cannot be read is an error when it is read, not a split that is missing.
    files = {split: path for split, path in expected.items() if os.path.lexists(path)}
    names = sorted(entry.name for entry in folder.iterdir())
    near = {
        split: next((name for name in names if same_name(name, path.name) and name != path.name), None)
        for split, path in expected.items()
        if split not in files
    }
    mistakes = [
        f"{expected[split]}: no such file, but there is {quoted(name)}; rename it"
        for split, name in near.items()
        if name
    ]
    if mistakes:
        raise UserError(*mistakes)
    if "train" in files:
        return files
    stems = [name.removesuffix(_CAPTIONS) for name in names if name.endswith(_CAPTIONS)]
    collections = sorted({stem.removesuffix(split) for stem in stems for split in SPLITS if stem.endswith(split)})
    if files or not collections or collection in collections:
        others = [name for name in names if "caption" in name.lower() and folder / name not in files.values()]
        hint = f"; {folder} holds {', '.join(map(quoted, others[:_NAMED]))}" if others else ""
        raise UserError(f"{expected['train']}: no such file: the collection has no train split{hint}")
    raise UserError(f"{folder}: no captions of collection '{collection}'{_available(collections, collection)}")


def _find_query_features(folder: Path, collection: str) -> Path:
    files = sorted(folder.glob("*query_feat.hdf5"))
    own = [path for path in files if collection in path.name]  # the directory may hold other collections' files as well
    if len(files) == 1 or len(own) == 1:
        return (own or files)[0]
    if not files:
        near = feature_files(folder)
        hint = f"; it holds {', '.join(map(quoted, near[:_NAMED]))}: rename the right one" if near else ""
        raise UserError(f"{folder}: no query features: there must be a file *query_feat.hdf5{hint}")
    names = ", ".join(path.name for path in own or files)
    raise UserError(f"{folder}: several files of query features; keep only one of {names}")


def _find_video_features(folder: Path, features: str | None) -> Path:
    names = sorted(
        entry.name
        for entry in folder.iterdir()
        if os.path.lexists(entry / "feature.hdf5") or os.path.lexists(entry / "feature.bin")
    )
    if features is None and len(names) == 1:
        return folder / names[0]
    if features in names:
        return folder / str(features)
    if not names:
        raise UserError(f"{folder}: no directory with a feature.hdf5 or feature.bin{_misplaced_features(folder)}")
    if features is None:
        raise UserError(f"{folder}: several features; choose one with --features: {', '.join(names)}")
    raise UserError(f"{folder}: no features '{features}'{_available(names, features)}")


def _misplaced_features(folder: Path) -> str:
    """Return the place of files that may be the features, and where they should be."""
    for inner in (folder, *sorted(entry for entry in folder.iterdir() if entry.is_dir())):
        for name in feature_files(inner):
            place = folder / (Path(name).stem if inner == folder else inner.name) / "feature.hdf5"
            return f"; there is {inner / name}: if it holds the video features, move it to {place}"
    return ""


def _available(names: list[str], name: str) -> str:
    return f"; available: {', '.join(names) or 'none'}{did_you_mean(name, names)}"


def _without_features(reader: HDF5Features, named_in: Mapping[str, Path]) -> list[str]:
    """Return a mistake for each id that the reader does not have, with the caption file that names it."""
    missing = reader.missing(list(named_in))
    if not missing:
        return []
    ids = reader.ids()
    mistakes = [f"{named_in[id]}: {reader.kind} {quoted(id)} has no features in {reader.path}" for id in missing]
    mistakes[:_NAMED] = [mistake + ids.hint(id) for mistake, id in zip(mistakes, missing[:_NAMED], strict=False)]
    return first_few(mistakes, _NAMED)

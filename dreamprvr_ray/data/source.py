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

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamprvr_ray.data.captions import Caption, read_captions, read_moment_fractions
from dreamprvr_ray.data.feature_files import HDF5Features, MatrixFeatures, RawFeatures
from dreamprvr_ray.data.manifest import FileRecord
from dreamprvr_ray.errors import UserError, did_you_mean, first_few

SPLITS = ("train", "val", "test")
HASHED_BYTES = 64 * 2**20  # larger files are identified by size and modification time: hashing them would take minutes
_CAPTIONS = ".caption.txt"
_NAMED_VIDEOS = 3  # how many videos a note names


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
        folder = _find_collection(Path(directory), collection)
        caption_files = _find_captions(folder / "TextData", collection)
        splits = {split: read_captions(path) for split, path in caption_files.items()}
        query_file = _find_query_features(folder / "TextData", collection)
        feature_folder = _find_video_features(folder / "FeatureData", features)
        named_in = {caption.video: path for split, path in caption_files.items() for caption in splits[split]}
        videos: HDF5Features | MatrixFeatures
        if (feature_folder / "feature.hdf5").is_file():
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
        moment_files = [path for path in (folder / "moments.jsonl", folder / "frame_captions.jsonl") if path.is_file()]
        fractions = read_moment_fractions(*moment_files) if (folder / "moments.jsonl").is_file() else None
        if fractions and not fractions.keys() & named_in.keys():
            raise UserError(
                f"{moment_files[0]}: none of its queries has a caption: its ids look like '{next(iter(fractions))}',"
                f" the captions' like '{next(iter(named_in))}'"
            )
        return Source(
            origin=str(folder / "TextData"),
            collection=collection,
            features=feature_folder.name,
            raw=RawFeatures(videos, queries, splits["train"][0].video, splits["train"][0].query),
            splits=splits,
            moment_fractions=fractions,
            files=(
                *caption_files.values(), query_file, *videos.files, *(moment_files if fractions is not None else [])
            ),
        )  # fmt: skip

    def notes(self) -> list[str]:
        """Return what is not an error but should be known: videos of val or test that are also in train."""
        videos = {
            split: dict.fromkeys(caption.video for caption in captions) for split, captions in self.splits.items()
        }
        notes = []
        for split in ("val", "test"):
            shared = [video for video in videos.get(split, ()) if video in videos["train"]]
            if shared:
                names = ", ".join(f"'{video}'" for video in shared[:_NAMED_VIDEOS])
                names += ", ..." if len(shared) > _NAMED_VIDEOS else ""
                notes.append(f"{len(shared):,} of {len(videos[split]):,} {split} videos are also in train: {names}")
        return notes

    def fingerprint(self) -> dict[str, dict[str, Any]]:
        """Return size and SHA-256 of each source file by name; for large files, size and modification time."""
        fingerprint: dict[str, dict[str, Any]] = {}
        for path in self.files:
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
            raise UserError(f"{folder / part}: no such directory")
    return folder


def _find_captions(folder: Path, collection: str) -> dict[str, Path]:
    files = {split: folder / f"{collection}{split}{_CAPTIONS}" for split in SPLITS}
    files = {split: path for split, path in files.items() if path.is_file()}
    if "train" in files:
        return files
    stems = [entry.name.removesuffix(_CAPTIONS) for entry in folder.glob(f"*{_CAPTIONS}")]
    names = sorted({stem.removesuffix(split) for stem in stems for split in SPLITS if stem.endswith(split)})
    if files or not names or collection in names:
        raise UserError(f"{folder / f'{collection}train{_CAPTIONS}'}: no such file: the collection has no train split")
    raise UserError(f"{folder}: no captions of collection '{collection}'{_available(names, collection)}")


def _find_query_features(folder: Path, collection: str) -> Path:
    files = sorted(folder.glob("*query_feat.hdf5"))
    own = [path for path in files if collection in path.name]  # the directory may hold other collections' files as well
    if len(files) == 1 or len(own) == 1:
        return (own or files)[0]
    if not files:
        raise UserError(f"{folder}: no query features: there must be a file *query_feat.hdf5")
    names = ", ".join(path.name for path in own or files)
    raise UserError(f"{folder}: several files of query features; keep only one of {names}")


def _find_video_features(folder: Path, features: str | None) -> Path:
    names = sorted(
        entry.name
        for entry in folder.iterdir()
        if (entry / "feature.hdf5").is_file() or (entry / "feature.bin").is_file()
    )
    if features is None and len(names) == 1:
        return folder / names[0]
    if features in names:
        return folder / str(features)
    if not names:
        raise UserError(f"{folder}: no directory with a feature.hdf5 or feature.bin")
    if features is None:
        raise UserError(f"{folder}: several features; choose one with --features: {', '.join(names)}")
    raise UserError(f"{folder}: no features '{features}'{_available(names, features)}")


def _available(names: list[str], name: str) -> str:
    return f"; available: {', '.join(names) or 'none'}{did_you_mean(name, names)}"


def _without_features(reader: HDF5Features, named_in: Mapping[str, Path]) -> list[str]:
    """Return a mistake for each id that the reader does not have, with the caption file that names it."""
    missing = reader.missing(list(named_in))
    return first_few([f"{named_in[id]}: {reader.kind} '{id}' has no features in {reader.path}" for id in missing])

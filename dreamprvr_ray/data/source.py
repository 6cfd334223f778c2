"""Readers of the layout in which the benchmarks' features and captions are distributed.

    ROOT/<collection>/FeatureData/<features>/feature.hdf5                    one dataset (n, Dv) per video id, or
                                             feature.bin                     float32 rows (R, Dv) of all frames,
                                             id.txt, shape.txt               the rows' frame ids; "R Dv"
                                             video2frames.txt                {video id: [frame ids in order]}, a Python literal
    ROOT/<collection>/TextData/<collection><split>.caption.txt               "<video id>#<anything> <caption>" a line
                               <anything>query_feat.hdf5                     one dataset (Lq, Dt) per query id
    ROOT/<collection>/moments.jsonl, frame_captions.jsonl                    optional: {"query", "video", "start", "end"} in seconds,
                                                                             with "duration" or [video, duration, ...] in the latter

Where a folder holds both, `feature.hdf5` is read. Nothing is written here and nothing in the files is executed.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dreamprvr_ray.errors import UserError, did_you_mean

SPLITS = ("train", "val", "test")
_CAPTIONS = ".caption.txt"
_SHOWN = 3  # so many ids of a kind are named in a mistake


@dataclass(frozen=True)
class Caption:
    """One query: its id, the id of the video that it describes a part of, and its words (which may be none)."""

    query: str
    video: str
    text: str


class Source:
    """One collection's raw features and captions.

    `splits` holds the captions of the distributed splits (of train, val and test those that exist) in file order, `moment_fractions`
    the moment's share of its video by query id where the collection tells it, `files` every file that was or will be read.
    """

    def __init__(
        self,
        collection: str,
        features: str,
        raw: RawFeatures,
        splits: dict[str, list[Caption]],
        moment_fractions: dict[str, float] | None,
        files: tuple[Path, ...],
    ) -> None:
        self.collection = collection
        self.features = features
        self.raw = raw
        self.splits = splits
        self.moment_fractions = moment_fractions
        self.files = files

    @staticmethod
    def open(directory: Path, collection: str, features: str | None = None) -> Source:
        """Opens `collection` under the root `directory`, which may also be the collection's own folder.

        `features` names a folder under FeatureData and may be left out where there is just one. Raises `UserError` for what is missing
        or malformed, and for captions whose video or query has no features; the features' values are checked as they are read.
        """
        folder = _collection_folder(Path(directory), collection)
        caption_files = _caption_files(folder / "TextData", collection)
        splits = {split: _read_captions(path) for split, path in caption_files.items()}
        query_file = _query_file(folder / "TextData", collection)
        feature_folder = _feature_folder(folder / "FeatureData", features)
        names = {caption.video: path for split, path in caption_files.items() for caption in splits[split]}
        videos: _HDF5Rows | _BinRows
        if (feature_folder / "feature.hdf5").is_file():
            videos = _HDF5Rows(feature_folder / "feature.hdf5", "video")
            mistakes = _missing(videos, names)
        else:
            videos = _BinRows(feature_folder, list(names))
            mistakes = []
        queries = _HDF5Rows(query_file, "query")
        mistakes += _missing(
            queries, {caption.query: path for split, path in caption_files.items() for caption in splits[split]}
        )
        if mistakes:
            raise UserError(*mistakes)
        moment_files = [path for path in (folder / "moments.jsonl", folder / "frame_captions.jsonl") if path.is_file()]
        fractions = _read_moment_fractions(*moment_files) if (folder / "moments.jsonl").is_file() else None
        query_ids = [caption.query for captions in splits.values() for caption in captions]
        if fractions and not fractions.keys() & set(query_ids):
            raise UserError(
                f"{moment_files[0]}: none of its queries has a caption; it names '{next(iter(fractions))}', captions '{query_ids[0]}'"
            )
        files = (*caption_files.values(), query_file, *videos.files, *(moment_files if fractions is not None else []))
        return Source(
            collection, feature_folder.name, RawFeatures(videos, queries, splits["train"][0]), splits, fractions, files
        )

    def notes(self) -> list[str]:
        """What is no mistake of the files' form, and is for a person to judge: videos of val or test that are in train, too."""
        videos = {
            split: dict.fromkeys(caption.video for caption in captions) for split, captions in self.splits.items()
        }
        notes = []
        for split in ("val", "test"):
            learnt = [video for video in videos.get(split, ()) if video in videos["train"]]
            if learnt:
                some = ", ".join(f"'{video}'" for video in learnt[:_SHOWN]) + (", ..." if len(learnt) > _SHOWN else "")
                notes.append(f"{len(learnt):,} of {len(videos[split]):,} {split} videos are in train, too: {some}")
        return notes

    def video(self, id: str) -> np.ndarray:
        """The raw frames (n, Dv), float32, of a video. Raises `UserError` as `RawFeatures.video`."""
        return self.raw.video(id)

    def query(self, id: str) -> np.ndarray:
        """The raw tokens (Lq, Dt), float32, of a query. Raises `UserError` as `RawFeatures.video`."""
        return self.raw.query(id)


class RawFeatures:
    """Raw features by id. They can be sent to other processes: files are opened where they are read."""

    def __init__(self, videos: _HDF5Rows | _BinRows, queries: _HDF5Rows, first: Caption) -> None:
        self.video_size = videos.row_size(first.video)
        self.text_size = queries.row_size(first.query)
        self._videos = videos
        self._queries = queries

    def subset(self, videos: Sequence[str]) -> RawFeatures:
        """The same, able to give these videos only: less to send."""
        part = copy(self)
        part._videos = self._videos.subset(videos)
        return part

    def video(self, id: str) -> np.ndarray:
        """Raw frames (n, Dv), float32, of a video. Raises `UserError` where they are missing, damaged, not finite or of another size."""
        return _checked(self._videos.read(id), self.video_size, f"{self._videos.path}: video '{id}'", "frames")

    def query(self, id: str) -> np.ndarray:
        """The raw tokens (Lq, Dt), float32, of a query. Raises `UserError` as `video` does."""
        return _checked(self._queries.read(id), self.text_size, f"{self._queries.path}: query '{id}'", "tokens")


class _HDF5Rows:
    """An HDF5 file with one dataset of rows per id."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.files = (path,)
        self._kind = kind
        self._opened: h5py.File | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def subset(self, ids: Sequence[str]) -> _HDF5Rows:
        return self

    def absent(self, ids: Sequence[str]) -> list[str]:
        """Those of `ids` that the file does not hold."""
        file = self._file()
        present = set(
            file
        )  # in one go: asking for each name costs seconds; an id with a slash is not among the top names
        return [id for id in ids if id not in present and id not in file]

    def row_size(self, id: str) -> int:
        shape = self._dataset(id).shape
        return int(shape[-1]) if shape else 0

    def read(self, id: str) -> np.ndarray:
        dataset = self._dataset(id)
        rows = np.empty(dataset.shape, dtype=np.float32)
        try:
            if rows.size:
                dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, rows)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{self.path}: {self._kind} '{id}' cannot be read: {_one_line(error)}") from None
        return rows

    def _dataset(self, id: str) -> h5py.h5d.DatasetID:
        # h5py's lower layer: a third of the time for the many small datasets that queries are.
        try:
            return h5py.h5d.open(self._file().id, id.encode())
        except KeyError:
            raise UserError(f"{self.path}: there is no {self._kind} '{id}'") from None
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{self.path}: {self._kind} '{id}' cannot be read: {_one_line(error)}") from None

    def _file(self) -> h5py.File:
        if self._opened is None:
            try:
                self._opened = h5py.File(self.path, "r")
            except OSError as error:
                raise UserError(f"{self.path}: cannot be read as HDF5 (truncated?): {_one_line(error)}") from None
        return self._opened


class _BinRows:
    """`feature.bin`: the rows of all frames in one matrix, and which of them are whose. Keeps the row numbers of `videos` alone."""

    def __init__(self, folder: Path, videos: Sequence[str]) -> None:
        self.path = folder / "feature.bin"
        names_path = folder / "video2frames.txt"
        self.files = (self.path, folder / "id.txt", folder / "shape.txt", names_path)
        self._shape = self._read_shape(folder / "shape.txt")
        row_of = self._read_row_numbers(folder / "id.txt")
        frame_names = _read_video2frames(names_path)
        mistakes: list[str] = []
        rows: list[np.ndarray] = []
        for video in videos:
            names = frame_names.get(video)
            if names is None:
                mistakes.append(f"{names_path}: there is no video '{video}', which a caption names")
                continue
            if not isinstance(names, (list, tuple)) or not names:
                mistakes.append(
                    f"{names_path}: video '{video}' has {'0 frames' if names == [] else 'no list of frames'}"
                )
                continue
            rows.append(np.fromiter((row_of.get(name, -1) for name in names), dtype=np.int64, count=len(names)))
            if rows[-1].min() < 0:
                mistakes.append(
                    f"{names_path}: video '{video}': frame '{names[int(rows[-1].argmin())]}' is not in {folder / 'id.txt'}"
                )
        if mistakes:
            raise UserError(*_shortened(mistakes))
        self._rows = dict(zip(videos, rows, strict=True))

    def row_size(self, id: str) -> int:
        return self._shape[1]

    def subset(self, ids: Sequence[str]) -> _BinRows:
        part = copy(self)
        part._rows = {id: self._rows[id] for id in ids}
        return part

    def read(self, id: str) -> np.ndarray:
        if id not in self._rows:
            raise UserError(f"{self.path}: there is no video '{id}' that a caption names")
        matrix = np.memmap(self.path, dtype="<f4", mode="r", shape=self._shape)
        return np.asarray(matrix[self._rows[id]], dtype=np.float32)

    def _read_shape(self, path: Path) -> tuple[int, int]:
        words = _read_text(path).split()
        if len(words) != 2 or not all(word.isdecimal() for word in words) or "0" in words:
            raise UserError(f"{path}: must hold two positive numbers, rows and columns, not '{' '.join(words)[:40]}'")
        rows, columns = int(words[0]), int(words[1])
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file")
        size = self.path.stat().st_size
        if size != rows * columns * 4:
            raise UserError(
                f"{self.path}: {size:,} bytes, but {path} says {rows} rows of {columns} float32: {rows * columns * 4:,} bytes"
            )
        return rows, columns

    def _read_row_numbers(self, path: Path) -> dict[str, int]:
        names = _read_text(path).split()
        if len(names) != self._shape[0]:
            raise UserError(
                f"{path}: {len(names)} frame ids, but {path.parent / 'shape.txt'} says {self._shape[0]} rows"
            )
        row_of = {name: row for row, name in enumerate(names)}
        if len(row_of) != len(names):
            twice = next(name for row, name in enumerate(names) if row_of[name] != row)
            raise UserError(f"{path}: frame id '{twice}' is there twice")
        return row_of


def _checked(rows: np.ndarray, size: int, where: str, unit: str) -> np.ndarray:
    if rows.ndim != 2:
        raise UserError(f"{where}: shape {rows.shape}, must be ({unit}, {size})")
    if not len(rows):
        raise UserError(f"{where}: 0 {unit}")
    if rows.shape[1] != size:
        raise UserError(f"{where}: features of size {rows.shape[1]}, train's first {unit} have {size}")
    finite = np.isfinite(rows)
    if not finite.all():
        row = int(np.argmin(finite.all(axis=1)))
        bad = "NaN" if np.isnan(rows[row]).any() else "an infinite value"
        raise UserError(f"{where}: {bad} in row {row} of {len(rows)}")
    return rows


def _collection_folder(directory: Path, collection: str) -> Path:
    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder")
    folder = directory / collection
    if not folder.is_dir():
        folder = directory
        if not (folder / "TextData").is_dir():
            found = sorted(entry.name for entry in directory.iterdir() if (entry / "TextData").is_dir())
            raise UserError(
                f"{directory}: no collection '{collection}'; there is {_listed(found)}{did_you_mean(collection, found)}"
            )
    for part in ("TextData", "FeatureData"):
        if not (folder / part).is_dir():
            raise UserError(f"{folder / part}: no such folder")
    return folder


def _caption_files(folder: Path, collection: str) -> dict[str, Path]:
    files = {split: folder / f"{collection}{split}{_CAPTIONS}" for split in SPLITS}
    files = {split: path for split, path in files.items() if path.is_file()}
    if "train" in files:
        return files
    stems = [entry.name.removesuffix(_CAPTIONS) for entry in folder.glob(f"*{_CAPTIONS}")]
    found = sorted({stem.removesuffix(split) for stem in stems for split in SPLITS if stem.endswith(split)})
    if files or not found or collection in found:
        raise UserError(f"{folder / f'{collection}train{_CAPTIONS}'}: no such file: there is no train split")
    raise UserError(
        f"{folder}: no captions of collection '{collection}'; there is {_listed(found)}{did_you_mean(collection, found)}"
    )


def _query_file(folder: Path, collection: str) -> Path:
    found = sorted(folder.glob("*query_feat.hdf5"))
    own = [path for path in found if collection in path.name]  # a folder may hold other collections' too
    if len(found) == 1 or len(own) == 1:
        return (own or found)[0]
    if not found:
        raise UserError(f"{folder}: no query features (a file *query_feat.hdf5)")
    raise UserError(
        f"{folder}: several files of query features, leave one there: {_listed([path.name for path in own or found])}"
    )


def _feature_folder(folder: Path, features: str | None) -> Path:
    found = sorted(
        entry.name
        for entry in folder.iterdir()
        if (entry / "feature.hdf5").is_file() or (entry / "feature.bin").is_file()
    )
    if features is None and len(found) == 1:
        return folder / found[0]
    if features in found:
        return folder / str(features)
    if not found:
        raise UserError(f"{folder}: no folder with a feature.hdf5 or feature.bin")
    if features is None:
        raise UserError(f"{folder}: several features, choose one by --features: {_listed(found)}")
    raise UserError(f"{folder}: no features '{features}'; there is {_listed(found)}{did_you_mean(features, found)}")


def _read_captions(path: Path) -> list[Caption]:
    captions: list[Caption] = []
    first_line: dict[str, int] = {}
    mistakes = []
    # Split at line feeds alone: captions hold characters that str.splitlines takes for line ends.
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        query, _, text = line.rstrip("\r").partition(" ")
        video, hash_sign, _ = query.partition("#")
        if not video or not hash_sign:
            mistakes.append(
                f"{path}, line {number}: '{line[:40].strip()}' does not start with a query id <video id>#<...> and a space"
            )
        elif query in first_line:
            mistakes.append(f"{path}, line {number}: query id '{query}' is in line {first_line[query]} too")
        else:
            first_line[query] = number
            captions.append(Caption(query, video, text.strip()))
    if mistakes:
        raise UserError(*_shortened(mistakes))
    if not captions:
        raise UserError(f"{path}: no captions: the split is empty")
    return captions


def _read_video2frames(path: Path) -> Mapping[str, Any]:
    text = _read_text(path)
    values = None
    if '"' not in text and "\\" not in text:
        # Such a literal is JSON but for its quotes, and that reader takes a second where ast takes 20 and gigabytes.
        try:
            values = json.loads(text.replace("'", '"'))
        except ValueError:
            values = None
    if values is None:
        try:
            values = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise UserError(
                f"{path}: is no Python dictionary of video ids and frame ids: {_one_line(error)[:100]}"
            ) from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a dictionary of video ids and frame ids, not a {type(values).__name__}")
    return values


def _read_moment_fractions(moments: Path, frame_captions: Path | None = None) -> dict[str, float]:
    """Moment length / video length in [0, 1] by query id, NaN where the video's length is not known."""
    durations: dict[str, float] = {}
    for where, entry in _json_lines(frame_captions) if frame_captions else ():
        try:
            durations[entry[0]] = float(entry[1])
        except (KeyError, IndexError, TypeError, ValueError):
            raise UserError(f"{where}: must be [video, duration in seconds, ...]") from None
    fractions: dict[str, float] = {}
    for where, entry in _json_lines(moments):
        try:
            # Annotators' start and end are now and then swapped, and ends lie beyond the video's.
            length = abs(float(entry["end"]) - float(entry["start"]))
            duration = float(entry.get("duration") or durations.get(entry["video"], np.nan))
            query = str(entry["query"])
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(
                f'{where}: must be {{"query", "video", "start", "end"}} with seconds, "duration" where known'
            ) from None
        if duration <= 0 or length != length:
            raise UserError(f"{where}: a moment of {length:g} s in a video of {duration:g} s")
        fractions[query] = float(np.clip(length / duration, 0, 1))
    return fractions


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield where, json.loads(line)
            except ValueError as error:
                raise UserError(f"{where}: not valid JSON: {error}") from None


def _missing(rows: _HDF5Rows, named_in: Mapping[str, Path]) -> list[str]:
    kind = rows._kind
    return _shortened(
        [f"{named_in[id]}: {kind} '{id}' has no features in {rows.path}" for id in rows.absent(list(named_in))]
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _shortened(mistakes: list[str]) -> list[str]:
    if len(mistakes) <= _SHOWN:
        return mistakes
    return [*islice(mistakes, _SHOWN), f"... and {len(mistakes) - _SHOWN} more like these"]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())

"""Raw features by id: the readers of HDF5 files and of `feature.bin`, and the checks of what they return.

Readers can be sent to other processes, where they reopen their files. Nothing in a file is executed. Imports no torch.

Shapes: n frames of a video, Lq tokens of a query; Dv and Dt values per frame and token.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from dreamprvr_ray.errors import UserError, first_few, first_line
from dreamprvr_ray.storage.files import read_text


class FeatureReader(Protocol):
    """Rows of features by id; `origin` names where they come from in messages."""

    @property
    def origin(self) -> str: ...

    def row_size(self, id: str) -> int:
        """Return the number of values in a row of `id`."""

    def read(self, id: str) -> np.ndarray:
        """Return the rows of `id` as float32. Raises `UserError` if they are missing or cannot be read."""

    def subset(self, ids: Sequence[str]) -> FeatureReader:
        """Return a reader that may be restricted to `ids`, so that less is sent to another process."""


class RawFeatures:
    """A collection's features before pooling, checked as they are read.

    Attributes:
        video_size: Dv.
        text_size: Dt.
    """

    def __init__(self, videos: FeatureReader, queries: FeatureReader, first_video: str, first_query: str) -> None:
        """Take Dv and Dt from the first video and the first query of train, which all others must match."""
        self.video_size = videos.row_size(first_video)
        self.text_size = queries.row_size(first_query)
        self._videos = videos
        self._queries = queries

    def subset(self, videos: Sequence[str]) -> RawFeatures:
        """Return the same features restricted to some videos, so that less is sent to another process."""
        part = copy(self)
        part._videos = self._videos.subset(videos)
        return part

    def video(self, id: str) -> np.ndarray:
        """Return a video's raw frames (n, Dv), float32.

        Raises:
            UserError: They are missing, damaged, not finite or of another size.
        """
        rows = self._videos.read(id)
        return _check(rows, self.video_size, f"{self._videos.origin}: video '{id}'", "video", "frames")

    def query(self, id: str) -> np.ndarray:
        """Return a query's raw tokens (Lq, Dt), float32. Raises `UserError` as `video` does."""
        rows = self._queries.read(id)
        return _check(rows, self.text_size, f"{self._queries.origin}: query '{id}'", "query", "tokens")


def _check(rows: np.ndarray, size: int, where: str, kind: str, unit: str) -> np.ndarray:
    if rows.ndim != 2:
        raise UserError(f"{where}: shape must be ({unit}, {size}), not {rows.shape}")
    if not len(rows):
        raise UserError(f"{where}: 0 {unit}; at least one is needed")
    if rows.shape[1] != size:
        raise UserError(f"{where}: features of size {rows.shape[1]}, but the first {kind} of train has size {size}")
    finite = np.isfinite(rows)
    if not finite.all():
        row = int(np.argmin(finite.all(axis=1)))
        value = "NaN" if np.isnan(rows[row]).any() else "an infinite value"
        raise UserError(f"{where}: {value} in row {row} of {len(rows)}")
    return rows


class HDF5Features:
    """An HDF5 file with one dataset of rows per id. `kind` says what the ids are: video or query."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.files = (path,)
        self.kind = kind
        self._file: h5py.File | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    @property
    def origin(self) -> str:
        """The file's path."""
        return str(self.path)

    def subset(self, ids: Sequence[str]) -> HDF5Features:
        """Return this reader: there is nothing to leave out."""
        return self

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Return those of `ids` that the file does not have."""
        file = self._open()
        # Listing all names at once: looking up each takes seconds. An id with a slash is not among the top-level names.
        present = set(file)
        return [id for id in ids if id not in present and id not in file]

    def row_size(self, id: str) -> int:
        """Return the number of values in a row of `id`."""
        shape = self._dataset(id).shape
        return int(shape[-1]) if shape else 0

    def read(self, id: str) -> np.ndarray:
        """Return the dataset of `id` as float32. Raises `UserError` if it is missing or cannot be read."""
        dataset = self._dataset(id)
        rows = np.empty(dataset.shape, dtype=np.float32)
        try:
            if rows.size:
                dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, rows)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{self.path}: {self.kind} '{id}' cannot be read: {first_line(error)}") from None
        return rows

    def _dataset(self, id: str) -> h5py.h5d.DatasetID:
        # h5py's low-level interface takes a third of the time for small datasets, of which queries are many.
        try:
            return h5py.h5d.open(self._open().id, id.encode())
        except KeyError:
            raise UserError(f"{self.path}: no {self.kind} '{id}'") from None
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{self.path}: {self.kind} '{id}' cannot be read: {first_line(error)}") from None

    def _open(self) -> h5py.File:
        if self._file is None:
            try:
                self._file = h5py.File(self.path, "r")
            except OSError as error:
                raise UserError(f"{self.path}: cannot be read as HDF5 (truncated?): {first_line(error)}") from None
        return self._file


class MatrixFeatures:
    """The rows of all frames in one matrix, `feature.bin`, and text files that say which rows are which video's."""

    def __init__(self, directory: Path, videos: Sequence[str]) -> None:
        """Read the text files and keep the row numbers of `videos`.

        Raises:
            UserError: A file is missing, malformed or does not match the others.
        """
        self.path = directory / "feature.bin"
        names_path = directory / "video2frames.txt"
        self.files = (self.path, directory / "id.txt", directory / "shape.txt", names_path)
        self._shape = self._read_shape(directory / "shape.txt")
        row_of = self._read_row_numbers(directory / "id.txt")
        frame_names = _read_video2frames(names_path)
        mistakes: list[str] = []
        rows: list[np.ndarray] = []
        for video in videos:
            names = frame_names.get(video)
            if names is None:
                mistakes.append(f"{names_path}: no video '{video}', which a caption names")
                continue
            if not isinstance(names, (list, tuple)) or not names:
                problem = "has 0 frames" if names == [] else "must have a list of frames"
                mistakes.append(f"{names_path}: video '{video}' {problem}")
                continue
            rows.append(np.fromiter((row_of.get(name, -1) for name in names), dtype=np.int64, count=len(names)))
            if rows[-1].min() < 0:
                unknown = names[int(rows[-1].argmin())]
                mistakes.append(f"{names_path}: video '{video}': frame '{unknown}' is not in {directory / 'id.txt'}")
        if mistakes:
            raise UserError(*first_few(mistakes))
        self._rows = dict(zip(videos, rows, strict=True))

    @property
    def origin(self) -> str:
        """The matrix file's path."""
        return str(self.path)

    def row_size(self, id: str) -> int:
        """Return the number of values in a row, which is the same for all videos."""
        return self._shape[1]

    def subset(self, ids: Sequence[str]) -> MatrixFeatures:
        """Return a reader of these videos only."""
        part = copy(self)
        part._rows = {id: self._rows[id] for id in ids}
        return part

    def read(self, id: str) -> np.ndarray:
        """Return the frames of `id` as float32. Raises `UserError` if no caption names the video."""
        if id not in self._rows:
            raise UserError(f"{self.path}: no video '{id}' that a caption names")
        matrix = np.memmap(self.path, dtype="<f4", mode="r", shape=self._shape)
        return np.asarray(matrix[self._rows[id]], dtype=np.float32)

    def _read_shape(self, path: Path) -> tuple[int, int]:
        words = read_text(path).split()
        if len(words) != 2 or not all(word.isdecimal() for word in words) or "0" in words:
            raise UserError(f"{path}: must hold two positive numbers, rows and columns, not '{' '.join(words)[:40]}'")
        rows, columns = int(words[0]), int(words[1])
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file")
        size, expected = self.path.stat().st_size, rows * columns * 4
        if size != expected:
            raise UserError(
                f"{self.path}: {size:,} bytes, but {path} says {rows} rows of {columns} float32: {expected:,} bytes"
            )
        return rows, columns

    def _read_row_numbers(self, path: Path) -> dict[str, int]:
        names = read_text(path).split()
        if len(names) != self._shape[0]:
            shape_path = path.parent / "shape.txt"
            raise UserError(f"{path}: {len(names)} frame ids, but {shape_path} says {self._shape[0]} rows")
        row_of = {name: row for row, name in enumerate(names)}
        if len(row_of) != len(names):
            twice = next(name for row, name in enumerate(names) if row_of[name] != row)
            raise UserError(f"{path}: frame id '{twice}' appears twice")
        return row_of


def _read_video2frames(path: Path) -> Mapping[str, Any]:
    """Return the frame ids by video id of a file that holds a Python dictionary literal."""
    text = read_text(path)
    values = None
    if '"' not in text and "\\" not in text:
        # Except for its quotes such a literal is JSON, which parses in a second; ast takes 20 and gigabytes of memory.
        try:
            values = json.loads(text.replace("'", '"'))
        except ValueError:
            values = None
    if values is None:
        try:
            values = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise UserError(
                f"{path}: not a Python dictionary of video ids and frame ids: {first_line(error)[:100]}"
            ) from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a dictionary of video ids and frame ids, not a {type(values).__name__}")
    return values

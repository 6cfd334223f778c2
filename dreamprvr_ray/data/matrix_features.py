"""The reader of `feature.bin`, one matrix with the rows of all frames.

Nothing in a file is executed. Imports no torch.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

from dreamprvr_ray.data.near_misses import Ids, quoted
from dreamprvr_ray.errors import UserError, first_few, first_line
from dreamprvr_ray.storage.files import BLANKS, LFS_POINTER, read_text, read_text_as, text_lines

_SAMPLED_ROWS = 256  # rows that are looked at to recognise values in the other byte order
_OTHER_TYPES = {2: "float16", 8: "float64"}  # by bytes of a value
_PLAUSIBLE = (1e-10, 1e10)  # absolute values of features


class MatrixFeatures:
    """The rows of all frames in one matrix, `feature.bin`, and text files that say which rows are which video's."""

    def __init__(self, path: Path) -> None:
        """Read the text files next to the matrix `path`.

        Raises:
            UserError: A file is missing, malformed or does not match the others, or the matrix is big-endian.
        """
        self.path = path
        self._ids_path, shape_path = path.parent / "id.txt", path.parent / "shape.txt"
        self._names_path = path.parent / "video2frames.txt"
        self.files = (self.path, self._ids_path, shape_path, self._names_path)
        self.remarks: list[str] = []
        self._shape = self._read_shape(shape_path)
        self._check_byte_order()
        self._row_of = self._read_row_numbers(self._ids_path)
        self._frame_names = _read_video2frames(self._names_path, self.remarks)
        self._rows: dict[str, np.ndarray] = {}

    def __contains__(self, id: object) -> bool:
        """Return whether there is a video of this id."""
        return id in (self._frame_names or self._rows)

    def ids(self) -> Ids:
        """Return the videos' ids."""
        return Ids(id for id in self._frame_names or self._rows if isinstance(id, str))

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Return those of `ids` that have no rows."""
        return [id for id in ids if id not in self]

    def choose(self, videos: Sequence[str]) -> MatrixFeatures:
        """Return a reader of these videos, which holds their row numbers in place of all names.

        Raises:
            UserError: A video is missing, or a frame of it.
        """
        row_of, frame_names, names_path = self._row_of, self._frame_names, self._names_path
        mistakes: list[str] = []
        rows: list[np.ndarray] = []
        known: Ids | None = None
        for video in videos:
            names = frame_names.get(video)
            if video not in frame_names:
                known = known or Ids(id for id in frame_names if isinstance(id, str))
                mistakes.append(f"{names_path}: no video {quoted(video)}, which a caption names{known.hint(video)}")
                continue
            if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
                problem = "has 0 frames" if names == [] else "must have a list of frames"
                mistakes.append(f"{names_path}: video {quoted(video)} {problem}")
                continue
            rows.append(np.fromiter((row_of.get(name, -1) for name in names), dtype=np.int64, count=len(names)))
            if rows[-1].min() < 0:
                unknown = names[int(rows[-1].argmin())]
                hint = Ids(row_of).hint(unknown) if len(mistakes) < 3 else ""
                where = f"{names_path}: video {quoted(video)}"
                mistakes.append(f"{where}: frame {quoted(unknown)} is not in {self._ids_path}{hint}")
        if mistakes:
            raise UserError(*first_few(mistakes))
        chosen = copy(self)
        chosen._rows = dict(zip(videos, rows, strict=True))
        chosen._row_of, chosen._frame_names = {}, {}
        return chosen

    @property
    def origin(self) -> str:
        """The matrix file's path."""
        return str(self.path)

    def shape(self, id: str) -> tuple[int, ...]:
        """Return the shape of a video's rows."""
        return len(self._rows[id]), self._shape[1]

    def subset(self, ids: Sequence[str]) -> MatrixFeatures:
        """Return a reader of these videos only."""
        part = copy(self)
        part._rows = {id: self._rows[id] for id in ids}
        return part

    def read(self, id: str) -> np.ndarray:
        """Return the frames of `id` as float32. Raises `UserError` if no caption names the video."""
        if id not in self._rows:
            raise UserError(f"{self.path}: no video {quoted(id)} that a caption names")
        return np.asarray(self._matrix()[self._rows[id]], dtype=np.float32)

    def _matrix(self) -> np.ndarray:
        try:
            return np.memmap(self.path, dtype="<f4", mode="r", shape=self._shape)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path}: cannot be read: {first_line(error)}") from None

    def _read_shape(self, path: Path) -> tuple[int, int]:
        words = read_text(path).split()
        if len(words) != 2 or not all(re.fullmatch(r"[0-9]{1,15}", word) and int(word) for word in words):
            raise UserError(
                f"{path}: must hold two positive numbers, rows and columns, not {quoted(' '.join(words)[:40])}"
            )
        rows, columns = int(words[0]), int(words[1])
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file")
        size, expected = self.path.stat().st_size, rows * columns * 4
        if size != expected:
            with open(self.path, "rb") as file:
                if file.read(len(LFS_POINTER)) == LFS_POINTER:
                    raise UserError(f"{self.path}: is a Git LFS pointer, not the file itself; run `git lfs pull`")
            other = _OTHER_TYPES.get(size // (rows * columns)) if size % (rows * columns) == 0 else None
            hint = f"; it looks like {other}, and must be float32" if other else ""
            shape = f"{path} says {rows} rows of {columns} float32: {expected:,} bytes"
            raise UserError(f"{self.path}: {size:,} bytes, but {shape}{hint}")
        return rows, columns

    def _check_byte_order(self) -> None:
        """Raise `UserError` if the values are absurd as they are and plausible in the other byte order."""
        step = max(1, self._shape[0] // _SAMPLED_ROWS)
        values = np.array(self._matrix()[::step], dtype="<f4")
        if _plausible_share(values) < 0.5 and _plausible_share(values.view(">f4")) > 0.9:
            raise UserError(
                f"{self.path}: the values are big-endian: read as little-endian float32 they are absurd; convert them,"
                " as in numpy.fromfile(path, '>f4').astype('<f4').tofile(path)"
            )

    def _read_row_numbers(self, path: Path) -> dict[str, int]:
        text = _read_ids(path, self.remarks)
        # Separated by blanks as in the releases, else by lines or tabs where ids hold blanks. Other Unicode blanks are
        # part of an id.
        by_blanks = re.split(r"[ \t\r\n]+", text.strip(BLANKS))
        by_lines = [line.strip(BLANKS) for line in text_lines(text) if line.strip(BLANKS)]
        by_tabs = [part.strip(BLANKS) for part in re.split(r"[\t\r\n]+", text) if part.strip(BLANKS)]
        candidates = (by_blanks, by_lines, by_tabs)
        names = next((names for names in candidates if len(names) == self._shape[0]), None)
        if names is None:
            rows, columns = self._shape
            hint = "; are they swapped?" if columns in (len(by_blanks), len(by_lines)) else ""
            if not hint and len(by_blanks) > rows:
                hint = "; if ids hold blanks, each must be on a line"
            count = len(by_blanks) if by_blanks != [""] else 0
            raise UserError(
                f"{path}: {count} frame ids, but {path.parent / 'shape.txt'} says {rows} rows of {columns}{hint}"
            )
        row_of = {name: row for row, name in enumerate(names)}
        if len(row_of) != len(names):
            twice = next(name for row, name in enumerate(names) if row_of[name] != row)
            raise UserError(f"{path}: frame id {quoted(twice)} appears twice")
        return row_of


def _plausible_share(values: np.ndarray) -> float:
    """Return which share of the values that are not zero is finite and neither tiny nor huge; 1 if all are zero."""
    sizes = np.abs(values[values != 0].astype(np.float64))
    if not len(sizes):
        return 1.0
    low, high = _PLAUSIBLE
    return float(((sizes > low) & (sizes < high)).mean())


def _read_ids(path: Path, remarks: list[str]) -> str:
    """Return a text of ids; one that is not UTF-8 is read as Latin-1, with a remark: a wrong id matches no other."""
    text, encoding = read_text_as(path, ("utf-8-sig", "latin-1"))
    if encoding == "latin-1":
        remarks.append(f"{path}: not UTF-8, read as Latin-1")
    return text


def _read_video2frames(path: Path, remarks: list[str]) -> Mapping[Any, Any]:
    """Return the frame ids by video id of a file that holds a Python dictionary literal."""
    text = _read_ids(path, remarks)
    values = None
    if '"' not in text and "\\" not in text:
        # Except for its quotes such a literal is JSON, which parses in a second; ast takes 20 and gigabytes of memory.
        try:
            values = json.loads(text.replace("'", '"'))
        except (ValueError, RecursionError):
            values = None
    if values is None:
        try:
            with warnings.catch_warnings(action="ignore"):  # of unusual escapes in a string
                values = ast.literal_eval(text.strip())
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
            raise UserError(
                f"{path}: not a Python dictionary of video ids and frame ids: {first_line(error)[:100]}"
            ) from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a dictionary of video ids and frame ids, not a {type(values).__name__}")
    return values

"""The reader of HDF5 files with one dataset of rows per id. Imports no torch.

An id may also be a group with one dataset, as in `video_28/features`, and all ids may be in a group or a few, as in
`features/video_28` or `train/video_28`.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dreamprvr_ray.data.near_misses import Ids, quoted
from dreamprvr_ray.errors import UserError, first_line
from dreamprvr_ray.storage.files import LFS_POINTER, require_regular

_LARGEST_BYTES = 2**32  # of one id's rows as float32: a million frames of size 1,024
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # the file system has no locks
_MOST_WRAPPERS = 16  # members of a file or group that is searched for groups that hold the ids
_DEPTH = 3  # how deep groups are searched
_ROWS = ("feat", "token", "hidden", "frame")  # a part of the name of the rows among a group's members
_H5PY_ERRORS = (KeyError, OSError, RuntimeError, TypeError, ValueError)
_SHOWN = 3  # members of a group that a message names


class HDF5Features:
    """An HDF5 file with one dataset of rows per id. `kind` says what the ids are: video or query."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.files = (path,)
        self.kind = kind
        self.remarks: list[str] = []
        self._file: h5py.File | None = None
        self._top: dict[str, None] | None = None
        self._inner: dict[str, str] | None = None
        self._member = ""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_top": None, "_inner": None}

    @property
    def origin(self) -> str:
        """The file's path."""
        return str(self.path)

    def subset(self, ids: Sequence[str]) -> HDF5Features:
        """Return this reader: there is nothing to leave out."""
        return self

    def __contains__(self, id: object) -> bool:
        """Return whether the file has an object of this id."""
        return isinstance(id, str) and not self.missing([id])

    def ids(self) -> Ids:
        """Return the names at the top of the file, and those in groups that may hold all."""
        return Ids([*self._names(), *self._inner_paths()])

    def missing(self, ids: Sequence[str]) -> list[str]:
        """Return those of `ids` that the file does not have, neither as a dataset nor as anything else."""
        # Listing all names at once: looking up each takes seconds. An id with a slash is not among the top-level names.
        present = self._names()
        return [
            id
            for id in ids
            if id not in present and id not in self._inner_paths() and not ("/" in id and self._has(id))
        ]

    def shape(self, id: str) -> tuple[int, ...]:
        """Return the shape of the dataset of `id`. Raises `UserError` if there is none."""
        dataset = self._dataset(id)
        try:
            return tuple(map(int, dataset.shape or ()))
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise self._unreadable(id, error) from None

    def read(self, id: str) -> np.ndarray:
        """Return the dataset of `id` as float32. Raises `UserError` if it is missing or cannot be read."""
        dataset, shape = self._dataset(id), self.shape(id)
        if 4 * np.prod([float(size) for size in shape]) > _LARGEST_BYTES:
            raise UserError(f"{self.path}: {self.kind} {quoted(id)}: shape {shape} is too large")
        try:
            rows = np.empty(shape, dtype=np.float32)
            if dataset.dtype.kind not in "fiu":
                raise UserError(f"{self.path}: {self.kind} {quoted(id)}: must hold numbers, not {dataset.dtype}")
            if rows.size:
                dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, rows)
        except (OSError, RuntimeError, TypeError, ValueError, KeyError, MemoryError) as error:
            raise self._unreadable(id, error) from None
        return rows

    def _unreadable(self, id: str, error: Exception) -> UserError:
        return UserError(f"{self.path}: {self.kind} {quoted(id)} cannot be read: {first_line(error)}")

    def _names(self) -> Mapping[str, None]:
        """Return the names at the top of the file."""
        if self._top is None:
            file = self._open()
            try:
                self._top = dict.fromkeys(file)
            except (OSError, RuntimeError, ValueError) as error:
                raise UserError(f"{self.path}: cannot be read as HDF5 (damaged?): {first_line(error)}") from None
        return self._top

    def _inner_paths(self) -> Mapping[str, str]:
        """Return the path of each object in a group that holds others, by its name; empty if a file has many ids."""
        if self._inner is None:
            self._inner = {}
            if len(self._names()) <= _MOST_WRAPPERS:
                self._add_inner(self._open(), "", _DEPTH)
        return self._inner

    def _add_inner(self, group: h5py.Group, prefix: str, depth: int) -> None:
        assert self._inner is not None
        for name in group:
            try:
                member = group.get(name)
                names = list(member) if isinstance(member, h5py.Group) else []
            except _H5PY_ERRORS:
                continue
            for inner in names:
                if self._inner.setdefault(inner, f"{prefix}{name}/{inner}") != f"{prefix}{name}/{inner}":
                    self._inner[inner] = ""
            if names and depth > 1 and len(names) <= _MOST_WRAPPERS:
                self._add_inner(member, f"{prefix}{name}/", depth - 1)

    def _has(self, id: str) -> bool:
        try:
            return id in self._open()
        except (OSError, RuntimeError, ValueError, KeyError):
            return False

    def _dataset(self, id: str) -> h5py.h5d.DatasetID:
        # h5py's low-level interface takes a third of the time for small datasets, of which queries are many.
        try:
            return self._open_dataset(f"{id}/{self._member}" if self._member else id)
        except _H5PY_ERRORS as error:
            problem: Exception = error
        path = self._path_in_group(id)
        try:
            if path is not None:
                return self._open_dataset(path)
        except _H5PY_ERRORS as error:
            problem = error
        raise UserError(f"{self.path}: {self._problem(id, problem)}")

    def _open_dataset(self, path: str) -> h5py.h5d.DatasetID:
        return h5py.h5d.open(self._open().id, path.encode())

    def _path_in_group(self, id: str) -> str | None:
        """Return the path of the one dataset of an id that is a group, or that is in a group; None if it has none."""
        file = self._open()
        try:
            path = id if id in file else self._inner_paths().get(id)
            if path == "":
                raise UserError(f"{self.path}: {self.kind} {quoted(id)} is in several groups; keep one of them")
            found = file.get(path) if path else None
            for _ in range(_DEPTH):
                if not isinstance(found, h5py.Group):
                    break
                name = _rows_among(found)
                if name is None or found.name == "/":
                    return None
                path, found = f"{path}/{name}", found[name]
        except _H5PY_ERRORS:
            return None
        if not isinstance(found, h5py.Dataset):
            return None
        if path is not None and path.startswith(f"{id}/"):
            self._member = path.removeprefix(f"{id}/")  # most likely that of the other ids, too
        return path

    def _problem(self, id: str, error: Exception) -> str:
        """Return why there is no dataset of this id: what is in its place."""
        name, file = f"{self.kind} {quoted(id)}", self._open()
        try:
            link = file.get(id, getlink=True)
            found = file.get(id)
        except _H5PY_ERRORS:
            return f"{name} cannot be read: {first_line(error)}"
        if isinstance(found, h5py.Group):
            members = [*map(quoted, list(found)[:_SHOWN]), *(["..."] if len(found) > _SHOWN else [])]
            holds = f"is a group that holds {', '.join(members) or 'nothing'}"
            return f"{name} {holds}; it must be a dataset of rows, or a group with one"
        if found is None and isinstance(link, h5py.ExternalLink):
            return f"{name} is a link to '{link.path}' in the file '{link.filename}', which cannot be opened"
        if found is None and isinstance(link, h5py.SoftLink):
            return f"{name} is a link to '{link.path}', which does not exist in the file"
        if found is None and link is None:
            return f"no {name}"
        return f"{name} cannot be read as a dataset of rows: {first_line(error)}"

    def _open(self) -> h5py.File:
        if self._file is None:
            try:
                require_regular(self.path)
                self._file = self._open_with_lock()
            except (OSError, ValueError) as error:
                raise UserError(f"{self.path}: {self._why_closed(error)}") from None
        return self._file

    def _open_with_lock(self) -> h5py.File:
        try:
            return h5py.File(self.path, "r")
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return h5py.File(self.path, "r", locking=False)  # reading needs no lock

    def _why_closed(self, error: OSError | ValueError) -> str:
        if isinstance(error, BlockingIOError):
            return "is locked by another process that writes to it; wait for it to finish"
        try:
            with open(self.path, "rb") as file:
                start = file.read(len(LFS_POINTER))
        except (OSError, ValueError) as unreadable:
            return f"cannot be read: {getattr(unreadable, 'strerror', None) or unreadable}"
        if not start:
            return "is empty; copy or download it again"
        if start == LFS_POINTER:
            return "is a Git LFS pointer, not the file itself; run `git lfs pull`"
        if not h5py.is_hdf5(self.path):
            return f"is not an HDF5 file: it starts with {start[:8]!r}"
        return f"cannot be read as HDF5 (truncated?): {first_line(error)}"


def _rows_among(group: h5py.Group) -> str | None:
    """Return the member of a group that holds the rows: the only one, by its name, or the only matrix; else None."""
    members: dict[str, object] = {str(name): group.get(name) for name in group}
    for choices in (
        list(members),
        *([name for name in members if word in name.lower()] for word in _ROWS),
        [name for name, member in members.items() if isinstance(member, h5py.Dataset) and member.ndim == 2],
    ):
        if len(choices) == 1:
            return choices[0]
    return None

"""Raw features by id, and the checks of what their readers return.

`hdf5_features` and `matrix_features` read files. Readers can be sent to other processes, where they reopen their files.
Imports no torch.

Shapes: n frames of a video, Lq tokens of a query; Dv and Dt values per frame and token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy
from typing import Protocol

import numpy as np

from dreamprvr_ray.data.near_misses import quoted
from dreamprvr_ray.errors import UserError

_SAMPLED = 31  # how many videos and queries decide which size all must have


class FeatureReader(Protocol):
    """Rows of features by id; `origin` names where they come from in messages."""

    @property
    def origin(self) -> str: ...

    def shape(self, id: str) -> tuple[int, ...]:
        """Return the shape of the rows of `id`. Raises `UserError` as `read`."""

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

    def __init__(
        self,
        videos: FeatureReader,
        queries: FeatureReader | None,
        video_ids: Sequence[str],
        query_ids: Sequence[str],
        sentences: FeatureReader | None = None,
        text_size: int = 0,
    ) -> None:
        """Take Dv and Dt, which all features must have, from most of a sample of these ids.

        `sentences` has the encoder's embedding of each whole query, if the source does. `text_size` is Dt if it has
        no queries.

        Raises:
            UserError: The features of the sample look transposed.
        """
        self.video_size = _usual_size(videos, video_ids, "video", "frame")
        if queries is None or not query_ids:
            self.text_size = text_size or self.video_size
        else:
            self.text_size = _usual_size(queries, query_ids, "query", "token")
        self._videos = videos
        self._queries = queries
        self._sentences = sentences

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
        rows = rows.reshape(_matrix_shape(rows.shape, "video"))
        return _check(rows, self.video_size, f"{self._videos.origin}: video {quoted(id)}", "videos", "frames")

    def query(self, id: str) -> np.ndarray:
        """Return a query's raw tokens (Lq, Dt), float32; a vector (Dt,) is one token. Raises `UserError` as `video`."""
        assert self._queries is not None
        rows = self._queries.read(id)
        rows = rows.reshape(_matrix_shape(rows.shape, "query"))
        return _check(rows, self.text_size, f"{self._queries.origin}: query {quoted(id)}", "queries", "tokens")

    def sentence(self, id: str) -> np.ndarray | None:
        """Return the encoder's embedding of a whole query (Dt,), float32; None if the source has none for any query.

        Raises `UserError` as `video` does.
        """
        if self._sentences is None:
            return None
        rows = self._sentences.read(id)
        where = f"{self._sentences.origin}: query {quoted(id)}"
        if rows.shape not in ((self.text_size,), (1, self.text_size)):
            raise UserError(f"{where}: shape of a sentence's embedding must be ({self.text_size},), not {rows.shape}")
        return _check(rows.reshape(1, -1), self.text_size, where, "queries", "rows").reshape(-1)


def _usual_size(reader: FeatureReader, ids: Sequence[str], kind: str, unit: str) -> int:
    """Return the size of a row that most of a sample have, so that one odd array does not make all others odd."""
    sample = list(dict.fromkeys(ids))
    shapes = {id: _matrix_shape(reader.shape(id), kind) for id in sample[:: max(1, len(sample) // _SAMPLED)]}
    matrices = [shape for shape in shapes.values() if len(shape) == 2]
    if not matrices:
        shape = next(iter(shapes.values()))
        return shape[-1] if shape else 0
    sizes, counts = Counter(shape[1] for shape in matrices), Counter(shape[0] for shape in matrices)
    (size, same_size), (count, same_count) = sizes.most_common(1)[0], counts.most_common(1)[0]
    if len(matrices) > 2 and 2 * same_size <= len(matrices) and same_count > 0.9 * len(matrices):
        (one, first), (other, second) = list(shapes.items())[:2]
        raise UserError(
            f"{reader.origin}: rows differ in size: {kind} {quoted(one)} has shape {first}, {quoted(other)} {second};"
            f" the first dimension is nearly always {count}: the arrays look transposed. There must be one row per"
            f" {unit}, so shape must be ({unit}s, {count})"
        )
    return size


def _matrix_shape(shape: tuple[int, ...], kind: str) -> tuple[int, ...]:
    """Return the shape of an array as a matrix: without axes of size 1, and a query's vector as one row.

    Arrays that are no matrices even so keep their shape.
    """
    if kind == "query" and len(shape) == 1:
        return (1, *shape)
    axes = list(shape)
    while len(axes) > 2 and 1 in axes:
        axes.pop(-1 if axes[-1] == 1 else axes.index(1))
    return tuple(axes) if len(axes) == 2 else shape


def _check(rows: np.ndarray, size: int, where: str, kinds: str, unit: str) -> np.ndarray:
    if rows.ndim != 2:
        raise UserError(f"{where}: shape must be ({unit}, {size}), not {rows.shape}")
    if not len(rows):
        raise UserError(f"{where}: 0 {unit}; at least one is needed")
    if rows.shape[1] != size:
        hint = f"; is it transposed? its shape is {rows.shape}" if len(rows) == size else ""
        raise UserError(f"{where}: features of size {rows.shape[1]}, but most {kinds} have size {size}{hint}")
    if not size:
        raise UserError(f"{where}: features of size 0; a row must hold values")
    finite = np.isfinite(rows)
    if not finite.all():
        row = int(np.argmin(finite.all(axis=1)))
        value = "NaN" if np.isnan(rows[row]).any() else "an infinite value"
        raise UserError(f"{where}: {value} in row {row} of {len(rows)}")
    return rows

"""The files of a shard: their format, writing them, and mapping them into memory as numpy arrays. Imports no torch.

    SHARDS/manifest.json                see `manifest`; written last
    SHARDS/<split>-00000.videos.arrow   one Arrow IPC file, uncompressed, one record batch, one row per video:
        video   string                              the video's id
        clips   fixed_size_list<T>[32 * Dv]         its clip rows, concatenated
        frames  list<fixed_size_list<T>[Dv]>        its 1 to 128 frame rows
        source, file                     string     \
        start, fps, duration             float64     } see `encoding.VideoTimes`; absent if they are not known
        raw_frames                       int32      /
    SHARDS/<split>-00000.queries.arrow  likewise for the queries of these videos, one row per query:
        query, text      string                     the query's id and sentence
        video            int32                      row of its video in the shard, ascending
        tokens           list<fixed_size_list<T>[Dt]>   its 1 to 30 token rows
        moment_fraction  float64                    moment length / video length, NaN if unknown; absent if the
                                                    collection has no moments
        moment_windows   list<float64>              start and end of each annotated window, one after the other, as
                                                    shares of the video's length; empty if unknown; absent with
                                                    `moment_fraction`, and in shards of earlier versions
        sentence         fixed_size_list<T>[Dt]     embedding of the whole sentence; absent if Dv is not Dt, and in
                                                    shards of earlier versions
        right_videos     list<string>               ids of all videos of the split that are right for the query, its
                                                    own first; absent if each query of the shard has one

T is float16 or float32. All rows are pooled and normalised (see `pooling`). Videos are in order of first appearance in
the caption file, queries are grouped by video in file order, and a video and its queries are in the same shard. Two
splits may name the same shards (protocol `paper`: val is test).

Shapes: V videos, Q queries, N frame rows and T token rows of one shard; Dv and Dt values per video and text row.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa

from dreamprvr_ray.config_sections import CLIPS, FRAMES, QUERY_TOKENS
from dreamprvr_ray.data.captions import KnownMoment
from dreamprvr_ray.data.encoding import VideoTimes
from dreamprvr_ray.data.manifest import FeatureType, FileRecord
from dreamprvr_ray.errors import UserError, first_line
from dreamprvr_ray.storage.files import reason, replacing_file

_DTYPES: Mapping[pa.DataType, np.dtype[Any]] = {
    pa.float16(): np.dtype(np.float16),
    pa.float32(): np.dtype(np.float32),
    pa.float64(): np.dtype(np.float64),
    pa.int32(): np.dtype(np.int32),
}


_OPTIONAL: Mapping[str, pa.DataType] = {  # columns of queries that not all shards have
    "moment_fraction": pa.float64(),
    "moment_windows": pa.list_(pa.float64()),
    "right_videos": pa.list_(pa.string()),
}
_TIMES: Mapping[str, pa.DataType] = {  # columns of videos that not all shards have: all of them or none
    "source": pa.string(),
    "file": pa.string(),
    "start": pa.float64(),
    "fps": pa.float64(),
    "raw_frames": pa.int32(),
    "duration": pa.float64(),
}
_CHECKED_ROWS = 65_536  # rows that are checked at once


@dataclass(frozen=True, eq=False)
class ShardContent:
    """What `write_shard` writes. Features are of the shards' dtype."""

    videos: Sequence[str]  # (V,) ids
    clips: np.ndarray  # (V, 32, Dv)
    frames: np.ndarray  # (N, Dv), the videos' frame rows concatenated
    frame_counts: np.ndarray  # (V,) int, sum N
    queries: Sequence[str]  # (Q,) ids, grouped by video
    texts: Sequence[str]  # (Q,) sentences
    owner: np.ndarray  # (Q,) int, ascending: row of the query's video
    tokens: np.ndarray  # (T, Dt), the queries' token rows concatenated
    token_counts: np.ndarray  # (Q,) int, sum T
    moments: Sequence[KnownMoment] | None  # (Q,); None if the collection has no moments
    sentences: np.ndarray | None = None  # (Q, Dt), of length 1; None if they are of no use
    right_videos: Sequence[Sequence[str]] | None = None  # (Q,) ids, each query's own video first; None if it is all
    times: Sequence[VideoTimes] | None = None  # (V,)


def write_shard(directory: Path, stem: str, content: ShardContent) -> dict[str, FileRecord]:
    """Write a shard's two files, each atomically, and return their records by name.

    The bytes depend on `content` only.
    """
    videos = {
        "video": pa.array(content.videos, pa.string()),
        "clips": _fixed_size_lists(content.clips.reshape(len(content.videos), -1)),
        "frames": _lists(content.frames, content.frame_counts),
    }
    if content.times is not None:
        columns_of_times = zip(*(_time_values(times) for times in content.times), strict=True)
        videos |= {
            name: pa.array(values, type_)
            for (name, type_), values in zip(_TIMES.items(), columns_of_times, strict=True)
        }
    queries = {
        "query": pa.array(content.queries, pa.string()),
        "text": pa.array(content.texts, pa.string()),
        "video": _to_arrow(content.owner.astype(np.int32)),
        "tokens": _lists(content.tokens, content.token_counts),
    }
    if content.moments is not None:
        queries["moment_fraction"] = _to_arrow(np.array([moment.fraction for moment in content.moments], np.float64))
        times_of = [[time for window in moment.windows for time in window] for moment in content.moments]
        queries["moment_windows"] = pa.array(times_of, _OPTIONAL["moment_windows"])
    if content.sentences is not None:
        queries["sentence"] = _fixed_size_lists(content.sentences)
    if content.right_videos is not None:
        queries["right_videos"] = pa.array(list(map(list, content.right_videos)), _OPTIONAL["right_videos"])
    records = {}
    for kind, columns in (("videos", videos), ("queries", queries)):
        path = directory / f"{stem}.{kind}.arrow"
        batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
        with replacing_file(path) as partial:
            with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)
            records[path.name] = FileRecord.of(partial)
    return records


class MappedShard:
    """A shard's two files mapped into memory. Arrays are read-only views of the files: nothing is copied.

    Attributes:
        video_count: V.
        query_count: Q.
        clips: (V, 32, Dv), float16 or float32.
        frames: (N, Dv), same dtype.
        frame_offsets: (V + 1,) int64: the frame rows of video v are frame_offsets[v]:frame_offsets[v + 1].
        tokens: (T, Dt), same dtype.
        token_offsets: (Q + 1,) int64: the token rows of query q are token_offsets[q]:token_offsets[q + 1].
    """

    def __init__(self, directory: Path, stem: str, dtype: FeatureType, video_size: int, text_size: int) -> None:
        """Map the files of the shard `stem` and check their format; feature values are not read.

        Raises:
            UserError: A file is damaged, or its columns are not those of a shard with this dtype and these sizes.
        """
        value = pa.float16() if dtype == "float16" else pa.float32()
        self._videos_path = directory / f"{stem}.videos.arrow"
        self._queries_path = directory / f"{stem}.queries.arrow"
        video_columns = {
            "video": pa.string(),
            "clips": pa.list_(value, CLIPS * video_size),
            "frames": pa.list_(pa.list_(value, video_size)),
        }
        query_columns = {
            "query": pa.string(),
            "text": pa.string(),
            "video": pa.int32(),
            "tokens": pa.list_(pa.list_(value, text_size)),
        }
        self._videos = _map_batch(self._videos_path, video_columns, _TIMES)
        optional = {**_OPTIONAL, "sentence": pa.list_(value, text_size)}
        self._queries = _map_batch(self._queries_path, query_columns, optional)
        self.video_count: int = self._videos.num_rows
        self.query_count: int = self._queries.num_rows
        frames, tokens = self._videos.column("frames"), self._queries.column("tokens")
        self.frame_offsets: np.ndarray = _to_numpy(frames.offsets).astype(np.int64)
        self.token_offsets: np.ndarray = _to_numpy(tokens.offsets).astype(np.int64)
        clips = _rows(self._videos.column("clips"))
        self.clips = clips.reshape(self.video_count, CLIPS, clips.shape[1] // CLIPS)
        self.frames = _rows(frames.flatten())
        self.tokens = _rows(tokens.flatten())
        has_sentences = "sentence" in self._queries.schema.names
        self._sentences = _rows(self._queries.column("sentence")) if has_sentences else None
        _check_counts(self._videos_path, "frames", self.frame_offsets, len(self.frames), FRAMES)
        _check_counts(self._queries_path, "tokens", self.token_offsets, len(self.tokens), QUERY_TOKENS)
        owner = self.owner
        if len(owner) and (owner[0] < 0 or owner[-1] >= self.video_count or (np.diff(owner) < 0).any()):
            raise _damaged(self._queries_path, "column 'video' must ascend within the shard's videos")
        self._check_right_videos()
        self._check_moment_windows()

    def _check_moment_windows(self) -> None:
        if self.moment_windows is None:
            return
        offsets, times = self.moment_windows
        is_paired = not (offsets % 2).any() and offsets[0] == 0 and offsets[-1] == len(times)
        windows = times.reshape(-1, 2) if is_paired else np.full((1, 2), np.nan)
        if not ((windows[:, 0] >= 0) & (windows[:, 0] < windows[:, 1]) & (windows[:, 1] <= 1)).all():
            raise _damaged(self._queries_path, "column 'moment_windows' must hold starts and ends from 0 to 1")

    def _check_right_videos(self) -> None:
        right = self.right_videos
        if right is None:
            return
        videos = self.strings("video")
        for video, ids in zip(self.owner.tolist(), right, strict=True):
            if not ids or ids[0] != videos[video] or len(set(ids)) != len(ids):
                raise _damaged(self._queries_path, "column 'right_videos' must begin with the query's own video")

    def check_values(self) -> None:
        """Read all features and raise `UserError` if a value is not finite."""
        columns = [
            (self._videos_path, "clips", self.clips),
            (self._videos_path, "frames", self.frames),
            (self._queries_path, "tokens", self.tokens),
        ]
        if self._sentences is not None:
            columns.append((self._queries_path, "sentence", self._sentences))
        for path, name, values in columns:
            # The exponent's bits of an infinity or a NaN are all set; numpy's isfinite is slow for float16.
            half = values.dtype == np.float16
            exponent = np.uint16(0x7C00) if half else np.uint32(0x7F800000)
            for start in range(0, len(values), _CHECKED_ROWS):
                bits: np.ndarray = values[start : start + _CHECKED_ROWS].view(exponent.dtype)
                if (np.bitwise_and(bits, exponent) == exponent).any():
                    raise _damaged(path, f"column '{name}' holds NaN or an infinite value")

    @property
    def owner(self) -> np.ndarray:
        """(Q,) int64, ascending: row of each query's video in this shard."""
        return _to_numpy(self._queries.column("video")).astype(np.int64)

    def sentences(self, queries: np.ndarray) -> np.ndarray:
        """Return the embeddings of whole sentences, (len(queries), Dt) float32, for rows of queries in this shard.

        They have length 1, or 0 where all features of a query are 0. Without the column `sentence`, they are the means
        of the token rows.
        """
        if self._sentences is not None:
            rows = self._sentences[queries].astype(np.float32)
        else:
            rows = np.empty((len(queries), self.tokens.shape[1]), dtype=np.float32)
            for row, query in enumerate(queries.tolist()):
                start, stop = self.token_offsets[query], self.token_offsets[query + 1]
                np.add.reduce(self.tokens[start:stop], axis=0, dtype=np.float32, out=rows[row])
        lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
        unit: np.ndarray = rows / np.maximum(lengths, np.float32(1e-12))[:, None]
        return unit

    @property
    def moment_fractions(self) -> np.ndarray | None:
        """(Q,) float64, NaN if unknown; None if the collection has no moments."""
        names = self._queries.schema.names
        return _to_numpy(self._queries.column("moment_fraction")) if "moment_fraction" in names else None

    @property
    def moment_windows(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Offsets (Q + 1,) and times (W,): start and end of each annotated window of query q, as shares of its video's
        length, are times[offsets[q]:offsets[q + 1]]. None if the shard has none."""
        if "moment_windows" not in self._queries.schema.names:
            return None
        column = self._queries.column("moment_windows")
        return _to_numpy(column.offsets).astype(np.int64), _to_numpy(column.values)

    @cached_property
    def times(self) -> list[VideoTimes] | None:
        """(V,) which seconds the videos' rows show; None if that is not known. Raises `UserError` if it is damaged."""
        if not _TIMES.keys() <= set(self._videos.schema.names):
            return None
        columns = {name: self._videos.column(name).to_pylist() for name in _TIMES}
        columns["frames"] = columns.pop("raw_frames")
        try:
            return [
                VideoTimes(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)
            ]
        except ValueError as error:
            raise _damaged(self._videos_path, first_line(error)) from None

    @property
    def right_videos(self) -> list[list[str]] | None:
        """(Q,) ids of each query's right videos, its own first; None if each query has one."""
        if "right_videos" not in self._queries.schema.names:
            return None
        return cast(list[list[str]], self._queries.column("right_videos").to_pylist())

    @property
    def own_videos(self) -> list[list[str]]:
        """(Q,) the id of each query's own video, in a list."""
        videos = self.strings("video")
        return [[videos[video]] for video in self.owner.tolist()]

    def strings(self, column: str) -> list[str]:
        """Return a column of strings: `video` (V,), `query` (Q,) or `text` (Q,)."""
        batch = self._queries if column in ("query", "text") else self._videos
        return cast(list[str], batch.column(column).to_pylist())


def _time_values(times: VideoTimes) -> tuple[str | float | int, ...]:
    """Return a video's values in the order of `_TIMES`."""
    return times.source, times.file, times.start, times.fps, times.frames, times.duration


def _map_batch(path: Path, required: Mapping[str, pa.DataType], optional: Mapping[str, pa.DataType]) -> pa.RecordBatch:
    """Map a file of one record batch and check that its columns have these types and hold no nulls."""
    try:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        if file.num_record_batches != 1:
            raise _damaged(path, f"must hold 1 record batch, not {file.num_record_batches}")
        batch = file.get_batch(0)
        batch.validate(full=True)
        names = batch.schema.names
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, IndexError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE):
            raise UserError(f"{path}: cannot be read: {reason(error)}") from None
        raise _damaged(path, first_line(error)) from None
    for name, type_ in required.items():
        if names.count(name) != 1:
            raise _damaged(path, f"must have one column '{name}'; it has {', '.join(names) or 'none'}")
        if batch.column(name).type != type_:
            raise _damaged(path, f"column '{name}' must be {type_}, not {batch.column(name).type}")
    for name in names:
        type_ = required.get(name) or optional.get(name)
        if type_ is None or names.count(name) > 1 or batch.column(name).type != type_:
            raise _damaged(path, f"unexpected column '{name}' of type {batch.column(name).type}")
        if _nulls(batch.column(name)):
            raise _damaged(path, f"column '{name}' holds nulls")
    return batch


def _nulls(array: pa.Array) -> int:
    """Return the number of nulls in an array, its rows and their values."""
    nested = pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type)
    return int(array.null_count) + (_nulls(array.values) if nested else 0)


def _check_counts(path: Path, name: str, offsets: np.ndarray, rows: int, most: int) -> None:
    counts = np.diff(offsets)
    if len(counts) and (counts.min() < 1 or counts.max() > most or offsets[0] != 0 or offsets[-1] != rows):
        raise _damaged(path, f"column '{name}' must hold 1 to {most} rows for each entry, without gaps")


def _damaged(path: Path, problem: str) -> UserError:
    return UserError(f"{path}: damaged: {problem}; convert again elsewhere")


def _rows(lists: pa.FixedSizeListArray) -> np.ndarray:
    """Return the memory of an array of fixed-size lists as (rows, size)."""
    return _to_numpy(lists.flatten()).reshape(len(lists), lists.type.list_size)


def _to_numpy(array: pa.Array) -> np.ndarray:
    """Return the memory of an array without nulls. (`pa.Array.to_numpy` takes most of a second to import pandas.)"""
    dtype = _DTYPES[array.type]
    if not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, count=len(array), offset=array.offset * dtype.itemsize)


def _to_arrow(values: np.ndarray) -> pa.Array:
    """Return a one-dimensional array's memory as an Arrow array."""
    type_ = next(type_ for type_, dtype in _DTYPES.items() if dtype == values.dtype)
    return pa.Array.from_buffers(type_, len(values), [None, pa.py_buffer(values)])


def _fixed_size_lists(rows: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(_to_arrow(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def _lists(rows: np.ndarray, counts: np.ndarray) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(_to_arrow(offsets), _fixed_size_lists(rows))

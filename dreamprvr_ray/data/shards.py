"""Feature shards: what conversion writes once and every worker and trial of a node maps into memory.

    SHARDS/manifest.json                sizes, counts, protocol, preprocessing, and every file's size and SHA-256; written last
    SHARDS/<split>-00000.videos.arrow   one Arrow IPC file, uncompressed, one record batch, a row per video:
        video   string                              the video's id
        clips   fixed_size_list<T>[32 * Dv]         its clip rows, one after the other
        frames  list<fixed_size_list<T>[Dv]>        its 1 to 128 frame rows
    SHARDS/<split>-00000.queries.arrow  the same for these videos' queries, a row per query:
        query, text      string                     the query's id and words
        video            int32                      its video's row in the shard, ascending
        tokens           list<fixed_size_list<T>[Dt]>   its 1 to 30 token rows
        moment_fraction  float64                    moment / video length, NaN where unknown; absent where the collection has no moments

T is float16 or float32. All rows are pooled and normalised (`pooling`). Videos stand in order of first appearance in the caption file,
queries grouped by video in file order; a video and its queries share a shard. Two splits may name the same shards
(protocol `paper`: val is test).

Shapes: V videos, Q queries, N frame rows and T token rows of a shard; Dv, Dt feature sizes.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import torch

from dreamprvr_ray.config import CLIPS
from dreamprvr_ray.errors import UserError, did_you_mean

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
UNFINISHED = "conversion"  # the folder in which an unfinished conversion keeps its records
_DTYPES: Mapping[pa.DataType, np.dtype[Any]] = {
    pa.float16(): np.dtype(np.float16),
    pa.float32(): np.dtype(np.float32),
    pa.float64(): np.dtype(np.float64),
    pa.int32(): np.dtype(np.int32),
}  # of the columns without strings

Protocol = Literal["own splits", "dev", "paper"]
FeatureType = Literal["float16", "float32"]


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of a shard file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitRecord:
    """Counts of a split and the names of its shards, in order."""

    videos: int
    queries: int
    shards: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """What a set of shards is and was made from.

    `protocol` is `own splits` (val and test as distributed), `dev` (val was carved from train, by video; test as distributed) or `paper`
    (val and test are the same, as in the authors' release). `conversion` holds the settings and the source files' fingerprint.
    """

    schema_version: int
    collection: str
    features: str
    video_size: int
    text_size: int
    dtype: FeatureType
    protocol: Protocol
    splits: Mapping[str, SplitRecord]
    preprocessing: Mapping[str, str]
    conversion: Mapping[str, Any]
    files: Mapping[str, FileRecord]

    @staticmethod
    def read(path: Path) -> Manifest:
        """The manifest in a file. Raises `UserError` where it is missing, malformed or of another schema version."""
        try:
            return Manifest.parse(path.read_bytes(), str(path))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None

    @staticmethod
    def parse(content: bytes, where: str) -> Manifest:
        """The manifest in a file's content. Raises `UserError` that names `where` it is malformed or of another schema version."""
        try:
            values = json.loads(content)
            version = values["schema_version"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{where}: is no manifest of shards") from None
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{where}: schema version {version}, this program reads {SCHEMA_VERSION}: convert again into another folder"
            )
        try:
            splits = values["splits"].items()
            values["splits"] = {
                name: SplitRecord(**record | {"shards": tuple(record["shards"])}) for name, record in splits
            }
            values["files"] = {name: FileRecord(**record) for name, record in values["files"].items()}
            return Manifest(**values)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{where}: is no manifest of shards: {error}") from None

    def write(self, directory: Path) -> None:
        """Writes `manifest.json` into `directory`, atomically."""
        write_json(directory / MANIFEST, asdict(self))


class ShardSet:
    """The shards in a folder."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest

    @staticmethod
    def open(directory: Path) -> ShardSet:
        """Reads the manifest and compares the files' sizes with it: milliseconds, whatever they hold.

        Raises `UserError` where the folder, the manifest or a file is missing, the conversion is unfinished or a size is wrong.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise UserError(f"{directory}: no such folder of shards")
        if not (directory / MANIFEST).is_file():
            unfinished = (directory / UNFINISHED).is_dir()
            how = (
                "the conversion is unfinished: run the same convert command again"
                if unfinished
                else "these are no shards"
            )
            raise UserError(f"{directory}: there is no {MANIFEST}: {how}")
        manifest = Manifest.read(directory / MANIFEST)
        mistakes = []
        for name, record in manifest.files.items():
            try:
                size = os.stat(directory / name).st_size
            except OSError:
                mistakes.append(f"{directory / name}: no such file, though the manifest names it")
                continue
            if size != record.bytes:
                mistakes.append(
                    f"{directory / name}: {size:,} bytes, the manifest says {record.bytes:,}: damaged, convert again"
                )
        if mistakes:
            raise UserError(*mistakes)
        return ShardSet(directory, manifest)

    def split(self, name: str) -> Split:
        """Maps a split's shards. Raises `UserError` where there is no such split or a file is damaged."""
        record = self.manifest.splits.get(name)
        if record is None:
            known = list(self.manifest.splits)
            raise UserError(
                f"{self.directory}: no split '{name}'; there is {', '.join(known)}{did_you_mean(name, known)}"
            )
        return Split(name, [_MappedShard(self.directory, stem) for stem in record.shards])

    def joined(self, first: str, second: str) -> Split:
        """The videos of two splits as one. Raises `UserError` as `split` does, and where `second` is what test is, as in protocol `paper`."""
        parts = [self.split(name) for name in (first, second)]
        if self.manifest.splits[second].shards == self.manifest.splits["test"].shards:
            raise UserError(
                f"{self.directory}: {second} and test are the same here (protocol: {self.manifest.protocol}): nothing may learn from it"
            )
        return Split(f"{first} and {second}", [shard for part in parts for shard in part._shards])

    def verify_checksums(self) -> None:
        """Reads every file in full. Raises `UserError` naming those whose SHA-256 is not the manifest's."""
        mistakes = [
            f"{self.directory / name}: SHA-256 is not the manifest's: damaged, convert again into another folder"
            for name, record in self.manifest.files.items()
            if file_record(self.directory / name) != record
        ]
        if mistakes:
            raise UserError(*mistakes)


class Split:
    """The videos and queries of a split. Features are views of the mapped files: nothing is read before it is used, nothing copied."""

    def __init__(self, name: str, shards: Sequence[_MappedShard]) -> None:
        self.name = name
        self._shards = shards
        self._first_video = np.cumsum([0, *(shard.video_count for shard in shards)])
        self._first_query = np.cumsum([0, *(shard.query_count for shard in shards)])
        self._video_starts: list[int] = self._first_video[:-1].tolist()
        self._query_starts: list[int] = self._first_query[:-1].tolist()

    def __len__(self) -> int:
        return int(self._first_video[-1])

    @cached_property
    def videos(self) -> list[str]:
        """V video ids."""
        return [id for shard in self._shards for id in shard.strings("video")]

    @cached_property
    def queries(self) -> list[str]:
        """Q query ids, grouped by video."""
        return [id for shard in self._shards for id in shard.strings("query")]

    @cached_property
    def captions(self) -> list[str]:
        """Q texts; some may be empty."""
        return [text for shard in self._shards for text in shard.strings("text")]

    @cached_property
    def owner(self) -> np.ndarray:
        """(Q,) int64, ascending: the index of each query's video."""
        return np.concatenate(
            [shard.owner + first for shard, first in zip(self._shards, self._video_starts, strict=True)]
        )

    @cached_property
    def first_query(self) -> np.ndarray:
        """(V + 1,) int64: video v's queries are first_query[v]:first_query[v + 1]."""
        return np.searchsorted(self.owner, np.arange(len(self) + 1))

    @cached_property
    def frame_counts(self) -> np.ndarray:
        """(V,) int64: frame rows of each video, 1 to 128."""
        return np.concatenate([np.diff(shard.frame_offsets) for shard in self._shards])

    @cached_property
    def token_counts(self) -> np.ndarray:
        """(Q,) int64: token rows of each query, 1 to 30."""
        return np.concatenate([np.diff(shard.token_offsets) for shard in self._shards])

    @cached_property
    def moment_fractions(self) -> np.ndarray | None:
        """(Q,) float64: moment length / video length in [0, 1], NaN where unknown; None where the collection has no moments."""
        fractions = [shard.moment_fractions for shard in self._shards]
        known = [fraction for fraction in fractions if fraction is not None]
        return np.concatenate(known) if known else None

    @property
    def video_size(self) -> int:
        """Dv."""
        return self._shards[0].frames.shape[1]

    @property
    def text_size(self) -> int:
        """Dt."""
        return self._shards[0].tokens.shape[1]

    def features(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Clips (v, 32, Dv), frame rows (N, Dv) and token rows (T, Dt) of each shard, as views of the mapped files."""
        return [(shard.clips, shard.frames, shard.tokens) for shard in self._shards]

    def clips(self, video: int) -> torch.Tensor:
        """(32, Dv) view of the mapped file, of the shards' dtype; not to be written to."""
        number = bisect_right(self._video_starts, video) - 1
        return self._shards[number].clips[video - self._video_starts[number]]

    def frames(self, video: int) -> torch.Tensor:
        """(n, Dv) view, n = frame_counts[video], as `clips`."""
        number = bisect_right(self._video_starts, video) - 1
        shard, row = self._shards[number], video - self._video_starts[number]
        return shard.frames[shard.frame_offsets[row] : shard.frame_offsets[row + 1]]

    def tokens(self, start: int, stop: int) -> list[torch.Tensor]:
        """Token rows of the consecutive queries start:stop, as views of as few pieces (rows, Dt) as shards hold them."""
        pieces = []
        while start < stop:
            number = bisect_right(self._query_starts, start) - 1
            shard, first = self._shards[number], self._query_starts[number]
            end = min(stop, first + shard.query_count)
            pieces.append(shard.tokens[shard.token_offsets[start - first] : shard.token_offsets[end - first]])
            start = end
        return pieces


class _MappedShard:
    """One shard's two files, mapped."""

    def __init__(self, directory: Path, stem: str) -> None:
        self._videos = _mapped_batch(directory / f"{stem}.videos.arrow")
        self._queries = _mapped_batch(directory / f"{stem}.queries.arrow")
        self.video_count: int = self._videos.num_rows
        self.query_count: int = self._queries.num_rows
        frames, tokens = self._videos.column("frames"), self._queries.column("tokens")
        self.frame_offsets: np.ndarray = _numpy(frames.offsets).astype(np.int64)
        self.token_offsets: np.ndarray = _numpy(tokens.offsets).astype(np.int64)
        clips = _view(self._videos.column("clips"))
        self.clips = clips.view(self.video_count, CLIPS, clips.shape[1] // CLIPS)
        self.frames = _view(frames.flatten())
        self.tokens = _view(tokens.flatten())

    @property
    def owner(self) -> np.ndarray:
        return _numpy(self._queries.column("video")).astype(np.int64)

    @property
    def moment_fractions(self) -> np.ndarray | None:
        names = self._queries.schema.names
        return _numpy(self._queries.column("moment_fraction")) if "moment_fraction" in names else None

    def strings(self, column: str) -> list[str]:
        batch = self._queries if column in ("query", "text") else self._videos
        return cast(list[str], batch.column(column).to_pylist())


def _mapped_batch(path: Path) -> pa.RecordBatch:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: cannot be read, damaged: {' '.join(str(error).split())}") from None


def _view(rows: pa.FixedSizeListArray) -> torch.Tensor:
    """(rows, size): a tensor on the memory of an Arrow array of fixed-size lists."""
    values = _numpy(rows.flatten()).reshape(len(rows), rows.type.list_size)
    with warnings.catch_warnings():
        # The map is read-only and torch has no such tensors; whoever wrote to this one would end the process.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


def _numpy(array: pa.Array) -> np.ndarray:
    """The array's memory, for types without nulls. (`to_numpy` would import pandas: most of a second in every process.)"""
    dtype = _DTYPES[array.type]
    return np.frombuffer(array.buffers()[1], dtype, count=len(array), offset=array.offset * dtype.itemsize)


def _arrow(values: np.ndarray) -> pa.Array:
    """The same the other way."""
    type_ = next(type_ for type_, dtype in _DTYPES.items() if dtype == values.dtype)
    return pa.Array.from_buffers(type_, len(values), [None, pa.py_buffer(values)])


@dataclass(frozen=True, eq=False)
class ShardContent:
    """What one shard will hold; features are numpy arrays of the shards' dtype."""

    videos: Sequence[str]  # v ids
    clips: np.ndarray  # (v, 32, Dv)
    frames: np.ndarray  # (N, Dv)
    frame_counts: np.ndarray  # (v,), sum N
    queries: Sequence[str]  # q ids, grouped by video
    texts: Sequence[str]  # q
    owner: np.ndarray  # (q,) row of the query's video, ascending
    tokens: np.ndarray  # (T, Dt)
    token_counts: np.ndarray  # (q,), sum T
    moment_fractions: np.ndarray | None  # (q,)


def write_shard(directory: Path, stem: str, content: ShardContent) -> dict[str, FileRecord]:
    """Writes the two files of a shard, each atomically, and returns their records by name. The bytes depend on `content` alone."""
    videos = {
        "video": pa.array(content.videos, pa.string()),
        "clips": _fixed_size_lists(content.clips.reshape(len(content.videos), -1)),
        "frames": _lists(content.frames, content.frame_counts),
    }
    queries = {
        "query": pa.array(content.queries, pa.string()),
        "text": pa.array(content.texts, pa.string()),
        "video": _arrow(content.owner.astype(np.int32)),
        "tokens": _lists(content.tokens, content.token_counts),
    }
    if content.moment_fractions is not None:
        queries["moment_fraction"] = _arrow(content.moment_fractions.astype(np.float64))
    records = {}
    for kind, columns in (("videos", videos), ("queries", queries)):
        path = directory / f"{stem}.{kind}.arrow"
        batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
        partial = partial_path(path)
        try:
            with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)
            records[path.name] = file_record(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return records


def _fixed_size_lists(rows: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(_arrow(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def _lists(rows: np.ndarray, counts: np.ndarray) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(_arrow(offsets), _fixed_size_lists(rows))


def partial_path(path: Path) -> Path:
    """The temporary name, in the same folder, under which this process writes a file before it is renamed."""
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically."""
    partial = partial_path(path)
    partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def file_record(path: Path) -> FileRecord:
    """A file's size and SHA-256, read in full."""
    with open(path, "rb") as file:
        return FileRecord(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())

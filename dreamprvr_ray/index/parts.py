"""A part of an index: some encoded videos in files that are mapped into memory.

    <part>/videos.arrow     one row per video or window of a video (`IndexedRow`)
    <part>/clips.npy        (V, 32, D)  clip tokens of the model, of length 1
    <part>/frames.npy       (N, D)      its frame tokens, of length 1
    <part>/features.npy     (N, Dv)     the encoder's frame rows, as in shards
    <part>/norms.npy        (W,)        norms of the sums of the encoder's windows (`windows`)
    <part>/coarse.npy       (V, K, B)   codes of the coarse stage, if the index has one (`coarse`)

Files of the model are absent from an index of an encoder alone. In a compact index, rows are int8 in a space of fewer
dimensions (`compression`). A part is written once and never changes.

Shapes: V rows, N frames of all of them, W windows of all of them; D hidden size of the model, Dv values of a feature.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dreamprvr_ray.data.encoding import VideoTimes
from dreamprvr_ray.errors import UserError, first_line
from dreamprvr_ray.index.record import PartRecord
from dreamprvr_ray.index.windows import Windows, window_numbers, windows_of
from dreamprvr_ray.storage.files import remove_own_files, replacing

ROWS = "videos.arrow"
PART_FILES = (ROWS, "clips.npy", "frames.npy", "features.npy", "norms.npy", "coarse.npy")
# A part, or what `storage.files.replacing` names the temporary directory in which it is written.
_OWN_NAME = re.compile(r"\d{6}|\.\d{6}-(?P<temporary>\w{8})")
_COLUMNS = pa.schema(
    {
        "id": pa.string(), "fingerprint": pa.string(), "frames": pa.int32(), "source": pa.string(), "file": pa.string(),
        "start": pa.float64(), "fps": pa.float64(), "raw_frames": pa.int32(), "duration": pa.float64(),
    }
)  # fmt: skip


@dataclass(frozen=True)
class IndexedRow:
    """A video, or a window of a long video, that is scored separately.

    Attributes:
        id: Its id.
        fingerprint: Of all that its encoding was made from.
        frames: Number of frame rows, 1 to 128.
        times: Which seconds of which file the rows show; None if that is not known.
    """

    id: str
    fingerprint: str
    frames: int
    times: VideoTimes | None

    @property
    def source(self) -> str:
        """Id of the video that it is, or that it is a window of."""
        return self.id if self.times is None else self.times.source


@dataclass(frozen=True, eq=False)
class Block:
    """Some encoded videos; arrays as in the files of a part."""

    counts: np.ndarray  # (V,) frame rows of each video
    features: np.ndarray
    norms: np.ndarray
    clips: np.ndarray | None = None
    frames: np.ndarray | None = None
    coarse: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.counts)

    @cached_property
    def offsets(self) -> np.ndarray:
        """(V + 1,) int64: the frame rows of video v are offsets[v]:offsets[v + 1]."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @cached_property
    def windows(self) -> Windows:
        """The encoder's windows."""
        return windows_of(self.counts)

    @cached_property
    def _window_offsets(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(window_numbers(self.counts).sum(1))])

    def take(self, rows: Iterable[int]) -> Block:
        """Return some of the videos, in this order."""
        rows = list(rows)

        def pieces(array: np.ndarray | None, offsets: np.ndarray) -> np.ndarray | None:
            if array is None:
                return None
            return np.concatenate([array[offsets[row] : offsets[row + 1]] for row in rows])

        features, norms = pieces(self.features, self.offsets), pieces(self.norms, self._window_offsets)
        assert features is not None and norms is not None
        return Block(
            self.counts[rows],
            features,
            norms,
            None if self.clips is None else self.clips[rows],
            pieces(self.frames, self.offsets),
            None if self.coarse is None else self.coarse[rows],
        )

    @staticmethod
    def joined(blocks: Sequence[Block]) -> Block:
        """Return the videos of several blocks of one form, in this order."""
        if len(blocks) == 1:
            return blocks[0]
        arrays: dict[str, Any] = {}
        for field in fields(Block):
            parts = [getattr(block, field.name) for block in blocks]
            arrays[field.name] = None if any(part is None for part in parts) else np.concatenate(parts)
        return Block(**arrays)


@dataclass(frozen=True, eq=False)
class PartContent:
    """What a part holds."""

    rows: Sequence[IndexedRow]
    block: Block

    @staticmethod
    def joined(contents: Sequence[PartContent]) -> PartContent:
        """Return the videos of several contents, in this order."""
        rows = [row for content in contents for row in content.rows]
        return PartContent(rows, Block.joined([content.block for content in contents]))


def write_part(directory: Path, content: PartContent) -> PartRecord:
    """Write a part into the new directory `directory`, atomically. Raises OSError if it cannot be written."""
    with replacing(directory) as partial:
        batch = pa.RecordBatch.from_pylist([_values(row) for row in content.rows], _COLUMNS)
        with pa.OSFile(str(partial / ROWS), "wb") as sink, pa.ipc.new_file(sink, _COLUMNS) as writer:
            writer.write_batch(batch)
        for name in PART_FILES[1:]:
            array = getattr(content.block, name.removesuffix(".npy"))
            if array is not None:
                np.save(partial / name, array, allow_pickle=False)
    return PartRecord(directory.name, len(content.rows), len(content.block.features))


def is_part(directory: Path) -> bool:
    """Return whether a directory's name and content show that `write_part` wrote it, perhaps not to its end."""
    name = _OWN_NAME.fullmatch(directory.name)
    if not name or directory.is_symlink() or not directory.is_dir():
        return False
    try:
        with pa.memory_map(str(directory / ROWS)) as file:
            return bool(pa.ipc.open_file(file).schema == _COLUMNS)
    except (OSError, pa.ArrowException):
        # The rows are written first: without them, a temporary directory holds nothing else.
        return name["temporary"] is not None and {path.name for path in directory.iterdir()} <= {ROWS}


def remove_part(directory: Path) -> None:
    """Remove the files of a part, the rows last, by which it is known as one."""
    remove_own_files(directory, lambda name: name in PART_FILES and name != ROWS)
    remove_own_files(directory, lambda name: name == ROWS)


def _values(row: IndexedRow) -> dict[str, object]:
    times = row.times
    values: dict[str, object] = {"id": row.id, "fingerprint": row.fingerprint, "frames": row.frames}
    if times is not None:
        values |= {
            "source": times.source, "file": times.file, "start": times.start, "fps": times.fps,
            "raw_frames": times.frames, "duration": times.duration,
        }  # fmt: skip
    return values


class Part:
    """A part, mapped into memory. Opening one reads little more than its sizes."""

    def __init__(self, directory: Path, record: PartRecord, has_model: bool, has_coarse: bool = False) -> None:
        self.directory, self.record = directory, record
        counts = self._table["frames"].to_numpy(zero_copy_only=False)
        fits = len(counts) == record.rows and counts.dtype == np.int32 and counts.sum() == record.frames
        if not fits or (counts < 1).any():
            raise self._damaged("its files do not have the recorded numbers of videos and frames")
        counts = counts.astype(np.int64)
        self.block = Block(
            counts,
            self._map("features.npy", record.frames),
            self._map("norms.npy", int(window_numbers(counts).sum())),
            self._map("clips.npy", record.rows) if has_model else None,
            self._map("frames.npy", record.frames) if has_model else None,
            self._map("coarse.npy", record.rows) if has_coarse else None,
        )

    def __len__(self) -> int:
        return self.record.rows

    def ids(self) -> list[str]:
        """Return the ids of all rows."""
        ids: list[str] = self._table["id"].to_pylist()
        return ids

    @property
    def sources(self) -> pa.ChunkedArray:
        """The ids of the videos that the rows are, or are windows of."""
        return pc.coalesce(self._table["source"], self._table["id"])

    def fingerprints(self) -> dict[str, str]:
        """Return the rows' fingerprints by id."""
        return dict(zip(self.ids(), self._table["fingerprint"].to_pylist(), strict=True))

    def rows(self, start: int = 0, count: int | None = None) -> list[IndexedRow]:
        """Return what is known of some rows: of all by default."""
        table = self._table.slice(start, count)
        try:
            return [_row(values) for values in table.to_pylist()]
        except (TypeError, ValueError) as error:
            raise self._damaged(first_line(error)) from None

    def content(self, rows: Sequence[int]) -> PartContent:
        """Return some of the videos, in this order."""
        known = self.rows()
        return PartContent([known[row] for row in rows], self.block.take(rows))

    @cached_property
    def _table(self) -> pa.Table:
        try:
            with pa.memory_map(str(self.directory / ROWS)) as file:
                table = pa.ipc.open_file(file).read_all()
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(f"{ROWS}: {first_line(error)}") from None
        if table.schema != _COLUMNS:
            raise self._damaged(f"{ROWS}: has other columns")
        return table

    def _map(self, name: str, length: int | None = None) -> np.ndarray:
        try:
            array: np.ndarray = np.load(self.directory / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(f"{name}: {first_line(error)}") from None
        if length is not None and len(array) != length:
            raise self._damaged(f"{name}: has {len(array):,} rows, not {length:,}")
        return array.view(np.ndarray)  # slices of a memmap take several times as long

    def _damaged(self, why: str) -> UserError:
        return UserError(f"{self.directory}: damaged: {why}; remove the index and build it again")


def _row(values: dict[str, object]) -> IndexedRow:
    id, fingerprint, frames = values.pop("id"), values.pop("fingerprint"), values.pop("frames")
    times = None
    if values["source"] is not None:
        values["frames"] = values.pop("raw_frames")
        times = VideoTimes(**values)  # type: ignore[arg-type]
    return IndexedRow(str(id), str(fingerprint), int(frames), times)  # type: ignore[call-overload]

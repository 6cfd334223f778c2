"""A part of an index: some encoded videos in files that are mapped into memory.

    <part>/videos.arrow     one row per video or window of a video (`IndexedRow`)
    <part>/clips.npy        (V, 32, D)  clip tokens of the model, of length 1
    <part>/frames.npy       (N, D)      its frame tokens, of length 1
    <part>/features.npy     (N, Dv)     the encoder's frame rows, as in shards
    <part>/norms.npy        (W,)        norms of the sums of the encoder's windows, in the order of `windows_of`

Files of the model are absent from an index of an encoder alone. A part is written once and never changes.

Shapes: V rows, N frames of all of them, W windows of all of them; D hidden size of the model, Dv values of a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from dreamprvr_ray.data.encoding import VideoTimes
from dreamprvr_ray.errors import UserError, first_line
from dreamprvr_ray.index.record import PartRecord
from dreamprvr_ray.index.windows import window_norms
from dreamprvr_ray.storage.files import replacing

ROWS, CLIP_TOKENS, FRAME_TOKENS, FEATURES, NORMS = (
    "videos.arrow", "clips.npy", "frames.npy", "features.npy", "norms.npy",
)  # fmt: skip
PART_FILES = (ROWS, CLIP_TOKENS, FRAME_TOKENS, FEATURES, NORMS)
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
class PartContent:
    """What a part holds; arrays as in the files."""

    rows: Sequence[IndexedRow]
    features: np.ndarray
    clips: np.ndarray | None = None
    frames: np.ndarray | None = None


def write_part(directory: Path, content: PartContent) -> PartRecord:
    """Write a part into the new directory `directory`, atomically. Raises OSError if it cannot be written."""
    with replacing(directory) as partial:
        batch = pa.RecordBatch.from_pylist([_values(row) for row in content.rows], _COLUMNS)
        with pa.OSFile(str(partial / ROWS), "wb") as sink, pa.ipc.new_file(sink, _COLUMNS) as writer:
            writer.write_batch(batch)
        norms = window_norms(content.features, np.array([row.frames for row in content.rows]))
        arrays = {
            FEATURES: content.features, NORMS: norms, CLIP_TOKENS: content.clips, FRAME_TOKENS: content.frames,
        }  # fmt: skip
        for name, array in arrays.items():
            if array is not None:
                np.save(partial / name, array, allow_pickle=False)
    return PartRecord(directory.name, len(content.rows), len(content.features))


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
    """A part, mapped into memory. Opening one reads no more than its sizes."""

    def __init__(self, directory: Path, record: PartRecord, has_model: bool) -> None:
        self.directory, self.record = directory, record
        self.features = self._map(FEATURES)
        self.norms = self._map(NORMS)
        self.clips = self._map(CLIP_TOKENS) if has_model else None
        self.frames = self._map(FRAME_TOKENS) if has_model else None
        lengths = [len(self.features)] + ([] if self.frames is None else [len(self.frames)])
        if any(length != record.frames for length in lengths) or len(self._table) != record.rows:
            raise self._damaged("its files do not have the recorded numbers of videos and frames")
        if int(self.counts.sum()) != record.frames or (self.counts < 1).any():
            raise self._damaged("the videos' numbers of frames do not match its files")

    def __len__(self) -> int:
        return self.record.rows

    @cached_property
    def counts(self) -> np.ndarray:
        """(V,) int64: the number of frame rows of each video."""
        counts: np.ndarray = self._table["frames"].to_numpy(zero_copy_only=False).astype(np.int64)
        return counts

    @cached_property
    def offsets(self) -> np.ndarray:
        """(V + 1,) int64: the frame rows of video v are offsets[v]:offsets[v + 1]."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    def ids(self) -> list[str]:
        """Return the ids of all rows."""
        ids: list[str] = self._table["id"].to_pylist()
        return ids

    def sources(self) -> list[str]:
        """Return the ids of the videos that the rows are, or are windows of."""
        sources = self._table["source"].to_pylist()
        return [id if source is None else source for source, id in zip(sources, self.ids(), strict=True)]

    def fingerprints(self) -> dict[str, str]:
        """Return the rows' fingerprints by id."""
        return dict(zip(self.ids(), self._table["fingerprint"].to_pylist(), strict=True))

    def row(self, number: int) -> IndexedRow:
        """Return what is known of a row."""
        (values,) = self._table.slice(number, 1).to_pylist()
        try:
            times = None
            if values["source"] is not None:
                times = VideoTimes(
                    values["source"], values["file"], values["start"], values["fps"], values["raw_frames"],
                    values["duration"],
                )  # fmt: skip
            return IndexedRow(values["id"], values["fingerprint"], values["frames"], times)
        except (TypeError, ValueError) as error:
            raise self._damaged(first_line(error)) from None

    @cached_property
    def _table(self) -> pa.Table:
        try:
            with pa.memory_map(str(self.directory / ROWS)) as file:
                table = pa.ipc.open_file(file).read_all()
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(f"{ROWS}: {first_line(error)}") from None
        if table.schema != _COLUMNS:
            raise self._damaged(f"{ROWS}: other columns")
        return table

    def _map(self, name: str) -> np.ndarray:
        try:
            array: np.ndarray = np.load(self.directory / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(f"{name}: {first_line(error)}") from None
        return array

    def _damaged(self, why: str) -> UserError:
        return UserError(f"{self.directory}: damaged: {why}; remove the index and build it again")


def select(part: Part, rows: Sequence[int]) -> PartContent:
    """Return what a part holds of some of its rows, in this order."""
    frames = np.concatenate([np.arange(part.offsets[row], part.offsets[row + 1]) for row in rows])
    return PartContent(
        [part.row(row) for row in rows],
        part.features[frames],
        None if part.clips is None else part.clips[list(rows)],
        None if part.frames is None else part.frames[frames],
    )


def joined(first: PartContent, second: PartContent) -> PartContent:
    """Return the rows of two contents of parts, in this order."""

    def concatenate(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
        return None if one is None or other is None else np.concatenate([one, other])

    return PartContent(
        [*first.rows, *second.rows],
        np.concatenate([first.features, second.features]),
        concatenate(first.clips, second.clips),
        concatenate(first.frames, second.frames),
    )

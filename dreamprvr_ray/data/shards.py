"""Reading shards: a directory of them (`ShardSet`) and one split's videos and queries as tensors (`Split`).

`shard_files` documents the files and `manifest` describes a directory. Shards are written once, by `convert` or
`write_shards`; every worker and trial on a node then maps the same files into memory.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from dreamprvr_ray.data.captions import Caption
from dreamprvr_ray.data.checked_files import (
    check_files,
    remember_encoder_area,
    remember_overlaps,
    remembered_encoder_area,
    remembered_overlaps,
)
from dreamprvr_ray.data.encoding import VideoTimes
from dreamprvr_ray.data.manifest import MANIFEST, FileRecord, Manifest, not_one_encoder
from dreamprvr_ray.data.near_misses import quoted
from dreamprvr_ray.data.one_encoder import LEAST, encoder_area
from dreamprvr_ray.data.one_encoder import SPLITS as ENCODER_SPLITS
from dreamprvr_ray.data.overlaps import find_overlaps
from dreamprvr_ray.data.shard_files import MappedShard
from dreamprvr_ray.errors import UserError, did_you_mean


class ShardSet:
    """A directory of shards and its manifest: the train, val and test splits of one collection.

    Attributes:
        directory: Where the shards are.
        manifest: The parsed `manifest.json`.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest

    @staticmethod
    def open(directory: str | Path) -> ShardSet:
        """Open a directory of shards. Takes milliseconds: reads the manifest and compares the files' sizes with it.

        Raises:
            UserError: The directory, the manifest or a file is missing, the conversion is unfinished, or a file's size
                differs from the manifest's.
        """
        shards = ShardSet(Path(directory), Manifest.open(Path(directory)))
        if shards.manifest.overlaps is None and {"val", "test"} <= shards.manifest.splits.keys():
            # Written by an earlier version, which did not look for overlaps.
            fingerprint = shards.manifest.fingerprint
            overlaps = remembered_overlaps(shards.directory, fingerprint)
            if overlaps is None:
                overlaps = find_overlaps(shards.captions())
                remember_overlaps(shards.directory, fingerprint, overlaps)
            shards.manifest = shards.manifest.with_overlaps(overlaps)
        return shards

    def split(self, name: str) -> Split:
        """Map the shards of the split `name` (train, val or test) into memory.

        The files' checksums are compared with the manifest's when the split is first used on this machine.

        Raises:
            UserError: There is no such split, or a file is damaged.
        """
        shards = self._map(name)
        if check_files(self.directory, self._files(name)):
            for shard in shards:
                shard.check_values()
        return Split(name, shards)

    def _map(self, name: str) -> list[MappedShard]:
        record = self.manifest.splits.get(name)
        if record is None:
            names = list(self.manifest.splits)
            if name == "train":
                self.manifest.check_has_train(self.directory)
            raise UserError(
                f"{self.directory}: no split '{name}'; available: {', '.join(names)}{did_you_mean(name, names)}"
            )
        manifest = self.manifest
        sizes = (manifest.dtype, manifest.video_size, manifest.text_size)
        shards = [MappedShard(self.directory, stem, *sizes) for stem in record.shards]
        counts = (sum(shard.video_count for shard in shards), sum(shard.query_count for shard in shards))
        if counts != (record.videos, record.queries):
            raise UserError(
                f"{self.directory}: damaged: the shards of {name} hold {counts[0]:,} videos and {counts[1]:,} queries,"
                f" but {MANIFEST} lists {record.videos:,} and {record.queries:,}; convert again elsewhere"
            )
        return shards

    def _files(self, name: str) -> dict[str, FileRecord]:
        stems = self.manifest.splits[name].shards
        files = [f"{stem}.{kind}.arrow" for stem in stems for kind in ("videos", "queries")]
        return {file: self.manifest.files[file] for file in files}

    def captions(self) -> dict[str, list[Caption]]:
        """Return each split's ids and sentences."""
        captions = {}
        for name in self.manifest.splits:
            split = Split(name, self._map(name))
            videos = [split.videos[video] for video in split.owner.tolist()]
            captions[name] = list(map(Caption, split.queries, videos, split.captions))
        return captions

    def joined(self, first: str, second: str) -> Split:
        """Map two splits as one to train on, whose videos are those of `first` followed by those of `second`.

        Raises:
            UserError: As `split`, or `second` is the test split (protocol `paper`) or shares videos or queries with it.
        """
        parts = [self.split(name) for name in (first, second)]
        self.manifest.check_may_train_on(second, self.directory)
        return Split.joined(parts, f"{first} and {second}")

    @property
    def one_encoder(self) -> bool:
        """Whether frames and queries come from one encoder, so that they can be compared without a model.

        The manifest says so; for shards of earlier versions it is measured once on this machine.
        """
        manifest = self.manifest
        if manifest.video_size != manifest.text_size:
            return False
        if manifest.one_encoder is not None:
            return manifest.one_encoder
        area = remembered_encoder_area(self.directory, manifest.fingerprint)
        if area is None:
            area = encoder_area(self._map(next(split for split in ENCODER_SPLITS if split in manifest.splits)))
            if area is None:
                return False
            remember_encoder_area(self.directory, manifest.fingerprint, area)
        return area >= LEAST

    def check_encoder_weight(self, weight: float | str) -> None:
        """Raise `UserError` if the encoder's own score has a weight (`evaluation.encoder_weight`) but no meaning."""
        if weight != 0 and not self.one_encoder:
            raise UserError(not_one_encoder(weight, str(self.directory)))

    def verify_checksums(self) -> None:
        """Read every file in full and compare its SHA-256 with the manifest's.

        Raises:
            UserError: One line for each file that differs.
        """
        mistakes = [
            f"{self.directory / name}: damaged: SHA-256 differs from the manifest's; convert again elsewhere"
            for name, record in self.manifest.files.items()
            if FileRecord.of(self.directory / name) != record
        ]
        if mistakes:
            raise UserError(*mistakes)


class Split:
    """The V videos and Q queries of a split, mapped into memory.

    Feature tensors have the shards' dtype (float16 or float32) and are views of the mapped files: a file's content is
    read when it is used, and nothing is copied. The files are mapped read-only, so writing to such a tensor ends the
    process.

    Videos are numbered 0 to V - 1 in order of first appearance in the caption file, queries 0 to Q - 1, grouped by
    video. Dv and Dt are the numbers of values per video row and text token.
    """

    def __init__(self, name: str, shards: Sequence[MappedShard]) -> None:
        self.name = name
        self._parts: Sequence[Split] = ()
        self._shards = shards
        self._clips = [_as_tensor(shard.clips) for shard in shards]
        self._frames = [_as_tensor(shard.frames) for shard in shards]
        self._tokens = [_as_tensor(shard.tokens) for shard in shards]
        self._first_video = np.cumsum([0, *(shard.video_count for shard in shards)])
        self._first_query = np.cumsum([0, *(shard.query_count for shard in shards)])
        self._video_starts: list[int] = self._first_video[:-1].tolist()
        self._query_starts: list[int] = self._first_query[:-1].tolist()

    @classmethod
    def joined(cls, parts: Sequence[Split], name: str | None = None) -> Split:
        """Return several splits as one, whose videos are those of the first, then those of the second, and so on.

        It has the first one's name by default. One split alone stays as it is.
        """
        if len(parts) == 1:
            return parts[0]
        joined = cls(name or parts[0].name, [shard for part in parts for shard in part._shards])
        joined._parts = parts  # ids of videos are unique in each part only
        return joined

    def __len__(self) -> int:
        """Return V."""
        return int(self._first_video[-1])

    @cached_property
    def videos(self) -> list[str]:
        """The V video ids."""
        return [id for shard in self._shards for id in shard.strings("video")]

    @cached_property
    def queries(self) -> list[str]:
        """The Q query ids, grouped by video."""
        return [id for shard in self._shards for id in shard.strings("query")]

    @cached_property
    def captions(self) -> list[str]:
        """The Q sentences; some may be empty."""
        return [text for shard in self._shards for text in shard.strings("text")]

    @cached_property
    def owner(self) -> np.ndarray:
        """(Q,) int64, ascending: the number of each query's video."""
        return np.concatenate(
            [shard.owner + first for shard, first in zip(self._shards, self._video_starts, strict=True)]
        )

    @cached_property
    def first_query(self) -> np.ndarray:
        """(V + 1,) int64: the queries of video v are first_query[v]:first_query[v + 1]."""
        return np.searchsorted(self.owner, np.arange(len(self) + 1))

    @cached_property
    def times(self) -> list[VideoTimes] | None:
        """(V,) which seconds of which video file each video's rows show; None if that is not known of all."""
        times = [shard.times for shard in self._shards]
        known = [each for own in times if own is not None for each in own]
        return known if len(known) == len(self) else None

    @cached_property
    def frame_counts(self) -> np.ndarray:
        """(V,) int64: each video's number of frame rows, 1 to 128."""
        return np.concatenate([np.diff(shard.frame_offsets) for shard in self._shards])

    @cached_property
    def token_counts(self) -> np.ndarray:
        """(Q,) int64: each query's number of token rows, 1 to 30."""
        return np.concatenate([np.diff(shard.token_offsets) for shard in self._shards])

    @cached_property
    def moment_fractions(self) -> np.ndarray | None:
        """(Q,) float64 in [0, 1]: moment length / video length, NaN if unknown; None if there are no moments."""
        fractions = [shard.moment_fractions for shard in self._shards]
        if all(fraction is None for fraction in fractions):
            return None
        unknown = (np.full(shard.query_count, np.nan) for shard in self._shards)
        return np.concatenate(
            [given if fraction is None else fraction for fraction, given in zip(fractions, unknown, strict=True)]
        )

    @cached_property
    def moment_windows(self) -> list[np.ndarray] | None:
        """(Q,) the annotated windows of each query in its own video: (windows, 2) float64, start and end as shares of
        the video's length; without rows if unknown. None if no query has any, as in shards of earlier versions."""
        windows: list[np.ndarray] = []
        for shard in self._shards:
            if shard.moment_windows is None:
                windows += [np.empty((0, 2))] * shard.query_count
            else:
                offsets, times = shard.moment_windows
                windows += [own.reshape(-1, 2) for own in np.split(times, offsets[1:-1])]
        return windows if any(map(len, windows)) else None

    @cached_property
    def right_videos(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The videos that are right for each query, if some query has several; None if each has its own only.

        Offsets (Q + 1,) and numbers, both int64: those of query q are numbers[offsets[q]:offsets[q + 1]], first its own
        video. Raises `UserError` if a file is damaged.
        """
        if self._parts:
            return _joined_right_videos(self._parts)
        lists = [shard.right_videos for shard in self._shards]
        if all(own is None for own in lists):
            return None
        number_of = {id: number for number, id in enumerate(self.videos)}
        right = [ids for shard, own in zip(self._shards, lists, strict=True) for ids in own or shard.own_videos]
        try:
            numbers = np.array([number_of[id] for ids in right for id in ids], dtype=np.int64)
        except KeyError as error:
            raise UserError(
                f"split {self.name}: damaged: no video {quoted(error.args[0])}, which the column 'right_videos' names;"
                " convert again elsewhere"
            ) from None
        return np.cumsum([0, *map(len, right)], dtype=np.int64), numbers

    @property
    def video_size(self) -> int:
        """Dv."""
        return self._frames[0].shape[1]

    @property
    def text_size(self) -> int:
        """Dt."""
        return self._tokens[0].shape[1]

    def features(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Return each shard's clips (v, 32, Dv), frame rows (n, Dv) and token rows (t, Dt), as views."""
        return list(zip(self._clips, self._frames, self._tokens, strict=True))

    def clips(self, video: int) -> torch.Tensor:
        """Return the clip rows (32, Dv) of a video, as a view."""
        number = bisect_right(self._video_starts, video) - 1
        return self._clips[number][video - self._video_starts[number]]

    def frames(self, video: int) -> torch.Tensor:
        """Return the frame rows (frame_counts[video], Dv) of a video, as a view."""
        number = bisect_right(self._video_starts, video) - 1
        offsets, row = self._shards[number].frame_offsets, video - self._video_starts[number]
        return self._frames[number][offsets[row] : offsets[row + 1]]

    def sentences(self, queries: np.ndarray) -> torch.Tensor:
        """Return the embeddings of whole sentences by their encoder: (len(queries), Dt) float32, in memory.

        `queries` are numbers in the split. The embeddings have length 1, or 0 where all features of a query are 0.
        Those of shards without embeddings of sentences are the means of the token rows.
        """
        rows = np.empty((len(queries), self.text_size), dtype=np.float32)
        numbers = np.searchsorted(self._first_query, queries, side="right") - 1
        for number in np.unique(numbers).tolist():
            own = numbers == number
            rows[own] = self._shards[number].sentences(queries[own] - self._first_query[number])
        return torch.from_numpy(rows)

    def tokens(self, start: int, stop: int) -> list[torch.Tensor]:
        """Return the token rows of the queries start:stop as views (rows, Dt), one for each shard that holds any.

        Raises `IndexError` if there are fewer queries.
        """
        if not 0 <= start <= stop <= self._first_query[-1]:
            raise IndexError(f"queries {start}:{stop} of {self._first_query[-1]}")
        pieces = []
        while start < stop:
            number = bisect_right(self._query_starts, start) - 1
            shard, first = self._shards[number], self._query_starts[number]
            end = min(stop, first + shard.query_count)
            pieces.append(self._tokens[number][shard.token_offsets[start - first] : shard.token_offsets[end - first]])
            start = end
        return pieces


def _joined_right_videos(parts: Sequence[Split]) -> tuple[np.ndarray, np.ndarray] | None:
    if all(part.right_videos is None for part in parts):
        return None
    offsets, numbers, first = [np.zeros(1, np.int64)], [], 0
    for part in parts:
        starts, own = part.right_videos or (np.arange(len(part.owner) + 1), part.owner)
        offsets.append(starts[1:] + offsets[-1][-1])
        numbers.append(own + first)
        first += len(part)
    return np.concatenate(offsets), np.concatenate(numbers)


def _as_tensor(rows: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():
        # torch has no read-only tensors and warns about the read-only map.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(rows)

"""What an index can be made of: shards, or a source tree of features, which needs no captions.

Shapes: M = 32 clips and at most 128 frame rows of a video; Dv values of a feature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from dreamprvr_ray.data import pooling
from dreamprvr_ray.data.cache import local_shards
from dreamprvr_ray.data.encoding import EncodingRecord, VideoTimes
from dreamprvr_ray.data.near_misses import quoted
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.errors import UserError, did_you_mean
from dreamprvr_ray.index.record import FeatureType


@dataclass(frozen=True, eq=False)
class PooledVideo:
    """The features of a video, or of a window of one, as in shards.

    Attributes:
        clips: (32, Dv), of the collection's dtype.
        frames: (L, Dv), 1 to 128 rows.
        times: Which seconds of which file they show; None if that is not known.
    """

    clips: np.ndarray
    frames: np.ndarray
    times: VideoTimes | None

    def fingerprint(self) -> str:
        """Return what changes if anything does on which the encoding depends."""
        times = None if self.times is None else asdict(self.times)
        digest = hashlib.sha256(json.dumps([times, self.clips.shape, self.frames.shape]).encode())
        for rows in (self.clips, self.frames):
            digest.update(np.ascontiguousarray(rows).data)
        return digest.hexdigest()


class Collection(Protocol):
    """The videos that an index is made of.

    Attributes:
        name: Name of the collection.
        origin: Where it is, for messages.
        ids: Of all videos and windows, each once.
        dtype: Type of the features.
        video_size: Dv.
        text_size: Dt, values of a sentence's token; None if the collection has no sentences.
        encoding: How they were encoded; None if that is not known.
        one_encoder: Whether frames and sentences can be compared without a model; None if that is not known.
    """

    @property
    def name(self) -> str: ...
    @property
    def origin(self) -> str: ...
    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def dtype(self) -> FeatureType: ...
    @property
    def video_size(self) -> int: ...
    @property
    def text_size(self) -> int | None: ...
    @property
    def encoding(self) -> EncodingRecord | None: ...
    @property
    def one_encoder(self) -> bool | None: ...

    def read(self, id: str) -> PooledVideo:
        """Return the features of a video. Raises `UserError` if they are damaged."""


class ShardCollection:
    """The videos of some splits of shards; of videos that are in several splits, the first counts."""

    def __init__(self, shards: ShardSet, splits: Sequence[str] = ()) -> None:
        """Raises `UserError` if there is no split of such a name, or a file is damaged."""
        manifest = shards.manifest
        self.name, self.origin = manifest.collection, str(shards.directory)
        self.dtype: FeatureType = manifest.dtype
        self.video_size, self.encoding = manifest.video_size, manifest.encoding
        self.text_size = _text_size(
            any(record.queries for record in manifest.splits.values()), manifest.text_size, manifest.encoding
        )
        self._shards = shards
        self._splits = [shards.split(name) for name in splits or manifest.splits]
        self._places = {
            id: (split, number)
            for split in reversed(self._splits)
            for number, id in reversed(list(enumerate(split.videos)))
        }

    @property
    def ids(self) -> list[str]:
        return list(dict.fromkeys(id for split in self._splits for id in split.videos))

    @property
    def one_encoder(self) -> bool:
        return self._shards.one_encoder

    def read(self, id: str) -> PooledVideo:
        split, number = self._places[id]
        times = split.times
        return PooledVideo(
            split.clips(number).numpy(), split.frames(number).numpy(), None if times is None else times[number]
        )


class SourceCollection:
    """The videos of a source tree, as a conversion without captions would pool them."""

    dtype: FeatureType = "float16"
    one_encoder = None

    def __init__(self, source: Source) -> None:
        self._source = source
        self.name, self.origin = source.collection, source.found or source.origin
        self.encoding = source.encoding
        self.video_size = source.raw.video_size
        self.text_size = _text_size(bool(source.splits), source.raw.text_size, source.encoding)

    @property
    def ids(self) -> list[str]:
        captioned = [caption.video for captions in self._source.splits.values() for caption in captions]
        return list(dict.fromkeys([*(self._source.times or ()), *captioned]))

    def read(self, id: str) -> PooledVideo:
        rows = self._source.video(id)
        times = None if self._source.times is None else self._source.times.get(id)
        if times is not None and times.frames != len(rows):
            raise UserError(
                f"{self.origin}: video {quoted(id)} has {len(rows)} frames, but {times.frames} are listed for it"
            )
        return PooledVideo(pooling.clips(rows).astype(self.dtype), pooling.frames(rows).astype(self.dtype), times)


def open_shards(location: str, splits: Sequence[str] = ()) -> ShardCollection:
    """Open shards in a directory or an object store, by the node's cache. Raises what `ShardCollection` raises."""
    return ShardCollection(local_shards(location), splits)


def open_source(directory: Path, name: str, features: str | None = None) -> SourceCollection:
    """Open a source tree. Raises `UserError` if it is none."""
    return SourceCollection(Source.open(directory, name, features))


def check_splits(shards: ShardSet, splits: Sequence[str]) -> None:
    """Raise `UserError` if shards have no split of such a name."""
    names = list(shards.manifest.splits)
    if wrong := [name for name in splits if name not in names]:
        raise UserError(
            f"{shards.directory}: no split '{wrong[0]}'; available: {', '.join(names)}{did_you_mean(wrong[0], names)}"
        )


def _text_size(has_sentences: bool, size: int, encoding: EncodingRecord | None) -> int | None:
    """Return the values of a sentence's token, if a collection has sentences or its encoder of them is known."""
    known = has_sentences or (encoding is not None and encoding.sentences is not None)
    return size if known else None

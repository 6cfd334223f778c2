"""What an extraction has finished: SOURCE/extraction, on a disk or in an object store.

    settings.json                     how videos and sentences are encoded
    videos/<key>.safetensors          the features of one video, with a record of its file
    sentences/<key>.safetensors       the features of some sentences
    written.json                      the files of the source tree that were made from these

A file that exists is complete. What is missing is all that a second run does. The key of a video depends on its path,
size and time of modification, so that a file that has changed is encoded again. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from dreamprvr_ray.data.encoding import EncodingRecord
from dreamprvr_ray.errors import UserError, first_line
from dreamprvr_ray.storage.files import parse_json
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.video.directory import ListedVideo
from dreamprvr_ray.video.encoders.protocols import SentenceFeatures

EXTRACTION = "extraction"
_SETTINGS, _WRITTEN = "settings.json", "written.json"
_VIDEOS, _SENTENCES = "videos", "sentences"
_ENDING = ".safetensors"


@dataclass(frozen=True, eq=False)
class VideoFeatures:
    """The features of a video's frames.

    Attributes:
        rows: (n, D) float32, of the frames at 0, 1 / fps, 2 / fps ... seconds.
        duration: Seconds up to which the file could be decoded.
        warning: Why frames are missing, in a line; None if none are.
    """

    rows: np.ndarray
    duration: float
    warning: str | None = None


@dataclass(frozen=True, eq=False)
class SentencePart:
    """The features of some sentences: tokens (T, D) of all, the number of tokens (N,), and embeddings (N, D)."""

    sentences: tuple[str, ...]
    tokens: np.ndarray
    counts: np.ndarray
    embeddings: np.ndarray


@dataclass(frozen=True)
class WrittenTree:
    """The source tree that an extraction has written.

    Attributes:
        digest: Of all that it was made from; empty while it is being written.
        files: Its files, relative to the source. Only these are ever removed.
        summary: What it holds, as `extracted_source.SourceCounts`.
    """

    digest: str = ""
    files: tuple[str, ...] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WrittenTree:
        """Read a record. Raises ValueError if it is damaged, or if it names a file outside of the source."""
        digest, files, summary = values.get("digest"), values.get("files"), values.get("summary")
        if not isinstance(digest, str) or not isinstance(files, list) or not isinstance(summary, dict):
            raise ValueError("not a record of written files")
        for file in files:
            if not isinstance(file, str) or not file or {"", ".", ".."} & set(file.split("/")):
                raise ValueError(f"not a file of the source: {str(file)[:80]!r}")
        return cls(digest, tuple(files), summary)


class ExtractionStore:
    """SOURCE/extraction. Methods raise `UserError` or `NotWritableError` as those of `Storage` do."""

    def __init__(self, source: Storage) -> None:
        self._source, self._storage = source, source / EXTRACTION

    def check_is_own(self) -> None:
        """Raise `UserError` if the source holds something other than an extraction."""
        if self._storage.exists(_SETTINGS):
            return
        others = [name for name in self._source.names() if name != EXTRACTION]
        if others:
            raise UserError(f"{self._source}: holds other files, such as {others[0]}; choose another --out")

    def settings(self) -> EncodingRecord | None:
        """Return how videos are encoded, without windows; None before the first run."""
        if not self._storage.exists(_SETTINGS):
            return None
        path = f"{self._storage}/{_SETTINGS}"
        try:
            return EncodingRecord.from_dict(parse_json(self._storage.read_text(_SETTINGS), path))
        except ValueError as error:
            raise UserError(f"{path}: damaged: {error}") from None

    def write_settings(self, settings: EncodingRecord) -> None:
        """Record how videos are encoded."""
        values = replace(settings, window=None, overlap=None).to_dict()
        self._storage.write_text(_SETTINGS, json.dumps(values, indent=1) + "\n")

    def finished_videos(self) -> set[str]:
        """Return the keys of the videos whose features exist."""
        return self._keys(_VIDEOS)

    def write_video(self, key: str, video: ListedVideo, features: VideoFeatures) -> None:
        """Write a video's features."""
        record = {"file": video.file, "duration": features.duration, "warning": features.warning}
        rows: np.ndarray = np.ascontiguousarray(features.rows, np.float32)
        content = safetensors.numpy.save({"features": rows}, {"record": json.dumps(record)})
        self._storage.write_bytes(f"{_VIDEOS}/{key}{_ENDING}", content)

    def read_video(self, key: str) -> VideoFeatures:
        """Read a video's features. Raises `UserError` if the file is damaged."""
        name = f"{_VIDEOS}/{key}{_ENDING}"
        tensors, record = self._read(name)
        try:
            rows = tensors["features"]
            if rows.ndim != 2 or not len(rows):
                raise ValueError(f"shape {rows.shape}")
            return VideoFeatures(rows, float(record["duration"]), record["warning"])
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(name, error) from None

    def finished_sentences(self) -> set[str]:
        """Return the sentences whose features exist."""
        return {sentence for part in self.sentence_parts() for sentence in part.sentences}

    def write_sentences(self, features: Sequence[tuple[str, SentenceFeatures]]) -> None:
        """Write the features of some sentences."""
        sentences = [sentence for sentence, _ in features]
        key = hashlib.sha256(json.dumps(sentences).encode()).hexdigest()[:32]
        tensors: dict[str, np.ndarray] = {
            "tokens": np.concatenate([each.tokens for _, each in features]).astype(np.float32),
            "counts": np.array([len(each.tokens) for _, each in features], np.int64),
            "embeddings": np.stack([each.sentence for _, each in features]).astype(np.float32),
        }
        content = safetensors.numpy.save(tensors, {"record": json.dumps({"sentences": sentences})})
        self._storage.write_bytes(f"{_SENTENCES}/{key}{_ENDING}", content)

    def sentence_parts(self) -> Iterator[SentencePart]:
        """Yield the features of sentences, part by part. Raises `UserError` if a file is damaged."""
        for key in sorted(self._keys(_SENTENCES)):
            name = f"{_SENTENCES}/{key}{_ENDING}"
            tensors, record = self._read(name)
            try:
                part = SentencePart(
                    tuple(record["sentences"]), tensors["tokens"], tensors["counts"], tensors["embeddings"]
                )
                if len(part.sentences) != len(part.counts) or part.counts.sum() != len(part.tokens):
                    raise ValueError("its counts do not match")
            except (KeyError, TypeError, ValueError) as error:
                raise self._damaged(name, error) from None
            yield part

    def written(self) -> WrittenTree:
        """Return what `record_written` recorded; empty if nothing was. Raises `UserError` if the record is damaged."""
        if not self._storage.exists(_WRITTEN):
            return WrittenTree()
        path = f"{self._storage}/{_WRITTEN}"
        try:
            return WrittenTree.from_dict(parse_json(self._storage.read_text(_WRITTEN), path))
        except ValueError as error:
            raise UserError(f"{path}: damaged: {error}") from None

    def record_written(self, tree: WrittenTree) -> None:
        """Record the source tree."""
        values = {**vars(tree), "files": sorted(tree.files)}
        self._storage.write_text(_WRITTEN, json.dumps(values, indent=1) + "\n")

    def _keys(self, folder: str) -> set[str]:
        names = (self._storage / folder).names()
        return {name.removesuffix(_ENDING) for name in names if name.endswith(_ENDING) and not name.startswith(".")}

    def _read(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        content = self._storage.read_bytes(name)
        try:
            tensors = safetensors.numpy.load(content)
            size = int.from_bytes(content[:8], "little")
            record = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["record"])
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise self._damaged(name, error) from None
        return tensors, record

    def _damaged(self, name: str, error: Exception) -> UserError:
        return UserError(f"{self._storage}/{name}: damaged: {first_line(error)}; remove it and run the command again")


def video_key(video: ListedVideo) -> str:
    """Return the key under which a video's features are kept."""
    identity = {name: value for name, value in asdict(video).items() if name != "id"}
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]

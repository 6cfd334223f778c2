"""`manifest.json`, which describes a directory of shards: sizes, counts, protocol, preprocessing and checksums.

It is written last, so a directory that has one is complete. `shard_files` documents the shard files. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from dreamprvr_ray.data.encoding import EncodingRecord
from dreamprvr_ray.data.overlaps import Overlap, protocol_with_overlaps
from dreamprvr_ray.errors import UserError, first_line
from dreamprvr_ray.storage.files import reading, write_json

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
LARGEST_SIZE = 1_000_000  # values of a row; far more than any features have
UNFINISHED = "conversion"  # subdirectory with the state of an unfinished conversion

Protocol = Literal["own splits", "dev", "paper"]  # how a conversion chose val and test
FeatureType = Literal["float16", "float32"]


@dataclass(frozen=True)
class FileRecord:
    """A file's size in bytes and SHA-256 (hexadecimal)."""

    bytes: int
    sha256: str

    @staticmethod
    def of(path: Path) -> FileRecord:
        """Read a file in full and return its record."""
        with open(path, "rb") as file:
            return FileRecord(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class SplitRecord:
    """A split's numbers of videos and queries and the names (without suffix) of its shards, in order."""

    videos: int
    queries: int
    shards: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        schema_version: Version of the shards' format; this program reads `SCHEMA_VERSION`.
        collection: Name of the collection, such as `tvr`.
        features: Name of the video features, the folder under FeatureData that they come from.
        video_size: Dv, values per clip and frame row.
        text_size: Dt, values per query token.
        dtype: Type of the stored features.
        protocol: `own splits` (val and test as distributed), `dev` (val carved from train by video, test as
            distributed) or `paper` (val is test, as in the authors' release); followed by what makes results on test
            less than honest, as in `own splits, val overlaps test`.
        splits: Record of train, val and test. Two splits may name the same shards.
        preprocessing: What conversion did to the features, in words.
        conversion: Settings of the conversion and fingerprint of its source.
        files: Record of each shard file by name.
        overlaps: What each two splits share, such as `val and test`; None in manifests of earlier versions.
        one_encoder: Whether frames and queries come from one encoder, so that they can be compared without a model;
            None if that is not known, as in manifests of earlier versions.
        encoding: How videos and sentences were encoded; None if that is not known.
    """

    schema_version: int
    collection: str
    features: str
    video_size: int
    text_size: int
    dtype: FeatureType
    protocol: str
    splits: Mapping[str, SplitRecord]
    preprocessing: Mapping[str, str]
    conversion: Mapping[str, Any]
    files: Mapping[str, FileRecord]
    overlaps: Mapping[str, Overlap] | None = None
    one_encoder: bool | None = None
    encoding: EncodingRecord | None = None

    @staticmethod
    def open(directory: Path) -> Manifest:
        """Return the manifest of a directory of shards after comparing every file's size with it.

        Takes milliseconds, since no file's content is read.

        Raises:
            UserError: The directory, the manifest or a file is missing, the conversion is unfinished, or a file's size
                differs from the manifest's.
        """
        with reading(directory):
            return Manifest._open(directory)

    @staticmethod
    def _open(directory: Path) -> Manifest:
        if not directory.is_dir():
            raise UserError(f"{directory}: no such directory of shards")
        if not (directory / MANIFEST).is_file():
            unfinished = (directory / UNFINISHED).is_dir()
            hint = (
                "the conversion is unfinished; run the same convert command again"
                if unfinished
                else "not a directory of shards"
            )
            raise UserError(f"{directory}: no {MANIFEST}: {hint}")
        manifest = Manifest.read(directory / MANIFEST)
        mistakes = []
        for name, record in manifest.files.items():
            try:
                size = os.stat(directory / name).st_size
            except FileNotFoundError:
                mistakes.append(f"{directory / name}: no such file, but the manifest lists it")
                continue
            except OSError as error:
                mistakes.append(f"{directory / name}: cannot be read: {error.strerror}")
                continue
            if size != record.bytes:
                mistakes.append(
                    f"{directory / name}: damaged: {size:,} bytes, but {record.bytes:,} in the manifest; convert again"
                )
        if mistakes:
            raise UserError(*mistakes)
        return manifest

    @staticmethod
    def read(path: Path) -> Manifest:
        """Return the manifest in a file. Raises `UserError` if it is missing, malformed or of another version."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        return Manifest.parse(content, str(path))

    @staticmethod
    def parse(content: bytes, path: str) -> Manifest:
        """Return the manifest in `content`, read from `path`. Raises `UserError` as `read` does."""
        try:
            values = json.loads(content)
            version = values["schema_version"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{path}: not a manifest of shards") from None
        if version != SCHEMA_VERSION or isinstance(version, bool):
            required = f"schema version must be {SCHEMA_VERSION}, not {version!r:.40}"
            raise UserError(f"{path}: {required}; convert again into another directory")
        try:
            return _decode(values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a manifest of shards: {first_line(error)[:200]}") from None

    def with_overlaps(self, overlaps: Mapping[str, Overlap]) -> Manifest:
        """Return the manifest with what the splits share, which the protocol then says."""
        counts = {name: (record.videos, record.queries) for name, record in self.splits.items()}
        protocol = protocol_with_overlaps(self.protocol.partition(",")[0], overlaps, counts)
        return replace(self, overlaps=overlaps, protocol=protocol)

    def check_has_train(self, path: Path | str) -> None:
        """Raise `UserError` if the shards are for evaluation only. `path` is where they are, for messages."""
        if "train" not in self.splits:
            raise UserError(
                f"{path}: no train split, only {' and '.join(self.splits)}: these shards serve to evaluate, not to"
                " train"
            )

    def check_may_train_on(self, split: str, path: Path | str) -> None:
        """Raise `UserError` if a split is the test split, or shares videos or queries with it.

        Args:
            split: Name of the split.
            path: The directory or URI of the shards, for messages.
        """
        test = self.splits.get("test")
        if split != "test" and test is not None and self.splits[split].shards == test.shards:
            raise UserError(f"{path}: cannot train on {split}: it is the test split (protocol: {self.protocol})")
        overlap = (self.overlaps or {}).get(f"{split} and test")
        if overlap is not None and (overlap.videos or overlap.queries):
            raise UserError(
                f"{path}: cannot train on {split}: {overlap.videos:,} of its {self.splits[split].videos:,} videos and"
                f" {overlap.queries:,} of its {self.splits[split].queries:,} queries are also in test (protocol:"
                f" {self.protocol})"
            )

    def parts(self) -> tuple[Manifest, ...]:
        """Return the manifest of each collection: itself, unless it joins those of several (`collections`)."""
        return (self,)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of the shards' content: the splits and every file's checksum.

        Shards that are converted again from the same source have the same fingerprint; where the source lies and when
        it was changed do not matter. Another dev split, other features or another dtype change it.
        """
        content = {
            "collection": self.collection,
            "dtype": self.dtype,
            "splits": {name: asdict(record) for name, record in self.splits.items()},
            "files": {name: asdict(record) for name, record in self.files.items()},
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def write(self, directory: Path) -> None:
        """Write `manifest.json` into `directory` atomically."""
        write_json(directory / MANIFEST, asdict(self))


def not_one_encoder(weight: float | str, shards: str) -> str:
    """Return the message that the encoder's own score cannot have a weight with these shards."""
    return (
        f"evaluation.encoder_weight = {weight!r}: requires frames and queries of one encoder, but in {shards} a"
        " sentence does not resemble its own video; use 0 (if one encoder made them, convert with --one-encoder yes)"
    )


def _decode(values: dict[str, Any]) -> Manifest:
    """Return the manifest in the values of a `manifest.json`.

    Raises ValueError, KeyError, TypeError or AttributeError if it is damaged.
    """
    unknown = values.keys() - {field.name for field in fields(Manifest)}
    _require(not unknown, f"unknown key {sorted(unknown)[:1]}")
    for name in ("collection", "features", "protocol"):
        _require(isinstance(values[name], str), f"{name} must be a string")
    for name in ("video_size", "text_size"):
        _require(
            _is_count(values[name]) and 0 < values[name] <= LARGEST_SIZE,
            f"{name} must be a positive integer of at most {LARGEST_SIZE:,}",
        )
    _require(values["dtype"] in ("float16", "float32"), "dtype must be float16 or float32")
    for name in ("preprocessing", "conversion", "splits", "files"):
        _require(isinstance(values[name], dict), f"{name} must be an object")
    files = {}
    for name, record in values["files"].items():
        # The name becomes a path, in the directory and in the cache.
        _require(
            re.fullmatch(r"[^/\\.\0][^/\\\0]{0,200}\.arrow", name) is not None,
            f"{name!r} is not a valid name of a shard file",
        )
        files[name] = FileRecord(**record)
        _require(_is_count(files[name].bytes) and isinstance(files[name].sha256, str), f"{name}: not a file's record")
    splits = {}
    for name, record in values["splits"].items():
        _require(isinstance(record["shards"], list), f"{name}: shards must be a list")
        splits[name] = SplitRecord(**record | {"shards": tuple(record["shards"])})
        _require(_is_count(splits[name].videos) and _is_count(splits[name].queries), f"{name}: not a split's record")
        for stem in splits[name].shards:
            for kind in ("videos", "queries"):
                _require(f"{stem}.{kind}.arrow" in files, f"{name}: no file '{stem}.{kind}.arrow' is listed")
        _require(bool(splits[name].shards), f"{name}: no shards")
    overlaps = values.get("overlaps")
    if overlaps is not None:
        overlaps = {name: Overlap(**record) for name, record in overlaps.items()}
        for overlap in overlaps.values():
            _require(_is_count(overlap.videos) and _is_count(overlap.queries), "overlaps must be counts")
    _require(isinstance(values.get("one_encoder"), (bool, type(None))), "one_encoder must be true, false or null")
    encoding = values.get("encoding")
    encoding = None if encoding is None else EncodingRecord.from_dict(encoding)
    return Manifest(**values | {"splits": splits, "files": files, "overlaps": overlaps, "encoding": encoding})


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise ValueError(problem)

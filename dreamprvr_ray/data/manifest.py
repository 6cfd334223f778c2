"""`manifest.json`, which describes a directory of shards: sizes, counts, protocol, preprocessing and checksums.

It is written last, so a directory that has one is complete. `shard_files` documents the shard files. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.files import write_json

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
UNFINISHED = "conversion"  # subdirectory with the state of an unfinished conversion

Protocol = Literal["own splits", "dev", "paper"]
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
            distributed) or `paper` (val is test, as in the authors' release).
        splits: Record of train, val and test. Two splits may name the same shards.
        preprocessing: What conversion did to the features, in words.
        conversion: Settings of the conversion and fingerprint of its source.
        files: Record of each shard file by name.
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
    def open(directory: Path) -> Manifest:
        """Return the manifest of a directory of shards after comparing every file's size with it.

        Takes milliseconds, since no file's content is read.

        Raises:
            UserError: The directory, the manifest or a file is missing, the conversion is unfinished, or a file's size
                differs from the manifest's.
        """
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
            except OSError:
                mistakes.append(f"{directory / name}: no such file, but the manifest lists it")
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
            return Manifest.parse(path.read_bytes(), str(path))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None

    @staticmethod
    def parse(content: bytes, path: str) -> Manifest:
        """Return the manifest in `content`, read from `path`. Raises `UserError` as `read` does."""
        try:
            values = json.loads(content)
            version = values["schema_version"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: not a manifest of shards") from None
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{path}: schema version must be {SCHEMA_VERSION}, not {version}; convert again into another directory"
            )
        try:
            splits = values["splits"].items()
            values["splits"] = {
                name: SplitRecord(**record | {"shards": tuple(record["shards"])}) for name, record in splits
            }
            values["files"] = {name: FileRecord(**record) for name, record in values["files"].items()}
            return Manifest(**values)
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a manifest of shards: {error}") from None

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

"""`index.json`, which describes an index: its model, how the collection was encoded, and its parts.

    INDEX/index.json        see `IndexRecord`; whatever it does not list is not part of the index
    INDEX/model/            the exported model, with its `calibration` if it has one; absent for an encoder alone
    INDEX/parts/<name>/     the encoded videos, a few hundred each (`parts`)
    INDEX/source/           features of the videos of `--videos`, as `extract` keeps them
    INDEX/*.safetensors     of a compact index: `compression` and `coarse`

Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from dreamprvr_ray.data.encoding import EncodingRecord
from dreamprvr_ray.errors import UserError, first_line
from dreamprvr_ray.storage.files import read_json, write_json

SCHEMA_VERSION = 1
RECORD, MODEL, PARTS, SOURCE = "index.json", "model", "parts", "source"
FeatureType = Literal["float16", "float32"]
_PART_NAME = re.compile(r"\d{6}")


@dataclass(frozen=True)
class PartRecord:
    """A part: its directory's name, and how many videos (or windows of videos) and frame rows it holds."""

    name: str
    rows: int
    frames: int

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _PART_NAME.fullmatch(self.name):
            raise ValueError(f"not a part's name: {str(self.name)[:40]!r}")
        if not all(isinstance(count, int) and not isinstance(count, bool) for count in (self.rows, self.frames)):
            raise ValueError(f"part {self.name}: rows and frames must be integers")
        if not 0 < self.rows <= self.frames:
            raise ValueError(f"part {self.name}: {self.rows} rows with {self.frames} frames")


@dataclass(frozen=True)
class IndexRecord:
    """The content of `index.json`.

    Attributes:
        schema_version: Version of the format; this program reads `SCHEMA_VERSION`.
        collection: Name of the collection.
        model: SHA-256 of the model's weights; None for an index of an encoder alone.
        dtype: Type of the features that the videos were encoded from.
        video_size: Dv, values of a frame's features.
        text_size: Dt, values of a sentence's token.
        encoding: How videos and sentences were encoded; None if that is not known.
        sentence_encoder: Name of the encoder of sentences, if it is not that of `encoding`.
        videos_directory: Absolute path of the directory that the videos' files are relative to; None if unknown.
        parts: The parts, in order.
        next_part: Number of the next part; names are never used twice.
        compact: Whether rows are compressed (`compression`) and there is a coarse stage (`coarse`).
    """

    schema_version: int
    collection: str
    model: str | None
    dtype: FeatureType
    video_size: int
    text_size: int
    encoding: EncodingRecord | None
    sentence_encoder: str | None
    videos_directory: str | None
    parts: tuple[PartRecord, ...] = ()
    next_part: int = 0
    compact: bool = False

    @classmethod
    def read(cls, directory: Path) -> IndexRecord:
        """Read the record of an index. Raises `UserError` if it is missing, damaged or of a later version."""
        path = directory / RECORD
        if not directory.is_dir():
            what = "is a file; must be the directory of an index" if directory.exists() else "no such index"
            raise UserError(f"{directory}: {what}")
        if not path.is_file():
            raise UserError(f"{directory}: not an index: it has no {RECORD}")
        values = read_json(path)
        version = values.get("schema_version")
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise UserError(f"{path}: written by a later version of this program (schema {version})")
        try:
            return cls._from_dict(values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: damaged: {first_line(error)}") from None

    @classmethod
    def _from_dict(cls, values: Mapping[str, Any]) -> IndexRecord:
        required = {field.name for field in fields(cls) if field.name != "compact"}
        if missing := required - values.keys():
            raise ValueError(f"'{min(missing)}' is missing")
        record = cls(compact=values.get("compact", False), **{name: values[name] for name in required})
        for name, kind in (
            ("schema_version", int), ("collection", str), ("video_size", int), ("text_size", int), ("next_part", int),
        ):  # fmt: skip
            if not isinstance(getattr(record, name), kind) or isinstance(getattr(record, name), bool):
                raise ValueError(f"'{name}' must be {'a string' if kind is str else 'an integer'}")
        for name in ("model", "sentence_encoder", "videos_directory"):
            if not isinstance(getattr(record, name), str | None):
                raise ValueError(f"'{name}' must be a string or null")
        if not isinstance(record.compact, bool):
            raise ValueError("'compact' must be true or false")
        if record.dtype not in ("float16", "float32"):
            raise ValueError("'dtype' must be float16 or float32")
        if record.video_size < 1 or record.text_size < 1 or record.next_part < 0:
            raise ValueError("sizes must be positive")
        encoding = None if record.encoding is None else EncodingRecord.from_dict(record.encoding)
        parts = tuple(PartRecord(**part) for part in values["parts"])
        if len({part.name for part in parts}) != len(parts):
            raise ValueError("a part is listed twice")
        return replace(record, encoding=encoding, parts=parts)

    def write(self, directory: Path) -> None:
        """Write `index.json` atomically. Raises `NotWritableError` if it cannot be written."""
        write_json(directory / RECORD, asdict(self))

    @property
    def rows(self) -> int:
        """How many videos, or windows of videos, the index holds."""
        return sum(part.rows for part in self.parts)

"""The records of an unfinished conversion in SHARDS/conversion/: its settings, its lock, and the finished shards.

Only files that a conversion has made are deleted: those whose names follow from its settings and its plan, in a
directory whose `settings.json` a conversion has written. Imports no torch.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreamprvr_ray.data.manifest import UNFINISHED, FileRecord
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.files import open_lock_file, reading, remove_partial_files, replacing, write_json, writing

SETTINGS = "settings.json"
_LOCK = "lock"
_KINDS = ("videos", "queries")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PooledRows:
    """Ids of what pooling found odd in a shard. None is an error; `convert` notes them.

    Attributes:
        zero: Videos and queries whose features are all zero.
        short: Videos and queries with rows that are so short that they are not of length 1 after normalisation.
        huge: Videos and queries with values so large that they were computed in float64.
    """

    zero: tuple[str, ...] = ()
    short: tuple[str, ...] = ()
    huge: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard: its files' records by name, and what pooling found."""

    files: Mapping[str, FileRecord]
    rows: PooledRows


def write_record(out: Path, stem: str, record: ShardRecord) -> None:
    """Write the record of a finished shard."""
    values = {name: asdict(file) for name, file in record.files.items()}
    write_json(out / UNFINISHED / f"{stem}.json", values | {"rows": asdict(record.rows)})


def read_record(out: Path, stem: str) -> ShardRecord | None:
    """Return the record of a shard that an earlier run finished, or None if it is missing or the files differ."""
    try:
        values = json.loads((out / UNFINISHED / f"{stem}.json").read_text(encoding="utf-8"))
        rows = {name: tuple(map(str, ids)) for name, ids in values.pop("rows", {}).items()}
        files = {name: FileRecord(**record) for name, record in values.items()}
        if files.keys() == set(_shard_files(stem)) and all(
            FileRecord.of(out / name) == record for name, record in files.items()
        ):
            return ShardRecord(files, PooledRows(**rows))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        pass
    return None


def has_records(out: Path) -> bool:
    """Return whether an unfinished conversion has left shards in `out` that running it again will keep."""
    with suppress(OSError):
        return _is_own(out) and any(path.name != SETTINGS for path in (out / UNFINISHED).glob("*.json"))
    return False


def open_records(out: Path, conversion: Mapping[str, Any]) -> None:
    """Create the directory of records in `out`, unless an earlier run of the same conversion has.

    Raises:
        UserError: `out` holds another conversion or anything else.
    """
    records = out / UNFINISHED
    with reading(out):
        if out.exists() and not out.is_dir():
            raise UserError(f"{out}: is a file; must be a directory")
        if _is_own(out):
            differences = describe_differences(read_settings(out), conversion)
            if differences:
                problem = f"holds another, unfinished conversion ({differences})"
                raise UserError(f"{out}: {problem}; choose another directory or remove it")
            return
        # A run that was killed as it began may have left its temporary directory.
        others = (
            [entry for entry in out.iterdir() if not entry.name.startswith(f".{UNFINISHED}-")] if out.is_dir() else []
        )
        if others:
            raise UserError(f"{out}: holds other files, such as {others[0].name}; choose another directory")
    created = not out.exists()
    with writing(out), replacing(records) as temporary:  # at once, so that a directory of records has its settings
        write_json(temporary / SETTINGS, {**conversion, "created_directory": created})


def read_settings(out: Path) -> dict[str, Any]:
    """Return what `open_records` wrote. Raises `UserError` if it is damaged."""
    path = out / UNFINISHED / SETTINGS
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or not all(isinstance(values.get(part), dict) for part in ("settings", "source")):
        raise UserError(f"{path}: not the settings of a conversion; choose another directory or remove {out}")
    return values


def describe_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words how two conversions differ; an empty string if they do not."""
    parts = []
    for part in ("settings", "source"):
        old_values = before.get(part)
        old_values = old_values if isinstance(old_values, dict) else {}
        for key in dict.fromkeys([*now[part], *old_values]):
            old, new = old_values.get(key), now[part].get(key)
            if old != new:
                parts.append(f"{key}: {old} before, {new} now" if part == "settings" else f"{key} changed")
    return "; ".join(parts)


@contextmanager
def lock_records(out: Path) -> Iterator[None]:
    """Keep other conversions from using the directory while the block runs.

    Where the file system has no locks, it goes without, and says so.

    Raises:
        UserError: Another conversion is using the directory.
    """
    with open_lock_file(out / UNFINISHED / _LOCK) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                raise UserError(f"{out}: another conversion is using this directory; wait for it to finish") from None
            _log.warning(
                "%s: the file system grants no locks (%s): start no second conversion to this directory",
                out,
                error.strerror,
            )
        yield


def remove_records(out: Path, stems: Sequence[str]) -> None:
    """Remove what a conversion has written into the directory of records; also the directory if it is empty then."""
    if not _is_own(out):
        return
    records = out / UNFINISHED
    own = [*(f"{stem}.json" for stem in stems), _LOCK, SETTINGS]
    remove_partial_files(records, own)
    for name in own:  # the settings last: they say whose directory it is
        (records / name).unlink(missing_ok=True)
    with suppress(OSError):
        records.rmdir()


def remove_partial_shards(out: Path, stems: Sequence[str]) -> None:
    """Remove the temporary files of shards that killed processes left."""
    remove_partial_files(out, [name for stem in stems for name in _shard_files(stem)])


def discard(out: Path, stems: Sequence[str]) -> None:
    """Remove what a conversion has written, and `out` if the conversion created it and nothing else is in it."""
    if not _is_own(out):
        return
    created = bool(read_settings(out).get("created_directory"))
    for stem in stems:
        for name in _shard_files(stem):
            (out / name).unlink(missing_ok=True)
    remove_partial_shards(out, stems)
    remove_records(out, stems)
    with suppress(OSError):
        if created:
            out.rmdir()


def _shard_files(stem: str) -> list[str]:
    return [f"{stem}.{kind}.arrow" for kind in _KINDS]


def _is_own(out: Path) -> bool:
    """Return whether the directory of records was written by a conversion."""
    with suppress(UserError):
        return bool(read_settings(out))
    return False

"""Checks of files' checksums, once on a machine: what was checked is remembered in the user's cache directory.

For each directory CACHE/checked/<hash of its path>.json holds the files that were read in full, with size, times and
inode. A file that was written since is checked again. If the cache cannot be written, every process checks. Imports no
torch.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dreamprvr_ray.cpus import allowed_cpus
from dreamprvr_ray.data.manifest import FileRecord
from dreamprvr_ray.data.overlaps import Overlap
from dreamprvr_ray.errors import UserError, first_few
from dreamprvr_ray.storage.files import open_lock_file, reading, write_json

CACHE = "DREAMPRVR_RAY_CACHE"
_RECORDS = 500  # directories that are remembered; the oldest records are removed

_log = logging.getLogger(__name__)
_checked_here: dict[Path, dict[str, list[object]]] = {}  # what this process has checked


def check_files(directory: Path, files: Mapping[str, FileRecord]) -> bool:
    """Compare the content of files in `directory` with their records, unless that was done before on this machine.

    Returns whether a file had to be read.

    Raises:
        UserError: One line for each file that is missing, cannot be read or differs.
    """
    with reading(directory):
        if not _unchecked(directory, files):
            return False
        with _lock(directory):  # of several processes that open the shards at once, one reads them
            names = _unchecked(directory, files)
            if names:
                _compare(directory, {name: files[name] for name in names})
                remember_files(directory, {name: files[name] for name in names})
        return bool(names)


def remember_files(directory: Path, files: Mapping[str, FileRecord]) -> None:
    """Remember that the files in `directory` have the content of their records: they were just read or written."""
    checked = _read(directory)
    for name, record in files.items():
        with suppress(OSError):
            checked[name] = _stamp(directory / name, record)
    _checked_here[directory.absolute()] = checked
    path = _record_path(directory)
    if path is not None:
        with suppress(OSError):
            write_json(path, _record(path) | {"directory": str(directory.absolute()), "files": checked})
            _remove_oldest(path.parent)


def remembered_overlaps(directory: Path, fingerprint: str) -> dict[str, Overlap] | None:
    """Return what `remember_overlaps` remembered for shards with this fingerprint, or None."""
    path = _record_path(directory)
    with suppress(KeyError, TypeError, AttributeError):
        overlaps = _record(path)["overlaps"] if path is not None else {}
        if overlaps.get("fingerprint") == fingerprint:
            return {name: Overlap(**values) for name, values in overlaps["splits"].items()}
    return None


def remember_overlaps(directory: Path, fingerprint: str, overlaps: Mapping[str, Overlap]) -> None:
    """Remember what splits share: finding it takes seconds for large collections."""
    path = _record_path(directory)
    if path is not None:
        splits = {name: asdict(overlap) for name, overlap in overlaps.items()}
        with suppress(OSError):
            write_json(path, _record(path) | {"overlaps": {"fingerprint": fingerprint, "splits": splits}})


def remembered_encoder_area(directory: Path, fingerprint: str) -> float | None:
    """Return what `remember_encoder_area` remembered for shards with this fingerprint, or None."""
    path = _record_path(directory)
    with suppress(KeyError, TypeError, AttributeError, ValueError):
        found = _record(path)["one_encoder"] if path is not None else {}
        if found.get("fingerprint") == fingerprint:
            return float(found["area"])
    return None


def remember_encoder_area(directory: Path, fingerprint: str, area: float) -> None:
    """Remember what `one_encoder.encoder_area` measured: it reads hundreds of videos."""
    path = _record_path(directory)
    if path is not None:
        with suppress(OSError):
            write_json(path, _record(path) | {"one_encoder": {"fingerprint": fingerprint, "area": area}})


def _compare(directory: Path, files: Mapping[str, FileRecord]) -> None:
    size = sum(record.bytes for record in files.values())
    if size > 2**30:
        _log.info("%s: checking %.1f GiB of shards, once on this machine", directory, size / 2**30)
    with ThreadPoolExecutor(allowed_cpus(), thread_name_prefix="check") as pool:
        same = list(pool.map(lambda name: FileRecord.of(directory / name) == files[name], files))
    mistakes = [
        f"{directory / name}: damaged: SHA-256 differs from the manifest's; convert again elsewhere"
        for name, equal in zip(files, same, strict=True)
        if not equal
    ]
    if mistakes:
        raise UserError(*first_few(mistakes))


def _unchecked(directory: Path, files: Mapping[str, FileRecord]) -> list[str]:
    checked = _read(directory)
    return [name for name, record in files.items() if checked.get(name) != _stamp(directory / name, record)]


def _stamp(path: Path, record: FileRecord) -> list[object]:
    status = os.stat(path)
    # The time of the last change of the inode cannot be set by a program, unlike that of the content.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, record.sha256]


def _read(directory: Path) -> dict[str, list[object]]:
    path = _record_path(directory)
    if path is not None:
        with suppress(TypeError, KeyError, AttributeError):
            return dict(_record(path)["files"].items())
    return dict(_checked_here.get(directory.absolute(), {}))


def _record(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        values = json.loads(path.read_text(encoding="utf-8"))
        return values if isinstance(values, dict) else {}
    return {}


def _record_path(directory: Path) -> Path | None:
    """Return where the record of a directory is, or None if no cache can be written."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(directory))).hexdigest()[:16]
    home = os.environ.get(CACHE) or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    own = Path(home) if os.environ.get(CACHE) else Path(home, "dreamprvr_ray")
    for folder in (own, Path(tempfile.gettempdir(), f"dreamprvr_ray-{os.getuid()}")):
        with suppress(OSError):
            if not folder.is_absolute():
                continue
            records = folder / "checked"
            records.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Others may have planted a directory in the shared one of temporary files.
            if os.access(records, os.W_OK) and folder.lstat().st_uid == os.getuid():
                return records / f"{digest}.json"
    return None


def _remove_oldest(records: Path) -> None:
    own = [path for path in records.glob("*.json") if len(path.stem) == 16]
    for path in sorted(own, key=lambda path: path.stat().st_mtime_ns)[:-_RECORDS]:
        path.unlink(missing_ok=True)


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    path = _record_path(directory)
    if path is None:
        yield
        return
    with ExitStack() as stack:
        with suppress(OSError):  # a file system without locks: every process checks
            fcntl.flock(stack.enter_context(open_lock_file(path.with_suffix(".lock"))), fcntl.LOCK_EX)
        yield

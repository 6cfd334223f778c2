"""Shards by location: a local directory, or a URI of which each node caches a copy.

    read_manifest("s3://bucket/tvr")    returns the manifest only; nothing is cached
    local_shards("s3://bucket/tvr")     returns the node's copy; the first process that asks downloads it

A URI is anything that `pyarrow.fs.FileSystem.from_uri` accepts (s3, gs, abfs, file). Credentials come from the
environment. For each set of shards the cache holds

    CACHE/<collection>-<hash of its manifest>/    a directory of shards; it is complete if it has a manifest.json
    CACHE/.<the directory's name>.in-use          share-locked by every process that uses the set; its modification time
                                                  is that of the last use

and, next to them, `.filling`, which is locked by the one process on the node that downloads or makes room. The locks
are flocks, which the kernel releases when their process ends for any reason. CACHE is `DREAMPRVR_RAY_CACHE`, else
`$XDG_CACHE_HOME/dreamprvr_ray`, else `~/.cache/dreamprvr_ray`. It holds at most `DREAMPRVR_RAY_CACHE_GIB` (100) GiB:
the least recently used sets are removed first, sets in use never.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import math
import os
import re
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow.fs import FileSystem

from dreamprvr_ray.data.manifest import MANIFEST, FileRecord, Manifest
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.errors import UserError, first_line, redact_uri
from dreamprvr_ray.storage.files import open_lock_file, partial_path, remove_partial_files, replacing_file
from dreamprvr_ray.storage.location import is_uri

CACHE = "DREAMPRVR_RAY_CACHE"
CACHE_GIB = "DREAMPRVR_RAY_CACHE_GIB"
_GIB = 2**30
_CHUNK = 8 * 2**20  # bytes per read
_CONNECTIONS = 8
_PROGRESS_SECONDS = 5.0

_log = logging.getLogger(__name__)


def read_manifest(location: str) -> Manifest:
    """Return the manifest of the shards at a path or URI. Raises `UserError` if it is missing or unreachable."""
    return _RemoteShards.open(location).manifest if is_uri(location) else ShardSet.open(location).manifest


def local_shards(location: str) -> ShardSet:
    """Return the shards in a directory, or this node's cached copy of those at a URI, downloaded if necessary.

    Any number of processes on the node may call this at once: one downloads, the others wait. The copy stays in the
    cache at least until the returned object is garbage-collected.

    Raises:
        UserError: The shards are missing, unreachable or damaged, or do not fit into the cache or onto its disk.
    """
    if not is_uri(location):
        return ShardSet.open(Path(location))
    remote = _RemoteShards.open(location)
    cache = _cache_directory()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        in_use = os.open(_in_use_path(cache / remote.name), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(in_use, fcntl.LOCK_SH)
            os.utime(in_use)
            shards = _open(cache / remote.name) or _fill(remote, cache)
        except BaseException:
            os.close(in_use)
            raise
    except OSError as error:
        raise UserError(
            f"{cache}: cannot cache {remote.uri} here: {error.strerror or error}; set {CACHE} to another directory"
        ) from None
    weakref.finalize(shards, os.close, in_use)
    return shards


@dataclass(frozen=True)
class _RemoteShards:
    """The shards at a URI."""

    uri: str  # for messages: without password and query string
    files: FileSystem
    path: str
    manifest_bytes: bytes
    manifest: Manifest

    @staticmethod
    def open(location: str) -> _RemoteShards:
        uri = redact_uri(location).rstrip("/")
        with _reading(uri):
            files, path = FileSystem.from_uri(location)
            path = path.rstrip("/")
            try:
                with files.open_input_stream(f"{path}/{MANIFEST}", compression=None) as stream:
                    content: bytes = stream.read()
            except FileNotFoundError:
                raise UserError(
                    f"{uri}: no {MANIFEST}: no such bucket or directory, or it does not hold shards"
                ) from None
            return _RemoteShards(uri, files, path, content, _parse_manifest(content, f"{uri}/{MANIFEST}"))

    @property
    def name(self) -> str:
        """Name of the directory in the cache. It depends on the content: other shards at the same URI get another."""
        collection = re.sub(r"[^A-Za-z0-9_-]", "_", self.manifest.collection)
        return f"{collection}-{hashlib.sha256(self.manifest_bytes).hexdigest()[:16]}"

    @property
    def bytes(self) -> int:
        """Total size of all files."""
        return len(self.manifest_bytes) + sum(record.bytes for record in self.manifest.files.values())


def _parse_manifest(content: bytes, uri: str) -> Manifest:
    manifest = Manifest.parse(content, uri)
    for name in manifest.files:
        if not re.fullmatch(r"[^/\\.][^/\\]*\.arrow", name):  # the name becomes a path in the cache
            raise UserError(f"{uri}: not a manifest of shards: {name!r} is not a valid name of a shard file")
    return manifest


def _cache_directory() -> Path:
    directory = os.environ.get(CACHE)
    cache = Path(directory or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "dreamprvr_ray")).expanduser()
    if not cache.is_absolute():  # workers have different working directories
        variable = CACHE if directory else "XDG_CACHE_HOME"
        raise UserError(f"{variable}={os.environ[variable]}: must be an absolute path")
    return cache


def _cache_limit() -> int:
    """Return the cache's maximum size in bytes."""
    text = os.environ.get(CACHE_GIB) or "100"
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return int(float(text) * _GIB)
    raise UserError(f"{CACHE_GIB}={text}: must be a positive number of GiB")


def _in_use_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.in-use")


def _open(folder: Path) -> ShardSet | None:
    try:
        return ShardSet.open(folder)
    except UserError:  # missing, incomplete or damaged
        return None


def _fill(remote: _RemoteShards, cache: Path) -> ShardSet:
    """Download the set unless another process has already done so. The caller holds the lock on its `.in-use`."""
    folder = cache / remote.name
    with open_lock_file(cache / ".filling") as filling:
        try:
            fcntl.flock(filling, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("%s: waiting for another process that is downloading to %s", remote.uri, cache)
            fcntl.flock(filling, fcntl.LOCK_EX)
        shards = _open(folder)
        if shards is None:
            _download(remote, folder)
            shards = ShardSet.open(folder)
        return shards


def _download(remote: _RemoteShards, folder: Path) -> None:
    """Complete the directory: keep the files that an earlier download finished and fetch the others."""
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    remove_partial_files(folder, [*remote.manifest.files, MANIFEST])
    missing = {
        name: record for name, record in remote.manifest.files.items() if not _is_complete(folder / name, record)
    }
    _make_room(remote, folder, sum(record.bytes for record in missing.values()))
    _fetch_all(remote, folder, missing)
    with replacing_file(folder / MANIFEST) as partial:
        partial.write_bytes(remote.manifest_bytes)


def _is_complete(path: Path, record: FileRecord) -> bool:
    return path.is_file() and FileRecord.of(path) == record


def _make_room(remote: _RemoteShards, folder: Path, missing: int) -> None:
    """Remove other sets, least recently used first, until this one fits into the cache and onto its disk.

    Raises `UserError`, having removed nothing, if that would not suffice.
    """
    cache, limit, needed = folder.parent, _cache_limit(), remote.bytes
    if needed > limit:
        raise UserError(f"{remote.uri}: {_size(needed)} is more than the cache may hold: {CACHE_GIB} is {_size(limit)}")
    with ExitStack() as stack:
        sizes, idle = {}, []
        for lock in sorted(cache.glob(".*.in-use"), key=lambda path: path.stat().st_mtime_ns):
            other = lock.with_name(lock.name.removeprefix(".").removesuffix(".in-use"))
            if other == folder or not other.is_dir():
                continue
            sizes[other] = sum(path.stat().st_size for path in other.iterdir())
            if stack.enter_context(_unused(lock)):
                idle.append(other)
        in_use = sum(sizes[other] for other in sizes if other not in idle)
        if needed + in_use > limit:
            raise UserError(
                f"{remote.uri}: {_size(needed)} does not fit next to {_size(in_use)} in use in {cache}:"
                f" {CACHE_GIB} is {_size(limit)}"
            )
        free = shutil.disk_usage(cache).free + sum(sizes[other] for other in idle)
        if missing > free:
            raise UserError(
                f"{remote.uri}: {_size(missing)} does not fit onto the disk of {cache}, which has {_size(free)} free"
            )
        while idle and (needed + sum(sizes.values()) > limit or missing > shutil.disk_usage(cache).free):
            oldest = idle.pop(0)
            _log.info("%s: removed to make room", oldest)
            _remove_set(oldest)
            del sizes[oldest]


def _remove_set(folder: Path) -> None:
    """Remove the files that a download has written, and the directory if nothing else is in it."""
    (folder / MANIFEST).unlink(missing_ok=True)  # first, so that a kill leaves an incomplete set
    for path in folder.iterdir():
        if re.fullmatch(r"\.?[^/]+\.arrow(\.partial-[0-9]+)?", path.name) and not path.is_dir():
            path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def _unused(lock: Path) -> Iterator[bool]:
    """Yield whether no process uses the set. If so, none can start to before the block ends."""
    with open(lock, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _fetch_all(remote: _RemoteShards, folder: Path, records: dict[str, FileRecord]) -> None:
    received = dict.fromkeys(records, 0)  # bytes; each entry is written by one thread
    stopped = threading.Event()
    total, start = sum(record.bytes for record in records.values()), time.monotonic()
    with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="download") as pool:
        running = {
            pool.submit(_fetch, remote, folder, name, record, received, stopped) for name, record in records.items()
        }
        try:
            while running:
                done, running = wait(running, _PROGRESS_SECONDS, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                count, seconds = sum(received.values()), time.monotonic() - start
                left = f"{seconds * (total - count) / count:.0f} s left" if count else "waiting for the first bytes"
                rate = count / seconds / 1e6
                _log.info("%s: %s of %s, %.1f MB/s, %s", remote.uri, _size(count), _size(total), rate, left)
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _fetch(
    remote: _RemoteShards,
    folder: Path,
    name: str,
    record: FileRecord,
    received: dict[str, int],
    stopped: threading.Event,
) -> None:
    """Download a file; try once more if its size or checksum differs from the manifest's."""
    uri, partial = f"{remote.uri}/{name}", partial_path(folder / name)
    try:
        for _ in range(2):
            digest, received[name] = hashlib.sha256(), 0
            with open(partial, "wb") as sink, ExitStack() as stack:
                with _reading(uri):
                    stream = stack.enter_context(
                        remote.files.open_input_stream(f"{remote.path}/{name}", compression=None)
                    )
                while not stopped.is_set():
                    with _reading(uri):
                        chunk = stream.read(_CHUNK)
                    if not chunk:
                        break
                    digest.update(chunk)
                    sink.write(chunk)
                    received[name] += len(chunk)
                sink.flush()
                os.fsync(sink.fileno())  # else a machine failure could leave the name without the content
            if stopped.is_set():
                return
            if FileRecord(received[name], digest.hexdigest()) == record:
                os.replace(partial, folder / name)
                return
            _log.warning("%s: differs from the manifest", uri)
        raise UserError(
            f"{uri}: size or SHA-256 differs from the manifest's: damaged or being replaced; upload it again"
        )
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    """Turn errors of reading from an object store into one-line errors that name `uri`."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{uri}: no such file, but the manifest lists it") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{uri}: cannot be read: {first_line(error)[:300]}") from None


def _size(count: int) -> str:
    return f"{count / _GIB:,.1f} GiB" if count >= _GIB else f"{count / 2**20:.2f} MiB"

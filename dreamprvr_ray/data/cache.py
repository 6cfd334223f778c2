"""Shards by their location: a folder, or a URI whose copy each node keeps in its cache.

    read_manifest("s3://bucket/tvr")    only what the set is; nothing is kept
    local_shards("s3://bucket/tvr")     the node's copy, downloaded by the first process that asks, mapped by all

A URI is whatever `pyarrow.fs.FileSystem.from_uri` takes: s3, gs, abfs, file; credentials come from the environment. Of each set the cache holds

    CACHE/<collection>-<hash of its manifest>/    a folder of shards; manifest.json last, so that a folder that has one is whole
    CACHE/.<its name>.in-use                      locked, shared, by every process that uses the set; its time is that of the last use

and beside them `.filling`, locked by the one process of the node that makes room or downloads. The locks are flocks: the kernel releases them with
their process, however it ends. CACHE is `DREAMPRVR_RAY_CACHE`, else `$XDG_CACHE_HOME/dreamprvr_ray`, else `~/.cache/dreamprvr_ray`, and
holds at most `DREAMPRVR_RAY_CACHE_GIB` (100) GiB: the sets that were used least recently give way, those in use never.
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
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow.fs import FileSystem

from dreamprvr_ray.data.shards import MANIFEST, FileRecord, Manifest, ShardSet, file_record, partial_path
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.location import is_uri

CACHE = "DREAMPRVR_RAY_CACHE"
CACHE_GIB = "DREAMPRVR_RAY_CACHE_GIB"
_GIB = 2**30
_PIECE = 8 * 2**20  # bytes a request
_CONNECTIONS = 8
_PROGRESS_SECONDS = 5.0

_log = logging.getLogger(__name__)


def read_manifest(location: str) -> Manifest:
    """The manifest of the shards at a path or a URI. Raises `UserError` where there is none or it cannot be reached."""
    return _Remote.open(location).manifest if is_uri(location) else ShardSet.open(Path(location)).manifest


def local_shards(location: str) -> ShardSet:
    """The shards in a folder, or this node's copy of those at a URI, downloaded if the cache does not have them.

    Any number of processes of the node may call it at once: one downloads, the others wait. The copy stays in the cache at least as long as the
    returned object lives. Raises `UserError` where the shards are missing, unreachable or damaged, or do not fit into the cache or onto its disk.
    """
    if not is_uri(location):
        return ShardSet.open(Path(location))
    remote = _Remote.open(location)
    cache = _cache_directory()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        in_use = os.open(_in_use_path(cache / remote.name), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(in_use, fcntl.LOCK_SH)
            os.utime(in_use)
            shards = _opened(cache / remote.name) or _filled(remote, cache)
        except BaseException:
            os.close(in_use)
            raise
    except OSError as error:
        raise UserError(
            f"{cache}: cannot keep {remote.uri} there: {error.strerror or error} ({CACHE} names another folder)"
        ) from None
    weakref.finalize(shards, os.close, in_use)
    return shards


@dataclass(frozen=True)
class _Remote:
    """The shards at a URI."""

    uri: str  # as shown to users: without the query and the password, which may be secrets
    files: FileSystem
    path: str
    manifest_bytes: bytes
    manifest: Manifest

    @staticmethod
    def open(location: str) -> _Remote:
        parts = urlsplit(location)
        uri = f"{parts.scheme}://{re.sub(':[^@]*@', ':***@', parts.netloc)}{parts.path}".rstrip("/")
        with _reading(uri):
            files, path = FileSystem.from_uri(location)
            path = path.rstrip("/")
            try:
                with files.open_input_stream(f"{path}/{MANIFEST}", compression=None) as stream:
                    content: bytes = stream.read()
            except FileNotFoundError:
                raise UserError(
                    f"{uri}: there is no {MANIFEST}: no such bucket or folder, or these are no shards"
                ) from None
            return _Remote(uri, files, path, content, _parsed(content, f"{uri}/{MANIFEST}"))

    @property
    def name(self) -> str:
        """Its name in the cache, by content: another set at the same URI has another."""
        return f"{re.sub(r'[^A-Za-z0-9_-]', '_', self.manifest.collection)}-{hashlib.sha256(self.manifest_bytes).hexdigest()[:16]}"

    @property
    def bytes(self) -> int:
        return len(self.manifest_bytes) + sum(record.bytes for record in self.manifest.files.values())


def _parsed(content: bytes, shown: str) -> Manifest:
    manifest = Manifest.parse(content, shown)
    for name in manifest.files:
        if not re.fullmatch(r"[^/\\.][^/\\]*\.arrow", name):  # it becomes a path in the cache
            raise UserError(f"{shown}: is no manifest of shards: {name!r} is no shard file's name")
    return manifest


def _cache_directory() -> Path:
    named = os.environ.get(CACHE)
    cache = Path(named or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "dreamprvr_ray")).expanduser()
    if not cache.is_absolute():  # every worker has a working directory of its own
        raise UserError(
            f"{CACHE if named else 'XDG_CACHE_HOME'}={named or os.environ['XDG_CACHE_HOME']}: must be an absolute path"
        )
    return cache


def _cache_bound() -> int:
    """Bytes."""
    text = os.environ.get(CACHE_GIB) or "100"
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return int(float(text) * _GIB)
    raise UserError(f"{CACHE_GIB}={text}: must be a number of GiB above 0")


def _in_use_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.in-use")


def _opened(folder: Path) -> ShardSet | None:
    try:
        return ShardSet.open(folder)
    except UserError:  # not there, not whole, or damaged by hand
        return None


def _filled(remote: _Remote, cache: Path) -> ShardSet:
    """Downloads the set, unless another process has done so in the meantime; the caller holds its `.in-use`."""
    folder = cache / remote.name
    with open(cache / ".filling", "w") as filling:
        try:
            fcntl.flock(filling, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("%s: waiting for another process that fills %s", remote.uri, cache)
            fcntl.flock(filling, fcntl.LOCK_EX)
        shards = _opened(folder)
        if shards is None:
            _download(remote, folder)
            shards = ShardSet.open(folder)
        return shards


def _download(remote: _Remote, folder: Path) -> None:
    """Completes the folder: keeps the files that an earlier download finished, fetches the others."""
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for path in folder.glob(".*.partial-*"):
        path.unlink()
    missing = {name: record for name, record in remote.manifest.files.items() if not _is_whole(folder / name, record)}
    _make_room(remote, folder, sum(record.bytes for record in missing.values()))
    _fetch_all(remote, folder, missing)
    partial = partial_path(folder / MANIFEST)
    partial.write_bytes(remote.manifest_bytes)
    os.replace(partial, folder / MANIFEST)


def _is_whole(path: Path, record: FileRecord) -> bool:
    return path.is_file() and file_record(path) == record


def _make_room(remote: _Remote, folder: Path, missing: int) -> None:
    """Removes other sets, the least recently used first, until this one fits under the bound and its missing bytes onto the disk.

    Removes none where that would not do.
    """
    cache, bound, needed = folder.parent, _cache_bound(), remote.bytes
    if needed > bound:
        raise UserError(f"{remote.uri}: {_size(needed)}, more than the cache may hold: {CACHE_GIB} is {_size(bound)}")
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
        if needed + in_use > bound:
            raise UserError(
                f"{remote.uri}: {_size(needed)} do not fit beside the {_size(in_use)} in use in {cache}: {CACHE_GIB} is {_size(bound)}"
            )
        free = shutil.disk_usage(cache).free + sum(sizes[other] for other in idle)
        if missing > free:
            raise UserError(
                f"{remote.uri}: {_size(missing)} do not fit onto the disk of {cache}, which has room for {_size(free)}"
            )
        while idle and (needed + sum(sizes.values()) > bound or missing > shutil.disk_usage(cache).free):
            oldest = idle.pop(0)
            _log.info("%s: removed to make room", oldest)
            (oldest / MANIFEST).unlink(missing_ok=True)  # first: killed halfway, what is left is not taken for whole
            shutil.rmtree(oldest)
            del sizes[oldest]


@contextmanager
def _unused(lock: Path) -> Iterator[bool]:
    """Whether no process uses the set; then none begins to before the context ends."""
    with open(lock, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _fetch_all(remote: _Remote, folder: Path, records: dict[str, FileRecord]) -> None:
    received = dict.fromkeys(records, 0)  # each counted by the thread that fetches it
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
                here, seconds = sum(received.values()), time.monotonic() - start
                left = f"{seconds * (total - here) / here:.0f} s left" if here else "waiting for the first bytes"
                _log.info(
                    "%s: %s of %s, %.1f MB/s, %s", remote.uri, _size(here), _size(total), here / seconds / 1e6, left
                )
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _fetch(
    remote: _Remote, folder: Path, name: str, record: FileRecord, received: dict[str, int], stopped: threading.Event
) -> None:
    """Downloads one file; once more, if it is not what the manifest says."""
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
                        piece = stream.read(_PIECE)
                    if not piece:
                        break
                    digest.update(piece)
                    sink.write(piece)
                    received[name] += len(piece)
                sink.flush()
                os.fsync(sink.fileno())  # or a machine that fails could leave the name without the content
            if stopped.is_set():
                return
            if FileRecord(received[name], digest.hexdigest()) == record:
                os.replace(partial, folder / name)
                return
            _log.warning("%s: not what the manifest says", uri)
        raise UserError(
            f"{uri}: size or SHA-256 is not the manifest's: damaged, or the set is being replaced; upload it again"
        )
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{uri}: no such file, though the manifest names it") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{uri}: cannot be read: {' '.join(str(error).split())[:300]}") from None


def _size(count: int) -> str:
    return f"{count / _GIB:,.1f} GiB" if count >= _GIB else f"{count / 2**20:.2f} MiB"

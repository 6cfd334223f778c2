"""The cache of shards on a node: downloads, several processes at once, kills, limits and damage."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pyarrow.fs import FileSystem, copy_files

from dreamprvr_ray.data.cache import local_shards, read_manifest
from dreamprvr_ray.data.manifest import MANIFEST, FileRecord, Manifest
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.errors import UserError

if TYPE_CHECKING:
    from support.object_store import S3

# Starts processes that share what the fork server has imported.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["dreamprvr_ray.data.cache"])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DREAMPRVR_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DREAMPRVR_RAY_CACHE_GIB", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six files and their manifest: all that the cache looks at."""
    return write_shards(tmp_path / "shards")


def write_shards(folder: Path, content: bytes = b"", **changes: Any) -> Path:
    folder.mkdir()
    files = {f"train-{number:05d}.videos.arrow": content + bytes([number]) * (100_000 + number) for number in range(6)}
    for name, written in files.items():
        (folder / name).write_bytes(written)
    records = {name: FileRecord(len(written), hashlib.sha256(written).hexdigest()) for name, written in files.items()}
    manifest = Manifest(1, "mini", "i3d", 24, 16, "float16", "own splits", {}, {}, {}, records)
    replace(manifest, **changes).write(folder)
    return folder


def upload(s3: S3, folder: Path) -> str:
    uri = s3.uri("some/shards")
    copy_files(str(folder), uri)
    return uri


def overwrite(uri: str, name: str, content: bytes) -> None:
    files, path = FileSystem.from_uri(uri)
    with files.open_output_stream(f"{path}/{name}") as stream:
        stream.write(content)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sets(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def downloads(s3: S3, uri: str, name: str) -> int:
    path = FileSystem.from_uri(uri)[1]
    return sum(f"GET /{path}/{name}" in request for request in s3.requests)


def bound(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setenv("DREAMPRVR_RAY_CACHE_GIB", repr(size / 2**30))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


Started = Callable[..., tuple[Any, Connection]]


def nothing(pipe: Connection) -> None:
    pass


@pytest.fixture
def start() -> Iterator[Started]:
    """Return `start(uri, before)`, which starts a process and returns it and our end of a pipe.

    The process calls `before` with its end of the pipe, opens the shards at the URI, sends their directory and uses
    them until it receives something.
    """
    running = []

    def run(uri: str, before: Callable[[Connection], None] = nothing) -> tuple[Any, Connection]:
        ours, theirs = PROCESSES.Pipe()
        # The fork server has the environment of an earlier test.
        environment = {name: value for name, value in os.environ.items() if name.startswith(("AWS", "DREAMPRVR"))}
        process = PROCESSES.Process(target=open_in_process, args=(theirs, uri, environment, before))
        process.start()
        running.append(process)
        theirs.close()
        return process, ours

    yield run
    for process in running:
        process.kill()
        process.join()


def open_in_process(
    pipe: Connection, uri: str, environment: dict[str, str], before: Callable[[Connection], None]
) -> None:
    os.environ.update(environment)
    before(pipe)
    try:
        shards = local_shards(uri)
    except UserError as error:
        pipe.send(error)
        return
    pipe.send(shards.directory)
    pipe.recv()


def test_the_copy_equals_the_source(s3: S3, folder: Path, cache: Path) -> None:
    uri = upload(s3, folder)
    assert read_manifest(uri) == Manifest.read(folder / MANIFEST)
    assert not cache.exists()
    shards = local_shards(uri)
    assert sets(cache) == [shards.directory]
    assert contents(shards.directory) == contents(folder)
    assert shards.manifest == ShardSet.open(folder).manifest
    before = len(s3.requests)
    assert local_shards(uri).directory == shards.directory
    assert all("manifest.json" in request for request in s3.requests[before:])


def test_paths_and_file_uris(folder: Path, cache: Path) -> None:
    assert local_shards(str(folder)).directory == folder
    assert read_manifest(str(folder)) == Manifest.read(folder / MANIFEST)
    assert not cache.exists()
    assert contents(local_shards(folder.as_uri()).directory) == contents(folder)


def at_the_rename_of(name: str, act: Callable[[], object]) -> None:
    rename = os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(target).name == name:
            act()
        rename(source, target)

    os.replace = replace  # type: ignore[assignment]


def pause_at_the_third_file(pipe: Connection) -> None:
    at_the_rename_of("train-00002.videos.arrow", lambda: (pipe.send("paused"), pipe.recv()))


def report_waiting(pipe: Connection) -> None:
    handler = logging.Handler()
    handler.emit = lambda record: pipe.send("waiting") if "waiting for another process" in record.getMessage() else None  # type: ignore[method-assign]
    logging.getLogger("dreamprvr_ray.data.cache").addHandler(handler)
    logging.getLogger("dreamprvr_ray.data.cache").setLevel(logging.INFO)


def test_one_process_downloads_and_the_others_wait(s3: S3, folder: Path, cache: Path, start: Started) -> None:
    uri = upload(s3, folder)
    first = start(uri, pause_at_the_third_file)[1]
    assert first.recv() == "paused"
    others = [start(uri, report_waiting)[1] for _ in range(2)]
    assert [pipe.recv() for pipe in others] == ["waiting"] * 2
    first.send("continue")
    directory = first.recv()
    written_at = (directory / MANIFEST).stat().st_mtime_ns
    assert [pipe.recv() for pipe in others] == [directory] * 2
    assert (directory / MANIFEST).stat().st_mtime_ns == written_at
    assert [downloads(s3, uri, name) for name in read_manifest(uri).files] == [1] * 6


def kill_at_the_third_file(pipe: Connection) -> None:
    at_the_rename_of("train-00002.videos.arrow", lambda: os.kill(os.getpid(), signal.SIGKILL))


def kill_at_the_manifest(pipe: Connection) -> None:
    at_the_rename_of(MANIFEST, lambda: os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.parametrize("before", [kill_at_the_third_file, kill_at_the_manifest])
def test_a_killed_download_is_completed(
    s3: S3, folder: Path, cache: Path, start: Started, before: Callable[[Connection], None]
) -> None:
    uri = upload(s3, folder)
    process, _ = start(uri, before)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (left,) = sets(cache)
    with pytest.raises(UserError, match="no manifest"):
        ShardSet.open(left)
    complete = {path.name: path.stat().st_mtime_ns for path in left.iterdir() if not path.name.startswith(".")}
    assert (len(complete) == 6) == (before is kill_at_the_manifest)
    if complete:  # one has its name but not its content, as after a machine failure
        damaged = left / next(iter(complete))
        damaged.write_bytes(bytes(damaged.stat().st_size))
        del complete[damaged.name]
    shards = local_shards(uri)
    assert contents(shards.directory) == contents(folder)
    assert {name: (left / name).stat().st_mtime_ns for name in complete} == complete


def test_damage_in_transit(s3: S3, folder: Path, cache: Path) -> None:
    uri = upload(s3, folder)
    name = "train-00003.videos.arrow"
    complete = (folder / name).read_bytes()
    for damaged in (complete[:-1], complete + b"x", b"x" + complete[1:]):
        overwrite(uri, name, damaged)
        before = downloads(s3, uri, name)
        with pytest.raises(
            UserError,
            match=r"^s3://bucket-\d+/some/shards/train-00003\.videos\.arrow: "
            r"size or SHA-256 differs from the manifest's",
        ):
            local_shards(uri)
        assert downloads(s3, uri, name) - before == 2
        (left,) = sets(cache)
        assert not (left / MANIFEST).exists()
        assert not [path for path in left.iterdir() if path.name.startswith((name, "."))]
    FileSystem.from_uri(uri)[0].delete_file(f"{FileSystem.from_uri(uri)[1]}/{name}")
    with pytest.raises(UserError, match=r"train-00003\.videos\.arrow: no such file, but the manifest lists it"):
        local_shards(uri)
    overwrite(uri, name, complete)
    assert contents(local_shards(uri).directory) == contents(folder)


def test_a_damaged_copy_is_repaired(s3: S3, folder: Path, cache: Path) -> None:
    uri = upload(s3, folder)
    directory = local_shards(uri).directory
    (directory / "train-00001.videos.arrow").write_bytes(b"")
    (directory / "train-00004.videos.arrow").unlink()
    assert contents(local_shards(uri).directory) == contents(folder)


def test_different_shards_at_the_same_uri(s3: S3, folder: Path, cache: Path, tmp_path: Path) -> None:
    uri = upload(s3, folder)
    before = local_shards(uri)
    copy_files(str(write_shards(tmp_path / "changed", b"changed")), uri)
    after = local_shards(uri)
    assert contents(after.directory) == contents(tmp_path / "changed")
    assert contents(before.directory) == contents(folder)


def test_the_least_recently_used_set_is_removed(
    s3: S3, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = [upload(s3, write_shards(tmp_path / name, name.encode())) for name in ("a", "b", "c")]
    bound(monkeypatch, 2 * size(tmp_path / "a") + 1000)
    first, second = (local_shards(uri).directory for uri in uris[:2])
    assert local_shards(uris[0]).directory == first  # used again
    third = local_shards(uris[2]).directory
    assert sorted(sets(cache)) == sorted([first, third])
    assert local_shards(uris[1]).directory == second
    assert sorted(sets(cache)) == sorted([second, third])


def test_other_files_in_the_cache_are_not_deleted(
    s3: S3, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "mine").mkdir(parents=True)
    (cache / "mine" / "file").write_bytes(bytes(10**6))
    bound(monkeypatch, size(folder) + 1000)
    local_shards(upload(s3, folder))
    assert (cache / "mine" / "file").exists()


def test_sets_in_use_are_not_removed(
    s3: S3, folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Started
) -> None:
    uri, other = upload(s3, folder), upload(s3, write_shards(tmp_path / "other", b"other"))
    bound(monkeypatch, size(tmp_path / "other") + 1000)
    process, pipe = start(uri)
    used = pipe.recv()
    message = (
        r"^s3://bucket-\d+/some/shards: 0\.57 MiB does not fit next to 0\.57 MiB in use in .*/cache:"
        r" DREAMPRVR_RAY_CACHE_GIB is 0\.57 MiB"
    )
    with pytest.raises(UserError, match=message):
        local_shards(other)
    assert contents(used) == contents(folder)
    process.kill()
    process.join()
    mine = local_shards(other)  # the process that used the other set is gone
    assert sets(cache) == [mine.directory]
    with pytest.raises(UserError, match="in use"):  # by this process
        local_shards(uri)
    del mine
    assert contents(local_shards(uri).directory) == contents(folder)


def test_shards_larger_than_the_cache_or_its_disk(
    s3: S3, folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = local_shards(upload(s3, folder)).directory
    other = upload(s3, write_shards(tmp_path / "other", b"other"))
    bound(monkeypatch, size(folder) - 1000)
    with pytest.raises(
        UserError, match=r"0\.57 MiB is more than the cache may hold: DREAMPRVR_RAY_CACHE_GIB is 0\.57 MiB"
    ):
        local_shards(other)
    bound(monkeypatch, 2**70)
    huge = {"train-00000.videos.arrow": FileRecord(2**60, "0" * 64)}
    write_shards(tmp_path / "huge", files=huge)
    with pytest.raises(
        UserError,
        match=r"1,073,741,824\.0 GiB does not fit onto the disk of .*/cache, which has [\d,.]+ [GM]iB free",
    ):
        local_shards(upload(s3, tmp_path / "huge"))
    assert contents(cached) == contents(folder)  # nothing was removed


def small_disk(pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


def test_a_full_disk(s3: S3, folder: Path, cache: Path, start: Started) -> None:
    error = start(upload(s3, folder), small_disk)[1].recv()
    assert len(error.mistakes) == 1
    assert error.mistakes[0].startswith(f"{cache}: cannot cache s3://bucket-")
    assert "/some/shards here: File too large; set DREAMPRVR_RAY_CACHE to another directory" in error.mistakes[0]
    assert [list(left.iterdir()) for left in sets(cache)] == [[]]


@pytest.mark.parametrize("ask", [read_manifest, local_shards])
def test_missing_shards(s3: S3, cache: Path, ask: Callable[[str], object]) -> None:
    uri = s3.uri("some/shards")
    for missing in (uri, uri.replace("bucket-", "no-bucket-")):
        with pytest.raises(
            UserError, match=r"^s3://(no-)?bucket-\d+/some/shards: no manifest\.json: no such bucket or directory"
        ) as error:
            ask(missing)
        assert len(error.value.mistakes) == 1
    overwrite(uri, MANIFEST, b"{")
    with pytest.raises(UserError, match=r"^s3://bucket-\d+/some/shards/manifest\.json: not a manifest of shards"):
        ask(uri)
    for location in ("s4://bucket/shards", "s3:///shards", uri + "&endpoint=here"):
        with pytest.raises(UserError, match=r"^s\d://[a-z0-9/-]*: cannot be read: "):
            ask(location)
    assert not cache.exists()


def test_an_unreachable_server(cache: Path) -> None:
    with pytest.raises(
        UserError, match=r"^s3://key:\*\*\*@bucket/shards: cannot be read: .*Could not connect to server"
    ) as error:
        local_shards("s3://key:secret@bucket/shards?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("name", ["../../outside.arrow", "/outside.arrow", "manifest.json", ".hidden.arrow"])
def test_file_names_that_leave_the_directory(cache: Path, tmp_path: Path, name: str) -> None:
    content = b"outside"
    record = FileRecord(len(content), hashlib.sha256(content).hexdigest())
    write_shards(tmp_path / "bad", files={name: record})
    with pytest.raises(UserError, match="is not a valid name of a shard file"):
        local_shards((tmp_path / "bad").as_uri())


def test_environment_variables(folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in ("many", "0", "-1", "nan", "inf"):
        monkeypatch.setenv("DREAMPRVR_RAY_CACHE_GIB", bad)
        with pytest.raises(UserError, match=f"^DREAMPRVR_RAY_CACHE_GIB={bad}: must be a positive number of GiB"):
            local_shards(folder.as_uri())
    monkeypatch.delenv("DREAMPRVR_RAY_CACHE_GIB")
    monkeypatch.setenv("DREAMPRVR_RAY_CACHE", "cache")
    with pytest.raises(UserError, match=r"^DREAMPRVR_RAY_CACHE=cache: must be an absolute path"):
        local_shards(folder.as_uri())
    monkeypatch.delenv("DREAMPRVR_RAY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert local_shards(folder.as_uri()).directory.parent == tmp_path / "xdg" / "dreamprvr_ray"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert local_shards(folder.as_uri()).directory.parent == tmp_path / "home" / ".cache" / "dreamprvr_ray"


def test_a_planted_link_is_not_followed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, victim = tmp_path / "cache", tmp_path / "victim"
    cache.mkdir()
    victim.write_text("mine")
    (cache / ".filling").symlink_to(victim)
    monkeypatch.setenv("DREAMPRVR_RAY_CACHE", str(cache))
    with pytest.raises(UserError, match="cannot cache"):
        local_shards(f"file://{folder}")
    assert victim.read_text() == "mine"

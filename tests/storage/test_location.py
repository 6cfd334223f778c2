"""Directories on a disk and in an object store behave the same."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from textwrap import dedent
from typing import Any

import pyarrow.fs
import pytest
from support.object_store import S3

from dreamprvr_ray.errors import NotWritableError, ObjectStoreError, UserError
from dreamprvr_ray.storage.location import Storage, absolute, is_uri
from dreamprvr_ray.storage.locks import LOCK

LAST = "metrics.json"  # the file that is written last and deleted first


@pytest.fixture(params=["disk", "object store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "disk":
        return Storage.of(tmp_path / "run")
    s3: S3 = request.getfixturevalue("s3")
    return Storage.of(s3.uri("some/run"))


def left_behind(storage: Storage) -> list[str]:
    """Return the paths of all files in the directory, locks and claims included."""
    filesystem, path = (pyarrow.fs.LocalFileSystem(), storage.location)
    if storage.directory is None:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(storage.location)
    found = filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True, recursive=True))
    return [info.path for info in found if info.is_file]


def write(directory: Path) -> None:
    for name in ("metrics.json", "weights", "state"):
        (directory / name).write_text(name)


def anything(name: str) -> bool:
    return True


def test_small_files(storage: Storage) -> None:
    assert storage.names() == [] and not storage.exists("a.yaml")
    storage.write_text("a.yaml", "ä: 1\n")
    storage.write_text("a.yaml", "ä: 2\n")
    assert storage.read_text("a.yaml") == "ä: 2\n" and storage.exists("a.yaml") and storage.names() == ["a.yaml"]


def test_directories(storage: Storage) -> None:
    inner = storage / "checkpoints"
    inner.write_directory("epoch-0001", write, LAST, anything)
    inner.write_directory("epoch-0001", write, LAST, anything)  # replaced
    assert (
        inner.names() == ["epoch-0001"]
        and inner.exists("epoch-0001/metrics.json")
        and storage.names() == ["checkpoints"]
    )
    with (inner / "epoch-0001").local_directory() as directory:
        assert {path.name: path.read_text() for path in directory.iterdir()} == {
            name: name for name in ("metrics.json", "weights", "state")
        }
    assert storage.files() == [f"checkpoints/epoch-0001/{name}" for name in ("metrics.json", "state", "weights")]
    for _ in range(2):  # deleting a missing directory does nothing
        inner.delete_directory("epoch-0001", anything, first=LAST)
        assert inner.names() == inner.files() == []


def test_only_own_files_of_a_directory_are_deleted(storage: Storage) -> None:
    def is_own(name: str) -> bool:
        return name in ("metrics.json", "weights", "state")

    others = ["epoch-0001/notes/day.txt", "epoch-0001/plot.svg"]
    storage.write_directory("epoch-0001", write, LAST, is_own)
    for name in others:
        storage.write_text(name, name)
    storage.write_directory("epoch-0001", write, LAST, is_own)  # replaced
    own = [f"epoch-0001/{name}" for name in ("metrics.json", "state", "weights")]
    assert storage.files() == sorted([*others, *own])
    storage.delete_directory("epoch-0001", is_own, first=LAST)
    assert storage.files() == others and [storage.read_text(name) for name in others] == others
    storage.write_text("notes.txt", "mine")
    storage.delete_directory("notes.txt", is_own, first=LAST)  # a file in the place of a directory
    assert storage.read_text("notes.txt") == "mine"


def test_a_failed_write_leaves_nothing_behind(storage: Storage) -> None:
    def fail(directory: Path) -> None:
        write(directory)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        storage.write_directory("best", fail, LAST, anything)
    assert storage.names() == []


def test_the_last_file_is_uploaded_after_all_others(s3: S3) -> None:
    storage = Storage.of(s3.uri("run"))
    before = len(s3.requests)
    storage.write_directory("epoch-0001", write, LAST, anything)
    done = s3.written("epoch-0001/", before)
    assert sorted(done[:2]) == ["state", "weights"] and done[2:] == ["metrics.json"]


def test_locations(tmp_path: Path) -> None:
    assert all(
        map(is_uri, ("s3://bucket/tvr", "gs://bucket", "abfs://c@account.dfs.core.windows.net/tvr", "file:///mnt/tvr"))
    )
    assert not any(map(is_uri, ("shards", "/mnt/tvr", "./s3:/tvr", "shards/s3://tvr")))
    assert absolute("s3://bucket/run") == "s3://bucket/run" and absolute("runs") == os.path.abspath("runs")
    assert Storage.of("file:///runs/tvr") == Storage.of("/runs/tvr") and Storage.of("/runs/tvr").directory == Path(
        "/runs/tvr"
    )
    assert Storage.of("runs").location == os.path.abspath("runs")
    remote = Storage("s3://bucket/run?region=x")
    assert (remote / "best").location == "s3://bucket/run/best?region=x" and remote.directory is None
    assert str(remote) == "s3://bucket/run"  # the options may hold keys
    assert str(Storage("s3://key:hush-hush@bucket/run?x=hush-hush") / "best") == "s3://key:***@bucket/run/best"


def test_upload_and_download(s3: S3, tmp_path: Path) -> None:
    storage, names = Storage.of(s3.uri("run")), ["a.json", "b/c.jsonl", "b/d/e.gz"]
    for name in names:
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_text(name)
    storage.upload(tmp_path / "here", names)
    assert storage.files() == names == Storage.of(tmp_path / "here").files()
    storage.download(names[1:], tmp_path / "there")
    assert Storage.of(tmp_path / "there").files() == names[1:]
    assert all((tmp_path / "there" / name).read_text() == name for name in names[1:])
    with pytest.raises(UserError, match=r"^s3://bucket-\d+/run: .*none"):
        storage.download(["none"], tmp_path / "there")


def test_only_one_command_holds_the_lock(storage: Storage) -> None:
    script = f"""
        from dreamprvr_ray.storage.location import Storage
        with Storage.of({storage.location!r}).lock():
            print("held", flush=True)
            input()
    """
    with subprocess.Popen(
        [sys.executable, "-c", dedent(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError) as error, storage.lock():
            pass
        assert error.value.mistakes == (
            f"{storage}: process {other.pid} is using this directory; wait for it to finish, or stop it",
        )
        with (storage / "inner").lock():
            pass
        other.kill()
    # The killed process left its lock and its claim behind.
    assert storage.files() == [] and left_behind(storage)
    for _ in range(2):
        with storage.lock():
            assert storage.files() == []
    assert left_behind(storage) == []


def test_the_lock_does_not_depend_on_the_temporary_directory(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch systems give each job its own. Before, two drivers wrote one study."""
    (tmp_path / "job").mkdir()
    with storage.lock():
        monkeypatch.setenv("TMPDIR", str(tmp_path / "job"))
        monkeypatch.setattr(tempfile, "tempdir", None)
        with pytest.raises(UserError, match=f"process {os.getpid()} is using this directory"), storage.lock():
            pass


def test_a_lock_is_of_the_location_however_it_is_spelled(s3: S3) -> None:
    path, _, query = s3.uri("run").partition("?")
    with Storage.of(f"{path}?{query}").lock():
        for other in (f"{path}/", path.replace("s3://", "s3://KEY:SECRET@")):
            with pytest.raises(UserError, match="is using this directory"), Storage(f"{other}?{query}").lock():
                pass
        with Storage.of(f"{path}2?{query}").lock():
            pass


def test_a_lock_follows_no_link(tmp_path: Path) -> None:
    """Before, the target of a planted link was overwritten."""
    (tmp_path / "letter").write_text("dear reader")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LOCK).symlink_to(tmp_path / "letter")
    with pytest.raises(UserError, match="is a symbolic link"), Storage.of(tmp_path / "out").lock():
        pass
    assert (tmp_path / "letter").read_text() == "dear reader" and (tmp_path / "out" / LOCK).is_symlink()


def test_a_lock_leaves_no_directory_behind(tmp_path: Path) -> None:
    with Storage.of(tmp_path / "a" / "b").lock():
        pass
    assert not (tmp_path / "a").exists()


def test_without_locks_of_the_file_system_a_second_command_of_this_machine_is_still_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    storage = Storage.of(tmp_path / "out")
    refused = pytest.raises(UserError, match=f"process {os.getpid()} is using this directory")
    with storage.lock(), refused, storage.lock():
        pass


def test_an_upload_that_fails_in_the_middle_leaves_the_object_as_it_was(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, the part that had been sent became the object: 20 MB were 8 MB."""
    storage = Storage.of(s3.uri("run"))
    (tmp_path / "weights").write_bytes(b"new" * 7_000_000)

    def copy_a_part(source: Any, target: Any, length: int) -> None:
        target.write(source.read(length))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", copy_a_part)
        for content in (None, "old"):
            if content is not None:
                storage.write_text("weights", content)
            with pytest.raises(ObjectStoreError):
                storage.upload(tmp_path, ["weights"])
            assert storage.files() == ([] if content is None else ["weights"])
        assert storage.read_text("weights") == "old"
    storage.upload(tmp_path, ["weights"])
    assert storage.files() == ["weights"] and storage.size() == 21_000_000


def test_a_directory_that_is_not_shared_between_nodes(storage: Storage) -> None:
    with pytest.raises(
        UserError,
        match="is not visible from every node; use a shared file system or an object store",
    ):
        storage.check_visible("search.yaml")
    storage.write_text("search.yaml", "")
    storage.check_visible("search.yaml")


def test_an_unsupported_uri() -> None:
    with pytest.raises(UserError, match=r"^nonsense://bucket/run: not a usable storage location: "):
        Storage.of("nonsense://bucket/run")


def test_a_missing_bucket(s3: S3) -> None:
    location = s3.uri("run").replace("bucket-", "missing-")
    with pytest.raises(UserError, match=r"^s3://missing-\d+/run: "):
        Storage.of(location).write_text("a", "b")


@pytest.mark.parametrize(
    "location",
    ["a\0b", "file:///a\0b", "s3://", "s3://[bad", "gs:///", "x" * 300, "file:///" + "x" * 300, "/" + "d/" * 3000],
)
def test_locations_that_no_system_has(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (
        lambda: Storage.of(location).names(),
        lambda: Storage.of(location).exists("a"),
        lambda: Storage.of(location).write_text("a", "b"),
    ):
        with pytest.raises((UserError, NotWritableError)) as error:
            use()
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    storage = Storage.of(tmp_path)
    for use in (storage.exists, storage.read_text):
        with pytest.raises(UserError, match="x: cannot be read: File name too long"):
            use("x" * 300)
    with pytest.raises(FileNotFoundError):  # it may appear
        storage.read_text("missing")


@pytest.mark.parametrize("location", ["s3:/bucket/run", "s3:bucket/run", "gs:/k:canary@bucket", "file:/tmp/run"])
def test_a_uri_without_two_slashes_is_refused(location: str) -> None:
    with pytest.raises(UserError, match=r"is neither a path nor a URI; a URI begins with \w+://") as error:
        Storage.of(location)
    assert "canary" not in str(error.value)

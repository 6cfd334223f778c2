"""Directories on a disk and in an object store behave the same."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from textwrap import dedent

import pytest
from support.object_store import S3

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.location import Storage, absolute, is_uri

LAST = "metrics.json"  # the file that is written last and deleted first


@pytest.fixture(params=["disk", "object store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "disk":
        return Storage.of(tmp_path / "run")
    s3: S3 = request.getfixturevalue("s3")
    return Storage.of(s3.uri("some/run"))


def write(directory: Path) -> None:
    for name in ("metrics.json", "weights", "state"):
        (directory / name).write_text(name)


def test_small_files(storage: Storage) -> None:
    assert storage.names() == [] and not storage.exists("a.yaml")
    storage.write_text("a.yaml", "ä: 1\n")
    storage.write_text("a.yaml", "ä: 2\n")
    assert storage.read_text("a.yaml") == "ä: 2\n" and storage.exists("a.yaml") and storage.names() == ["a.yaml"]


def test_directories(storage: Storage) -> None:
    inner = storage / "checkpoints"
    inner.write_directory("epoch-0001", write, last=LAST)
    inner.write_directory("epoch-0001", write, last=LAST)  # replaced
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
        inner.delete_directory("epoch-0001", first=LAST)
        assert inner.names() == inner.files() == []


def test_a_failed_write_leaves_nothing_behind(storage: Storage) -> None:
    def fail(directory: Path) -> None:
        write(directory)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        storage.write_directory("best", fail, last=LAST)
    assert storage.names() == []


def test_the_last_file_is_uploaded_after_all_others(s3: S3) -> None:
    storage = Storage.of(s3.uri("run"))
    before = len(s3.requests)
    storage.write_directory("epoch-0001", write, last=LAST)
    done = [
        line.split("epoch-0001/")[1].split("?")[0]
        for line in s3.requests[before:]
        if "POST" in line and "?uploadId=" in line
    ]
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
    left = set(Path(tempfile.gettempdir()).glob("dreamprvr-ray-*"))  # by the killed process
    for _ in range(2):
        with storage.lock():
            assert storage.names() == []
    assert len(left - set(Path(tempfile.gettempdir()).glob("dreamprvr-ray-*"))) >= 1


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

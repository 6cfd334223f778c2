"""The study's journal in an object store: in parts, which a kill at any moment leaves readable."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.object_store import S3
from support.searches import make_search, trial_epoch

from dreamprvr_ray.errors import ObjectStoreError, UserError
from dreamprvr_ray.search import stored_journal
from dreamprvr_ray.search.layout import JOURNAL
from dreamprvr_ray.search.stored_journal import PARTS, StoredJournal
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.storage.location import Storage


@pytest.fixture
def storage(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(stored_journal, "PART_BYTES", 20)
    return Storage.of(s3.uri("out"))


def append(path: Path, *lines: str) -> bytes:
    with path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)
    return path.read_bytes()


def stored(storage: Storage, path: Path) -> bytes:
    """Return the journal as another machine downloads it to `path`."""
    StoredJournal(storage).download(storage.files(), path)
    return path.read_bytes()


def test_the_journal_is_uploaded_in_parts_and_joined_at_the_end(storage: Storage, tmp_path: Path) -> None:
    path, journal = tmp_path / JOURNAL, StoredJournal(storage)
    for number in range(9):
        content = append(path, f"line {number}")
        journal.upload(path)
        assert stored(storage, tmp_path / "other") == content
    names = [JOURNAL, *(f"{PARTS}/{begin:012d}" for begin in (21, 42))]
    assert storage.files() == names and [len(storage.read_bytes(name)) for name in names] == [21, 21, 21]
    journal.join(path)
    assert storage.files() == [JOURNAL] and storage.read_bytes(JOURNAL) == content
    content = append(path, "one more")
    journal.upload(path)
    assert storage.files() == [JOURNAL, f"{PARTS}/000000000063"] and stored(storage, tmp_path / "other") == content


def test_a_resumed_driver_continues_the_parts(storage: Storage, tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    for number in range(9):
        content = append(path, f"line {number}")
        journal = StoredJournal(storage)
        journal.download(storage.files(), tmp_path / "mine")  # as each of nine drivers that are killed
        journal.upload(path)
        assert stored(storage, tmp_path / "other") == content


def test_a_journal_of_an_earlier_version_is_continued(storage: Storage, tmp_path: Path) -> None:
    """It is one object, perhaps with an incomplete last line, which the driver moves away."""
    path = tmp_path / JOURNAL
    storage.write_text(JOURNAL, "a long line of the earlier version\ninco")
    journal = StoredJournal(storage)
    journal.download(storage.files(), path)
    assert path.read_text().endswith("inco")
    os.truncate(path, path.stat().st_size - len("inco"))
    content = append(path, "new")
    journal.upload(path)
    assert stored(storage, tmp_path / "other") == content
    content = append(path, "newer")
    journal.upload(path)
    assert storage.files() == [JOURNAL, f"{PARTS}/{len(content) - 6:012d}"]
    assert stored(storage, tmp_path / "other") == content


def test_parts_that_a_kill_left_behind_the_joined_journal_are_ignored(storage: Storage, tmp_path: Path) -> None:
    path, journal = tmp_path / JOURNAL, StoredJournal(storage)
    for number in range(7):
        content = append(path, f"line {number}")
        journal.upload(path)
    storage.upload(tmp_path, [JOURNAL])  # and here the driver is killed, before it deletes the parts
    assert len(storage.files()) == 3 and stored(storage, tmp_path / "other") == content
    again = StoredJournal(storage)
    again.download(storage.files(), path)
    content = append(path, "line 7")
    again.upload(path)
    assert stored(storage, tmp_path / "other") == content
    again.join(path)
    assert storage.files() == [JOURNAL] and storage.read_bytes(JOURNAL) == content


def test_a_missing_part_is_named(storage: Storage, tmp_path: Path) -> None:
    path, journal = tmp_path / JOURNAL, StoredJournal(storage)
    for number in range(9):
        append(path, f"line {number}")
        journal.upload(path)
    storage.delete_directory(PARTS, lambda name: name.endswith("21"))
    with pytest.raises(UserError, match=r"the study is damaged: bytes 21 to 42 of its journal are missing, before "):
        stored(storage, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_incomplete_line_is_not_uploaded(storage: Storage, tmp_path: Path) -> None:
    path, journal = tmp_path / JOURNAL, StoredJournal(storage)
    content = append(path, "line")
    path.write_bytes(content + b"inco")
    journal.upload(path)
    assert storage.read_bytes(JOURNAL) == content


def test_no_epoch_is_lost_when_requests_fail(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third upload fails, before or after the store has taken it. The study that is left is that of the disk."""
    study = SearchStudy(make_search(tmp_path), tmp_path / "out")
    journal, path = StoredJournal(storage), tmp_path / "out" / JOURNAL
    write: Callable[[Storage, str, bytes], None] = Storage.write_bytes
    calls = 0

    def unreliable(self: Storage, name: str, content: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls % 6 == 2:
            raise ObjectStoreError("lost")
        write(self, name, content)
        if calls % 6 == 5:
            raise ObjectStoreError("taken, but the answer is lost")

    monkeypatch.setattr(Storage, "write_bytes", unreliable)
    accepted = 0
    for number in range(2):
        assert study.propose()
        for epoch in range(1, 10):
            study.report(number, trial_epoch(epoch, 10.0 * epoch))
            try:
                journal.upload(path)
            except ObjectStoreError:
                continue
            accepted += 1
            assert stored(storage, tmp_path / "other") == path.read_bytes()
        study.finish(number, trial_epoch(9, 90.0, finished=True))
    journal.upload(path)
    assert accepted == 12 and stored(storage, tmp_path / "other") == path.read_bytes()

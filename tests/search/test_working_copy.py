"""The working copy of a search in an object store."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.object_store import S3
from support.searches import make_search, trial_epoch

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.layout import JOURNAL, SEARCH, read_epochs
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.search.working_copy import WorkingCopy, working_copy
from dreamprvr_ray.storage.location import Storage

Call = Callable[..., subprocess.CompletedProcess[str]]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_only_changed_files_that_belong_to_the_copy_are_uploaded(s3: S3, tmp_path: Path) -> None:
    storage = Storage.of(s3.uri("out"))
    with working_copy(storage, print) as copy:
        for name in (SEARCH, JOURNAL, "runs/trial_000/epochs.jsonl", "runs/trial_000/tensorboard/events"):
            write(copy.path / name, name)
        for name in ("wandb/offline-run/files", f"{JOURNAL}.lock", ".search.yaml-77"):
            write(copy.path / name, name)
        before = len(s3.requests)
        copy.push()
        written = [
            line.split("/out/")[1].split("?")[0]
            for line in s3.requests[before:]
            if "POST" in line and "?uploadId=" in line
        ]
        assert written[-1] == JOURNAL and sorted(written) == [
            JOURNAL,
            "runs/trial_000/epochs.jsonl",
            "runs/trial_000/tensorboard/events",
            SEARCH,
        ]
        before = len(s3.requests)
        copy.push()
        assert len(s3.requests) == before
        with (copy.path / JOURNAL).open("a") as journal:
            journal.write(", more")
    (storage / "runs/trial_000/checkpoints/epoch-0001").write_text("metrics.json", "{}")
    (storage / "best").write_text("test.json", "{}")
    assert not copy.path.exists() and storage.read_text(JOURNAL) == f"{JOURNAL}, more"
    with working_copy(storage, print) as again:
        assert Storage.of(again.path).files() == [
            JOURNAL,
            "runs/trial_000/epochs.jsonl",
            "runs/trial_000/tensorboard/events",
            SEARCH,
        ]
        before = len(s3.requests)
        again.push()
        assert len(s3.requests) == before


def test_files_that_could_not_be_uploaded_stay_on_the_disk(s3: S3) -> None:
    messages: list[str] = []
    with (
        pytest.raises(UserError, match=r"^s3://missing-"),
        working_copy(Storage.of(s3.uri("out").replace("bucket-", "missing-")), messages.append) as copy,
    ):
        write(copy.path / SEARCH, "")
    assert (copy.path / SEARCH).exists() and messages[-1].endswith(
        f": upload incomplete; remaining files are in {copy.path}"
    )
    shutil.rmtree(copy.path)


def test_on_a_disk_the_working_copy_is_the_directory_itself(tmp_path: Path) -> None:
    with working_copy(Storage.of(tmp_path), print) as copy:
        assert copy.path == tmp_path
        write(copy.path / SEARCH, "")
    assert os.listdir(tmp_path) == [SEARCH]


def test_a_failed_upload_is_retried(s3: S3, tmp_path: Path) -> None:
    messages: list[str] = []
    copy = WorkingCopy(Storage.of(s3.uri("out").replace("bucket-", "missing-")), tmp_path, messages.append)
    write(tmp_path / SEARCH, "")
    assert not copy.try_push()
    assert (
        len(messages) == 1
        and messages[0].startswith("s3://missing-")
        and messages[0].endswith("; will retry after the next epoch")
    )
    with pytest.raises(UserError, match=r"^s3://missing-\d+/out: "):
        copy.push()
    copy.storage = Storage.of(s3.uri("out"))
    copy.push()
    assert copy.storage.names() == [SEARCH]


def test_a_report_of_a_search_in_a_store(s3: S3, call: Call, tmp_path: Path) -> None:
    location, search = s3.uri("out"), make_search(tmp_path)
    missing = call("report", location)
    assert (
        missing.returncode == 2
        and missing.stderr.startswith("error: s3://bucket-")
        and "/out is not a search: it has no search.yaml" in missing.stderr
    )
    with working_copy(Storage.of(location), print) as copy:
        write(copy.path / SEARCH, search.to_yaml())
        study = SearchStudy(search, copy.path, "s3://bucket/out")
        for number in (0, 1):
            assert study.propose()
            study.report(number, trial_epoch(1, 10.0 + number))
            study.finish(number, trial_epoch(9, 10.0 + number, finished=True))
        assert study.trials()[0].user_attrs["out"] == "s3://bucket/out" and not read_epochs(copy.path)
    done = call("report", location, "--out", tmp_path / "report.html")
    assert done.returncode == 0, done.stderr
    assert "trial 1" in (tmp_path / "report.html").read_text()

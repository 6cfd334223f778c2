"""The study's file after a full disk or a loss of power."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from support.searches import make_search, trial_epoch

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.journal import INCOMPLETE, prepare_journal
from dreamprvr_ray.search.layout import JOURNAL
from dreamprvr_ray.search.study import SearchStudy


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A search's directory with a study of two trials, of which one has ended."""
    study = SearchStudy(make_search(tmp_path), tmp_path / "out")
    for number in range(2):
        assert study.propose()
        study.report(number, trial_epoch(1, 10.0))
    study.finish(1, trial_epoch(9, 10.0, finished=True))
    return tmp_path / "out"


def states(folder: Path) -> list[TrialState]:
    return [trial.state for trial in SearchStudy(make_search(folder), folder / "out").trials()]


@pytest.mark.parametrize("end", ["cut off", "zeros", "not UTF-8"])
def test_an_incomplete_last_line_is_moved_away(out: Path, end: str) -> None:
    """Before, this resume and all later ones ended with JSONDecodeError, the later ones since more was appended."""
    whole = (out / JOURNAL).read_bytes()
    last = whole.splitlines()[-1]
    rest = {"cut off": last[:-40], "zeros": b"\0" * 4096, "not UTF-8": b'{"op_code": 5, "\xff'}[end]
    before = whole if end != "cut off" else whole[: -len(last) - 1]
    (out / JOURNAL).write_bytes(before + rest)
    messages: list[str] = []
    prepare_journal(out, messages.append)
    assert messages == [
        f"{out / JOURNAL}: the last line was incomplete ({len(rest)} bytes), as after a full disk or a loss of power;"
        f" moved to {INCOMPLETE}"
    ]
    assert (out / JOURNAL).read_bytes() == before and (out / INCOMPLETE).read_bytes() == rest + b"\n"
    expected = TrialState.RUNNING if end == "cut off" else TrialState.COMPLETE
    assert states(out.parent) == [TrialState.RUNNING, expected]
    prepare_journal(out, messages.append)
    assert len(messages) == 1 and states(out.parent) == [TrialState.RUNNING, expected]


def test_a_last_line_without_its_end_is_completed(out: Path) -> None:
    whole = (out / JOURNAL).read_bytes()
    (out / JOURNAL).write_bytes(whole.removesuffix(b"\n"))
    prepare_journal(out, print)
    assert (out / JOURNAL).read_bytes() == whole and not (out / INCOMPLETE).exists()


def test_a_last_line_without_its_end_that_is_no_record_of_a_study_is_named(out: Path) -> None:
    """Before, its line end was added, and the study could not be opened: AssertionError."""
    content = (out / JOURNAL).read_bytes() + b'{"op_code": 99, "worker_id": "x"}'
    (out / JOURNAL).write_bytes(content)
    with pytest.raises(UserError, match=rf"^{out / JOURNAL}, line {content.count(bytes([10])) + 1}: damaged "):
        prepare_journal(out, print)
    assert (out / JOURNAL).read_bytes() == content and not (out / INCOMPLETE).exists()


@pytest.mark.parametrize(
    "damage", [b'{"op_code":', b"[1]", b'{"op_code": 5}', b'{"op_code": 99, "worker_id": "x"}', b"\xff\xfe", b""]
)
def test_a_damaged_line_is_named_and_nothing_is_changed(out: Path, damage: bytes) -> None:
    lines = (out / JOURNAL).read_bytes().splitlines(keepends=True)
    lines[3] = damage + b"\n"
    (out / JOURNAL).write_bytes(b"".join(lines) + b"half a line")
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UserError) as caught:
        prepare_journal(out, print)
    (mistake,) = caught.value.mistakes
    assert mistake.startswith(f"{out / JOURNAL}, line 4: damaged (") and "\n" not in mistake
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_lock_of_a_killed_process_is_removed_and_one_in_use_is_not(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, a live process's lock was removed as well."""
    lock = out / f"{JOURNAL}.lock"
    lock.symlink_to(out / JOURNAL)
    monkeypatch.setattr("dreamprvr_ray.search.journal.time.sleep", lambda _: None)
    prepare_journal(out, print)
    assert not lock.is_symlink()

    def take_again(_: float) -> None:
        lock.unlink()
        (out / "other").touch()  # so that the new lock has another inode
        lock.symlink_to(out / JOURNAL)

    lock.symlink_to(out / JOURNAL)
    monkeypatch.setattr("dreamprvr_ray.search.journal.time.sleep", take_again)
    prepare_journal(out, print)
    assert lock.is_symlink()


def test_a_full_disk_leaves_no_part_of_a_line(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = SearchStudy(make_search(tmp_path), out)
    before = (out / JOURNAL).read_bytes()
    full = pytest.MonkeyPatch()

    def fill(descriptor: int) -> None:
        os.truncate(out / JOURNAL, len(before) + 20)  # what fitted
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    full.setattr("os.fsync", fill)
    with pytest.raises(OSError, match="No space left"):
        study.report(0, trial_epoch(2, 10.0))
    full.undo()
    assert (out / JOURNAL).read_bytes() == before
    study.report(0, trial_epoch(3, 10.0))
    added: list[Any] = (out / JOURNAL).read_text().splitlines()[before.count(b"\n") :]
    assert len([json.loads(line) for line in added]) == 1

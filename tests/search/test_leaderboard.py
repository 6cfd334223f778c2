"""When the leaderboard of a search is written, and that it names no checkpoint that has been deleted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.searches import make_search, make_session, trial_epoch

from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.search import leaderboard
from dreamprvr_ray.search.leaderboard import Leaderboard
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.search.study_trials import StudyTrials


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyTrials:
    """A search of 60 trials of one epoch, of which two keep a checkpoint."""
    monkeypatch.setattr(leaderboard, "MISSING_SHARE", 0.2)
    search = make_search(tmp_path, trials=60, keep=2, sampler={"kind": "random"}, pruning={"enabled": False})
    source = StudyTrials(make_session(search), SearchStudy(search, tmp_path / "out"))
    source.delete_leftovers()
    return source


def entries(folder: Path) -> list[dict[str, Any]]:
    written: list[dict[str, Any]] = json.loads((folder / "out" / "leaderboard.json").read_text())
    return written


def run_trial(source: StudyTrials, folder: Path, sumr: float) -> None:
    request = source.next_request()
    assert request is not None
    checkpoint = folder / "out" / "runs" / request.run / "checkpoints" / "epoch-0001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "metrics.json").write_text("{}")
    epoch = trial_epoch(1, sumr, finished=True)
    source.report(request, epoch)
    source.finish(request, epoch)


def test_it_is_written_less_and_less_often(
    source: StudyTrials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, it was written at the end of each trial: 20 GB in a search of 10,000 trials."""
    missing = []
    write, writes = Leaderboard.write, 0

    def count(board: Leaderboard) -> None:
        nonlocal writes
        writes += 1
        write(board)

    monkeypatch.setattr(Leaderboard, "write", count)
    for number in range(60):
        run_trial(source, tmp_path, 100.0 - number)
        missing.append(number + 1 - len(entries(tmp_path)))
        assert [bool(entry["checkpoint"]) for entry in entries(tmp_path)[:3]] == [True, True, False][: number + 1]
    assert writes < 25 and max(missing) <= 0.2 * 60
    assert max(missing[:5]) == 0  # a small search has all
    source.write_leaderboard()
    assert [entry["number"] for entry in entries(tmp_path)] == list(range(60))


def test_it_is_written_at_an_epoch_if_it_lacks_a_trial_for_long(
    source: StudyTrials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = 0
    while len(entries(tmp_path)) == ended:
        run_trial(source, tmp_path, 100.0 - ended)
        ended += 1
    request = source.next_request()
    assert request is not None
    source.report(request, trial_epoch(1, 10.0))
    assert len(entries(tmp_path)) < ended
    monkeypatch.setattr(leaderboard, "WRITE_SECONDS", 0.0)
    source.report(request, trial_epoch(2, 11.0))
    assert len(entries(tmp_path)) == ended + 1


def test_a_checkpoint_is_deleted_after_the_leaderboard_no_longer_names_it(
    source: StudyTrials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, the leaderboard named it until the next write."""
    delete, deleted = CheckpointStore.delete_all, []

    def check(store: CheckpointStore) -> None:
        run = str(store.storage).split("/")[-2]
        assert not any(f"/{run}/" in (entry["checkpoint"] or "") for entry in entries(tmp_path))
        deleted.append(run)
        delete(store)

    monkeypatch.setattr(CheckpointStore, "delete_all", check)
    for number in range(20):
        run_trial(source, tmp_path, float(number))
        for entry in entries(tmp_path):
            assert entry["checkpoint"] is None or (Path(entry["checkpoint"]) / "metrics.json").exists()
    assert deleted == [f"trial_{number:03d}" for number in range(18)]

"""Which checkpoints a search keeps, and what its leaderboard records about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.object_store import S3
from support.searches import make_search, trial_epoch

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.search.leaderboard import Leaderboard
from dreamprvr_ray.search.retention import CheckpointRetention
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.storage.location import Storage


@pytest.fixture(params=["disk", "object store"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """The search's directory."""
    if request.param == "disk":
        return Storage.of(tmp_path / "out")
    s3: S3 = request.getfixturevalue("s3")
    return Storage.of(s3.uri("out"))


def write_checkpoints(storage: Storage, number: int, *epochs: int) -> None:
    """Write the checkpoints that a trial would leave."""
    for epoch in epochs:
        checkpoint = storage / f"runs/trial_{number:03d}/checkpoints/epoch-{epoch:04d}"
        checkpoint.write_text("metrics.json", json.dumps({"best_epoch": epochs[0]}))


def kept_checkpoints(storage: Storage) -> set[str]:
    return {
        name.replace("/checkpoints/", "/").removeprefix("runs/").removesuffix("/metrics.json")
        for name in storage.files()
        if name.endswith("/metrics.json")
    }


def test_the_best_trials_keep_one_checkpoint_each_and_the_others_none(tmp_path: Path, storage: Storage) -> None:
    search = make_search(tmp_path, pruning={"grace_epochs": 1, "reduction_factor": 2})
    study = SearchStudy(search, tmp_path / "out")
    retention = CheckpointRetention(storage, tmp_path / "out", keep=2)
    leaderboard = Leaderboard(study, tmp_path / "out", retention)

    def update() -> None:
        retention.delete_unranked_checkpoints(study.ranked())
        leaderboard.write()

    for sumr in (50.0, 60.0, 70.0):
        number = study.propose().number  # type: ignore[union-attr]
        write_checkpoints(storage, number, 4, 9)
        study.finish(number, trial_epoch(9, sumr, finished=True, best_epoch=4))
        update()
    running, failed, pruned = (study.propose().number for _ in range(3))  # type: ignore[union-attr]
    for number in (running, failed, pruned):
        write_checkpoints(storage, number, 1, 2)
        study.report(number, trial_epoch(1, {running: 65.0, failed: 99.0, pruned: 1.0}[number]))
    study.fail(failed, "no memory left")
    assert study.should_prune(pruned, 1)
    study.finish(pruned, trial_epoch(1, 1.0))
    update()
    assert kept_checkpoints(storage) == {
        "trial_001/epoch-0004",
        "trial_002/epoch-0004",
        "trial_003/epoch-0001",
        "trial_003/epoch-0002",
    }

    written = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert [entry["number"] for entry in written] == [2, 3, 1, 0, 5, 4]
    assert [entry["state"] for entry in written] == ["finished", "running", "finished", "finished", "pruned", "failed"]
    assert [bool(entry["checkpoint"]) for entry in written] == [True, False, True, False, False, False]
    assert written[0]["checkpoint"] == f"{storage}/runs/trial_002/checkpoints/epoch-0004"
    assert written[5]["error"] == "no memory left"
    assert retention.stored_bytes == 2 * len('{"best_epoch": 4}')


def test_a_directory_in_the_place_of_a_new_trial_is_renamed_and_no_other_one_is_touched(
    tmp_path: Path, storage: Storage
) -> None:
    """Before, all directories in `runs` that the study did not know were deleted, also a user's own."""
    retention = CheckpointRetention(storage, tmp_path / "out", keep=2)
    for name in ("trial_003", "trial_004", "notes", "trial_003-copy"):
        (storage / "runs" / name).write_text("experiment.yaml", name)
        (storage / "runs" / name).write_text("checkpoints/epoch-0001/metrics.json", name)
    for name in ("trial_003-lost-1", "trial_003-lost-2"):
        assert retention.set_aside(3) == name
        (storage / "runs" / "trial_003").write_text("experiment.yaml", "again")
        assert (storage / "runs" / name).exists("experiment.yaml")
    assert (storage / "runs" / "trial_003-lost-1").read_text("checkpoints/epoch-0001/metrics.json") == "trial_003"
    assert retention.set_aside(5) is None
    assert {"trial_004", "notes", "trial_003-copy"} <= set((storage / "runs").names())


def test_trials_that_the_study_does_not_know_end_a_resume(tmp_path: Path, storage: Storage) -> None:
    """Before, `--resume` with a renamed search file, or without the study's file, deleted all of them."""
    study = SearchStudy(make_search(tmp_path), tmp_path / "out")
    retention = CheckpointRetention(storage, tmp_path / "out", keep=2)
    (storage / "runs" / "notes").write_text("experiment.yaml", "a user's")
    retention.check_study(study.ranked(), "synthetic")
    (storage / "runs" / "trial_000").write_text("experiment.yaml", "")
    with pytest.raises(UserError, match=r"runs: holds 1 trials, but the study 'synthetic' has none; nothing was dele"):
        retention.check_study(study.ranked(), "synthetic")
    assert set((storage / "runs").names()) == {"notes", "trial_000"}
    study.propose()
    retention.check_study(study.ranked(), "synthetic")


def test_what_a_user_puts_next_to_a_trials_checkpoints_stays(tmp_path: Path, storage: Storage) -> None:
    study = SearchStudy(make_search(tmp_path), tmp_path / "out")
    for sumr in (50.0, 60.0):
        number = study.propose().number  # type: ignore[union-attr]
        write_checkpoints(storage, number, 4)
        storage.write_text(f"runs/trial_{number:03d}/checkpoints/epoch-0004/plot.svg", "mine")
        study.finish(number, trial_epoch(9, sumr, finished=True, best_epoch=4))
    CheckpointRetention(storage, tmp_path / "out", keep=1).delete_unranked_checkpoints(study.ranked())
    assert kept_checkpoints(storage) == {"trial_001/epoch-0004"}
    assert storage.read_text("runs/trial_000/checkpoints/epoch-0004/plot.svg") == "mine"


def test_a_resumed_search_asks_little_of_the_trials_that_keep_nothing(tmp_path: Path, s3: S3) -> None:
    """Before, 20 ended trials took 87 requests, one after another."""
    storage = Storage.of(s3.uri("out"))
    study = SearchStudy(make_search(tmp_path, trials=22), tmp_path / "out")
    for sumr in range(20):
        number = study.propose().number  # type: ignore[union-attr]
        (storage / f"runs/trial_{number:03d}").write_text("experiment.yaml", "")
        if number > 16:
            write_checkpoints(storage, number, 4)
        study.finish(number, trial_epoch(9, float(sumr), finished=True, best_epoch=4))
    running = study.propose().number  # type: ignore[union-attr]
    retention = CheckpointRetention(storage, tmp_path / "out", keep=2)
    before = len(s3.requests)
    retention.look(study.ranked())
    assert len(s3.requests) - before == 1
    retention.delete_unranked_checkpoints(study.ranked())
    assert len(s3.requests) - before < 40  # of three trials
    assert kept_checkpoints(storage) == {"trial_018/epoch-0004", "trial_019/epoch-0004"}
    before = len(s3.requests)
    retention.delete_unranked_checkpoints(study.ranked())
    assert len(s3.requests) == before
    write_checkpoints(storage, running, 2)
    study.finish(running, trial_epoch(9, 99.0, finished=True, best_epoch=2))
    retention.delete_unranked_checkpoints(study.ranked())
    assert kept_checkpoints(storage) == {"trial_019/epoch-0004", "trial_020/epoch-0002"}
    best = study.ranked()[0]
    assert best.number == running and retention.checkpoint(best) is not None

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.object_store import S3
from support.searches import make_search_settings, result

from dreamprvr_ray.search.retention import Leaderboard
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.storage.location import Storage


@pytest.fixture(params=["disk", "object store"])
def runs(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "disk":
        return Storage.of(tmp_path / "out" / "runs")
    s3: S3 = request.getfixturevalue("s3")
    return Storage.of(s3.uri("out/runs"))


def train(runs: Storage, number: int, *epochs: int) -> None:
    """Leaves the checkpoints that a trial's store would."""
    for epoch in epochs:
        checkpoint = runs / f"trial_{number:03d}" / "checkpoints" / f"epoch-{epoch:04d}"
        checkpoint.write_text("metrics.json", json.dumps({"best_epoch": epochs[0]}))


def kept(runs: Storage) -> set[str]:
    return {
        name.replace("/checkpoints/", "/").removesuffix("/metrics.json")
        for name in runs.files()
        if name.endswith("/metrics.json")
    }


def test_the_best_of_all_trials_keep_one_checkpoint_each_and_the_others_none(tmp_path: Path, runs: Storage) -> None:
    study = SearchStudy(
        make_search_settings(tmp_path, pruning={"grace_epochs": 1, "reduction_factor": 2}), tmp_path / "out"
    )
    board = Leaderboard(study, 2, runs)
    for sumr in (50.0, 60.0, 70.0):
        number = study.propose().number  # type: ignore[union-attr]
        train(board.runs, number, 4, 9)
        study.end(number, result(9, sumr, finished=True) | {"best_epoch": 4})
        board.update()
    running, failed, pruned = (study.propose().number for _ in range(3))  # type: ignore[union-attr]
    for number in (running, failed, pruned):
        train(board.runs, number, 1, 2)
        study.report(number, result(1, {running: 65.0, failed: 99.0, pruned: 1.0}[number]))
    study.fail(failed, "no memory left")
    assert study.should_prune(pruned, 1)
    study.end(pruned, result(1, 1.0))
    board.update()
    assert kept(board.runs) == {
        "trial_001/epoch-0004",
        "trial_002/epoch-0004",
        "trial_003/epoch-0001",
        "trial_003/epoch-0002",
    }

    written = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert [entry["number"] for entry in written] == [2, 3, 1, 0, 5, 4]
    assert [entry["state"] for entry in written] == ["finished", "running", "finished", "finished", "pruned", "failed"]
    assert [bool(entry["checkpoint"]) for entry in written] == [True, False, True, False, False, False]
    assert (
        written[0]["checkpoint"] == f"{runs}/trial_002/checkpoints/epoch-0004"
        and written[5]["error"] == "no memory left"
    )
    assert board.kept_bytes == 2 * len('{"best_epoch": 4}')

    train(board.runs, 77, 1)  # of a trial that the study does not know
    board.sweep()
    assert "trial_077" not in runs.names() and len(kept(board.runs)) == 4

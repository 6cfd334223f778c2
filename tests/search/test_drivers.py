"""Several drivers of one search, on one machine and on several: one works, the others are refused or end."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from support.object_store import S3
from support.searches import make_search
from support.simulated_driver import EPOCHS, Drivers

from dreamprvr_ray.search.layout import EPOCHS as EPOCH_LOG
from dreamprvr_ray.search.layout import LEADERBOARD
from dreamprvr_ray.search.space import load_search
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.search.working_copy import working_copy
from dreamprvr_ray.storage.location import Storage

TRIALS = 8


@pytest.fixture(params=["a bucket", "a shared directory", "a database"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where the search is, as its first host gives it and as its second does."""
    if request.param == "a bucket":
        s3: S3 = request.getfixturevalue("s3")
        return ({"out": s3.uri("search")},) * 2
    if request.param == "a shared directory":
        return ({"out": str(tmp_path / "out")},) * 2
    store = f"sqlite:///{tmp_path / 'studies.db'}"  # each host has its own directory: a copy of the other's
    return {"out": str(tmp_path / "out"), "store": store}, {"out": str(tmp_path / "second" / "out"), "store": store}


def copy_directory(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Copy the first host's directory to the second host, if that has its own."""
    if one != two:
        shutil.copytree(one["out"], two["out"], dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))


def check_every_trial_once(space: Path, place: dict[str, Any]) -> None:
    search = load_search(space, place)
    with working_copy(Storage.of(search.settings.out), print) as copy:
        if copy.storage.directory is None:
            copy.fetch()  # with the files of the trials
        study = SearchStudy(search, copy.path)
        assert [trial.number for trial in study.trials()] == list(range(TRIALS))
        assert {trial.state for trial in study.trials()} == {TrialState.COMPLETE}
        assert [trial.value for trial in study.trials()] == [10.0 + number for number in range(TRIALS)]
        if search.settings.store is not None:
            return  # the other files are on two hosts
        board = json.loads((copy.path / LEADERBOARD).read_text())
        assert sorted(row["number"] for row in board) == list(range(TRIALS))
        for number in range(TRIALS):
            lines = (copy.path / "runs" / f"trial_{number:03d}" / EPOCH_LOG).read_text().splitlines()
            assert [json.loads(line)["epoch"] for line in lines] == list(range(1, EPOCHS + 1)), number


def test_drivers_of_one_search_are_refused_follow_one_another_and_lose_no_trial(
    places: tuple[dict[str, Any], dict[str, Any]], demo_shards: Path, tmp_path: Path
) -> None:
    one, two = places
    make_search(tmp_path, shards=str(demo_shards), trials=TRIALS, pruning={"enabled": False})
    (tmp_path / "out").rmdir()
    space = tmp_path / "synthetic.yaml"
    with Drivers(tmp_path, lease_seconds=4.0) as drivers:
        drivers.allow(2, 1)
        first = drivers.start("host-a", space, one)
        first.wait_for(2, 1)
        copy_directory(one, two)
        code, lines = drivers.start("host-b", space, two, resume=True).end()
        assert code == 2 and f"process {first.process.pid} on host-a is " in lines[-1]
        assert lines[-1].endswith("; wait for it to finish, or stop it")
        # A driver that is suspended for longer than its lease loses the search to one on another host.
        first.send(signal.SIGSTOP)
        second = drivers.start("host-b", space, two, resume=True)
        drivers.allow(3, 1)
        second.wait_for(3, 1)
        first.send(signal.SIGCONT)
        code, lines = first.end()
        assert code == 1
        assert f"process {second.process.pid} on host-b has taken over, since this one was suspended" in lines[-1]
        assert sum(line.startswith(("LeaseLost", "Failure", "UserError")) for line in lines) == 1
        # One that is killed is followed by the next one, on another host after a while, on its own at once.
        second.process.kill()
        copy_directory(two, one)
        drivers.allow(5, 2)
        third = drivers.start("host-a", space, one, resume=True)
        third.wait_for(5, 2)
        third.process.kill()
        drivers.allow(TRIALS)
        code, lines = drivers.start("host-a", space, one, resume=True).end()
        assert code == 0, lines
    check_every_trial_once(space, one)

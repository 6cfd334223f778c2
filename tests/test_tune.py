"""`tune` as a user runs it: real Ray Tune, Ray Train and Optuna on a local Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from dreamprvr_ray.search.plan import plan_lines, plan_trials
from dreamprvr_ray.search.space import load_search

Command = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parent.parent
TINY = {"model.hidden_size": 16, "model.branches": 2, "training.batch_videos": 8, "loss.hard_negative_start_epoch": 2}


def write_space(path: Path, shards: Path, trials: int, epochs: int, ranges: dict[str, Any], **more: Any) -> Path:
    space = ranges | TINY | {"training.epochs": epochs}
    values = {"config": "demo", "shards": str(shards), "out": str(path.parent / "out"), "trials": trials, "space": space}
    path.write_text(yaml.safe_dump(values | more))
    return path


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


def leaderboard(out: Path) -> dict[int, dict[str, Any]]:
    return {entry["number"]: entry for entry in json.loads((out / "leaderboard.json").read_text())}


def results(out: Path, number: int) -> list[dict[str, Any]]:
    lines = (out / "trials" / f"trial_{number:03d}" / "result.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def optuna_states(out: Path) -> list[str]:
    storage = JournalStorage(JournalFileBackend(str(out / "optuna.journal")))
    return [trial.state.name for trial in optuna.load_study(study_name=None, storage=storage).trials]


@pytest.fixture(scope="module")
def searched(command: Command, demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A search, one trial at a time, in which trials finish, are pruned (at a rate at which nothing is learnt), and fail (at 1e9)."""
    folder = tmp_path_factory.mktemp("search")
    ranges = {"model.registers": {"int": [0, 4]}, "optimizer.learning_rate": {"choice": [1e-3, 1e9, 1e-9]}}
    limits = {"trial": {"at_a_time": 1}, "pruning": {"grace_epochs": 1, "reduction_factor": 2}, "sampler": {"seed": 3, "startup_trials": 5}}
    space = write_space(folder / "space.yaml", demo_shards, 5, 3, ranges, **limits)
    return space, command("tune", "--space", space, "--json")


def test_a_search_ends_with_its_trials_told_apart_and_the_winner_tested_once(
    searched: tuple[Path, subprocess.CompletedProcess[str]], command: Command
) -> None:
    space, done = searched
    values, out = last_json(done), space.parent / "out"
    assert values["trials"] == 5 and values["finished"] >= 1 and values["pruned"] >= 1 and values["failed"] >= 1
    entries = leaderboard(out)
    assert entries[0]["values"] == {"model.registers": 4, "optimizer.learning_rate": 1e-3}  # the preset's own first
    told = {"finished": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    assert optuna_states(out) == [told[entries[number]["state"]] for number in range(5)]
    failed = [entry for entry in entries.values() if entry["state"] == "failed"]
    assert all("the loss is not a number" in entry["error"] for entry in failed)
    for entry in entries.values():
        if entry["state"] == "pruned":
            assert entry["epochs"] < 3
    best = max((entry for entry in entries.values() if entry["best_sumr"]), key=lambda entry: entry["best_sumr"])
    assert values["best"]["trial"] == best["number"] and values["best"]["val_SumR"] == best["best_sumr"]
    # The kept checkpoint is of the winner's best epoch, not of its last.
    metrics = json.loads((out / "best" / "metrics.json").read_text())
    assert metrics["epoch"] == best["best_epoch"] and metrics["SumR"] == best["best_sumr"]
    assert len(json.loads((out / "best" / "test.json").read_text())["readings"]) == 1 and values["test"]["split"] == "test"
    assert "Ray dashboard: http://127.0.0.1" in done.stderr and "get-auth-token" in done.stderr
    assert "5 of 5 trials ended" in done.stderr and f"winner: trial {best['number']}" in done.stdout

    again = command("tune", "--space", space)
    assert again.returncode == 2 and "already there; go on with --resume, or choose another --out" in again.stderr
    changed = command("tune", "--space", space, "--resume", "--trials", 9)
    assert changed.returncode == 2 and "cannot resume: trials was 5 and is 9 now" in changed.stderr
    resumed = last_json(command("tune", "--space", space, "--resume", "--json"))
    assert resumed == values  # nothing is trained again, and test is not read again


def test_a_killed_search_keeps_finished_trials_and_goes_on_with_the_others(command: Command, demo_shards: Path, tmp_path: Path) -> None:
    space = write_space(tmp_path / "space.yaml", demo_shards, 5, 3, {"model.registers": {"int": [0, 6]}}, trial={"at_a_time": 2})
    driver = subprocess.Popen(
        [sys.executable, "-m", "dreamprvr_ray.tune", "--space", str(space)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    assert driver.stderr is not None
    for line in driver.stderr:
        if "3 of 5 trials ended" in line:
            break
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    out = tmp_path / "out"
    before = {path.parent.name: path.read_text() for path in (out / "trials").glob("trial_*/result.json")}
    assert any('"finished": true' in text for text in before.values()) and not (out / "leaderboard.json").exists()
    time.sleep(2)  # the killed driver's Ray ends by itself
    values = last_json(command("tune", "--space", space, "--resume", "--json"))
    assert values["trials"] == 5 and values["failed"] == 0
    for entry in leaderboard(out).values():
        name = f"trial_{entry['number']:03d}"
        epochs = [result["epoch"] for result in results(out, entry["number"])]
        if '"finished": true' in before.get(name, ""):
            assert (out / "trials" / name / "result.json").read_text() == before[name]
        else:  # it went on from its checkpoint: no epoch is missing, at most the last one before the kill is there twice
            assert sorted(set(epochs)) == list(range(1, entry["epochs"] + 1)) and len(epochs) <= entry["epochs"] + 1
    assert "RUNNING" not in optuna_states(out)


def test_a_trial_of_two_workers_trains_as_one_of_one(command: Command, demo_shards: Path, tmp_path: Path) -> None:
    last = {}
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        ranges = {"model.registers": {"int": [0, 6]}, "model.dropout": 0.0, "model.input_dropout": 0.0}
        space = write_space(folder / "space.yaml", demo_shards, 2, 2, ranges, pruning={"enabled": False})
        values = last_json(command("tune", "--space", space, "--set", f"trial.workers={workers}", "--trials", 2 if workers == 2 else 1, "--json"))
        assert values["finished"] == values["trials"]
        last[workers] = results(folder / "out", 0)[-1]
        assert last[workers]["epoch"] == 2
    names = [name for name in last[1] if name.startswith("loss/")] + ["SumR"]
    assert len(names) == 10
    for name in names:
        assert last[2][name] == pytest.approx(last[1][name], rel=1e-4), name


def test_an_interrupted_search_says_how_to_go_on(demo_shards: Path, tmp_path: Path) -> None:
    space = write_space(tmp_path / "space.yaml", demo_shards, 30, 2, {"model.registers": {"int": [0, 6]}})
    driver = subprocess.Popen(
        [sys.executable, "-m", "dreamprvr_ray.tune", "--space", str(space)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert driver.stderr is not None
    for line in driver.stderr:
        if "1 of 30 trials ended" in line:
            break
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 130 and "add --resume" in said and "Traceback" not in said


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_space_can_be_planned(path: Path, local_ray: None) -> None:
    search = load_search(path)
    lines, cost = plan_lines(search, plan_trials(search))
    text = "\n".join(lines)
    assert all(space.key in text for space in search.ranges)
    assert f"{cost.parameters / 1e6:.2f} M" in text and "GFLOP" in text and "at a time" in text and "GiB" in text


def test_missing_shards_name_the_command_that_makes_them(command: Command, tmp_path: Path) -> None:
    done = command("tune", "--space", ROOT / "search_spaces" / "tvr.yaml", "--trials", 2, cwd=tmp_path)
    assert done.returncode == 2
    wanted = "python -m dreamprvr_ray.convert --source data --collection tvr --features i3d_resnet --out shards/tvr"
    assert done.stderr == f"error: shards/tvr: no feature shards there; make them with: {wanted}\n"

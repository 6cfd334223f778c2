"""`tune` as a user runs it: real Ray Tune, Ray Train and Optuna on a local Ray."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import ray
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.search.plan import plan_trials
from dreamprvr_ray.search.space import load_search

if TYPE_CHECKING:
    from conftest import Driver

Call = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parent.parent
NO_DROPOUT = {"model.dropout": 0.0, "model.input_dropout": 0.0}  # which workers draw for themselves
TINY = {
    "model.hidden_size": 16,
    "model.branches": 1,
    "model.diffusion_steps": 1,
    "training.batch_videos": 8,
    "loss.hard_negative_start_epoch": 2,
} | NO_DROPOUT


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
def searched(
    call: Call, demo_shards: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A search, one trial at a time, in which trials finish, are pruned (at a rate at which nothing is learnt), and fail (at 1e9)."""
    folder = tmp_path_factory.mktemp("search")
    ranges = {"model.registers": {"int": [0, 4]}, "optimizer.learning_rate": {"choice": [1e-3, 1e9, 1e-9]}, "training.max_failures": 0}
    limits = {"trial": {"at_a_time": 1}, "pruning": {"grace_epochs": 1, "reduction_factor": 2}, "sampler": {"seed": 3, "startup_trials": 5}}
    space = write_space(folder / "space.yaml", demo_shards, 5, 3, ranges, **limits)
    return space, call("tune", "--space", space, "--json")


def test_a_search_ends_with_its_trials_told_apart_and_the_winner_tested_once(
    searched: tuple[Path, subprocess.CompletedProcess[str]], call: Call
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
    assert "5 of 5 trials ended" in done.stderr and f"winner: trial {best['number']}" in done.stdout

    again = call("tune", "--space", space)
    assert again.returncode == 2 and "already there; go on with --resume, or choose another --out" in again.stderr
    changed = call("tune", "--space", space, "--resume", "--trials", 9)
    assert changed.returncode == 2 and "cannot resume: trials was 5 and is 9 now" in changed.stderr
    resumed = last_json(call("tune", "--space", space, "--resume", "--json"))
    assert resumed == values  # nothing is trained again, and test is not read again


def test_a_killed_search_keeps_finished_trials_and_goes_on_with_the_others(
    call: Call, drive: Callable[..., Driver], demo_shards: Path, tmp_path: Path, local_ray: None
) -> None:
    space = write_space(
        tmp_path / "space.yaml", demo_shards, 5, 3, {"model.registers": {"int": [0, 6]}}, trial={"at_a_time": 2}, pruning={"enabled": False}
    )
    driver = drive("tune", "--space", space)
    driver.wait_until_it_says("3 of 5 trials ended")
    driver.kill()
    assert any("Ray dashboard: http://127.0.0.1" in line and "get-auth-token" in line for line in driver.said)
    out = tmp_path / "out"
    before = {path.parent.name: path.read_text() for path in (out / "trials").glob("trial_*/result.json")}
    assert any('"finished": true' in text for text in before.values()) and not (out / "leaderboard.json").exists()
    values = last_json(call("tune", "--space", space, "--resume", "--json"))
    assert values["trials"] == values["finished"] == 5
    for entry in leaderboard(out).values():
        name = f"trial_{entry['number']:03d}"
        epochs = [result["epoch"] for result in results(out, entry["number"])]
        if '"finished": true' in before.get(name, ""):  # nothing of it is trained again
            assert (out / "trials" / name / "result.json").read_text().startswith(before[name])
        # Others went on from their checkpoints. What was known of each still is; at most its last epoch before the kill is there twice.
        assert {json.loads(line)["epoch"] for line in before.get(name, "").splitlines()} <= set(epochs)
        assert epochs == sorted(epochs) and epochs[-1] == entry["epochs"] == 3 and len(epochs) <= len(set(epochs)) + 1
    assert "RUNNING" not in optuna_states(out)


def test_a_trial_of_two_workers_trains_as_one_of_one(
    call: Call, searched: tuple[Path, subprocess.CompletedProcess[str]], demo_shards: Path, tmp_path: Path
) -> None:
    ranges = {"model.registers": {"int": [0, 4]}}  # the first trial has the preset's, as in the other search
    space = write_space(tmp_path / "space.yaml", demo_shards, 5, 3, ranges, pruning={"enabled": False})
    values = last_json(call("tune", "--space", space, "--set", "trial.workers=2", "--trials", 2, "--json"))
    assert values["finished"] == values["trials"] == 2
    one, two = results(searched[0].parent / "out", 0)[-1], results(tmp_path / "out", 0)[-1]
    assert one["epoch"] == two["epoch"] == 3
    names = [name for name in one if name.startswith("loss/")] + ["SumR"]
    assert len(names) == 10
    for name in names:
        assert two[name] == pytest.approx(one[name], rel=1e-4), name


def test_an_interrupted_search_says_how_to_go_on(drive: Callable[..., Driver], demo_shards: Path, tmp_path: Path, local_ray: None) -> None:
    space = write_space(tmp_path / "space.yaml", demo_shards, 30, 2, {"model.registers": {"int": [0, 6]}})
    driver = drive("tune", "--space", space, RAY_ADDRESS=ray.get_runtime_context().gcs_address)  # on a Ray that was there before
    driver.wait_until_it_says("1 of 30 trials ended")
    driver.process.send_signal(signal.SIGINT)
    _, said = driver.process.communicate(timeout=120)
    assert driver.process.returncode == 130 and "add --resume" in said and "Traceback" not in said


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_space_can_be_planned_and_starts_from_its_preset(path: Path, local_ray: None) -> None:
    search = load_search(path)
    assert "at a time" in str(plan_trials(search))
    preset = load_experiment(search.file.config)
    assert search.experiment == preset
    assert search.paper_setting == {space.key: preset.flat()[space.key] for space in search.ranges}


def test_a_dry_run_tells_the_plan_and_its_cost(call: Call, local_ray: None) -> None:
    path = ROOT / "search_spaces" / "demo.yaml"
    done = call("tune", "--space", path, "--dry-run", "--json")
    values = last_json(done)
    assert all(space.key in done.stdout for space in load_search(path).ranges)
    assert f"{values['parameters'] / 1e6:.2f} M" in done.stdout and "GFLOP" in done.stdout and "at a time" in done.stdout and "GiB" in done.stdout
    assert values["trials"] == 8 and values["workers"] == 1


def test_missing_shards_name_the_command_that_makes_them(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("tune", "--space", ROOT / "search_spaces" / "tvr.yaml", "--trials", 2)
    assert done.returncode == 2
    wanted = "python -m dreamprvr_ray.convert --source data --collection tvr --features i3d_resnet --out shards/tvr"
    assert done.stderr == f"error: shards/tvr: no feature shards there; make them with: {wanted}\n"

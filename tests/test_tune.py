"""`tune` as a user runs it: real Ray Tune, Ray Train and Optuna on a local Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import ray
import ray.tune
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from support.object_store import S3

from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.search.layout import read_epochs
from dreamprvr_ray.search.plan import plan_trials
from dreamprvr_ray.search.ray_tune import lost_trial_failure
from dreamprvr_ray.search.space import load_search
from dreamprvr_ray.search.working_copy import WorkingCopy
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.failure import TrialFailure

if TYPE_CHECKING:
    from conftest import Driver

Call = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parent.parent
NO_DROPOUT = {"model.dropout": 0.0, "model.input_dropout": 0.0}  # each worker draws its own masks
TINY = {
    "model.hidden_size": 16,
    "model.branches": 1,
    "model.diffusion_steps": 1,
    "training.batch_videos": 8,
    "loss.hard_negative_start_epoch": 2,
    "training.precision": "fp32",  # numbers are compared
} | NO_DROPOUT


def write_space(
    path: Path, shards: Path | list[Path], trials: int, epochs: int, ranges: dict[str, Any], **more: Any
) -> Path:
    space = TINY | {"training.epochs": epochs} | ranges
    values = {
        "config": "demo",
        "shards": [str(each) for each in shards] if isinstance(shards, list) else str(shards),
        "out": str(path.parent / "out"),
        "trials": trials,
        "space": space,
    }
    path.write_text(yaml.safe_dump(values | more))
    return path


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


def leaderboard(out: Path) -> dict[int, dict[str, Any]]:
    return {entry["number"]: entry for entry in json.loads((out / "leaderboard.json").read_text())}


def results(out: Path, number: int) -> list[dict[str, Any]]:
    return read_epochs(out / "runs" / f"trial_{number:03d}")


def study_trials(out: Path) -> list[FrozenTrial]:
    """Return the trials as Optuna's own tools read them."""
    storage = JournalStorage(JournalFileBackend(str(out / "optuna.journal")))
    return optuna.load_study(study_name=None, storage=storage).trials


def kept_checkpoints(out: Path) -> set[str]:
    return {str(path) for path in (out / "runs").glob("*/checkpoints/epoch-*")}


def whole_directories(storage: Storage) -> set[str]:
    return {name.removesuffix("/metrics.json") for name in storage.files() if name.endswith("/metrics.json")}


@pytest.fixture(scope="module")
def searched(
    call: Call, demo_shards: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Run a search in which trials finish, are pruned (at a learning rate of 1e-9), diverge (at 1e9) and run out of
    memory (a model of 70 TB), one after another; then the best trial's and the preset's settings are retrained."""
    folder = tmp_path_factory.mktemp("search")
    ranges = {
        "model.registers": {"int": [0, 4]},
        "optimizer.learning_rate": {"choice": [1e-3, 1e9, 1e-9]},
        "model.hidden_size": {"choice": [64, 2**22]},
    }
    keys = {
        "trial": {"at_a_time": 1},
        "pruning": {"grace_epochs": 1, "reduction_factor": 2},
        "sampler": {"seed": 33, "startup_trials": 9},
    }
    space = write_space(
        folder / "space.yaml", demo_shards, 7, 3, ranges, keep=2, final={"seeds": 2}, trackers=["mlflow"], **keys
    )
    return space, call("tune", "--space", space, "--json")


def test_a_search_ends_with_the_state_of_every_trial_and_the_best_checkpoints(
    searched: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    space, done = searched
    values, out = last_json(done), space.parent / "out"
    assert values["trials"] == 7 and values["finished"] >= 1 and values["pruned"] >= 1 and values["failed"] >= 2
    entries = leaderboard(out)
    assert entries[0]["values"] == {
        "model.registers": 4,
        "optimizer.learning_rate": 1e-3,
        "model.hidden_size": 64,
    }  # the first trial has the configuration's own values
    optuna_states = {"finished": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    for trial in study_trials(out):
        entry = entries[trial.number]
        assert trial.state.name == optuna_states[entry["state"]]
        assert trial.value == entry["best_sumr"]  # of its best epoch; None if it failed
        epochs = results(out, trial.number)
        assert (
            trial.intermediate_values == {epoch["epoch"]: epoch["SumR"] for epoch in epochs}
            and len(epochs) == entry["epochs"]
        )
        if entry["state"] == "failed":
            reason = "no memory" if trial.params["model.hidden_size"] > 64 else "not finite"
            assert (reason in entry["error"] or "can't allocate memory" in entry["error"]) and trial.user_attrs[
                "reason"
            ] == entry["error"]
            assert entry["error"] in done.stderr and f"trial {trial.number} failed: {entry['error']}" in done.stdout
        else:
            assert entry["state"] == ("finished" if entry["epochs"] == 3 else "pruned")
            assert entry["best_sumr"] == max(epoch["SumR"] for epoch in epochs)
    assert any("memory" in entry["error"] for entry in entries.values() if entry["error"])
    assert any("not finite" in entry["error"] for entry in entries.values() if entry["error"])
    ended = sorted(
        (entry for entry in entries.values() if entry["state"] != "failed"), key=lambda entry: -entry["best_sumr"]
    )
    assert kept_checkpoints(out) == {entry["checkpoint"] for entry in ended[:2]} and len(kept_checkpoints(out)) == 2
    best = json.loads((Path(ended[0]["checkpoint"]) / "metrics.json").read_text())
    assert best["epoch"] == ended[0]["best_epoch"] and best["SumR"] == ended[0]["best_sumr"]
    assert "7 of 7 trials ended" in done.stderr and f"best trial: trial {ended[0]['number']}," in done.stdout


def test_a_tracker_has_every_trial_with_its_values_and_curve(
    searched: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    from mlflow import MlflowClient

    out = searched[0].parent / "out"
    assert "mlflow" not in searched[1].stderr.lower() and "warning" not in searched[1].stderr.lower()
    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("out").experiment_id])
    tracked = {int(run.data.params["trial_number"]): run for run in runs if "run" not in run.data.params}
    assert {run.data.params["run"] for run in runs if "run" in run.data.params} == {
        path.name for path in (out / "final").iterdir()
    }
    assert all(run.info.run_name == run.data.params["run"] for run in runs if "run" in run.data.params)
    for number, entry in leaderboard(out).items():
        assert tracked[number].info.run_name == f"trial_{number:03d}"
        assert (
            float(tracked[number].data.params["optimizer.learning_rate"]) == entry["values"]["optimizer.learning_rate"]
        )
        curve = [metric.value for metric in client.get_metric_history(tracked[number].info.run_id, "SumR")]
        assert curve == [epoch["SumR"] for epoch in results(out, number)] and len(curve) == entry["epochs"]


def test_the_best_trials_and_the_papers_settings_are_retrained_and_compared(
    searched: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    space, done = searched
    out = space.parent / "out"
    final = json.loads((out / "final.json").read_text())
    found, paper = sorted(final["candidates"], key=lambda candidate: candidate["name"] == "paper")
    assert paper["name"] == "paper" and [run["seed"] for run in paper["runs"]] == [1, 2] == [
        run["seed"] for run in found["runs"]
    ]  # the trials have seed 0
    assert paper["runs"][0]["val_SumR"] != leaderboard(out)[0]["best_sumr"] and "shared_seeds" not in final
    for candidate in (found, paper):
        tests = [run["test"] for run in candidate["runs"]]
        assert candidate["mean"] == pytest.approx(sum(test["SumR"] for test in tests) / 2) and all(
            test["test_reads"] == 1 for test in tests
        )
        for run in candidate["runs"]:
            assert len(json.loads((Path(run["checkpoint"]) / "test.json").read_text())["readings"]) == 1
    comparison = final["comparison"]
    assert (comparison["better"], comparison["than"]) == (found["name"], "paper")
    assert comparison["difference"] == pytest.approx(found["mean"] - paper["mean"])
    assert comparison["interval"][0] <= comparison["difference"] <= comparison["interval"][1]
    assert (comparison["seeds"], comparison["covers"]) == (2, "videos and seeds")
    own = "the configuration's own settings"  # the preset is the demo's
    assert f"{found['name']} against {own}" in done.stdout and "over videos and seeds" in done.stdout
    assert paper["title"] == own and "the paper's" not in done.stdout + done.stderr
    chosen = max(final["candidates"][0]["runs"], key=lambda run: run["val_SumR"])
    assert (
        json.loads((out / "best" / "test.json").read_text())["readings"][0]["SumR"]
        == chosen["test"]["SumR"]
        == last_json(done)["test"]["SumR"]
    )
    printed, metrics = last_json(done)["best"], json.loads((out / "best" / "metrics.json").read_text())
    assert (
        printed["values"] == json.loads((out / "best" / "values.json").read_text()) == final["candidates"][0]["values"]
    )
    assert (printed["seed"], printed["val_SumR"], printed["epoch"]) == (
        chosen["seed"],
        metrics["SumR"],
        metrics["epoch"],
    )
    assert f"best ({final['candidates'][0]['title']}, seed {chosen['seed']})" in done.stdout


def test_a_finished_search_is_left_as_it_is(
    searched: tuple[Path, subprocess.CompletedProcess[str]], call: Call
) -> None:
    space, done = searched
    again = call("tune", "--space", space)
    assert again.returncode == 2 and "already exists; use --resume to continue, or choose another --out" in again.stderr
    changed = call("tune", "--space", space, "--resume", "--set", "sampler.seed=4", "pruning.grace_epochs=3")
    assert changed.returncode == 2
    was = yaml.safe_load(space.read_text())["pruning"]["grace_epochs"]
    for change in ("sampler: seed was 33 and is 4 now", f"pruning: grace_epochs was {was} and is 3 now"):
        assert f"out: cannot resume: {change}\n" in changed.stderr
    with Storage.of(space.parent / "out").lock():
        beside = call("tune", "--space", space, "--resume")
    assert beside.returncode == 2 and f"process {os.getpid()} is using this directory" in beside.stderr
    best = space.parent / "out" / "best"
    shards = yaml.safe_load(space.read_text())["shards"]
    last_json(call("evaluate", "--checkpoint", best, "--shards", shards, "--split", "test", "--json"))
    renamed = space.with_name("renamed.yaml")
    renamed.write_bytes(space.read_bytes())
    own = space.parent / "out" / "runs" / "my notes"
    own.mkdir()
    resumed = last_json(call("tune", "--space", renamed, "--resume", "--json"))
    assert resumed == last_json(done)  # nothing is retrained or deleted, and test is not evaluated again
    own.rmdir()
    assert (
        len(json.loads((best / "test.json").read_text())["readings"]) == 2
    )  # the user's own evaluation stays recorded


def test_an_ablation_retrains_the_best_trial_with_one_of_the_papers_values(
    searched: tuple[Path, subprocess.CompletedProcess[str]], call: Call
) -> None:
    space = searched[0]
    out = space.parent / "out"
    before = {path: path.stat().st_mtime_ns for path in (out / "final").rglob("*") if path.is_file()}
    done = call(
        "tune",
        "--space",
        space,
        "--resume",
        "--set",
        "final.ablate=[model.registers,optimizer.learning_rate]",
        "--json",
    )
    last_json(done)
    assert (
        "skipping ablation: the best trial already uses the configuration's own value of optimizer.learning_rate"
        in done.stderr
    )
    assert before == {path: path.stat().st_mtime_ns for path in before}  # finished runs are left as they are
    final = json.loads((out / "final.json").read_text())
    by_name = {candidate["name"]: candidate for candidate in final["candidates"]}
    found = next(
        candidate for candidate in final["candidates"] if candidate["name"] != "paper" and not candidate["ablated"]
    )
    ablated = by_name[f"{found['name']} with the paper's model.registers"]
    assert ablated["values"] == found["values"] | {"model.registers": 4} != found["values"]
    assert [run["test"]["test_reads"] for run in ablated["runs"]] == [1, 1]
    (comparison,) = final["ablations"]
    assert (comparison["better"], comparison["than"]) == (found["name"], ablated["name"])
    assert comparison["difference"] == pytest.approx(found["mean"] - ablated["mean"])
    assert f"{found['name']} against {ablated['title']}: " in done.stdout
    assert ablated["title"] == f"{found['name']} with the configuration's own model.registers"


def test_training_on_val_too_retrains_what_was_trained_without(
    searched: tuple[Path, subprocess.CompletedProcess[str]], call: Call
) -> None:
    """A finished run is not recognized by its directory's name alone."""
    space = searched[0]
    out = space.parent / "out"
    before = {path: path.stat().st_mtime_ns for path in (out / "final").rglob("*") if path.is_file()}
    done = call("tune", "--space", space, "--resume", "--set", "final.with_val=true", "final.seeds=1", "--json")
    last_json(done)
    assert before == {path: path.stat().st_mtime_ns for path in before}  # nothing is overwritten
    final = json.loads((out / "final.json").read_text())
    for candidate in final["candidates"]:
        (run,) = candidate["runs"]
        experiment = yaml.safe_load((Path(run["checkpoint"]) / "experiment.yaml").read_text())
        assert experiment["training"]["with_val"] and experiment["training"]["seed"] == 1 == run["seed"]
        assert run["directory"].endswith("-seed_1-version_2") and candidate["std"] is None
    assert final["comparison"]["covers"] == "videos" and "over videos only: with one seed" in done.stdout
    again = call("tune", "--space", space, "--resume", "--json")
    last_json(again)
    assert "final stage: " not in again.stderr.replace(
        "final stage: evaluating", ""
    )  # the runs without val are those of before
    runs = [
        run for candidate in json.loads((out / "final.json").read_text())["candidates"] for run in candidate["runs"]
    ]
    assert all("version" not in run["directory"] for run in runs)


@pytest.fixture(scope="module")
def uninterrupted(
    call: Call, demo_shards: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None
) -> tuple[Path, dict[str, Any]]:
    """Run a search without interruption; return its file and the JSON that it printed."""
    ranges = {"model.registers": {"int": [0, 6]}, "optimizer.learning_rate": {"float": [1e-9, 1e-2], "log": True}}
    keys = {
        "trial": {"at_a_time": 1},
        # Of the first four trials, those that are not the best so far are pruned after an epoch.
        "pruning": {"grace_epochs": 1, "reduction_factor": 4},
        "sampler": {"seed": 5, "startup_trials": 3},
    }
    space = write_space(tmp_path_factory.mktemp("alone") / "space.yaml", demo_shards, 7, 4, ranges, **keys)
    return space, last_json(call("tune", "--space", space, "--json"))


@pytest.fixture(params=["disk", "object store"])
def place(request: pytest.FixtureRequest, demo_shards: Path, tmp_path: Path) -> tuple[Storage, Storage]:
    """Shards and the directory of a search. URIs of an object store contain access keys."""
    if request.param == "disk":
        return Storage.of(demo_shards), Storage.of(tmp_path / "out")
    s3: S3 = request.getfixturevalue("s3")
    bucket = Storage.of(s3.uri().replace("s3://", "s3://key:hush-hush@"))
    bucket.upload_directory("shards", demo_shards, last="manifest.json")
    return bucket / "shards", bucket / "out"


def test_a_killed_search_ends_like_an_uninterrupted_one(
    call: Call,
    drive: Callable[..., Driver],
    uninterrupted: tuple[Path, dict[str, Any]],
    place: tuple[Storage, Storage],
    tmp_path: Path,
) -> None:
    """The trials, their pruning and their curves are the same although the driver is killed: once, and on a disk twice.

    For a search in an object store, the killed driver's local files are deleted before the search is resumed.
    """
    (space, expected), (shards, storage) = uninterrupted, place
    command = ("tune", "--space", space, "--shards", shards.location, "--out", storage.location, "--json")
    here = ray.get_runtime_context().gcs_address
    messages, resume = "", []
    for wait in ("1 of 7 trials ended", "3 of 7 trials ended")[storage.directory is None :]:
        driver = drive(*command, *resume, RAY_ADDRESS=here, TMPDIR=str(tmp_path))
        driver.wait_for_output(wait)
        driver.kill()
        messages, resume = messages + "".join(driver.output), ["--resume"]
        for local_copy in tmp_path.glob("dreamprvr-search-*"):
            shutil.rmtree(local_copy)
    done = call(*command, "--resume")
    values = last_json(done)
    assert values["trials"] == 7 and values["pruned"] >= 1
    assert values["test"]["SumR"] == expected["test"]["SumR"]
    assert whole_directories(storage) == whole_directories(Storage.of(space.parent / "out"))

    alone, killed = space.parent, tmp_path
    if storage.directory is None:
        WorkingCopy(storage, tmp_path / "out", print).fetch()
        everything = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()] + [
            (messages + done.stdout + done.stderr).encode()
        ]
        assert not any(b"hush" in text or b"endpoint_override" in text for text in everything)
    one, other = study_trials(alone / "out"), study_trials(killed / "out")
    assert [trial.params for trial in other] == [trial.params for trial in one]
    assert [trial.state.name for trial in other] == [trial.state.name for trial in one]
    assert [trial.intermediate_values for trial in other] == [trial.intermediate_values for trial in one]
    assert [trial.value for trial in other] == [trial.value for trial in one]
    for number in range(7):
        epochs = [epoch["epoch"] for epoch in results(killed / "out", number)]
        assert epochs == list(range(1, len(epochs) + 1)) and len(epochs) == leaderboard(alone / "out")[number]["epochs"]

    refused = call(*command)
    assert refused.returncode == 2 and "already exists; use --resume to continue" in refused.stderr
    assert last_json(call(*command, "--resume")) == values  # and test is not read again
    assert len(json.loads(storage.read_text("best/test.json"))["readings"]) == 1


def test_a_trial_of_two_workers_trains_like_a_trial_of_one(
    command: Call, searched: tuple[Path, subprocess.CompletedProcess[str]], demo_shards: Path, tmp_path: Path, s3: S3
) -> None:
    """The trial of one worker is on a disk, that of two in an object store, whose keys its own Ray inherits."""
    ranges = {
        "model.registers": {"int": [0, 4]},
        "model.hidden_size": 64,
    }  # the first trial has the preset's values, as in the other search
    space = write_space(tmp_path / "space.yaml", demo_shards, 5, 3, ranges, pruning={"enabled": False})
    out = Storage.of(s3.uri()) / "out"
    values = last_json(
        command("tune", "--space", space, "--set", "trial.workers=2", "--trials", 2, "--out", out.location, "--json")
    )
    assert values["finished"] == values["trials"] == 2
    assert {name.split("/")[0] for name in whole_directories(out)} == {"runs", "best"}  # every checkpoint is complete
    WorkingCopy(out, tmp_path / "out", print).fetch()
    one, two = results(searched[0].parent / "out", 0)[-1], results(tmp_path / "out", 0)[-1]
    assert one["epoch"] == two["epoch"] == 3
    names = [name for name in one if name.startswith("loss/")] + ["SumR"]
    assert len(names) == 10
    for name in names:
        assert two[name] == pytest.approx(one[name], rel=1e-4), name


def test_the_error_of_a_lost_trial_is_known_when_ray_tune_gives_it_up(local_ray: None, tmp_path: Path) -> None:
    failures: list[TrialFailure] = []

    class Recorder(FIFOScheduler):
        def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
            failures.append(lost_trial_failure(trial))

    def fail(config: dict[str, Any]) -> None:
        raise RuntimeError("broken")

    ray.tune.Tuner(
        fail,
        tune_config=ray.tune.TuneConfig(scheduler=Recorder()),
        run_config=ray.tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    ).fit()
    assert failures == [TrialFailure("error", "RuntimeError: broken")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "ray job stop"])
def test_an_interrupted_search_says_how_to_continue(
    drive: Callable[..., Driver], demo_shards: Path, tmp_path: Path, local_ray: None, number: signal.Signals
) -> None:
    space = write_space(tmp_path / "space.yaml", demo_shards, 30, 2, {"model.registers": {"int": [0, 6]}})
    driver = drive(
        "tune", "--space", space, RAY_ADDRESS=ray.get_runtime_context().gcs_address
    )  # on a Ray that keeps running
    driver.wait_for_output("1 of 30 trials ended")
    driver.process.send_signal(number)
    _, messages = driver.process.communicate(timeout=120)
    assert driver.process.returncode == 130 and "add --resume" in messages and "Traceback" not in messages
    assert "Tuner.restore" not in messages  # Ray's own advice, which does not apply


def test_a_killed_table_of_ablations_is_resumed_and_each_model_is_tested_once(
    drive: Callable[..., Driver], call: Call, demo_shards: Path, tmp_path: Path, local_ray: None
) -> None:
    rows = {"full": {}, "noise": {"model.diffusion_start": "noise"}}
    values = {
        "config": "demo",
        "shards": str(demo_shards),
        "out": str(tmp_path / "out"),
        "trial": {"at_a_time": 1},
        "space": TINY | {"training.epochs": 1},
        "ablations": {"seeds": 2, "rows": rows},
    }
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    driver = drive("tune", "--space", tmp_path / "table.yaml")
    driver.wait_for_output("ablations: 1 of 2 rows")
    driver.kill(with_its_ray=True)
    record = tmp_path / "out" / "ablations.json"
    (full,) = json.loads(record.read_text())["candidates"]
    assert full["name"] == "full" and [run["directory"] for run in full["runs"]] == ["full-seed_0", "full-seed_1"]
    tests = {path: path.read_bytes() for path in (tmp_path / "out").glob("runs/full-*/checkpoints/*/test.json")}
    done = call("tune", "--space", tmp_path / "table.yaml", "--resume", "--json")
    result = last_json(done)
    assert "ablations: 2 of 4 trainings to do" in done.stderr
    assert [row["name"] for row in result["candidates"]] == ["full", "noise"] and result["candidates"][0] == full
    (comparison,) = result["ablations"]
    assert (comparison["better"], comparison["than"], comparison["seeds"]) == ("noise", "full", 2)
    assert len(tests) == 2 and all(path.read_bytes() == content for path, content in tests.items())
    for path in (tmp_path / "out").glob("runs/*/checkpoints/*/test.json"):
        assert len(json.loads(path.read_text())["readings"]) == 1
    assert "noise | " in done.stdout and "against full (95% interval)" in done.stdout
    assert last_json(call("report", tmp_path / "out", "--json"))["sections"] == ["Results", "Rows", "Reproduce"]
    again = call("tune", "--space", tmp_path / "table.yaml", "--resume", "--json")
    assert last_json(again) == result  # nothing is left to do


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_space_can_be_planned_and_starts_from_its_preset(path: Path, local_ray: None) -> None:
    search = load_search(path)
    assert "at a time" in str(plan_trials(search))
    preset = load_experiment(search.settings.config)
    assert search.experiment == preset
    assert search.paper_setting == {parameter.key: preset.flat()[parameter.key] for parameter in search.parameters}


def test_a_dry_run_prints_the_plan_and_its_cost(call: Call, local_ray: None) -> None:
    path = ROOT / "search_spaces" / "demo.yaml"
    done = call("tune", "--space", path, "--dry-run", "--json")
    values = last_json(done)
    assert all(parameter.key in done.stdout for parameter in load_search(path).parameters)
    assert (
        f"{values['parameters'] / 1e6:.2f} M" in done.stdout
        and "GFLOP" in done.stdout
        and "at a time" in done.stdout
        and "GiB" in done.stdout
    )
    assert values["trials"] == 8 and values["workers"] == 1
    sizes = "feature sizes: video 64, text 48, from the configuration demo, because there are no shards in demo/shards"
    assert sizes in done.stdout
    assert "duration: not known before the first epoch has been measured; the trials have at most" in done.stdout


def test_a_dry_run_of_ablations_prints_the_rows(call: Call, local_ray: None) -> None:
    done = call(
        "tune", "--space", ROOT / "search_spaces" / "ablations.yaml", "--dry-run", "--json", "--set", "config=demo"
    )
    values = last_json(done)
    assert values["trainings"] == 24 and values["seeds"] == [0, 1, 2] and len(values["rows"]) == 8
    assert "no textual perturbation: loss.textual_perturbation = false; " in done.stdout
    assert "no registers: model.registers = 0; 0." in done.stdout and "full: the configuration itself; " in done.stdout


def test_a_dry_run_uses_the_sizes_of_shards_that_exist(call: Call, local_ray: None, demo_shards: Path) -> None:
    path = ROOT / "search_spaces" / "tvr.yaml"
    done = call("tune", "--space", path, "--dry-run", "--shards", demo_shards)
    assert f"feature sizes: video 64, text 48, from the shards in {demo_shards}" in done.stdout


def test_a_choice_that_is_not_valid_for_the_shards_is_reported_before_ray_starts(
    call: Call, demo_shards: Path, tmp_path: Path
) -> None:
    space = write_space(
        tmp_path / "space.yaml", demo_shards, 2, 1, {"model.initialization": {"choice": ["paper", "aligned"]}}
    )
    done = call("tune", "--space", space)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert (
        done.stderr.startswith(
            "error: model.initialization = 'aligned': requires video and query features of one encoder"
        )
        and done.stderr.count("\n") == 1
    )


def test_missing_shards_name_the_command_that_makes_them(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("tune", "--space", ROOT / "search_spaces" / "tvr.yaml", "--trials", 2)
    assert done.returncode == 2
    convert = "python -m dreamprvr_ray.convert --source data --collection tvr --features i3d_resnet --out shards/tvr"
    assert done.stderr == f"error: shards/tvr: no feature shards; create them with: {convert}\n"


def test_a_search_on_several_collections_tests_each(
    call: Call, demo_shards: Path, other_shards: Path, local_ray: None, tmp_path: Path
) -> None:
    space = write_space(
        tmp_path / "space.yaml",
        [demo_shards, other_shards],
        2,
        1,
        {"data.weights.other": {"float": [0.25, 1.0]}},
        final={"seeds": 2},
        sampler={"startup_trials": 9},
    )
    done = call("tune", "--space", space, "--json")
    values, out = last_json(done), tmp_path / "out"
    assert [entry["values"]["data.weights.other"] == 1.0 for _, entry in sorted(leaderboard(out).items())] == [
        True,
        False,
    ]
    (epoch,) = results(out, 0)
    assert epoch["SumR"] == pytest.approx((epoch["SumR/demo"] + epoch["SumR/other"]) / 2)

    final = json.loads((out / "final.json").read_text())
    assert final["collection"] == "demo + other" and {each["collection"] for each in final["by_collection"]} == {
        "demo",
        "other",
    }
    for run in (run for candidate in final["candidates"] for run in candidate["runs"]):
        assert [test["collection"] for test in run["tests"]] == ["demo", "other"]
        assert [test["test_reads"] for test in run["tests"]] == [1, 1]  # each once
        assert run["test"]["SumR"] == pytest.approx(sum(test["SumR"] for test in run["tests"]) / 2)
    differences = [each["difference"] for each in final["by_collection"]]
    assert final["comparison"]["difference"] == pytest.approx(sum(differences) / 2)
    assert [test["collection"] for test in values["tests"]] == ["demo", "other"] and "test of other" in done.stdout
    report = call("report", out)
    assert report.returncode == 0, report.stderr
    page = (out / "report.html").read_text()
    assert "test SumR on demo" in page and "test SumR on other" in page

    again = call("tune", "--space", space, "--resume", "--json")  # nothing is tested a second time
    assert last_json(again)["tests"] == values["tests"]
    turned = call("tune", "--space", space, "--resume", "--shards", other_shards, demo_shards, "--json")
    assert last_json(turned)["tests"] == values["tests"]
    other = call("tune", "--space", space, "--resume", "--shards", demo_shards)
    assert other.returncode == 2 and "data.weights.other: no such collection; the shards are of demo" in other.stderr

"""Whole searches whose trials are simulated: everything but Ray and the training is real."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState
from support.searches import make_search, trial_epoch

from dreamprvr_ray.checkpoints.checkpoint import Checkpoint, TrainedModel
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.data.manifest import Manifest
from dreamprvr_ray.data.shards import Split
from dreamprvr_ray.data.shards_record import ShardsRecord
from dreamprvr_ray.errors import Failure, UserError
from dreamprvr_ray.evaluation import test_record
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.runtime.resources import WorkerGroup
from dreamprvr_ray.search import driver, finalists, session
from dreamprvr_ray.search.epoch_log import EpochLog
from dreamprvr_ray.search.layout import JOURNAL
from dreamprvr_ray.search.messages import TrialRequest
from dreamprvr_ray.search.plan import TrialPlan
from dreamprvr_ray.search.ray_tune import SourceScheduler, SourceSearcher, TrialSource
from dreamprvr_ray.search.results import TrialRecord
from dreamprvr_ray.search.session import SearchSession
from dreamprvr_ray.search.settings import FinalSettings
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.failure import TrialFailure

EPOCHS = 2

Train = Callable[[Path, int, int], TrialFailure | None]  # with a trial's directory, its number and an epoch


@pytest.fixture
def run(demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[TrialRecord]]:
    """Run a search in `tmp_path`/out; `train` simulates an epoch and returns the failure of the trial, if any."""
    train: list[Train] = []

    @contextmanager
    def no_ray(**_: Any) -> Iterator[None]:
        yield

    def run_trials(session: SearchSession, source: TrialSource, runs: str, progress: object) -> None:
        searcher = SourceSearcher(source)
        scheduler = SourceScheduler(source, searcher, EpochLog(session.copy.path / runs, session.gauges))
        trial_id = 0
        while isinstance(config := searcher.suggest(str(trial_id)), dict):
            request = TrialRequest.from_config(config)
            directory = session.copy.path / runs / request.run
            directory.mkdir(parents=True, exist_ok=True)
            experiment = session.search.experiment.with_values(request.values, request.run)
            (directory / "experiment.yaml").write_text(experiment.to_yaml())
            trial: Any = SimpleNamespace(config=config, trial_id=str(trial_id))
            result: dict[str, Any] = {}
            for epoch in range(1, EPOCHS + 1):
                if failure := train[-1](directory, config["trial_number"], epoch):
                    result = failure.to_dict()
                    break
                result = trial_epoch(epoch, 10.0 + config["trial_number"], finished=epoch == EPOCHS).to_dict()
                if scheduler.on_trial_result(None, trial, result) == scheduler.STOP:  # type: ignore[arg-type]
                    break
            scheduler.on_trial_complete(None, trial, result)  # type: ignore[arg-type]
            searcher.on_trial_complete(str(trial_id), result)
            trial_id += 1

    for module, name, replacement in (
        (session, "ray_session", no_ray),
        (session, "plan_trials", lambda *_: TrialPlan(WorkerGroup(1, 1.0, 0.0), at_a_time=1)),
        (session, "check_shared", lambda _: None),
        (driver, "run_trials", run_trials),
        (finalists, "run_trials", run_trials),
        (SearchSession, "compute", lambda session, function, *arguments: function(*arguments)),
        (driver, "_best_trial", lambda session, source, trials: (trials[0], None)),
        (driver, "publish_best_trial", lambda session, trials, best, checkpoint: trials),
    ):
        monkeypatch.setattr(module, name, replacement)

    def run(search: Search, resume: bool = False, epoch: Train = lambda *_: None, log: Any = print) -> Any:
        train.append(epoch)
        return driver.run_search(search, resume=resume, log=log)

    return run


@pytest.fixture
def search(demo_shards: Path, tmp_path: Path) -> Search:
    (tmp_path / "space").mkdir()
    made = make_search(tmp_path / "space", shards=str(demo_shards), trials=4, pruning={"enabled": False})
    return with_settings(made, out=str(tmp_path / "out"))


def with_settings(search: Search, **changes: Any) -> Search:
    return replace(search, settings=search.settings.model_copy(update=changes))


def states(search: Search) -> list[TrialState]:
    return [trial.state for trial in SearchStudy(search, Path(search.settings.out)).trials()]


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of 400 kB, or of the size that the test asks for, mounted on the directory of the search."""
    (tmp_path / "out").mkdir()
    size = getattr(request, "param", "400k")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(tmp_path / "out")]
    if os.getuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("cannot mount a small disk here")
    (tmp_path / "out" / "search").mkdir()
    yield tmp_path / "out" / "search"
    subprocess.run(["umount", "-l", str(tmp_path / "out")], check=True)


def fill(filler: Path) -> None:
    with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)


def write_final_run(run: Path, manifest: Manifest) -> None:
    """Write the checkpoint that the training of a final run leaves, with untrained weights."""
    experiment = load_experiment(run / "experiment.yaml")
    model = DreamPRVR(experiment.model, experiment.data.video_size, experiment.data.text_size)
    result = trial_epoch(EPOCHS, 240.0, finished=True).result
    metrics = result.to_dict() | {"shards": ShardsRecord.of(manifest).to_dict()}
    checkpoint = run / "checkpoints" / f"epoch-{EPOCHS:04d}"
    checkpoint.mkdir(parents=True)
    Checkpoint(model.state_dict(), None, experiment, metrics).write(checkpoint)


def test_a_renamed_search_file_continues_the_search(search: Search, run: Any, tmp_path: Path) -> None:
    """Before, it began another study, and deleted all trials and whatever else was in `runs`."""
    run(search)
    runs = tmp_path / "out" / "runs"
    for name in ("my notes", "trial_000-copy"):
        (runs / name).mkdir()
        (runs / name / "experiment.yaml").write_text("mine")
    (runs / "trial_004").mkdir()
    (runs / "trial_004" / "experiment.yaml").write_text("of another search")
    messages: list[str] = []
    more = with_settings(replace(search, name="renamed"), trials=6)
    assert len(run(more, resume=True, log=messages.append)) == 6
    assert any("resuming the study 'synthetic'" in message for message in messages)
    assert {path.name for path in runs.iterdir()} == {
        *(f"trial_{number:03d}" for number in range(6)),
        "my notes",
        "trial_000-copy",
        "trial_004-lost-1",
    }
    (tmp_path / "out" / JOURNAL).unlink()
    with pytest.raises(UserError, match="holds 6 trials, but the study 'synthetic' has none; nothing was deleted"):
        run(more, resume=True)
    assert len(list(runs.iterdir())) == 9


def test_a_search_continues_with_a_study_that_was_cut_off(search: Search, run: Any, tmp_path: Path) -> None:
    """Before, every resume ended with JSONDecodeError."""
    run(search)
    journal = tmp_path / "out" / JOURNAL
    os.truncate(journal, journal.stat().st_size - 40)
    for trials in (5, 6):
        assert len(run(with_settings(search, trials=trials), resume=True)) == trials
    assert states(search) == [TrialState.COMPLETE] * 6


def test_a_second_driver_is_refused(search: Search, run: Any, tmp_path: Path) -> None:
    refused = pytest.raises(UserError, match=f"process {os.getpid()} is using this directory")
    with Storage.of(search.settings.out).lock(), refused:
        run(search)
    assert not (tmp_path / "out").exists()

    def start_another(*_: object) -> None:
        with pytest.raises(UserError, match=f"process {os.getpid()} is using this directory"):
            run(search, resume=True)

    run(search)
    run(with_settings(search, trials=5), resume=True, epoch=start_another)


def test_a_full_disk_ends_the_search_and_costs_no_trial(search: Search, run: Any, small_disk: Path) -> None:
    """Before, all later trials failed for good, and with room again nothing was left to run."""
    search = with_settings(search, out=str(small_disk))
    filler = small_disk.parent / "filler"

    def fill_once(directory: Path, number: int, epoch: int) -> None:
        if number == 2 and epoch == 1:
            fill(filler)

    with pytest.raises(Failure, match="No space left on device; no trial is lost: fix the cause, then use --resume"):
        run(search, epoch=fill_once)
    filler.unlink()
    assert states(search) == [TrialState.COMPLETE] * 2 + [TrialState.RUNNING]
    assert len(run(search, resume=True)) == 4
    assert states(search) == [TrialState.COMPLETE] * 4


@pytest.mark.parametrize("small_disk", ["16m"], indirect=True)
@pytest.mark.parametrize("moment", ["training", "evaluation", "final record", "publication"])
def test_a_full_disk_in_the_final_stage_loses_nothing(
    moment: str, search: Search, demo_shards: Path, run: Any, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"model.hidden_size": 16, "model.branches": 1, "model.diffusion_steps": 1, "training.epochs": EPOCHS}
    search = replace(search, experiment=search.experiment.with_values(sizes, "the test"))
    search = with_settings(search, out=str(small_disk), trials=2, final=FinalSettings(seeds=2))
    filler, scored, full = small_disk.parent / "filler", list[Storage](), [True]
    rank = test_record.rank_checkpoint

    def fill_at(now: str) -> None:
        if now == moment and full[0]:
            fill(filler)

    def train(directory: Path, number: int, epoch: int) -> None:
        if directory.parent.name == "final":
            if len(list(directory.parent.iterdir())) == 2:
                fill_at("training")
            if epoch == EPOCHS:
                write_final_run(directory, Manifest.open(demo_shards))

    def log(message: str) -> None:
        if message.startswith("final stage: evaluating"):
            fill_at("evaluation")

    def count(trained: TrainedModel, split: Split, storage: Storage, *others: Any) -> Any:
        scored.append(storage)
        return rank(trained, split, storage, *others)

    monkeypatch.setattr(test_record, "rank_checkpoint", count)
    for name, step in (("write_final_record", "final record"), ("publish_final", "publication")):
        real = getattr(driver, name)
        monkeypatch.setattr(driver, name, lambda *arguments, real=real, step=step: (fill_at(step), real(*arguments))[1])
    with pytest.raises(Failure, match=r"No space left on device; no(thing| run) is lost: .* use --resume to continue"):
        run(search, epoch=train, log=log)
    full[0] = False
    filler.unlink()
    outcome = run(search, resume=True, epoch=train, log=log)
    assert len(scored) == len(set(scored)) == 4  # test is read once by each of two settings with two seeds
    records = [json.loads(path.read_text())["readings"] for path in small_disk.glob("final/*/checkpoints/*/test.json")]
    assert len(records) == 4 and all(len(record) == 1 for record in records)
    assert json.loads((small_disk / "final.json").read_text())["candidates"] and outcome.best.exists("metrics.json")
    assert not [path for path in small_disk.rglob(".*") if path.is_file()]
    path = next(small_disk.glob("final/*/checkpoints/*/test_ranks.json"))
    path.write_text("[1, 2]")
    with pytest.raises(UserError, match=f"^{path.parent}: damaged: its recorded ranks on test are 2, not [0-9]+$"):
        run(search, resume=True, epoch=train, log=log)


def test_a_trial_without_room_for_its_checkpoint_ends_the_search(search: Search, run: Any) -> None:
    failure = TrialFailure("storage", "/out: cannot write the checkpoint of epoch 1: No space left on device")
    with pytest.raises(Failure, match="No space left on device; no trial is lost"):
        run(search, epoch=lambda _, number, epoch: failure if number == 1 else None)
    assert states(search) == [TrialState.COMPLETE, TrialState.RUNNING]
    assert len(run(search, resume=True)) == 4 and TrialState.FAIL not in states(search)


def test_trials_that_fail_alike_in_a_row_end_the_search(search: Search, run: Any) -> None:
    """Before, a node without its mount failed every trial placed there within seconds."""

    def fail(directory: Path, number: int, epoch: int) -> TrialFailure:
        return TrialFailure("error", f"{directory.name}: libcuda.so: cannot open shared object file")

    with pytest.raises(Failure, match="3 trials in a row failed for the same reason: trial_002: libcuda"):
        run(search, epoch=fail)
    assert states(search) == [TrialState.RUNNING] * 3
    assert len(run(search, resume=True)) == 4 and TrialState.FAIL not in states(search)


def test_trials_that_fail_between_others_have_failed(search: Search, run: Any) -> None:
    broken = TrialFailure("error", "broken")
    run(search, epoch=lambda _, number, epoch: broken if number != 2 else None)
    assert [state.name for state in states(search)] == ["FAIL", "FAIL", "COMPLETE", "FAIL"]


def test_a_resumed_search_has_the_rest_of_its_hours(search: Search, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, each `--resume` started the whole time again."""
    clock = [1000.0]
    monkeypatch.setattr("dreamprvr_ray.search.study_trials.time.monotonic", lambda: clock[0])

    def work(directory: Path, number: int, epoch: int) -> None:
        clock[0] += 0.3 * 3600

    search = with_settings(search, trials=9, hours=1.0)
    assert len(run(search, epoch=work)) == 2  # of 0.6 hours each
    assert len(run(search, resume=True, epoch=work)) == 2
    more = with_settings(search, hours=1.5)
    assert len(run(more, resume=True, epoch=work)) == 3
    assert states(search) == [TrialState.COMPLETE] * 3


def test_a_trial_that_was_started_is_finished_after_the_hours(
    search: Search, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, one that ran out of memory stayed open, and the search always counted as interrupted."""
    clock, failures = [1000.0], [TrialFailure("out_of_memory", "too large")]
    monkeypatch.setattr("dreamprvr_ray.search.study_trials.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(TrialPlan, "can_have_more", True)

    def fail_once(directory: Path, number: int, epoch: int) -> TrialFailure | None:
        clock[0] += 3600
        return failures.pop() if failures else None

    assert len(run(with_settings(search, hours=0.5), epoch=fail_once)) == 1
    assert states(search) == [TrialState.COMPLETE]

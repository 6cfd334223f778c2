"""How trials pass between Ray Tune and their source, without a running Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from optuna.trial import TrialState
from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from support.searches import make_search, make_session, trial_epoch

from dreamprvr_ray.errors import ObjectStoreError
from dreamprvr_ray.search.messages import TrialEpoch, TrialRequest
from dreamprvr_ray.search.ray_tune import ProgressCallback, ReleaseCallback, SourceSearcher, lost_trial_failure
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.search.study_trials import StudyTrials
from dreamprvr_ray.training.failure import TrialFailure

STORE_FAILURE = "s3://bucket/run: object-store request failed: timeout"


def study_trials(folder: Path) -> StudyTrials:
    search = make_search(folder)
    return StudyTrials(make_session(search), SearchStudy(search, folder / "out"))


def lost_trial(folder: Path, text: str) -> Trial:
    """Return what Ray Tune knows of a trial that it gave up."""
    (folder / "error.txt").write_text(text)
    trial: Any = SimpleNamespace(error_file=str(folder / "error.txt"))
    return trial


def test_a_failing_object_store_ends_the_search_and_fails_no_trial(tmp_path: Path) -> None:
    source = study_trials(tmp_path)
    searcher = SourceSearcher(source)
    searcher.suggest("first")
    searcher.suggest("second")
    failure = TrialFailure.from_error(ObjectStoreError(STORE_FAILURE))
    searcher.on_trial_complete("first", failure.to_dict())
    assert source.store_failure == STORE_FAILURE
    assert searcher.suggest("third") == Searcher.FINISHED
    searcher.on_trial_complete("second", trial_epoch(9, 50.0, finished=True).to_dict())
    assert [trial.state for trial in source.study.trials()] == [TrialState.RUNNING, TrialState.COMPLETE]
    resumed = SourceSearcher(study_trials(tmp_path)).suggest("fourth")
    assert isinstance(resumed, dict) and TrialRequest.from_config(resumed).number == 0


def test_a_trial_that_is_lost_for_another_reason_has_failed(tmp_path: Path) -> None:
    source = study_trials(tmp_path)
    searcher = SourceSearcher(source)
    searcher.suggest("first")
    searcher.lost["first"] = lost_trial_failure(lost_trial(tmp_path, "Failure # 1\nTraceback\nRuntimeError: broken\n"))
    searcher.on_trial_complete("first", error=True)
    assert source.store_failure is None
    assert source.study.trials()[0].state == TrialState.RUNNING  # until another trial shows that the cause is its own
    searcher.suggest("second")
    source.report(TrialRequest.for_trial(1, {}), trial_epoch(1, 50.0))
    assert source.study.trials()[0].state == TrialState.FAIL
    assert source.study.trials()[0].user_attrs["reason"] == "RuntimeError: broken"


def test_a_trial_that_reports_a_failure_has_failed(tmp_path: Path) -> None:
    source = study_trials(tmp_path)
    searcher = SourceSearcher(source)
    searcher.suggest("first")
    searcher.on_trial_complete("first", TrialFailure("diverged", "the loss is nan").to_dict())
    assert source.study.trials()[0].state == TrialState.FAIL
    assert source.study.trials()[0].user_attrs["reason"] == "the loss is nan"


def test_an_interrupted_trial_stays_open(tmp_path: Path) -> None:
    source = study_trials(tmp_path)
    searcher = SourceSearcher(source)
    for trial_id, report in (("first", None), ("second", trial_epoch(1, 50.0).to_dict())):
        searcher.suggest(trial_id)
        searcher.on_trial_complete(trial_id, report)
    assert [trial.state for trial in source.study.trials()] == [TrialState.RUNNING]
    again = searcher.suggest("third")
    assert isinstance(again, dict) and TrialRequest.from_config(again).number == 0


def test_a_trial_that_ran_out_of_memory_runs_once_more_with_the_resources_of_two(tmp_path: Path) -> None:
    search, messages = make_search(tmp_path), list[str]()
    source = StudyTrials(make_session(search, messages, at_a_time=2), SearchStudy(search, tmp_path / "out"))
    searcher, failure = SourceSearcher(source), TrialFailure("out_of_memory", "no memory left").to_dict()
    searcher.suggest("first")
    searcher.on_trial_complete("first", failure)
    again = searcher.suggest("second")
    assert isinstance(again, dict)
    assert (TrialRequest.from_config(again).number, TrialRequest.from_config(again).share) == (0, 2)
    searcher.on_trial_complete("second", failure)
    assert source.study.trials()[0].state == TrialState.FAIL
    assert messages == [
        "trial 0 ran out of memory; retrying with the resources of two trials (no memory left)",
        "trial 0 failed: no memory left",
    ]


def tune_trial(number: int) -> Trial:
    return Trial("stub", stub=True, config=TrialRequest.for_trial(number, {}).to_config(), storage=None)


def test_an_ended_trial_keeps_no_statistics_of_its_results() -> None:
    """Before, the driver's memory grew by 0.15 MB with each trial."""
    release, trial = ReleaseCallback(), tune_trial(0)
    trial.update_last_result(trial_epoch(9, 50.0, finished=True).to_dict() | {"training_iteration": 9})
    before = len(trial.run_metadata.get_json_state())
    release.on_trial_complete(0, [], trial)
    assert trial.metric_analysis
    release.on_step_end(0, [])
    assert not trial.metric_analysis and len(trial.run_metadata.get_json_state()) < before / 3
    assert trial.last_result["SumR"] == 50.0


def test_progress_counts_the_ends_and_shows_the_last_epoch_once() -> None:
    updates: list[tuple[int, list[str]]] = []

    class Display:
        def update(self, ended: int, epochs: Mapping[str, TrialEpoch]) -> None:
            updates.append((ended, list(epochs)))

    progress, trials = ProgressCallback(Display()), [tune_trial(number) for number in range(3)]
    for trial in trials:
        progress.on_trial_result(0, trials, trial, trial_epoch(1, 50.0).to_dict())
    progress.on_trial_complete(0, trials, trials[1])
    progress.on_step_end(0, trials)
    progress.on_trial_error(0, trials, trials[0])
    progress.on_step_end(0, trials)
    progress.on_step_end(0, trials)
    names = ["trial_000", "trial_001", "trial_002"]
    assert updates == [(1, names), (2, [names[0], names[2]]), (2, names[2:])]

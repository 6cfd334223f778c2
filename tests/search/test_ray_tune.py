"""How trials pass between Ray Tune and their source, without a running Ray."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from optuna.trial import TrialState
from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from support.searches import make_search, make_session, trial_epoch

from dreamprvr_ray.errors import ObjectStoreError
from dreamprvr_ray.search.messages import TrialRequest
from dreamprvr_ray.search.ray_tune import SourceSearcher, lost_trial_failure
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

"""What a search does when its surroundings fail."""

from __future__ import annotations

from pathlib import Path

from optuna.trial import TrialState
from support.searches import make_search_settings, result

from dreamprvr_ray.search.ray_tune import NO_MORE, StudySearcher
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.search.trial import TRIAL_NUMBER


def searcher_of(study: SearchStudy) -> StudySearcher:
    return StudySearcher(study, lambda line: None, lambda: None, can_have_more=False)


def test_a_store_that_is_lost_ends_the_search_and_fails_no_trial(tmp_path: Path) -> None:
    search = make_search_settings(tmp_path)
    study = SearchStudy(search, tmp_path / "out")
    searcher = searcher_of(study)
    searcher.suggest("first")
    searcher.suggest("second")
    searcher.errors["first"] = (
        "dreamprvr_ray.errors.ObjectStoreError: s3://bucket/run: object-store request failed: timeout"
    )
    searcher.on_trial_complete("first", error=True)
    assert searcher.store_lost == "s3://bucket/run: object-store request failed: timeout"
    assert searcher.suggest("third") == NO_MORE
    searcher.on_trial_complete("second", result(9, 50.0, finished=True))
    assert [trial.state for trial in study.trials()] == [TrialState.RUNNING, TrialState.COMPLETE]
    again = searcher_of(SearchStudy(search, tmp_path / "out")).suggest("fourth")
    assert isinstance(again, dict) and again[TRIAL_NUMBER] == 0


def test_a_trial_that_was_lost_for_another_reason_has_failed(tmp_path: Path) -> None:
    study = SearchStudy(make_search_settings(tmp_path), tmp_path / "out")
    searcher = searcher_of(study)
    searcher.suggest("first")
    searcher.errors["first"] = "RuntimeError: broken"
    searcher.on_trial_complete("first", error=True)
    assert searcher.store_lost is None and study.trials()[0].state == TrialState.FAIL
    assert study.trials()[0].user_attrs["reason"] == "RuntimeError: broken"

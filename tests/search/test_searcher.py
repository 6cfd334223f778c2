from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from dreamprvr_ray.search.searcher import TRIAL_NUMBER, TruthfulOptunaSearch


@pytest.fixture
def storage(tmp_path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(tmp_path / "optuna.journal")))


def report(epoch: int, sumr: float, best: float, finished: bool) -> dict[str, object]:
    return {"epoch": epoch, "SumR": sumr, "best_SumR": best, "finished": finished, "training_iteration": 1}


def test_optuna_is_told_how_each_trial_ended(storage: JournalStorage) -> None:
    def suggest(trial: optuna.Trial) -> None:
        trial.suggest_int("model.registers", 0, 8)

    searcher = TruthfulOptunaSearch(
        suggest, metric="SumR", mode="max", points_to_evaluate=[{"model.registers": 4}], study_name="study", storage=storage
    )
    assert searcher.suggest("complete") == {"model.registers": 4, TRIAL_NUMBER: 0}  # the paper's setting first
    for trial in ("pruned", "failed", "failed before a report"):
        searcher.suggest(trial)
    best_then_worse = [report(1, 100.0, 100.0, False), report(2, 120.0, 120.0, False), report(3, 110.0, 120.0, True)]
    for result in best_then_worse:
        searcher.on_trial_result("complete", result)
    searcher.on_trial_complete("complete", best_then_worse[-1])
    searcher.on_trial_result("pruned", report(1, 50.0, 50.0, False))
    searcher.on_trial_result("pruned", report(1, 50.0, 50.0, False))  # again, after it was resumed
    searcher.on_trial_complete("pruned", report(2, 40.0, 50.0, False))  # what it was stopped at comes here alone
    searcher.on_trial_result("failed", report(1, 70.0, 70.0, False))
    searcher.on_trial_complete("failed", report(1, 70.0, 70.0, False), error=True)
    searcher.on_trial_complete("failed before a report", None, error=True)

    trials = optuna.load_study(study_name="study", storage=storage).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL]
    assert trials[0].value == 120.0  # the best epoch's, not the last one's
    assert trials[0].intermediate_values == {1: 100.0, 2: 120.0, 3: 110.0}
    assert trials[1].intermediate_values == {1: 50.0, 2: 40.0}

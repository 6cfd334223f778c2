"""What Optuna is told: each trial as it truly ended, with its best val SumR."""

from __future__ import annotations

from typing import Any

from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

TRIAL_NUMBER = "trial_number"  # stands among a trial's values: Optuna's number of it, from 0


class TruthfulOptunaSearch(OptunaSearch):
    """Ray's OptunaSearch, which tells a trial stopped early, or failed after a report, as complete with its last value.

    Here a trial that was stopped early is PRUNED with its intermediate values, a failed one FAIL, and a complete one has the best
    SumR of its epochs. The step of an intermediate value is our own count of finished epochs, which goes on where a trial is resumed.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._told_epochs: dict[str, int] = {}  # by trial: a resumed trial may repeat its last epoch
        super().__init__(*arguments, **options)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        values: dict[str, Any] | None = super().suggest(trial_id)
        return None if values is None else values | {TRIAL_NUMBER: self._ot_trials[trial_id].number}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if self._is_open(trial_id) and result["epoch"] > self._told_epochs.get(trial_id, 0):
            self._told_epochs[trial_id] = result["epoch"]
            self._ot_trials[trial_id].report(result["SumR"], result["epoch"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if not self._is_open(trial_id):
            return
        trial = self._ot_trials[trial_id]
        if result and "SumR" in result:  # the result at which a scheduler stops a trial comes here alone
            self.on_trial_result(trial_id, result)
        self._completed_trials.add(trial_id)
        if error or not result or "SumR" not in result:
            self._ot_study.tell(trial, state=TrialState.FAIL)
        elif result["finished"]:
            self._ot_study.tell(trial, result["best_SumR"], state=TrialState.COMPLETE)
        else:
            self._ot_study.tell(trial, state=TrialState.PRUNED)

    def _is_open(self, trial_id: str) -> bool:
        """Whether the study waits for more of a trial. A killed search may have told its end, which Ray Tune's last snapshot does not know."""
        if trial_id in self._completed_trials:
            return False
        trial = self._ot_study.get_trials(deepcopy=False)[self._ot_trials[trial_id].number]
        return not trial.state.is_finished()

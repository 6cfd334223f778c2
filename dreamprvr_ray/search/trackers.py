"""Experiment trackers that a search reports to besides its own records: `trackers: [mlflow, wandb]` in its file.

Where they are and who may write to them, each takes from its own environment variables (MLFLOW_TRACKING_URI, WANDB_API_KEY, ...), so that no
secret stands in a file. Without MLFLOW_TRACKING_URI, MLflow's store is `mlflow.db` in the search's directory.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from dreamprvr_ray.search.trial import FAILURE

_log = logging.getLogger(__name__)


def trackers(names: Iterable[str], experiment: str, out: Path) -> list[Callback]:
    """Ray Tune's callbacks for the trackers of these names, which are installed."""
    return [TRACKERS[name](experiment, out) for name in names]


def _mlflow(experiment: str, out: Path) -> Callback:
    from ray.air.integrations.mlflow import MLflowLoggerCallback  # imports MLflow, which takes seconds

    class EpochsToMLflow(MLflowLoggerCallback):  # type: ignore[misc]
        """Ray's callback, with our own count of epochs, which goes on where a trial is resumed, and names that MLflow takes.

        A store that does not answer costs the tracker epochs, and not the search.
        """

        def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
            if "epoch" in result:  # and not a failure
                numbers = {
                    name.replace("@", "_at_"): value
                    for name, value in result.items()
                    if isinstance(value, (bool, int, float))
                }
                try:
                    self.mlflow_util.log_metrics(
                        run_id=self._trial_runs[trial], metrics_to_log=numbers, step=result["epoch"]
                    )
                except Exception as error:  # MLflow's own and its clients'
                    _log.warning("MLflow did not take epoch %s of %s: %s", result["epoch"], trial, error)

        def log_trial_end(self, trial: Trial, failed: bool = False) -> None:
            try:
                super().log_trial_end(trial, failed or FAILURE in (trial.last_result or {}))
            except Exception as error:
                _log.warning("MLflow did not take the end of %s: %s", trial, error)

    # Given even where the variable has it: Ray's callback would turn to MLflow's own default.
    where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{out / 'mlflow.db'}"
    return EpochsToMLflow(tracking_uri=where, experiment_name=experiment)


def _wandb(experiment: str, out: Path) -> Callback:
    from ray.air.integrations.wandb import WandbLoggerCallback

    class EpochsToWandb(WandbLoggerCallback):  # type: ignore[misc]
        """Ray's callback, with our own count of epochs: W&B drops a step that is not above the one before."""

        def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
            if "epoch" in result:
                super().log_trial_result(iteration, trial, result | {"training_iteration": result["epoch"]})

    return EpochsToWandb(project=experiment, group=experiment, dir=str(out))


TRACKERS: dict[str, Callable[[str, Path], Callback]] = {"mlflow": _mlflow, "wandb": _wandb}

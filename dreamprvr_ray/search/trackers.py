"""Experiment trackers that a search reports to in addition to its own records: `trackers: [mlflow, wandb]` in its file.

Endpoints and credentials come from each tracker's environment variables (MLFLOW_TRACKING_URI, WANDB_API_KEY, ...), so
that no file holds a secret. Without MLFLOW_TRACKING_URI, MLflow's store is `mlflow.db` in the search's directory.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from dreamprvr_ray.errors import first_line, redact
from dreamprvr_ray.search.messages import TrialEpoch, decode_report
from dreamprvr_ray.training.failure import TrialFailure

_log = logging.getLogger(__name__)


def create_trackers(names: Iterable[str], experiment: str, directory: Path) -> list[Callback]:
    """Return Ray Tune's callbacks for these trackers. `directory` holds their local files."""
    return [TRACKERS[name](experiment, directory) for name in names]


def _mlflow(experiment: str, directory: Path) -> Callback:
    # MLflow and its database library log how they start, and warn of what needs no action.
    warnings.filterwarnings("ignore", module=r"mlflow\.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.air.integrations.mlflow import MLflowLoggerCallback  # imports MLflow, which takes seconds
    for name in ("mlflow", "alembic", "ray.air._internal.mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)

    class EpochsToMLflow(MLflowLoggerCallback):  # type: ignore[misc]
        """Ray's callback with the training's own epoch count as step and with metric names that MLflow accepts.

        The step continues when a trial is resumed. If MLflow does not respond, it misses epochs; the search continues.
        """

        def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
            report = decode_report(result)
            if not isinstance(report, TrialEpoch):
                return
            metrics = {
                name.replace("@", "_at_"): value
                for name, value in result.items()
                if isinstance(value, (bool, int, float))
            }
            epoch = report.result.epoch
            try:
                self.mlflow_util.log_metrics(run_id=self._trial_runs[trial], metrics_to_log=metrics, step=epoch)
            except Exception as error:  # the types of MLflow and of its HTTP clients have no common base
                _log.warning("MLflow did not accept epoch %s of %s: %s", epoch, trial, redact(first_line(error)))

        def log_trial_end(self, trial: Trial, failed: bool = False) -> None:
            has_failed = failed or isinstance(decode_report(trial.last_result), TrialFailure)
            try:
                super().log_trial_end(trial, has_failed)
            except Exception as error:
                _log.warning("MLflow did not accept the end of %s: %s", trial, redact(first_line(error)))

    # Given even if it equals the environment variable: otherwise Ray's callback would use MLflow's own default.
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{directory / 'mlflow.db'}"
    return EpochsToMLflow(tracking_uri=uri, experiment_name=experiment)


def _wandb(experiment: str, directory: Path) -> Callback:
    from ray.air.integrations.wandb import WandbLoggerCallback

    class EpochsToWandb(WandbLoggerCallback):  # type: ignore[misc]
        """Ray's callback with the training's own epoch count as step. W&B drops steps that do not increase."""

        def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
            report = decode_report(result)
            if isinstance(report, TrialEpoch):
                super().log_trial_result(iteration, trial, result | {"training_iteration": report.result.epoch})

    return EpochsToWandb(project=experiment, group=experiment, dir=str(directory))


TRACKERS: dict[str, Callable[[str, Path], Callback]] = {"mlflow": _mlflow, "wandb": _wandb}

"""Running trials with Ray Tune: the searcher, the scheduler, the callbacks and the tuner.

A `TrialSource` decides what runs. It sees typed values only: what Ray Tune delivers is decoded in this file.
"""

from __future__ import annotations

import logging
import tempfile
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import ray.tune
from ray.tune import Callback
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from dreamprvr_ray.errors import first_line
from dreamprvr_ray.runtime.ray_internals.tune import release_results, without_access_keys
from dreamprvr_ray.search.epoch_log import EpochLog
from dreamprvr_ray.search.messages import TrialEpoch, TrialRequest, decode_report
from dreamprvr_ray.search.plan import TrialPlan
from dreamprvr_ray.search.session import SearchSession
from dreamprvr_ray.search.trackers import create_trackers
from dreamprvr_ray.search.trial import TrialJob, run_trial
from dreamprvr_ray.search.working_copy import WorkingCopy
from dreamprvr_ray.storage.lease import LeaseLost
from dreamprvr_ray.training.failure import TrialFailure

MAX_REASON = 200  # characters of a lost trial's error: Ray lists all common causes of a process's death


class TrialSource(Protocol):
    """Where trials come from and where their results go: the study of a search, or the queue of its final runs."""

    def next_request(self) -> TrialRequest | None:
        """Return the next trial to run, or None if there is none now."""

    def is_exhausted(self) -> bool:
        """Return whether no more trials will come, even if running ones end."""

    def report(self, request: TrialRequest, epoch: TrialEpoch) -> bool:
        """Take a finished epoch, and return whether to stop the trial."""

    def finish(self, request: TrialRequest, last: TrialEpoch | None) -> None:
        """Take the end of a trial that was trained, stopped or interrupted; `last` is None if no epoch finished."""

    def fail(self, request: TrialRequest, failure: TrialFailure) -> None:
        """Take the failure of a trial that Ray Tune does not retry."""

    def interrupt(self, reason: str) -> None:
        """Start no more trials, and leave the running ones open: what records them cannot be written."""


class SearchProgressDisplay(Protocol):
    """What shows the progress of the running trials."""

    def update(self, ended: int, epochs: Mapping[str, TrialEpoch]) -> None:
        """Take the number of ended trials and the latest epoch of each running trial, by the name of its run."""


def run_trials(
    session: SearchSession, source: TrialSource, runs: str, progress: SearchProgressDisplay | None = None
) -> None:
    """Run the trials of `source` until it has no more, or until Ctrl-C.

    `runs` is the name of the directory in the search's directory that gets a directory per trial.
    """
    # These would warn that trials left no Ray Tune records, and after Ctrl-C advise to restore from them. A search has
    # its own.
    for name in ("ray.tune.analysis.experiment_analysis", "ray.tune.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    log = create_epoch_log(session, runs)
    searcher = SourceSearcher(source)
    callbacks: list[Callback] = [StartCallback(log), SyncCallback(session.copy, source), ReleaseCallback()]
    if progress is not None:
        callbacks.insert(0, ProgressCallback(progress))
    name, settings = session.storage.name, session.search.settings
    # Ray Tune's own records are deleted afterwards: nothing reads them, and they hold locations with their access keys.
    with (
        tempfile.TemporaryDirectory(prefix="dreamprvr-tune-", ignore_cleanup_errors=True) as folder,
        without_access_keys(),
    ):
        ray.tune.Tuner(
            _trainable(session, runs),
            tune_config=ray.tune.TuneConfig(
                num_samples=-1,  # unlimited: the source decides how many trials there are
                max_concurrent_trials=session.plan.at_a_time,
                reuse_actors=session.plan.group.workers == 1,
                search_alg=searcher,
                scheduler=SourceScheduler(source, searcher, log),
                trial_dirname_creator=run_name,
                trial_name_creator=run_name,  # for experiment trackers
            ),
            run_config=ray.tune.RunConfig(
                name=name,
                storage_path=folder,
                verbose=0,
                callbacks=[*callbacks, *create_trackers(settings.trackers, name, session.copy.path)],
                failure_config=ray.tune.FailureConfig(max_failures=session.search.experiment.training.max_failures),
            ),
        ).fit()


def create_epoch_log(session: SearchSession, runs: str) -> EpochLog:
    """Return the log of the epochs of the runs in the directory `runs`."""
    return EpochLog(session.copy.path / runs, session.gauges, session.log, session.copy)


def run_name(trial: Trial) -> str:
    """Return the name of a trial's run, such as trial_007."""
    return TrialRequest.from_config(trial.config).run


def _trainable(session: SearchSession, runs: str) -> Any:
    """Return Ray Tune's trainable: the function to run, and the resources that it requests for each trial."""
    job = TrialJob(
        experiment=session.search.experiment,
        shards=session.shards,
        group=session.plan.group,
        search_location=session.storage.location,
        runs=runs,
        measure_encoding=session.search.settings.against == "encode_ms",
    )
    trainable = ray.tune.with_parameters(run_trial, job=job)
    trainable.__name__ = f"{session.storage.name}-trial"  # the name of its processes on the dashboard
    plan = session.plan
    return ray.tune.with_resources(trainable, lambda config: trial_resources(TrialRequest.from_config(config), plan))


def trial_resources(request: TrialRequest, plan: TrialPlan) -> ray.tune.PlacementGroupFactory:
    """Return the resources that Ray Tune reserves for a trial's own process."""
    group = plan.group
    if group.workers > 1:
        # The process only waits for the workers of its nested run: it takes no CPU from them. Ray Tune does not accept
        # an empty request.
        return ray.tune.PlacementGroupFactory([{"memory": 2**20}])
    cpus = min(request.share * group.cpus_per_worker, plan.max_cpus)
    gpus = min(1.0, request.share * group.gpus_per_worker)
    return ray.tune.PlacementGroupFactory([{"CPU": cpus, "GPU": gpus}])


class SourceSearcher(Searcher):
    """Passes the trials of a source to Ray Tune, and their ends back to the source."""

    def __init__(self, source: TrialSource) -> None:
        super().__init__()
        self._source = source
        self._requests: dict[str, TrialRequest] = {}  # by Ray Tune's trial id
        self.seconds: dict[str, float] = {}  # of a trial's training, with that before it was resumed
        self.lost: dict[str, TrialFailure] = {}  # why Ray Tune gave a trial up, by its trial id

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        try:
            request = self._source.next_request()
        except (OSError, LeaseLost) as error:  # what records the trials cannot be written
            self._source.interrupt(_describe(error))
            request = None
        if request is None:
            return Searcher.FINISHED if self._source.is_exhausted() else None
        self._requests[trial_id] = request
        config: dict[str, Any] = request.to_config()
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        pass  # the scheduler passes results on, because it can stop a trial

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        request = self._requests.pop(trial_id)
        seconds = self.seconds.pop(trial_id, None)
        report = self.lost.pop(trial_id, TrialFailure("error", "lost")) if error else decode_report(result)
        if isinstance(report, TrialEpoch) and seconds is not None:
            report = replace(report, seconds_total=seconds)
        try:
            if isinstance(report, TrialFailure):
                self._source.fail(request, report)
            else:
                self._source.finish(request, report)
        except (OSError, LeaseLost) as error:
            self._source.interrupt(_describe(error))

    # Nothing is saved with Ray Tune's state: the source's state is the study, or the finished runs.

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        pass


class SourceScheduler(FIFOScheduler):
    """Logs every epoch, passes it on to the source, and stops the trials that the source wants to stop."""

    def __init__(self, source: TrialSource, searcher: SourceSearcher, log: EpochLog) -> None:
        super().__init__()
        self._source, self._searcher, self._log = source, searcher, log

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        decision: str = FIFOScheduler.CONTINUE
        report = decode_report(result)
        if isinstance(report, TrialEpoch):
            request = TrialRequest.from_config(trial.config)
            try:
                report = self._log.add(request, report)
                self._searcher.seconds[trial.trial_id] = report.seconds_total
                if self._source.report(request, report):
                    decision = FIFOScheduler.STOP
            except (OSError, LeaseLost) as error:
                self._source.interrupt(_describe(error))
                decision = FIFOScheduler.STOP
        return decision

    def on_trial_complete(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        self._log.close(TrialRequest.from_config(trial.config).run)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        self._searcher.lost[trial.trial_id] = lost_trial_failure(trial)
        self._log.close(TrialRequest.from_config(trial.config).run)


def _describe(error: Exception) -> str:
    return f"the search cannot be recorded: {first_line(error)}"


def lost_trial_failure(trial: Trial) -> TrialFailure:
    """Return why Ray Tune gave a trial up after its retries: the last line of the error that it recorded."""
    # Not `trial.get_error()`, which reads a copy that does not exist yet when the scheduler is called.
    path = None if trial.error_file is None else Path(trial.error_file)
    text = path.read_text(encoding="utf-8").strip() if path is not None and path.exists() else ""
    reason = text.splitlines()[-1] if text else "unknown"
    return TrialFailure("error", textwrap.shorten(reason, MAX_REASON, placeholder=" ..."))


class StartCallback(Callback):
    """Records that a trial has its resources and runs: its node may start minutes after the trial was suggested."""

    def __init__(self, log: EpochLog) -> None:
        self._log = log

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._log.start(TrialRequest.from_config(trial.config).run)


class SyncCallback(Callback):
    """Uploads the working copy after every epoch, before the trial continues."""

    def __init__(self, copy: WorkingCopy, source: TrialSource) -> None:
        self._copy, self._source = copy, source

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        try:
            self._copy.try_push()
        except LeaseLost as error:
            self._source.interrupt(_describe(error))


class ReleaseCallback(Callback):
    """Frees what Ray Tune keeps of the results of trials that have ended, which nothing reads."""

    def __init__(self) -> None:
        self._ended: list[Trial] = []

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._ended.append(trial)

    on_trial_error = on_trial_complete

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        for trial in self._ended:  # not earlier: other callbacks read the last result
            release_results(trial)
        self._ended = []


class ProgressCallback(Callback):
    """Updates the display of progress."""

    def __init__(self, progress: SearchProgressDisplay) -> None:
        self._progress = progress
        self._latest: dict[str, TrialEpoch] = {}  # by the name of the run
        self._ended: list[str] = []  # runs that have ended since the last update
        self._count = 0  # of all that have ended

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        report = decode_report(result)
        if isinstance(report, TrialEpoch):
            self._latest[TrialRequest.from_config(trial.config).run] = report

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._ended.append(TrialRequest.from_config(trial.config).run)

    on_trial_error = on_trial_complete

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        # Without a look at `trials`, of which there may be ten thousand. The last epoch of a trial is passed on once,
        # although the trial may have ended with it.
        self._count += len(self._ended)
        self._progress.update(self._count, dict(self._latest))
        for run in self._ended:
            self._latest.pop(run, None)
        self._ended = []

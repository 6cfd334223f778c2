"""One run of Ray Tune, for a search's trials and for its final trainings."""

from __future__ import annotations

import logging
import tempfile
from typing import Any

import ray.tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from dreamprvr_ray.search.plan import TrialPlan
from dreamprvr_ray.search.space import Search
from dreamprvr_ray.search.trackers import trackers
from dreamprvr_ray.search.trial import run_name
from dreamprvr_ray.search.working_copy import WorkingCopy


def run_tuner(
    search: Search,
    plan: TrialPlan,
    trainable: Any,
    searcher: Searcher,
    scheduler: TrialScheduler,
    callbacks: list[ray.tune.Callback],
    copy: WorkingCopy,
) -> None:
    """Runs trials until the searcher has no more.

    Ray Tune's own records go with the block: nothing is read from them, and they hold locations with whatever keys stand in these.
    """
    # They warn that trials left none of Ray Tune's records, and when interrupted tell to go on from these: a search keeps better ones.
    for name in ("ray.tune.analysis.experiment_analysis", "ray.tune.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="dreamprvr-tune-", ignore_cleanup_errors=True) as folder:
        ray.tune.Tuner(
            trainable,
            tune_config=ray.tune.TuneConfig(
                num_samples=-1,  # the searcher says when there are enough
                max_concurrent_trials=plan.at_a_time,
                reuse_actors=plan.group.workers == 1,
                search_alg=searcher,
                scheduler=scheduler,
                trial_dirname_creator=lambda trial: run_name(trial.config),
            ),
            run_config=ray.tune.RunConfig(
                name=copy.storage.name,
                storage_path=folder,
                verbose=0,
                callbacks=[*callbacks, *trackers(search.file.trackers, copy.storage.name, copy.path)],
                failure_config=ray.tune.FailureConfig(max_failures=search.experiment.training.max_failures),
            ),
        ).fit()

"""What Ray Tune hands to its trials, and what it keeps of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dreamprvr_ray.runtime.ray_version import unsupported_ray

try:
    from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE
    from ray.tune.experiment import Trial
except ImportError as error:
    raise unsupported_ray() from error


@contextmanager
def without_access_keys() -> Iterator[None]:
    """Keep Ray Tune from handing AWS's access keys to its trials while the block runs.

    Why: it puts them into the trials' runtime environment, which Ray writes into logs that all users can read. Trials
    on this machine inherit them; the nodes of a cluster need their own access. Without it: secrets in logs.
    """
    keys = {name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    ENV_VARS_TO_PROPAGATE.difference_update(keys)
    try:
        yield
    finally:
        ENV_VARS_TO_PROPAGATE.update(keys)


def release_results(trial: Trial) -> None:
    """Free the statistics that Ray Tune keeps of every number that an ended trial reported, and its first message.

    Why: a trial that has ended keeps five numbers and two queues for each of them, and the text of it all; and the
    reference to its process's first message, which it needs no longer, keeps the message and how to get it again in the
    memory of Ray's core. Without it: the driver's memory grows with the number of trials.
    """
    trial._default_result_or_future = None
    metadata = trial.run_metadata
    metadata.metric_analysis, metadata.metric_n_steps = {}, {}

"""Ray Train's trainer without the parts that our runs do not use.

Imports no torch: Ray Train's controller imports this module.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import Any

import ray

from dreamprvr_ray.errors import Failure
from dreamprvr_ray.runtime.ray_internals import is_loopback_only
from dreamprvr_ray.runtime.ray_version import TESTED_RAY, unsupported_ray

try:
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
except ImportError as error:
    raise unsupported_ray() from error


class Trainer(DataParallelTrainer):
    """A trainer for functions that set up torch's process group themselves, with `worker.process_group`.

    Why: the controller of the public `TorchTrainer` imports torch, which delays every start by seconds. So does an
    actor that serves Ray Data and starts just when the workers import torch; `_create_default_callbacks` leaves it out.
    Without it: use `TorchTrainer`; runs start seconds later.
    """

    def _create_default_callbacks(self) -> list[Any]:
        return without_callback("DatasetsCallback", super()._create_default_callbacks())


class CommandTrainer(Trainer):
    """The trainer of a command that waits for this one run.

    Why: on a local Ray that ends with the command, no one has to clean up after a lost controller and no autoscaler can
    add nodes. This saves two processes, each of which imports Ray for seconds while the workers do. Without it: use
    `Trainer`; runs start seconds later, and Ctrl-C ends the command without its last message.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return without_callback("PlacementGroupCleanerCallback", callbacks) if is_loopback_only() else callbacks

    def _initialize_and_run_controller(self, **controller: Any) -> Any:
        if is_loopback_only() and type(controller["scaling_policy"]) is FixedScalingPolicy:
            controller["scaling_policy"] = LocalScalingPolicy(self.scaling_config)
        return super()._initialize_and_run_controller(**controller)

    def _register_sigint_handler(self, controller: Any) -> None:
        # Ray Train's own handler ends the process after the run was aborted. A command has a message to print first.
        def interrupt(*_: object) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C ends the command at once
            with suppress(ray.exceptions.RayActorError):  # aborting ends the controller's process
                ray.get(controller.abort.remote())
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupt)


class LocalScalingPolicy(FixedScalingPolicy):
    """A fixed number of workers on the nodes that exist.

    Why: Ray Train's policy starts an actor that asks the autoscaler for nodes. Without it: one more process for each
    run.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


def without_callback(name: str, callbacks: list[Any]) -> list[Any]:
    """Return the callbacks except the one whose class has this name. Raises `Failure` if there is none."""
    remaining = [callback for callback in callbacks if type(callback).__name__ != name]
    if len(remaining) == len(callbacks):
        raise Failure(
            f"Ray {ray.__version__} does not use {name}, which dreamprvr_ray leaves out of Ray Train's callbacks; "
            f"dreamprvr_ray is tested with Ray {TESTED_RAY}"
        )
    return remaining

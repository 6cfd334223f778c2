"""Ray Train's trainer without what our runs do not need. Imports no torch: Ray Train's controller imports this."""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import Any

import ray
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from dreamprvr_ray.runtime.session import is_our_own


class Trainer(DataParallelTrainer):
    """Ray Train's trainer of no framework, for functions that begin with `workers.connected`.

    A `TorchTrainer` would make the same group, but its controller imports torch: seconds of every start. So does, just when the workers
    import torch, an actor that serves Ray Data; it is left out.
    """

    def _create_default_callbacks(self) -> list[Any]:
        return _without("DatasetsCallback", super()._create_default_callbacks())


class CommandTrainer(Trainer):
    """The trainer of a command that waits for this run alone.

    On a Ray of its own, which ends with it, nobody need clean up after a lost controller, and there is no autoscaler to ask for machines: two
    processes less, each of which imports for seconds while the workers do.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return _without("PlacementGroupCleanerCallback", callbacks) if is_our_own() else callbacks

    def _initialize_and_run_controller(self, **controller: Any) -> Any:
        if is_our_own() and type(controller["scaling_policy"]) is FixedScalingPolicy:
            controller["scaling_policy"] = GivenMachines(self.scaling_config)
        return super()._initialize_and_run_controller(**controller)

    def _register_sigint_handler(self, controller: Any) -> None:
        """As Ray Train's, which would then end the process: a command that was interrupted has something to say."""

        def interrupt(*_: object) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # again: at once
            with suppress(ray.exceptions.RayActorError):  # it ends by this
                ray.get(controller.abort.remote())
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupt)


class GivenMachines(FixedScalingPolicy):
    """A fixed number of workers on machines that are there."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


def _without(name: str, callbacks: list[Any]) -> list[Any]:
    """All callbacks but those of the class of this name."""
    return [callback for callback in callbacks if type(callback).__name__ != name]

"""The ways of running a training step that benchmarks compare."""

from __future__ import annotations

import torch

from dreamprvr_ray.config import Experiment
from dreamprvr_ray.data.batches import Batch
from dreamprvr_ray.device import resolve_precision
from dreamprvr_ray.model.authors_names import authors_names
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.training.gradient_step import GradientPass
from dreamprvr_ray.training.objective import StepRandomness
from dreamprvr_ray.training.optimizer import build_optimizer
from tests.support import reference_model

SCHEDULED_STEPS = 10**6  # of the learning rate; benchmarks run far fewer


class FastSteps:
    """Steps as the training loop runs them. With `compiled`, a GPU runs compiled chains of operations."""

    def __init__(self, experiment: Experiment, device: torch.device, precision: str, compiled: bool = False) -> None:
        torch.manual_seed(0)
        data = experiment.data
        self.model = DreamPRVR(experiment.model, data.video_size, data.text_size, data.trim_frames).to(device).train()
        self.model.compile_chains(compiled)
        self._optimizer = build_optimizer(self.model, experiment.optimizer, SCHEDULED_STEPS)
        self._pass = GradientPass(self.model, experiment.loss, resolve_precision(precision, device))

    def step(self, batch: Batch, randomness: StepRandomness, hard: bool = True) -> None:
        """Update the model by one batch."""
        self._pass(batch, randomness, hard=hard)
        self._optimizer.step()


class LaunchedSteps(FastSteps):
    """Steps on a GPU that are launched kernel by kernel, as for several workers and for rare batch shapes."""

    def step(self, batch: Batch, randomness: StepRandomness, hard: bool = True) -> None:
        """Update the model by one batch."""
        self._pass.launch(batch, randomness, hard=hard)
        self._optimizer.step()


class ReferenceSteps:
    """Steps of the reference model (`tests/support/reference_model.py`), on the CPU in fp32."""

    def __init__(self, experiment: Experiment) -> None:
        torch.manual_seed(0)
        model = DreamPRVR(experiment.model, experiment.data.video_size, experiment.data.text_size)
        trainable = dict(model.named_parameters())
        names = authors_names(experiment.model)
        self._config, self._losses = experiment.model, experiment.loss
        self.weights = {  # by the authors' names
            name: tensor.detach().clone() for name, tensor in reference_model.reference_weights(model).items()
        }
        self._trainable = {
            name: self.weights[name].requires_grad_() for name, place in names.items() if place.name in trainable
        }
        undecayed = {name for name, place in names.items() if place.name in model.undecayed()}
        self._optimizer = reference_model.ReferenceAdam(
            self._trainable, undecayed, experiment.optimizer, SCHEDULED_STEPS
        )

    def step(self, batch: Batch, randomness: StepRandomness, hard: bool = True) -> None:
        """Update the model by one batch."""
        losses = reference_model.reference_losses(self.weights, self._config, self._losses, batch, randomness, hard)
        gradients = torch.autograd.grad(losses["total"], list(self._trainable.values()), allow_unused=True)
        self._optimizer.step(
            {name: gradient for name, gradient in zip(self._trainable, gradients, strict=True) if gradient is not None}
        )

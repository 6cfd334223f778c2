"""Training steps of the fast path and of the plain path.

The plain path follows the specification branch by branch in fp32 (`tests/support/reference_model.py`).
"""

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

STEPS = 10**6  # length of the learning rate schedule


class FastSteps:
    """Training steps as the training loop runs them; `compiled` compiles the operations between products on a GPU."""

    def __init__(self, experiment: Experiment, device: torch.device, precision: str, compiled: bool = False) -> None:
        torch.manual_seed(0)
        data = experiment.data
        self.model = DreamPRVR(experiment.model, data.video_size, data.text_size, data.trim_frames).to(device).train()
        self.model.compile_chains(compiled)
        self._optimizer = build_optimizer(self.model, experiment.optimizer, STEPS)
        self._pass = GradientPass(self.model, experiment.loss, resolve_precision(precision, device))

    def step(self, batch: Batch, randomness: StepRandomness, hard: bool = True) -> None:
        self._pass(batch, randomness, hard=hard)
        self._optimizer.step()


class LaunchedSteps(FastSteps):
    """The same steps on a GPU, launched kernel by kernel and not compiled.

    Several workers, and batches of rare shapes, run in this way.
    """

    def step(self, batch: Batch, randomness: StepRandomness, hard: bool = True) -> None:
        self._pass.launch(batch, randomness, hard=hard)
        self._optimizer.step()


class PlainSteps:
    """Training steps of the plain model on the CPU in fp32, with tensors named as in the authors' checkpoint."""

    def __init__(self, experiment: Experiment) -> None:
        torch.manual_seed(0)
        model = DreamPRVR(experiment.model, experiment.data.video_size, experiment.data.text_size)
        learned = dict(model.named_parameters())
        names = authors_names(experiment.model)
        self._config, self._losses = experiment.model, experiment.loss
        self._weights = {name: tensor.detach().clone() for name, tensor in reference_model.plain_weights(model).items()}
        self._learned = {
            name: self._weights[name].requires_grad_() for name, (ours, _) in names.items() if ours in learned
        }
        undecayed = {name for name, (ours, _) in names.items() if ours in model.undecayed()}
        self._optimizer = reference_model.PlainAdam(self._learned, undecayed, experiment.optimizer, STEPS)

    def step(self, batch: Batch, randomness: StepRandomness, hard: bool = True) -> None:
        losses = reference_model.plain_losses(self._weights, self._config, self._losses, batch, randomness, hard)
        gradients = torch.autograd.grad(losses["total"], list(self._learned.values()), allow_unused=True)
        self._optimizer.step(
            {name: gradient for name, gradient in zip(self._learned, gradients, strict=True) if gradient is not None}
        )

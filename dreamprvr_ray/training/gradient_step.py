"""The forward and backward pass of a training step, on a GPU recorded once for a shape of batch and then replayed.

A step is some thousands of short kernels, and launching them one by one takes the host several times as long as running them. A CUDA graph
launches all of them at once. Recorded or not, a step computes the same numbers: recording changes no kernel and no random draw.

On the CPU, and among several workers, who talk inside the loss, every step is launched anew.

    gradients = GradientPass(model, experiment, videos=150 * 17435, autocast=partial(torch.autocast, "cuda", torch.bfloat16))
    losses = gradients(batch, randomness)
    optimizer.step()
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamprvr_ray.config import QUERY_TOKENS, Experiment
from dreamprvr_ray.data.batches import Batch
from dreamprvr_ray.distributed import Division, Workers
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.training.cost import specified_gflop
from dreamprvr_ray.training.losses import Losses
from dreamprvr_ray.training.objective import StepRandomness, training_losses

RECORDINGS = 64  # shapes of batches that are recorded at most; steps of further shapes are launched anew
FRAME_ROWS = 16  # trimmed frames are padded to a multiple of these
ROWS = 256  # what the recordings read is kept in buffers of multiples of so many rows, shared among them

WORTH_COMPILING = 1e7  # GFLOP of a training: 3,600 steps of the TVR setting, whose kernels take 25 to 30 s to compile and spare 8 ms a step

Shape = tuple[int, int, int, bool]  # videos, their longest one's frames, queries, whether negatives are hard


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    batch: Batch  # what the graph reads
    randomness: StepRandomness
    losses: Losses  # what it writes


class GradientPass:
    """Losses and gradients of the batches of one training of `videos` videos in all (epochs times videos).

    `autocast` makes the context of the forward pass.
    """

    def __init__(
        self,
        model: DreamPRVR,
        experiment: Experiment,
        videos: int,
        autocast: Callable[[], AbstractContextManager[Any]],
        workers: Workers | None = None,
    ) -> None:
        self._model, self._config, self._autocast = model, experiment.loss, autocast
        # By the whole training, not by what is left of it: a resumed one must compute as if it had not stopped.
        model.compile_chains(videos * specified_gflop(experiment) >= WORTH_COMPILING)
        self._workers = workers or Workers()
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._recordings: dict[Shape, _Recording | None] = {}  # None: seen once
        self._buffers: dict[tuple[str | int, ...], Tensor] = {}
        self._gradients: list[Tensor | None] = []
        self._pool: Any = None

    def __call__(
        self, batch: Batch, randomness: StepRandomness, division: Division | None = None, hard: bool = True
    ) -> Losses:
        """The losses; every parameter's `grad` is then this step's gradient (of this worker's part, among several).

        On a GPU both are good until the next call.
        """
        if self._workers.count > 1 or batch.clips.device.type != "cuda":
            return self.launch(batch, randomness, division, hard)
        batch, randomness = self._copied(batch, randomness)
        shape = (*batch.frame_mask.shape, len(batch.tokens), hard)
        if shape not in self._recordings:
            if len(self._recordings) < RECORDINGS:
                self._recordings[shape] = None  # a shape that comes once, as in a run of one epoch, is not worth it
            return self.launch(batch, randomness, None, hard)
        recording = self._recordings[shape]
        if recording is None:
            recording = self._recordings[shape] = self._record(batch, randomness, hard)
        recording.graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return recording.losses

    def launch(
        self, batch: Batch, randomness: StepRandomness, division: Division | None = None, hard: bool = True
    ) -> Losses:
        """The same, launched kernel by kernel."""
        for parameter in self._parameters:
            parameter.grad = None
        losses = self._forward(batch, randomness, division, hard)
        losses.total.backward()
        return _detached(losses)

    def _forward(self, batch: Batch, randomness: StepRandomness, division: Division | None, hard: bool) -> Losses:
        with self._autocast():
            return training_losses(
                self._model,
                batch,
                self._config,
                hard_negatives=hard,
                randomness=randomness,
                workers=self._workers,
                division=division,
            )

    def _record(self, batch: Batch, randomness: StepRandomness, hard: bool) -> _Recording:
        """Launches one step into a graph instead of onto the device; a step of this shape has run before."""
        state = torch.cuda.get_rng_state(batch.clips.device)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Another thread may pin the memory of the next batches meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            losses = self._forward(batch, randomness, None, hard)
            made = torch.autograd.grad(losses.total, self._parameters, allow_unused=True)
            if not self._gradients:
                self._gradients = [
                    None if gradient is None else torch.empty_like(parameter)
                    for gradient, parameter in zip(made, self._parameters, strict=True)
                ]
            # Of one layout, gradients are copied in a few launches; a list with a single transposed one among them is copied one by one.
            alike: list[tuple[Tensor, Tensor]] = []
            for kept, gradient in zip(self._gradients, made, strict=True):
                if kept is not None and gradient is not None:
                    if kept.stride() == gradient.stride():
                        alike.append((kept, gradient))
                    else:
                        kept.copy_(gradient)
            torch._foreach_copy_([kept for kept, _ in alike], [gradient for _, gradient in alike])
            losses = _detached(losses)
        torch.cuda.set_rng_state(state, batch.clips.device)
        return _Recording(graph, batch, randomness, losses)

    def _copied(self, batch: Batch, randomness: StepRandomness) -> tuple[Batch, StepRandomness]:
        """Both where recordings of this shape read them; tokens are padded to the longest query that there can be, trimmed frames a little."""
        device = batch.clips.device
        if missing := -batch.frames.shape[1] % FRAME_ROWS:
            frames, mask = F.pad(batch.frames, (0, 0, 0, missing)), F.pad(batch.frame_mask, (0, missing))
            batch = replace(batch, frames=frames, frame_mask=mask)
        queries, length, size = batch.tokens.shape
        tokens = self._buffer("tokens", queries, batch.tokens, (QUERY_TOKENS, size))
        mask = self._buffer("token_mask", queries, batch.token_mask, (QUERY_TOKENS,))
        for padded, given in ((tokens, batch.tokens), (mask, batch.token_mask)):
            padded[:, :length].copy_(given)
            padded[:, length:].zero_()
        kept = {
            name: self._keep(name, getattr(batch, name), device) for name in ("clips", "frames", "frame_mask", "owner")
        }
        noise = {name: self._keep(name, getattr(randomness, name), device) for name in ("alpha_noise", "beta_noise")}
        draws = {
            field.name: self._keep(field.name, getattr(randomness.negatives, field.name), device)
            for field in fields(randomness.negatives)
        }
        negatives = replace(randomness.negatives, **draws)
        return Batch(**kept, tokens=tokens, token_mask=mask), StepRandomness(**noise, negatives=negatives)

    def _keep(self, name: str, given: Tensor, device: torch.device) -> Tensor:
        kept = self._buffer(name, len(given), given, given.shape[1:], device)
        # From pinned memory a copy does not make the host wait until the device has come so far.
        kept.copy_(given if given.is_cuda or given.is_pinned() else given.pin_memory(), non_blocking=True)
        return kept

    def _buffer(
        self, name: str, rows: int, like: Tensor, shape: tuple[int, ...], device: torch.device | None = None
    ) -> Tensor:
        """The first `rows` rows of a buffer that never moves."""
        capacity = -(-rows // ROWS) * ROWS
        key: tuple[str | int, ...] = (name, capacity, *shape)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(capacity, *shape, dtype=like.dtype, device=device or like.device)
        return self._buffers[key][:rows]


def _detached(losses: Losses) -> Losses:
    # What holds a step's autograd graph ties the parameters' gradients to the stream of that step, and the next step cannot be recorded.
    return Losses(**{field.name: getattr(losses, field.name).detach() for field in fields(losses)})

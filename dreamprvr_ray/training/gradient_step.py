"""The forward and backward pass of a training step. On a GPU it is captured as a CUDA graph, once per shape of batch,
and then replayed.

A step is some thousands of short kernels, and launching them one by one takes the host several times as long as the GPU
needs to run them. A CUDA graph launches all of them at once. A replayed step computes the same numbers as a launched
one: the same kernels run with the same random draws.

On the CPU, and with several workers, which communicate inside the loss, every step is launched kernel by kernel.

    gradients = GradientPass(model, experiment.loss, "bf16")
    losses = gradients(batch, randomness)
    optimizer.step()
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamprvr_ray.config_sections import QUERY_TOKENS, LossConfig
from dreamprvr_ray.data.batches import Batch
from dreamprvr_ray.device import Precision, autocast
from dreamprvr_ray.distributed import Division, Workers
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.training.losses import Losses
from dreamprvr_ray.training.objective import StepRandomness, training_losses

MAX_SHAPES = 64  # captured at most; steps of any other shape are launched kernel by kernel
FRAME_ROWS = 16  # trimmed frames are padded to a multiple of this, so that fewer shapes occur
BUFFER_ROWS = 256  # input buffers grow in steps of this many rows; shapes share them

Shape = tuple[int, int, int, bool]  # videos, frames of the longest one, queries, whether negatives are hard


@dataclass(frozen=True)
class _CapturedStep:
    graph: torch.cuda.CUDAGraph
    batch: Batch  # the buffers that the graph reads
    randomness: StepRandomness
    losses: Losses  # the tensors that it writes


class GradientPass:
    """Computes losses and gradients of one batch after another."""

    def __init__(
        self, model: DreamPRVR, config: LossConfig, precision: Precision, workers: Workers | None = None
    ) -> None:
        self._model, self._config, self._precision = model, config, precision
        self._workers = workers or Workers()
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._captured: dict[Shape, _CapturedStep | None] = {}  # None: seen once, not captured yet
        self._buffers: dict[tuple[str | int, ...], Tensor] = {}
        self._gradients: list[Tensor | None] = []
        self._pool: Any = None

    def __call__(
        self, batch: Batch, randomness: StepRandomness, division: Division | None = None, hard: bool = True
    ) -> Losses:
        """Return the losses and leave the gradient of this step in every parameter's `grad`; with several workers, this
        worker's part of it.

        On a GPU both are valid until the next call. Other arguments are as for `training_losses`; `hard` chooses hard
        negatives.
        """
        other_right = division is not None and division.other_right is not None  # their number differs by batch
        if self._workers.count > 1 or batch.clips.device.type != "cuda" or other_right:
            return self.launch(batch, randomness, division, hard)
        batch, randomness = self.copy_to_buffers(batch, randomness)
        shape = (*batch.frame_mask.shape, len(batch.tokens), hard)
        if shape not in self._captured:
            if len(self._captured) < MAX_SHAPES:
                self._captured[shape] = None  # captured when it comes again: a shape that occurs once is not worth it
            return self.launch(batch, randomness, None, hard)
        step = self._captured[shape]
        if step is None:
            step = self._captured[shape] = self._capture(batch, randomness, hard)
        step.graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return step.losses

    def launch(
        self, batch: Batch, randomness: StepRandomness, division: Division | None = None, hard: bool = True
    ) -> Losses:
        """Compute the same without a graph, launching kernel by kernel."""
        for parameter in self._parameters:
            parameter.grad = None
        losses = self._forward(batch, randomness, division, hard)
        losses.total.backward()
        return _detached(losses)

    def _forward(self, batch: Batch, randomness: StepRandomness, division: Division | None, hard: bool) -> Losses:
        with autocast(batch.clips.device, self._precision):
            return training_losses(
                self._model,
                batch,
                self._config,
                hard_negatives=hard,
                randomness=randomness,
                workers=self._workers,
                division=division,
            )

    def _capture(self, batch: Batch, randomness: StepRandomness, hard: bool) -> _CapturedStep:
        """Capture a step on these buffers. A step of this shape must have been launched before."""
        state = torch.cuda.get_rng_state(batch.clips.device)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Thread-local, because another thread may pin the memory of the next batches at the same time.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            losses = self._forward(batch, randomness, None, hard)
            gradients = torch.autograd.grad(losses.total, self._parameters, allow_unused=True)
            if not self._gradients:
                self._gradients = [
                    None if gradient is None else torch.empty_like(parameter)
                    for gradient, parameter in zip(gradients, self._parameters, strict=True)
                ]
            # Tensors of one layout are copied in a few launches; a single transposed one would make the whole list go
            # one by one.
            same_layout: list[tuple[Tensor, Tensor]] = []
            for target, gradient in zip(self._gradients, gradients, strict=True):
                if target is not None and gradient is not None:
                    if target.stride() == gradient.stride():
                        same_layout.append((target, gradient))
                    else:
                        target.copy_(gradient)
            torch._foreach_copy_([target for target, _ in same_layout], [gradient for _, gradient in same_layout])
            losses = _detached(losses)
        torch.cuda.set_rng_state(state, batch.clips.device)
        return _CapturedStep(graph, batch, randomness, losses)

    def copy_to_buffers(self, batch: Batch, randomness: StepRandomness) -> tuple[Batch, StepRandomness]:
        """Copy both into the buffers that captured steps of this shape read.

        Tokens are padded to the maximum query length, trimmed frames to a multiple of `FRAME_ROWS`.
        """
        device = batch.clips.device
        if missing := -batch.frames.shape[1] % FRAME_ROWS:
            frames, mask = F.pad(batch.frames, (0, 0, 0, missing)), F.pad(batch.frame_mask, (0, missing))
            batch = replace(batch, frames=frames, frame_mask=mask)
        queries, length, size = batch.tokens.shape
        tokens = self._buffer("tokens", queries, batch.tokens, (QUERY_TOKENS, size))
        mask = self._buffer("token_mask", queries, batch.token_mask, (QUERY_TOKENS,))
        for padded, source in ((tokens, batch.tokens), (mask, batch.token_mask)):
            padded[:, :length].copy_(source)
            padded[:, length:].zero_()
        inputs = {
            name: self._copy(name, getattr(batch, name), device) for name in ("clips", "frames", "frame_mask", "owner")
        }
        noise = {
            field.name: self._copy(field.name, source, device)
            for field in fields(randomness)
            if isinstance(source := getattr(randomness, field.name), Tensor)
        }
        draws = {
            field.name: self._copy(field.name, getattr(randomness.negatives, field.name), device)
            for field in fields(randomness.negatives)
        }
        negatives = replace(randomness.negatives, **draws)
        return Batch(**inputs, tokens=tokens, token_mask=mask), StepRandomness(**noise, negatives=negatives)

    def _copy(self, name: str, source: Tensor, device: torch.device) -> Tensor:
        target = self._buffer(name, len(source), source, source.shape[1:], device)
        # Copying from pinned memory does not make the host wait for the device.
        target.copy_(source if source.is_cuda or source.is_pinned() else source.pin_memory(), non_blocking=True)
        return target

    def _buffer(
        self, name: str, rows: int, like: Tensor, shape: tuple[int, ...], device: torch.device | None = None
    ) -> Tensor:
        """Return the first `rows` rows of a buffer that stays at one address."""
        capacity = -(-rows // BUFFER_ROWS) * BUFFER_ROWS
        key: tuple[str | int, ...] = (name, capacity, *shape)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(capacity, *shape, dtype=like.dtype, device=device or like.device)
        return self._buffers[key][:rows]


def _detached(losses: Losses) -> Losses:
    # A step's autograd graph ties the parameters' gradients to the stream of that step: if it stayed alive, the next
    # step could not be captured.
    return Losses(**{field.name: getattr(losses, field.name).detach() for field in fields(losses)})

"""The Adam variant that the paper's model is trained with (docs/model.md, section 4).

It has no bias correction, adds epsilon outside the root, and uses decoupled weight decay with a linear warm-up and
decay of the learning rate. Each part of a parameter (a branch, or the keys' half of a stack) is clipped on its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dreamprvr_ray.config_sections import OptimizerConfig
from dreamprvr_ray.model.dreamprvr import DreamPRVR

MAX_NORM = 1.0  # of each part's gradient
BETAS = (0.9, 0.999)
EPSILON = 1e-6
CACHED_ENTRIES = 2**21  # entries that the CPU updates at a time, so that they stay in its caches


def learning_rate_factor(step: int, total_steps: int, warmup_fraction: float) -> float:
    """Return the factor of the learning rate at step k of S.

    It rises linearly from 0 to 1 over the warm-up, then falls linearly to 0 at k = S.
    """
    progress = step / total_steps
    if progress < warmup_fraction:
        return progress / warmup_fraction
    return max((1 - progress) / (1 - warmup_fraction), 0.0)


class PartwiseAdam:
    """Adam over parameters whose leading axis may stack several parts. Each part's gradient is clipped to norm 1.

    `parts` and `undecayed` come from `DreamPRVR.gradient_parts` and `DreamPRVR.undecayed`. `state_dict()` has the
    layout of torch's optimisers: in every group, `step` is the number of steps taken and `lr` the learning rate of the
    last one; the state of a parameter is its two moments.
    """

    # Not a torch.optim.Optimizer: creating one imports torch's compiler, three seconds of every worker's start.

    def __init__(
        self,
        named_parameters: Mapping[str, nn.Parameter],
        parts: Mapping[str, int],
        undecayed: set[str],
        config: OptimizerConfig,
        total_steps: int,
    ) -> None:
        names = [name for name, parameter in named_parameters.items() if parameter.requires_grad]
        self.param_groups: list[dict[str, Any]] = []
        for without_decay in (False, True):
            members = [name for name in names if (name in undecayed) == without_decay]
            if members:
                group = {
                    "params": [named_parameters[name] for name in members],
                    "parts": [parts[name] for name in members],
                    "weight_decay": 0.0 if without_decay else config.weight_decay,
                    "lr": 0.0,
                    "peak_lr": config.learning_rate,
                    "warmup_fraction": config.warmup_fraction,
                    "total_steps": total_steps,
                    "step": 0,
                }
                self.param_groups.append(group)
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {
            parameter: {"mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
            for parameter in self._parameters()
        }
        self._prepared: dict[int, _Prepared] = {}

    def __getstate__(self) -> dict[str, Any]:  # a copy prepares its own buffers
        return vars(self) | {"_prepared": {}}

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self._parameters():
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return everything that resuming needs, with tensors keyed by the parameter's index."""
        numbers = iter(range(len(self.state)))
        groups = [group | {"params": [next(numbers) for _ in group["params"]]} for group in self.param_groups]
        return {
            "state": {number: dict(self.state[parameter]) for number, parameter in enumerate(self._parameters())},
            "param_groups": groups,
        }

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore a state. Raises ValueError or KeyError if it belongs to other parameters."""
        sizes = [len(group["params"]) for group in self.param_groups]
        if [len(group["params"]) for group in saved["param_groups"]] != sizes:
            raise ValueError(f"the optimiser's groups must have {sizes} parameters")
        for number, parameter in enumerate(self._parameters()):
            for name, moment in self.state[parameter].items():
                saved_moment = saved["state"][number][name]
                if saved_moment.shape != moment.shape:
                    shapes = f"{tuple(moment.shape)}, not {tuple(saved_moment.shape)}"
                    raise ValueError(f"the {name} of parameter {number} must have shape {shapes}")
                moment.copy_(saved_moment)
        for group, saved_group in zip(self.param_groups, saved["param_groups"], strict=True):
            group.update({name: value for name, value in saved_group.items() if name != "params"})

    def moments(self) -> list[Tensor]:
        """Return both moments of every parameter, in the same order in every process."""
        return [moment for parameter in self._parameters() for moment in self.state[parameter].values()]

    def continue_at(self, step: int) -> None:
        """Set the number of steps taken, which determines the learning rate."""
        for group in self.param_groups:
            group["step"] = step

    @torch.no_grad()
    def step(self) -> None:
        """Take one step. Parameters without a gradient are not changed, and no gradient is modified."""
        for place, group in enumerate(self.param_groups):
            factor = learning_rate_factor(group["step"], group["total_steps"], group["warmup_fraction"])
            group["lr"] = group["peak_lr"] * factor
            members = [number for number, parameter in enumerate(group["params"]) if parameter.grad is not None]
            if members:
                prepared = self._prepared.get(place)
                if prepared is None or prepared.members != members:
                    prepared = self._prepared[place] = _prepare(group, members, self.state)
                for chunk in prepared.chunks:
                    chunk.step(group["lr"], group["weight_decay"])
            group["step"] += 1


def build_optimizer(model: DreamPRVR, config: OptimizerConfig, total_steps: int) -> PartwiseAdam:
    """Build the optimiser of a model; `total_steps` is epochs times batches per epoch."""
    return PartwiseAdam(dict(model.named_parameters()), model.gradient_parts(), model.undecayed(), config, total_steps)


@dataclass(frozen=True)
class _Prepared:
    """What all steps of a group share as long as the same `members` have gradients."""

    members: list[int]
    chunks: list[_Chunk]


def _prepare(
    group: Mapping[str, Any], members: list[int], state: Mapping[nn.Parameter, dict[str, Tensor]]
) -> _Prepared:
    # On a GPU few launches matter, so the whole group is one chunk. On a CPU each chunk fits the caches, and only one
    # chunk's gradients are copied at a time.
    sizes = [group["params"][number].numel() for number in members]
    limit = CACHED_ENTRIES if group["params"][members[0]].device.type == "cpu" else math.inf
    chunks: list[list[int]] = [[]]
    filled = 0
    for number, size in zip(members, sizes, strict=True):
        if chunks[-1] and filled + size > limit:
            chunks.append([])
            filled = 0
        chunks[-1].append(number)
        filled += size
    first = group["params"][members[0]]
    needed = max(sum(group["params"][number].numel() for number in chunk) for chunk in chunks)
    buffer = torch.empty(needed, dtype=first.dtype, device=first.device)
    return _Prepared(members, [_Chunk(group, chunk, state, buffer) for chunk in chunks])


class _Chunk:
    """Some parameters of a group, updated together in a few launches.

    The gradients are copied into one buffer (R, C), where every part is a run of whole rows: the norms of all parts are
    then sums of rows, and one product clips them all.
    """

    def __init__(
        self,
        group: Mapping[str, Any],
        members: list[int],
        state: Mapping[nn.Parameter, dict[str, Tensor]],
        buffer: Tensor,
    ) -> None:
        self._parameters: list[nn.Parameter] = [group["params"][number] for number in members]
        parts = [group["parts"][number] for number in members]
        self._means = [state[parameter]["mean"] for parameter in self._parameters]
        self._squares = [state[parameter]["square"] for parameter in self._parameters]
        sizes = [
            parameter.numel() // count
            for parameter, count in zip(self._parameters, parts, strict=True)
            for _ in range(count)
        ]
        columns = math.gcd(*sizes)
        self._rows_of_part = torch.tensor([size // columns for size in sizes], device=buffer.device)
        self._part_of_row = torch.repeat_interleave(self._rows_of_part)
        self._buffer = buffer[: sum(sizes)].view(-1, columns)
        pieces = buffer[: sum(sizes)].split([parameter.numel() for parameter in self._parameters])
        self._gradients = [piece.view_as(parameter) for piece, parameter in zip(pieces, self._parameters, strict=True)]
        # At step infinity, torch's Adam applies no bias correction.
        self._steps = [torch.full((), math.inf, device=buffer.device)] * len(members)

    def step(self, rate: float, decay: float) -> None:
        """Clip every part and update parameters and moments, without waiting for the device."""
        torch._foreach_copy_(
            self._gradients, [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        )
        rows = torch.linalg.vector_norm(self._buffer, dim=1).square_()
        norms = torch.segment_reduce(
            rows, "sum", lengths=self._rows_of_part, unsafe=True
        ).sqrt_()  # `unsafe` skips a check that waits for the device
        self._buffer.mul_((MAX_NORM / (norms + 1e-6)).clamp_(max=1.0)[self._part_of_row].unsqueeze(1))
        torch._fused_adamw_(
            list[Tensor](self._parameters),
            self._gradients,
            self._means,
            self._squares,
            [],
            self._steps,
            lr=rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )

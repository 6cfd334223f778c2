"""Adam as the paper's model is trained with it (model page, section 4).

No bias correction, epsilon outside the root, decoupled weight decay, linear warm-up and decay of the rate. Each part of
a parameter (a branch, or the keys' half of a stack) is clipped by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dreamprvr_ray.config import OptimizerConfig
from dreamprvr_ray.model.dreamprvr import DreamPRVR

MAX_NORM = 1.0  # of each part's gradient
BETAS = (0.9, 0.999)
EPSILON = 1e-6
CACHED = 2**21  # entries whose gradients the CPU clips and applies at a time


def learning_rate_factor(step: int, total_steps: int, warmup_fraction: float) -> float:
    """What the learning rate of step k of S is multiplied by: from 0 up to 1 over the warm-up, then down to 0 at k = S."""
    progress = step / total_steps
    if progress < warmup_fraction:
        return progress / warmup_fraction
    return max((1 - progress) / (1 - warmup_fraction), 0.0)


class PartwiseAdam:
    """Adam over parameters whose leading axis may stack parts, each clipped to norm 1 by itself.

    `parts` and `undecayed` are as `DreamPRVR.gradient_parts` and `.undecayed` give them. `state_dict()` is laid out as
    torch's optimisers' are: in every group, `step` is how many steps were taken and `lr` the rate of the last one; the
    state of a parameter is its two moments.
    """

    # Not a torch.optim.Optimizer: making one imports torch's compiler, three seconds of every worker's start.

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
        for spared in (False, True):
            members = [name for name in names if (name in undecayed) == spared]
            if members:
                group = {
                    "params": [named_parameters[name] for name in members],
                    "parts": [parts[name] for name in members],
                    "weight_decay": 0.0 if spared else config.weight_decay,
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

    def __getstate__(self) -> dict[str, Any]:  # for copies, which prepare anew
        return vars(self) | {"_prepared": {}}

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for parameter in self._parameters():
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Everything that resuming needs, the tensors by the parameters' numbers."""
        numbers = iter(range(len(self.state)))
        groups = [group | {"params": [next(numbers) for _ in group["params"]]} for group in self.param_groups]
        return {
            "state": {number: dict(self.state[parameter]) for number, parameter in enumerate(self._parameters())},
            "param_groups": groups,
        }

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Goes on where `saved` was taken. Raises ValueError or KeyError where it is of other parameters."""
        sizes = [len(group["params"]) for group in self.param_groups]
        if [len(group["params"]) for group in saved["param_groups"]] != sizes:
            raise ValueError(f"the optimiser's groups are not of {sizes} parameters")
        for number, parameter in enumerate(self._parameters()):
            for name, moment in self.state[parameter].items():
                given = saved["state"][number][name]
                if given.shape != moment.shape:
                    raise ValueError(
                        f"parameter {number} has a {name} of shape {tuple(given.shape)}, not {tuple(moment.shape)}"
                    )
                moment.copy_(given)
        for group, given in zip(self.param_groups, saved["param_groups"], strict=True):
            group.update({name: value for name, value in given.items() if name != "params"})

    def moments(self) -> list[Tensor]:
        """Both moments of every parameter, in an order that is the same in every process."""
        return [moment for parameter in self._parameters() for moment in self.state[parameter].values()]

    def continue_at(self, step: int) -> None:
        """Goes on as if `step` steps had been taken."""
        for group in self.param_groups:
            group["step"] = step

    @torch.no_grad()
    def step(self) -> None:
        """One step. Parameters without a gradient are left alone; gradients are left as they are."""
        for place, group in enumerate(self.param_groups):
            factor = learning_rate_factor(group["step"], group["total_steps"], group["warmup_fraction"])
            group["lr"] = group["peak_lr"] * factor
            members = [number for number, parameter in enumerate(group["params"]) if parameter.grad is not None]
            if members:
                prepared = self._prepared.get(place)
                if prepared is None or prepared.members != members:
                    prepared = self._prepared[place] = _prepare(group, members, self.state)
                for part in prepared.parts:
                    part.step(group["lr"], group["weight_decay"])
            group["step"] += 1


def build_optimizer(model: DreamPRVR, config: OptimizerConfig, total_steps: int) -> PartwiseAdam:
    """The optimiser of a model for `total_steps` steps, which are epochs times batches."""
    return PartwiseAdam(dict(model.named_parameters()), model.gradient_parts(), model.undecayed(), config, total_steps)


@dataclass(frozen=True)
class _Prepared:
    """What the steps of a group share in which the same `members` have gradients."""

    members: list[int]
    parts: list[_PreparedPart]


def _prepare(
    group: Mapping[str, Any], members: list[int], state: Mapping[nn.Parameter, dict[str, Tensor]]
) -> _Prepared:
    # A GPU wants few launches; a CPU wants a part of the group in its caches at a time, and a copy of its gradients
    # alone in memory.
    sizes = [group["params"][number].numel() for number in members]
    limit = CACHED if group["params"][members[0]].device.type == "cpu" else math.inf
    parts: list[list[int]] = [[]]
    filled = 0
    for number, size in zip(members, sizes, strict=True):
        if parts[-1] and filled + size > limit:
            parts.append([])
            filled = 0
        parts[-1].append(number)
        filled += size
    first = group["params"][members[0]]
    needed = max(sum(group["params"][number].numel() for number in part) for part in parts)
    buffer = torch.empty(needed, dtype=first.dtype, device=first.device)
    return _Prepared(members, [_PreparedPart(group, part, state, buffer) for part in parts])


class _PreparedPart:
    """Some parameters of a group, whose steps are a few launches and little work of the host.

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
        # Adam of infinitely many steps corrects no bias.
        self._steps = [torch.full((), math.inf, device=buffer.device)] * len(members)

    def step(self, rate: float, decay: float) -> None:
        """Clips every part and updates parameters and moments, without waiting for the device."""
        torch._foreach_copy_(
            self._gradients, [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        )
        rows = torch.linalg.vector_norm(self._buffer, dim=1).square_()
        norms = torch.segment_reduce(
            rows, "sum", lengths=self._rows_of_part, unsafe=True
        ).sqrt_()  # `unsafe` spares a wait
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

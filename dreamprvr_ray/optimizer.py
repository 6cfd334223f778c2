"""Adam as the paper's model is trained with it (model page, section 4).

No bias correction, epsilon outside the root, decoupled weight decay, linear warm-up and decay of the rate. Each part of a parameter (a
branch, or the keys' half of a stack) is clipped by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import overload

import torch
from torch import Tensor, nn

from dreamprvr_ray.config import OptimizerConfig
from dreamprvr_ray.model.dreamprvr import DreamPRVR

MAX_NORM = 1.0  # of each part's gradient
BETAS = (0.9, 0.999)
EPSILON = 1e-6


def learning_rate_factor(step: int, total_steps: int, warmup_fraction: float) -> float:
    """What the learning rate of step k of S is multiplied by: from 0 up to 1 over the warm-up, then down to 0 at k = S."""
    progress = step / total_steps
    if progress < warmup_fraction:
        return progress / warmup_fraction
    return max((1 - progress) / (1 - warmup_fraction), 0.0)


class PartwiseAdam(torch.optim.Optimizer):
    """Adam over parameters whose leading axis may stack parts, each clipped to norm 1 by itself.

    `parts` and `undecayed` are as `DreamPRVR.gradient_parts` and `.undecayed` give them. In every group of `state_dict()`, `step` is how
    many steps were taken and `lr` the rate of the last one; the state of a parameter is its two moments.
    """

    def __init__(
        self,
        named_parameters: Mapping[str, nn.Parameter],
        parts: Mapping[str, int],
        undecayed: set[str],
        config: OptimizerConfig,
        total_steps: int,
    ) -> None:
        names = [name for name, parameter in named_parameters.items() if parameter.requires_grad]
        groups = []
        for spared in (False, True):
            members = [name for name in names if (name in undecayed) == spared]
            groups.append(
                {
                    "params": [named_parameters[name] for name in members],
                    "parts": [parts[name] for name in members],
                    "weight_decay": 0.0 if spared else config.weight_decay,
                }
            )
        defaults = {
            "lr": 0.0,
            "peak_lr": config.learning_rate,
            "warmup_fraction": config.warmup_fraction,
            "total_steps": total_steps,
            "step": 0,
        }
        super().__init__([group for group in groups if group["params"]], defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step. Gradients are clipped in place; parameters without one are left alone."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            factor = learning_rate_factor(group["step"], group["total_steps"], group["warmup_fraction"])
            group["lr"] = group["peak_lr"] * factor
            parameters, gradients, means, squares = [], [], [], []
            for parameter, parts in zip(group["params"], group["parts"], strict=True):
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["mean"] = torch.zeros_like(parameter)
                    state["square"] = torch.zeros_like(parameter)
                parameters += _split(parameter, parts)
                gradients += _split(parameter.grad, parts)
                means += _split(state["mean"], parts)
                squares += _split(state["square"], parts)
            if parameters:
                _adam(parameters, gradients, means, squares, group["lr"], group["weight_decay"])
            group["step"] += 1
        return loss


def build_optimizer(model: DreamPRVR, config: OptimizerConfig, total_steps: int) -> PartwiseAdam:
    """The optimiser of a model for `total_steps` steps, which are epochs times batches."""
    return PartwiseAdam(dict(model.named_parameters()), model.gradient_parts(), model.undecayed(), config, total_steps)


def _split(tensor: Tensor, parts: int) -> list[Tensor]:
    """Views of a tensor's parts."""
    return [tensor] if parts == 1 else list(tensor.unbind(0))


def _adam(parameters: list[Tensor], gradients: list[Tensor], means: list[Tensor], squares: list[Tensor], rate: float, decay: float) -> None:
    """The update of all parts, in a handful of launches and without waiting for the device."""
    norms = torch.stack(torch._foreach_norm(gradients))
    torch._foreach_mul_(gradients, list((MAX_NORM / (norms + 1e-6)).clamp(max=1.0).unbind(0)))
    torch._foreach_lerp_(means, gradients, 1 - BETAS[0])
    torch._foreach_mul_(squares, BETAS[1])
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - BETAS[1])
    divisors = torch._foreach_sqrt(squares)
    torch._foreach_add_(divisors, EPSILON)
    if decay:
        torch._foreach_mul_(parameters, 1 - rate * decay)
    torch._foreach_addcdiv_(parameters, means, divisors, -rate)

"""Chooses between the model's plain methods and their fast implementations. No other file does.

A module's method states the paper's formula. A method that is decorated with one of the operations below runs a faster
implementation of the same formula if one exists: from `cpu` on the CPU, from `compiled` in training on a GPU. In
all other cases, such as evaluation on a GPU, the method itself runs. Values and gradients agree up to rounding; under
dropout, only the random draws differ.

    class InputLayer(Accelerated):
        @kernels.input_layer
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.project(self.dropout(self.norm(x))))

To add a fast implementation, write a function of (plain, module, x, ...) in `cpu` or `compiled` and name it in an
operation here. `plain` is the decorated method; call it for arguments that the fast implementation does not cover.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from torch import Tensor, nn

from dreamprvr_ray.model.kernels import compiled, cpu


class Accelerated(nn.Module):
    """A module with methods that have fast implementations."""

    compiled_chains = False  # whether training on a GPU uses compiled chains; see `set_compiled_chains`


Module = TypeVar("Module", bound=Accelerated)
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True)
class Operation:
    """A decorator for a module's plain method, with the fast implementations of that method (None: not implemented)."""

    cpu: Callable[..., Tensor] | None = None
    compiled: Callable[..., Tensor] | None = None

    def __call__(
        self, plain: Callable[Concatenate[Module, Tensor, Arguments], Tensor]
    ) -> Callable[Concatenate[Module, Tensor, Arguments], Tensor]:
        @wraps(plain)
        def method(module: Module, x: Tensor, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
            fast = self._choose(module, x)
            return plain(module, x, *args, **kwargs) if fast is None else fast(plain, module, x, *args, **kwargs)

        return method

    def _choose(self, module: Accelerated, x: Tensor) -> Callable[..., Tensor] | None:
        """Return the fast implementation to run on `x`, or None for the plain method."""
        if cpu.supports(x):
            return self.cpu
        if module.compiled_chains and module.training and compiled.supports(x):
            return self.compiled
        return None


dropout = Operation(cpu=cpu.dropout)
input_layer = Operation(cpu=cpu.input_layer, compiled=compiled.input_layer)
self_attention = Operation(cpu=cpu.self_attention)  # the whole block: attention and feed-forward network
attention_probabilities = Operation(compiled=compiled.attention_probabilities)
feed_forward = Operation(compiled=compiled.feed_forward)
weighted_sum = Operation(compiled=compiled.weighted_sum)  # of a fusion block's branches
zero_padding = Operation(cpu=cpu.zero_padding)
encode_queries = Operation(cpu=cpu.encode_queries_by_length)


def set_compiled_chains(model: nn.Module, enabled: bool) -> None:
    """Set whether training `model` on a GPU uses compiled chains. Compiling takes about half a minute once."""
    for module in model.modules():
        if isinstance(module, Accelerated):
            module.compiled_chains = enabled

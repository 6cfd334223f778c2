"""Which implementation of an operation runs: the plain method, the CPU's or the compiled one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dreamprvr_ray.model import kernels
from dreamprvr_ray.model.kernels import compiled, cpu

Ran = list[str]


def implementation(name: str) -> Callable[..., Tensor]:
    def run(plain: Callable[..., Tensor], module: Doubling, x: Tensor, ran: Ran, accept: bool = True) -> Tensor:
        if not accept:
            return plain(module, x, ran)
        ran.append(name)
        return 2 * x

    return run


class Doubling(kernels.Accelerated):
    @kernels.Operation(cpu=implementation("cpu"), compiled=implementation("compiled"))
    def forward(self, x: Tensor, ran: Ran, accept: bool = True) -> Tensor:
        """Return 2 x."""
        ran.append("plain")
        return 2 * x

    @kernels.Operation(compiled=implementation("compiled"))
    def without_cpu(self, x: Tensor, ran: Ran) -> Tensor:
        """Return 2 x."""
        ran.append("plain")
        return 2 * x


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("chains_supported", [True, False])
@pytest.mark.parametrize("chains_enabled", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_choice_depends_on_device_mode_and_setting(
    on_cpu: bool, chains_supported: bool, chains_enabled: bool, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "supports", lambda x: on_cpu)
    monkeypatch.setattr(compiled, "supports", lambda x: chains_supported)
    module, x, ran = Doubling().train(training), torch.ones(3), Ran()
    kernels.set_compiled_chains(nn.Sequential(module), chains_enabled)
    assert torch.equal(module(x, ran), 2 * x) and torch.equal(module.without_cpu(x, ran), 2 * x)
    compiles = chains_supported and chains_enabled and training
    otherwise = "compiled" if compiles and not on_cpu else "plain"
    assert ran == ["cpu" if on_cpu else otherwise, otherwise]


def test_an_implementation_can_fall_back_to_the_plain_method() -> None:
    ran = Ran()
    assert torch.equal(Doubling()(torch.ones(3), ran, accept=False), torch.full((3,), 2.0))
    assert ran == ["plain"]


def test_the_cpu_implementations_are_for_real_tensors_on_the_cpu() -> None:
    assert cpu.supports(torch.ones(1))
    assert not cpu.supports(torch.ones(1, device="meta"))
    with FakeTensorMode():
        assert not cpu.supports(torch.ones(1))


def test_compiled_chains_are_off_by_default_and_never_for_the_cpu() -> None:
    assert not Doubling().compiled_chains
    assert not compiled.supports(torch.ones(1, requires_grad=True))


def test_the_plain_method_stays_documented() -> None:
    assert Doubling.forward.__name__ == "forward" and Doubling.forward.__doc__ == "Return 2 x."

"""The precision that `training.precision` stands for on a device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from dreamprvr_ray import device as devices
from dreamprvr_ray.config import AUTO_PRECISION
from dreamprvr_ray.device import autocast, resolve_precision
from dreamprvr_ray.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_follows_the_device(has_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(AUTO_PRECISION, raising=False)
    monkeypatch.setattr(devices, "_supports_bf16", lambda device: has_bf16)
    assert resolve_precision("auto", CPU) == expected


@pytest.mark.parametrize(("capability", "expected"), [(7, "fp32"), (8, "bf16")])
def test_a_gpu_that_would_emulate_bfloat16_computes_in_float32(
    capability: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(AUTO_PRECISION, raising=False)
    for name, value in (
        ("is_available", True),
        ("current_device", 0),
        ("get_device_properties", SimpleNamespace(major=capability)),
        ("_check_bf16_tensor_supported", True),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    assert resolve_precision("auto", torch.device("cuda", 0)) == expected


@pytest.mark.parametrize("has_bf16", [True, False])
@pytest.mark.parametrize("forced", ["fp32", "bf16"])
def test_the_environment_overrides_auto_only(has_bf16: bool, forced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTO_PRECISION, forced)
    monkeypatch.setattr(devices, "_supports_bf16", lambda device: has_bf16)
    assert resolve_precision("auto", CPU) == forced
    assert resolve_precision("fp32", CPU) == "fp32" and resolve_precision("bf16", CPU) == "bf16"


@pytest.mark.parametrize("forced", ["", "auto", "BF16", "float32"])
def test_other_values_of_the_environment_variable_are_rejected(forced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTO_PRECISION, forced)
    with pytest.raises(UserError, match=f"^DREAMPRVR_RAY_AUTO_PRECISION={forced}: must be fp32 or bf16$"):
        resolve_precision("auto", CPU)


def test_autocast_multiplies_in_the_given_precision() -> None:
    matrix = torch.ones(2, 2)
    with autocast(CPU, "bf16"):
        assert (matrix @ matrix).dtype == torch.bfloat16
    with autocast(CPU, "fp32"):
        assert (matrix @ matrix).dtype == torch.float32

"""The compiled chains, run as plain torch. `tests/training/test_gradient_step.py` compares whole training steps."""

from __future__ import annotations

import pytest
import torch

from dreamprvr_ray.model.kernels import compiled


def test_chains_drop_at_the_given_rate_and_preserve_the_mean() -> None:
    torch.manual_seed(0)
    dropped = compiled.rectify_and_drop(torch.ones(2, 500, 40), torch.ones(2, 40), torch.tensor(0.75))
    assert dropped.unique().tolist() == pytest.approx([0.0, 2 / 0.75])
    assert dropped.mean().item() == pytest.approx(2, rel=0.02)

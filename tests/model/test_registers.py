"""The sampler, the noise schedule and the diffusion against their definitions in docs/model.md."""

from __future__ import annotations

import math

import pytest
import torch
from support import reference_model

from dreamprvr_ray.model.registers import (
    DiffusionSchedule,
    SortedPooling,
    TruncatedDiffusion,
    VariationalSampler,
    perturbed_start,
    sinusoid,
    variational_divergences,
)


@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_schedule_is_as_specified(steps: int) -> None:
    levels, betas = reference_model.schedule(steps)
    schedule = DiffusionSchedule.cosine(steps)
    for t in range(steps):
        before = levels[t - 1] if t else 1.0
        assert schedule.start_scale[t] == pytest.approx(math.sqrt(levels[t]))
        assert schedule.noise_scale[t] == pytest.approx(math.sqrt(1 - levels[t]))
        assert schedule.state_inverse[t] == pytest.approx(1 / math.sqrt(levels[t]))
        assert schedule.error_inverse[t] == pytest.approx(math.sqrt(1 / levels[t] - 1))
        assert schedule.start_share[t] == pytest.approx(betas[t] * math.sqrt(before) / (1 - levels[t]))
        assert schedule.state_share[t] == pytest.approx((1 - before) * math.sqrt(1 - betas[t]) / (1 - levels[t]))
        assert schedule.deviation[t] == pytest.approx(math.sqrt(betas[t] * (1 - before) / (1 - levels[t])) if t else 0)
    assert betas[-1] == 0.999 and schedule.deviation[0] == 0


def test_the_last_reverse_step_returns_the_estimate_of_the_start() -> None:
    schedule = DiffusionSchedule.cosine(10)
    assert schedule.start_share[0] == pytest.approx(1) and schedule.state_share[0] == 0


def test_sinusoid() -> None:
    codes = sinusoid(5, 6)
    assert codes.shape == (5, 6)
    for row in range(5):
        for column in range(6):
            angle = row * math.exp(-math.log(10000) * (column - column % 2) / 6)
            expected = math.cos(angle) if column % 2 else math.sin(angle)
            assert codes[row, column].item() == pytest.approx(expected, abs=1e-6)


def test_registers_stay_within_the_clamp_and_move_with_the_condition() -> None:
    torch.manual_seed(0)
    diffusion = TruncatedDiffusion(6, 8, 2)
    mu, condition = torch.nn.functional.normalize(torch.randn(2, 1, 8), dim=2), torch.randn(2, 3, 8)
    registers = diffusion(mu, condition)
    assert registers.shape == (2, 3, 8) and registers.abs().max() <= 1
    assert not torch.allclose(registers[:, 0], registers[:, 1])
    assert torch.equal(registers, diffusion(mu, condition))


def test_denoising_errors_equal_those_computed_step_by_step() -> None:
    torch.manual_seed(0)
    diffusion = TruncatedDiffusion(4, 8, 2)
    mu, condition, start = torch.randn(3, 8), torch.randn(3, 2, 8), torch.randn(3, 2, 8)
    additions = diffusion.denoiser.additions(condition)
    expected = torch.zeros(3)
    for t in range(4):
        x = diffusion.schedule.start_scale[t] * start + diffusion.schedule.noise_scale[t] * mu[:, None]
        expected += (mu[:, None] - diffusion.denoiser(x, [added[t] for added in additions])).square().mean((1, 2)) / 4
    torch.testing.assert_close(diffusion.errors(start, mu[:, None], condition), expected)


def test_sorted_pooling_weights_ranks_and_not_positions() -> None:
    torch.manual_seed(0)
    pooling, tokens = SortedPooling(6), torch.randn(2, 6, 4)
    pooled = pooling(tokens)
    torch.testing.assert_close(pooling(tokens[:, torch.randperm(6)]), pooled)
    state = {f"gpo.gru.{name}": value for name, value in pooling.gru.named_parameters()} | {
        "gpo.linear.weight": pooling.score.weight
    }
    torch.testing.assert_close(pooled, reference_model.sorted_pooling(state, "gpo", tokens))


def test_mu_has_unit_length() -> None:
    torch.manual_seed(0)
    mu, logvar = VariationalSampler(32, 16)(torch.randn(5, 32, 16))
    torch.testing.assert_close(mu.norm(dim=1), torch.ones(5))
    assert logvar.shape == (5, 16)


def test_start_without_noise_is_the_standardised_query_plus_its_mean() -> None:
    torch.manual_seed(0)
    mean = torch.randn(2, 6)
    start = perturbed_start(mean, torch.zeros(2, 3, 6), torch.zeros(2, 3, 6))
    assert start.shape == (2, 3, 6)
    for row in range(2):
        values = mean[row]
        standardised = (values - values.mean()) / torch.sqrt(values.var(correction=0) + 1e-5)
        torch.testing.assert_close(start[row, 1], standardised + values.mean())


def test_noise_is_scaled_by_a_tenth_of_the_rows_unbiased_deviation() -> None:
    torch.manual_seed(0)
    mean, noise = torch.randn(1, 6), torch.randn(2, 1, 2, 6)
    unperturbed = perturbed_start(mean, torch.zeros(1, 2, 6), torch.zeros(1, 2, 6))
    step = 0.1 * mean.std(correction=1)
    standardised = unperturbed - mean.mean()
    torch.testing.assert_close(
        perturbed_start(mean, noise[0], noise[1]), unperturbed + step * noise[0] * standardised + step * noise[1]
    )


def test_start_passes_no_gradient_through_the_rows_mean_and_deviation() -> None:
    """Standardisation removes the row's mean, so a gradient along a constant shift could only come from beta."""
    torch.manual_seed(0)
    mean = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    weights, noise = torch.randn(2, 3, 6, dtype=torch.float64), torch.randn(2, 2, 3, 6, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((perturbed_start(mean, noise[0], noise[1]) * weights).sum(), mean)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    assert gradient.abs().max() > 0.1


def test_variational_divergence_is_the_kl_divergence_from_the_standard_gaussian() -> None:
    mu, logvar = torch.randn(3, 4), torch.randn(3, 4)
    ours = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(ours, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(variational_divergences(mu, logvar), expected)

"""The objective of a batch: the losses on the plain model's encodings, and draws that depend on (seed, step) alone."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from support import reference_model, small_models
from torch import Tensor

from dreamprvr_ray.distributed import Division
from dreamprvr_ray.training.losses import Losses
from dreamprvr_ray.training.objective import StepRandomness, stream_seed, training_losses

SPLIT = small_models.MemorySplit([2, 1, 3, 1])
CONFIG = small_models.loss_config()


def drawn(step: int = 0, seed: int = 7, registers: int = 3) -> StepRandomness:
    return StepRandomness.draw(seed, step, len(SPLIT), len(SPLIT.owner), registers, 16)


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("hard", [False, True])
def test_losses_and_gradients_equal_those_of_the_plain_model(registers: int, hard: bool) -> None:
    model, randomness = small_models.build(registers=registers), drawn(registers=registers)
    fast = training_losses(model, SPLIT.whole(), CONFIG, hard_negatives=hard, randomness=randomness)
    plain = reference_model.reference_losses(
        reference_model.reference_weights(model), model.config, CONFIG, SPLIT.whole(), randomness, hard
    )
    assert {field.name for field in fields(Losses)} == plain.keys()
    for name, value in plain.items():
        # The model computes position codes and diffusion factors in float32 even if its weights are float64, as here.
        torch.testing.assert_close(
            getattr(fast, name), value.double(), rtol=1e-6, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = [torch.autograd.grad(total, parameters) for total in (fast.total, plain["total"])]
    for name, ours, theirs in zip(names, *gradients, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max() + 1e-6, name


def test_without_a_division_the_batch_is_the_global_batch() -> None:
    model, batch = small_models.build(), SPLIT.whole()
    alone = training_losses(model, batch, CONFIG, hard_negatives=False, randomness=drawn())
    divided = training_losses(
        model, batch, CONFIG, hard_negatives=False, randomness=drawn(), division=Division.alone(batch.owner, 4)
    )
    assert torch.equal(alone.total, divided.total)


def test_hard_negatives_change_only_the_triplet_losses() -> None:
    model, batch, config = small_models.build(), SPLIT.whole(), small_models.loss_config(hard_negative_pool=1)
    easy, hard = (
        training_losses(model, batch, config, hard_negatives=hard, randomness=drawn()) for hard in (False, True)
    )
    differ = {field.name for field in fields(Losses) if getattr(easy, field.name) != getattr(hard, field.name)}
    assert differ == {"clip_triplet", "frame_triplet", "total"}
    assert hard.clip_triplet > easy.clip_triplet and hard.frame_triplet > easy.frame_triplet


def tensors(randomness: StepRandomness) -> dict[str, Tensor]:
    return {"alpha": randomness.alpha_noise, "beta": randomness.beta_noise, **vars(randomness.negatives)}


def test_draws_depend_on_seed_and_step_alone() -> None:
    first = tensors(drawn(step=3))
    torch.manual_seed(99)  # the global generator is neither used
    before = torch.get_rng_state()
    again = tensors(drawn(step=3))
    assert torch.equal(torch.get_rng_state(), before)  # nor advanced
    assert all(torch.equal(first[name], again[name]) for name in first)
    for other in (drawn(step=4), drawn(step=3, seed=8)):
        assert not any(torch.equal(first[name], tensors(other)[name]) for name in first)


def test_every_random_choice_is_drawn_separately() -> None:
    values = tensors(StepRandomness.draw(0, 0, 4, 4, 1, 4))
    assert len({tuple(value.flatten().tolist()[:4]) for value in values.values()}) == len(values) == 6


def test_noise_is_standard_normal_for_every_video_register_and_channel() -> None:
    randomness = StepRandomness.draw(0, 0, 50, 1, 8, 16)
    for noise in (randomness.alpha_noise, randomness.beta_noise):
        assert noise.shape == (50, 8, 16)
        assert abs(noise.mean().item()) < 0.05 and abs(noise.std().item() - 1) < 0.05
        assert len(noise.unique()) > 0.99 * noise.numel()


def test_streams_of_random_numbers_are_distinct() -> None:
    seeds = {
        stream_seed(seed, step, stream, rank)
        for seed in (0, 1, 2**31 - 1)
        for step in (0, 1, 2, 10**6)
        for stream in ("loss", "dropout", "weights")
        for rank in (0, 1, 2)
    }
    assert len(seeds) == 3 * 4 * 3 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stream_seed(5, 6, "dropout", 1) == stream_seed(5, 6, "dropout", 1)


def test_the_loss_uses_the_given_draws() -> None:
    model, batch = small_models.build(), SPLIT.whole()
    one, other = drawn(step=0), drawn(step=1)
    losses_of = [
        training_losses(model, batch, CONFIG, hard_negatives=False, randomness=replace(one, negatives=draws.negatives))
        for draws in (one, other)
    ]
    assert losses_of[0].clip_triplet != losses_of[1].clip_triplet
    assert losses_of[0].denoising == losses_of[1].denoising

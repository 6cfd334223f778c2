"""The objective of a batch: the losses on the plain model's encodings, and draws that depend on (seed, step) alone."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

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


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(
    ("changes", "perturbed"),
    [
        ({"registers": 0}, True),
        ({"registers": 3}, True),
        ({"registers": 3}, False),
        ({"registers": 3, "register_source": "pooling"}, True),  # 3 does not divide the 32 clips
        ({"registers": 4, "diffusion_start": "noise"}, True),
        ({"registers": 2, "diffusion_start": "noise", "diffusion_steps": 1}, False),
    ],
    ids=str,
)
def test_losses_and_gradients_equal_those_of_the_plain_model(
    changes: dict[str, Any], perturbed: bool, hard: bool
) -> None:
    model, config = small_models.build(**changes), small_models.loss_config(textual_perturbation=perturbed)
    randomness = StepRandomness.for_model(7, 0, len(SPLIT), len(SPLIT.owner), model.config)
    fast = training_losses(model, SPLIT.whole(), config, hard_negatives=hard, randomness=randomness)
    plain = reference_model.reference_losses(
        reference_model.reference_weights(model), model.config, config, SPLIT.whole(), randomness, hard
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


ABLATIONS = {  # of the model; the loss terms that are 0 in each
    "no registers": ({"registers": 0}, {"variational", "denoising"}),
    "pooling": ({"register_source": "pooling"}, {"variational", "denoising"}),
    "noise": ({"diffusion_start": "noise"}, {"variational"}),
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_what_an_ablated_model_lacks_has_no_loss(name: str) -> None:
    changes, absent = ABLATIONS[name]
    model = small_models.build(**changes)
    randomness = StepRandomness.for_model(7, 0, len(SPLIT), len(SPLIT.owner), model.config)
    losses = training_losses(model, SPLIT.whole(), CONFIG, hard_negatives=True, randomness=randomness)
    assert {name for name, value in vars(losses).items() if value == 0} == absent
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("term", ["diversity", "similarity", "variational", "denoising"])
def test_a_weight_of_zero_takes_a_term_out_of_the_gradient(term: str) -> None:
    model, batch = small_models.build(), SPLIT.whole()

    def gradient(weight: float) -> list[Tensor]:
        weights = CONFIG.weights.model_copy(update={term: weight})
        config = CONFIG.model_copy(update={"weights": weights})
        losses = training_losses(model, batch, config, hard_negatives=True, randomness=drawn())
        return list(torch.autograd.grad(losses.total, list(model.parameters())))

    losses = training_losses(model, batch, CONFIG, hard_negatives=True, randomness=drawn())
    alone = torch.autograd.grad(getattr(losses, term), list(model.parameters()), allow_unused=True)
    without, whole, weight = gradient(0.0), gradient(0.5), 0.5
    for one, other, own in zip(without, whole, alone, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(
            other - one, torch.zeros_like(one) if own is None else weight * own, atol=1e-9, rtol=1e-6
        )


def test_without_perturbation_the_noise_of_the_sampler_has_no_influence() -> None:
    model, batch = small_models.build(), SPLIT.whole()
    for perturbed in (True, False):
        config = small_models.loss_config(textual_perturbation=perturbed)
        one, other = (
            training_losses(model, batch, config, hard_negatives=True, randomness=replace(drawn(), alpha_noise=noise))
            for noise in (drawn().alpha_noise, drawn().alpha_noise + 1)
        )
        assert (one.denoising != other.denoising) == perturbed


def test_the_start_noise_of_a_step_leaves_the_other_draws_as_they_are() -> None:
    model = small_models.model_config(diffusion_start="noise")
    with_start = StepRandomness.for_model(7, 3, len(SPLIT), len(SPLIT.owner), model)
    assert with_start.start_noise is not None and with_start.start_noise.shape == (4, 3, 16)
    assert all(torch.equal(value, tensors(with_start)[name]) for name, value in tensors(drawn(step=3)).items())
    assert drawn().start_noise is None


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

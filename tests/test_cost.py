"""The cost of an experiment: the paper's parameters, and products counted by torch on the plain model."""

from __future__ import annotations

import plain_model
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dreamprvr_ray.config import CLIPS, FRAMES, QUERY_TOKENS, Experiment, load_experiment
from dreamprvr_ray.cost import BYTES_PER_PARAMETER, QUERIES_PER_VIDEO, estimate, specified_gflop
from dreamprvr_ray.model.dreamprvr import DreamPRVR


def counted_gflop(experiment: Experiment) -> float:
    """GFLOP of matrix products that the plain model takes for one video and its queries, forward and backward."""
    config, data = experiment.model, experiment.data
    model = DreamPRVR(config, data.video_size, data.text_size)
    clips, frames = torch.randn(1, CLIPS, data.video_size), torch.randn(1, FRAMES, data.video_size)
    tokens = torch.randn(QUERIES_PER_VIDEO, QUERY_TOKENS, data.text_size)
    weights = plain_model.plain_weights(model)
    with FlopCounterMode(display=False) as counter:
        queries = plain_model.encode_queries(weights, config, tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))
        encoding = plain_model.encode_videos(weights, config, clips, frames, torch.ones(1, FRAMES, dtype=torch.bool))
        loss = queries.sum() + encoding.clip_tokens.sum() + encoding.frame_tokens.sum()
        if encoding.mu is not None and encoding.logvar is not None and encoding.condition is not None:
            start = queries.mean(0).expand_as(encoding.condition)
            loss = loss + encoding.logvar.sum() + plain_model.denoising_errors(weights, config, start, encoding.mu, encoding.condition).sum()
        loss.backward()
    return counter.get_total_flops() / 1e9


# What the plain model computes beyond the specified cost: the positions' GRU and weights (the same for every video), time and condition codes
# of the denoiser, anew in each of its steps, and scores of registers with registers.
@pytest.mark.parametrize(
    ("preset", "overrides", "tolerance"),
    [
        ("tvr", {}, 0.03),
        ("demo", {"model.registers": 0}, 0.005),
        ("demo", {"model.registers": 0, "model.branches": 1, "model.hidden_size": 16, "model.heads": 2}, 0.005),
        ("demo", {"model.registers": 8, "model.diffusion_steps": 10, "model.denoiser_layers": 4, "data.video_size": 512}, 0.03),
    ],
)
def test_the_specified_cost_is_what_torch_counts_on_the_plain_model(preset: str, overrides: dict[str, int], tolerance: float) -> None:
    experiment = load_experiment(preset, overrides)
    assert specified_gflop(experiment) == pytest.approx(counted_gflop(experiment), rel=tolerance)


def test_tvr_costs_about_22_gflop_a_video() -> None:
    assert 21.5 < specified_gflop(load_experiment("tvr")) < 22.5


@pytest.mark.parametrize(("preset", "millions"), [("tvr", 37.62), ("activitynet", 36.14), ("charades", 36.14)])
def test_parameters_are_the_papers(preset: str, millions: float) -> None:
    assert round(estimate(load_experiment(preset)).parameters / 1e6, 2) == millions


def test_nothing_is_computed() -> None:
    huge = load_experiment("tvr", {"training.batch_videos": 100_000})  # inputs of 200 terabytes
    before = torch.get_rng_state()
    cost = estimate(huge)
    assert torch.equal(torch.get_rng_state(), before)
    assert cost.memory > 1e15
    # The larger batch's scores of all queries with all videos are no part of the specified cost.
    assert cost.gflop_per_video == specified_gflop(load_experiment("tvr")) < cost.executed_gflop_per_video


def test_what_is_computed_is_less_than_what_is_specified() -> None:
    cost = estimate(load_experiment("tvr"))
    assert 0.5 * cost.gflop_per_video < cost.executed_gflop_per_video < cost.gflop_per_video
    assert cost.memory > cost.parameters * BYTES_PER_PARAMETER
    assert cost.named() == {
        "parameters": cost.parameters,
        "gflop_per_video": round(cost.gflop_per_video, 2),
        "executed_gflop_per_video": round(cost.executed_gflop_per_video, 2),
        "memory_gib": round(cost.memory / 2**30, 2),
    }
    assert cost.lines()[0] == "parameters: 37.62 M" and len(cost.lines()) == 3


def test_memory_grows_with_the_batch_and_without_registers_it_works() -> None:
    small, large = (estimate(load_experiment("demo", {"training.batch_videos": videos, "model.registers": 0})) for videos in (8, 16))
    assert 1.7 < (large.memory - small.parameters * 16) / (small.memory - small.parameters * 16) < 2.3
    assert small.parameters < estimate(load_experiment("demo")).parameters

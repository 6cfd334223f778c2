"""The cost of an experiment: the paper's number of parameters, and the matrix products of the plain model."""

from __future__ import annotations

import pytest
import torch
from support import reference_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.config_sections import CLIPS, FRAMES, QUERY_TOKENS
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.training.cost import BYTES_PER_PARAMETER, Cost, estimate
from dreamprvr_ray.training.flops import QUERIES_PER_VIDEO, encoding_gflop, specified_gflop


def counted_gflop(experiment: Experiment) -> float:
    """Count the GFLOP of the plain model's matrix products for one video and its queries, forward and backward."""
    config, data = experiment.model, experiment.data
    model = DreamPRVR(config, data.video_size, data.text_size)
    clips, frames = torch.randn(1, CLIPS, data.video_size), torch.randn(1, FRAMES, data.video_size)
    tokens = torch.randn(QUERIES_PER_VIDEO, QUERY_TOKENS, data.text_size)
    weights = reference_model.reference_weights(model)
    with FlopCounterMode(display=False) as counter:
        queries = reference_model.encode_queries(
            weights, config, tokens, torch.ones(tokens.shape[:2], dtype=torch.bool)
        )
        encoding = reference_model.encode_videos(
            weights,
            config,
            clips,
            frames,
            torch.ones(1, FRAMES, dtype=torch.bool),
            torch.randn(1, config.registers, config.hidden_size),
        )
        loss = queries.sum() + encoding.clip_tokens.sum() + encoding.frame_tokens.sum()
        if encoding.logvar is not None:
            loss = loss + encoding.logvar.sum()
        if encoding.noise is not None and encoding.condition is not None:
            start = queries.mean(0).expand_as(encoding.condition)
            loss = (
                loss
                + reference_model.denoising_errors(weights, config, start, encoding.noise, encoding.condition).sum()
            )
        loss.backward()
    return counter.get_total_flops() / 1e9


def counted_encoding_gflop(experiment: Experiment) -> tuple[float, float]:
    """Count the GFLOP of the plain model's matrix products that encode one video and one query."""
    config, data = experiment.model, experiment.data
    weights = reference_model.reference_weights(DreamPRVR(config, data.video_size, data.text_size))
    clips, frames = torch.randn(1, CLIPS, data.video_size), torch.randn(1, FRAMES, data.video_size)
    tokens = torch.randn(1, QUERY_TOKENS, data.text_size)
    mask, noise = torch.ones(1, FRAMES, dtype=torch.bool), torch.randn(1, config.registers, config.hidden_size)
    with torch.no_grad(), FlopCounterMode(display=False) as video:
        reference_model.encode_videos(weights, config, clips, frames, mask, noise)
    with torch.no_grad(), FlopCounterMode(display=False) as query:
        reference_model.encode_queries(weights, config, tokens, torch.ones(1, QUERY_TOKENS, dtype=torch.bool))
    return video.get_total_flops() / 1e9, query.get_total_flops() / 1e9


def time_layers_gflop(experiment: Experiment) -> float:
    """Return the difference: the formula counts the denoiser's time layers per register, the plain model runs them once
    per step (1.3% of the total for TVR)."""
    model = experiment.model
    return 3 * 2 * 2 * model.diffusion_steps * model.registers * model.denoiser_layers * model.hidden_size**2 / 1e9


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("tvr", {"model.hidden_size": 192}),
        ("demo", {"model.registers": 0}),
        ("demo", {"model.register_source": "pooling"}),
        ("demo", {"model.diffusion_start": "noise"}),
        ("demo", {"model.registers": 0, "model.branches": 1, "model.hidden_size": 16, "model.heads": 2}),
        (
            "demo",
            {"model.registers": 8, "model.diffusion_steps": 10, "model.denoiser_layers": 4, "data.video_size": 512},
        ),
    ],
)
def test_the_formula_matches_what_torch_counts_on_the_plain_model(preset: str, overrides: dict[str, int]) -> None:
    experiment = load_experiment(preset, overrides)
    counted = counted_gflop(experiment)
    assert specified_gflop(experiment) == pytest.approx(counted + time_layers_gflop(experiment), rel=0.01)
    assert specified_gflop(experiment) == pytest.approx(counted, rel=0.03)
    assert encoding_gflop(experiment) == pytest.approx(counted_encoding_gflop(experiment), rel=0.03)


@pytest.mark.parametrize(("preset", "gflop"), [("tvr", 21.8), ("activitynet", 19.6), ("charades", 20.4)])
def test_cost_per_video_of_the_papers_settings(preset: str, gflop: float) -> None:
    assert specified_gflop(load_experiment(preset)) == pytest.approx(gflop, abs=0.1)


@pytest.fixture(scope="module")
def tvr() -> Cost:
    return estimate(load_experiment("tvr"))


def test_the_number_of_parameters_is_the_papers(tvr: Cost) -> None:
    assert round(tvr.parameters / 1e6, 2) == 37.62
    for preset in ("activitynet", "charades"):
        experiment = load_experiment(preset)
        with FakeTensorMode():
            model = DreamPRVR(experiment.model, experiment.data.video_size, experiment.data.text_size)
        assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == 36.14


def test_less_is_executed_than_specified(tvr: Cost) -> None:
    assert tvr.gflop_per_video == specified_gflop(load_experiment("tvr"))
    assert 0.5 * tvr.gflop_per_video < tvr.executed_gflop_per_video < tvr.gflop_per_video
    assert tvr.memory > tvr.parameters * BYTES_PER_PARAMETER
    assert tvr.to_dict() == {
        "parameters": tvr.parameters,
        "gflop_per_video": round(tvr.gflop_per_video, 2),
        "executed_gflop_per_video": round(tvr.executed_gflop_per_video, 2),
        "memory_gib": round(tvr.memory / 2**30, 2),
    }
    assert tvr.lines()[0] == "parameters: 37.62 M" and len(tvr.lines()) == 3


def test_estimating_computes_nothing() -> None:
    before = torch.get_rng_state()
    small = {"model.registers": 0, "model.branches": 1}
    cost = estimate(
        load_experiment("demo", {"training.batch_videos": 80_000} | small)
    )  # more memory than any machine has
    assert torch.equal(torch.get_rng_state(), before)
    assert cost.memory > 1e12
    assert cost.gflop_per_video == specified_gflop(load_experiment("demo", small))


def test_a_hidden_size_of_zero_costs_as_that_of_the_features() -> None:
    sizes = {"data.video_size": 64, "data.text_size": 64}
    zero, same = (load_experiment("one_encoder", sizes | {"model.hidden_size": size}) for size in (0, 64))
    assert specified_gflop(zero) == specified_gflop(same) > 0

"""The cost of encoding: its size and memory by hand, its times on small models, and the lines that people read."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from dreamprvr_ray.checkpoints.checkpoint import TrainedModel
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.training.encoding_cost import BATCH, EncodingCost, measure_encoding_cost, time_queries, time_videos

SIZES = {"data.video_size": 24, "data.text_size": 16, "model.hidden_size": 32, "model.heads": 2, "model.branches": 1}


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    experiment = load_experiment("demo", SIZES | {"model.registers": 2, "model.diffusion_steps": 2})
    return TrainedModel(DreamPRVR(experiment.model, 24, 16).eval(), experiment, {})


def test_cost_of_a_small_model(trained: TrainedModel) -> None:
    state = torch.get_rng_state()
    cost = measure_encoding_cost(trained, np.array([128, 18, 1]))
    assert torch.equal(torch.get_rng_state(), state)
    assert cost.parameters == sum(parameter.numel() for parameter in trained.model.parameters())
    assert cost.tokens_per_video == 32 + 49
    assert cost.bytes_per_video == {"fp32": 81 * 32 * 4, "fp16": 81 * 32 * 2}
    assert measure_encoding_cost(trained).bytes_per_video["fp32"] == (32 + 128) * 32 * 4
    mixed = replace(trained, experiment=trained.experiment.with_values({"evaluation.encoder_weight": 0.3}))
    cost_with_features = measure_encoding_cost(mixed)
    assert cost_with_features.bytes_per_video["fp16"] == ((32 + 128) * 32 + (32 + 128 + 1) * 24) * 2
    assert "160 tokens and its features, " in cost_with_features.lines()[-1]
    assert 0 < cost.ms_per_query < cost.ms_per_video and 0 < cost.gflop_per_query < cost.gflop_per_video
    assert cost.device and json.loads(json.dumps(cost.to_dict()))["batch"] == BATCH


def test_each_batch_is_timed(trained: TrainedModel) -> None:
    model = trained.model.cpu()
    for times in (time_videos(model), time_queries(model)):
        assert len(times) == 5 and min(times) > 0


def test_lines_for_people() -> None:
    sizes = {"fp32": 245760.0, "fp16": 122880.0}
    cost = EncodingCost(37_620_000, 3.14159, 0.0512, 12.345, 0.2345, 64, "NVIDIA H100", 160.0, sizes)
    assert cost.lines() == [
        "parameters: 37.62 M",
        "encoding a video: 3.14 GFLOP, 12.3 ms; a query: 0.0512 GFLOP, 0.234 ms (64 at a time on NVIDIA H100)",
        "an encoded video: 160 tokens, 240.0 KiB in fp32 or 120.0 KiB in fp16",
    ]

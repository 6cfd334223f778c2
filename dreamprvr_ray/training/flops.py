"""The floating-point operations of a training step, by formula. What really runs is counted in `cost`."""

from __future__ import annotations

from dreamprvr_ray.config import Experiment
from dreamprvr_ray.config_sections import CLIPS, FRAMES, QUERY_TOKENS

QUERIES_PER_VIDEO = 5  # TVR's; queries are a small part of the cost


def specified_gflop(experiment: Experiment) -> float:
    """Return the GFLOP of a video's matrix products in a training step, as docs/model.md specifies the model.

    The backward pass counts as twice the forward pass.
    """
    model, data = experiment.model, experiment.data
    size, registers, steps = model.hidden_size, model.registers, model.diffusion_steps
    square = size * size

    def attention_block(rows: int) -> int:  # projections, feed-forward, scores and values
        return 11 * rows * square + 2 * rows * rows * size

    def cross_attention(queries: int, tokens: int) -> int:
        return (3 * queries + 2 * tokens) * square + 2 * queries * tokens * size

    def fusion(length: int) -> int:
        branch = attention_block(length + registers) + cross_attention(1, length) + square + size * length
        return registers * square + model.branches * branch

    inputs = (CLIPS + FRAMES) * data.video_size * size
    query = QUERY_TOKENS * data.text_size * size + attention_block(QUERY_TOKENS)
    products = inputs + fusion(CLIPS) + fusion(FRAMES) + QUERIES_PER_VIDEO * query
    if registers:
        denoiser = registers * square * (5 * model.denoiser_layers + 2)
        pooling = CLIPS * square  # two of D x D/2
        products += (
            attention_block(CLIPS) + cross_attention(registers, CLIPS) + pooling + 3 * square + 2 * steps * denoiser
        )
    return 3 * 2 * products / 1e9

"""The floating-point operations of a training step and of encoding, by formula. What really runs: see `cost`."""

from __future__ import annotations

from dreamprvr_ray.config import Experiment
from dreamprvr_ray.config_sections import CLIPS, FRAMES, QUERY_TOKENS

QUERIES_PER_VIDEO = 5  # TVR's; queries are a small part of the cost


def specified_gflop(experiment: Experiment) -> float:
    """Return the GFLOP of a video's matrix products in a training step, as docs/model.md specifies the model.

    The backward pass counts as twice the forward pass.
    """
    experiment = experiment.with_feature_sizes(experiment.data.video_size, experiment.data.text_size, "data")
    steps = experiment.model.diffusion_steps
    # The denoising loss passes through the denoiser once more for each step.
    products = _video_products(experiment) + steps * _denoiser_products(experiment)
    return 3 * 2 * (products + QUERIES_PER_VIDEO * _query_products(experiment)) / 1e9


def encoding_gflop(experiment: Experiment) -> tuple[float, float]:
    """Return the GFLOP of the matrix products that encode a video and a query, as docs/model.md specifies the model.

    A multiplication and an addition count as two operations.
    """
    return 2 * _video_products(experiment) / 1e9, 2 * _query_products(experiment) / 1e9


def _video_products(experiment: Experiment) -> int:
    model, data = experiment.model, experiment.data
    size, registers = model.hidden_size, model.registers
    square = size * size

    def fusion(length: int) -> int:
        branch = _attention_block(length + registers, size) + _cross_attention(1, length, size) + square + size * length
        return registers * square + model.branches * branch

    products = (CLIPS + FRAMES) * data.video_size * size + fusion(CLIPS) + fusion(FRAMES)
    if registers:
        products += _attention_block(CLIPS, size)
    if registers and model.register_source == "diffusion":
        products += _cross_attention(registers, CLIPS, size) + model.diffusion_steps * _denoiser_products(experiment)
        if model.diffusion_start == "variational":
            pooling = CLIPS * square  # two of D x D/2
            products += pooling + 3 * square
    return products


def _query_products(experiment: Experiment) -> int:
    size = experiment.model.hidden_size
    return QUERY_TOKENS * experiment.data.text_size * size + _attention_block(QUERY_TOKENS, size)


def _denoiser_products(experiment: Experiment) -> int:
    """Return the products of one pass of the denoiser; none without registers, or if they are pooled."""
    model = experiment.model
    if model.register_source == "pooling":
        return 0
    return model.registers * model.hidden_size**2 * (5 * model.denoiser_layers + 2)


def _attention_block(rows: int, size: int) -> int:
    """Return the products of projections, feed-forward, scores and values."""
    return 11 * rows * size * size + 2 * rows * rows * size


def _cross_attention(queries: int, tokens: int, size: int) -> int:
    return (3 * queries + 2 * tokens) * size * size + 2 * queries * tokens * size

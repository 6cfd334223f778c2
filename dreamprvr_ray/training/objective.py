"""The training objective of one global batch, over any number of workers (docs/model.md, section 3).

Shapes: Q queries and B videos of the global batch, `Q_r` and `B_r` of this worker, K registers, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dreamprvr_ray.config_sections import LossConfig, ModelConfig
from dreamprvr_ray.data.batches import Batch
from dreamprvr_ray.distributed import Division, Workers
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.model.registers import perturbed_start, variational_divergences
from dreamprvr_ray.model.scoring import token_scores
from dreamprvr_ray.training.losses import Losses, NegativeDraws, Scores, combine


@dataclass(frozen=True)
class StepRandomness:
    """The random numbers in one step's loss: noise (B, K, D) of the perturbation sampler, and the choice of negatives.

    They are drawn for the global batch. `start_noise` (B, K, D) is for a diffusion that starts from noise.
    """

    alpha_noise: Tensor
    beta_noise: Tensor
    negatives: NegativeDraws
    start_noise: Tensor | None = None

    @classmethod
    def draw(
        cls,
        seed: int,
        step: int,
        videos: int,
        queries: int,
        registers: int,
        hidden_size: int,
        with_start: bool = False,
    ) -> StepRandomness:
        """Draw from a generator seeded by (seed, step), so that every worker draws the same numbers.

        `with_start`: also draw `start_noise`, which leaves the other numbers as they are.
        """
        generator = torch.Generator().manual_seed(stream_seed(seed, step, "loss"))
        shape = (videos, registers, hidden_size)
        return cls(
            torch.randn(shape, generator=generator),
            torch.randn(shape, generator=generator),
            NegativeDraws.draw(videos, queries, generator),
            torch.randn(shape, generator=generator) if with_start else None,
        )

    @classmethod
    def for_model(cls, seed: int, step: int, videos: int, queries: int, model: ModelConfig) -> StepRandomness:
        """Draw what the step of a model needs."""
        with_start = model.diffusion_start == "noise" and model.register_source == "diffusion"
        return cls.draw(seed, step, videos, queries, model.registers, model.hidden_size, with_start)


def stream_seed(seed: int, step: int, stream: str, rank: int = 0) -> int:
    """Return a 63-bit seed for one stream of random numbers of one step, independent of all other streams."""
    entropy = [seed, step, rank, *stream.encode()]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def training_losses(
    model: DreamPRVR,
    batch: Batch,
    config: LossConfig,
    *,
    hard_negatives: bool,
    randomness: StepRandomness,
    workers: Workers | None = None,
    division: Division | None = None,
) -> Losses:
    """Compute the losses of the global batch, the same on every worker.

    `batch` is this worker's part of the global batch, and `division` describes all parts (None: a single worker). After
    `losses.total.backward()`, the gradient of the global batch is the sum over the workers (`Workers.sum_gradients`).
    """
    workers = workers or Workers()
    division = division or Division.alone(batch.owner, len(batch.clips))
    device = batch.clips.device
    queries = model.encode_queries(batch.tokens, batch.token_mask)  # (Q_r, D)
    first = sum(division.videos[: workers.rank])
    own = slice(first, first + len(batch.clips))
    start_noise = None if randomness.start_noise is None else randomness.start_noise[own].to(queries)
    encoding = model.encode_videos(batch.clips, batch.frames, batch.frame_mask, start_noise)

    all_queries = workers.gather_for_own_part(queries, division.queries)  # (Q, D)
    clip = token_scores(all_queries, encoding.clip_tokens)
    frame = token_scores(all_queries, encoding.frame_tokens, encoding.frame_mask)
    columns = torch.stack([clip.cosine, clip.dot, frame.cosine, frame.dot]).movedim(-1, 0)  # (B_r, 4, Q)
    columns = workers.gather_for_same_loss(columns, division.videos).movedim(0, -1)  # (4, Q, B)

    sums = columns.new_zeros(2)
    if encoding.condition is not None:
        start = _mean_per_video(queries, batch.owner, len(batch.clips))
        if config.textual_perturbation:
            alpha, beta = (noise[own].to(queries) for noise in (randomness.alpha_noise, randomness.beta_noise))
            start = perturbed_start(start, alpha, beta)
        else:
            start = start.unsqueeze(1).expand_as(encoding.condition)
        denoising = model.denoising_errors(encoding, start).sum()
        variational = torch.zeros_like(denoising)
        if encoding.mu is not None and encoding.logvar is not None:
            variational = variational_divergences(encoding.mu, encoding.logvar).sum()
        sums = workers.sum_for_same_loss(torch.stack([variational, denoising]))
    variational, denoising = (sums / sum(division.videos)).unbind()
    return combine(
        config,
        Scores(*columns.unbind()),
        workers.gather_for_same_loss(queries, division.queries),
        division.owner.to(device, non_blocking=True),
        randomness.negatives.to(device),
        hard_negatives,
        variational,
        denoising,
        None if division.other_right is None else division.other_right.to(device, non_blocking=True),
    )


def _mean_per_video(queries: Tensor, owner: Tensor, videos: int) -> Tensor:
    """Average the query embeddings of each video: (Q, D), (Q,) -> (B, D)."""
    # A matrix product, because `index_add` adds in a nondeterministic order on a GPU.
    with torch.autocast(queries.device.type, enabled=False):
        own = (owner == torch.arange(videos, device=owner.device).unsqueeze(1)).to(queries.dtype)
        mean: Tensor = (own @ queries) / own.sum(1, keepdim=True)
    return mean

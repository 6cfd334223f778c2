"""The cost of a training step, counted on the model itself without computing anything (torch's fake tensors)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dreamprvr_ray.config import Experiment
from dreamprvr_ray.config_sections import CLIPS, FRAMES, QUERY_TOKENS
from dreamprvr_ray.data.batches import Batch
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.training.flops import QUERIES_PER_VIDEO, specified_gflop
from dreamprvr_ray.training.objective import StepRandomness, training_losses

BYTES_PER_PARAMETER = 16  # fp32 weight, gradient, and Adam's two moments


@dataclass(frozen=True)
class Cost:
    """The cost of one experiment. GFLOP count matrix products, forward and backward, per video and training step."""

    parameters: int  # trainable
    gflop_per_video: float  # as docs/model.md specifies the model: use this to compare speeds
    executed_gflop_per_video: float  # as executed: rows and projections without effect are skipped
    memory: int  # bytes per worker

    def to_dict(self) -> dict[str, Any]:
        """Return the cost by the names of the commands' JSON output."""
        return {
            "parameters": self.parameters,
            "gflop_per_video": round(self.gflop_per_video, 2),
            "executed_gflop_per_video": round(self.executed_gflop_per_video, 2),
            "memory_gib": round(self.memory / 2**30, 2),
        }

    def lines(self) -> list[str]:
        """Return a summary for people."""
        return [
            f"parameters: {self.parameters / 1e6:.2f} M",
            f"cost: {self.gflop_per_video:.1f} GFLOP per video and training step as the paper specifies the model"
            f" (forward and backward, {QUERIES_PER_VIDEO} queries per video); {self.executed_gflop_per_video:.1f} GFLOP"
            " are computed, because operations without effect on the result are skipped",
            f"memory: about {self.memory / 2**30:.1f} GiB for a batch on one worker"
            " (weights, optimiser, saved activations in fp32)",
        ]


def estimate(experiment: Experiment) -> Cost:
    """Estimate the cost of one training step of the whole batch on one worker."""
    videos, queries = experiment.training.batch_videos, experiment.training.batch_videos * QUERIES_PER_VIDEO
    data = experiment.data
    experiment = experiment.with_feature_sizes(data.video_size, data.text_size, "data")
    saved: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True), torch.random.fork_rng(devices=[]):
        # How weights are initialised does not affect the cost, and "aligned" may not allow a preset's feature sizes.
        model = DreamPRVR(
            experiment.model.model_copy(update={"initialization": "paper"}), data.video_size, data.text_size
        )
        batch = Batch(
            clips=torch.empty(videos, CLIPS, data.video_size),
            frames=torch.empty(videos, FRAMES, data.video_size),
            frame_mask=torch.empty(videos, FRAMES, dtype=torch.bool),
            tokens=torch.empty(queries, QUERY_TOKENS, data.text_size),
            token_mask=torch.empty(queries, QUERY_TOKENS, dtype=torch.bool),
            owner=torch.empty(queries, dtype=torch.int64),
        )
        randomness = StepRandomness.for_model(0, 0, videos, queries, experiment.model)
        with FlopCounterMode(display=False) as counter:
            with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
                losses = training_losses(model, batch, experiment.loss, hard_negatives=True, randomness=randomness)
            losses.total.backward()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    owned = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    activations = sum(tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in owned)
    count = sum(parameter.numel() for parameter in parameters)
    executed = counter.get_total_flops() / videos / 1e9
    return Cost(count, specified_gflop(experiment), executed, activations + count * BYTES_PER_PARAMETER)

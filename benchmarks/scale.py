"""Predicted steps and searches on 1 to 64 nodes of 8 GPUs, from the constants of `benchmarks.scale_constants`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from benchmarks.search_model import HOUR, ClusterSize, SearchLoad, SearchOutcome, SimulatedSearch
from benchmarks.step_model import StepModel, StepSize, StepTime

NODES = (1, 2, 4, 8, 16, 32, 64)
GPUS = 8  # of a node
BATCH, HIDDEN_SIZE = 128, 384  # of the preset `tvr`
SIMULATED_HOURS = 12.0
PRUNED_AFTER = (10, 30, 90)  # epochs at which successive halving prunes; the trials that are left train to the end
PRUNED_SHARE = 0.5


@dataclass(frozen=True)
class TrainingRow:
    """A training on `gpus` GPUs with a global batch of `videos`."""

    gpus: int
    videos: int
    step: StepTime
    memory_gib: float  # of each GPU
    videos_per_second: float
    price_of_epoch: float
    fits: bool  # in the GPU's memory


@dataclass(frozen=True)
class SearchRow:
    """A search on `nodes` nodes whose trials take `gpus_per_trial` GPUs each, for a batch of `videos`."""

    nodes: int
    gpus_per_trial: int
    videos: int
    outcome: SearchOutcome
    price_of_trial: float
    requests_per_second: float


def training(values: Mapping[str, float], gpus: int, videos: int) -> TrainingRow:
    """Predict a training on `gpus` GPUs, 8 a node."""
    size = StepSize(videos, values["queries_per_video"], HIDDEN_SIZE, int(values["parameters"]))
    step = gpu_step_model(values, gpus).step(size, gpus)
    if gpus == 1:  # captured in a CUDA graph: the host adds little
        step = replace(step, launching=(values["captured_ms"] - values["gpu_ms"]) / 1e3)
    own = math.ceil(videos / gpus)
    weights = values["parameters"] * 16 / 2**30
    scores = size.queries * own * (32 + 128) * 4 * 2 / 2**30  # of all tokens, in the backward pass too
    loss = values["loss_bytes"] * size.queries**2 / 2**30
    memory = weights + (values["activation_gib"] - weights) / BATCH * own + scores + loss
    steps = values["videos"] / videos
    return TrainingRow(
        gpus,
        videos,
        step,
        memory,
        videos / step.seconds,
        steps * step.seconds * gpus / HOUR * values["gpu_hour_price"],
        memory <= values["gpu_gib"],
    )


def gpu_step_model(values: Mapping[str, float], gpus: int) -> StepModel:
    """Return the model of a step on H100 GPUs. A ring over several nodes is as fast as their network."""
    queries = BATCH * values["queries_per_video"]
    scaling = values["gpu_ms"] - values["fixed_ms"] - values["scores_ms"]
    return StepModel(
        fixed=values["fixed_ms"] / 1e3,
        per_video=scaling / 1e3 / BATCH,
        per_loss_pair=values["loss_passes"] * 4 / (values["copy_tb_s"] * 1e12)
        + 3 * 2 * HIDDEN_SIZE / (values["product_tflop_s"] * 1e12),  # cosines of queries, forward and backward
        per_score=values["scores_ms"] / 1e3 / (BATCH * queries),
        copying=4 * 4 * values["parameters"] / (values["copy_tb_s"] * 1e12),  # read and written, twice
        latency=values["round_us"] / 1e6,
        bandwidth=1e9 * (values["nvlink_gb_s"] if gpus <= GPUS else values["network_gb_s"]),
        spread=values["spread"],
        launch=values["launch_ms"] / 1e3,
    )


def search(
    values: Mapping[str, float], nodes: int, gpus_per_trial: int, videos: int, hours: float = SIMULATED_HOURS
) -> SearchRow:
    """Simulate a search whose trials have a global batch of `videos`."""
    row = training(values, gpus_per_trial, videos)
    fill = values["shards_gb"] / min(values["store_gb_s"], values["store_node_limit"] / nodes)
    cluster = ClusterSize(nodes, GPUS, values["mtbf_hours"], values["noticed_s"], values["replaced_s"], fill)
    load = SearchLoad(
        gpus_per_trial=gpus_per_trial,
        epochs=int(values["epochs"]),
        epoch_seconds=values["videos"] / row.videos_per_second + values["evaluation_s"],
        start_seconds=values["start_s"] if gpus_per_trial == 1 else values["group_start_s"],
        driver_report_seconds=values["report_ms"] / 1e3,
        driver_trial_seconds=values["trial_ms"] / 1e3,
        rungs=PRUNED_AFTER,
        pruned_share=PRUNED_SHARE,
        requests_per_epoch=int(values["epoch_requests"]),
        requests_per_trial=int(values["trial_requests"]),
    )
    outcome = SimulatedSearch(cluster, load).run(hours)
    price = outcome.gpu_hours_per_trial() * values["gpu_hour_price"]
    return SearchRow(nodes, gpus_per_trial, videos, outcome, price, outcome.requests / outcome.seconds)


def training_line(row: TrainingRow) -> str:
    """Return a row for people."""
    step = row.step
    parts = ", ".join(
        f"{name} {getattr(step, name) * 1e3:.1f}" for name in ("compute", "loss", "messages", "waiting", "launching")
    )
    return (
        f"{row.gpus:4d} GPUs, batch {row.videos:6,d}: {step.seconds * 1e3:9.1f} ms a step ({parts}),"
        f" {row.videos_per_second:9,.0f} videos/s, {row.memory_gib:7.1f} GiB a GPU"
        + ("" if row.fits else ": does not fit")
    )


def search_line(row: SearchRow) -> str:
    """Return a row for people."""
    found = row.outcome
    return (
        f"{row.nodes:3d} nodes, {row.gpus_per_trial} GPUs a trial, batch {row.videos:,}:"
        f" {found.trials_per_hour:.0f} trials an hour,"
        f" GPUs used {found.utilisation:.0%}, {row.price_of_trial:.2f} a trial, driver busy {found.driver_load:.0%},"
        f" {row.requests_per_second:.0f} requests/s, {found.failures} failures,"
        f" {found.lost_gpu_seconds / found.gpus / found.seconds:.3%} of the time lost by them"
    )

"""The constants of `benchmarks.simulate` for a cluster of GPUs, and where each comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dreamprvr_ray.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Constant:
    """A value and its origin: "measured" by this project, "derived" from what was measured, or "assumed"."""

    value: float
    unit: str
    basis: str
    source: str


CONSTANTS = {
    # A step of the preset `tvr` on one H100 (docs/performance.md).
    "captured_ms": Constant(34.3, "ms", "measured", "a step of 128 videos as one CUDA graph, one GPU"),
    "gpu_ms": Constant(33.6, "ms", "measured", "of it the GPU is busy"),
    "fixed_ms": Constant(10.0, "ms", "derived", "of it the registers' sequential steps and the optimiser (profile)"),
    "scores_ms": Constant(0.8, "ms", "derived", "of it scoring 640 queries against 128 videos"),
    "launch_ms": Constant(76.5, "ms", "measured", "the same step launched kernel by kernel, as with several workers"),
    "activation_gib": Constant(8.1, "GiB", "measured", "peak memory of such a launched step of 128 videos"),
    "parameters": Constant(37.6e6, "", "measured", "trainable"),
    "loss_bytes": Constant(56.3, "bytes", "measured", "peak memory of the loss for each pair of queries (loss_size)"),
    "loss_passes": Constant(60.0, "", "assumed", "how often the loss moves a pair's 4 bytes from or to memory"),
    "product_tflop_s": Constant(52.0, "TFLOP/s", "measured", "matrix products of an H100 in fp32"),
    "copy_tb_s": Constant(3.0, "TB/s", "measured", "bandwidth of an H100's memory"),
    "spread": Constant(0.015, "", "derived", "standard deviation of workers' times (a step repeats within 1.5%)"),
    # The machines.
    "gpu_gib": Constant(79.0, "GiB", "measured", "usable memory of an H100"),
    "nvlink_gb_s": Constant(300.0, "GB/s", "assumed", "what a GPU sends in a ring within a node"),
    "network_gb_s": Constant(50.0, "GB/s", "assumed", "what a node sends in a ring over nodes (400 Gbit/s)"),
    "round_us": Constant(15.0, "us", "assumed", "a round of a ring"),
    "gpu_hour_price": Constant(3.0, "", "assumed", "price of a GPU hour, in any currency; 0.5 to 10 are offered"),
    "mtbf_hours": Constant(500.0, "h", "assumed", "between two failures of a node"),
    "replaced_s": Constant(600.0, "s", "assumed", "until a failed node is replaced"),
    "noticed_s": Constant(20.0, "s", "measured", "from a node's failure to the next step of its trials (lab notes)"),
    # The data and the trials.
    "videos": Constant(17_435.0, "", "measured", "training videos of TVR"),
    "queries_per_video": Constant(5.0, "", "measured", "TVR's"),
    "epochs": Constant(150.0, "", "assumed", "of a trial that is not pruned (the preset's)"),
    "evaluation_s": Constant(1.0, "s", "assumed", "evaluating val after an epoch, and copying the checkpoint"),
    "start_s": Constant(0.3, "s", "measured", "from a trial of one GPU to the next in its warm process"),
    "group_start_s": Constant(14.0, "s", "measured", "start of a trial of several workers (on CPUs)"),
    "report_ms": Constant(10.0, "ms", "derived", "of the driver for an epoch's report: own 4 ms, Ray Tune at most 6"),
    "trial_ms": Constant(50.0, "ms", "derived", "of the driver for a trial's proposal and end, among 150 trials"),
    "shards_gb": Constant(21.0, "GB", "derived", "TVR's shards: float16 rows of 3,072 and 768 values"),
    "store_gb_s": Constant(1.0, "GB/s", "assumed", "what a node reads from the store"),
    "store_node_limit": Constant(100.0, "GB/s", "assumed", "what all nodes together read from it"),
    "epoch_requests": Constant(12.0, "", "assumed", "requests to the store for an epoch's checkpoint and records"),
    "trial_requests": Constant(20.0, "", "assumed", "further requests for a trial"),
    "store_requests_s": Constant(3500.0, "1/s", "assumed", "writes a second that a prefix of the store takes"),
}


def constants(changes: Mapping[str, object]) -> dict[str, float]:
    """Return the values by name, with `changes`. Raises `UserError` for an unknown name or a wrong value."""
    values = {name: constant.value for name, constant in CONSTANTS.items()}
    for name, value in changes.items():
        if name not in values:
            raise UserError(f"--set {name}: no such constant{did_you_mean(name, CONSTANTS)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise UserError(f"--set {name}={value}: must be a number, at least 0")
        values[name] = float(value)
    return values

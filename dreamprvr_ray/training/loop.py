"""The training loop: knows torch and a `Reporter`, not Ray.

Resuming is exact without saved random states, because every random choice is a function of the seed and the step: the epoch's plan,
the negatives and the perturbation's noise (the same on every worker) and dropout (of this worker's rank). The position in the data and
in the rate's schedule is the number of finished epochs.

    fit(load_experiment("demo"), ShardSet.open(Path("shards")), DirectoryReporter(Path("run"), print))
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, astuple, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map_only

from dreamprvr_ray.checkpoints.checkpoint import EXPERIMENT, Checkpoint, read_state, read_weights
from dreamprvr_ray.config import CLIPS, FRAMES, Experiment, load_experiment
from dreamprvr_ray.data.batches import collate, plan_epoch, prefetch
from dreamprvr_ray.data.resident import ResidentSplit
from dreamprvr_ray.data.shards import Manifest, ShardSet, Split
from dreamprvr_ray.device import Precision, autocast, best_device, resolve_precision
from dreamprvr_ray.distributed import Traffic, Workers, token_traffic
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.retrieval import evaluate
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.training.failure import TrainingDiverged
from dreamprvr_ray.training.gradient_step import GradientPass
from dreamprvr_ray.training.losses import Losses
from dreamprvr_ray.training.objective import StepRandomness, stream_seed
from dreamprvr_ray.training.optimizer import PartwiseAdam, build_optimizer
from dreamprvr_ray.training.reporter import EpochResult, Reporter, StepTraffic


@dataclass(frozen=True)
class Progress:
    """How far a training is: finished epochs, the best of them by val SumR, and how many since failed to exceed it."""

    epoch: int = 0
    best_sumr: float = -math.inf
    best_epoch: int = 0
    stale_epochs: int = 0
    finished: bool = False

    def after(self, sumr: float, experiment: Experiment) -> Progress:
        """The progress after one more epoch with this SumR."""
        better = sumr > self.best_sumr or experiment.training.with_val
        epoch, stale = self.epoch + 1, 0 if better else self.stale_epochs + 1
        return Progress(
            epoch,
            sumr if better else self.best_sumr,
            epoch if better else self.best_epoch,
            stale,
            epoch >= experiment.training.epochs or stale > experiment.training.patience,
        )


def with_feature_sizes(experiment: Experiment, manifest: Manifest) -> Experiment:
    """The experiment with the feature sizes of the shards that it is to be trained on. Raises `UserError` where it does not go with them."""
    video_size, text_size = manifest.video_size, manifest.text_size
    if experiment.model.initialization == "aligned" and video_size != text_size:
        raise UserError(
            f"model.initialization = 'aligned': is for features of one encoder, and the shards' videos have {video_size} entries a row"
            f" and their queries {text_size}; use 'paper'"
        )
    return experiment.with_values({"data.video_size": video_size, "data.text_size": text_size}, "shards")


def agree_on_precision(configured: str, device: torch.device, workers: Workers) -> Precision:
    """Return the precision of a training, the same on every worker: with `auto`, bf16 only if every worker resolves it to bf16."""
    precision = resolve_precision(configured, device)
    if configured == "auto" and not workers.all(precision == "bf16", device):
        return "fp32"
    return precision


def fit(
    experiment: Experiment,
    shards: ShardSet,
    reporter: Reporter,
    workers: Workers | None = None,
    device: torch.device | None = None,
) -> EpochResult | None:
    """Trains to the end or until patience is used up, from the reporter's latest checkpoint if it has one.

    Returns the last epoch's report; None where the checkpoint was of a finished training.
    Raises `TrainingDiverged` when an epoch's loss is not a number.
    """
    workers = workers or Workers()
    device = device or best_device()
    experiment = with_feature_sizes(experiment, shards.manifest)
    training = experiment.training
    train = shards.joined("train", "val") if training.with_val else shards.split("train")
    val = shards.split("val")
    steps_per_epoch = math.ceil(len(train) / training.batch_videos)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(training.seed, 0, "weights"))
        data = experiment.data
        model = DreamPRVR(experiment.model, data.video_size, data.text_size, data.trim_frames).to(device)
    optimizer = build_optimizer(model, experiment.optimizer, training.epochs * steps_per_epoch)
    progress = Progress()
    with reporter.latest_checkpoint() as checkpoint:
        if checkpoint and workers.rank == 0:
            progress = _restore(checkpoint, model, optimizer, experiment)
    progress = _as_first_worker(workers, progress, model, optimizer)
    optimizer.continue_at(progress.epoch * steps_per_epoch)
    precision = agree_on_precision(training.precision, device, workers)
    gradients = GradientPass(
        model, experiment, training.epochs * len(train), partial(autocast, device, precision), workers
    )

    resident = None if progress.finished else ResidentSplit.where_it_fits(train, device)

    report, started = None, time.perf_counter()
    first_epoch = progress.epoch
    while not progress.finished:
        epoch_started = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        epoch = _train_epoch(
            model,
            gradients,
            optimizer,
            experiment,
            train,
            resident,
            progress.epoch,
            workers,
            device,
            reporter if report is None else None,
        )
        with autocast(device, precision):
            retrieval = evaluate(model, val, experiment.evaluation.clip_weight, workers)
        progress = progress.after(retrieval.recall.sumr, experiment)
        now = time.perf_counter()
        per_epoch = (now - started) / (progress.epoch - first_epoch)
        report = EpochResult(
            epoch=progress.epoch,
            planned_epochs=training.epochs,
            losses=epoch.losses,
            recall=retrieval.recall.at,
            median_rank=retrieval.median_rank,
            ties=retrieval.ties,
            sumr=retrieval.recall.sumr,
            best_sumr=progress.best_sumr,
            best_epoch=progress.best_epoch,
            learning_rate=epoch.learning_rate,
            videos_per_second=len(train) / epoch.seconds,
            seconds=now - epoch_started,
            seconds_left=0.0 if progress.finished else per_epoch * (training.epochs - progress.epoch),
            waited=epoch.waited / epoch.seconds,
            gpu_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            traffic=epoch.sent,
            finished=progress.finished,
        )
        reporter.report(report, partial(_snapshot, model, optimizer, experiment, progress, report, shards.manifest))
    return report


@dataclass(frozen=True)
class _Epoch:
    losses: dict[str, float]
    learning_rate: float
    seconds: float
    waited: float
    sent: StepTraffic | None


def _train_epoch(
    model: DreamPRVR,
    gradients: GradientPass,
    optimizer: PartwiseAdam,
    experiment: Experiment,
    train: Split,
    resident: ResidentSplit | None,
    epoch: int,
    workers: Workers,
    device: torch.device,
    waiting: Reporter | None,
) -> _Epoch:
    """One epoch; `waiting` hears that its first step begins."""
    training = experiment.training
    plan = plan_epoch(len(train), training.batch_videos, training.seed, epoch)
    hard = epoch >= experiment.loss.hard_negative_start_epoch
    names = [field.name for field in fields(Losses)]
    totals = torch.zeros(len(names), device=device)
    started, waited = time.perf_counter(), 0.0
    traffic_before, token_bytes = replace(workers.traffic), 0
    model.train()
    queries_per_video = np.diff(train.first_query)
    own = (workers.divide(videos)[workers.rank] for videos in plan)
    made = (
        resident.collate(videos, model.trimmed) if resident else collate(train, videos, model.trimmed) for videos in own
    )
    batches = made if resident else prefetch(made)
    for step, videos in enumerate(plan, start=epoch * len(plan)):
        asked = time.perf_counter()
        batch = next(batches).to(device)
        waited += time.perf_counter() - asked
        if waiting:
            waiting.on_training_start()
            waiting = None
        division = workers.division(queries_per_video[videos])
        token_bytes += token_traffic(division.videos, CLIPS + FRAMES, experiment.model.hidden_size)
        torch.manual_seed(stream_seed(training.seed, step, "dropout", workers.rank))
        randomness = StepRandomness.draw(
            training.seed,
            step,
            sum(division.videos),
            sum(division.queries),
            experiment.model.registers,
            experiment.model.hidden_size,
        )
        losses = gradients(batch, randomness, division, hard)
        workers.sum_gradients(model.parameters())
        optimizer.step()
        totals += torch.stack([getattr(losses, name).detach().float() for name in names])
    means = dict(zip(names, (totals / len(plan)).tolist(), strict=True))
    if not math.isfinite(means["total"]):
        bad = ", ".join(name for name in names if not math.isfinite(means[name]))
        raise TrainingDiverged(
            f"epoch {epoch + 1}: the loss is not a number ({bad}); a lower optimizer.learning_rate may help"
        )
    sent = _sent(workers.traffic.since(traffic_before), token_bytes, len(plan)) if workers.count > 1 else None
    return _Epoch(means, optimizer.param_groups[0]["lr"], time.perf_counter() - started, waited, sent)


def _sent(traffic: Traffic, token_bytes: int, steps: int) -> StepTraffic:
    megabytes = 1e6 * steps
    return StepTraffic(traffic.loss / megabytes, traffic.gradients / megabytes, token_bytes / megabytes)


def _snapshot(
    model: DreamPRVR,
    optimizer: PartwiseAdam,
    experiment: Experiment,
    progress: Progress,
    report: EpochResult,
    manifest: Manifest,
) -> Checkpoint:
    """Copy the state of the training to the CPU's memory."""
    metrics: dict[str, Any] = report.to_dict() | {"collection": manifest.collection, "protocol": manifest.protocol}
    weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}
    state = {
        "progress": asdict(progress),
        "optimizer": tree_map_only(torch.Tensor, lambda t: t.to("cpu", copy=True), optimizer.state_dict()),
    }
    return Checkpoint(weights, state, experiment, metrics)


def _restore(checkpoint: Path, model: DreamPRVR, optimizer: PartwiseAdam, experiment: Experiment) -> Progress:
    recorded = load_experiment(checkpoint / EXPERIMENT)
    if changes := experiment.changes_from(recorded):
        raise UserError(*(f"{checkpoint}: is of another experiment: {change}" for change in changes))
    try:
        model.load_state_dict(read_weights(checkpoint))
        state = read_state(checkpoint)
        optimizer.load_state_dict(state["optimizer"])
        return replace(Progress(), **state["progress"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{checkpoint}: does not fit this experiment: {' '.join(str(error).split())[:300]}") from None


def _as_first_worker(workers: Workers, progress: Progress, model: DreamPRVR, optimizer: PartwiseAdam) -> Progress:
    """Gives every worker the first one's weights, moments and progress: only that one reads a checkpoint."""
    if workers.count == 1:
        return progress
    workers.copy_from_first(model.state_dict().values())
    workers.copy_from_first(optimizer.moments())
    numbers = torch.tensor(astuple(progress), dtype=torch.float64, device=optimizer.moments()[0].device)
    workers.copy_from_first([numbers])
    epoch, best_sumr, best_epoch, stale, finished = numbers.tolist()
    return Progress(int(epoch), best_sumr, int(best_epoch), int(stale), bool(finished))

"""The training loop. It knows torch and a `Reporter`, not Ray.

Resuming is exact without saved random states, because every random choice is a function of the seed and the step: the
order of videos in an epoch, the negatives and the noise of the perturbation sampler (the same on every worker) and
dropout (also a function of the rank). The position in the data and in the learning rate's schedule follows from the
number of finished epochs.

    fit(load_experiment("demo"), ShardSet.open(Path("shards")), DirectoryReporter(Path("run"), print))
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map_only

from dreamprvr_ray.checkpoints.checkpoint import (
    METRICS,
    Checkpoint,
    load_model,
    read_experiment,
    read_metrics,
    read_state,
    read_weights,
)
from dreamprvr_ray.config import Experiment
from dreamprvr_ray.config_sections import CLIPS, FRAMES
from dreamprvr_ray.data.batches import Batch, collate, other_right_videos, plan_epoch, prefetch
from dreamprvr_ray.data.collections import Collections, check_weights
from dreamprvr_ray.data.encoding import KEY as ENCODING
from dreamprvr_ray.data.manifest import Manifest, not_one_encoder
from dreamprvr_ray.data.resident import ResidentSplit
from dreamprvr_ray.data.shards import ShardSet, Split
from dreamprvr_ray.data.shards_record import KEY as SHARDS
from dreamprvr_ray.data.shards_record import PROTOCOLS, ShardsRecord, shard_changes
from dreamprvr_ray.device import Precision, best_device, resolve_precision
from dreamprvr_ray.distributed import Division, Workers, token_traffic
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.retrieval import ScoresNotFinite
from dreamprvr_ray.evaluation.val import ValEvaluation, ValResult
from dreamprvr_ray.evaluation.weights import CHOSEN, ScoreWeights
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.model.moment_network import MomentNetwork
from dreamprvr_ray.training.divergence import all_finite, losses_diverged, scores_diverged, weights_diverged
from dreamprvr_ray.training.flops import specified_gflop
from dreamprvr_ray.training.gradient_step import GradientPass
from dreamprvr_ray.training.losses import Losses
from dreamprvr_ray.training.moment_fitting import learn_moments
from dreamprvr_ray.training.objective import StepRandomness, stream_seed
from dreamprvr_ray.training.optimizer import build_optimizer
from dreamprvr_ray.training.reporter import EpochResult, Reporter, StepTraffic

# GFLOP of a training from which compiling pays off: 3,600 steps of the TVR setting, whose kernels take 25 to 30 s to
# compile and save 8 ms per step.
WORTH_COMPILING = 1e7
LOSS_NAMES = [field.name for field in fields(Losses)]


def fit(
    experiment: Experiment,
    shards: ShardSet | Collections,
    reporter: Reporter,
    workers: Workers | None = None,
    device: torch.device | None = None,
) -> EpochResult | None:
    """Train until the last epoch or until patience runs out, resuming from the reporter's latest checkpoint if there is
    one.

    Returns the last epoch's result, or None if that checkpoint is of a finished training. Raises `UserError` if the
    experiment does not fit the shards or the checkpoint, and `TrainingDiverged` if the loss, the weights or the scores
    on val are not finite.
    """
    training = Training(experiment, shards, workers or Workers(), device or best_device())
    with reporter.latest_checkpoint() as checkpoint:
        training.restore(checkpoint)
    result = None
    while not training.progress.finished:
        result = training.run_epoch(reporter.on_training_start if result is None else None)
        if result.finished:  # before the last checkpoint: after a kill in between, its epoch and this are repeated
            training.learn_moments(result, reporter)
        reporter.report(result, partial(training.snapshot, result))
    return result


def with_feature_sizes(experiment: Experiment, manifest: Manifest) -> Experiment:
    """Return the experiment with the feature sizes of the shards, which are also the hidden size where that is 0.

    Raises `UserError` if `model.initialization`, `model.heads` or `evaluation.encoder_weight` does not allow them, or
    if the shards have no train split, or if `data.weights` names another collection.
    """
    for part in manifest.parts():
        part.check_has_train(f"shards of {part.collection}")
    check_weights(experiment.data.weights, manifest)
    video_size, text_size = manifest.video_size, manifest.text_size
    if experiment.model.initialization == "aligned" and video_size != text_size:
        raise UserError(
            "model.initialization = 'aligned': requires video and query features of one encoder, but the shards' videos"
            f" have {video_size} features per row and their queries {text_size}; use 'paper'"
        )
    if (weight := experiment.evaluation.encoder_weight) != 0 and video_size != text_size:
        raise UserError(
            f"evaluation.encoder_weight = {weight!r}: requires video and query features of one encoder, but the"
            f" shards' videos have {video_size} features per row and their queries {text_size}; use 0"
        )
    if weight != 0 and manifest.one_encoder is False:
        raise UserError(not_one_encoder(weight, "the shards"))
    return experiment.with_feature_sizes(video_size, text_size, "shards")


def agree_on_precision(configured: str, device: torch.device, workers: Workers) -> Precision:
    """Return the precision of a training, the same on every worker.

    `auto` is bf16 only if every worker resolves it to bf16.
    """
    precision = resolve_precision(configured, device)
    if configured == "auto" and not workers.all(precision == "bf16", device):
        return "fp32"
    return precision


@dataclass(frozen=True)
class Progress:
    """The finished epochs, the best one by val SumR, and how many in a row have not exceeded it since.

    Where the last epoch is the result (`training.choose_epoch`, `training.with_val`), it counts as the best.
    """

    epoch: int = 0
    best_sumr: float = -math.inf
    best_epoch: int = 0
    stale_epochs: int = 0
    finished: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Progress:
        """Read what `asdict` wrote. Raises TypeError if a value has another type."""
        progress = replace(cls(), **values)
        for field in fields(cls):
            value, number = getattr(progress, field.name), type(getattr(cls(), field.name))
            if type(value) is not number and not (number is float and type(value) is int):
                raise TypeError(f"progress: {field.name} must be of type {number.__name__}")
        return progress

    def after(self, sumr: float, experiment: Experiment) -> Progress:
        """Return the progress after one more epoch with this SumR."""
        settings = experiment.training
        better = sumr > self.best_sumr or settings.with_val or settings.choose_epoch == "last"
        epoch, stale = self.epoch + 1, 0 if better else self.stale_epochs + 1
        return Progress(
            epoch,
            sumr if better else self.best_sumr,
            epoch if better else self.best_epoch,
            stale,
            epoch >= settings.epochs or stale > settings.patience,
        )


@dataclass(frozen=True)
class TrainedEpoch:
    """What an epoch's training steps measured; evaluation is not included."""

    losses: dict[str, float]  # means over the batches
    learning_rate: float
    seconds: float
    waited: float  # seconds spent waiting for data
    traffic: StepTraffic | None


class Training:
    """One training: the model, its optimiser, the data, and this process's place among the workers."""

    def __init__(
        self, experiment: Experiment, shards: ShardSet | Collections, workers: Workers, device: torch.device
    ) -> None:
        """Build everything at the first step. Raises `UserError` if the experiment does not fit the shards."""
        self._collections = collections = Collections.of(shards)
        self.experiment = experiment = with_feature_sizes(experiment, collections.manifest)
        for part in collections.parts:
            part.check_encoder_weight(experiment.evaluation.encoder_weight)
        self.progress = Progress()
        self._workers, self._device = workers, device
        settings, data = experiment.training, experiment.data
        self._train, self._vals = collections.train(settings.with_val), collections.vals()
        self._draw = collections.draw(data.weights, settings.with_val)
        self._steps_per_epoch = math.ceil(self._draw.count / settings.batch_videos)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(settings.seed, 0, "weights"))
            self._model = DreamPRVR(experiment.model, data.video_size, data.text_size, data.trim_frames).to(device)
        # Decided by the whole training, not by what is left of it: a resumed training must compute as if it had not
        # stopped.
        trained_videos = settings.epochs * self._draw.count
        self._model.compile_chains(trained_videos * specified_gflop(experiment) >= WORTH_COMPILING)
        self._optimizer = build_optimizer(self._model, experiment.optimizer, settings.epochs * self._steps_per_epoch)
        self._precision = agree_on_precision(settings.precision, device, workers)
        self._gradients = GradientPass(self._model, experiment.loss, self._precision, workers)
        self._resident = ResidentSplit.if_it_fits(self._train, device)
        self._evaluation = ValEvaluation(self._vals, experiment, device, workers)
        self._one_encoder = all(part.one_encoder for part in collections.parts)
        self._moments: MomentNetwork | None = None
        self._first_epoch, self._started = 0, 0.0

    def restore(self, checkpoint: Path | None) -> None:
        """Continue from the first worker's checkpoint, if it has one; the other workers copy its state.

        Raises `UserError` if the checkpoint is damaged or belongs to another experiment.
        """
        if checkpoint and self._workers.rank == 0:
            self._load(checkpoint)
        if self._workers.count > 1:
            self._copy_from_first_worker()
        self._optimizer.continue_at(self.progress.epoch * self._steps_per_epoch)
        self._first_epoch, self._started = self.progress.epoch, time.perf_counter()

    def run_epoch(self, on_first_step: Callable[[], None] | None = None) -> EpochResult:
        """Train the next epoch, evaluate on val, and advance `progress`.

        `on_first_step` is called right before the first training step.
        """
        began = time.perf_counter()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        trained = self.train_epoch(self.progress.epoch, on_first_step)
        val = self.evaluate()
        retrieval = val.retrieval
        progress = self.progress = self.progress.after(retrieval.recall.sumr, self.experiment)
        now, epochs = time.perf_counter(), self.experiment.training.epochs
        seconds_per_epoch = (now - self._started) / (progress.epoch - self._first_epoch)
        return EpochResult(
            epoch=progress.epoch,
            sumr=retrieval.recall.sumr,
            best_sumr=progress.best_sumr,
            best_epoch=progress.best_epoch,
            recall=retrieval.recall.at,
            median_rank=retrieval.median_rank,
            ties=retrieval.ties,
            losses=trained.losses,
            learning_rate=trained.learning_rate,
            videos_per_second=self._draw.count / trained.seconds,
            seconds=now - began,
            seconds_left=0.0 if progress.finished else seconds_per_epoch * (epochs - progress.epoch),
            waited=trained.waited / trained.seconds,
            finished=progress.finished,
            gpu_bytes=torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None,
            traffic=trained.traffic,
            zero_shot_sumr=self._evaluation.zero_shot_sumr if self._one_encoder else None,
            encoder_weight=None if self.experiment.evaluation.encoder_weight == 0 else val.weights.encoder,
            planned_epochs=epochs,
            collections=val.sumr_by_collection,
        )

    def train_epoch(self, epoch: int, on_first_step: Callable[[], None] | None = None) -> TrainedEpoch:
        """Train on the epoch's videos, by default all, each once; `epoch` counts from 0.

        Raises `TrainingDiverged` if the mean loss is not finite, or the weights after the last step.
        """
        settings = self.experiment.training
        videos = self._draw.videos(settings.seed, epoch)
        plan = plan_epoch(videos, settings.batch_videos, settings.seed, epoch)
        queries_per_video = np.diff(self._train.first_query)
        hard = epoch >= self.experiment.loss.hard_negative_start_epoch
        totals, steps = torch.zeros(len(LOSS_NAMES), device=self._device), []
        traffic_before, token_bytes = replace(self._workers.traffic), 0
        started, waited = time.perf_counter(), 0.0
        self._model.train()
        batches = self._batches(plan)
        for step, videos in enumerate(plan, start=epoch * len(plan)):
            requested = time.perf_counter()
            batch = next(batches).to(self._device)
            waited += time.perf_counter() - requested
            if on_first_step:
                on_first_step()
                on_first_step = None
            division = self._workers.division(queries_per_video[videos])
            if (pairs := other_right_videos(self._train, videos)) is not None:
                division = replace(division, other_right=torch.from_numpy(pairs))
            token_bytes += token_traffic(division.videos, CLIPS + FRAMES, self.experiment.model.hidden_size)
            losses = self._step(step, batch, division, hard)
            steps.append(torch.stack([getattr(losses, name).detach().float() for name in LOSS_NAMES]))
            totals += steps[-1]
        means = dict(zip(LOSS_NAMES, (totals / len(plan)).tolist(), strict=True))
        if not math.isfinite(means["total"]):
            recorded = torch.stack(steps).cpu()
            raise losses_diverged(epoch + 1, recorded, LOSS_NAMES, self._train, self._collections.directories)
        if not all_finite(self._model.parameters()):
            raise weights_diverged(epoch + 1)
        traffic = None
        if self._workers.count > 1:
            sent, megabytes = self._workers.traffic.since(traffic_before), 1e6 * len(plan)
            traffic = StepTraffic(sent.loss / megabytes, sent.gradients / megabytes, token_bytes / megabytes)
        learning_rate = self._optimizer.param_groups[0]["lr"]
        return TrainedEpoch(means, learning_rate, time.perf_counter() - started, waited, traffic)

    def _batches(self, plan: list[np.ndarray]) -> Iterator[Batch]:
        """Yield this worker's part of each planned batch."""
        own = (self._workers.divide(videos)[self._workers.rank] for videos in plan)
        if self._resident is not None:
            resident = self._resident
            return (resident.collate(videos, self._model.trimmed) for videos in own)
        return prefetch(collate(self._train, videos, self._model.trimmed) for videos in own)

    def _step(self, step: int, batch: Batch, division: Division, hard: bool) -> Losses:
        seed, model = self.experiment.training.seed, self.experiment.model
        torch.manual_seed(stream_seed(seed, step, "dropout", self._workers.rank))
        randomness = StepRandomness.for_model(seed, step, sum(division.videos), sum(division.queries), model)
        losses = self._gradients(batch, randomness, division, hard)
        self._workers.sum_gradients(self._model.parameters())
        self._optimizer.step()
        return losses

    def evaluate(self) -> ValResult:
        """Evaluate the current weights on val in float32, as the `evaluate` command does.

        Raises `TrainingDiverged` if a score is not finite.
        """
        try:
            return self._evaluation(self._model)
        except ScoresNotFinite:
            val = Split.joined(list(self._vals.values()))
            raise scores_diverged(self.progress.epoch + 1, val, self._collections.directories) from None

    def learn_moments(self, result: EpochResult, reporter: Reporter) -> None:
        """Learn where moments are in the curves of the best model, on the first worker, and keep it with that model.

        `result` is the last epoch's, which is not reported yet.
        """
        if self._workers.rank > 0:
            return
        if result.best_epoch == result.epoch:
            self._moments = self._learned(self._model, result.to_dict())
            return

        def learned(best: Path) -> MomentNetwork | None:
            trained = load_model(best)
            return self._learned(trained.model.to(self._device), trained.metrics)

        reporter.add_moments(result.best_epoch, learned)

    def _learned(self, model: DreamPRVR, metrics: Mapping[str, Any]) -> MomentNetwork | None:
        weights = ScoreWeights.of(self.experiment.evaluation, metrics, METRICS)
        return learn_moments(model, weights, self._train, list(self._vals.values()), self.experiment.training.seed)

    def snapshot(self, result: EpochResult) -> Checkpoint:
        """Copy the state to the CPU's memory, as the checkpoint of the epoch with this result."""
        manifest = self._collections.manifest
        metrics: dict[str, Any] = result.to_dict() | {
            "collection": manifest.collection,
            "protocol": manifest.protocol,
            SHARDS: ShardsRecord.of(manifest).to_dict(),
        }
        if manifest.encoding is not None:
            metrics[ENCODING] = manifest.encoding.to_dict()
        if len(manifest.parts()) > 1:
            metrics[PROTOCOLS] = {part.collection: part.protocol for part in manifest.parts()}
        if result.encoder_weight is not None:
            metrics[CHOSEN] = self.experiment.chooses_encoder_weight
        weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._model.state_dict().items()}
        state = {
            "progress": asdict(self.progress),
            "optimizer": tree_map_only(torch.Tensor, lambda t: t.to("cpu", copy=True), self._optimizer.state_dict()),
        }
        moments = None if self._moments is None else self._moments.state_dict()
        return Checkpoint(weights, state, self.experiment, metrics, moments)

    def _load(self, checkpoint: Path) -> None:
        saved = read_experiment(checkpoint)
        if changes := self.experiment.changes_from(saved):
            raise UserError(*(f"{checkpoint}: belongs to another experiment: {change}" for change in changes))
        try:
            changes = shard_changes(read_metrics(checkpoint), self._collections.manifest)
        except ValueError as error:
            raise UserError(f"{checkpoint / METRICS}: damaged: {error}") from None
        if changes:
            raise UserError(*(f"{checkpoint}: was trained on other shards: {change}" for change in changes))
        try:
            self._model.load_state_dict(read_weights(checkpoint))
            state = read_state(checkpoint)
            self._optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress.from_dict(state["progress"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{checkpoint}: does not match this experiment: {reason}") from None

    def _copy_from_first_worker(self) -> None:
        """Overwrite weights, moments and progress with the first worker's; only that worker reads a checkpoint."""
        self._workers.copy_from_first(self._model.state_dict().values())
        self._workers.copy_from_first(self._optimizer.moments())
        numbers = torch.tensor(astuple(self.progress), dtype=torch.float64, device=self._device)
        self._workers.copy_from_first([numbers])
        epoch, best_sumr, best_epoch, stale, finished = numbers.tolist()
        self.progress = Progress(int(epoch), best_sumr, int(best_epoch), int(stale), bool(finished))

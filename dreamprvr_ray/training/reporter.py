"""The result of an epoch, and the interface through which the training loop reports it.

The loop knows a `Reporter`; it knows neither Ray Train nor Ray Tune.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dreamprvr_ray.checkpoints.checkpoint import Checkpoint, add_moments, check_metrics, copy_checkpoint
from dreamprvr_ray.checkpoints.layout import is_checkpoint_file
from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.metrics import RECALL_RANKS
from dreamprvr_ray.model.moment_network import MomentNetwork
from dreamprvr_ray.storage.files import replacing
from dreamprvr_ray.storage.location import Storage

NAN = float("nan")
LOSS, RECALL, TRAFFIC, COLLECTION = "loss/", "R@", "sent_MB/", "SumR/"  # prefixes of keys in `EpochResult.to_dict`


@dataclass(frozen=True)
class StepTraffic:
    """Megabytes that the first worker sends to the others in a training step, averaged over an epoch."""

    loss: float  # query embeddings, score columns and their gradients
    gradients: float  # gradients of the parameters
    video_tokens: float  # what gathering all video tokens would take instead of `loss`

    def line(self) -> str:
        """Return a one-line summary."""
        return (
            f"each worker sends {self.loss:.1f} MB per step for the loss"
            f" ({self.video_tokens:.1f} MB if video tokens were gathered) and {self.gradients:.1f} MB of gradients"
        )


@dataclass(frozen=True)
class EpochResult:
    """The result of one finished epoch. SumR and recall are measured on the val split, in percent.

    Of several collections that are trained on together, they are the means over their val splits.

    `to_dict` gives the flat metrics for `metrics.json`, `epochs.jsonl`, TensorBoard and Ray;
    `from_dict` reads them.
    """

    epoch: int  # finished epochs, counted from 1
    sumr: float
    best_sumr: float
    best_epoch: int
    recall: Mapping[int, float]  # by rank: 1, 5, 10, 100
    median_rank: float
    ties: int  # queries whose video has exactly the score of another one
    losses: Mapping[str, float]  # means over the epoch's batches; all unweighted except `total`
    learning_rate: float
    videos_per_second: float
    seconds: float  # duration of this epoch, evaluation included
    seconds_left: float  # estimated time until the last epoch ends, without early stopping
    waited: float  # share of the epoch's training time spent waiting for data
    finished: bool  # whether training is over: all epochs are done, or patience has run out
    gpu_bytes: int | None = None  # peak memory of the first worker's tensors on its GPU; None on the CPU
    traffic: StepTraffic | None = None  # None with a single worker
    encode_ms: float | None = None  # time to encode a video; measured by searches that trade SumR against it
    zero_shot_sumr: float | None = None  # the best of the encoder alone on val; None if there is not one encoder
    encoder_weight: float | None = None  # in the score on val; None if the configuration leaves the encoder out
    planned_epochs: int | None = None  # not stored: None for a result that was read
    collections: Mapping[str, float] = field(default_factory=dict)  # SumR on val of each of several collections

    def to_dict(self) -> dict[str, Any]:
        """Return flat metrics for Ray, TensorBoard, `metrics.json` and `epochs.jsonl`."""
        traffic = asdict(self.traffic) if self.traffic else {}
        return {
            "epoch": self.epoch,
            "SumR": self.sumr,
            "best_SumR": self.best_sumr,
            "best_epoch": self.best_epoch,
            **{f"{RECALL}{rank}": value for rank, value in self.recall.items()},
            "median_rank": self.median_rank,
            "ties": self.ties,
            **{f"{LOSS}{name}": value for name, value in self.losses.items()},
            "learning_rate": self.learning_rate,
            "videos_per_second": self.videos_per_second,
            "seconds": self.seconds,
            "seconds_left": self.seconds_left,
            "waited": self.waited,
            **({"gpu_bytes": self.gpu_bytes} if self.gpu_bytes is not None else {}),
            **{f"{TRAFFIC}{name}": value for name, value in traffic.items()},
            "finished": self.finished,
            **{f"{COLLECTION}{name}": sumr for name, sumr in self.collections.items()},
            **({"encode_ms": self.encode_ms} if self.encode_ms is not None else {}),
            **({"zero_shot_SumR": self.zero_shot_sumr} if self.zero_shot_sumr is not None else {}),
            **({"encoder_weight": self.encoder_weight} if self.encoder_weight is not None else {}),
        }

    @classmethod
    def from_dict(cls, metrics: Mapping[str, Any]) -> EpochResult:
        """Read what `to_dict` wrote, ignoring other keys such as those that Ray Tune adds.

        Measurements that are missing are nan. Raises KeyError if `epoch`, `SumR`, `best_SumR` or `best_epoch` is
        missing.
        """
        traffic = _with_prefix(metrics, TRAFFIC)
        return cls(
            epoch=metrics["epoch"],
            sumr=metrics["SumR"],
            best_sumr=metrics["best_SumR"],
            best_epoch=metrics["best_epoch"],
            recall={rank: metrics.get(f"{RECALL}{rank}", NAN) for rank in RECALL_RANKS},
            median_rank=metrics.get("median_rank", NAN),
            ties=metrics.get("ties", 0),
            losses=_with_prefix(metrics, LOSS),
            learning_rate=metrics.get("learning_rate", NAN),
            videos_per_second=metrics.get("videos_per_second", NAN),
            seconds=metrics.get("seconds", NAN),
            seconds_left=metrics.get("seconds_left", NAN),
            waited=metrics.get("waited", NAN),
            finished=bool(metrics.get("finished", False)),
            gpu_bytes=metrics.get("gpu_bytes"),
            traffic=StepTraffic(**traffic) if traffic else None,
            encode_ms=metrics.get("encode_ms"),
            zero_shot_sumr=metrics.get("zero_shot_SumR"),
            encoder_weight=metrics.get("encoder_weight"),
            collections=_with_prefix(metrics, COLLECTION),
        )

    def line(self) -> str:
        """Return a one-line summary."""
        recall = " ".join(f"{value:.1f}" for value in self.recall.values())
        own = "".join(f"{name} {sumr:.1f}, " for name, sumr in self.collections.items())
        best = "best so far" if self.best_epoch == self.epoch else f"best {self.best_sumr:.1f} at {self.best_epoch}"
        below = self.zero_shot_sumr is not None and self.sumr < self.zero_shot_sumr
        encoder = f", below the encoder alone: {self.zero_shot_sumr:.1f}" if below else ""
        left = "done" if self.finished else f"{duration(self.seconds_left)} left"
        planned = "" if self.planned_epochs is None else str(self.planned_epochs)
        epoch = f"{self.epoch:>{len(planned)}}/{planned}" if planned else str(self.epoch)
        return (
            f"epoch {epoch} | loss {self.losses['total']:.4f} | val R {recall} | SumR {self.sumr:.1f}"
            f" ({own}{best}{encoder})"
            f" | {self.videos_per_second:.1f} videos/s | {left}"
        )


def _with_prefix(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def latest_result(store: CheckpointStore) -> EpochResult | None:
    """Return the result at the latest checkpoint of `store`, or None if it has no checkpoint.

    Raises `UserError` if its metrics are damaged.
    """
    metrics, path = store.metrics(), f"{store.storage}: metrics.json of the latest checkpoint"
    if metrics is None:
        return None
    check_metrics(metrics, path, {"epoch": int, "best_epoch": int, "SumR": float, "best_SumR": float})
    try:
        return EpochResult.from_dict(metrics)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged: {error}") from None


Snapshot = Callable[[], Checkpoint]
"""Copies the state of a training to the CPU's memory, so that it can be written while training continues."""

Learn = Callable[[Path], MomentNetwork | None]
"""Learns where moments are from the checkpoint in a directory; None if nothing useful."""


class Reporter(Protocol):
    """Receives the progress of a training and keeps its checkpoints. Each worker has its own.

    Each worker calls every method but `add_moments`, which the first one calls.
    """

    def latest_checkpoint(self) -> AbstractContextManager[Path | None]:
        """Open the checkpoint to resume from, or None to start from scratch. Only the first worker's is used."""

    def on_training_start(self) -> None:
        """Called once, when model and data are ready and the first step is about to run."""

    def add_moments(self, epoch: int, learn: Learn) -> None:
        """Add the network that `learn` learns to the checkpoint of an earlier epoch, the best. Called before the last
        report."""

    def report(self, result: EpochResult, snapshot: Snapshot) -> None:
        """Called after every epoch. The state changes when this returns: call `snapshot()` before, or not at all."""


class DirectoryReporter:
    """A reporter for a single worker without Ray. Keeps the `last` and the `best` checkpoint in a directory."""

    def __init__(self, directory: Path, print_line: Callable[[str], None] | None = None) -> None:
        self.last, self.best = directory / "last", directory / "best"
        self.results: list[EpochResult] = []
        self._print_line = print_line

    def latest_checkpoint(self) -> AbstractContextManager[Path | None]:
        return nullcontext(self.last if self.last.exists() else None)

    def on_training_start(self) -> None:
        pass

    def add_moments(self, epoch: int, learn: Learn) -> None:
        if (network := learn(self.best)) is not None:
            add_moments(Storage.of(self.best), network)

    def report(self, result: EpochResult, snapshot: Snapshot) -> None:
        # The best first: a kill in between repeats this epoch, whereas a `last` alone would never become the best.
        first = self.best if result.best_epoch == result.epoch else self.last
        with replacing(first, is_checkpoint_file) as directory:
            snapshot().write(directory)
        if first == self.best:
            copy_checkpoint(self.best, self.last)
        self.results.append(result)
        if self._print_line:
            self._print_line(result.line())


def duration(seconds: float) -> str:
    """Format seconds for people: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

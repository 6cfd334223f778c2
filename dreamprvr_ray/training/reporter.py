"""What the training loop tells of an epoch, and to whom: the loop knows a `Reporter` and neither Ray Train nor Ray Tune."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from dreamprvr_ray.checkpoints.checkpoint import copy_checkpoint
from dreamprvr_ray.storage.files import replacing


@dataclass(frozen=True)
class Sent:
    """Megabytes that the first worker sends to the others in a training step, on average."""

    loss: float  # query embeddings, score columns and their gradients
    gradients: float  # the parameters'
    video_tokens: float  # what gathering all video tokens, in place of `loss`, would take

    def line(self) -> str:
        """The line that a person reads."""
        return (
            f"a worker sends {self.loss:.1f} MB a step for the loss ({self.video_tokens:.1f} MB if video tokens were gathered)"
            f" and {self.gradients:.1f} MB of gradients"
        )


@dataclass(frozen=True)
class EpochResult:
    """One finished epoch. `epoch` counts finished epochs, from 1; SumR and recall are of the val split, in percent."""

    epoch: int
    epochs: int
    losses: dict[str, float]  # means over the epoch's batches, unweighted but `total`
    metrics: dict[str, Any]  # of the val split, by the names of the commands' JSON
    sumr: float
    best_sumr: float
    best_epoch: int
    learning_rate: float
    videos_per_second: float
    seconds: float  # of this epoch, evaluation included
    seconds_left: float  # of this training, if it is not stopped early
    waited: float  # share of the epoch's training time that was spent waiting for data
    gpu_bytes: int | None  # the most that the first worker's tensors took of its GPU; None on the CPU
    sent: Sent | None  # None: one worker, which sends nothing
    finished: bool  # the last epoch: all are done, or patience is used up

    def to_dict(self) -> dict[str, Any]:
        """Flat metrics for Ray, TensorBoard and `metrics.json`."""
        recall = {key: self.metrics[key] for key in ("R@1", "R@5", "R@10", "R@100", "median_rank", "ties")}
        return {
            "epoch": self.epoch,
            "SumR": self.sumr,
            "best_SumR": self.best_sumr,
            "best_epoch": self.best_epoch,
            **recall,
            **{f"loss/{name}": value for name, value in self.losses.items()},
            "learning_rate": self.learning_rate,
            "videos_per_second": self.videos_per_second,
            "seconds": self.seconds,
            "seconds_left": self.seconds_left,
            "waited": self.waited,
            **({"gpu_bytes": self.gpu_bytes} if self.gpu_bytes is not None else {}),
            **({f"sent_MB/{name}": value for name, value in asdict(self.sent).items()} if self.sent else {}),
            "finished": self.finished,
        }

    def line(self) -> str:
        """The line that a person reads."""
        recall = " ".join(f"{self.metrics[key]:.1f}" for key in ("R@1", "R@5", "R@10", "R@100"))
        best = "best so far" if self.best_epoch == self.epoch else f"best {self.best_sumr:.1f} at {self.best_epoch}"
        left = "done" if self.finished else f"{duration(self.seconds_left)} left"
        width = len(str(self.epochs))
        return (
            f"epoch {self.epoch:>{width}}/{self.epochs} | loss {self.losses['total']:.4f} | val R {recall} | SumR {self.sumr:.1f} ({best})"
            f" | {self.videos_per_second:.1f} videos/s | {left}"
        )


Snapshot = Callable[[], Callable[[Path], None]]
"""Copies the state of a training; what it returns writes that state's checkpoint into a directory, at any later time."""


class Reporter(Protocol):
    """Where a training keeps its checkpoints and says how far it is. Every worker has one and calls all of it."""

    def latest_checkpoint(self) -> AbstractContextManager[Path | None]:
        """The checkpoint to resume from, readable inside the block; None: start anew. Only the first worker's is used."""

    def first_step(self) -> None:
        """Hears that everything is ready and the first step begins."""

    def report(self, report: EpochResult, snapshot: Snapshot) -> None:
        """Takes an epoch's report; training goes on when this returns, so `snapshot()` is to be called here, if at all."""


class DirectoryReporter:
    """A reporter without Ray, for one worker: `last` and `best` checkpoints in a directory, and the lines of the epochs."""

    def __init__(self, directory: Path, say: Callable[[str], None] | None = None) -> None:
        self.last, self.best = directory / "last", directory / "best"
        self.say = say
        self.reports: list[EpochResult] = []

    def latest_checkpoint(self) -> AbstractContextManager[Path | None]:
        return nullcontext(self.last if self.last.exists() else None)

    def first_step(self) -> None:
        pass

    def report(self, report: EpochResult, snapshot: Snapshot) -> None:
        with replacing(self.last) as directory:
            snapshot()(directory)
        if report.best_epoch == report.epoch:
            copy_checkpoint(self.last, self.best)
        self.reports.append(report)
        if self.say:
            self.say(report.line())


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

"""The trials of a search, ranked by their best val SumR, and where each one's best checkpoint is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray import train
from ray.tune import ResultGrid
from ray.tune.experiment import Trial

from dreamprvr_ray.checkpoints import write_text
from dreamprvr_ray.search.trial import nested_run_name


@dataclass(frozen=True)
class Entry:
    """One trial. `number` counts from 0 in the order of proposal; SumR is of the val split."""

    number: int
    trial_id: str
    state: str  # finished, pruned, failed, running, waiting
    best_sumr: float | None
    best_epoch: int | None
    epochs: int
    values: dict[str, Any]
    checkpoint: str | None = None
    error: str | None = None


def entry_of(number: int, trial: Trial) -> Entry:
    """A trial as Ray Tune holds it while the search runs."""
    result = trial.last_result or {}
    state = {"PENDING": "waiting", "PAUSED": "waiting", "RUNNING": "running", "ERROR": "failed"}.get(trial.status)
    return Entry(
        number,
        trial.trial_id,
        state or _ended_state(result),
        result.get("best_SumR"),
        result.get("best_epoch"),
        result.get("epoch", 0),
        dict(trial.config),
    )


def entries_of(results: ResultGrid, nested_runs: Path) -> list[Entry]:
    """All trials of an ended search, best first, with their best checkpoints."""
    entries = []
    for number, result in enumerate(results):
        metrics = result.metrics or {}
        trial_id = str(metrics.get("trial_id") or Path(result.path).name.removeprefix("trial_"))
        entries.append(
            Entry(
                number,
                trial_id,
                "failed" if result.error else _ended_state(metrics),
                metrics.get("best_SumR"),
                metrics.get("best_epoch"),
                metrics.get("epoch", 0),
                dict(result.config or {}),
                _best_checkpoint(result.best_checkpoints, nested_runs / nested_run_name(trial_id)),
                str(result.error).strip().splitlines()[-1] if result.error else None,
            )
        )
    return ranked(entries)


def ranked(entries: Iterable[Entry]) -> list[Entry]:
    """Best val SumR first; trials without any last, the earlier proposed first among equals."""
    return sorted(entries, key=lambda entry: (-(entry.best_sumr if entry.best_sumr is not None else float("-inf")), entry.number))


def write_leaderboard(path: Path, entries: Sequence[Entry]) -> None:
    """Writes the ranked trials as JSON."""
    write_text(path, json.dumps([asdict(entry) for entry in entries], indent=1) + "\n")


def table(entries: Sequence[Entry], keys: Sequence[str]) -> list[str]:
    """The lines of a table of trials, with a column for each searched key's last word."""
    rows = [["trial", "state", "epochs", "SumR", "at", *(key.rsplit(".", 1)[-1] for key in keys)]]
    for entry in entries:
        sumr = "-" if entry.best_sumr is None else f"{entry.best_sumr:.1f}"
        values = [_number(entry.values.get(key)) for key in keys]
        rows.append([str(entry.number), entry.state, str(entry.epochs), sumr, str(entry.best_epoch or "-"), *values])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _ended_state(metrics: dict[str, Any]) -> str:
    return "finished" if metrics.get("finished") else "pruned" if "SumR" in metrics else "failed"


def _best_checkpoint(own: list[Any] | None, nested_run: Path) -> str | None:
    """The best of a trial's own checkpoints, or of its Ray Train run's."""
    checkpoints = own or []
    if not checkpoints and nested_run.exists():
        checkpoints = train.Result.from_path(str(nested_run)).best_checkpoints or []
    scored = [(metrics["SumR"], checkpoint.path) for checkpoint, metrics in checkpoints if metrics and "SumR" in metrics]
    return max(scored)[1] if scored else None


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

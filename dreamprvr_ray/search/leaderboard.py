"""The trials of a search, ranked by their best val SumR, and where each one's best checkpoint is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ray.tune import ResultGrid
from ray.tune.experiment import Trial

from dreamprvr_ray.checkpoint_store import CheckpointStore
from dreamprvr_ray.checkpoints import write_text
from dreamprvr_ray.search.searcher import TRIAL_NUMBER
from dreamprvr_ray.search.trial import number_of
from dreamprvr_ray.storage import Storage


@dataclass(frozen=True)
class Entry:
    """One trial. `number` counts from 0 in the order of proposal; SumR is of the val split."""

    number: int
    state: str  # finished, pruned, failed, running, waiting
    best_sumr: float | None
    best_epoch: int | None
    epochs: int
    values: dict[str, Any]
    checkpoint: str | None = None
    error: str | None = None


def entry_of(trial: Trial) -> Entry:
    """A trial as Ray Tune holds it while the search runs."""
    result = trial.last_result or {}
    state = {"PENDING": "waiting", "PAUSED": "waiting", "RUNNING": "running", "ERROR": "failed"}.get(trial.status)
    values = {key: value for key, value in trial.config.items() if key != TRIAL_NUMBER}
    return _entry(trial.config[TRIAL_NUMBER], values, result, state or _ended_state(result))


def entries_of(results: ResultGrid, proposed: Mapping[int, dict[str, Any]], runs: Path) -> list[Entry]:
    """All trials of an ended search, best first, with their best checkpoints; `proposed` are the values by trial number."""
    entries = []
    for result in results:
        name, metrics = Path(result.path).name, result.metrics or {}
        number = number_of(name)
        state = "failed" if result.error else _ended_state(metrics)
        checkpoint = _best_checkpoint(runs / name)
        error = str(result.error).strip().splitlines()[-1] if result.error else None
        entries.append(replace(_entry(number, proposed[number], metrics, state), checkpoint=checkpoint, error=error))
    return ranked(entries)


def _entry(number: int, values: dict[str, Any], metrics: dict[str, Any], state: str) -> Entry:
    return Entry(number, state, metrics.get("best_SumR"), metrics.get("best_epoch"), metrics.get("epoch", 0), values)


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


def _best_checkpoint(run: Path) -> str | None:
    """The checkpoint of a trial's best epoch."""
    with CheckpointStore(Storage.of(run / "checkpoints")).best() as best:
        return str(best) if best else None


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

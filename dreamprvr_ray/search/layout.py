"""The names in a search's directory. Imports neither Ray nor PyTorch: a report reads a search without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dreamprvr_ray.checkpoints.layout import BEST as BEST  # in a search: the selected checkpoint
from dreamprvr_ray.checkpoints.layout import CHECKPOINTS as CHECKPOINTS
from dreamprvr_ray.checkpoints.layout import TEST_RECORD as TEST_RECORD
from dreamprvr_ray.checkpoints.layout import VALUES as VALUES
from dreamprvr_ray.errors import UserError

SEARCH = "search.yaml"  # the configuration and the settings of the search
JOURNAL = "optuna.journal"  # the Optuna study
WANDB = "wandb"  # files of the W&B tracker
RUNS = "runs"  # a directory per trial
FINAL_RUNS = "final"  # a directory per final run
EPOCHS = "epochs.jsonl"  # in a run's directory: the metrics of each epoch, one line per epoch
LEADERBOARD = "leaderboard.json"  # all trials, best first
FINAL_PLAN = "final_runs.json"  # the names of the final runs, written when the final stage begins
ABLATIONS = "ablations.json"  # the finished rows of an ablation table
FINAL = "final.json"  # the final runs and their comparisons


def trial_name(number: int) -> str:
    """Return the name of a trial's directory and runs: `trial_007`."""
    return f"trial_{number:03d}"


def read_epochs(directory: Path) -> list[dict[str, Any]]:
    """Return the logged epochs of a run, in order, without a last line that a kill left incomplete.

    Raises `UserError`, naming the line, if another line is damaged.
    """
    path = directory / EPOCHS
    try:
        *lines, _ = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    epochs = []
    for number, line in enumerate(lines, 1):
        try:
            epochs.append(json.loads(line))
            if not isinstance(epochs[-1]["epoch"], int):
                raise ValueError("no epoch")
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{path}, line {number}: damaged; restore the file, or remove the line") from None
    return epochs

"""The names in a search's directory. Imports neither Ray nor PyTorch: a report reads a search without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dreamprvr_ray.checkpoints.layout import BEST as BEST  # in a search: the selected checkpoint
from dreamprvr_ray.checkpoints.layout import CHECKPOINTS as CHECKPOINTS
from dreamprvr_ray.checkpoints.layout import TEST_RECORD as TEST_RECORD

SEARCH = "search.yaml"  # the configuration and the settings of the search
JOURNAL = "optuna.journal"  # the Optuna study
WANDB = "wandb"  # files of the W&B tracker
RUNS = "runs"  # a directory per trial
FINAL_RUNS = "final"  # a directory per final run
EPOCHS = "epochs.jsonl"  # in a run's directory: the metrics of each epoch, one line per epoch
LEADERBOARD = "leaderboard.json"  # all trials, best first
FINAL_PLAN = "final_runs.json"  # the names of the final runs, written when the final stage begins
FINAL = "final.json"  # the final runs and their comparisons
VALUES = "values.json"  # in `best`: the values of the selected checkpoint


def trial_name(number: int) -> str:
    """Return the name of a trial's directory and runs: `trial_007`."""
    return f"trial_{number:03d}"


def read_epochs(directory: Path) -> list[dict[str, Any]]:
    """Return the logged epochs of a run, in order, without a last line that a kill left incomplete."""
    try:
        lines = (directory / EPOCHS).read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]

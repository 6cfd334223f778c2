"""What a search's directory holds, by name, for those who write it and those who only read it. Imports no Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dreamprvr_ray.checkpoints.layout import BEST as BEST  # here: the chosen checkpoint
from dreamprvr_ray.checkpoints.layout import CHECKPOINTS as CHECKPOINTS

SEARCH = "search.yaml"  # what decides the result
JOURNAL = "optuna.journal"  # the study
WANDB = "wandb"  # W&B's own files, where that tracker is asked for
RUNS = "runs"  # a directory a trial
FINAL_RUNS = "final"  # a directory a final training
EPOCHS = "epochs.jsonl"  # in a trial's directory: a line of metrics an epoch
LEADERBOARD = "leaderboard.json"
FINAL = "final.json"
TEST_RECORD = "test.json"  # beside a checkpoint: every reading of test


def trial_name(number: int) -> str:
    """What a trial's directories and runs are called: trial_007."""
    return f"trial_{number:03d}"


def read_epochs(directory: Path) -> list[dict[str, Any]]:
    """The epochs in a trial's directory, in order; what a kill cut off is left out."""
    try:
        lines = (directory / EPOCHS).read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]

"""Small searches on synthetic videos, for the benchmarks of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from dreamprvr_ray.data.conversion import ConversionSettings, convert
from dreamprvr_ray.data.demo import write_demo
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.search.layout import JOURNAL

SMALL = {
    "model.hidden_size": 16,
    "model.branches": 1,
    "model.diffusion_steps": 1,
    "training.batch_videos": 16,
    "loss.hard_negative_start_epoch": 2,
}


def write_search(folder: Path, trials: int, epochs: int, videos: int, **keys: Any) -> Path:
    """Write shards with `videos` training videos and a search of two keys into `folder`; return its YAML file."""
    write_demo(folder / "source", seed=1, videos={"train": videos, "val": 20, "test": 20})
    convert(Source.open(folder / "source", "demo"), folder / "shards", ConversionSettings(), workers=1)
    searched = {"model.registers": {"int": [0, 6]}, "optimizer.learning_rate": {"float": [1e-6, 1e-2], "log": True}}
    values = {
        "config": "demo",
        "shards": str(folder / "shards"),
        "out": str(folder / "out"),
        "trials": trials,
        "space": SMALL | {"training.epochs": epochs, "training.patience": epochs} | searched,
    }
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(values | keys))
    return path


def study_trials(search: Path) -> list[FrozenTrial]:
    """Return the trials in a search's directory; none if its study does not exist yet."""
    journal = search / JOURNAL
    if not journal.exists():
        return []
    return optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(journal)))).trials

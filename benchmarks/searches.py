"""Small searches on made videos, for the benchmarks of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dreamprvr_ray.data.conversion import ConversionSettings, convert
from dreamprvr_ray.data.demo import write_demo
from dreamprvr_ray.data.source import Source

SMALL = {
    "model.hidden_size": 16,
    "model.branches": 1,
    "model.diffusion_steps": 1,
    "training.batch_videos": 16,
    "loss.hard_negative_start_epoch": 2,
}


def write_search(folder: Path, trials: int, epochs: int, videos: int, **keys: Any) -> Path:
    """Makes shards of so many training videos in `folder`, and a search of a few keys on them; returns its YAML file."""
    write_demo(folder / "source", seed=1, videos={"train": videos, "val": 20, "test": 20})
    convert(Source.open(folder / "source", "demo"), folder / "shards", ConversionSettings(), workers=1)
    ranges = {"model.registers": {"int": [0, 6]}, "optimizer.learning_rate": {"float": [1e-6, 1e-2], "log": True}}
    space = SMALL | {"training.epochs": epochs, "training.patience": epochs} | ranges
    values = {
        "config": "demo",
        "shards": str(folder / "shards"),
        "out": str(folder / "out"),
        "trials": trials,
        "space": space,
    }
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(values | keys))
    return path

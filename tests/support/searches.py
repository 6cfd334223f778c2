"""Searches for the tests of the study, without Ray: a space file, and the results that trials would report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from dreamprvr_ray.search.space import Search, load_search

SPACE = {
    "model.registers": {"int": [0, 8]},
    "optimizer.learning_rate": {"float": [1e-4, 1e-2], "log": True},
    "training.epochs": 9,
}


def make_search_settings(folder: Path, space: dict[str, Any] | None = None, **keys: Any) -> Search:
    path = folder / "made.yaml"
    values = {"config": "demo", "shards": "shards", "out": str(folder / "out"), "trials": 8, "space": space or SPACE}
    path.write_text(yaml.safe_dump(values | keys))
    (folder / "out").mkdir(exist_ok=True)
    return load_search(path)


def result(epoch: int, sumr: float, best: float | None = None, finished: bool = False) -> dict[str, Any]:
    """What a trial reports; its `training_iteration` is of no use, as after a trial was taken up again."""
    best = sumr if best is None else best
    return {
        "epoch": epoch,
        "SumR": sumr,
        "best_SumR": best,
        "best_epoch": epoch,
        "finished": finished,
        "training_iteration": 1,
        "time_total_s": 2.5,
    }

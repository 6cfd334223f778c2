"""Correct inputs: a source tree, shards, a checkpoint, configurations, and the directories of two finished searches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from benchmarks.simulated_search import write_finished_search
from dreamprvr_ray.checkpoints.checkpoint import Checkpoint
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.data.conversion import ConversionSettings, convert
from dreamprvr_ray.data.demo import write_demo
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.model.dreamprvr import DreamPRVR

SMALL = {"model.hidden_size": 16, "model.heads": 2, "model.branches": 2, "model.diffusion_steps": 2}
SPACE: dict[str, Any] = {
    "model.registers": {"int": [0, 8]},
    "model.dropout": {"float": [0.0, 0.5], "step": 0.05},
    "loss.margin": {"float": [0.1, 0.4], "when": "model.registers > 0"},
}
OTHERS = (  # of a user in the directory of a search
    "finished/notes.txt",
    "finished/best/notes.txt",
    "finished/runs/mine/metrics.json",
    "finished/runs/trial_000/checkpoints/notes.txt",
)


def write_base(root: Path) -> None:
    """Write a correct input of each kind."""
    write_demo(root / "source", seed=0, videos={"train": 6, "val": 3, "test": 3})
    convert(Source.open(root / "source", "demo", None), root / "shards", ConversionSettings(), workers=1)
    experiment = load_experiment("demo", SMALL)
    torch.manual_seed(0)
    model = DreamPRVR(experiment.model, experiment.data.video_size, experiment.data.text_size)
    (root / "checkpoint").mkdir()
    metrics = {"epoch": 1, "SumR": 100.0, "best_epoch": 1, "best_SumR": 100.0}
    Checkpoint(model.state_dict(), None, experiment, metrics).write(root / "checkpoint")
    (root / "config.yaml").write_text(yaml.safe_dump({"preset": "demo", "model": {"registers": 4}}))
    search = {"config": "demo", "shards": "shards", "out": "out", "trials": 4, "space": SPACE}
    more = {"constraints": ["model.registers < 8 or loss.margin < 0.3"], "final": {"top": 1, "seeds": 2}}
    (root / "space.yaml").write_text(yaml.safe_dump(search | more))
    write_experiment(root / "experiment")
    tiny = {key: value for key, value in SMALL.items() if key != "model.branches"} | {"training.epochs": 1}
    space = tiny | {"model.branches": 1, "model.registers": {"int": [0, 8]}}
    search = {"config": "demo", "shards": "shards", "out": "finished", "trials": 3, "space": space}
    (root / "finished.yaml").write_text(yaml.safe_dump(search | {"keep": 2, "final": {"top": 1, "seeds": 2}}))
    write_finished_search(root / "finished.yaml", root / "shards", root / "finished")
    for name in OTHERS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("mine")


def write_experiment(folder: Path, trials: int = 4) -> None:
    """Write the directory of a finished search of `trials` trials, with a final result and a test record."""
    folder.mkdir(parents=True)
    experiment = load_experiment("demo", SMALL)
    settings = {"config": "demo", "shards": "shards", "out": str(folder), "trials": trials, "space": SPACE}
    contents = {"name": "fuzz", "experiment": experiment.model_dump(), "search": settings | {"store": None}}
    (folder / "search.yaml").write_text(yaml.safe_dump(contents, sort_keys=False))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))
    study = optuna.create_study(study_name="fuzz", storage=storage, direction="maximize")
    distributions = {"model.registers": IntDistribution(0, 8), "model.dropout": FloatDistribution(0.0, 0.5, step=0.05)}
    board = []
    for number in range(trials):
        values = {"model.registers": 4 + number % 3, "model.dropout": 0.2 + 0.05 * (number % 2)}
        curve = {epoch: 100.0 + number + epoch for epoch in (1, 2, 3)}
        attributes = {"epochs": 3, "best_epoch": 3, "best_SumR": curve[3], "seconds": 5.0}
        trial = create_trial(
            state=TrialState.COMPLETE,
            params=values,
            distributions=distributions,
            values=[curve[3]],
            intermediate_values=curve,
            user_attrs=attributes,
        )
        study.add_trial(trial)
        run_folder = folder / "runs" / f"trial_{number:03d}"
        run_folder.mkdir(parents=True)
        lines = [json.dumps({"epoch": epoch, "SumR": sumr}) for epoch, sumr in curve.items()]
        (run_folder / "epochs.jsonl").write_text("\n".join(lines) + "\n")
        entry = {"number": number, "state": "finished", "best_sumr": curve[3], "best_epoch": 3, "epochs": 3}
        board.append(entry | {"values": values, "checkpoint": None, "error": None})
    (folder / "leaderboard.json").write_text(json.dumps(board))
    recall = {"R@1": 10.0, "R@5": 20.0, "R@10": 30.0, "R@100": 40.0, "SumR": 100.0, "queries": 9, "videos": 3}
    test = recall | {"split": "test", "collection": "demo", "protocol": "own splits", "median_rank": 2.0, "ties": 0}
    test["by_moment"] = {"0-0.2": recall}
    runs = [{"seed": seed, "val_SumR": 90.0, "best_epoch": 3, "checkpoint": "x", "test": test} for seed in (1, 2)]
    candidates = [
        {"name": name, "trial": trial, "values": {}, "runs": runs} for name, trial in (("trial 3", 3), ("paper", 0))
    ]
    comparison = {"better": "trial 3", "than": "paper", "difference": 1.0, "interval": [-1.0, 3.0]}
    final = {"split": "test", "collection": "demo", "protocol": "own splits", "candidates": candidates}
    final |= {"comparison": comparison | {"confidence": 0.95, "resamples": 100}, "versions": {"torch": "2"}}
    (folder / "final.json").write_text(json.dumps(final | {"commands": ["python -m dreamprvr_ray.tune"]}))
    (folder / "best").mkdir()
    (folder / "best" / "test.json").write_text(
        json.dumps({"readings": [test | {"at": "", "shards": "", "test_reads": 1}]})
    )

"""Synthetic directories of searches, as `tune` writes them but without training.

SumR is a known function of the values.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.evaluation.metrics import Evaluation

SPACE: dict[str, Any] = {
    "model.registers": {"int": [0, 16]},
    "model.diffusion_steps": {"int": [1, 50], "log": True, "when": "model.registers > 0"},
    "optimizer.learning_rate": {"float": [1e-5, 1e-2], "log": True},
    "loss.margin": {"float": [0.05, 0.5]},
    "model.dropout": {"float": [0.0, 0.5]},
    "model.branches": {"choice": [4, 8]},
}
EPOCHS = 20
PAPER = {key: load_experiment("tvr").flat()[key] for key in SPACE}


def distribution(range_: dict[str, Any]) -> optuna.distributions.BaseDistribution:
    if "choice" in range_:
        return CategoricalDistribution(range_["choice"])
    if "int" in range_:
        return IntDistribution(*range_["int"], log=range_.get("log", False))
    return FloatDistribution(*range_["float"], log=range_.get("log", False))


def sumr_at(values: dict[str, Any], epoch: int) -> float:
    """The learning rate matters, and is best at 1e-3. Registers matter a little."""
    distance = math.log10(values["optimizer.learning_rate"] / 1e-3)
    return (250 - 30 * distance**2 - 0.02 * (values["model.registers"] - 6) ** 2) * (1 - 0.5 * 0.75**epoch)


def propose(draw: random.Random) -> dict[str, Any]:
    values: dict[str, Any] = {
        "model.registers": draw.randint(0, 16),
        "optimizer.learning_rate": 10 ** draw.uniform(-5, -2),
        "loss.margin": draw.uniform(0.05, 0.5),
        "model.dropout": draw.uniform(0, 0.5),
        "model.branches": draw.choice([4, 8]),
    }
    if values["model.registers"]:
        values["model.diffusion_steps"] = round(math.exp(draw.uniform(0, math.log(50))))
    return values


def make_search(
    out: Path,
    *,
    trials: int = 40,
    planned: int | None = None,
    failed: tuple[int, ...] = (),
    running: tuple[int, ...] = (),
    refused: tuple[int, ...] = (),
    two_objectives: bool = False,
    leaderboard: bool = True,
    epoch_records: bool = True,
    noise: bool = False,
    pruning: bool = True,
    name: str = "synthetic",
    reason: str = "out of memory: 38.1 GiB were asked for",
    seed: int = 0,
    first_pruned_after: int | None = None,
) -> Path:
    """Write the directory and return it. With `noise`, SumR does not depend on the values."""
    draw = random.Random(seed)
    out.mkdir(parents=True, exist_ok=True)
    fixed = {"model.hidden_size": 128, "training.epochs": EPOCHS, "data.trim_frames": "batch"}
    experiment = load_experiment("tvr", fixed | {"data.video_size": 384, "data.text_size": 384}).model_dump()
    settings = {
        "config": "tvr",
        "shards": "shards/synthetic",
        "out": str(out),
        "trials": planned or trials - len(refused),
        "space": SPACE | fixed,
        "pruning": {"enabled": pruning, "grace_epochs": 4, "reduction_factor": 3},
        "sampler": {"seed": 0, "startup_trials": 10},
        "store": None,
    }
    (out / "search.yaml").write_text(
        yaml.safe_dump({"name": name, "experiment": experiment, "search": settings}, sort_keys=False)
    )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=name,
        storage=JournalStorage(JournalFileBackend(str(out / "optuna.journal"))),
        directions=["maximize", "minimize"] if two_objectives else ["maximize"],
    )
    if two_objectives:
        study.set_user_attr("objectives", ["SumR", "gflop_per_video"])
    board: list[dict[str, Any]] = []
    best_at: dict[int, list[float]] = {4: [], 12: []}
    for number in range(trials):
        values = dict(PAPER) if number == 0 else propose(draw)
        distributions = {key: distribution(SPACE[key]) for key in values}
        if number in refused:
            frozen = optuna.trial.create_trial(
                state=TrialState.FAIL,
                params=values,
                distributions=distributions,
                user_attrs={"infeasible": True, "reason": "registers * steps"},
            )
            study.add_trial(frozen)
            continue
        shift = draw.uniform(-40, 0) if noise else 0.0
        jitter = [draw.gauss(0, 0.8) for _ in range(EPOCHS)]

        def reach(
            epoch: int, values: dict[str, Any] = values, shift: float = shift, jitter: list[float] = jitter
        ) -> float:
            basis = PAPER if noise else values
            return sumr_at(basis, epoch) + shift + jitter[epoch - 1]

        last, state = EPOCHS, TrialState.COMPLETE
        if number in failed:
            last, state = 2, TrialState.FAIL
        elif number in running:
            last, state = 7, TrialState.RUNNING
        elif number == 0 and first_pruned_after:
            last, state = first_pruned_after, TrialState.PRUNED
        elif pruning and not two_objectives:
            for rung, seen in best_at.items():
                seen.append(reach(rung))
                if sorted(seen, reverse=True).index(reach(rung)) > max(1, len(seen) // 3):
                    last, state = rung, TrialState.PRUNED
                    break
        curve = {epoch: reach(epoch) for epoch in range(1, last + 1)}
        best_epoch = max(curve, key=lambda epoch: curve[epoch])
        best = curve[best_epoch]
        attributes = {"epochs": last, "best_epoch": best_epoch, "best_SumR": best, "seconds": 31.0 * last}
        if number in failed:
            attributes["reason"] = reason
        cost = 2.0 + values["model.registers"] * values.get("model.diffusion_steps", 0) / 20
        ended = state in (TrialState.COMPLETE, TrialState.PRUNED)
        objectives = None if not ended else [best, cost] if two_objectives else [best]
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                params=values,
                distributions=distributions,
                values=objectives,
                intermediate_values={} if two_objectives else curve,
                user_attrs=attributes,
            )
        )
        if epoch_records:
            run = out / "runs" / f"trial_{number:03d}"
            run.mkdir(parents=True)
            lines = [
                json.dumps({"epoch": epoch, "SumR": value, "best_SumR": best, "loss/total": 3 / epoch})
                for epoch, value in curve.items()
            ]
            (run / "epochs.jsonl").write_text(
                "\n".join(lines) + "\n" + ('{"epoch": 8, "Su' if number in running else "")
            )
        words = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running"}
        entry = {
            "number": number,
            "state": words[state.name],
            "best_sumr": best,
            "best_epoch": best_epoch,
            "epochs": last,
            "values": values,
        }
        board.append(entry | {"checkpoint": None, "error": attributes.get("reason")})
    if leaderboard:
        board.sort(key=lambda entry: -entry["best_sumr"])
        for entry in board[:3]:
            entry["checkpoint"] = str(
                out.resolve()
                / "runs"
                / f"trial_{entry['number']:03d}"
                / "checkpoints"
                / f"epoch-{entry['best_epoch']:04d}"
            )
        (out / "leaderboard.json").write_text(json.dumps(board))
    return out


def evaluation(sumr: float, *, moments: bool = True, older: bool = False) -> dict[str, Any]:
    """Return a test result as `evaluate --json` prints it. An older one has zeros for a group without queries."""
    recall = {"R@1": sumr * 0.1, "R@5": sumr * 0.22, "R@10": sumr * 0.28, "R@100": sumr * 0.4, "SumR": sumr}

    def group(queries: int, more: float) -> dict[str, Any]:
        return {"queries": queries} | {
            name: value + more if queries else 0.0 if older else None for name, value in recall.items()
        }

    groups = {"0-0.2": group(292, 4.0), "0.2-0.4": group(119, -3.0), "0.4-1": group(0, 0.0)}
    return recall | {
        "split": "test",
        "collection": "synthetic",
        "protocol": "own splits",
        "median_rank": 5.0,
        "queries": 477,
        "videos": 465,
        "ties": 0,
        "by_moment": groups if moments else None,
    }


def make_test_result(sumr: float) -> Evaluation:
    """Return a typed test result with this SumR."""
    return Evaluation.from_dict(evaluation(sumr))


def add_final(
    out: Path,
    *,
    interval: tuple[float, float] = (6.2, 14.9),
    trial: int = 17,
    moments: bool = True,
    older: bool = False,
    ablated: tuple[float, float] | None = None,
    first_seed: int = 1,
) -> None:
    """Write final.json for a trial and the configuration's own settings, retrained with three seeds.

    With `ablated`, the interval of the ablation, the trial was also retrained with the configuration's learning rate.
    """

    def candidate(name: str, number: int, sumrs: list[float]) -> dict[str, Any]:
        runs = [
            {
                "seed": seed,
                "val_SumR": sumr + 20,
                "best_epoch": 15,
                "checkpoint": f"final/{number}-{seed}",
                "test": test,
            }
            for seed, (sumr, test) in enumerate(
                ((sumr, evaluation(sumr, moments=moments, older=older)) for sumr in sumrs), start=first_seed
            )
        ]
        return {"name": name, "trial": number, "values": {}, "runs": runs, "mean": sum(sumrs) / 3, "std": 1.0}

    def comparison(than: str, difference: float, interval: tuple[float, float]) -> dict[str, Any]:
        entry = {"better": f"trial {trial}", "than": than, "difference": difference, "interval": list(interval)}
        return entry | {"confidence": 0.95, "resamples": 10000}

    key = "optimizer.learning_rate"
    without = candidate(f"trial {trial} with the paper's {key}", trial, [241.0, 242.0, 243.0]) | {"ablated": key}
    final = {
        "split": "test",
        "collection": "synthetic",
        "protocol": "own splits",
        "candidates": [
            candidate(f"trial {trial}", trial, [249.6, 251.2, 248.8]),
            *([without] if ablated else []),
            candidate("paper", 0, [238.1, 240.9, 239.0]),
        ],
        "comparison": comparison("paper", 10.5, interval),
        "ablations": [comparison(without["name"], 7.9, ablated)] if ablated else [],
        "versions": {
            "dreamprvr_ray": "0.1.0",
            "torch": "2.13.0",
            "ray": "2.60.0",
            "optuna": "5.0.0",
            "python": "3.11.2",
        },
        "commands": ["python -m dreamprvr_ray.tune --space search_spaces/synthetic.yaml --shards shards/synthetic"],
    }
    (out / "final.json").write_text(json.dumps(final))

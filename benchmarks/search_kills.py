"""python -m benchmarks.search_kills --kills 10 --json: SIGKILL of a search's driver at random moments, resumed each time.

`lost` are trials that never ended, `repeated` those that had ended before a kill and were touched after it, `running` rows that the study
still takes for running, `orphans` checkpoints on the disk that the leaderboard does not name.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna
import ray
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from benchmarks.searches import write_search
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.runtime.session import ray_session
from dreamprvr_ray.search.layout import read_epochs

TRIALS, EPOCHS, KEEP = 24, 4, 3


def ended(out: Path) -> dict[int, tuple[object, ...]]:
    """What is recorded of every trial that has ended."""
    if not (out / "optuna.journal").exists():
        return {}
    study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(out / "optuna.journal"))))
    return {
        trial.number: (
            trial.state,
            trial.value,
            trial.datetime_complete,
            read_epochs(out / "runs" / f"trial_{trial.number:03d}"),
        )
        for trial in study.trials
        if trial.state.is_finished()
    }


def start(space: Path, resume: bool, address: str) -> subprocess.Popen[str]:
    """The search's command, up to its first words about trials."""
    command = [sys.executable, "-m", "dreamprvr_ray.tune", "--space", str(space), *(["--resume"] if resume else [])]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ | {"RAY_ADDRESS": address}
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "trials, " in line:
            return process
    raise RuntimeError("the search did not start")


def main(arguments: list[str]) -> None:
    parser = Parser("search_kills", "A search whose driver is killed.", package="benchmarks")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    moments, repeated = random.Random(options.seed), set[int]()
    with tempfile.TemporaryDirectory(prefix="dreamprvr-search-kills-") as folder, ray_session(dashboard=False):
        pruning = {"grace_epochs": 1, "reduction_factor": 2}
        space = write_search(Path(folder), TRIALS, EPOCHS, 60, keep=KEEP, trial={"at_a_time": 2}, pruning=pruning)
        out, address, before = (
            Path(folder) / "out",
            ray.get_runtime_context().gcs_address,
            dict[int, tuple[object, ...]](),
        )
        kills = 0
        while kills < options.kills:
            process = start(space, resume=(out / "search.yaml").exists(), address=address)
            time.sleep(moments.uniform(0.0, 8.0))
            if process.poll() is not None:
                break  # it had ended: nothing is left to kill
            process.kill()
            process.communicate()
            kills += 1
            now = ended(out)
            repeated |= {number for number, record in before.items() if now.get(number) != record}
            before = now
            print(f"kill {kills}: {len(now)} of {TRIALS} trials had ended", flush=True)
        process = start(space, resume=True, address=address)
        _, said = process.communicate()
        if process.returncode:
            raise RuntimeError(f"exit code {process.returncode}:\n{said[-2000:]}")
        now = ended(out)
        repeated |= {number for number, record in before.items() if now.get(number) != record}
        study = optuna.load_study(
            study_name=None, storage=JournalStorage(JournalFileBackend(str(out / "optuna.journal")))
        )
        board = json.loads((out / "leaderboard.json").read_text())
        best = sorted(
            (trial for trial in study.trials if trial.value is not None), key=lambda trial: (-trial.value, trial.number)
        )
        on_disk = {str(path) for path in (out / "runs").glob("*/checkpoints/*") if path.is_dir()}
        results = {
            "kills": kills,
            "trials": len(now),
            "lost": TRIALS - len(now),
            "repeated": len(repeated),
            "running": sum(not trial.state.is_finished() for trial in study.trials),
            "orphans": len(on_disk - {entry["checkpoint"] for entry in board}),
            "kept": len(on_disk),
            "leaderboard_right": [entry["number"] for entry in board[: len(best)]] == [trial.number for trial in best],
        }
    print("\n".join(f"{name}: {value}" for name, value in results.items()))
    if options.json:
        print_json(results)


if __name__ == "__main__":
    run(main)

"""python -m benchmarks.search_kills --kills 10 --json: SIGKILL of a search's driver at random moments, resumed each
time.

`lost` counts trials that never ended, `repeated` trials that had ended before a kill and changed after it, `running`
trials that the study still lists as running, and `orphans` checkpoints on the disk that the leaderboard does not name.
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
from typing import Any

import ray
from optuna.trial import FrozenTrial

from benchmarks.searches import study_trials, write_search
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.runtime.session import ray_session
from dreamprvr_ray.search.layout import CHECKPOINTS, LEADERBOARD, RUNS, SEARCH, read_epochs, trial_name

TRIALS, EPOCHS, KEEP = 24, 4, 3
MAX_SECONDS_TO_KILL = 8.0

TrialState = tuple[object, ...]


def ended_trials(search: Path) -> dict[int, TrialState]:
    """Return everything that is recorded of each trial that has ended, by its number."""
    return {
        trial.number: (
            trial.state,
            trial.value,
            trial.datetime_complete,
            read_epochs(search / RUNS / trial_name(trial.number)),
        )
        for trial in study_trials(search)
        if trial.state.is_finished()
    }


def changed(before: dict[int, TrialState], now: dict[int, TrialState]) -> set[int]:
    """Return the numbers of the trials that had ended before and are not as they were."""
    return {number for number, state in before.items() if now.get(number) != state}


def start(space: Path, resume: bool, address: str) -> subprocess.Popen[str]:
    """Start the search's command, and return when it is about to run trials."""
    command = [sys.executable, "-m", "dreamprvr_ray.tune", "--space", str(space), *(["--resume"] if resume else [])]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=os.environ | {"RAY_ADDRESS": address}
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "trials, " in line:
            return process
    raise RuntimeError("the search did not start")


def kill_and_resume(space: Path, search: Path, kills: int, moments: random.Random) -> tuple[int, set[int]]:
    """Kill the search at random moments, then run it to its end.

    Return the number of kills and the numbers of the trials that were repeated.
    """
    address = ray.get_runtime_context().gcs_address
    before: dict[int, TrialState] = {}
    repeated: set[int] = set()
    killed = 0
    while killed < kills:
        process = start(space, resume=(search / SEARCH).exists(), address=address)
        time.sleep(moments.uniform(0.0, MAX_SECONDS_TO_KILL))
        if process.poll() is not None:
            break  # the search had ended
        process.kill()
        process.communicate()
        killed += 1
        now = ended_trials(search)
        repeated |= changed(before, now)
        before = now
        print(f"kill {killed}: {len(now)} of {TRIALS} trials had ended", flush=True)
    process = start(space, resume=True, address=address)
    _, messages = process.communicate()
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}:\n{messages[-2000:]}")
    return killed, repeated | changed(before, ended_trials(search))


def examine(search: Path) -> dict[str, Any]:
    """Return what a search that has ended left behind."""
    trials = study_trials(search)
    leaderboard = json.loads((search / LEADERBOARD).read_text())
    ranked: list[FrozenTrial] = sorted(
        (trial for trial in trials if trial.value is not None), key=lambda trial: (-trial.value, trial.number)
    )
    checkpoints = {str(path) for path in (search / RUNS).glob(f"*/{CHECKPOINTS}/*") if path.is_dir()}
    return {
        "running": sum(not trial.state.is_finished() for trial in trials),
        "orphans": len(checkpoints - {entry["checkpoint"] for entry in leaderboard}),
        "kept": len(checkpoints),
        "leaderboard_right": [entry["number"] for entry in leaderboard[: len(ranked)]]
        == [trial.number for trial in ranked],
    }


def main(arguments: list[str]) -> None:
    parser = Parser("search_kills", "Kill a search's driver at random moments and resume it.", package="benchmarks")
    parser.add_argument("--kills", type=int, default=10, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="dreamprvr-search-kills-") as folder, ray_session(dashboard=False):
        pruning = {"grace_epochs": 1, "reduction_factor": 2}
        space = write_search(Path(folder), TRIALS, EPOCHS, 60, keep=KEEP, trial={"at_a_time": 2}, pruning=pruning)
        search = Path(folder) / "out"
        kills, repeated = kill_and_resume(space, search, options.kills, random.Random(options.seed))
        ended = len(ended_trials(search))
        results = {"kills": kills, "trials": ended, "lost": TRIALS - ended, "repeated": len(repeated)} | examine(search)
    print("\n".join(f"{name}: {value}" for name, value in results.items()))
    if options.json:
        print_json(results)


if __name__ == "__main__":
    run(main)

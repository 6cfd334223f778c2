"""python -m benchmarks.search_kills --kills 10 --json: SIGKILL of a search's driver at random moments, resumed each
time.

`lost` counts trials that never ended, `repeated` trials that had ended before a kill and changed after it, `running`
trials that the study still lists as running, and `orphans` checkpoints on the disk that the leaderboard does not name.

`--fills N` also fills the disk of the search N times at random moments, and empties it again (needs root, to mount a
small disk); `--second-driver` starts a second driver before each kill, which must be refused.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
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
DISK_SIZE = "64m"

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


def refuse_second_driver(space: Path, address: str, first: subprocess.Popen[str]) -> None:
    """Start a second driver with its own TMPDIR. Raises RuntimeError unless it is refused while the first one runs."""
    command = [sys.executable, "-m", "dreamprvr_ray.tune", "--space", str(space), "--resume"]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"RAY_ADDRESS": address, "TMPDIR": folder}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    is_refused = done.returncode == 2 and "is using this directory" in done.stderr
    if not is_refused and first.poll() is None:
        raise RuntimeError(f"the second driver: exit code {done.returncode}:\n{done.stderr[-2000:]}")


@contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """Mount a disk of `DISK_SIZE` on a directory."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE}", "tmpfs", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill_and_resume(space: Path, search: Path, fills: int, moments: random.Random) -> tuple[int, set[int]]:
    """Fill the search's disk at random moments, until the driver ends, and empty it.

    Return how often the driver ended for this reason, and the numbers of the trials that were repeated.
    """
    address = ray.get_runtime_context().gcs_address
    filler, ended, repeated = search / ".filler", 0, set[int]()
    for _ in range(fills):
        before = ended_trials(search) if (search / SEARCH).exists() else {}
        process = start(space, resume=(search / SEARCH).exists(), address=address)
        time.sleep(moments.uniform(0.0, MAX_SECONDS_TO_KILL))
        while process.poll() is None:
            with suppress(OSError), filler.open("ab", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
            time.sleep(0.1)
        _, messages = process.communicate()
        filler.unlink()
        if process.returncode == 0:
            break  # the search had ended
        if process.returncode != 1 or "Traceback" in messages:
            raise RuntimeError(f"exit code {process.returncode}:\n{messages[-2000:]}")
        ended += 1
        print(f"disk full {ended}: {messages.strip().splitlines()[-1]}", flush=True)
        repeated |= changed(before, ended_trials(search))
    return ended, repeated


def kill_and_resume(
    space: Path, search: Path, kills: int, moments: random.Random, *, second_driver: bool = False
) -> tuple[int, set[int]]:
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
        if second_driver:
            refuse_second_driver(space, address, process)
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
    parser.add_argument("--fills", type=int, default=0, help="number of times that the disk is filled; needs root")
    parser.add_argument("--second-driver", action="store_true", help="start a second driver before each kill")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="dreamprvr-search-kills-") as folder, ray_session(dashboard=False):
        pruning = {"grace_epochs": 1, "reduction_factor": 2}
        space = write_search(Path(folder), TRIALS, EPOCHS, 60, keep=KEEP, trial={"at_a_time": 2}, pruning=pruning)
        search = Path(folder) / "out"
        moments = random.Random(options.seed)
        with small_disk(search) if options.fills else nullcontext():
            filled, repeated = fill_and_resume(space, search, options.fills, moments)
            kills, others = kill_and_resume(space, search, options.kills, moments, second_driver=options.second_driver)
            repeated |= others
            ended = len(ended_trials(search))
            states = examine(search)
        counts = {"kills": kills, "filled": filled, "trials": ended, "lost": TRIALS - ended, "repeated": len(repeated)}
        results = counts | states
    print("\n".join(f"{name}: {value}" for name, value in results.items()))
    if options.json:
        print_json(results)


if __name__ == "__main__":
    run(main)

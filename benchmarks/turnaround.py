"""python -m benchmarks.turnaround --json: the time between two trials of one worker, and whether memory grows.

Twenty tiny trials run one after another. The time between two is from one trial's end to the next one's, without the
seconds of the latter's epochs: proposing, starting, reading the shards, building the model, checkpoints and reports.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from pathlib import Path

import psutil

from benchmarks.searches import study_trials, write_search
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.search.driver import run_search
from dreamprvr_ray.search.layout import RUNS, read_epochs, trial_name
from dreamprvr_ray.search.space import load_search

SAMPLE_INTERVAL = 0.5  # seconds


class TrialMemory:
    """Samples the resident memory of the processes in which trials train, in MiB."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []  # time, memory
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(SAMPLE_INTERVAL):
            for process in psutil.process_iter(["cmdline", "memory_info"]):
                if " ".join(process.info["cmdline"] or []).startswith("ray::ImplicitFunc"):
                    self._samples.append((time.time(), process.info["memory_info"].rss / 2**20))

    def stop(self) -> None:
        """Stop sampling."""
        self._stopped.set()
        self._thread.join()

    def at(self, moment: float) -> float:
        """Return the last sample before a moment, in seconds since 1970."""
        return [memory for sampled_at, memory in self._samples if sampled_at <= moment][-1]


def main(arguments: list[str]) -> None:
    parser = Parser("turnaround", "Measure the time between two trials.", package="benchmarks")
    parser.add_argument("--trials", type=int, default=20, help="number of trials")
    options = parser.parse_args(arguments)
    memory = TrialMemory()
    with tempfile.TemporaryDirectory(prefix="dreamprvr-turnaround-") as folder:
        space = write_search(Path(folder), options.trials, 2, 32, trial={"at_a_time": 1}, pruning={"enabled": False})
        run_search(load_search(space), resume=False, log=lambda message: None)
        search = Path(folder) / "out"
        trials = study_trials(search)
        ends = [trial.datetime_complete.timestamp() for trial in trials if trial.datetime_complete]
        trained = [
            sum(epoch["seconds"] for epoch in read_epochs(search / RUNS / trial_name(trial.number))) for trial in trials
        ]
    memory.stop()
    between = [end - previous - seconds for previous, end, seconds in zip(ends, ends[1:], trained[1:], strict=False)]
    quarter = len(ends) // 4
    early, late = memory.at(ends[quarter]), memory.at(ends[-1])
    median = statistics.median(between)
    print(f"{options.trials} trials: {median:.2f} s between two (median; the longest {max(between):.2f} s)")
    print(f"memory of the trials' process: {early:.0f} MiB after trial {quarter + 1}, {late:.0f} MiB after the last")
    if options.json:
        times = {"seconds": round(median, 3), "longest": round(max(between), 3)}
        print_json(times | {"memory_mib": [round(early), round(late)]})


if __name__ == "__main__":
    run(main)

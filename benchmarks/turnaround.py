"""python -m benchmarks.turnaround --json: what passes between two trials of one worker, beside their epochs, and whether memory grows.

Twenty tiny trials in a row. From one trial's end to the next one's, less the seconds of the latter's epochs: proposing, starting,
reading the shards, building the model, its checkpoints and reports.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from pathlib import Path

import optuna
import psutil
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from benchmarks.searches import write_search
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.search.driver import run_search
from dreamprvr_ray.search.layout import read_epochs
from dreamprvr_ray.search.space import load_search


class TrialMemory:
    """Notes the resident memory of the processes in which trials train, in MiB, over time."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(0.5):
            for process in psutil.process_iter(["cmdline", "memory_info"]):
                if " ".join(process.info["cmdline"] or []).startswith("ray::ImplicitFunc"):
                    self.samples.append((time.time(), process.info["memory_info"].rss / 2**20))

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def at(self, moment: float) -> float:
        """The last sample before a moment."""
        return [memory for when, memory in self.samples if when <= moment][-1]


def main(arguments: list[str]) -> None:
    parser = Parser("turnaround", "Trials in a row.", package="benchmarks")
    parser.add_argument("--trials", type=int, default=20)
    options = parser.parse_args(arguments)
    memory = TrialMemory()
    with tempfile.TemporaryDirectory(prefix="dreamprvr-turnaround-") as folder:
        space = write_search(Path(folder), options.trials, 2, 32, trial={"at_a_time": 1}, pruning={"enabled": False})
        run_search(load_search(space), resume=False, log=lambda message: None)
        out = Path(folder) / "out"
        study = optuna.load_study(
            study_name=None, storage=JournalStorage(JournalFileBackend(str(out / "optuna.journal")))
        )
        ends = [trial.datetime_complete.timestamp() for trial in study.trials if trial.datetime_complete]
        epochs = [
            sum(epoch["seconds"] for epoch in read_epochs(out / "runs" / f"trial_{trial.number:03d}"))
            for trial in study.trials
        ]
    memory.stop()
    between = [after - before - trained for before, after, trained in zip(ends, ends[1:], epochs[1:], strict=False)]
    early, late = memory.at(ends[len(ends) // 4]), memory.at(ends[-1])
    seconds = statistics.median(between)
    print(f"{options.trials} trials: {seconds:.2f} s between two (median; the longest {max(between):.2f} s)")
    print(
        f"memory of the trials' process: {early:.0f} MiB after trial {len(ends) // 4 + 1}, {late:.0f} MiB after the last"
    )
    if options.json:
        print_json(
            {"seconds": round(seconds, 3), "longest": round(max(between), 3), "memory_mib": [round(early), round(late)]}
        )


if __name__ == "__main__":
    run(main)

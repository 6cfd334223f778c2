"""python -m benchmarks.many_trials --trials 10000 --json: what a search costs besides training, as its trials add up.

Everything of a search is real but the training and Ray: proposals, pruning, records, leaderboard, retention, progress,
and the upload to an object store, which is a local server of moto. A stand-in for the training reports a function of
the values and writes an untrained model as checkpoint. Times are of the driver's process: `cpu` in processor seconds,
`wall` on the clock, which the server shares. What the stand-in does is not counted.

With --begin-at 9900, the study begins with this many finished trials, without their files: the last trials of a large
search, in a minute.

With --ray, trials of one epoch are trained by Ray instead, on a disk: the driver's memory, as trials add up.
"""

from __future__ import annotations

import json
import math
import random
import resource
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import psutil
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from benchmarks.counting_s3 import CountingS3, counting_s3
from benchmarks.searches import write_search
from benchmarks.simulated_search import refuse_trials, simulated_epoch, without_ray
from dreamprvr_ray.checkpoints.checkpoint import EXPERIMENT, Checkpoint
from dreamprvr_ray.checkpoints.layout import CHECKPOINTS
from dreamprvr_ray.checkpoints.store import WRITER
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.data.cache import read_manifest
from dreamprvr_ray.data.shards_record import ShardsRecord
from dreamprvr_ray.errors import Failure
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.search.driver import run_search
from dreamprvr_ray.search.messages import TrialRequest
from dreamprvr_ray.search.ray_tune import (
    ProgressCallback,
    SearchProgressDisplay,
    SourceScheduler,
    SourceSearcher,
    SyncCallback,
    TrialSource,
    create_epoch_log,
)
from dreamprvr_ray.search.session import SearchSession
from dreamprvr_ray.search.space import load_search
from dreamprvr_ray.search.study_trials import StudyTrials

EPOCHS = 3
PARTS = ("propose", "report", "sync", "end", "progress")


@dataclass
class Usage:
    """What the driver has used, in total, when a number of trials had ended."""

    trials: int = 0
    cpu: float = 0.0
    wall: float = 0.0
    requests: int = 0
    written: int = 0
    rss: float = 0.0  # MiB, not a total
    parts: dict[str, float] = field(default_factory=dict)  # cpu by part

    def per_trial(self, before: Usage) -> dict[str, Any]:
        """Return the use of one trial since `before`."""
        trials = max(1, self.trials - before.trials)
        return {
            "trials": [before.trials, self.trials],
            "cpu_ms": round(1000 * (self.cpu - before.cpu) / trials, 2),
            "wall_ms": round(1000 * (self.wall - before.wall) / trials, 2),
            "requests": round((self.requests - before.requests) / trials, 2),
            "written_kb": round((self.written - before.written) / 1e3 / trials, 2),
            "rss_kb": round((self.rss - before.rss) * 1024 / trials, 2),
            "cpu_ms_by_part": {
                part: round(1000 * (seconds - before.parts.get(part, 0.0)) / trials, 2)
                for part, seconds in self.parts.items()
            },
        }


class Meter:
    """Measures this process's use, without what runs in `pause`."""

    def __init__(self, store: CountingS3 | None) -> None:
        self._store = store
        self._parts: defaultdict[str, float] = defaultdict(float)
        self._paused = Usage()
        self.samples: list[Usage] = []

    def _now(self) -> Usage:
        requests, written = self._store.counts() if self._store else (0, 0)
        return Usage(0, time.process_time(), time.perf_counter(), requests, written)

    def sample(self, trials: int) -> None:
        """Record the use so far."""
        now, paused = self._now(), self._paused
        self.samples.append(
            Usage(
                trials,
                now.cpu - paused.cpu,
                now.wall - paused.wall,
                now.requests - paused.requests,
                now.written - paused.written,
                resident_mib(),
                dict(self._parts),
            )
        )

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block's processor seconds under a name."""
        started = time.process_time()
        yield
        self._parts[name] += time.process_time() - started

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not count the block."""
        before = self._now()
        yield
        after, paused = self._now(), self._paused
        paused.cpu += after.cpu - before.cpu
        paused.wall += after.wall - before.wall
        paused.requests += after.requests - before.requests
        paused.written += after.written - before.written


def resident_mib() -> float:
    """Return this process's resident memory in MiB."""
    return float(psutil.Process().memory_info().rss) / 2**20


class StandIn:
    """Runs a search's trials in place of Ray Tune, `at_a_time` in turn."""

    def __init__(self, meter: Meter, at_a_time: int, sample_every: int, begin_at: int = 0) -> None:
        self._meter, self._at_a_time, self._sample_every = meter, at_a_time, sample_every
        self._begin_at = begin_at
        self._checkpoint: dict[str, bytes] = {}

    def __call__(self, session: SearchSession, source: TrialSource, runs: str, progress: SearchProgressDisplay) -> None:
        """Run the trials of `source`."""
        meter = self._meter
        with meter.pause():
            self._write_checkpoint(session)
            if self._begin_at:
                assert isinstance(source, StudyTrials)
                _fill(source, self._begin_at)
        log = create_epoch_log(session, runs)
        searcher = SourceSearcher(source)
        scheduler = SourceScheduler(source, searcher, log)
        sync, shown = SyncCallback(session.copy, source), ProgressCallback(progress)
        running: list[tuple[Any, TrialRequest, list[float]]] = []
        started = ended = 0
        meter.sample(0)
        while True:
            while len(running) < self._at_a_time:
                with meter.part("propose"):
                    config = searcher.suggest(str(started))
                if not isinstance(config, dict):
                    break
                trial: Any = SimpleNamespace(config=config, trial_id=str(started), is_finished=lambda: False)
                running.append((trial, TrialRequest.from_config(config), []))
                started += 1
            if not running:
                break
            trial, request, sumrs = running.pop(0)
            with meter.pause():
                sumrs.append(_sumr(request.values, len(sumrs) + 1))
                result = simulated_epoch(sumrs, EPOCHS).to_dict()
                self._write_epoch(session, runs, request, len(sumrs))
            with meter.part("report"):
                decision = scheduler.on_trial_result(None, trial, result)  # type: ignore[arg-type]
            with meter.part("sync"):
                sync.on_trial_result(0, [], trial, result)
            shown.on_trial_result(0, [], trial, result)
            if decision == SourceScheduler.CONTINUE and len(sumrs) < EPOCHS:
                running.append((trial, request, sumrs))
            else:
                with meter.part("end"):
                    scheduler.on_trial_complete(None, trial, result)  # type: ignore[arg-type]
                    searcher.on_trial_complete(trial.trial_id, result)
                    shown.on_trial_complete(0, [], trial)
                ended += 1
                if ended % self._sample_every == 0:
                    meter.sample(ended)
            with meter.part("progress"):
                shown.on_step_end(0, [])
        if meter.samples[-1].trials != ended:
            meter.sample(ended)

    def _write_checkpoint(self, session: SearchSession) -> None:
        experiment = session.search.experiment
        model = DreamPRVR(experiment.model, experiment.data.video_size, experiment.data.text_size)
        shards = ShardsRecord.of(read_manifest(session.shards)).to_dict()
        metrics = simulated_epoch([1.0], EPOCHS).result.to_dict() | {"shards": shards}
        with tempfile.TemporaryDirectory() as folder:
            Checkpoint(model.state_dict(), None, experiment, metrics).write(Path(folder))
            self._checkpoint = {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    def _write_epoch(self, session: SearchSession, runs: str, request: TrialRequest, epoch: int) -> None:
        run = session.storage / runs / request.run
        if epoch == 1:
            (run).write_text(EXPERIMENT, "")
            (run / CHECKPOINTS).write_text(WRITER, request.run)
        directory = run / CHECKPOINTS / f"epoch-{epoch:04d}"
        for name, content in self._checkpoint.items():
            directory.write_bytes(name, content)


def _fill(source: StudyTrials, trials: int) -> None:
    """Add finished trials of random values to a study."""
    study, draw = source.study, random.Random(0)
    distributions: dict[str, BaseDistribution] = {
        "model.registers": IntDistribution(0, 6),
        "optimizer.learning_rate": FloatDistribution(1e-6, 1e-2, log=True),
    }
    for _ in range(trials):
        values = {"model.registers": draw.randint(0, 6), "optimizer.learning_rate": 10 ** draw.uniform(-6, -2)}
        curve = {epoch: _sumr(values, epoch) for epoch in range(1, EPOCHS + 1)}
        best = max(curve.values())
        study.study.add_trial(
            optuna.trial.create_trial(
                params=values,
                distributions=distributions,
                value=best,
                intermediate_values=curve,
                user_attrs={
                    "out": study.owner,
                    "epochs": EPOCHS,
                    "best_epoch": EPOCHS,
                    "best_SumR": best,
                    "seconds": 3.0,
                },
            )
        )
    source.delete_leftovers()


def _sumr(values: dict[str, Any], epoch: int) -> float:
    """Return what the stand-in for a training reports: the best learning rate is 1e-3, registers matter a little."""
    distance = math.log10(values["optimizer.learning_rate"] / 1e-3)
    best = 250 - 30 * distance**2 - 0.2 * (values["model.registers"] - 4) ** 2
    return best * (1 - 0.5 * 0.75**epoch)


def measure(options: Any, folder: Path) -> dict[str, Any]:
    """Run a search with the stand-in, resume it once, and return the figures."""
    window = max(1, (options.trials - options.begin_at) // 20)
    space = write_search(
        folder, options.trials, EPOCHS, 16, pruning={"grace_epochs": 1, "reduction_factor": 3}, sampler={"kind": "tpe"}
    )
    with counting_s3() as store:
        out = store.uri if options.place == "s3" else str(folder / "out")
        meter = Meter(store)
        search = load_search(space, {"out": out})
        lines: list[str] = []
        with without_ray(StandIn(meter, options.at_a_time, window, options.begin_at)):
            run_search(search, resume=False, log=lines.append)
        print(lines[-1])
        samples = meter.samples
        requests, _ = store.counts()
        started, cpu = time.perf_counter(), time.process_time()
        with without_ray(refuse_trials), suppress(Failure):
            run_search(search, resume=True, log=lines.append)
        resumed = {
            "requests": store.counts()[0] - requests,
            "seconds": round(time.perf_counter() - started, 2),
            "cpu_seconds": round(time.process_time() - cpu, 2),
        }
        if options.keep:
            from dreamprvr_ray.search.working_copy import downloaded
            from dreamprvr_ray.storage.location import Storage

            with downloaded(Storage.of(out)) as copy:
                shutil.copytree(copy, options.keep, dirs_exist_ok=True)
    return {
        "trials": options.begin_at + samples[-1].trials,
        "first": samples[1].per_trial(samples[0]),
        "last": samples[-1].per_trial(samples[-2]),
        "windows_cpu_ms": [after.per_trial(before)["cpu_ms"] for before, after in pairwise(samples)],
        "requests": samples[-1].requests - samples[0].requests,
        "written_mb": round((samples[-1].written - samples[0].written) / 1e6, 2),
        "rss_mib": [round(samples[0].rss), round(samples[-1].rss)],
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "resume": resumed,
    }


def measure_with_ray(options: Any, folder: Path) -> dict[str, Any]:
    """Run a search whose trials are trained by Ray for an epoch, and return how the driver's memory grows."""
    space = write_search(
        folder,
        options.trials,
        1,
        16,
        trial={"at_a_time": options.at_a_time},
        pruning={"enabled": False},
        sampler={"kind": "random"},
    )
    samples: list[tuple[float, int, float]] = []
    started = time.perf_counter()

    def log(message: str) -> None:
        if " trials ended" in message:
            ended = int(message.split(": ")[1].split(" of ")[0])
            samples.append((time.perf_counter() - started, ended, resident_mib()))
            if ended % 100 == 0:
                print(f"{ended} trials: {samples[-1][0]:.0f} s, driver {samples[-1][2]:.1f} MiB", flush=True)

    run_search(load_search(space, {"out": str(folder / "out")}), resume=False, log=log)
    early = next(sample for sample in samples if sample[1] >= options.trials // 5)
    late = samples[-1]
    return {
        "trials": late[1],
        "driver_mib": [round(early[2], 1), round(late[2], 1)],
        "kb_per_trial": round((late[2] - early[2]) * 1024 / max(1, late[1] - early[1]), 1),
        "seconds_per_trial": round((late[0] - early[0]) / max(1, late[1] - early[1]), 3),
    }


def main(arguments: list[str]) -> None:
    parser = Parser("many_trials", "Measure what a search of many trials costs besides training.", package="benchmarks")
    parser.add_argument("--trials", type=int, default=1000, help="number of trials")
    parser.add_argument("--begin-at", type=int, default=0, help="of these, trials that have ended before")
    parser.add_argument("--at-a-time", type=int, default=8, help="trials that run at a time")
    parser.add_argument("--place", choices=["s3", "disk"], default="s3", help="where the search is")
    parser.add_argument("--keep", help="directory that gets the search's records, for a report")
    parser.add_argument("--ray", action="store_true", help="measure the driver's memory with trials trained by Ray")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="dreamprvr-many-") as folder:
        figures = (measure_with_ray if options.ray else measure)(options, Path(folder))
    print(json.dumps(figures, indent=1))
    if options.json:
        print_json(figures)


if __name__ == "__main__":
    run(main)

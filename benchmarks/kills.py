"""Send SIGKILL at random moments of a training, and measure what is lost.

    python -m benchmarks.kills [--runs 10]

Kills a worker, the driver and a node of a Ray cluster on this machine (`ray.cluster_utils`), `--runs` times each and
several times per training of two workers. A killed driver is restarted with `--resume`. After the loss of a worker or a
node the training recovers automatically, on another node if necessary. Dropout is 0, so the final weights must equal
those of the undisturbed run. `epochs_lost` counts finished epochs that had to be trained again, without the interrupted
one.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from dreamprvr_ray.checkpoints.checkpoint import read_weights
from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.data.conversion import ConversionSettings, convert
from dreamprvr_ray.data.demo import write_demo
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.storage.location import Storage

TARGETS = ("worker", "driver", "node")
EPOCHS = 40
SETTINGS = [
    *(
        f"training.epochs={EPOCHS}",
        f"training.patience={EPOCHS}",
        "training.max_failures=1000",
        "training.batch_videos=16",
    ),
    *("model.hidden_size=16", "model.branches=2", "model.dropout=0", "model.input_dropout=0"),
]
WINDOW = 3  # the next kill comes within this many epochs after a first step
STEP = r"^training (re)?started"


@dataclass(frozen=True)
class Loss:
    """The effect of one kill."""

    target: str
    finished: int  # finished epochs at the time of the kill
    epochs_lost: int
    recovered_after: float  # seconds from the kill to the next step

    def line(self) -> str:
        """Return a line for the user."""
        return (
            f"{self.target} killed after {self.finished} epochs: {self.epochs_lost} lost,"
            f" next step after {self.recovered_after:.1f} s"
        )


class Training:
    """A `train` command with two workers on the cluster; its output lines are recorded with their times."""

    def __init__(self, shards: Path, out: Path, cluster: Cluster, *options: str) -> None:
        command = f"-m dreamprvr_ray.train --config demo --workers 2 --shards {shards} --out {out} --set"
        environment = os.environ | {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_ENABLE_STATE_TRACKING": "0"}
        self.process = subprocess.Popen(
            [sys.executable, *command.split(), *SETTINGS, *options],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.lines: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append((time.monotonic(), line.rstrip()))

    def times(self, pattern: str) -> list[float]:
        """Return the times of the lines that contain `pattern`."""
        return [at for at, line in list(self.lines) if re.search(pattern, line)]

    def wait_for(self, pattern: str, after: float = 0.0) -> float:
        """Wait for a line that contains `pattern` after the time `after`, and return its time."""
        while True:
            found = [at for at in self.times(pattern) if at > after]
            if found:
                return found[0]
            if self.process.poll() is not None:
                self._reader.join()
                if not [at for at in self.times(pattern) if at > after]:
                    raise RuntimeError("the training ended early:\n" + "\n".join(line for _, line in self.lines[-20:]))
            time.sleep(0.02)

    def epoch_after(self, time: float) -> int:
        """Wait for the first epoch that finishes after `time`, and return its number."""
        self.wait_for(r"epoch +\d+/", after=time)
        return next(epoch for at, epoch in self.epochs() if at > time)

    def epochs(self) -> list[tuple[float, int]]:
        """Return the time and the number of each finished epoch."""
        found = ((at, re.match(r"epoch +(\d+)/", line)) for at, line in list(self.lines))
        return [(at, int(match[1])) for at, match in found if match]

    def end(self) -> None:
        """Wait for the command to end. Raises `RuntimeError` if it fails."""
        code = self.process.wait()
        self._reader.join()
        if code:
            raise RuntimeError(f"exit code {code}:\n" + "\n".join(line for _, line in self.lines[-20:]))


@contextmanager
def demo_cluster() -> Iterator[Cluster]:
    """Start a head node without workers and three nodes with one CPU each, one of which is a spare."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(3):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def make_shards(folder: Path) -> Path:
    """Write small demo shards."""
    write_demo(folder / "source", videos={"train": 32, "val": 12, "test": 8})
    convert(Source.open(folder / "source", "demo"), folder / "shards", ConversionSettings(), workers=1)
    return folder / "shards"


def undisturbed(shards: Path, out: Path, cluster: Cluster) -> float:
    """Train without a kill; return the seconds per epoch."""
    training = Training(shards, out, cluster)
    training.end()
    return (training.epochs()[-1][0] - training.times(STEP)[0]) / EPOCHS


def disturbed(
    target: str, waits: Iterator[float], shards: Path, out: Path, cluster: Cluster, report: Callable[[Loss], None]
) -> None:
    """Train once, kill `target` the given seconds after each first step, and report each kill."""
    training = Training(shards, out, cluster)
    stepped = training.wait_for(STEP)
    for wait in waits:
        time.sleep(max(0.0, stepped + wait - time.monotonic()))
        finished = max((epoch for _, epoch in training.epochs()), default=0)
        if finished > EPOCHS - WINDOW:  # the training could end before the kill
            break
        killed = time.monotonic()
        if target == "driver":
            training.process.kill()
            training.process.wait()
            training = Training(shards, out, cluster, "--resume")
            stepped = training.wait_for(STEP)
        else:
            if target == "worker":
                random.choice(ray_processes("RayTrainWorker")).kill()
            else:
                cluster.remove_node(_node_of_a_worker(cluster), allow_graceful=False)
                cluster.add_node(num_cpus=1)
            stepped = training.wait_for(STEP, after=killed)
        next_epoch = training.epoch_after(stepped)
        report(Loss(target, finished, max(0, finished + 1 - next_epoch), stepped - killed))
    training.end()


def ray_processes(name: str) -> list[psutil.Process]:
    """Return the processes of Ray actors of this class that this process started."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if f"ray::{name}" in " ".join(_command(process))
    ]


def _node_of_a_worker(cluster: Cluster) -> Any:
    """Return a node that has a worker but not the driver.

    The driver joins any node of its machine, together with Ray Train's controller, and would die with that node.
    """
    controllers = {process.ppid() for process in ray_processes("TrainController")}
    workers = {process.ppid() for process in ray_processes("RayTrainWorker")}
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.list_all_nodes()}
    return random.choice([raylets[pid] for pid in workers - controllers])


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _difference(run: Path, reference: Path) -> float:
    """Return the largest difference between the final weights of two runs."""
    weights = []
    for out in (run, reference):
        with CheckpointStore(Storage.of(out / "checkpoints")).opened(EPOCHS) as directory:
            weights.append(read_weights(directory))
    ours, theirs = weights
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


def main(arguments: list[str]) -> None:
    parser = Parser("kills", "Kill workers, drivers and nodes at random moments of a training.", package="benchmarks")
    parser.add_argument("--runs", type=int, default=10, help="kills of each kind (default: 10)")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    moments = random.Random(options.seed)
    losses: list[Loss] = []
    differences: list[float] = []  # final weights of each training compared with the undisturbed one

    def report(loss: Loss) -> None:
        losses.append(loss)
        print(f"{len(losses):>3} {loss.line()}", flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="dreamprvr-kills-") as folder, demo_cluster() as cluster:
        shards, reference = make_shards(Path(folder)), Path(folder) / "undisturbed"
        seconds = undisturbed(shards, reference, cluster)
        print(f"undisturbed: {seconds:.2f} s per epoch", flush=True)
        for target in options.targets:
            while (left := options.runs - sum(loss.target == target for loss in losses)) > 0:
                out = Path(folder) / f"{target}-{len(differences)}"
                waits = (moments.uniform(0, WINDOW * seconds) for _ in range(left))
                disturbed(target, waits, shards, out, cluster, report)
                differences.append(_difference(out, reference))
                print(
                    f"    final weights differ from the undisturbed run's by at most {differences[-1]:.1e}", flush=True
                )
    worst = max(loss.epochs_lost for loss in losses)
    equal = not any(differences)
    print(f"{len(losses)} kills: at most {worst} finished epochs lost; final weights {'equal' if equal else 'DIFFER'}")
    if options.json:
        by_target = {target: [vars(loss) for loss in losses if loss.target == target] for target in options.targets}
        print_json(
            {
                "runs": len(losses),
                "epochs_lost_max": worst,
                "weights_equal": equal,
                "differences": differences,
                "kills": by_target,
            }
        )


if __name__ == "__main__":
    run(main)

"""python -m benchmarks.kills: SIGKILL at random moments of a training, and what was lost.

Kills a worker, the driver and a node of a Ray cluster on this machine (`ray.cluster_utils`), each `--runs` times, several times in one
training of two workers. A killed driver is started again with `--resume`; of a killed worker or node the training recovers by itself, the
node's on another one. Dropout is 0: the final weights must equal the undisturbed run's. `epochs_lost` counts finished epochs that had to be
trained again; the one that was under way comes on top.
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

import psutil
from ray._private.node import Node
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
WINDOW = 3  # epochs after a first step within which the next kill comes
STEP = r"^training (re)?started"


@dataclass(frozen=True)
class Loss:
    """What one kill cost."""

    target: str
    finished: int  # epochs, when it came
    epochs_lost: int
    recovered_after: float  # seconds from the kill to the next step

    def line(self) -> str:
        """For a person."""
        return f"{self.target} killed after {self.finished} epochs: {self.epochs_lost} of them lost, next step after {self.recovered_after:.1f} s"


class Training:
    """A `train` command of two workers on the cluster, whose lines are noted with the time at which they came."""

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
        """When lines that hold `pattern` came."""
        return [at for at, line in list(self.lines) if re.search(pattern, line)]

    def wait_for(self, pattern: str, after: float = 0.0) -> float:
        """When the first line that holds `pattern` came after a time; waits for it."""
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
        """The first epoch that was finished after a time; waits for it."""
        self.wait_for(r"epoch +\d+/", after=time)
        return next(epoch for at, epoch in self.epochs() if at > time)

    def epochs(self) -> list[tuple[float, int]]:
        """When each epoch's line came, and which epoch it was."""
        found = ((at, re.match(r"epoch +(\d+)/", line)) for at, line in list(self.lines))
        return [(at, int(match[1])) for at, match in found if match]

    def end(self) -> None:
        """Waits for the end, which must be a good one."""
        code = self.process.wait()
        self._reader.join()
        if code:
            raise RuntimeError(f"exit code {code}:\n" + "\n".join(line for _, line in self.lines[-20:]))


@contextmanager
def demo_cluster() -> Iterator[Cluster]:
    """A head that runs no workers, and three nodes of one CPU: one to spare."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(3):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def make_shards(folder: Path) -> Path:
    """Small demo shards."""
    write_demo(folder / "source", videos={"train": 32, "val": 12, "test": 8})
    convert(Source.open(folder / "source", "demo"), folder / "shards", ConversionSettings(), workers=1)
    return folder / "shards"


def undisturbed(shards: Path, out: Path, cluster: Cluster) -> float:
    """Trains without a kill; returns the seconds of an epoch."""
    training = Training(shards, out, cluster)
    training.end()
    return (training.epochs()[-1][0] - training.times(STEP)[0]) / EPOCHS


def disturbed(
    target: str, waits: Iterator[float], shards: Path, out: Path, cluster: Cluster, say: Callable[[Loss], None]
) -> None:
    """Trains once and kills `target` so many seconds after each first step; says what each kill cost."""
    training = Training(shards, out, cluster)
    stepped = training.wait_for(STEP)
    for wait in waits:
        time.sleep(max(0.0, stepped + wait - time.monotonic()))
        finished = max((epoch for _, epoch in training.epochs()), default=0)
        if finished > EPOCHS - WINDOW:  # it may have ended before it is killed
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
        say(Loss(target, finished, max(0, finished + 1 - next_epoch), stepped - killed))
    training.end()


def ray_processes(name: str) -> list[psutil.Process]:
    """The processes of Ray's actors of this class that run under this one."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if f"ray::{name}" in " ".join(_command(process))
    ]


def _node_of_a_worker(cluster: Cluster) -> Node:
    """A node with a worker and without the driver: that joins any node of its machine, and Ray Train's controller with it, and dies with it."""
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
    """The largest difference between two runs' last weights."""
    weights = []
    for out in (run, reference):
        with CheckpointStore(Storage.of(out / "checkpoints")).opened(EPOCHS) as directory:
            weights.append(read_weights(directory))
    ours, theirs = weights
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


def main(arguments: list[str]) -> None:
    parser = Parser(
        "kills", "SIGKILL workers, drivers and nodes at random moments of a training.", package="benchmarks"
    )
    parser.add_argument("--runs", type=int, default=10, help="kills of each kind")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    moments = random.Random(options.seed)
    losses: list[Loss] = []
    differences: list[float] = []  # of each training's final weights from the undisturbed one's

    def say(loss: Loss) -> None:
        losses.append(loss)
        print(f"{len(losses):>3} {loss.line()}", flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="dreamprvr-kills-") as folder, demo_cluster() as cluster:
        shards, reference = make_shards(Path(folder)), Path(folder) / "undisturbed"
        seconds = undisturbed(shards, reference, cluster)
        print(f"undisturbed: {seconds:.2f} s an epoch", flush=True)
        for target in options.targets:
            while (left := options.runs - sum(loss.target == target for loss in losses)) > 0:
                out = Path(folder) / f"{target}-{len(differences)}"
                waits = (moments.uniform(0, WINDOW * seconds) for _ in range(left))
                disturbed(target, waits, shards, out, cluster, say)
                differences.append(_difference(out, reference))
                print(f"    final weights within {differences[-1]:.1e} of the undisturbed", flush=True)
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

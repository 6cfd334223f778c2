"""python -m benchmarks.kills: SIGKILL at random moments of a training, and what was lost.

Kills a worker, the driver and a node of a Ray cluster on this machine (`ray.cluster_utils`), each `--runs` times. A killed driver is started
again with `--resume`; of a killed worker or node the training recovers by itself, the node's group with the workers that are left until
another node comes. Dropout is 0: the final weights must equal the undisturbed run's. `epochs_lost` counts finished epochs that had to
be trained again; the one that was under way comes on top.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from ray._private.node import Node
from ray.cluster_utils import Cluster

from dreamprvr_ray.checkpoint_store import CheckpointStore
from dreamprvr_ray.checkpoints import read_weights
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.data.conversion import ConversionSettings, convert
from dreamprvr_ray.data.demo import write_demo
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.storage import Storage

TARGETS = ("worker", "driver", "node")
EPOCHS = 8
SETTINGS = [f"training.epochs={EPOCHS}", "training.batch_videos=32", "model.hidden_size=32", "model.dropout=0", "model.input_dropout=0"]
TOLERANCE = 1e-4  # of a weight, where the number of workers changed on the way: sums in another order


@dataclass(frozen=True)
class Loss:
    """What one kill cost."""

    target: str
    epochs_lost: int
    largest_difference: float  # between a final weight and the undisturbed run's
    recovered_after: float  # seconds from the kill to the next step

    def line(self) -> str:
        """For a person."""
        return (
            f"{self.target:>6} killed: {self.epochs_lost} finished epochs lost, next step after {self.recovered_after:.1f} s,"
            f" final weights within {self.largest_difference:.1e}"
        )


class Training:
    """A `train` command on the cluster, whose lines are noted with the time at which they came."""

    def __init__(self, shards: Path, out: Path, cluster: Cluster, *options: str) -> None:
        words = [sys.executable, "-m", "dreamprvr_ray.train", "--config", "demo", "--set", *SETTINGS, "--shards", str(shards), "--out", str(out)]
        environment = os.environ | {"RAY_ADDRESS": cluster.address, "DREAMPRVR_RAY_RESIZE_SECONDS": "2"}
        self.process = subprocess.Popen([*words, *options], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
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
    """A head that runs no workers, and two nodes of one CPU."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


def make_shards(folder: Path) -> Path:
    """Small demo shards."""
    write_demo(folder / "source", videos={"train": 128, "val": 24, "test": 8})
    convert(Source.open(folder / "source", "demo"), folder / "shards", ConversionSettings(), workers=1)
    return folder / "shards"


def undisturbed(shards: Path, out: Path, cluster: Cluster) -> float:
    """Trains without a kill; returns the seconds from the first step to the end."""
    training = Training(shards, out, cluster, "--workers", "2")
    training.end()
    return training.epochs()[-1][0] - training.times(r"trains? \d")[0]


def kill_once(target: str, moment: float, shards: Path, out: Path, reference: Path, cluster: Cluster) -> Loss | None:
    """Trains, kills `target` so many seconds after the first step; None where the training was over by then."""
    workers = ("--workers", "1:2" if target == "node" else "2")
    training = Training(shards, out, cluster, *workers)
    time.sleep(max(0.0, training.wait_for(r"trains? \d") + moment - time.monotonic()))
    told = [epoch for _, epoch in training.epochs()]
    if EPOCHS in told:
        training.end()
        return None
    killed = time.monotonic()
    if target == "driver":
        training.process.kill()
        training.process.wait()
        training = Training(shards, out, cluster, *workers, "--resume")
        recovered = training.wait_for(r"trains? \d")
    elif target == "worker":
        random.choice(ray_processes("RayTrainWorker")).kill()
        recovered = training.wait_for(r"trains? again", after=killed)
    else:
        cluster.remove_node(_node_without_driver(cluster), allow_graceful=False)
        recovered = training.wait_for(r"trains? again", after=killed)
        cluster.add_node(num_cpus=1)  # the group grows again
    training.end()
    again = [epoch for at, epoch in training.epochs() if at > recovered]
    lost = max(told, default=0) - (again[0] - 1) if again else 0
    return Loss(target, lost, _difference(out, reference), recovered - killed)


def ray_processes(name: str) -> list[psutil.Process]:
    """The processes of Ray's actors of this class that run under this one."""
    return [process for process in psutil.Process().children(recursive=True) if f"ray::{name}" in " ".join(_command(process))]


def _node_without_driver(cluster: Cluster) -> Node:
    """A node that runs workers only: a driver, and with it Ray Train's controller, joins any node of its machine, and dies with it."""
    controllers = {process.ppid() for process in ray_processes("TrainController")}
    nodes = [node for node in cluster.list_all_nodes() if node is not cluster.head_node]
    return random.choice([node for node in nodes if node.all_processes["raylet"][0].process.pid not in controllers])


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
    parser = Parser("benchmarks.kills", "SIGKILL workers, drivers and nodes at random moments of a training.")
    parser.add_argument("--runs", type=int, default=10, help="kills of each kind")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    moments, losses = random.Random(options.seed), []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="dreamprvr-kills-") as folder, demo_cluster() as cluster:
        shards, reference = make_shards(Path(folder)), Path(folder) / "undisturbed"
        seconds = undisturbed(shards, reference, cluster)
        print(f"undisturbed: {seconds:.1f} s from the first step to the end", flush=True)
        for target in options.targets:
            done = 0
            while done < options.runs:
                out = Path(folder) / f"{target}-{moments.randrange(10**9)}"
                loss = kill_once(target, moments.uniform(0, seconds), shards, out, reference, cluster)
                if loss is None:
                    continue
                done += 1
                losses.append(loss)
                print(f"{done:>3}/{options.runs} {loss.line()}", flush=True)
    worst = max(loss.epochs_lost for loss in losses)
    equal = all(loss.largest_difference <= TOLERANCE for loss in losses)
    print(f"{len(losses)} kills: at most {worst} finished epochs lost; final weights {'equal' if equal else 'DIFFER'}")
    if options.json:
        by_target = {target: [vars(loss) for loss in losses if loss.target == target] for target in options.targets}
        print_json({"runs": len(losses), "epochs_lost_max": worst, "weights_equal": equal, "kills": by_target})


if __name__ == "__main__":
    run(main)

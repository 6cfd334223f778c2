"""A search on a cluster whose nodes come and go, with shards in an object store."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import yaml
from ray._common.network_utils import find_free_port
from ray._private.node import Node
from ray.cluster_utils import Cluster
from ray.util.state import list_workers
from support.object_store import S3

from dreamprvr_ray.search.layout import read_epochs, trial_name
from dreamprvr_ray.storage.location import Storage

if TYPE_CHECKING:
    from conftest import Driver

TRIALS, EPOCHS = 3, 40  # enough that the surviving node is still busy when the killed trial resumes
SPACE = {
    "model.hidden_size": 16,
    "model.branches": 1,
    "training.batch_videos": 8,
    "training.epochs": EPOCHS,
    "training.patience": EPOCHS,
    "model.registers": {"int": [0, 8]},
}


class Nodes:
    """A head that runs no trials, and nodes with one CPU, each with its own cache."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.added = folder, 0
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": find_free_port()})

    def add(self) -> None:
        self.added += 1
        self.cluster.add_node(num_cpus=1, env_vars={"DREAMPRVR_RAY_CACHE": str(self.folder / f"cache-{self.added}")})

    def running_a_trial(self) -> Node:
        """Return a node that runs a trial and is not the driver's node: the driver would end with it."""
        workers = list_workers()
        drivers = {worker.node_id for worker in workers if worker.worker_type == "DRIVER"}
        trials = {worker.node_id for worker in workers if worker.worker_type == "WORKER" and _runs_a_trial(worker.pid)}
        return next(node for node in self.cluster.list_all_nodes() if node.node_id in trials - drivers)

    def trial_epochs(self, trial: str) -> list[int]:
        """Return the epochs of a trial in the order in which they were trained, with repetitions, from the logs."""
        logs = sorted(
            Path(self.cluster.head_node.get_logs_dir_path()).glob("worker-*.out"), key=lambda path: path.stat().st_mtime
        )
        epochs, in_trial = [], False
        for line in (line for log in logs for line in log.read_text().splitlines()):
            if match := re.match(r"out (trial_\d+):", line):
                in_trial = match[1] == trial
            elif in_trial and (match := re.match(r"epoch +(\d+)/", line)):
                epochs.append(int(match[1]))
        return epochs


def _runs_a_trial(pid: int) -> bool:
    try:
        return "ImplicitFunc" in " ".join(psutil.Process(pid).cmdline())  # Ray Tune's class for function trainables
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    nodes = Nodes(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", nodes.cluster.address)  # for `list_workers`
        yield nodes
    nodes.cluster.shutdown()


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.1)


def test_nodes_come_and_go_while_a_search_runs(
    nodes: Nodes, s3: S3, demo_shards: Path, tmp_path: Path, drive: Callable[..., Driver]
) -> None:
    shards = Storage.of(s3.uri("data"))
    shards.upload_directory("shards", demo_shards, last="manifest.json")
    nodes.add()
    nodes.add()
    space, out = tmp_path / "space.yaml", tmp_path / "out"
    values = {
        "config": "demo",
        "shards": (shards / "shards").location,
        "out": str(out),
        "trials": TRIALS,
        "space": SPACE,
    }
    space.write_text(yaml.safe_dump(values | {"pruning": {"enabled": False}}))
    search = drive("tune", "--space", space)

    def finished(trial: str) -> int:
        return len(read_epochs(out / "runs" / trial))

    first, second = trial_name(0), trial_name(1)
    wait_until(lambda: min(finished(first), finished(second)) >= 3, 120)
    victim = nodes.running_a_trial()
    before = {trial: finished(trial) for trial in (first, second)}
    killed = time.monotonic()
    nodes.cluster.remove_node(victim, allow_graceful=False)
    nodes.add()
    wait_until(lambda: all(finished(trial) > before[trial] for trial in before), 120)
    resumed_after = time.monotonic() - killed
    output = search.end()
    assert search.process.returncode == 0, output

    leaderboard = json.loads((out / "leaderboard.json").read_text())
    assert [trial["state"] for trial in leaderboard] == ["finished"] * TRIALS
    for number in range(TRIALS):
        assert [epoch["epoch"] for epoch in read_epochs(out / "runs" / trial_name(number))] == list(
            range(1, EPOCHS + 1)
        )
    trained = {trial: nodes.trial_epochs(trial) for trial in before}
    print(f"epochs before the kill: {before}; next epoch after {resumed_after:.1f} s; epochs trained: {trained}")
    lost = {trial: len(epochs) - len(set(epochs)) for trial, epochs in trained.items()}
    assert sorted(lost.values()) <= [0, 1]
    assert all((tmp_path / f"cache-{number}").exists() for number in (1, 2, 3))

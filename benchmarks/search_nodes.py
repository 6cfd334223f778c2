"""python -m benchmarks.search_nodes --nodes 16 --kills 4 --json: a search on many nodes, some of which are killed.

The nodes are those of a Ray cluster on this machine (`ray.cluster_utils`), each with one CPU of which Ray knows and as
many trials at a time. While the search runs, nodes that run a trial are killed one after another, and as many are
added. `lost` counts trials that never ended well, `gaps` those whose logs do not have every epoch once.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray._common.network_utils import find_free_port
from ray.cluster_utils import Cluster
from ray.util.state import list_workers

from benchmarks.kills import ray_processes
from benchmarks.search_kills import ended_trials, examine
from benchmarks.searches import study_trials, write_search
from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.runtime.session import API_SERVER
from dreamprvr_ray.search.layout import RUNS, read_epochs, trial_name

EPOCHS, KEEP = 6, 3
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@contextmanager
def cluster_of(nodes: int) -> Iterator[Cluster]:
    """Start a head without CPUs and this many nodes with one each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": find_free_port()})
    before = os.environ.get(API_SERVER)
    os.environ[API_SERVER] = f"http://{cluster.head_node.webui_url}"  # otherwise `list_workers` may ask another Ray
    try:
        for _ in range(nodes):
            cluster.add_node(**NODE)
        yield cluster
    finally:
        cluster.shutdown()
        del os.environ[API_SERVER]
        if before is not None:
            os.environ[API_SERVER] = before


def replace_a_node(cluster: Cluster, moments: random.Random) -> bool:
    """Kill a node that runs a trial but not the driver, which would die with it, and add another one.

    Returns whether there was one.
    """
    drivers = {worker.node_id for worker in list_workers() if worker.worker_type == "DRIVER"}
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in cluster.list_all_nodes()}
    busy = {process.ppid() for process in ray_processes("ImplicitFunc")} & set(raylets)
    victims = [raylets[pid] for pid in sorted(busy) if raylets[pid].node_id not in drivers]
    if victims:
        cluster.remove_node(moments.choice(victims), allow_graceful=False)
        cluster.add_node(**NODE)
    return bool(victims)


def search_on(cluster: Cluster, space: Path, trials: int, kills: int, moments: random.Random) -> dict[str, Any]:
    """Run the search, with kills spread over it, and return what was left."""
    out, messages = space.parent / "out", space.parent / "messages"
    began, replaced = time.monotonic(), 0
    with messages.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "dreamprvr_ray.tune", "--space", str(space)],
            stdout=subprocess.DEVNULL,
            stderr=file,
            env=os.environ | {"RAY_ADDRESS": cluster.address},
        )
    for kill in range(kills):
        wanted = trials * (kill + 1) // (kills + 2)
        while process.poll() is None:
            if len(ended_trials(out)) >= wanted and replace_a_node(cluster, moments):
                ended = f"{len(ended_trials(out))} of {trials} trials ended"
                print(f"node {kill + 1} of {kills} replaced: {ended}", flush=True)
                replaced += 1
                break
            time.sleep(0.2)
    if process.wait():
        raise RuntimeError(f"exit code {process.returncode}:\n{messages.read_text()[-2000:]}")
    logs = [[epoch["epoch"] for epoch in read_epochs(out / RUNS / trial_name(number))] for number in range(trials)]
    complete = sum(trial.state == TrialState.COMPLETE for trial in study_trials(out))
    gaps = sum(log != list(range(1, EPOCHS + 1)) for log in logs)
    counts = {"trials": len(ended_trials(out)), "lost": trials - complete, "gaps": gaps, "kills": replaced}
    return counts | examine(out) | {"seconds": round(time.monotonic() - began, 1)}


def main(arguments: list[str]) -> None:
    parser = Parser("search_nodes", "Kill and add nodes while a search runs on many.", package="benchmarks")
    parser.add_argument("--nodes", type=int, default=16, help="nodes, and trials at a time (default: 16)")
    parser.add_argument("--kills", type=int, default=4, help="nodes that are killed and replaced (default: 4)")
    parser.add_argument("--trials", type=int, default=48, help="trials of the search (default: 48)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of nodes")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it is asked for the trials again and again
    with tempfile.TemporaryDirectory(prefix="dreamprvr-search-nodes-") as folder, cluster_of(options.nodes) as cluster:
        keys = {"keep": KEEP, "trial": {"at_a_time": options.nodes}, "pruning": {"enabled": False}}
        space = write_search(Path(folder), options.trials, EPOCHS, 40, **keys)
        results = search_on(cluster, space, options.trials, options.kills, random.Random(options.seed))
    results |= {"nodes": options.nodes}
    print("\n".join(f"{name}: {value}" for name, value in results.items()))
    if options.json:
        print_json(results)


if __name__ == "__main__":
    run(main)

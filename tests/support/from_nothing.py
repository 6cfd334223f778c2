"""python from_nothing.py SHARDS FOLDER: run a search on an autoscaled cluster that starts without nodes.

Writes the numbers of nodes and the search's output to FOLDER/result.json. Ray's `AutoscalingCluster` ends every Ray
process that it sees when it starts: run this in separate namespaces.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.cluster_utils import AutoscalingCluster

from dreamprvr_ray.runtime.resources import CLUSTER_FILE

NODE = {
    "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 10**8},
    "node_config": {},
    "min_workers": 0,
    "max_workers": 2,
}
# The configuration that `AutoscalingCluster` reads from a file which Ray's wheel lacks.
CONFIG: dict[str, Any] = {
    "cluster_name": "from_nothing",
    "max_workers": 2,
    "idle_timeout_minutes": 0.05,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "gpu": NODE,
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    },
    "upscaling_speed": 1.0,
    "auth": {},
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    **{
        key: []
        for key in (
            "cluster_synced_files",
            "rsync_exclude",
            "rsync_filter",
            "initialization_commands",
            "setup_commands",
        )
    },
    **{
        key: []
        for key in (
            "head_setup_commands",
            "worker_setup_commands",
            "head_start_ray_commands",
            "worker_start_ray_commands",
        )
    },
}


class FromNothing(AutoscalingCluster):
    def _generate_config(self, *arguments: object, **options: object) -> dict[str, Any]:
        return CONFIG


def main(shards: str, folder: Path) -> None:
    cluster = FromNothing({"CPU": 0}, {"gpu": NODE})
    file = folder / "cluster.yaml"
    file.write_text(yaml.dump(CONFIG))
    cluster.start()
    try:
        ray.init(address="auto", log_to_driver=False)
        words = f"-m dreamprvr_ray.tune --space {folder / 'space.yaml'} --shards {shards} --out {folder / 'out'}"
        search = subprocess.Popen(
            [sys.executable, *words.split()],
            env=os.environ | {CLUSTER_FILE: str(file)},
            stderr=subprocess.PIPE,
            text=True,
        )
        started, nodes = time.monotonic(), [0]
        while search.poll() is None or (nodes[-1] and time.monotonic() - started < 240):
            alive = sum(node["Alive"] and node["Resources"].get("GPU", 0) > 0 for node in ray.nodes())
            nodes += [alive] if alive != nodes[-1] else []
            time.sleep(0.5)
        assert search.stderr is not None
        result = json.dumps(
            {
                "nodes": nodes,
                "output": search.stderr.read(),
                "code": search.returncode,
                "seconds": round(time.monotonic() - started),
            }
        )
        (folder / "result.json").write_text(result)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

"""A search that asks an autoscaled cluster for its first nodes, and lets them go."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

ALONE = ("unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc")
SPACE = {
    "model.hidden_size": 16,
    "model.branches": 1,
    "training.batch_videos": 8,
    "training.epochs": 3,
    "model.registers": {"int": [0, 8]},
}


def test_a_search_asks_for_nodes_trains_on_them_and_lets_them_go(demo_shards: Path, tmp_path: Path) -> None:
    tried = subprocess.run([*ALONE, "true"], capture_output=True, text=True) if shutil.which("unshare") else None
    if tried is None or tried.returncode:
        pytest.skip(
            f"an autoscaling cluster needs a place of its own: {tried.stderr.strip() if tried else 'no unshare here'}"
        )
    values = {
        "config": "demo",
        "shards": "",
        "out": "",
        "trials": 3,
        "space": SPACE,
        "trial": {"workers": "auto"},
        "pruning": {"enabled": False},
    }
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(values))
    with tempfile.TemporaryDirectory(
        prefix="ray-"
    ) as temporary:  # the paths of Ray's sockets may be a hundred letters long
        script = f"ip link set lo up; exec {sys.executable} {Path(__file__).parents[1] / 'support' / 'from_nothing.py'} {demo_shards} {tmp_path}"
        environment = os.environ | {
            "RAY_TMPDIR": temporary,
            "RAY_ADDRESS": "auto",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        done = subprocess.run(
            [*ALONE, "bash", "-c", script], capture_output=True, text=True, env=environment, timeout=300
        )
    assert done.returncode == 0, done.stderr
    seen = json.loads((tmp_path / "seen.json").read_text())
    print(f"nodes with a GPU, as they came and went in {seen['seconds']} s: {seen['nodes']}")
    assert seen["code"] == 0, seen["said"]
    assert "2 at a time, 1 worker a trial of 1 CPU and 1 GPU each" in seen["said"]  # planned before there was a node
    assert seen["nodes"][0] == 0 and max(seen["nodes"]) == 2 and seen["nodes"][-1] == 0
    assert [each["state"] for each in json.loads((tmp_path / "out" / "leaderboard.json").read_text())] == [
        "finished"
    ] * 3

"""A search that requests the first nodes of an autoscaled cluster and releases them."""

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

ISOLATED = ("unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc")
SPACE = {
    "model.hidden_size": 16,
    "model.branches": 1,
    "training.batch_videos": 8,
    "training.epochs": 3,
    "model.registers": {"int": [0, 8]},
}


def test_a_search_requests_nodes_trains_on_them_and_releases_them(demo_shards: Path, tmp_path: Path) -> None:
    probe = subprocess.run([*ISOLATED, "true"], capture_output=True, text=True) if shutil.which("unshare") else None
    if probe is None or probe.returncode:
        reason = probe.stderr.strip() if probe else "unshare is not installed"
        pytest.skip(f"an autoscaling cluster needs namespaces: {reason}")
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
    cluster = Path(__file__).parents[1] / "support" / "from_nothing.py"
    with tempfile.TemporaryDirectory(
        prefix="ray-"
    ) as temporary:  # short: paths of sockets are limited to 107 characters
        script = f"ip link set lo up; exec {sys.executable} {cluster} {demo_shards} {tmp_path}"
        environment = os.environ | {
            "RAY_TMPDIR": temporary,
            "RAY_ADDRESS": "auto",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        done = subprocess.run(
            [*ISOLATED, "bash", "-c", script], capture_output=True, text=True, env=environment, timeout=300
        )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    print(f"numbers of nodes with a GPU during {result['seconds']} s: {result['nodes']}")
    assert result["code"] == 0, result["output"]
    assert (
        "2 at a time, 1 worker per trial with 1 CPU and 1 GPU each" in result["output"]
    )  # planned before any node existed
    assert result["nodes"][0] == 0 and max(result["nodes"]) == 2 and result["nodes"][-1] == 0
    leaderboard = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert [trial["state"] for trial in leaderboard] == ["finished"] * 3

"""`serve deploy cluster/serve.yaml` on a Ray cluster."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

pytest.importorskip("av", reason="decoding videos requires PyAV")
pytest.importorskip("watchfiles", reason="the server requires dreamprvr_ray[serve]")

from ray._common.network_utils import find_free_port
from ray.cluster_utils import Cluster
from support.colour_videos import write_colour_videos, write_index

TESTS = Path(__file__).parents[1]
FILE = TESTS.parent / "cluster" / "serve.yaml"


@pytest.fixture
def dashboard(tmp_path: Path) -> Iterator[str]:
    """A cluster of two nodes; yields the address of its dashboard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{TESTS}{os.pathsep}{TESTS.parent}")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        port = find_free_port()
        head = {"num_cpus": 1, "dashboard_port": port, "include_dashboard": True, "dashboard_host": "127.0.0.1"}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(num_cpus=1)
        yield f"http://127.0.0.1:{port}"
        cluster.shutdown()


def test_the_file_is_deployed(dashboard: str, tmp_path: Path) -> None:
    paths = write_colour_videos(tmp_path / "videos")
    index = write_index(tmp_path / "index", tmp_path / "videos", paths)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = yaml.safe_load(FILE.read_text().replace("<INDEX>", str(index)))
    config["http_options"]["port"] = port
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    words = [str(Path(sys.executable).parent / "serve"), "deploy", str(tmp_path / "serve.yaml"), "--address", dashboard]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    body = json.dumps({"sentence": "something red", "top": 2}).encode()
    deadline = time.monotonic() + 300
    while True:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/find", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                found = json.load(answer)["results"]
                break
        except OSError as error:
            assert time.monotonic() < deadline, error
            time.sleep(0.5)
    assert [each["rank"] for each in found] == [1, 2] and found[0]["video"] == "red/clip"
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{found[0]['media']['url']}", timeout=30) as answer:
        assert answer.read() == paths["red"].read_bytes()

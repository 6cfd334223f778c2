"""A Prometheus for tests, configured as in cluster/prometheus/ except for paths and intervals."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import yaml

FILES = Path(__file__).parents[2] / "cluster" / "prometheus"
OPENER = build_opener(ProxyHandler({}))  # it runs on this machine


def missing() -> str | None:
    """Return why Prometheus cannot run here; None if it can."""
    not_found = [tool for tool in ("prometheus", "promtool") if not shutil.which(tool)]
    return f"not installed: {', '.join(not_found)}" if not_found else None


@dataclass(frozen=True)
class Prometheus:
    address: str

    def get(self, path: str, **parameters: str | float) -> Any:
        """Return the data of an HTTP API response. Raises AssertionError with the server's message for a bad query."""
        try:
            with OPENER.open(f"{self.address}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as response:
                return json.load(response)["data"]
        except HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None

    def query_range(self, query: str, start: float, end: float) -> list[dict[str, Any]]:
        """Return the series of a query between two times, with a value every second."""
        series: list[dict[str, Any]] = self.get("query_range", query=query, start=start, end=end, step=1)["result"]
        return series


@contextmanager
def running(directory: Path, discovery: Path) -> Iterator[Prometheus]:
    """Run Prometheus inside the block; it scrapes the nodes in Ray's discovery file every second."""
    config = yaml.safe_load((FILES / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(FILES / name) for name in config["rule_files"]]
    config["scrape_configs"][0]["file_sd_configs"] = [{"files": [str(discovery)], "refresh_interval": "1s"}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    options = {
        "config.file": directory / "prometheus.yml",
        "storage.tsdb.path": directory / "data",
        "web.listen-address": address,
    }
    words = ["prometheus", *(f"--{name}={value}" for name, value in options.items())]
    with (directory / "prometheus.log").open("w") as log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        try:
            deadline = time.monotonic() + 30
            while not _ready(address):
                assert process.poll() is None and time.monotonic() < deadline, (
                    directory / "prometheus.log"
                ).read_text()
                time.sleep(0.1)
            yield Prometheus(f"http://{address}")
        finally:
            process.terminate()


def _ready(address: str) -> bool:
    try:
        with OPENER.open(f"http://{address}/-/ready", timeout=5):
            return True
    except (HTTPError, URLError, ConnectionError):
        return False

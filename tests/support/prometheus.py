"""A Prometheus of the tests' own, with the configuration of cluster/prometheus/ but for paths and times."""

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
OPENER = build_opener(ProxyHandler({}))  # it is on this machine


def missing() -> str | None:
    """Why there can be no Prometheus here; None where there can."""
    absent = [tool for tool in ("prometheus", "promtool") if not shutil.which(tool)]
    return f"not installed: {', '.join(absent)}" if absent else None


@dataclass(frozen=True)
class Prometheus:
    address: str

    def ask(self, path: str, **parameters: str | float) -> Any:
        """The data of an answer of its HTTP API; a query with a mistake raises `AssertionError` with what it says."""
        try:
            with OPENER.open(f"{self.address}/api/v1/{path}?{urlencode(parameters)}", timeout=10) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None

    def drawn(self, query: str, start: float, end: float) -> list[dict[str, Any]]:
        """The series that a query draws between two moments, with a value every second."""
        series: list[dict[str, Any]] = self.ask("query_range", query=query, start=start, end=end, step=1)["result"]
        return series


@contextmanager
def running(directory: Path, discovery: Path) -> Iterator[Prometheus]:
    """Reads every second what the file of a Ray says, while the block runs."""
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
            given_up = time.monotonic() + 30
            while not _ready(address):
                assert process.poll() is None and time.monotonic() < given_up, (
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

"""Run what is compared in separate processes: they can alternate, and neither adds to the other's memory."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

# The environment of Ray's workers (`runtime.session.WORKER_ENVIRONMENT`).
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**50),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
    "GOMP_SPINCOUNT": "1000",
    "OMP_WAIT_POLICY": "passive",
}


class MeasuredProcess:
    """A callable that `build(*arguments)` creates in a new process with `threads` threads; it receives all calls."""

    def __init__(self, threads: int, build: Callable[..., Callable[..., Any]], *arguments: Any) -> None:
        os.environ |= ENVIRONMENT
        context = multiprocessing.get_context("spawn")
        self._connection, remote = context.Pipe()
        self._process = context.Process(target=_serve, args=(remote, threads, build, arguments), daemon=True)
        self._process.start()
        remote.close()

    def __call__(self, *arguments: Any) -> Any:
        self.start(*arguments)
        return self.result()

    def start(self, *arguments: Any) -> None:
        """Call without waiting; `result` waits, so that several processes can be called together."""
        self._connection.send(arguments)

    def result(self) -> Any:
        """Wait for the call that `start` began, and return its result."""
        return self._connection.recv()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()


def _serve(
    connection: Connection, threads: int, build: Callable[..., Callable[..., Any]], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(threads)
    measured = build(*arguments)
    while True:
        try:
            call = connection.recv()
        except EOFError:
            return
        connection.send(measured(*call))


def peak_memory() -> float:
    """Return this process's peak memory in GiB: on the GPU if there is one, otherwise its resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 2**20 if found else float("nan")

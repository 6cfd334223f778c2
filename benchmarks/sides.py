"""Things that are compared, each in a process of its own: neither measures the other's memory, and they take turns."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

# As Ray's workers are started (`runtime.session.WORKER_ENVIRONMENT`).
ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**50),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
    "GOMP_SPINCOUNT": "1000",
    "OMP_WAIT_POLICY": "passive",
}


class Side:
    """`make(*arguments)`, made in a new process that has so many threads; a call there is a call here."""

    def __init__(self, threads: int, make: Callable[..., Callable[..., Any]], *arguments: Any) -> None:
        os.environ |= ENVIRONMENT
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, threads, make, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self, *arguments: Any) -> Any:
        self._connection.send(arguments)
        return self._connection.recv()

    def close(self) -> None:
        """Ends the process."""
        self._connection.close()
        self._process.join()


def _serve(
    connection: Connection, threads: int, make: Callable[..., Callable[..., Any]], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(threads)
    measured = make(*arguments)
    while True:
        try:
            asked = connection.recv()
        except EOFError:
            return
        connection.send(measured(*asked))


def peak_memory() -> float:
    """The most memory that this process has held so far, in GiB: the GPU's where there is one, else its resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 2**20 if found else float("nan")

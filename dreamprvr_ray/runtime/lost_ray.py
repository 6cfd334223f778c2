"""Noticing that Ray is lost, and ending the command within seconds, with one line that says how to continue.

Ray itself waits for a minute, and then ends the process after several lines. What was trained is in the checkpoints,
as after a kill.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import ray

from dreamprvr_ray.runtime import ray_internals

WATCH_SECONDS = 1.0  # how often a command checks that its Ray is alive
GRACE_SECONDS = 2.0  # how long it may take to end if it is not
ANSWER_SECONDS = 2.0  # how long a connection to a cluster may take
# How long a process of a cluster may be unreachable. Ray's own variable, which is for clusters whose GCS is restarted,
# takes precedence.
PATIENCE_SECONDS = 8.0
PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"


@contextmanager
def watched(lost: Callable[[], str | None], resume: str = "add --resume to the same command") -> Iterator[None]:
    """End this process, with one line, once `lost` says why Ray is lost; it is asked every second during the block.

    The line ends with `resume`, which says how to continue.
    """
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(WATCH_SECONDS):
            if reason := lost():
                if stopped.wait(GRACE_SECONDS):  # a signal to all processes: this one was about to end
                    return
                # On a new line: other threads may be printing.
                print(f"\nfailed: {reason} {resume}", file=sys.stderr, flush=True)
                os._exit(1)  # nothing that waits for this Ray would return; its processes end with this one

    thread = threading.Thread(target=watch, name="watch-ray", daemon=True)
    thread.start()
    try:
        yield
    except ray.exceptions.RayError:
        if lost():  # what waited for Ray noticed first, with an error that does not say why; the thread says it
            thread.join(WATCH_SECONDS + GRACE_SECONDS + ANSWER_SECONDS)
        raise
    finally:
        stopped.set()
        thread.join()


def lost_process() -> str | None:
    """Return that the local Ray of this process has lost one of its own processes, if so."""
    lost = ray_internals.ended_processes()
    return f"Ray has lost its process {lost[0]}, which was killed or ran out of memory; to continue," if lost else None


class Probe:
    """Tells whether a process of a cluster is lost: unreachable for longer than it may be."""

    def __init__(self, name: str, address: str, advice: str) -> None:
        """`address` is host:port, `name` and `advice` are parts of the message."""
        self._name, self._address, self._advice = name, address, advice
        host, _, port = address.rpartition(":")
        self._place = host.strip("[]"), int(port)
        self._patience = PATIENCE_SECONDS
        with suppress(ValueError):
            self._patience = float(os.environ.get(PATIENCE) or PATIENCE_SECONDS)
        self._answered = time.monotonic()

    def __call__(self) -> str | None:
        try:
            socket.create_connection(self._place, timeout=ANSWER_SECONDS).close()
        except OSError as error:
            if time.monotonic() - self._answered < self._patience:
                return None
            reason = error.strerror or str(error)
            return f"{self._name} at {self._address} no longer answers ({reason}): {self._advice}"
        self._answered = time.monotonic()
        return None


def lost_cluster() -> Callable[[], str | None]:
    """Return a function that says why the connected cluster is lost, if it is: its GCS, or the raylet of this node.

    Nothing is looked at behind a connection by `ray://`.
    """
    probes = []
    if address := ray_internals.gcs_address():
        advice = "its head node or its GCS has ended; to continue, start the cluster again and"
        probes.append(Probe("the Ray cluster", address, advice))
        node = ray.get_runtime_context().get_node_id()
        for each in ray.nodes():
            if each["NodeID"] == node:
                address = f"{each['NodeManagerAddress']}:{each['NodeManagerPort']}"
                advice = "it has ended; to continue, start Ray on this node again and"
                probes.append(Probe("the raylet of this node", address, advice))
    return lambda: next(filter(None, (probe() for probe in probes)), None)

"""Leases: one process at a time uses a place that several machines reach, such as a directory in an object store.

A process that uses a place keeps a claim in it, a small record with its own name, and renews the claim under the
next name: `ID-000001` becomes `ID-000002`. The rules need no clock that machines share, and no conditional writes: only
that a record which has been written is in every listing from then on. S3, Google Cloud Storage, Azure and databases
promise this.

- Who wants a place writes a claim, then lists the claims. Only who finds no other one has the place; who finds one
  withdraws. Of two that start at once, at most one therefore gets it: the later of the two lists both.
- A claim counts as dead when its process has ended, on the same machine, or when it has not been renewed for
  `LEASE_SECONDS`, as the one who waits has watched by its own clock. Who gets the place removes dead claims.
- The claim is a fencing token. A process that could not renew it in time, since it was suspended or cut off, may have
  lost the place. Before it writes anything more, it renews the claim late, and has the place still only if its earlier
  claim is there and no other one is. `Lease.check` does so; whatever writes to the place calls it first.
"""

from __future__ import annotations

import json
import logging
import math
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from dreamprvr_ray.errors import Failure, UserError
from dreamprvr_ray.storage.locks import is_alive

LEASE_SECONDS = "DREAMPRVR_RAY_LEASE_SECONDS"  # environment: how long a claim lives that is not renewed
DEFAULT_SECONDS = 60.0
BEATS = 6  # renewals within that time
LONG_DEAD = 10  # leases, after which a claim counts as dead by the clocks of two machines, without watching it
ATTEMPTS = 10  # to get a place that others try to get at the same moment

_log = logging.getLogger(__name__)
_held: set[str] = set()  # the ids of this process's claims


class LeaseLost(Failure):
    """Another process has taken over; this one must not write any more."""


class Place(Protocol):
    """Where claims are kept. A claim is written once and never changed."""

    def claims(self) -> list[str]:
        """Return the names of all claims that have been written and not removed."""

    def read(self, name: str) -> str | None:
        """Return a claim's content; None if it has been removed."""

    def write(self, name: str, content: str) -> None:
        """Write a claim."""

    def remove(self, name: str) -> None:
        """Remove a claim, which may have been removed before."""


@dataclass(frozen=True)
class Claim:
    """The process that made a claim, and the `time` at which it did, in seconds since 1970."""

    host: str = "an unknown machine"
    process: int = 0
    started: str | None = None  # tells it from a later process of the same number
    machine: str = ""  # whose processes have their own numbers: see `_machine`
    time: float = math.inf  # not known: it is watched before it counts as dead
    seconds: float = 0.0  # without a renewal, after which it is dead

    @classmethod
    def of_this_process(cls, seconds: float) -> Claim:
        process = os.getpid()
        return cls(socket.gethostname(), process, _started(process), _machine(), time.time(), seconds)

    @classmethod
    def from_text(cls, text: str) -> Claim:
        """Return what a claim holds; of one that is damaged or another version's, what is known."""
        try:
            values = {key: value for key, value in json.loads(text).items() if key in cls.__dataclass_fields__}
            numbers = {"process": int(values["process"])} | {key: float(values[key]) for key in ("time", "seconds")}
            return cls(**values | numbers)
        except (ValueError, AttributeError, TypeError, KeyError):
            return cls()

    def __str__(self) -> str:
        is_here = self.host == socket.gethostname() and self.machine in ("", _machine())
        return f"process {self.process}" if is_here else f"process {self.process} on {self.host}"


class Lease:
    """This process's hold on a place. Obtained from `holding`."""

    def __init__(self, place: Place, shown: str, using: str, seconds: float) -> None:
        self._place, self._shown, self._using, self._seconds = place, shown, using, seconds
        self._id, self._beat = uuid.uuid4().hex[:12], 0
        self._renewed = 0.0  # when the last renewal began
        self._lost: str | None = None
        self._ended = threading.Event()
        self._mutex = threading.Lock()

    def __reduce__(self) -> tuple[type[Lease], tuple[Place, str, str, float]]:
        """Ray Tune writes what its searcher refers to into a file, which nothing reads. A copy holds nothing."""
        return Lease, (self._place, self._shown, self._using, self._seconds)

    def check(self) -> None:
        """Raise `LeaseLost` if another process has taken over, or may have. Takes no request while it is renewed."""
        # Again if the renewal itself took long: the time that is left after it must be enough for a write.
        while not self._ended.is_set() and (self._lost is not None or _clock() - self._renewed > self._seconds / 2):
            self._renew()

    def acquire(self, wait_seconds: float) -> None:
        """Get the place. Raises `UserError` if another process has it for longer than `wait_seconds`."""
        deadline, watch, attempts = _clock() + wait_seconds, _Watch(self._place, self._seconds), 0
        while True:
            dead, alive, unknown = watch.look(self._place.claims())
            if alive is None and unknown is None:
                rival = self._claim(dead)
                if rival is None:
                    return
                attempts += 1
                if attempts >= ATTEMPTS and _clock() >= deadline:
                    raise self._refused(self._read(rival))
                time.sleep(random.uniform(0.0, 0.2 * min(attempts, 5)))
            elif alive is not None and _clock() >= deadline:
                raise self._refused(alive)
            else:
                time.sleep(min(0.2, self._seconds / 30) if alive else min(1.0, self._seconds / 30))

    def keep(self) -> None:
        """Renew the claim until `release`. Runs in a thread."""
        while not self._ended.wait(self._seconds / BEATS):
            with suppress(Exception):  # the place may be reached again next time; if not, `check` notices
                self._renew()

    def release(self) -> None:
        """Give the place up."""
        self._ended.set()
        with self._mutex:
            _held.discard(self._id)
            with suppress(Exception):  # the place may be gone; the claim is dead after a while
                for name in self._place.claims():
                    if _id(name) == self._id:
                        self._place.remove(name)

    def _claim(self, dead: Collection[str]) -> str | None:
        """Write a claim. If there is another one than the `dead`, withdraw, and return that one."""
        self._renewed, name = _clock(), self._name(self._beat)
        _held.add(self._id)
        try:
            self._place.write(name, self._content())
            rival = next((other for other in self._place.claims() if other != name and other not in dead), None)
            if rival is None:
                for other in dead:
                    self._place.remove(other)
                return None
        except BaseException:
            _held.discard(self._id)
            with suppress(Exception):
                self._place.remove(name)
            raise
        _held.discard(self._id)
        self._place.remove(name)
        self._beat += 1
        return rival

    def _renew(self) -> None:
        with self._mutex:
            if self._lost is not None:
                raise LeaseLost(self._lost)
            if self._ended.is_set():
                return
            began, before, name = _clock(), self._name(self._beat), self._name(self._beat + 1)
            self._place.write(name, self._content())
            # In time, no other process can have taken over. Late, the earlier claim is gone if one has.
            if _clock() - self._renewed >= self._seconds:
                names = self._place.claims()
                others = [other for other in names if _id(other) != self._id]
                if others or not {before, name} <= set(names):
                    self._lose(before, name)
            self._beat, self._renewed = self._beat + 1, began
            self._place.remove(before)

    def _lose(self, *own: str) -> None:
        for name in own:
            with suppress(Exception):
                self._place.remove(name)
        by: Claim | str = "another process"
        with suppress(Exception):
            by = self._holder() or by
        self._lost = (
            f"{self._shown}: {by} has taken over, since this one was suspended or cut off for longer than"
            f" {self._seconds:g} s; this one has stopped and writes nothing more"
        )
        raise LeaseLost(self._lost)

    def _holder(self) -> Claim | None:
        for _ in range(ATTEMPTS):  # it may renew its claim between the two requests
            for name in self._place.claims():
                if (text := self._place.read(name)) is not None:
                    return Claim.from_text(text)
        return None

    def _refused(self, claim: Claim) -> UserError:
        return UserError(f"{self._shown}: {claim} is {self._using}; wait for it to finish, or stop it")

    def _read(self, name: str) -> Claim:
        return Claim.from_text(self._place.read(name) or "")

    def _name(self, beat: int) -> str:
        return f"{self._id}-{beat:06d}"

    def _content(self) -> str:
        return json.dumps(asdict(Claim.of_this_process(self._seconds)))


class _Watch:
    """Whether the processes of claims are alive, as one sees who looks again and again."""

    def __init__(self, place: Place, seconds: float) -> None:
        self._place, self._seconds = place, seconds
        self._seen: dict[str, tuple[str, float, bool]] = {}  # by id: last name, since when, whether it was renewed
        self._is_waiting = False

    def look(self, names: Collection[str]) -> tuple[set[str], Claim | None, Claim | None]:
        """Return the names of dead claims, one of a live process, and one that may be either."""
        alive: Claim | None = None
        unknown: Claim | None = None
        dead: set[str] = set()
        latest = {_id(name): name for name in sorted(names)}
        for key, name in latest.items():
            claim = self._claim(key, name)
            if claim is None:  # removed meanwhile: its process has ended or has just renewed it
                unknown = unknown or Claim()
                continue
            state = self._state(key, name, claim)
            if state == "dead":
                dead |= {other for other in names if _id(other) == key}
            elif state == "alive":
                alive = alive or claim
            else:
                unknown = unknown or claim
                self._tell(claim)
        return dead, alive, unknown

    def _claim(self, key: str, name: str) -> Claim | None:
        text = self._place.read(name)
        if text is None:
            return None
        before = self._seen.get(key)
        if before is None or before[0] != name:
            self._seen[key] = (name, _clock(), before is not None)
        return Claim.from_text(text)

    def _state(self, key: str, name: str, claim: Claim) -> str:
        if claim.machine == _machine():
            is_own = claim.process == os.getpid()
            runs = key in _held if is_own else _is_running(claim.process, claim.started)
            return "alive" if runs else "dead"
        _, since, was_renewed = self._seen[key]
        lifetime = max(self._seconds, claim.seconds)
        if _clock() - since >= lifetime or time.time() - claim.time > LONG_DEAD * lifetime:
            return "dead"
        return "alive" if was_renewed else "unknown"

    def _tell(self, claim: Claim) -> None:
        if not self._is_waiting:
            self._is_waiting = True
            _log.warning("waiting up to %g s to see whether %s still runs", max(self._seconds, claim.seconds), claim)


@contextmanager
def holding(
    place: Place, shown: str, using: str = "using this directory", wait_seconds: float = 0.0
) -> Iterator[Lease]:
    """Hold a place while the block runs. Messages name it as `shown`, and say what its holder does as `using`.

    How long others wait for a holder that died on another machine is `DREAMPRVR_RAY_LEASE_SECONDS`.

    Raises:
        UserError: Another process has the place for longer than `wait_seconds`.
    """
    lease = Lease(place, shown, using, _lease_seconds(os.environ))
    lease.acquire(wait_seconds)
    thread = threading.Thread(target=lease.keep, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        lease.release()


def _lease_seconds(environment: Mapping[str, str]) -> float:
    text = environment.get(LEASE_SECONDS, str(DEFAULT_SECONDS))
    with suppress(ValueError):
        if 0.1 <= float(text) <= 86400:
            return float(text)
    raise UserError(f"{LEASE_SECONDS} = {text!r}: must be a number of seconds from 0.1 to 86400")


def _id(name: str) -> str:
    return name.rpartition("-")[0]


def _clock() -> float:
    """Return seconds of a clock that continues while the machine sleeps or the process is stopped."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _machine() -> str:
    """Return what a process number is unique in: a boot of a kernel, or of a container with its own numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _is_running(process: int, started: str | None) -> bool:
    return is_alive(process) and _started(process) == started


def _started(process: int) -> str | None:
    """Return when a process started, in ticks since boot; None if it has ended, or where /proc does not say."""
    try:
        state, *others = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in "ZX" else others[18]

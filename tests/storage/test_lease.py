"""Leases: of several processes, one at a time has a place, and one that lost it writes nothing more."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from textwrap import dedent

import pytest
from support.object_store import S3

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage import lease as lease_module
from dreamprvr_ray.storage.claims import DirectoryClaims
from dreamprvr_ray.storage.lease import LEASE_SECONDS, Lease, LeaseLost, Place, holding
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.storage.locks import CLAIM


@pytest.fixture(params=["disk", "object store"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path)
    s3: S3 = request.getfixturevalue("s3")
    return s3.uri("some/run")


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every thread of this process be on its own machine."""
    monkeypatch.setattr(lease_module, "_machine", lambda: f"machine of {threading.get_ident()}")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEASE_SECONDS, "1.2")


HOLDER = """
    import sys, time
    from dreamprvr_ray.errors import Failure
    from dreamprvr_ray.storage import locks
    from dreamprvr_ray.storage.location import Storage

    locks._acquire = lambda *_: False  # a file system that grants its locks to one machine only
    storage = Storage(sys.argv[1])
    with storage.lock() as lease:
        print("held", flush=True)
        try:
            for number in range(100000):
                time.sleep(0.01)
                lease.check()
                if storage.exists("stop"):
                    break
                if number % 20 == 0:
                    storage.write_text("last", str(time.time()))
        except Failure as error:
            print(error, flush=True)
"""


@contextmanager
def holder(location: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has the place and writes to it."""
    words = [sys.executable, "-c", dedent(HOLDER), location]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that grants its locks to one machine only."""
    monkeypatch.setattr("dreamprvr_ray.storage.locks._acquire", lambda *_: False)


def test_a_holder_on_another_machine_is_waited_for_if_it_died_and_refuses_while_it_lives(
    location: str, elsewhere: None, without_locks: None, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage.of(location)
    with holder(location) as other:
        with pytest.raises(UserError, match=f"process {other.pid} on .* is using this directory"), storage.lock():
            pass
        other.kill()
        killed = time.monotonic()
        with storage.lock():
            assert time.monotonic() - killed > 0.9
    assert caplog.messages.count(
        f"waiting up to 1.2 s to see whether process {other.pid} on {os.uname().nodename} still runs"
    )


def test_a_suspended_holder_that_another_one_followed_writes_nothing_more(
    location: str, elsewhere: None, without_locks: None
) -> None:
    storage = Storage.of(location)
    with holder(location) as other:
        other.send_signal(signal.SIGSTOP)
        with storage.lock() as lease:
            before = storage.read_text("last") if storage.exists("last") else None
            storage.write_text("stop", "")
            other.send_signal(signal.SIGCONT)
            assert other.stdout is not None
            line = other.stdout.readline()
            assert f"process {os.getpid()} on " in line and "has taken over, since this one was suspended" in line
            assert other.wait() == 0
            lease.check()
            assert (storage.read_text("last") if storage.exists("last") else None) == before


def test_a_suspended_holder_without_a_follower_continues(location: str) -> None:
    storage = Storage.of(location)
    with holder(location) as other:
        other.send_signal(signal.SIGSTOP)
        time.sleep(1.5)  # longer than the lease
        other.send_signal(signal.SIGCONT)
        before = time.time()
        while not storage.exists("last") or float(storage.read_text("last")) < before:
            time.sleep(0.05)
        storage.write_text("stop", "")
        assert other.wait() == 0 and other.stdout is not None and other.stdout.read() == ""


@pytest.mark.parametrize("machines", ["one machine", "one machine each"])
def test_of_many_that_start_at_once_one_gets_the_place(
    machines: str, location: str, request: pytest.FixtureRequest, without_locks: None
) -> None:
    if machines == "one machine each":
        request.getfixturevalue("elsewhere")
    results: list[str] = []
    begin, end = threading.Barrier(8), threading.Event()

    def start() -> None:
        begin.wait()
        try:
            with Storage.of(location).lock():
                results.append("got it")
                end.wait()
        except UserError:
            results.append("refused")

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    while len(results) < 8:
        time.sleep(0.01)
    end.set()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["got it"] + ["refused"] * 7


def test_those_who_wait_get_the_place_one_after_another(location: str, elsewhere: None, without_locks: None) -> None:
    inside, order = [0], []

    def use(number: int) -> None:
        with Storage.of(location).lock(60.0):
            inside[0] += 1
            assert inside[0] == 1
            order.append(number)
            time.sleep(0.02)
            inside[0] -= 1

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(order) == [0, 1, 2, 3]


class Shaky(Place):
    """Claims in memory, of which requests now and then take longer than the lease."""

    def __init__(self, seed: int) -> None:
        self._claims: dict[str, str] = {}
        self._random = random.Random(seed)

    def _pause(self) -> None:
        time.sleep(0.3 if self._random.random() < 0.05 else 0.002)

    def claims(self) -> list[str]:
        self._pause()
        names = list(self._claims)
        self._pause()
        return names

    def read(self, name: str) -> str | None:
        return self._claims.get(name)

    def write(self, name: str, content: str) -> None:
        self._pause()
        self._claims[name] = content
        self._pause()

    def remove(self, name: str) -> None:
        self._pause()
        self._claims.pop(name, None)


@pytest.mark.parametrize("seed", range(3))
def test_no_interleaving_lets_two_write(seed: int, elsewhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that outlast the lease suspend a holder at every moment, also within a renewal."""
    monkeypatch.setenv(LEASE_SECONDS, "0.2")
    place, writes, ended = Shaky(seed), list[list[float]](), threading.Event()
    counts = {"lost": 0, "refused": 0}

    def drive(number: int) -> None:
        tenure = 0
        while not ended.is_set():
            tenure += 1
            try:
                with holding(place, "the place") as lease:
                    for _ in range(20):
                        lease.check()
                        write, began = [1000.0 * number + tenure, 0.0], time.monotonic()
                        writes.append(write)
                        write[1] = time.monotonic() - began
                        time.sleep(0.005)
            except LeaseLost:
                counts["lost"] += 1
            except UserError:
                counts["refused"] += 1

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(3)
    ended.set()
    for thread in threads:
        thread.join()
    # A thread that a busy machine stops for as long as the check allows for may write late: the window that remains.
    tenures = [write for write, seconds in writes if seconds < 0.1]
    changes = [after for before, after in pairwise(tenures) if before != after]
    assert len(changes) > 3 and len(set(changes)) == len(changes), "one wrote after another one had followed it"


def test_a_claim_of_this_process_that_was_not_released_is_dead(tmp_path: Path) -> None:
    place = DirectoryClaims(tmp_path)
    forgotten = Lease(place, "x", "using this directory", 60.0)
    forgotten.acquire(0.0)
    with pytest.raises(UserError, match=f"x: process {os.getpid()} is using this directory"), holding(place, "x"):
        pass
    lease_module._held.clear()
    with holding(place, "x"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_holder_that_another_one_followed_and_left_has_lost_the_place(
    tmp_path: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LEASE_SECONDS, "0.1")
    place = DirectoryClaims(tmp_path)
    first = Lease(place, "x", "using this directory", 0.1)
    first.acquire(0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease_module, "_machine", lambda: "another machine")
        with holding(place, "x"):
            pass
    assert os.listdir(tmp_path) == []
    with pytest.raises(LeaseLost, match=r"^x: another process has taken over, since this one was suspended"):
        first.check()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"process": "x", "new": 1}'])
def test_a_damaged_claim_is_that_of_an_unknown_machine(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LEASE_SECONDS, "0.2")
    place = DirectoryClaims(tmp_path)
    place.write("someone-000003", content)
    began = time.monotonic()
    with holding(place, "x"):
        assert len(place.claims()) == 1 and time.monotonic() - began > 0.15


def test_the_seconds_of_a_lease_must_be_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEASE_SECONDS, "soon")
    with pytest.raises(UserError, match=f"^{LEASE_SECONDS} = 'soon': must be a number of seconds from 0.1 to 86400"):
        Storage.of(tmp_path / "out").lock().__enter__()
    assert not (tmp_path / "out").exists()


def test_what_a_killed_look_left_is_neither_a_claim_nor_a_users_file(tmp_path: Path) -> None:
    (tmp_path / f"{CLAIM}look.12345678").touch()
    assert DirectoryClaims(tmp_path).claims() == [] == Storage.of(tmp_path).names()

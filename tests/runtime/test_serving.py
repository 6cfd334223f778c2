"""`serve` as a user starts it: Ray Serve, its replicas, and what happens when one is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("av", reason="decoding videos requires PyAV")
pytest.importorskip("watchfiles", reason="the server requires dreamprvr_ray[serve]")

from support.colour_videos import COLOURS, HELD, HELD_BY, write_colour_videos, write_index

from benchmarks.serve import ask, kill_replica, same
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.index.index import Index
from dreamprvr_ray.runtime.serving import application, check_address

TESTS = Path(__file__).parents[1]
TOKEN = "a-token-of-some-length"


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    port: int
    index: Path
    paths: dict[str, Path]
    log: Path
    held_by: Path

    def request(self, path: str, body: dict[str, Any] | None = None, **headers: str) -> tuple[int, bytes]:
        headers |= {} if body is None else {"Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def wait_for_line(path: Path) -> str:
    """Return the first line of a file once it has been written."""
    deadline = time.monotonic() + 60
    while not path.exists() or not path.read_text().endswith("\n"):
        assert time.monotonic() < deadline, f"{path}: nothing was written"
        time.sleep(0.01)
    return path.read_text().strip()


def start(index: Path, port: int, log: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
        HELD_BY: str(log.with_name("held_by")),
    }
    words = [sys.executable, "-m", "dreamprvr_ray.serve", str(index), "--port", str(port), *arguments]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log.open("w"), text=True, env=environment)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("serving")
    paths = write_colour_videos(folder / "videos", (".mp4", ".avi"))
    return write_index(folder / "index", folder / "videos", paths), paths


@pytest.fixture(scope="module")
def server(index: tuple[Path, dict[str, Path]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log, port = tmp_path_factory.mktemp("log") / "stderr", free_port()
    process = start(index[0], port, log, "--replicas", "2", "--token", TOKEN)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == f"http://127.0.0.1:{port} (Ctrl-C stops)\n", log.read_text()
    server = Server(process, port, *index, log, log.with_name("held_by"))
    yield server
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stdout.read() == ""
    lines = log.read_text().splitlines()
    assert lines == ["starting Ray ...", "starting 2 replicas ...", "interrupted"], lines
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_answers_are_those_of_find(server: Server) -> None:
    plain = Index.open(server.index)
    for colour in COLOURS:
        status, content = server.request(
            "/find", {"sentence": f"something {colour}", "top": 3}, Authorization=f"Bearer {TOKEN}"
        )
        assert status == 200, content
        assert same(json.loads(content), plain.find(f"something {colour}", 3).to_dict())


def test_videos_and_clips_come_in_parts(server: Server) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    content = server.paths["red"].read_bytes()
    assert server.request("/videos/red%2Fclip", **bearer) == (200, content)
    assert server.request("/videos/red%2Fclip", **bearer, Range="bytes=100-4000") == (206, content[100:4001])
    assert server.request("/videos/red%2Fclip", **bearer, Range="bytes=99999999-")[0] == 416
    status, clip = server.request("/clip?video=green/clip&start=4&end=6", **bearer)  # of an avi file
    assert status == 200 and clip[4:8] == b"ftyp"
    assert server.request("/thumbnail?video=green/clip&time=4", **bearer)[1].startswith(b"\xff\xd8")


def test_without_the_token_there_is_nothing(server: Server) -> None:
    for path in ("/", "/metrics", "/videos/red%2Fclip", "/docs"):
        assert server.request(path)[0] == 401
    assert server.request("/find", {"sentence": "red"})[0] == 401
    status, content = server.request("/health")
    assert status == 200 and json.loads(content)["videos"] == len(COLOURS)
    assert TOKEN not in server.log.read_text()


def test_a_lost_replica_loses_no_request(server: Server) -> None:
    plain = Index.open(server.index)
    sentences = [f"something {colour} {number}" for number in range(30) for colour in COLOURS]
    expected = {sentence: plain.find(sentence).to_dict() for sentence in sentences}
    killed: list[int] = []

    def kill_once(done: int) -> None:
        if done >= 60 and not killed:
            killed.append(kill_replica(psutil.Process(server.process.pid)))

    measured = ask(server.port, sentences, 8, expected, kill_once, f"Bearer {TOKEN}")
    assert killed and not psutil.pid_exists(killed[0])
    assert (len(measured.milliseconds), measured.lost, measured.different) == (len(sentences), [], [])


def test_a_request_whose_replica_dies_is_answered_by_another(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = f"something red is {HELD}"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.request, "/find", {"sentence": sentence}, Authorization=f"Bearer {TOKEN}")
        replica = psutil.Process(int(wait_for_line(server.held_by)))
        assert "Search" in replica.cmdline()[0] and not asked.done()
        replica.kill()
        status, content = asked.result(timeout=60)
    assert status == 200, content
    monkeypatch.setenv(HELD_BY, str(server.held_by))  # it exists, so that this process does not wait
    assert same(json.loads(content), Index.open(server.index).find(sentence).to_dict())


def test_a_ray_serve_that_does_not_start_is_one_line(index: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    """Another program takes the port after it has been checked, so that Serve's proxy dies."""
    port, log = free_port(), tmp_path / "stderr"
    process = start(index[0], port, log)
    while "starting 1 replica" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    with socket.create_server(("127.0.0.1", port)):
        assert process.wait(120) == 1
    assert process.stdout is not None and process.stdout.read() == ""
    lines = log.read_text().splitlines()
    assert lines[:2] == ["starting Ray ...", "starting 1 replica ..."] and len(lines) == 3, lines
    assert lines[2].startswith("failed: Ray Serve did not start: "), lines


def test_an_address_is_checked_before_anything_starts(
    index: tuple[Path, dict[str, Path]], call: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        begin = time.monotonic()
        done = call("serve", index[0], "--port", port)
        assert (done.returncode, done.stdout) == (2, "") and time.monotonic() - begin < 10
        assert done.stderr == f"error: --port {port}: 127.0.0.1:{port} cannot be used: Address already in use\n"
    for arguments, mistake in (
        (["--host", "0.0.0.0"], "--host 0.0.0.0: other machines could reach it; add --token"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid: is not an address of this machine"),
        (["--port", "0"], "--port 0: must be from 1 to 65535"),
        (["--replicas", "0"], "--replicas 0: must be at least 1"),
        (["--token", "short"], "token: must be at least 16"),
    ):
        done = call("serve", index[0], *arguments)
        assert done.returncode == 2 and done.stderr.startswith(f"error: {mistake}"), done.stderr
    done = call("serve", tmp_path)
    assert done.returncode == 2 and "not an index" in done.stderr


def test_arguments_of_a_deployment_are_checked() -> None:
    for wrong, what in (({"replica": 2}, "replica"), ({"replicas": 0}, "replicas"), ({"index": None}, "index")):
        with pytest.raises(ValueError, match=what):
            application({"index": "index"} | wrong)


def test_addresses() -> None:
    port = free_port()
    assert check_address("127.0.0.1", port, False) == f"http://127.0.0.1:{port}"
    assert check_address("localhost", port, False) == f"http://localhost:{port}"
    assert check_address("0.0.0.0", port, True) == f"http://0.0.0.0:{port}"
    with pytest.raises(UserError, match="not an address"):
        check_address("bad\0host", port, True)

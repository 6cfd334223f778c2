"""python -m benchmarks.serve: requests of many clients to a server on this machine, and the loss of a replica.

Starts `serve` for an index, asks it from threads that keep their connections, compares every answer with that of
`Index.find`, and kills a replica in the middle of a second round.
"""

from __future__ import annotations

import http.client
import json
import queue
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.errors import Failure, UserError
from dreamprvr_ray.index.index import Index
from dreamprvr_ray.storage.location import local_folder
from dreamprvr_ray.video.captions import read_caption_table

TIMEOUT = 60.0  # seconds that an answer may take
ROUNDING = 1e-5  # by which scores may differ


@dataclass
class Round:
    """What the clients of a round saw."""

    milliseconds: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  # what went wrong instead of an answer
    different: list[str] = field(default_factory=list)  # sentences whose answer is not that of `Index.find`
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        quantiles = statistics.quantiles(self.milliseconds, n=100) if len(self.milliseconds) > 1 else [0.0] * 99
        return {
            "answers": len(self.milliseconds),
            "lost": len(self.lost),
            "different": len(self.different),
            "p50_ms": round(quantiles[49], 1),
            "p95_ms": round(quantiles[94], 1),
            "per_second": round(len(self.milliseconds) / self.seconds, 1),
        }


@contextmanager
def server(index: Path, replicas: int, sentence_encoder: str | None) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run `serve`, and yield its process and port. Raises `Failure` if it does not start."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "dreamprvr_ray.serve", str(index), "--port", str(port), "--replicas", str(replicas)]
    words += ["--sentence-encoder", sentence_encoder] if sentence_encoder else []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not process.stdout.readline().startswith("http"):
                raise Failure("the server did not start")
            yield process, port
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:  # a shell's background commands ignore SIGINT
                process.terminate()
                raise


def ask(
    port: int,
    sentences: Sequence[str],
    clients: int,
    expected: dict[str, Any],
    after: Callable[[int], None],
    authorization: str = "",
) -> Round:
    """Ask for all sentences, `clients` of them at a time. `after` is called with the number of answers so far."""
    todo: queue.SimpleQueue[str] = queue.SimpleQueue()
    for sentence in sentences:
        todo.put(sentence)
    result, lock = Round(), threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        while True:
            try:
                sentence = todo.get_nowait()
            except queue.Empty:
                connection.close()
                return
            begin = time.perf_counter()
            try:
                body = json.dumps({"sentence": sentence})
                headers = {"Content-Type": "application/json", "Authorization": authorization}
                connection.request("POST", "/find", body, headers)
                response = connection.getresponse()
                content = response.read()
                problem = None if response.status == 200 else f"status {response.status}: {content[:100]!r}"
            except (OSError, http.client.HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
                connection.close()
            elapsed = 1000 * (time.perf_counter() - begin)
            with lock:
                if problem is not None:
                    result.lost.append(problem)
                else:
                    result.milliseconds.append(elapsed)
                    if not same(json.loads(content), expected[sentence]):
                        result.different.append(sentence)
                after(len(result.milliseconds) + len(result.lost))

    begin = time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.seconds = time.perf_counter() - begin
    return result


def same(answer: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two answers are the same, apart from rounding: sentences may be encoded several at a time."""
    pairs = list(zip(answer["results"], other["results"], strict=False))
    return len(answer["results"]) == len(other["results"]) and all(
        all(one[key] == two[key] for key in ("rank", "video", "start", "end"))
        and abs(one["score"] - two["score"]) < ROUNDING
        for one, two in pairs
    )


def kill_replica(server: psutil.Process) -> int:
    """Kill one of the replicas that search, and return its process id."""
    for process in server.children(recursive=True):
        with suppress(psutil.Error):  # of processes that have ended
            if "Search" in "".join(process.cmdline()[:1]):
                process.kill()
                return process.pid
    raise Failure("no replica was found")


def main(arguments: list[str]) -> None:
    parser = Parser("serve", "Measure a server under the requests of many clients.", package="benchmarks")
    parser.add_argument("index", type=local_folder, metavar="INDEX", help="directory that `index` wrote")
    parser.add_argument("--sentences", type=Path, required=True, metavar="FILE", help="captions, or a sentence a line")
    parser.add_argument("--requests", type=int, default=1000, help="requests of a round (default: 1000)")
    parser.add_argument("--clients", type=int, default=16, help="clients at a time (default: 16)")
    parser.add_argument("--replicas", type=int, default=2, help="replicas (default: 2)")
    parser.add_argument("--sentence-encoder", metavar="ENCODER", help="encoder of sentences, as of `serve`")
    parser.add_argument("--seed", type=int, default=0, help="seed for drawing sentences (default: 0)")
    options = parser.parse_args(arguments)
    known = read_sentences(options.sentences)
    sentences = random.Random(options.seed).choices(known, k=options.requests)
    index = Index.open(options.index, sentence_encoder=options.sentence_encoder)
    expected = {sentence: index.find(sentence).to_dict() for sentence in set(sentences)}
    values: dict[str, Any] = {"videos": len(index), "clients": options.clients, "replicas": options.replicas}
    killed: list[int] = []

    def kill_once(done: int) -> None:
        if done >= options.requests // 2 and not killed:
            killed.append(kill_replica(psutil.Process(process.pid)))

    with server(options.index, options.replicas, options.sentence_encoder) as (process, port):
        ask(port, sentences[:50], options.clients, expected, lambda done: None)
        for name, after in (("undisturbed", lambda done: None), ("a replica is killed", kill_once)):
            measured = ask(port, sentences, options.clients, expected, after)
            values[name.replace(" ", "_")] = measured.to_dict()
            shown = ", ".join(f"{key} {value}" for key, value in measured.to_dict().items())
            print(f"{name}: {shown}{''.join(f'; {each}' for each in measured.lost[:3])}")
    if options.json:
        print_json(values)


def read_sentences(path: Path) -> list[str]:
    """Return the sentences of a table of captions, or the lines of a text file. Raises `UserError` if none is there."""
    if path.suffix in (".csv", ".tsv", ".jsonl"):
        return sorted({row.sentence for row in read_caption_table(path)})
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path}: is empty")
    return lines


if __name__ == "__main__":
    run(main)

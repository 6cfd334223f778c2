"""Runs an input in a separate process, and records what it led to."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import simulated_search
from benchmarks.fuzz_inputs.correct_files import OTHERS
from benchmarks.fuzz_inputs.hostile import SECRET
from benchmarks.fuzz_inputs.kinds import command_line
from dreamprvr_ray.command_line import exit_code
from dreamprvr_ray.errors import Failure

LIMIT_SECONDS = 10  # of CPU time
WAIT_SECONDS = 90.0  # for a process that waits, or gets little of a busy machine
MODULES = {
    "convert": "convert",
    "train": "train",
    "tune": "tune",
    "report": "report.__main__",
    "evaluate": "evaluate",
    "export": "export",
    "verify": "verify",
    "data.demo": "data.demo",
}


@dataclass(frozen=True)
class Outcome:
    """What one input led to."""

    kind: str
    words: tuple[str, ...]
    code: int | None  # None: it did not end in time
    output: str
    changed: tuple[str, ...]
    executed: bool

    @property
    def faults(self) -> list[str]:
        """The names of what must not happen."""
        found = {
            "hangs": self.code is None,
            "tracebacks": "Traceback (most recent" in self.output,
            "bugs": "bug in dreamprvr_ray" in self.output,
            "wrong exit codes": self.code not in (0, 1, 2, None),
            "changed files": bool(self.changed),
            "executed canaries": self.executed,
            "printed canaries": SECRET in self.output,
            "silent failures": self.code in (1, 2) and not self.output.strip(),
            "long errors": self.code in (1, 2) and any(len(line) > 2200 for line in self.output.splitlines()),
        }
        return [name for name, happened in found.items() if happened]


def snapshot(root: Path) -> dict[str, str]:
    """Return what each path below `root` is, with a hash of its content."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "directory" if path.is_dir() else "other"
    return found


def changed_names(kind: str, before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return what an input of a kind changed although it must not. A resumed search may write its own files again."""
    changed = [name for name, content in before.items() if after.get(name) != content]
    if kind != "resume":
        return changed
    return [name for name in changed if not name.startswith("finished/") or name in OTHERS]


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Let every command end where it would start Ray."""
    from dreamprvr_ray.runtime import session, train_run
    from dreamprvr_ray.search import session as search_session

    def refuse(*_: Any, **__: Any) -> Any:
        raise Failure("Ray is not started here")

    started, users = session.ray_session, (session, train_run, search_session)
    for module in users:  # each has the name, whichever was imported before
        module.ray_session = refuse  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in users:
            module.ray_session = started  # type: ignore[attr-defined]


def run_command(words: list[str]) -> tuple[int, str]:
    """Run a command in this process; return its exit code and all that it printed."""
    main: Callable[[list[str]], int | None] = importlib.import_module(f"dreamprvr_ray.{MODULES[words[0]]}").main
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = exit_code(main, words[1:])
        except SystemExit as ended:  # of argparse, for --help
            code = int(ended.code or 0)
    return code, output.getvalue()


def _child(words: list[str], folder: Path, sender: Any) -> None:
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + LIMIT_SECONDS, used + LIMIT_SECONDS + 1))
    os.chdir(folder)
    tempfile.tempdir = str(folder.parent / "tmp")
    output = io.StringIO()
    sys.stdin = io.StringIO()
    ray = simulated_search.without_ray(simulated_search.refuse_trials) if "--resume" in words else without_ray()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), ray:
        sender.send(run_command(words))


def try_input(kind: str, seed: int, base: Path, folder: Path) -> Outcome:
    """Run one input, which (kind, seed) determines, on a copy of `base` in `folder`, and remove the copy."""
    root, canary = folder / "work", folder / "executed"
    (folder / "tmp").mkdir(parents=True)
    shutil.copytree(base, root)
    words = command_line(kind, root, random.Random(f"{kind} {seed}"), canary)
    before = snapshot(root)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_child, args=(words, root, sender))
    process.start()
    sender.close()
    code, output = None, ""
    try:
        if receiver.poll(WAIT_SECONDS):
            code, output = receiver.recv()
    except EOFError:  # the process crashed
        code, output = -1, "Traceback (most recent: the process died)"
    if code is None:
        process.kill()
    process.join()
    if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL):
        code = None
    after = snapshot(root)
    changed = tuple(changed_names(kind, before, after))
    outcome = Outcome(kind, tuple(words), code, output, changed, canary.exists())
    shutil.rmtree(folder, ignore_errors=True)
    return outcome


def try_many(arguments: tuple[int, int, Sequence[str], Path, Path]) -> list[Outcome]:
    """Run the inputs from a first to before a last number, of these kinds in turn, below a folder."""
    first, last, kinds, base, folder = arguments
    torch.set_num_threads(1)
    for module in MODULES.values():
        importlib.import_module(f"dreamprvr_ray.{module}")
    return [try_input(kinds[n % len(kinds)], n, base, folder / str(n)) for n in range(first, last)]

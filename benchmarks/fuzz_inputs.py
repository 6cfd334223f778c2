"""python -m benchmarks.fuzz_inputs: give the commands bad inputs of all kinds, and count what happens.

    python -m benchmarks.fuzz_inputs --inputs 2000 --seed 0 --json

Each input starts from correct files (a source tree, shards, a checkpoint, an experiment's directory, a configuration,
a search file), of which one to three are damaged, or from a command line, of which words are replaced. The command's
`main` runs in a separate process, behind the same boundary as for a user. Ray is not started: reaching it counts as
the end. Inputs of the kind "resume" damage the directory of a finished search and resume it, all but trials included.

An input must end within 10 seconds of CPU time, with exit code 0, 1 or 2, one line per mistake, no traceback and no
unexpected error, without changing anything that existed, without executing a canary (a command in a YAML tag, a
pickle, a condition, a name) and without printing one (a password in a location).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from benchmarks import simulated_search
from benchmarks.simulated_search import write_finished_search
from dreamprvr_ray.checkpoints.checkpoint import Checkpoint
from dreamprvr_ray.command_line import Parser, exit_code, print_json, print_progress, run
from dreamprvr_ray.config import known_keys, load_experiment
from dreamprvr_ray.data.conversion import ConversionSettings, convert
from dreamprvr_ray.data.demo import write_demo
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.errors import Failure
from dreamprvr_ray.model.dreamprvr import DreamPRVR

LIMIT_SECONDS = 10  # of CPU time
WAIT_SECONDS = 90.0  # for a process that waits, or gets little of a busy machine
SECRET = "CANARYSECRET"
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
SMALL = {"model.hidden_size": 16, "model.heads": 2, "model.branches": 2, "model.diffusion_steps": 2}
SPACE: dict[str, Any] = {
    "model.registers": {"int": [0, 8]},
    "model.dropout": {"float": [0.0, 0.5], "step": 0.05},
    "loss.margin": {"float": [0.1, 0.4], "when": "model.registers > 0"},
}
OTHERS = (  # of a user in the directory of a search
    "finished/notes.txt",
    "finished/best/notes.txt",
    "finished/runs/mine/metrics.json",
    "finished/runs/trial_000/checkpoints/notes.txt",
)
FILES_OF = {  # what is damaged for each kind of input
    "experiment": "experiment",
    "resume": "finished",
    "checkpoint": "checkpoint",
    "shards": "shards",
    "source": "source",
}
KINDS = (
    "experiment",
    "resume",
    "config",
    "search",
    "condition",
    "override",
    "flags",
    "path",
    "checkpoint",
    "shards",
    "source",
)


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


def write_base(root: Path) -> None:
    """Write a correct input of each kind."""
    write_demo(root / "source", seed=0, videos={"train": 6, "val": 3, "test": 3})
    convert(Source.open(root / "source", "demo", None), root / "shards", ConversionSettings(), workers=1)
    experiment = load_experiment("demo", SMALL)
    torch.manual_seed(0)
    model = DreamPRVR(experiment.model, experiment.data.video_size, experiment.data.text_size)
    (root / "checkpoint").mkdir()
    metrics = {"epoch": 1, "SumR": 100.0, "best_epoch": 1, "best_SumR": 100.0}
    Checkpoint(model.state_dict(), None, experiment, metrics).write(root / "checkpoint")
    (root / "config.yaml").write_text(yaml.safe_dump({"preset": "demo", "model": {"registers": 4}}))
    search = {"config": "demo", "shards": "shards", "out": "out", "trials": 4, "space": SPACE}
    more = {"constraints": ["model.registers < 8 or loss.margin < 0.3"], "final": {"top": 1, "seeds": 2}}
    (root / "space.yaml").write_text(yaml.safe_dump(search | more))
    write_experiment(root / "experiment")
    tiny = {key: value for key, value in SMALL.items() if key != "model.branches"} | {"training.epochs": 1}
    space = tiny | {"model.branches": 1, "model.registers": {"int": [0, 8]}}
    search = {"config": "demo", "shards": "shards", "out": "finished", "trials": 3, "space": space}
    (root / "finished.yaml").write_text(yaml.safe_dump(search | {"keep": 2, "final": {"top": 1, "seeds": 2}}))
    write_finished_search(root / "finished.yaml", root / "shards", root / "finished")
    for name in OTHERS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("mine")


def write_experiment(folder: Path, trials: int = 4) -> None:
    """Write the directory of a finished search of `trials` trials, with a final result and a test record."""
    folder.mkdir(parents=True)
    experiment = load_experiment("demo", SMALL)
    settings = {"config": "demo", "shards": "shards", "out": str(folder), "trials": trials, "space": SPACE}
    contents = {"name": "fuzz", "experiment": experiment.model_dump(), "search": settings | {"store": None}}
    (folder / "search.yaml").write_text(yaml.safe_dump(contents, sort_keys=False))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))
    study = optuna.create_study(study_name="fuzz", storage=storage, direction="maximize")
    distributions = {"model.registers": IntDistribution(0, 8), "model.dropout": FloatDistribution(0.0, 0.5, step=0.05)}
    board = []
    for number in range(trials):
        values = {"model.registers": 4 + number % 3, "model.dropout": 0.2 + 0.05 * (number % 2)}
        curve = {epoch: 100.0 + number + epoch for epoch in (1, 2, 3)}
        attributes = {"epochs": 3, "best_epoch": 3, "best_SumR": curve[3], "seconds": 5.0}
        trial = create_trial(
            state=TrialState.COMPLETE,
            params=values,
            distributions=distributions,
            values=[curve[3]],
            intermediate_values=curve,
            user_attrs=attributes,
        )
        study.add_trial(trial)
        run_folder = folder / "runs" / f"trial_{number:03d}"
        run_folder.mkdir(parents=True)
        lines = [json.dumps({"epoch": epoch, "SumR": sumr}) for epoch, sumr in curve.items()]
        (run_folder / "epochs.jsonl").write_text("\n".join(lines) + "\n")
        entry = {"number": number, "state": "finished", "best_sumr": curve[3], "best_epoch": 3, "epochs": 3}
        board.append(entry | {"values": values, "checkpoint": None, "error": None})
    (folder / "leaderboard.json").write_text(json.dumps(board))
    recall = {"R@1": 10.0, "R@5": 20.0, "R@10": 30.0, "R@100": 40.0, "SumR": 100.0, "queries": 9, "videos": 3}
    test = recall | {"split": "test", "collection": "demo", "protocol": "own splits", "median_rank": 2.0, "ties": 0}
    test["by_moment"] = {"0-0.2": recall}
    runs = [{"seed": seed, "val_SumR": 90.0, "best_epoch": 3, "checkpoint": "x", "test": test} for seed in (1, 2)]
    candidates = [
        {"name": name, "trial": trial, "values": {}, "runs": runs} for name, trial in (("trial 3", 3), ("paper", 0))
    ]
    comparison = {"better": "trial 3", "than": "paper", "difference": 1.0, "interval": [-1.0, 3.0]}
    final = {"split": "test", "collection": "demo", "protocol": "own splits", "candidates": candidates}
    final |= {"comparison": comparison | {"confidence": 0.95, "resamples": 100}, "versions": {"torch": "2"}}
    (folder / "final.json").write_text(json.dumps(final | {"commands": ["python -m dreamprvr_ray.tune"]}))
    (folder / "best").mkdir()
    (folder / "best" / "test.json").write_text(
        json.dumps({"readings": [test | {"at": "", "shards": "", "test_reads": 1}]})
    )


def hostile_values(canary: Path) -> list[Any]:
    """Return values that no file should hold."""
    return [
        *(
            None,
            True,
            -1,
            0,
            3.5,
            "",
            "x",
            [],
            {},
            [[]],
            {"a": {"b": []}},
            [None],
            "190:20:30",
            "\x00",
            "\n",
            "é" * 300,
        ),
        *(10**400, -(10**30), 1e308, float("nan"), float("inf"), "9" * 5000, "x" * 20_000, "../../etc", "%s%n{0}${x}"),
        f"__import__('os').system('touch {canary}')",
        f"$(touch {canary})",
        f"postgresql://me:{SECRET}@localhost/x",
    ]


def hostile_yaml(canary: Path) -> list[str]:
    """Return pieces of YAML that no file should hold."""
    bomb = "b0: &b0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"b{n}: &b{n} [{','.join([f'*b{n - 1}'] * 9)}]\n" for n in range(1, 11)
    )
    return [
        *(
            "!!int ''",
            "!!float ''",
            "!!bool x",
            "!!set {a}",
            "!!binary x",
            "!!timestamp x",
            "? [a]\n: b",
            "8: 1",
            "~: 1",
        ),
        *(
            "&a [*a]",
            "&a {a: *a}",
            "[" * 5000,
            "{a: " * 500,
            "'",
            '"\\ud800"',
            "*missing",
            "a: b: c",
            "\t- x",
            "%YAML 9.9",
        ),
        *(
            ".nan",
            "1e999",
            "0o9",
            "010",
            "190:20:30",
            "9" * 400,
            "0x" + "f" * 4000,
            "on",
            "---\n---\n",
            "<<: [1]",
            bomb,
        ),
        f"!!python/object/apply:os.system ['touch {canary}']",
        f"!!python/object/new:os.system ['touch {canary}']",
    ]


CONDITIONS = [
    *(
        "'a' * 99999999999",
        " and ".join(["model.registers > 0"] * 1500),
        "1 / model.registers > 0",
        "9**9**9 > model.heads",
    ),
    *(
        "-" * 900 + "model.registers",
        "(" * 300,
        "model.registers > 'x'",
        "model.initialization * 3 == 'x'",
        "model.registers",
    ),
    *(
        "not " * 200 + "model.registers",
        "1 % (model.registers - 3)",
        "model.registers << 999999999",
        "lambda: model.registers",
    ),
    *(
        "[model.registers for x in y]",
        "model.registers if 1 else 2",
        "f'{model.registers}'",
        "model.registers is 1",
        "\x00",
        "",
    ),
    *(
        "1e400 > model.registers",
        "model..registers > 0",
        "model.registers.real > 0",
        "a" * 5000,
        "model.registers > 0 #\n",
    ),
]
LOCATIONS = [
    *(
        "",
        ".",
        "/",
        "~",
        "/dev/null",
        "/dev/zero",
        "/proc/self/mem",
        "/proc/x",
        "x" * 300,
        "/" + "a/" * 3000,
        "a\x00b",
        "\udcff",
    ),
    *(
        "s3://",
        "s3://[",
        "s3://b ucket/x",
        "http://x",
        "file://",
        "file:///absent",
        "nosuch://x",
        "s3://x?region=",
        "gs:///",
        ":",
    ),
    *(
        f"s3://AKIA:{SECRET}@[bucket/x",
        f"nosuch://me:{SECRET}@host/x",
        f"s3://me:{SECRET}@/x?secret_key={SECRET}",
        "-",
        "--",
        "@",
    ),
]


def damage_json(value: Any, draw: random.Random, hostile: list[Any]) -> Any:
    """Return a JSON value with one change at a random place."""
    if isinstance(value, (dict, list)) and value and draw.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, changed = draw.choice(keys), value.copy()
        action = draw.random()
        if action < 0.2:
            del changed[key]
        elif action < 0.3 and isinstance(value, dict):
            changed[draw.choice(["", "a.b", "__class__", "x" * 500])] = changed.pop(key)
        else:
            changed[key] = damage_json(value[key], draw, hostile)
        return changed
    return draw.choice(hostile)


def damage_file(path: Path, draw: random.Random, canary: Path) -> None:
    """Change one file: its bytes, its values, or what is in its place."""
    content, action = path.read_bytes(), draw.random()
    if action < 0.5 and path.suffix in (".json", ".jsonl", ".journal", ".yaml"):
        _damage_values(path, draw, canary)
    elif action < 0.6:
        path.write_bytes(content[: draw.randrange(len(content) + 1)])
    elif action < 0.75:
        place = draw.randrange(len(content) + 1)
        path.write_bytes(
            content[:place] + draw.randbytes(draw.choice([1, 4, 4096])) + content[place + draw.choice([0, 4]) :]
        )
    elif action < 0.8:
        path.write_bytes(b"\xff\xfe\x00" * draw.choice([1, 9999]))
    elif action < 0.84:
        path.write_bytes(pickle.dumps(_Canary(str(canary))))
    else:
        path.unlink()
        place = draw.choice(["absent", "empty", "directory", "loop", "device", "pipe"])
        if place == "empty":
            path.write_bytes(b"")
        elif place == "directory":
            path.mkdir()
        elif place in ("loop", "device"):
            path.symlink_to(path if place == "loop" else "/dev/zero")
        elif place == "pipe":
            os.mkfifo(path)


class _Canary:
    """Runs a command if it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def _damage_values(path: Path, draw: random.Random, canary: Path) -> None:
    text, hostile = path.read_text(encoding="utf-8"), hostile_values(canary)
    if path.suffix == ".yaml":
        if draw.random() < 0.5:
            lines = text.splitlines()
            place = draw.randrange(len(lines))
            head = lines[place].partition(":")[0]
            piece = draw.choice(hostile_yaml(canary))
            lines[place] = f"{head}: {piece}" if draw.random() < 0.8 else piece
            path.write_text("\n".join(lines), encoding="utf-8")
        else:
            changed = damage_json(yaml.safe_load(text), draw, hostile)
            path.write_text(yaml.safe_dump(changed, sort_keys=False), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(damage_json(json.loads(text), draw, hostile)), encoding="utf-8")
    else:
        lines = text.splitlines()
        place = draw.randrange(len(lines))
        lines[place] = json.dumps(damage_json(json.loads(lines[place]), draw, hostile))
        path.write_text("\n".join(lines) + draw.choice(["\n", "", '\n{"op_c']), encoding="utf-8")


def command_line(kind: str, root: Path, draw: random.Random, canary: Path) -> list[str]:
    """Damage the files in `root` for an input of a kind, and return the command with its arguments."""
    valid = {
        "convert": [
            "--source",
            root / "source",
            "--collection",
            "demo",
            "--out",
            root / "new-shards",
            "--workers",
            "1",
        ],
        "train": ["--config", root / "config.yaml", "--shards", root / "shards", "--out", root / "new-run"],
        "tune": ["--space", root / "space.yaml", "--shards", root / "shards", "--out", root / "new-search"],
        "report": [root / "experiment", "--out", root / "new-report.html"],
        "evaluate": ["--checkpoint", root / "checkpoint", "--shards", root / "shards", "--split", "val"],
        "export": ["--checkpoint", root / "checkpoint", "--out", root / "new-export"],
        "verify": [root / "shards"],
        "data.demo": ["--out", root / "new-demo"],
    }
    resumed = ["--space", root / "finished.yaml", "--shards", root / "shards", "--out", root / "finished", "--resume"]
    command = {
        "experiment": "report",
        "resume": "tune",
        "config": "train",
        "search": "tune",
        "condition": "tune",
        "checkpoint": draw.choice(["evaluate", "export"]),
        "shards": draw.choice(["evaluate", "evaluate", "train", "tune"]),
        "source": "convert",
    }.get(kind) or draw.choice(["train", "tune"] if kind == "override" else list(valid))
    words = list(map(str, resumed if kind == "resume" else valid[command]))
    if kind in FILES_OF:
        users = {root / name for name in OTHERS}
        files = [path for path in sorted((root / FILES_OF[kind]).rglob("*")) if path.is_file() and path not in users]
        for path in draw.sample(files, min(len(files), draw.choice([1, 1, 2, 3]))):
            damage_file(path, draw, canary)
    elif kind == "config":
        damage_file(root / "config.yaml", draw, canary)
    elif kind == "search":
        damage_file(root / "space.yaml", draw, canary)
    elif kind == "condition":
        search = yaml.safe_load((root / "space.yaml").read_text())
        pieces = [draw.choice([*CONDITIONS, f"__import__('os').system('touch {canary}')"]) for _ in range(2)]
        condition = draw.choice([pieces[0], f"{pieces[0]} or {pieces[1]}", draw.choice(hostile_values(canary))])
        if draw.random() < 0.5:
            search["constraints"] = [condition]
        else:
            search["space"]["loss.margin"]["when"] = condition
        (root / "space.yaml").write_text(yaml.safe_dump(search))
    elif kind == "override":
        value = draw.choice([*map(str, hostile_values(canary)[:-1]), *hostile_yaml(canary)])
        key = draw.choice(
            [*known_keys(), "trials", "final", "trial.workers", "sampler.kind", "store", "", "x", "model", "a.b"]
        )
        words += ["--set", draw.choice([f"{key}={value}", value, key, f"{key}={draw.choice(LOCATIONS)}"])]
    elif kind == "path":
        place = draw.choice([place for place, word in enumerate(words) if str(root) in word])
        words[place] = draw.choice(
            [*LOCATIONS, f"{words[place]}/absent", str(root / "config.yaml"), str(root / "experiment")]
        )
    else:
        for _ in range(draw.choice([1, 2])):
            place = draw.randrange(len(words) + 1)
            garbage = [
                *map(str, hostile_values(canary)[:-1]),
                "--json",
                "--resume",
                "--wrong",
                "--set",
                "--help",
                "--out",
                "1:0",
            ]
            words[place : place + draw.choice([0, 1])] = [draw.choice(garbage)]
    if command in ("train", "tune") and kind in ("config", "search", "condition", "override"):
        words.append("--dry-run")
    return [command, *words]


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


def _try_many(arguments: tuple[int, int, Sequence[str], Path, Path]) -> list[Outcome]:
    first, last, kinds, base, folder = arguments
    torch.set_num_threads(1)
    for module in MODULES.values():
        importlib.import_module(f"dreamprvr_ray.{module}")
    return [try_input(kinds[n % len(kinds)], n, base, folder / str(n)) for n in range(first, last)]


def main(arguments: list[str]) -> int:
    parser = Parser("fuzz_inputs", "Give the commands bad inputs of all kinds, and count what happens.", "benchmarks")
    parser.add_argument("--inputs", type=int, default=2000, help="number of inputs (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first input (default: 0)")
    parser.add_argument("--processes", type=int, default=2, help="number of inputs at a time (default: 2)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="kinds of inputs (default: all)")
    parser.add_argument("--minutes", type=float, default=120.0, help="start no input after this time (default: 120)")
    options = parser.parse_args(arguments)
    started, counts, codes = time.monotonic(), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="dreamprvr-fuzz-") as name:
        folder = Path(name)
        write_base(folder / "base")
        first, last = options.seed * options.inputs, (options.seed + 1) * options.inputs
        parts = [(n, min(n + 10, last), options.kinds, folder / "base", folder) for n in range(first, last, 10)]
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.processes, mp_context=spawn) as pool:
            for outcomes in pool.map(_try_many, parts):
                for outcome in outcomes:
                    codes[str(outcome.code)] += 1
                    counts.update(outcome.faults)
                    if outcome.faults:
                        print_progress(f"{', '.join(outcome.faults)}: {outcome.kind}: {outcome.words!r:.600}")
                        print_progress(f"  {outcome.output[-700:]!r} {outcome.changed}")
                if time.monotonic() - started > 60 * options.minutes:
                    pool.shutdown(cancel_futures=True)
                    break
    result = {"inputs": codes.total(), "seconds": round(time.monotonic() - started), "exit codes": dict(codes)}
    names = ("tracebacks", "bugs", "hangs", "changed files", "executed canaries", "printed canaries")
    result |= dict.fromkeys(names, 0) | dict(counts)
    print(", ".join(f"{name}: {value}" for name, value in result.items()))
    if options.json:
        print_json(result)
    return 1 if counts else 0


if __name__ == "__main__":
    run(main)

"""The kinds of inputs: each damages its files or a command's words, by random choices that a seed determines."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.fuzz_inputs.correct_files import OTHERS
from benchmarks.fuzz_inputs.damage import damage_file
from benchmarks.fuzz_inputs.hostile import CONDITIONS, LOCATIONS, hostile_values, hostile_yaml
from dreamprvr_ray.config import known_keys


@dataclass(frozen=True)
class Input:
    """An input in the making.

    Attributes:
        root: Where the correct files are.
        canary: A file that exists if something was executed that must not be.
        draw: All random choices, in the order in which they are made.
        words: The arguments of the command.
    """

    root: Path
    canary: Path
    draw: random.Random
    words: list[str]


def damage_directory(name: str) -> Callable[[Input], None]:
    """Return the kind that damages one to three files of a directory, none of which are a user's own."""

    def damage(made: Input) -> None:
        users = {made.root / other for other in OTHERS}
        files = [path for path in sorted((made.root / name).rglob("*")) if path.is_file() and path not in users]
        for path in made.draw.sample(files, min(len(files), made.draw.choice([1, 1, 2, 3]))):
            damage_file(path, made.draw, made.canary)

    return damage


def damage_one_file(name: str) -> Callable[[Input], None]:
    """Return the kind that damages a file."""
    return lambda made: damage_file(made.root / name, made.draw, made.canary)


def replace_condition(made: Input) -> None:
    """Put a condition that cannot be evaluated into the search file."""
    draw, path = made.draw, made.root / "space.yaml"
    search = yaml.safe_load(path.read_text())
    pieces = [draw.choice([*CONDITIONS, f"__import__('os').system('touch {made.canary}')"]) for _ in range(2)]
    condition = draw.choice([pieces[0], f"{pieces[0]} or {pieces[1]}", draw.choice(hostile_values(made.canary))])
    if draw.random() < 0.5:
        search["constraints"] = [condition]
    else:
        search["space"]["loss.margin"]["when"] = condition
    path.write_text(yaml.safe_dump(search))


def add_override(made: Input) -> None:
    """Add `--set` with a key or a value that cannot be."""
    draw = made.draw
    value = draw.choice([*map(str, hostile_values(made.canary)[:-1]), *hostile_yaml(made.canary)])
    key = draw.choice(
        [*known_keys(), "trials", "final", "trial.workers", "sampler.kind", "store", "", "x", "model", "a.b"]
    )
    made.words.extend(["--set", draw.choice([f"{key}={value}", value, key, f"{key}={draw.choice(LOCATIONS)}"])])


def replace_path(made: Input) -> None:
    """Replace one path of the command line."""
    words, root = made.words, made.root
    place = made.draw.choice([place for place, word in enumerate(words) if str(root) in word])
    words[place] = made.draw.choice(
        [*LOCATIONS, f"{words[place]}/absent", str(root / "config.yaml"), str(root / "experiment")]
    )


def add_words(made: Input) -> None:
    """Add or replace one or two words of the command line."""
    flags = ["--json", "--resume", "--wrong", "--set", "--help", "--out", "1:0"]
    for _ in range(made.draw.choice([1, 2])):
        place = made.draw.randrange(len(made.words) + 1)
        garbage = [*map(str, hostile_values(made.canary)[:-1]), *flags]
        made.words[place : place + made.draw.choice([0, 1])] = [made.draw.choice(garbage)]


DAMAGE: dict[str, Callable[[Input], None]] = {
    "experiment": damage_directory("experiment"),
    "resume": damage_directory("finished"),
    "config": damage_one_file("config.yaml"),
    "search": damage_one_file("space.yaml"),
    "condition": replace_condition,
    "override": add_override,
    "flags": add_words,
    "path": replace_path,
    "checkpoint": damage_directory("checkpoint"),
    "shards": damage_directory("shards"),
    "source": damage_directory("source"),
}
KINDS = tuple(DAMAGE)


def command_line(kind: str, root: Path, draw: random.Random, canary: Path) -> list[str]:
    """Damage the files in `root` for an input of a kind, and return the command with its arguments."""
    valid = _valid_arguments(root)
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
    resumed = ["--space", root / "finished.yaml", "--shards", root / "shards", "--out", root / "finished", "--resume"]
    words = list(map(str, resumed if kind == "resume" else valid[command]))
    DAMAGE[kind](Input(root, canary, draw, words))
    if command in ("train", "tune") and kind in ("config", "search", "condition", "override"):
        words.append("--dry-run")
    return [command, *words]


def _valid_arguments(root: Path) -> dict[str, list[str | Path]]:
    """Return correct arguments of each command."""
    source, shards, checkpoint = root / "source", root / "shards", root / "checkpoint"
    return {
        "convert": ["--source", source, "--collection", "demo", "--out", root / "new-shards", "--workers", "1"],
        "train": ["--config", root / "config.yaml", "--shards", shards, "--out", root / "new-run"],
        "tune": ["--space", root / "space.yaml", "--shards", shards, "--out", root / "new-search"],
        "report": [root / "experiment", "--out", root / "new-report.html"],
        "evaluate": ["--checkpoint", checkpoint, "--shards", shards, "--split", "val"],
        "export": ["--checkpoint", checkpoint, "--out", root / "new-export"],
        "verify": [shards],
        "data.demo": ["--out", root / "new-demo"],
    }

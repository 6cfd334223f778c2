"""Damage to a file: to its bytes, to its values, or to what is in its place."""

from __future__ import annotations

import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import yaml

from benchmarks.fuzz_inputs.hostile import hostile_values, hostile_yaml


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

"""What a user may not read or write is one line with the path: real commands, without the privileges of root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from dreamprvr_ray.checkpoints.checkpoint import Checkpoint
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.model.dreamprvr import DreamPRVR

ROOT = Path(__file__).parents[1]
PROGRAM = """
import json, sys
from benchmarks.fuzz_inputs.trying import run_command
print(json.dumps([run_command(words) for words in json.loads(sys.argv[1])]))
"""
UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")  # for root


def run_all(commands: list[list[object]]) -> list[tuple[int, str]]:
    """Run commands in a process that the system refuses what permissions forbid; return codes and outputs."""
    words = [*(UNPRIVILEGED if os.getuid() == 0 else ()), sys.executable, "-c", PROGRAM]
    encoded = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run([*words, encoded], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [(code, output) for code, output in json.loads(done.stdout.splitlines()[-1])]


def write_model(directory: Path) -> Path:
    experiment = load_experiment("demo", {"model.hidden_size": 16, "model.branches": 1})
    torch.manual_seed(0)
    model = DreamPRVR(experiment.model, experiment.data.video_size, experiment.data.text_size)
    directory.mkdir()
    metrics = {"epoch": 1, "SumR": 100.0, "best_epoch": 1, "best_SumR": 100.0}
    Checkpoint(model.state_dict(), None, experiment, metrics).write(directory)
    return directory


@pytest.mark.skipif(os.getuid() == 0 and shutil.which("setpriv") is None, reason="root may do all without setpriv")
def test_what_must_not_be_read_or_written_is_one_line(demo_shards: Path, tmp_path: Path) -> None:
    shards, damaged = tmp_path / "shards", tmp_path / "damaged"
    for copy in (shards, damaged):
        shutil.copytree(demo_shards, copy)
    model, unreadable = write_model(tmp_path / "model"), write_model(tmp_path / "unreadable")
    space, locked = tmp_path / "space.yaml", tmp_path / "locked.yaml"
    out = tmp_path / "read-only"
    search = {"config": "demo", "shards": str(shards), "out": str(out / "search"), "trials": 2}
    for path in (space, locked):
        path.write_text(yaml.safe_dump(search | {"space": {"model.registers": {"int": [0, 8]}}}))
    (tmp_path / "private").mkdir(mode=0o000)
    out.mkdir(mode=0o555)
    model.chmod(0o555)
    shard, weights = next(damaged.glob("val-*.videos.arrow")), unreadable / "weights.safetensors"
    for path in (shard, weights, locked):
        path.chmod(0o000)

    evaluate, val = ["evaluate", "--split", "val"], ["--shards", shards]
    train = ["train", "--config", "demo", "--shards", shards]
    denied = "Permission denied"
    expected: list[tuple[list[object], Path, str]] = [
        ([*evaluate, "--shards", damaged, "--checkpoint", model], shard, f"cannot be read: {denied}"),
        ([*evaluate, *val, "--checkpoint", unreadable], weights, f"cannot be read: {denied}"),
        ([*evaluate, *val, "--checkpoint", tmp_path / "private" / "model"], tmp_path / "private" / "model", denied),
        (["export", "--checkpoint", model, "--out", out / "model"], out / "model", f"cannot be written: {denied}"),
        ([*train, "--out", out / "run"], out / "run", f"cannot be written: {out} does not allow it"),
        (["tune", "--space", space], out / "search", f"cannot be written: {out} does not allow it"),
        (["tune", "--space", locked], locked, f"cannot be read: {denied}"),
        (["report", tmp_path / "private"], tmp_path / "private", denied),
        (["data.demo", "--out", out / "demo"], out / "demo", f"cannot be written: {denied}"),
    ]
    on_test: list[object] = ["evaluate", "--split", "test", *val, "--checkpoint", model]  # it cannot be recorded
    *outputs, (code, output) = run_all([*(words for words, _, _ in expected), on_test])
    for (words, path, reason), (refused, line) in zip(expected, outputs, strict=True):
        assert refused == 2 and line.count("\n") == 1, (words, line)
        assert line.startswith(f"error: {path}") and line.endswith(f"{reason}\n"), (words, line)
    assert code == 0 and "SumR" in output and not (model / "test.json").exists()
    (warning,) = [line for line in output.splitlines() if line.startswith("warning: ")]
    assert "this test evaluation could not be recorded: " in warning and warning.endswith(denied)
    assert not list(out.iterdir())

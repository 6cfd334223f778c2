"""`train` as a user runs it: real Ray Train workers on a local Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dreamprvr_ray import train

Command = Callable[..., subprocess.CompletedProcess[str]]
TINY = ("model.hidden_size=16", "model.branches=2", "model.diffusion_steps=2", "training.batch_videos=7", "loss.hard_negative_start_epoch=2")
NO_DROPOUT = ("model.dropout=0.0", "model.input_dropout=0.0")


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    values: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return values


@pytest.fixture(scope="module")
def one_worker(command: Command, demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("train") / "one"
    done = command("train", "--config", "demo", "--shards", demo_shards, "--out", out, "--json", "--set", *TINY, *NO_DROPOUT, "training.epochs=3")
    return out, done


def test_a_run_says_a_line_an_epoch_and_leaves_its_best_checkpoint(one_worker: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, done = one_worker
    values = last_json(done)
    lines = [line for line in done.stderr.splitlines() if line.startswith("epoch")]
    assert len(lines) == 3 and "SumR" in lines[0] and "videos/s" in lines[0] and "left" in lines[0] and lines[-1].endswith("done")
    assert sorted(path.name for path in (out / "best").iterdir()) == ["experiment.yaml", "metrics.json", "state.pt", "weights.safetensors"]
    assert values["checkpoint"] == str(out / "best") and values["protocol"] == "own splits"
    assert list((out / "tensorboard").glob("events*"))


def test_two_workers_train_as_one(
    command: Command, demo_shards: Path, one_worker: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    out = tmp_path / "two"
    arguments = ("--shards", demo_shards, "--out", out, "--workers", 2, "--json", "--set", *TINY, *NO_DROPOUT, "training.epochs=3")
    two, one = last_json(command("train", "--config", "demo", *arguments)), last_json(one_worker[1])
    losses = [name for name in one if name.startswith("loss/")]
    assert len(losses) == 9
    for name in (*losses, "SumR", "best_SumR", "best_epoch"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name


def test_a_killed_run_resumes_to_the_same_result(command: Command, demo_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    arguments = ["--config", "demo", "--shards", demo_shards, "--json", "--set", *TINY, "training.epochs=4", "--out"]
    whole = last_json(command("train", *arguments, tmp_path / "whole"))
    driver = subprocess.Popen(
        [sys.executable, "-m", "dreamprvr_ray.train", *map(str, arguments), str(out)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert driver.stderr is not None
    for line in driver.stderr:
        if line.startswith("epoch 2/4"):
            break
    os.kill(driver.pid, signal.SIGKILL)
    driver.communicate()
    time.sleep(1)
    refused = command("train", *arguments, out)
    assert refused.returncode == 2 and "already there; go on with --resume" in refused.stderr
    other = command("train", *arguments, out, "--resume", "--set", "model.registers=2")
    assert other.returncode == 2 and "cannot resume: model.registers was 4 and is 2 now" in other.stderr
    resumed_run = command("train", *arguments, out, "--resume")
    resumed = last_json(resumed_run)
    epochs = [line.split()[1] for line in resumed_run.stderr.splitlines() if line.startswith("epoch")]
    # At most the last epoch again; the orphaned workers may have gone on for a while, even to the end.
    assert set(epochs) <= {"2/4", "3/4", "4/4"} and len(set(epochs)) == len(epochs)
    timing = {"videos_per_second", "seconds", "seconds_left", "waited", "checkpoint"}
    assert {key: value for key, value in resumed.items() if key not in timing} == {key: value for key, value in whole.items() if key not in timing}


def test_mistakes_are_one_line_each(command: Command, demo_shards: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (["--config", "tvrr", "--shards", "x", "--out", "y"], "did you mean 'tvr'?"),
        (["--config", "tvr"], "--shards and --out are needed"),
        (["--config", "demo", "--shards", tmp_path / "none", "--out", tmp_path / "out"], str(tmp_path / "none")),
        (["--config", "demo", "--shards", demo_shards, "--out", tmp_path / "out", "--workers", "0"], "--workers 0"),
        (["--config", "demo", "--shards", demo_shards, "--out", tmp_path / "out", "--workers", "4000"], "4000 workers of 1 CPU do not fit"),
        (["--config", "demo", "--shards", demo_shards, "--out", tmp_path / "out", "--set", "model.regsters=2"], "did you mean 'model.registers'?"),
        (["--config", "demo", "--shards", demo_shards, "--out", tmp_path / "out", "--resume"], "nothing to resume"),
    ):
        done = command("train", *arguments)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr and len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("config", "millions", "gflop"), [("tvr", 37.62, 21.8), ("activitynet", 36.14, 19.6), ("charades", 36.14, 20.4)])
def test_a_dry_run_needs_nothing_and_tells_the_cost(capsys: pytest.CaptureFixture[str], config: str, millions: float, gflop: float) -> None:
    train.main(["--config", config, "--dry-run", "--json"])
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["parameters"] == pytest.approx(millions * 1e6, abs=5e3)
    assert values["gflop_per_video"] == pytest.approx(gflop, abs=0.1)

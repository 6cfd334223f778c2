"""The `train` command with real Ray Train workers on a local Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dreamprvr_ray.checkpoints.checkpoint import load_model, read_metrics
from dreamprvr_ray.storage.location import Storage

if TYPE_CHECKING:
    from conftest import Driver

Call = Callable[..., subprocess.CompletedProcess[str]]
# Without dropout, which each worker draws separately; in fp32, because numbers are compared; with enough epochs to be
# killed in the middle.
TINY = (
    *(
        "model.hidden_size=16",
        "model.branches=2",
        "model.diffusion_steps=2",
        "model.dropout=0.0",
        "model.input_dropout=0.0",
        "training.precision=fp32",
    ),
    *("training.batch_videos=7", "training.epochs=6", "training.patience=6", "loss.hard_negative_start_epoch=2"),
)


def last_json(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert done.returncode == 0, done.stderr
    values: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return values


@pytest.fixture(scope="module")
def one_worker(
    call: Call, demo_shards: Path, tmp_path_factory: pytest.TempPathFactory, local_ray: None
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """An uninterrupted run, with which the others are compared."""
    out = tmp_path_factory.mktemp("train") / "one"
    return out, call("train", "--config", "demo", "--shards", demo_shards, "--out", out, "--json", "--set", *TINY)


def test_a_run_prints_a_line_per_epoch_and_publishes_its_best_checkpoint(
    one_worker: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, done = one_worker
    values = last_json(done)
    lines = [line for line in done.stderr.splitlines() if line.startswith("epoch")]
    assert (
        len(lines) == 6
        and "SumR" in lines[0]
        and "videos/s" in lines[0]
        and "left" in lines[0]
        and lines[-1].endswith("done")
    )
    assert sorted(path.name for path in (out / "best").iterdir()) == [
        "checksums.json",
        "experiment.yaml",
        "metrics.json",
        "state.pt",
        "weights.safetensors",
    ]
    assert values["checkpoint"] == str(out / "best") and values["protocol"] == "own splits"
    assert list((out / "tensorboard").glob("events*"))


def test_two_workers_train_as_one(
    call: Call, demo_shards: Path, one_worker: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    arguments = ("--shards", demo_shards, "--out", tmp_path / "two", "--workers", 2, "--json", "--set", *TINY)
    two, one = last_json(call("train", "--config", "demo", *arguments)), last_json(one_worker[1])
    losses = [name for name in one if name.startswith("loss/")]
    assert len(losses) == 9
    for name in (*losses, "SumR", "best_SumR", "best_epoch"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name


def test_several_collections_train_as_one_on_any_number_of_workers(
    call: Call, demo_shards: Path, other_shards: Path, local_ray: None, tmp_path: Path
) -> None:
    shorter = (*TINY, "training.epochs=2", "data.weights.other=0.5")
    shards = ("--config", "demo", "--json", "--shards")
    one = call("train", *shards, demo_shards, other_shards, "--out", tmp_path / "one", "--set", *shorter)
    two = last_json(
        call("train", *shards, other_shards, demo_shards, "--out", tmp_path / "two", "--workers", 2, "--set", *shorter)
    )
    alone = last_json(one)
    names = [name for name in alone if name.startswith(("loss/", "SumR"))]
    assert {"SumR/demo", "SumR/other"} < set(names)
    for name in names:
        assert two[name] == pytest.approx(alone[name], rel=1e-4), name
    assert "(demo " in one.stderr and ", other " in one.stderr
    changed = call(
        "train", *shards, demo_shards, "--out", tmp_path / "one", "--resume", "--set", *TINY, "training.epochs=2"
    )
    assert changed.returncode == 2 and "data.weights.other was 0.5 and is 1.0 now" in changed.stderr


def test_a_killed_run_resumes_to_the_same_result(
    call: Call,
    drive: Callable[..., Driver],
    demo_shards: Path,
    one_worker: tuple[Path, subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    out = tmp_path / "killed"
    arguments = ("--config", "demo", "--shards", demo_shards, "--out", out, "--json", "--set", *TINY)
    driver = drive("train", *arguments)
    driver.wait_for_output("epoch 2/6")
    driver.kill(with_its_ray=True)  # otherwise its workers keep training, perhaps to the end
    refused = call("train", *arguments)
    assert refused.returncode == 2 and "already exists; use --resume to continue" in refused.stderr
    other = call("train", *arguments, "model.registers=2", "--resume")
    assert other.returncode == 2 and "cannot resume: model.registers was 4 and is 2 now" in other.stderr
    with Storage.of(out).lock():
        beside = call("train", *arguments, "--resume")
    assert beside.returncode == 2 and f"{out}: process {os.getpid()} is using this directory" in beside.stderr
    done = call("train", *arguments, "--resume")
    resumed, uninterrupted = last_json(done), last_json(one_worker[1])
    epochs = [int(line.split()[1].removesuffix("/6")) for line in done.stderr.splitlines() if line.startswith("epoch")]
    # It resumes from the latest checkpoint: at most the last of the printed epochs is trained again.
    assert epochs and epochs == list(range(epochs[0], 7)) and epochs[0] >= 2
    timing = {"videos_per_second", "seconds", "seconds_left", "waited", "checkpoint"}
    assert {key: value for key, value in resumed.items() if key not in timing} == {
        key: value for key, value in uninterrupted.items() if key not in timing
    }


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "ray job stop"])
def test_an_interrupted_run_prints_how_to_continue(
    drive: Callable[..., Driver], demo_shards: Path, tmp_path: Path, number: signal.Signals
) -> None:
    longer = ("--set", *TINY, "training.epochs=200", "training.patience=200")
    driver = drive("train", "--config", "demo", "--shards", demo_shards, "--out", tmp_path / "run", *longer)
    driver.wait_for_output("3/200")
    driver.process.send_signal(number)
    output = driver.end().splitlines()
    assert driver.process.returncode == 130
    assert output[-2:] == [
        f"to continue, add --resume to the same command (the run is in {tmp_path / 'run'})",
        "interrupted",
    ]
    assert "Traceback" not in "".join(output)
    metrics = read_metrics(tmp_path / "run" / "best")  # the best checkpoint so far
    assert metrics["epoch"] == metrics["best_epoch"] >= 1 and not metrics["finished"]
    assert f"best epoch so far: {metrics['epoch']}, checkpoint {tmp_path / 'run' / 'best'}" in output
    load_model(tmp_path / "run" / "best")


def test_user_errors_are_one_line_each(call: Call, local_ray: None, demo_shards: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (["--config", "tvrr", "--shards", "x", "--out", "y"], "did you mean 'tvr'?"),
        (["--config", "tvr"], "--shards and --out are required"),
        (["--config", "demo", "--shards", tmp_path / "none", "--out", tmp_path / "out"], str(tmp_path / "none")),
        (["--config", "demo", "--shards", demo_shards, "--out", tmp_path / "out", "--workers", "0"], "--workers 0"),
        (
            ["--config", "demo", "--shards", demo_shards, "--out", tmp_path / "out", "--workers", "4000"],
            "4000 workers of 1 CPU do not fit",
        ),
        (
            ["--config", "demo", "--shards", demo_shards, "--out", tmp_path / "out", "--set", "model.regsters=2"],
            "did you mean 'model.registers'?",
        ),
        (["--config", "demo", "--shards", demo_shards, "--out", tmp_path / "out", "--resume"], "nothing to resume"),
    ):
        done = call("train", *arguments)
        assert done.returncode == 2, done.stderr
        assert message in done.stderr and len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()


def test_a_dry_run_prints_the_configuration_and_its_cost(call: Call, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("preset: tvr\ntraining: {epochs: 60}\n")
    done = call("train", "--config", config, "--dry-run", "--json", "--set", "model.dropout=0.3")
    values = last_json(done)
    assert values["parameters"] == pytest.approx(37.62e6, abs=5e3)
    assert values["gflop_per_video"] == pytest.approx(21.8, abs=0.1)
    for line in (f"config: {config}", "training.epochs = 60", "model.dropout = 0.3", "parameters: 37.62 M"):
        assert line in done.stdout.splitlines()

"""`export`: the exported model can be evaluated, and its script retrieves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.indexes import small_checkpoint, small_experiment, small_shards
from support.object_store import S3
from support.tiny_encoder import NAME

from dreamprvr_ray.checkpoints.export_page import export_page
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.data.encoding import EncoderRecord, EncodingRecord
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.index.index import Index
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.loop import fit
from dreamprvr_ray.training.reporter import DirectoryReporter

GOLDEN = Path(__file__).parent / "golden" / "model" / "authors_format.ckpt"
Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def checkpoint(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    experiment = load_experiment("demo", {"model.hidden_size": 16, "model.branches": 1, "training.epochs": 1})
    fit(experiment, ShardSet.open(demo_shards), DirectoryReporter(run))
    return run / "best"


def test_an_exported_model_evaluates_like_its_checkpoint(
    checkpoint: Path, call: Call, demo_shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    done = call("export", "--checkpoint", checkpoint, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == {
        "weights.safetensors",
        "experiment.yaml",
        "checksums.json",
        "metrics.json",
        "retrieve.py",
        "README.md",
    }
    results = []
    for model in (checkpoint, out):
        evaluated = call("evaluate", "--checkpoint", model, "--shards", demo_shards, "--split", "val", "--json")
        results.append(json.loads(evaluated.stdout.splitlines()[-1]))
    assert results[0] == results[1]

    assert not (out / "test.json").exists()  # nothing was measured

    again = call("export", "--checkpoint", checkpoint, "--out", out)
    assert again.returncode == 2 and "already exists; choose another --out" in again.stderr


def test_its_script_takes_a_sentence(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]))
    checkpoint, shards = small_checkpoint(tmp_path / "best"), small_shards(tmp_path / "shards")
    model, index = tmp_path / "model", tmp_path / "index"
    assert call("export", "--checkpoint", checkpoint, "--out", model).returncode == 0
    words = ("--model", model, "--shards", shards.directory, "--out", index, "--sentence-encoder", NAME)
    assert call("index", *words).returncode == 0
    script = model / "retrieve.py"
    code = script.read_text().split('"""')[2]
    assert len([line for line in code.splitlines() if line]) <= 15
    sentence = shards.split("val").captions[3]
    ran = retrieve(script, index, sentence)
    assert (ran.returncode, ran.stderr) == (0, "")
    answer = Index.open(index).find(sentence, top=5)
    assert [line.split()[1] for line in ran.stdout.splitlines()] == [found.video for found in answer.results]
    for arguments, reason in (
        ((shards.directory, sentence), f"error: {shards.directory}: not an index: it has no index.json\n"),
        ((index, " "), "error: the sentence is empty\n"),
    ):
        refused = retrieve(script, *arguments)
        assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", reason)


def test_the_readme_of_a_model_names_its_encoders(tmp_path: Path) -> None:
    experiment, metrics = small_experiment(), {"epoch": 3, "SumR": 201.25}
    page = export_page(experiment, metrics, None, "1.0")
    assert "without a record of their encoders: frames of 12 values" in page and "epoch 3, SumR 201.2 on val" in page
    frames, sentences = (EncoderRecord(name, 12, "fp32", {}) for name in ("timm:lite0", "own:Sentences"))
    page = export_page(experiment, metrics, EncodingRecord(frames, sentences, 2.0, 64.0, 32.0), "1.0")
    assert "- Frames: 2 per second, by `timm:lite0` (12 values)" in page and "`own:Sentences`" in page
    assert "longer than 64 s" in page


def retrieve(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_reported_and_leaves_nothing(checkpoint: Path, call: Call, small_disk: Path) -> None:
    done = call("export", "--checkpoint", checkpoint, "--out", small_disk / "model")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"failed: {small_disk}/model: cannot be written: No space left on device\n"
    assert not list(small_disk.iterdir())


def test_a_checkpoint_in_an_object_store_is_exported(checkpoint: Path, call: Call, s3: S3, tmp_path: Path) -> None:
    storage = Storage.of(s3.uri("run"))
    storage.upload_directory("best", checkpoint)
    done = call("export", "--checkpoint", (storage / "best").location, "--out", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model" / "weights.safetensors").read_bytes() == (
        checkpoint / "weights.safetensors"
    ).read_bytes()


def test_a_directory_that_cannot_be_written_is_reported(
    checkpoint: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for out, reason in (
        ("/proc/x", "cannot be written: No such file or directory"),
        ("s3://bucket/x", "must be a local directory"),
    ):
        done = call("export", "--checkpoint", checkpoint, "--out", out)
        assert (
            done.returncode == 2 and done.stderr.startswith(f"error: {out}: {reason}") and done.stderr.count("\n") == 1
        )
    assert not list(tmp_path.iterdir())


def test_a_directory_without_a_checkpoint_is_not_exported(call: Call, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, reason in (
        (GOLDEN, "is a file; export needs the directory of a checkpoint"),
        (tmp_path / "none", "checkpoint does not exist"),
        (tmp_path / "empty", "not a checkpoint: it has no weights.safetensors"),
    ):
        done = call("export", "--checkpoint", source, "--out", tmp_path / "out")
        assert done.returncode == 2 and reason in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("metrics", ["{}", '{"epoch": 1}', '{"epoch": "1", "SumR": 2.0}', '{"epoch": 1, "SumR": null}'])
def test_damaged_metrics_are_reported(metrics: str, checkpoint: Path, call: Call, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "copy")
    (tmp_path / "copy" / "checksums.json").unlink()
    (tmp_path / "copy" / "metrics.json").write_text(metrics)
    done = call("export", "--checkpoint", tmp_path / "copy", "--out", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.startswith(f"error: {tmp_path}/copy/metrics.json: damaged: ")
    assert not (tmp_path / "out").exists()

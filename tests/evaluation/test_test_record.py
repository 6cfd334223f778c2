from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.errors import NotWritableError, UserError
from dreamprvr_ray.evaluation.test_record import described, evaluate_checkpoint, recorded_test
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.loop import fit
from dreamprvr_ray.training.reporter import DirectoryReporter

TINY = {"model.hidden_size": 16, "model.branches": 1, "training.epochs": 1}


@pytest.fixture(scope="module")
def checkpoint(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    run = tmp_path_factory.mktemp("run")
    fit(load_experiment("demo", TINY), ShardSet.open(demo_shards), DirectoryReporter(run))
    return Storage.of(run / "best")


def test_val_may_be_read_at_will_and_every_reading_of_test_is_recorded(checkpoint: Storage, demo_shards: Path) -> None:
    shards = ShardSet.open(demo_shards)
    evaluate_checkpoint(checkpoint, shards, "val")
    assert recorded_test(checkpoint) is None
    first = evaluate_checkpoint(checkpoint, shards, "test")
    second = evaluate_checkpoint(checkpoint, shards, "test")
    assert (first["test_reads"], second["test_reads"]) == (1, 2)
    assert first["SumR"] == second["SumR"] == pytest.approx(sum(first[f"R@{k}"] for k in (1, 5, 10, 100)))
    recorded = recorded_test(checkpoint)
    assert recorded is not None and recorded["SumR"] == first["SumR"]
    assert "has been read 2 times" in "\n".join(described(second)) and "has been read" not in "\n".join(
        described(first)
    )


def test_a_reading_of_test_that_cannot_be_recorded_is_said_and_its_result_printed(
    checkpoint: Storage, demo_shards: Path, tmp_path: Path, call: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    model = tmp_path / "model"
    assert checkpoint.directory is not None
    shutil.copytree(checkpoint.directory, model)
    (model / "test.json").unlink(missing_ok=True)
    (model / "test.json").mkdir()  # which no file can replace
    done = call("evaluate", "--checkpoint", model, "--shards", demo_shards, "--split", "test", "--json")
    reason = f"{model}/test.json: cannot be written: Is a directory"
    warning = f"warning: later readings of test will not count this one, which could not be recorded: {reason}\n"
    assert (done.returncode, done.stderr) == (0, warning)
    assert json.loads(done.stdout.splitlines()[-1])["split"] == "test" and "SumR" in done.stdout.splitlines()[1]
    with pytest.raises(NotWritableError):  # a search reads test once, or not at all
        evaluate_checkpoint(Storage.of(model), ShardSet.open(demo_shards), "test")


def test_features_of_other_sizes_are_a_clear_mistake(checkpoint: Storage) -> None:
    golden = Path(__file__).parents[1] / "golden" / "model" / "authors_format.ckpt"
    manifest = type("Manifest", (), {"video_size": 7, "text_size": 48})()
    shards = type("Shards", (), {"manifest": manifest, "directory": Path("other")})()
    for each in (checkpoint, Storage.of(golden)):
        with pytest.raises(UserError, match=r"trained on features of sizes .* other holds 7 / 48"):
            evaluate_checkpoint(each, shards, "val")  # type: ignore[arg-type]

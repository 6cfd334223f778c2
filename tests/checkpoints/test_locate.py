"""Locations that are no checkpoint: the line names the one that was probably meant."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.object_store import S3

from dreamprvr_ray.checkpoints.checkpoint import load_model
from dreamprvr_ray.checkpoints.locate import check_checkpoint, load_trained_model
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.loop import fit
from dreamprvr_ray.training.reporter import DirectoryReporter

AUTHORS = Path(__file__).parents[1] / "golden" / "model" / "authors_format.ckpt"


@pytest.fixture(scope="module")
def trained(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained")
    tiny = {"model.hidden_size": 16, "model.branches": 1, "training.epochs": 1}
    fit(load_experiment("demo", tiny), ShardSet.open(demo_shards), DirectoryReporter(run))
    return run / "best"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run, or a search, with a published checkpoint and its epochs."""
    for name in ("best", "checkpoints/epoch-0001", "runs/trial_003/checkpoints/epoch-0001"):
        shutil.copytree(trained, tmp_path / "run" / name)
    (tmp_path / "run" / "experiment.yaml").write_text("a: 1")
    return tmp_path / "run"


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        check_checkpoint(Storage.of(path))
    (line,) = error.value.mistakes
    assert line.startswith(f"{path}: ")
    return line.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("", "best"),
        ("checkpoints", "best"),
        ("runs", "best"),
        ("runs/trial_003", "runs/trial_003/checkpoints/epoch-0001"),
        ("runs/trial_003/checkpoints", "runs/trial_003/checkpoints/epoch-0001"),
        ("best/weights.safetensors", "best"),
        ("best/state.pt", "best"),
        ("experiment.yaml", "best"),
        ("bets", "best"),
        ("checkpoints/epoch-0002", "checkpoints/epoch-0001"),
    ],
)
def test_the_checkpoint_that_was_meant_is_named(name: str, meant: str, run: Path) -> None:
    line = refused(run / name)
    assert line.endswith(f"; did you mean '{run / meant}'?")
    load_model(run / meant)


def test_without_a_checkpoint_nearby_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty") == "not a checkpoint: it has no weights.safetensors"
    assert refused(tmp_path / "none") == "checkpoint does not exist"
    assert refused(tmp_path / ("a" * 300)) == "cannot be read: File name too long"


def test_a_damaged_run_does_not_hide_the_mistake(run: Path) -> None:
    shutil.rmtree(run / "best")
    for content in ("{", "{}", '{"best_epoch": null}', '{"best_epoch": 9}'):
        (run / "checkpoints" / "epoch-0001" / "metrics.json").write_text(content)
        assert refused(run) == "not a checkpoint: it has no weights.safetensors"


def test_checkpoints_are_accepted(run: Path) -> None:
    for path in (run / "best", AUTHORS):
        check_checkpoint(Storage.of(path))
        assert load_trained_model(Storage.of(path)).experiment == load_model(path).experiment


def test_messages_about_an_object_store_name_the_uri(run: Path, s3: S3) -> None:
    storage = Storage.of(s3.uri("located"))
    storage.upload_directory("best", run / "best")
    with pytest.raises(UserError) as error:
        load_trained_model(storage)
    assert str(error.value) == (
        f"{storage}: not a checkpoint: it has no weights.safetensors; did you mean '{storage / 'best'}'?"
    )
    (storage / "best").write_text("weights.safetensors", "damaged")
    with pytest.raises(UserError) as error:
        load_trained_model(storage / "best")
    assert str(error.value).startswith(f"{storage / 'best'}/weights.safetensors: damaged: ")

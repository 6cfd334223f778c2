"""An evaluated split is compared with what the model was trained on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamprvr_ray import evaluate as command
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.data.collections import Collections
from dreamprvr_ray.data.in_memory import FeatureSplit, Query, write_shards
from dreamprvr_ray.data.manifest import MANIFEST
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.metrics import Evaluation, TrainingOverlap
from dreamprvr_ray.evaluation.test_record import evaluate_each, recorded_test
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.loop import fit
from dreamprvr_ray.training.reporter import DirectoryReporter

TINY = {
    "model.hidden_size": 8,
    "model.branches": 1,
    "model.registers": 1,
    "model.diffusion_steps": 1,
    "training.epochs": 1,
    "training.precision": "fp32",
}
SPLITS = {"train": ["a", "b", "c", "d"], "val": ["e", "f"], "test": ["g", "h"]}


def shards_of(directory: Path, collection: str, splits: dict[str, list[str]]) -> ShardSet:
    """Write shards with a query per video; equal ids have equal features and sentences."""

    def split(ids: list[str]) -> FeatureSplit:
        rows = {id: np.random.default_rng(ord(id)).standard_normal((9, 8)) for id in ids}
        queries = [Query(f"{id}#0", id, f"sentence of {id}", both[6:]) for id, both in rows.items()]
        return FeatureSplit({id: both[:6] for id, both in rows.items()}, queries)

    return write_shards(
        directory, collection=collection, splits={name: split(ids) for name, ids in splits.items()}, one_encoder=False
    )


def trained_on(directory: Path, *shards: ShardSet) -> Storage:
    collections = Collections(shards)
    fit(load_experiment("demo", TINY), collections, DirectoryReporter(directory))
    return Storage.of(directory / "best")


@pytest.fixture
def home(tmp_path: Path) -> ShardSet:
    return shards_of(tmp_path / "home", "home", SPLITS)


@pytest.fixture
def away(tmp_path: Path) -> ShardSet:
    """A collection whose test has a video of home's train and one of its val."""
    return shards_of(tmp_path / "away", "away", {"val": ["c", "x"], "test": ["b", "e", "y", "z"]})


def test_a_test_that_was_learned_from_is_called_so(
    home: ShardSet, away: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = trained_on(tmp_path / "run", home)
    capsys.readouterr()
    given = ["--shards", str(home.directory), str(away.directory), "--split", "test", "--json"]
    command.main(["--checkpoint", str(checkpoint), *given])
    printed = capsys.readouterr()
    own, other = json.loads(printed.out.splitlines()[-1])["evaluations"]
    assert own["shared_with_training"] == [] and own["protocol"] == "own splits"
    assert other["protocol"] == "own splits, train overlaps test, val overlaps test"
    assert other["shared_with_training"] == [
        {"collection": "home", "split": "train", "videos": 1, "queries": 1},
        {"collection": "home", "split": "val", "videos": 1, "queries": 1},
    ]
    assert [line for line in printed.err.splitlines() if line.startswith("warning")] == [
        f"warning: test of away shares 1 video ('{id}') and 1 query ('{id}#0') with {split} of home: results there are"
        " too optimistic"
        for id, split in (("b", "train"), ("e", "val"))
    ]
    rows = printed.out.splitlines()
    assert rows[1].endswith("own splits") and rows[2].endswith("train overlaps test, val overlaps test")
    recorded = recorded_test(checkpoint, "away")  # the record keeps it
    assert recorded is not None and recorded.shared_with_training is not None
    assert recorded.to_dict() == other and Evaluation.from_dict(other) == recorded


def test_val_is_compared_with_train_only(home: ShardSet, away: ShardSet, tmp_path: Path) -> None:
    checkpoint, notes = trained_on(tmp_path / "run", home), list[str]()
    other, own = evaluate_each(checkpoint, [away, home], "val", on_note=notes.append)
    assert other.shared_with_training == (TrainingOverlap("home", "train", 1, 1),)
    assert own.shared_with_training == () and len(notes) == 1


def test_without_the_shards_of_the_training_it_is_not_known(
    home: ShardSet, away: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = trained_on(tmp_path / "run", home)
    capsys.readouterr()
    arguments = ["--checkpoint", str(checkpoint), "--split", "test", "--json", "--shards"]
    command.main([*arguments, str(away.directory)])
    printed = capsys.readouterr()
    assert "note: trained on home, whose shards are not among those given" in printed.err
    assert "shared_with_training" not in json.loads(printed.out.splitlines()[-1])
    # Other shards of the same name: as many videos and queries are the least that they must have in common.
    larger = shards_of(tmp_path / "larger", "home", SPLITS | {"train": ["a", "b", "c", "d", "i"]})
    notes: list[str] = []
    (evaluation,) = evaluate_each(checkpoint, [larger], "val", on_note=notes.append)
    assert evaluation.shared_with_training is None and len(notes) == 1
    command.main([*arguments, str(home.directory)])
    printed = capsys.readouterr()
    assert "note" not in printed.err and json.loads(printed.out.splitlines()[-1])["shared_with_training"] == []


def test_its_own_test_that_is_in_train(tmp_path: Path) -> None:
    home = shards_of(tmp_path / "home", "home", SPLITS | {"test": ["a", "g"]})
    (evaluation,) = evaluate_each(trained_on(tmp_path / "run", home), [home], "test")
    assert evaluation.protocol == "own splits, train overlaps test"
    assert evaluation.shared_with_training == (TrainingOverlap("home", "train", 1, 1),)


def test_a_val_that_is_test_by_protocol_is_not_an_overlap(home: ShardSet, tmp_path: Path) -> None:
    splits = {**home.manifest.splits, "val": home.manifest.splits["test"]}
    replace(home.manifest, splits=splits, protocol="paper", overlaps=None).write(home.directory)
    home = ShardSet.open(home.directory)
    (evaluation,) = evaluate_each(trained_on(tmp_path / "run", home), [home], "test")
    assert evaluation.protocol == "paper" and evaluation.shared_with_training == ()


def test_a_model_of_several_collections_and_one_of_them(home: ShardSet, away: ShardSet, tmp_path: Path) -> None:
    second = shards_of(tmp_path / "second", "second", {"train": ["y", "m"], "val": ["n", "o"], "test": ["p", "q"]})
    checkpoint = trained_on(tmp_path / "run", home, second)
    evaluation = evaluate_each(checkpoint, [away, second], "test")[0]
    assert evaluation.shared_with_training == (TrainingOverlap("second", "train", 1, 1),)
    evaluation = evaluate_each(checkpoint, [away, second, home], "test")[0]
    assert evaluation.shared_with_training is not None
    assert [(each.collection, each.split) for each in evaluation.shared_with_training] == [
        ("second", "train"),
        ("home", "train"),
        ("home", "val"),
    ]


def test_two_shards_of_one_collection_are_refused(home: ShardSet, away: ShardSet, tmp_path: Path) -> None:
    checkpoint = trained_on(tmp_path / "run", home)
    with pytest.raises(UserError, match="both are of the collection away"):
        evaluate_each(checkpoint, [away, home, ShardSet.open(away.directory)], "test")
    assert recorded_test(checkpoint) is None


@pytest.mark.parametrize("record", [{"fingerprint": 1}, "text", {"splits": 3}])
def test_a_damaged_record_of_the_shards_is_one_line(record: Any, home: ShardSet, tmp_path: Path) -> None:
    checkpoint = trained_on(tmp_path / "run", home)
    copy = Path(shutil.copytree(str(checkpoint), tmp_path / "copy"))
    metrics = json.loads((copy / "metrics.json").read_text()) | {"shards": record}
    (copy / "metrics.json").write_text(json.dumps(metrics))
    (copy / "checksums.json").unlink()
    with pytest.raises(UserError, match=r"metrics\.json: damaged: not a record of shards"):
        evaluate_each(Storage.of(copy), [home], "test")


def test_a_checkpoint_of_an_earlier_version_is_known_by_its_collection(
    home: ShardSet, away: ShardSet, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(str(trained_on(tmp_path / "run", home)), tmp_path / "copy"))
    metrics = json.loads((copy / "metrics.json").read_text())
    del metrics["shards"]
    (copy / "metrics.json").write_text(json.dumps(metrics))
    (copy / "checksums.json").unlink()
    evaluation = evaluate_each(Storage.of(copy), [away, home], "val")[0]
    assert evaluation.shared_with_training == (TrainingOverlap("home", "train", 1, 1),)
    assert (home.directory / MANIFEST).is_file()

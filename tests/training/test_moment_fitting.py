"""Learning where moments are: what is learned, when it is kept, and that it is the same every time."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.moments import SIZE, fading_shards

from dreamprvr_ray.checkpoints.checkpoint import Checkpoint, load_model
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.curves import ENCODER_ALONE
from dreamprvr_ray.evaluation.moment_metrics import MomentRecall
from dreamprvr_ray.evaluation.own_moments import OwnMoments, encoder_curves
from dreamprvr_ray.evaluation.test_record import evaluate_checkpoint
from dreamprvr_ray.model.moment_network import MomentNetwork
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.loop import fit
from dreamprvr_ray.training.moment_fitting import _inside, learn_moments
from dreamprvr_ray.training.reporter import DirectoryReporter, EpochResult


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return fading_shards(tmp_path_factory.mktemp("moments") / "shards")


@pytest.fixture(scope="module")
def network(shards: ShardSet) -> MomentNetwork:
    learned = learn_moments(shards.split("train"), [shards.split("val")], seed=0)
    assert learned is not None
    return learned


def test_what_is_learned_finds_moments_of_other_videos(shards: ShardSet, network: MomentNetwork) -> None:
    def found(network: MomentNetwork | None) -> MomentRecall:
        test = shards.split("test")
        moments = OwnMoments(test, ENCODER_ALONE, network)
        moments.add(np.arange(len(test)))
        result = moments.result(torch.zeros(len(test.owner), dtype=torch.bool))
        assert result is not None
        return result

    without, learned = found(None), found(network)
    assert learned.mean_iou > without.mean_iou + 0.1 and learned.found[0.5] > without.found[0.5] + 10


def test_the_same_seed_gives_the_same_network(shards: ShardSet, network: MomentNetwork) -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    again = learn_moments(shards.split("train"), [shards.split("val")], seed=0)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    assert again is not None and torch.equal(torch.get_rng_state(), before)
    for name, tensor in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_few_windows_and_windows_without_meaning_teach_nothing(shards: ShardSet, tmp_path: Path) -> None:
    few = fading_shards(tmp_path / "few", videos={"train": 20, "val": 20})
    assert learn_moments(few.split("train"), [few.split("val")], seed=0) is None
    random = fading_shards(tmp_path / "random", meaningful=False)
    assert learn_moments(random.split("train"), [shards.split("val")], seed=0) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted), min_size=1, max_size=1), st.integers(1, 128))
def test_the_shares_inside_add_up_to_the_window(windows: list[list[float]], count: int) -> None:
    inside = _inside(np.array(windows), count)
    assert inside.shape == (count,) and inside.min() >= 0 and inside.max() <= 1
    assert inside.sum() == pytest.approx(count * (windows[0][1] - windows[0][0]), abs=1e-3)


def test_curves_of_the_encoder_are_those_of_each_query_alone(shards: ShardSet) -> None:
    split = shards.split("val")
    queries = np.array([0, 2, 3, 4, 50])
    for query, curve in zip(queries, encoder_curves(split, queries), strict=True):
        frames = torch.nn.functional.normalize(split.frames(int(split.owner[query])).float(), dim=1)
        np.testing.assert_allclose(curve, (frames @ split.sentences(np.array([query]))[0]).numpy(), atol=1e-5)


def small_model(**values: object) -> Experiment:
    settings: dict[str, object] = {"model.hidden_size": SIZE, "model.branches": 1, "model.registers": 1}
    settings |= {"training.epochs": 2, "evaluation.encoder_weight": 0.5}
    return load_experiment("demo", settings | values)


@pytest.fixture(scope="module")
def trained(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    fit(small_model(), shards, DirectoryReporter(run))
    return run


def test_a_training_keeps_it_with_its_checkpoints(shards: ShardSet, network: MomentNetwork, trained: Path) -> None:
    for name in ("best", "last"):
        kept = load_model(trained / name).moments
        assert kept is not None
        for key, tensor in learn_moments(shards.split("train"), [shards.split("val")], seed=0).state_dict().items():  # type: ignore[union-attr]
            assert torch.equal(kept.state_dict()[key], tensor)
    assert "moments.safetensors" in json.loads((trained / "best" / "checksums.json").read_text())["sha256"]


def test_a_resumed_training_keeps_what_was_learned(shards: ShardSet, trained: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    class StopsAfterOne(DirectoryReporter):
        def report(self, result: EpochResult, snapshot: Callable[[], Checkpoint]) -> None:
            super().report(result, snapshot)
            raise Stopped

    with pytest.raises(Stopped):
        fit(small_model(), shards, StopsAfterOne(tmp_path))
    fit(small_model(), shards, DirectoryReporter(tmp_path))
    for name in ("moments.safetensors", "weights.safetensors"):
        assert (tmp_path / "last" / name).read_bytes() == (trained / "last" / name).read_bytes()


def test_features_of_two_encoders_teach_nothing(tmp_path: Path) -> None:
    shards = fading_shards(tmp_path / "shards", one_encoder=False)
    fit(small_model(**{"evaluation.encoder_weight": 0.0}), shards, DirectoryReporter(tmp_path / "run"))
    assert load_model(tmp_path / "run" / "best").moments is None
    assert not (tmp_path / "run" / "best" / "moments.safetensors").exists()


def test_an_evaluation_finds_moments_by_it(shards: ShardSet, trained: Path, tmp_path: Path) -> None:
    with_it = evaluate_checkpoint(Storage.of(trained / "best"), shards, "val")
    without = tmp_path / "without"
    shutil.copytree(trained / "best", without, ignore=shutil.ignore_patterns("moments.safetensors"))
    plain = evaluate_checkpoint(Storage.of(without), shards, "val")
    assert with_it.retrieval.moments is not None and plain.retrieval.moments is not None
    assert with_it.retrieval.moments.mean_iou > plain.retrieval.moments.mean_iou + 0.1
    assert with_it.retrieval.recall == plain.retrieval.recall
    assert with_it.zero_shot_moments == plain.zero_shot_moments  # the encoder alone has learned nothing


@pytest.mark.parametrize("damage", ["changed", "cut off", "of another shape", "not finite"])
def test_damage_is_named(trained: Path, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained / "best", copy)
    path, weights = copy / "moments.safetensors", load_file(trained / "best" / "moments.safetensors")
    if damage == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    else:
        (copy / "checksums.json").unlink()
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "of another shape":
        save_file(weights | {"output.bias": torch.zeros(2)}, path)
    elif damage == "not finite":
        save_file(weights | {"output.bias": torch.full((1,), torch.nan)}, path)
    with pytest.raises(UserError, match=re.escape(f"{path}: damaged")) as error:
        load_model(copy)
    assert len(error.value.mistakes) == 1

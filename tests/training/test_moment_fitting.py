"""Learning where moments are: what is learned, when it is kept, and that it is the same every time."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.moments import SIZE, fading_shards

from dreamprvr_ray.checkpoints.checkpoint import Checkpoint, add_moments, load_model
from dreamprvr_ray.checkpoints.store import CheckpointStore
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.data.batches import collate
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.moments import find_moment, heights_of
from dreamprvr_ray.evaluation.own_moments import own_curves
from dreamprvr_ray.evaluation.test_record import evaluate_checkpoint
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.model.moment_network import MomentNetwork, curve_inputs
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.loop import fit
from dreamprvr_ray.training.moment_fitting import _inside, learn_moments
from dreamprvr_ray.training.reporter import DirectoryReporter, EpochResult, Learn


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return fading_shards(tmp_path_factory.mktemp("moments") / "shards")


def small_model(**values: object) -> Experiment:
    settings: dict[str, object] = {"model.hidden_size": SIZE, "model.branches": 1, "model.registers": 1}
    settings |= {"model.initialization": "aligned", "training.epochs": 2, "evaluation.encoder_weight": 0.5}
    return load_experiment("demo", settings | values)


@pytest.fixture(scope="module")
def trained(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    fit(small_model(), shards, DirectoryReporter(run))
    return run


def learn(run: Path, shards: ShardSet) -> MomentNetwork | None:
    model = load_model(run / "best").model
    return learn_moments(model, ScoreWeights(0.5, 0.5), shards.split("train"), [shards.split("val")], seed=0)


def test_the_same_seed_gives_the_same_network(shards: ShardSet, trained: Path) -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    first = learn(trained, shards)
    assert first is not None and torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), before)
    again = learn(trained, shards)
    assert again is not None
    for name, tensor in first.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_few_windows_and_windows_without_meaning_teach_nothing(shards: ShardSet, trained: Path, tmp_path: Path) -> None:
    few = fading_shards(tmp_path / "few", videos={"train": 20, "val": 20})
    assert learn(trained, few) is None
    assert learn(trained, fading_shards(tmp_path / "random", meaningful=False)) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted), min_size=1, max_size=1), st.integers(1, 128))
def test_the_shares_inside_add_up_to_the_window(windows: list[list[float]], count: int) -> None:
    inside = _inside(np.array(windows), count)
    assert inside.shape == (count,) and inside.min() >= 0 and inside.max() <= 1
    assert inside.sum() == pytest.approx(count * (windows[0][1] - windows[0][0]), abs=1e-3)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_curves_are_those_of_each_query_alone(shards: ShardSet, trained: Path, weight: float) -> None:
    split, model, queries = shards.split("val"), load_model(trained / "best").model, np.array([0, 2, 3, 4, 50])
    curves = own_curves(model, ScoreWeights(0.5, weight), split, queries)
    assert list(curves) == queries.tolist()
    batch = collate(split, np.arange(len(split)))
    with torch.no_grad():
        tokens = model.encode_videos(batch.clips, batch.frames, batch.frame_mask).frame_tokens
        embeddings = model.encode_queries(batch.tokens, batch.token_mask)
    for query, curve in curves.items():
        video = int(split.owner[query])
        own = F.normalize(tokens[video, :64], dim=1) @ F.normalize(embeddings[query], dim=0)
        encoder = F.normalize(split.frames(video).float(), dim=1) @ split.sentences(np.array([query]))[0]
        np.testing.assert_allclose(curve, ((1 - weight) * own + weight * encoder).numpy(), atol=1e-5)


def test_a_training_keeps_it_with_its_best_checkpoint(shards: ShardSet, trained: Path) -> None:
    kept, learned = load_model(trained / "best").moments, learn(trained, shards)
    assert kept is not None and learned is not None
    for name, tensor in learned.state_dict().items():
        assert torch.equal(kept.state_dict()[name], tensor)
    assert "moments.safetensors" in json.loads((trained / "best" / "checksums.json").read_text())["sha256"]


@pytest.mark.parametrize("place", ["a directory", "an object store"])
def test_an_earlier_best_checkpoint_gets_it(
    shards: ShardSet, tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    where = str(tmp_path / "run") if place == "a directory" else request.getfixturevalue("s3").uri("run")
    storage = Storage.of(where)
    store = CheckpointStore(storage)
    store.claim()
    # A learning rate at which the second epoch is worse.
    experiment = small_model(**{"optimizer.learning_rate": 0.3, "evaluation.encoder_weight": 0.0})
    fit(experiment, shards, StoreReporter(store))
    assert store.epochs() == [1, 2]
    with store.opened(1) as best:
        assert load_model(best).moments is not None
    with store.opened(2) as last:
        assert load_model(last).moments is None


class StoreReporter(DirectoryReporter):
    """Keeps checkpoints in a store, as trials and runs do."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store

    def latest_checkpoint(self) -> AbstractContextManager[Path | None]:
        return self._store.latest()

    def add_moments(self, epoch: int, learn: Learn) -> None:
        self._store.add_moments(epoch, learn)

    def report(self, result: EpochResult, snapshot: Callable[[], Checkpoint]) -> None:
        self._store.write(result.epoch, result.best_epoch, snapshot().write)
        self._store.wait()


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
        assert (tmp_path / "best" / name).read_bytes() == (trained / "best" / name).read_bytes()


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


def test_it_can_be_learned_again_and_added_to_checkpoints_of_earlier_versions(trained: Path, tmp_path: Path) -> None:
    for name in ("new", "old"):
        copy = tmp_path / name
        shutil.copytree(trained / "best", copy)
        if name == "old":  # without checksums
            (copy / "checksums.json").unlink()
        network = MomentNetwork()
        add_moments(Storage.of(copy), network)
        kept = load_model(copy).moments
        assert kept is not None and torch.equal(kept.output.weight, network.output.weight)
        assert (copy / "checksums.json").exists() == (name == "new")


def test_a_kill_while_it_is_added_leaves_a_checkpoint(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = [name for name in dir(Storage) if name in ("write_bytes", "write_text")]
    for killed_at in range(4):
        copy, left = tmp_path / str(killed_at), [killed_at]
        shutil.copytree(trained / "best", copy)

        def write(self: Storage, *arguments: object, real: Callable[..., None], left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            real(self, *arguments)

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            for name in writes:
                patch.setattr(Storage, name, partialmethod(write, real=getattr(Storage, name)))
            add_moments(Storage.of(copy), MomentNetwork())
        load_model(copy)


def test_curves_without_a_peak_teach_nothing_and_inputs_are_bounded() -> None:
    plateau = np.full(60, 0.8)
    plateau[:20] = np.linspace(0, 0.1, 20)
    assert heights_of(plateau) is None and find_moment(plateau) == (0, 60)
    plateau[45] += 1e-6
    assert heights_of(plateau) is not None and np.abs(curve_inputs(plateau)[:3]).max() <= 5

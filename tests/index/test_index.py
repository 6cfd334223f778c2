"""An index: its scores are the model's own, and an update encodes only what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.indexes import small_checkpoint, small_shards
from support.tiny_encoder import NAME

from dreamprvr_ray.checkpoints.checkpoint import add_moments, load_model
from dreamprvr_ray.data.batches import collate_queries
from dreamprvr_ray.data.shards import ShardSet, Split
from dreamprvr_ray.data.source import Source
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.encoder import encoder_scores
from dreamprvr_ray.evaluation.moments import find_moment, to_shares
from dreamprvr_ray.evaluation.retrieval import rank_queries, score_split
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.index import building
from dreamprvr_ray.index.building import Update, update_index
from dreamprvr_ray.index.collections import PooledVideo, ShardCollection, SourceCollection
from dreamprvr_ray.index.index import Index
from dreamprvr_ray.index.sentences import query_vectors
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.model.moment_network import MomentNetwork
from dreamprvr_ray.storage.location import Storage


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return small_shards(tmp_path_factory.mktemp("shards") / "small")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("model") / "best")


def scores_of(index: Index, split: Split, model: DreamPRVR | None) -> torch.Tensor:
    queries = np.arange(len(split.owner))
    return torch.from_numpy(
        index.scores(query_vectors(*collate_queries(split, queries), split.sentences(queries), model))
    )


@pytest.mark.parametrize("encoder_weight", [0.0, 0.3])
@pytest.mark.parametrize("trim_frames", ["exact", "batch"])
@pytest.mark.parametrize("part_rows", [512, 7])
def test_its_ranks_are_those_of_evaluate(
    shards: ShardSet, tmp_path: Path, encoder_weight: float, trim_frames: str, part_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(building, "PART_ROWS", part_rows)
    values = {"evaluation.encoder_weight": encoder_weight, "data.trim_frames": trim_frames}
    checkpoint = small_checkpoint(tmp_path / "model", **values)
    update_index(tmp_path / "index", ShardCollection(shards, ["val"]), checkpoint)
    index, split = Index.open(tmp_path / "index"), shards.split("val")
    trained = load_model(checkpoint)
    expected = score_split(
        trained.model, split, ScoreWeights(trained.experiment.evaluation.clip_weight, encoder_weight)
    )
    scores = scores_of(index, split, trained.model)
    torch.testing.assert_close(scores, expected, atol=2e-6, rtol=0)
    assert len(set(rank_queries(scores, split).rank.tolist())) > 5
    torch.testing.assert_close(rank_queries(scores, split).rank, rank_queries(expected, split).rank)


def test_its_moments_are_found_as_the_model_learned_to(shards: ShardSet, model: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "model"
    shutil.copytree(model, checkpoint)
    torch.manual_seed(3)
    network = MomentNetwork()
    save_file(network.state_dict(), checkpoint / "moments.safetensors")
    for path, used in ((checkpoint, network), (model, None)):
        directory = tmp_path / f"index-{used is None}"
        update_index(directory, ShardCollection(shards, ["val"]), path, sentence_encoder=NAME)
        for found in Index.open(directory).find(shards.split("val").captions[5]).results:
            frames = len(found.curve.similarities)
            expected = to_shares(find_moment(np.array(found.curve.similarities), used), frames)
            assert found.shares == pytest.approx(expected)


def test_an_index_of_the_encoder_alone_ranks_as_the_encoder(shards: ShardSet, tmp_path: Path) -> None:
    update_index(tmp_path / "index", ShardCollection(shards, ["val"]), None, sentence_encoder=NAME)
    index, split = Index.open(tmp_path / "index"), shards.split("val")
    expected = encoder_scores(split, torch.device("cpu"))
    scores = scores_of(index, split, None)
    torch.testing.assert_close(scores, expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(rank_queries(scores, split).rank, rank_queries(expected, split).rank)
    sentence = split.captions[0]
    answer = index.find(sentence, top=3)
    best = expected[0].topk(3)
    assert [found.video for found in answer.results] == [split.videos[number] for number in best.indices.tolist()]
    np.testing.assert_allclose([found.score for found in answer.results], best.values, atol=1e-3)
    assert answer.results[0].start is None and 0 <= answer.results[0].shares[0] < answer.results[0].shares[1] <= 1
    json.dumps(answer.to_dict())


class CountedCollection(ShardCollection):
    """A collection that can lose and change videos."""

    def __init__(self, shards: ShardSet, gone: frozenset[str] = frozenset(), changed: frozenset[str] = frozenset()):
        super().__init__(shards)
        self._gone, self._changed = gone, changed

    @property
    def ids(self) -> list[str]:
        return [id for id in super().ids if id not in self._gone]

    def read(self, id: str) -> PooledVideo:
        video = super().read(id)
        return PooledVideo(video.clips, -video.frames, None) if id in self._changed else video


def counts(update: Update) -> tuple[int, int, int, int]:
    return update.added, update.changed, update.removed, update.kept


def test_an_update_encodes_only_new_and_changed_videos(
    shards: ShardSet, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "PART_ROWS", 8)
    encoded: list[str] = []
    encode = building.encode_videos

    def recorded(videos, *rest):  # type: ignore[no-untyped-def]
        encoded.extend(id for id, _ in videos)
        return encode(videos, *rest)

    monkeypatch.setattr(building, "encode_videos", recorded)
    out = tmp_path / "index"
    few = CountedCollection(shards, frozenset({"train3", "val0", "val19"}))
    assert counts(update_index(out, few, model)) == (29, 0, 0, 0)
    assert counts(update_index(out, few, model)) == (0, 0, 0, 29)
    encoded.clear()
    other = CountedCollection(shards, frozenset({"train3", "val7"}), frozenset({"val1", "train9"}))
    assert counts(update_index(out, other, model)) == (2, 2, 1, 26)
    assert sorted(encoded) == ["train9", "val0", "val1", "val19"]
    # The result is that of an index that was made at once.
    update_index(tmp_path / "at_once", other, model)
    split, network = shards.split("val"), load_model(model).model
    indexes = [Index.open(path) for path in (out, tmp_path / "at_once")]
    by_video = []
    for index in indexes:
        ids = [id for part in index.parts for id in part.ids()]
        assert len(set(ids)) == len(ids)
        columns = dict(zip(ids, scores_of(index, split, network).T, strict=True))
        by_video.append(torch.stack([columns[id] for id in other.ids]))
    torch.testing.assert_close(by_video[0], by_video[1], atol=1e-6, rtol=0)
    kept = {path.name for path in (out / "parts").iterdir()}
    assert kept == {part.name for part in indexes[0].record.parts}  # replaced parts are removed
    assert max(part.rows for part in indexes[0].record.parts) <= 8


def test_a_source_has_the_videos_of_its_shards(demo_source: Path, demo_shards: Path, tmp_path: Path) -> None:
    shards = ShardCollection(ShardSet.open(demo_shards))
    source = SourceCollection(Source.open(demo_source, "demo"))
    assert sorted(source.ids) == sorted(shards.ids) and source.name == shards.name
    assert all(source.read(id).fingerprint() == shards.read(id).fingerprint() for id in shards.ids)


def test_an_interrupted_update_leaves_an_index_that_can_be_searched_and_continues(
    shards: ShardSet, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "PART_ROWS", 8)
    out, collection = tmp_path / "index", ShardCollection(shards)

    def interrupt(progress: building.Progress) -> None:
        if progress.done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update_index(out, collection, model, report=interrupt)
    assert len(Index.open(out).videos) == 16
    leftover = out / "parts" / "000077"  # of a process that was killed before it recorded the part
    shutil.copytree(out / "parts" / "000000", leftover)
    assert counts(update_index(out, collection, model)) == (16, 0, 0, 16)
    assert not leftover.exists() and len(Index.open(out).videos) == 32


def test_only_parts_are_removed_whatever_others_are_called(shards: ShardSet, model: Path, tmp_path: Path) -> None:
    out, collection = tmp_path / "index", ShardCollection(shards)
    update_index(out, collection, model)
    parts = out / "parts"
    mine = parts / "000001"  # the next part's name, with files that are called as those of a part
    mine.mkdir()
    for name in ("clips.npy", "videos.arrow", "notes.txt"):
        (mine / name).write_text("mine")
    partial = parts / ".000001-ab12_x9z"  # of a process that was killed while it wrote the first file
    partial.mkdir()
    (partial / "videos.arrow").write_bytes(b"ARROW1")
    replaced = parts / "000007"  # of a process that was killed while it removed a part
    shutil.copytree(parts / "000000", replaced)
    (replaced / "clips.npy").unlink()
    (replaced / "notes.txt").write_text("mine")
    update_index(out, CountedCollection(shards, changed=frozenset(collection.ids)), model)
    assert {path.name for path in mine.iterdir()} == {"clips.npy", "videos.arrow", "notes.txt"}
    assert not partial.exists() and [path.name for path in replaced.iterdir()] == ["notes.txt"]
    assert sorted(path.name for path in parts.iterdir()) == ["000001", "000002", "000007"]
    assert len(Index.open(out).videos) == 32


def test_what_is_not_an_index_is_refused(shards: ShardSet, model: Path, tmp_path: Path) -> None:
    collection = ShardCollection(shards)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files, such as notes\.txt"):
        update_index(tmp_path / "mine", collection, model)
    out = tmp_path / "index"
    update_index(out, collection, model)
    with pytest.raises(UserError, match="is an index of another model"):
        update_index(out, collection, small_checkpoint(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match="is an index of another model"):
        update_index(out, collection, None)
    wide = small_checkpoint(tmp_path / "wide", **{"data.video_size": 16})
    with pytest.raises(UserError, match=r"takes frames of 16 values, but those of .* have 12"):
        update_index(tmp_path / "new", collection, wide)
    (out / "notes.txt").write_text("mine")
    update_index(out, collection, model)
    assert (out / "notes.txt").read_text() == "mine"


def test_an_update_takes_moments_that_the_model_has_learned_since(
    shards: ShardSet, model: Path, tmp_path: Path
) -> None:
    checkpoint, index = tmp_path / "model", tmp_path / "index"
    shutil.copytree(model, checkpoint)
    for learned in (False, True):
        if learned:
            add_moments(Storage.of(checkpoint), MomentNetwork())
        update_index(index, ShardCollection(shards, ["val"]), checkpoint)
        assert (load_model(index / "model").moments is not None) == learned


def test_an_update_takes_a_newer_calibration_of_the_model(shards: ShardSet, tmp_path: Path) -> None:
    model, out = small_checkpoint(tmp_path / "model"), tmp_path / "index"
    update_index(out, ShardCollection(shards, ["val"]), model)
    (model / "calibration.json").write_text("{}")
    update_index(out, ShardCollection(shards, ["val"]), model)
    assert (out / "model" / "calibration.json").read_text() == "{}"


@pytest.mark.parametrize("damage", ["record", "schema", "rows", "short", "missing", "column", "name"])
def test_a_damaged_index_is_named_in_one_line(shards: ShardSet, model: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "index"
    update_index(out, ShardCollection(shards, ["val"]), model)
    part, record = out / "parts" / "000000", json.loads((out / "index.json").read_text())
    if damage == "record":
        (out / "index.json").write_text("{")
    elif damage == "schema":
        record["schema_version"] = 99
    elif damage == "rows":
        record["parts"][0]["rows"] -= 1
    elif damage == "short":
        content = (part / "frames.npy").read_bytes()
        (part / "frames.npy").write_bytes(content[: len(content) // 2])
    elif damage == "missing":
        (part / "features.npy").unlink()
    elif damage == "column":
        (part / "videos.arrow").write_bytes(b"ARROW1")
    else:
        record["parts"][0]["name"] = "../../etc"
    if damage in ("schema", "rows", "name"):
        (out / "index.json").write_text(json.dumps(record))
    with pytest.raises(UserError) as error:
        Index.open(out)
    assert len(error.value.mistakes) == 1 and str(out) in error.value.mistakes[0]


def test_several_sentences_at_once_have_the_answers_of_each(shards: ShardSet, model: Path, tmp_path: Path) -> None:
    update_index(tmp_path / "index", ShardCollection(shards), model, sentence_encoder=NAME)
    index = Index.open(tmp_path / "index")
    sentences = shards.split("val").captions[:6]
    together = index.find_many(sentences, top=5)
    for sentence, answer in zip(sentences, together, strict=True):
        alone = index.find(sentence, top=5)
        assert answer.sentence == sentence
        for one, other in zip(alone.results, answer.results, strict=True):
            assert (one.rank, one.video, one.shares) == (other.rank, other.video, other.shares)
            assert one.score == pytest.approx(other.score, abs=1e-6)
    assert index.find_many([]) == []
    with pytest.raises(UserError, match="the sentence is empty"):
        index.find("  ")
    with pytest.raises(UserError, match="must be from 1 to"):
        index.find("a dog", top=0)


def test_an_unknown_encoder_of_sentences_is_asked_for(shards: ShardSet, model: Path, tmp_path: Path) -> None:
    update_index(tmp_path / "index", ShardCollection(shards), model)
    with pytest.raises(UserError, match="without a record of their encoder; name it: --sentence-encoder"):
        Index.open(tmp_path / "index").find("a dog")
    assert Index.open(tmp_path / "index", sentence_encoder=NAME).find("a dog").results

"""Embeddings of sentences in shards, and whether frames and queries come from one encoder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from dreamprvr_ray.api import convert_features
from dreamprvr_ray.data.in_memory import FeatureSplit, Query, write_shards
from dreamprvr_ray.data.manifest import MANIFEST
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.data.source_writer import SourceVideo, write_source_tree
from dreamprvr_ray.errors import UserError

SIZE = 16


def splits(related: bool, seed: int = 0, embeddings: bool = False) -> dict[str, FeatureSplit]:
    """Return 30 videos a split with two queries each; if `related`, their tokens resemble one frame of the video."""
    random = np.random.default_rng(seed)
    made = {}
    for name in ("train", "val", "test"):
        videos = {f"{name}{i}": random.standard_normal((8, SIZE)) for i in range(30)}
        queries = []
        for id, frames in videos.items():
            for i in range(2):
                meaning = frames[3] if related else random.standard_normal(SIZE)
                tokens = (meaning + random.standard_normal((5, SIZE))) * random.uniform(0.1, 9, (5, 1))
                embedding = random.standard_normal(SIZE) if embeddings else None
                queries.append(Query(f"{id}#{i}", id, "a sentence", tokens, embedding=embedding))
        made[name] = FeatureSplit(videos, queries)
    return made


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def sentences(shards: ShardSet) -> np.ndarray:
    split = shards.split("val")
    return split.sentences(np.arange(len(split.owner))).numpy()


def test_a_sentence_is_the_mean_of_its_raw_tokens_or_the_given_embedding(tmp_path: Path) -> None:
    """Long tokens count more in the mean of a sentence encoder than in the mean of the stored, normalised rows."""
    plain, given = splits(related=True), splits(related=True, embeddings=True)
    of_tokens = write_shards(tmp_path / "plain", collection="c", splits=plain, dtype="float32")
    of_encoder = write_shards(tmp_path / "given", collection="c", splits=given, dtype="float32")
    means = unit(np.array([np.mean(query.tokens, axis=0) for query in plain["val"].queries]))
    np.testing.assert_allclose(sentences(of_tokens), means, atol=1e-6)
    rows = np.array([unit(np.array(query.tokens)).mean(0) for query in plain["val"].queries])
    assert np.abs(unit(rows) - means).max() > 0.1
    own = unit(np.array([query.embedding for query in given["val"].queries]))
    np.testing.assert_allclose(sentences(of_encoder), own, atol=1e-6)


def test_without_embeddings_a_sentence_is_the_mean_of_its_token_rows(tmp_path: Path) -> None:
    """As in shards of earlier versions, and in those of two encoders, which do not hold them either."""
    features = splits(related=True)
    for name, split in features.items():
        features[name] = replace(split, videos={id: np.asarray(rows)[:, :9] for id, rows in split.videos.items()})
    shards = write_shards(tmp_path / "shards", collection="c", splits=features, dtype="float32")
    rows = np.array([unit(np.array(query.tokens)).mean(0) for query in features["val"].queries])
    np.testing.assert_allclose(sentences(shards), unit(rows), atol=1e-5)
    assert shards.manifest.one_encoder is False


def test_files_give_the_same_shards_as_memory(tmp_path: Path) -> None:
    features = splits(related=True, embeddings=True)
    trees = {
        name: [
            SourceVideo(id, np.asarray(frames, np.float32), [query for query in split.queries if query.video == id])
            for id, frames in split.videos.items()
        ]
        for name, split in features.items()
    }
    write_source_tree(tmp_path / "c", "c", "f", trees)
    with h5py.File(tmp_path / "c" / "TextData" / "c_sentence_feat.hdf5", "w") as file:
        for split in features.values():
            for query in split.queries:
                file[query.id] = np.asarray(query.embedding, np.float32)
    of_files = convert_features(tmp_path, tmp_path / "files", collection="c")
    in_memory = write_shards(tmp_path / "memory", collection="c", splits=features)
    assert of_files.manifest.files == in_memory.manifest.files


def test_odd_embeddings_are_refused(tmp_path: Path) -> None:
    features = splits(related=True, embeddings=True)
    train = features["train"]
    for embedding, problem in (
        (None, "query 'train0#0' has no embedding, but others have"),
        (np.zeros(3), r"shape of a sentence's embedding must be \(16,\), not \(3,\)"),
        (np.full(SIZE, np.nan), "NaN in row 0"),
    ):
        changed = [replace(query, embedding=embedding) if query.id == "train0#0" else query for query in train.queries]
        with pytest.raises(UserError, match=problem):
            odd = features | {"train": FeatureSplit(train.videos, changed)}
            write_shards(tmp_path / "odd", collection="c", splits=odd)


@pytest.mark.parametrize("related", [True, False])
def test_one_encoder_is_measured_at_conversion(related: bool, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", collection="c", splits=splits(related))
    assert shards.manifest.one_encoder is related is shards.one_encoder
    opposite = write_shards(tmp_path / "set", collection="c", splits=splits(related), one_encoder=not related)
    assert opposite.manifest.one_encoder is (not related)
    assert opposite.manifest.fingerprint == shards.manifest.fingerprint
    # Writing the same features with another answer changes the manifest only.
    write_shards(tmp_path / "set", collection="c", splits=splits(related), one_encoder=related)
    assert ShardSet.open(tmp_path / "set").manifest.one_encoder is related


@pytest.mark.parametrize("related", [True, False])
def test_shards_of_earlier_versions_are_measured_once(
    related: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMPRVR_RAY_CACHE", str(tmp_path / "cache"))
    directory = tmp_path / "shards"
    write_shards(directory, collection="c", splits=splits(related))
    manifest = json.loads((directory / MANIFEST).read_text())
    del manifest["one_encoder"]
    (directory / MANIFEST).write_text(json.dumps(manifest))
    assert ShardSet.open(directory).one_encoder is related
    monkeypatch.setattr("dreamprvr_ray.data.shards.encoder_area", lambda shards: pytest.fail("measured again"))
    assert ShardSet.open(directory).one_encoder is related


def test_a_weight_of_the_encoder_needs_one_encoder(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", collection="c", splits=splits(related=False))
    shards.check_encoder_weight(0.0)
    for weight in (0.3, "auto"):
        with pytest.raises(UserError, match=r"requires frames and queries of one encoder"):
            shards.check_encoder_weight(weight)

"""A compact index: what its rows lose, its size, and the coarse stage against scoring all videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.indexes import small_checkpoint, small_shards

from dreamprvr_ray.data.batches import collate_queries
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.curves import QueryVectors
from dreamprvr_ray.index import building
from dreamprvr_ray.index import index as searching
from dreamprvr_ray.index.building import update_index
from dreamprvr_ray.index.collections import ShardCollection
from dreamprvr_ray.index.compression import BYTES, Compression, Space
from dreamprvr_ray.index.index import Index
from dreamprvr_ray.index.parts import Block
from dreamprvr_ray.index.sentences import query_vectors
from dreamprvr_ray.index.windows import window_norms

pytest.importorskip("faiss", reason="a compact index requires faiss")
RANDOM = np.random.default_rng(0)


def unit(*shape: int) -> np.ndarray:
    rows = RANDOM.standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_products_with_codes_are_those_with_restored_rows() -> None:
    rows, queries = unit(500, 24), torch.from_numpy(unit(3, 24))
    space = Space.fit(rows, 16)
    codes = space.encode(rows)
    assert codes.shape == (500, 8) and codes.dtype == np.uint8
    projected = space.project(queries)
    expected = projected @ torch.from_numpy(space.restore(codes)).T
    np.testing.assert_allclose(space.products(projected.numpy(), codes), expected.numpy(), atol=1e-5)
    # 16 levels: an error of at most a tenth of the components' spread.
    components = rows @ space.basis.T
    assert np.abs(space.restore(codes) - components).mean() < 0.1 * components.std()


@pytest.mark.parametrize(("frames", "size"), [(75, 384), (128, 384), (10, 24)])
def test_a_video_takes_at_most_16_kb(frames: int, size: int) -> None:
    videos = 4
    counts = np.full(videos, frames)
    features = unit(videos * frames, size)
    block = Block(counts, features, window_norms(features, counts), unit(videos, 32, size), unit(videos * frames, size))
    compressed = Compression.fit(block, coarse_bytes=256).encode(block)
    arrays = (compressed.clips, compressed.frames, compressed.features, compressed.norms)
    assert sum(array.nbytes for array in arrays if array is not None) / videos + 256 + 200 <= BYTES


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return small_shards(tmp_path_factory.mktemp("shards") / "small", [("train", 300), ("val", 100), ("test", 2)])


@pytest.mark.parametrize("with_model", [True, False])
def test_it_ranks_nearly_as_the_full_index(
    shards: ShardSet, tmp_path: Path, with_model: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "COMPACT_PART_ROWS", 150)
    monkeypatch.setattr(building, "PART_ROWS", 64)
    # The tokens of a trained model follow what the video shows, as do those of an aligned model without noise.
    aligned = {"model.initialization": "aligned", "noise": 0.0}
    model = small_checkpoint(tmp_path / "model", **aligned) if with_model else None  # type: ignore[arg-type]
    few = ShardCollection(shards, ["val", "test"])
    update_index(tmp_path / "compact", few, model, compact=True)
    update = update_index(tmp_path / "compact", ShardCollection(shards), model)  # remains compact
    assert (update.added, update.kept) == (300, 102)
    update_index(tmp_path / "full", ShardCollection(shards, ["val", "test", "train"]), model)
    compact, full = Index.open(tmp_path / "compact"), Index.open(tmp_path / "full")
    with pytest.raises(UserError, match="is not a compact index"):
        update_index(tmp_path / "full", few, model, compact=True)
    queries = vectors(shards, full)
    close = np.corrcoef(by_id(compact, queries).ravel(), by_id(full, queries).ravel())[0, 1]
    assert close > 0.97

    # The coarse stage leaves a quarter of the videos, among which are nearly all of the best.
    exact = compact.search(queries, top=5, exact=True)
    monkeypatch.setattr(searching, "EXACT_ROWS", 0)
    monkeypatch.setattr(searching, "CANDIDATES", 100)
    found = [{each.video: each.score for each in own} for own in compact.search(queries, top=5)]
    pairs = [(own.get(each.video), each.score) for own, best in zip(found, exact, strict=True) for each in best]
    same = [(one, other) for one, other in pairs if one is not None]
    assert len(same) > 0.9 * len(pairs)
    assert all(one == pytest.approx(other, abs=1e-5) for one, other in same)


def vectors(shards: ShardSet, index: Index) -> QueryVectors:
    split = shards.split("val")
    numbers = np.arange(0, len(split.owner), 4)
    model = None if index._model is None else index._model.model
    return query_vectors(*collate_queries(split, numbers), split.sentences(numbers), model)


def by_id(index: Index, queries: QueryVectors) -> np.ndarray:
    ids = [id for part in index.parts for id in part.ids()]
    return index.scores(queries)[:, np.argsort(ids)]


@pytest.mark.parametrize("name", ["compression.safetensors", "coarse.safetensors"])
def test_a_damaged_file_is_named_in_one_line(shards: ShardSet, tmp_path: Path, name: str) -> None:
    out = tmp_path / "index"
    update_index(out, ShardCollection(shards, ["val"]), None, compact=True)
    content = (out / name).read_bytes()
    (out / name).write_bytes(content[:50])
    with pytest.raises(UserError, match=f"{name}: damaged") as error:
        Index.open(out)
    assert len(error.value.mistakes) == 1

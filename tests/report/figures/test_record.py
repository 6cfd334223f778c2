"""The numbers of the figures are those of the model's own scoring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import silhouette_score
from support.figures import EVIL, Collection

from dreamprvr_ray.checkpoints.locate import load_trained_model
from dreamprvr_ray.data.batches import collate
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.moments import overlap
from dreamprvr_ray.evaluation.test_record import evaluate_checkpoint
from dreamprvr_ray.model.scoring import best_cosines
from dreamprvr_ray.report.figures.record import FigureRecord, FigureSettings, compute_figures
from dreamprvr_ray.storage.location import Storage


def compute(collection: Collection, checkpoint: Storage, **settings: object) -> FigureRecord:
    return compute_figures(checkpoint, collection.shards, FigureSettings(**settings), lambda line: None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def record(collection: Collection, checkpoint: Storage) -> FigureRecord:
    return compute(
        collection,
        checkpoint,
        moments=collection.moments,
        frame_captions=collection.frame_captions,
        queries=tuple(collection.shards.split("val").queries),
    )


def test_the_peak_of_a_curve_is_the_models_frame_score(
    record: FigureRecord, collection: Collection, checkpoint: Storage
) -> None:
    split, model = collection.shards.split("val"), load_trained_model(checkpoint).model
    batch = collate(split, np.arange(len(split)))
    with torch.no_grad():
        encoding = model.encode_videos(batch.clips, batch.frames, batch.frame_mask)
        queries = model.encode_queries(batch.tokens, batch.token_mask)
    expected = best_cosines(queries, encoding.frame_tokens, batch.frame_mask)
    for example, row, owner in zip(record.examples, expected, split.owner, strict=True):
        curve = example.curves[0]
        assert len(curve.cosines) == split.frame_counts[owner]
        assert curve.cosines.max() == curve.cosines[curve.peak] == pytest.approx(row[owner].item(), abs=1e-5)


def test_ranks_and_retrieved_videos_are_those_of_the_evaluation(
    record: FigureRecord, collection: Collection, checkpoint: Storage
) -> None:
    results: list = []
    evaluation = evaluate_checkpoint(checkpoint, collection.shards, "val", on_queries=results.extend)
    assert record.evaluation.retrieval.to_dict() == evaluation.retrieval.to_dict()
    for example, result in zip(record.examples, results, strict=True):
        assert (example.query, example.rank) == (result.query, result.rank)
        assert [(found.video, found.score) for found in example.top] == [
            (scored.video, pytest.approx(scored.score)) for scored in result.top[:3]
        ]
        assert [found.is_right for found in example.top] == [found.video == example.video for found in example.top]


def test_the_encoder_alone_compares_sentences_with_frames(record: FigureRecord, collection: Collection) -> None:
    split = collection.shards.split("val")
    for number, example in enumerate(record.examples):
        sentence = split.sentences(np.array([number]))[0]
        frames = F.normalize(split.frames(int(split.owner[number])).float(), dim=1)
        assert example.curves[1].cosines == pytest.approx((frames @ sentence).numpy(), abs=1e-5)


def test_moments_and_captions_are_at_their_times(record: FigureRecord) -> None:
    by_video = {example.video: example for example in record.examples}
    forty = by_video["val1"]
    assert forty.moment == ((2.0, 4.0),)
    assert forty.timeline.times[:2].tolist() == [0.125, 0.375]
    assert forty.timeline.inside(forty.moment).nonzero()[0].tolist() == list(range(8, 16))
    assert [number for number, caption in enumerate(forty.captions) if caption == EVIL] == list(range(8, 16))
    assert forty.captions[0] == "a room"
    unknown = by_video["val3"]
    assert unknown.timeline.duration is None and set(unknown.captions) == {None}


def test_localisation_counts_the_peaks_inside_moments(record: FigureRecord) -> None:
    known = [example for example in record.examples if example.timeline.duration is not None]
    for place, found in enumerate(record.localisations):
        inside = [bool(each.timeline.inside(each.moment)[each.curves[place].peak]) for each in known]
        assert (found.inside, found.queries) == (sum(inside), 10)
        overlaps = [overlap(each.timeline.found(each.curves[place]), each.moment[0]) for each in known]
        assert set(overlaps) <= set(found.overlaps) and len(found.overlaps) == 10
        values = found.to_dict()
        assert values["IoU>=0.3"] == 10 * sum(each >= 0.3 for each in found.overlaps) == 10 * found.overlapping(0.3)
        assert values["IoU>=0.3"] >= values["IoU>=0.5"] >= values["IoU>=0.7"]
        assert values["mean_IoU"] == pytest.approx(np.mean(found.overlaps))
        # One frame in the middle, outside the moment; a fifth of 40 frames and of 128.
        assert found.chance == pytest.approx(3 * 0 + 4 * 8 / 40 + 3 * 25 / 128)


def test_the_map_has_the_videos_with_enough_queries(record: FigureRecord, collection: Collection) -> None:
    assert record.mapped is not None
    assert dict.fromkeys(record.mapped.videos) == dict.fromkeys(["val1", "val0", "val2"])
    assert [found.points.shape for found in record.mapped.maps] == [(10, 2)] * 2
    # The silhouette is that of the encoder's sentence vectors and of the model's queries, not of the drawn points.
    split = collection.shards.split("val")
    rows = np.flatnonzero(np.isin(split.owner, [0, 1, 2]))
    expected = silhouette_score(split.sentences(rows), split.owner[rows], metric="cosine")
    assert record.mapped.maps[1].silhouette == pytest.approx(expected, abs=1e-5)
    assert record.mapped.maps[0].silhouette != pytest.approx(expected, abs=1e-3)
    again = compute(collection, Storage.of(record.checkpoint), queries=("val1#0",))
    assert again.mapped is not None
    assert np.array_equal(again.mapped.maps[0].points, record.mapped.maps[0].points)


def test_a_model_without_registers_is_compared_with(
    collection: Collection, checkpoint: Storage, save: Callable[..., Storage]
) -> None:
    without = save(registers=0)
    record = compute(collection, checkpoint, without=without, queries=("door 1 val1",))
    (example,) = record.examples
    assert [curve.label for curve in example.curves] == ["with 3 registers", "without registers"]
    alone = compute(collection, without, queries=("val1#1",))
    assert np.array_equal(alone.examples[0].curves[0].cosines, example.curves[1].cosines)
    with pytest.raises(UserError, match="has 3 registers; --without needs a model trained with"):
        compute(collection, checkpoint, without=checkpoint)


def test_nothing_is_known_but_the_features(collection: Collection, checkpoint: Storage) -> None:
    record = compute(collection, checkpoint, split="train", examples=1)
    assert record.mapped is None and record.localisations == () and len(record.examples) == 1
    assert record.to_dict()["silhouettes"] == {}
    sampled = compute(collection, checkpoint, examples=3, seed=1)
    assert sampled.to_dict()["examples"] == compute(collection, checkpoint, examples=3, seed=1).to_dict()["examples"]


def test_features_of_different_encoders_are_not_compared(collection: Collection, checkpoint: Storage) -> None:
    shards = ShardSet(collection.shards.directory, replace(collection.shards.manifest, one_encoder=False))
    record = compute_figures(checkpoint, shards, FigureSettings(examples=1), lambda line: None)
    assert [curve.label for curve in record.examples[0].curves] == ["with 3 registers"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"split": "test"},
            "--split test: looking at results on test would be a reading that is not recorded; use val",
        ),
        ({"examples": 0}, "--examples must be at least 1, not 0"),
        ({"seed": 2**32}, "--seed must be at least 0"),
        ({"split": "vall"}, "no split 'vall'; available: train, val, test; did you mean 'val'?"),
        ({"queries": ("door",)}, "--query 'door': 10 queries of val have it: 'val0#0', 'val0#1', 'val0#2' and 7 more"),
        (
            {"queries": ("dor 1 val1",)},
            "--query 'dor 1 val1': no query of val has this id or these words; did you mean 'door 1 val1'?",
        ),
        ({"queries": (" ",)}, "--query ' ': no query of val has this id or these words"),
    ],
)
def test_mistakes_are_one_line(
    collection: Collection, checkpoint: Storage, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError) as error:
        compute(collection, checkpoint, **settings)
    assert message in str(error.value) and len(error.value.mistakes) == 1

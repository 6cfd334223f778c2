"""The moments found in the queries' own videos, in `evaluate`: against a plain computation, recorded and shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dreamprvr_ray.checkpoints.checkpoint import Checkpoint, load_model
from dreamprvr_ray.config import load_experiment
from dreamprvr_ray.data.batches import collate
from dreamprvr_ray.data.in_memory import FeatureSplit, Query, write_shards
from dreamprvr_ray.data.moments import Span
from dreamprvr_ray.data.shards import ShardSet, Split
from dreamprvr_ray.evaluation.metrics import Evaluation, Retrieval, mean_retrieval
from dreamprvr_ray.evaluation.moment_metrics import MomentRecall
from dreamprvr_ray.evaluation.moments import find_moment, overlap, to_shares
from dreamprvr_ray.evaluation.retrieval import rank_scores
from dreamprvr_ray.evaluation.score_blocks import ScoreBlock
from dreamprvr_ray.evaluation.test_record import evaluate_checkpoint
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.storage.location import Storage

SIZE = 12
FRAMES = (1, 20, 40, 127, 60, 33)


def make_split(name: str, seed: int) -> FeatureSplit:
    """Queries that resemble the frames of their moment, with noise; every third has no known moment."""
    random = np.random.default_rng(seed)
    videos = {f"{name}{number}": random.standard_normal((count, SIZE)) for number, count in enumerate(FRAMES)}
    queries = []
    for video, frames in videos.items():
        for number in range(3):
            event, length = random.standard_normal(SIZE), max(len(frames) // 4, 1)
            start = int(random.integers(0, len(frames) - length + 1))
            frames[start : start + length] += 2 * event
            moment = (float(start), float(start + length), float(len(frames))) if number else None
            tokens = event + 0.5 * random.standard_normal((4, SIZE))
            queries.append(Query(f"{video}#{number}", video, f"event {number}", tokens, moment))
    return FeatureSplit(videos, queries)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    splits = {name: make_split(name, seed) for seed, name in enumerate(("train", "val", "test"))}
    directory = tmp_path_factory.mktemp("moments") / "shards"
    return write_shards(directory, collection="made", splits=splits, one_encoder=True)


@pytest.fixture(scope="module", params=[0.0, 0.3, 1.0])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """An untrained model that starts from the encoder's own similarity, with this weight of the encoder."""
    values: dict[str, object] = {"model.hidden_size": SIZE, "model.heads": 2, "model.branches": 2, "model.registers": 1}
    values |= {"model.initialization": "aligned", "data.video_size": SIZE, "data.text_size": SIZE}
    experiment = load_experiment("demo", values | {"evaluation.encoder_weight": request.param})
    torch.manual_seed(0)
    model = DreamPRVR(experiment.model, SIZE, SIZE)
    directory = tmp_path_factory.mktemp("checkpoint")
    Checkpoint(model.state_dict(), None, experiment, {"epoch": 1, "SumR": 1.0}).write(directory)
    return Storage.of(directory)


def plain_overlaps(split: Split, checkpoint: Storage) -> dict[int, float]:
    """The IoU of each query with known windows, by loops over whole batches."""
    assert checkpoint.directory is not None and split.moment_windows is not None
    trained = load_model(checkpoint.directory)
    weight = trained.experiment.evaluation.encoder_weight
    assert not isinstance(weight, str)
    batch = collate(split, np.arange(len(split)))
    with torch.no_grad():
        tokens = trained.model.encode_videos(batch.clips, batch.frames, batch.frame_mask).frame_tokens
        queries = trained.model.encode_queries(batch.tokens, batch.token_mask)
    overlaps = {}
    for query, video in enumerate(split.owner.tolist()):
        count = int(split.frame_counts[video])
        model = F.normalize(tokens[video, :count], dim=1) @ F.normalize(queries[query], dim=0)
        sentence = split.sentences(np.array([query]))[0]
        encoder = F.normalize(split.frames(video).float(), dim=1) @ sentence
        start, end = find_moment(((1 - weight) * model + weight * encoder).numpy())
        for first, last in split.moment_windows[query].tolist():
            common = max(0.0, min(end / count, last) - max(start / count, first))
            overlaps[query] = common / ((end - start) / count + last - first - common)
    return overlaps


def test_moments_are_those_of_a_plain_computation(shards: ShardSet, checkpoint: Storage) -> None:
    split, ranks = shards.split("val"), []
    evaluation = evaluate_checkpoint(checkpoint, shards, "val", on_queries=lambda results: ranks.extend(results))
    overlaps = plain_overlaps(split, checkpoint)
    assert sorted(overlaps) == [query for query in range(len(split.queries)) if query % 3]
    values, found = np.array(list(overlaps.values())), evaluation.retrieval.moments
    assert found is not None and found.queries == len(values) == 12
    assert found.mean_iou == pytest.approx(values.mean(), abs=1e-6)
    first = np.array([ranks[query].rank == 1 for query in overlaps])
    for least in (0.3, 0.5, 0.7):
        reached = values > least - 1e-9
        assert found.found[least] == pytest.approx(100 * np.mean(reached))
        assert found.first[least] == pytest.approx(100 * np.mean(reached & first))
    assert 0 < found.first[0.3] <= found.found[0.3] and found.found[0.7] > 0  # the planted events are found
    # The encoder alone is measured as well: with all the weight, the score is the encoder's.
    assert evaluation.zero_shot_moments is not None
    if load_model(checkpoint.directory).experiment.evaluation.encoder_weight == 1:  # type: ignore[arg-type]
        assert evaluation.zero_shot_moments == found


def test_moments_are_recorded_and_printed(shards: ShardSet, checkpoint: Storage) -> None:
    evaluation = evaluate_checkpoint(checkpoint, shards, "test")
    record = json.loads(checkpoint.read_text("test.json"))["readings"][-1]
    assert record["moments"]["queries"] == 12 and record["zero_shot_moments"]["queries"] == 12
    assert record["moments"].keys() == {"queries", "mean_IoU"} | {
        f"{what}IoU>={least}" for what in ("", "R@1, ") for least in (0.3, 0.5, 0.7)
    }
    assert Evaluation.from_dict(record) == evaluation
    lines = "\n".join(evaluation.lines())
    assert "  moment found in the right video (12 queries): IoU>=0.3 " in lines
    assert "  R@1 of video and moment: IoU>=0.3 " in lines
    assert "  zero-shot, moment found in the right video (12 queries): IoU>=0.3 " in lines


def test_without_known_windows_moments_are_not_mentioned(checkpoint: Storage, tmp_path: Path) -> None:
    splits = {name: make_split(name, seed) for seed, name in enumerate(("train", "val", "test"))}
    for split in splits.values():
        split.queries[:] = [replace(query, moment=None) for query in split.queries]  # type: ignore[index]
    shards = write_shards(tmp_path / "shards", collection="made", splits=splits, one_encoder=True)
    evaluation = evaluate_checkpoint(checkpoint, shards, "val")
    assert evaluation.retrieval.moments is None and evaluation.zero_shot_moments is None
    assert not {"moments", "zero_shot_moments"} & evaluation.to_dict().keys()
    assert "moment" not in "\n".join(evaluation.lines())


def test_another_right_video_in_front_is_not_the_querys_own(shards: ShardSet) -> None:
    split = shards.split("val")
    scores = torch.zeros(len(split.owner), len(split))
    scores[torch.arange(len(split.owner)), torch.from_numpy(np.array(split.owner))] = 1.0
    scores[0, 3], scores[1, 3] = 2.0, 1.0  # better, and a tie
    block = ScoreBlock(torch.arange(len(split)), scores.__getitem__)
    ranks = rank_scores([block], scores.numel(), split, scores.device)
    assert ranks.is_own_first.tolist() == [False, False] + [True] * (len(split.owner) - 2)


def test_means_over_collections_and_seeds() -> None:
    one, two = (MomentRecall.of(np.array(values), np.array([True, False])) for values in ([0.3, 0.8], [0.1, 0.5]))
    assert one is not None and two is not None
    assert (one.found, one.first) == ({0.3: 100.0, 0.5: 50.0, 0.7: 50.0}, {0.3: 50.0, 0.5: 0.0, 0.7: 0.0})
    mean = MomentRecall.mean([one, two])
    assert mean is not None and mean.mean_iou == pytest.approx(0.425) and mean.found[0.5] == 50.0
    assert MomentRecall.mean([one, None]) is None and MomentRecall.mean([]) is None
    assert MomentRecall.of(np.array([]), np.array([], dtype=bool)) is None
    recall = Retrieval.from_dict({"queries": 2, "moments": one.to_dict()})
    assert recall.moments == one and mean_retrieval([recall, replace(recall, moments=None)]).moments is None


def test_an_iou_of_exactly_a_half_counts() -> None:
    frames, windows = 75, [(first / 150, last / 150) for first, last in ((20, 40), (22, 42), (62, 102))]
    overlaps = [
        overlap(to_shares((round(75 * start), round(75 * start + 75 * (end - start) / 2)), frames), Span(start, end))
        for start, end in windows
    ]
    assert min(overlaps) < 0.5  # by rounding
    found = MomentRecall.of(np.array(overlaps), np.ones(3, dtype=bool))
    assert found is not None and found.found[0.5] == found.first[0.5] == 100.0

"""Small collections, models and indexes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from dreamprvr_ray.checkpoints.checkpoint import Checkpoint
from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.data.in_memory import FeatureSplit, Query, write_shards
from dreamprvr_ray.data.shards import ShardSet
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from support.tiny_encoder import SIZE, features_of

WORDS = ["a", "red", "blue", "square", "circle", "dog", "man", "leaves", "enters", "the", "room", "door", "water"]
FRAMES = (1, 3, 20, 40, 75, 127, 128, 200)  # of the videos, in turn


def small_experiment(**values: object) -> Experiment:
    """Return the configuration of a small model for `small_shards`."""
    settings: dict[str, object] = {
        "model.hidden_size": 16, "model.branches": 1, "model.registers": 2, "data.video_size": SIZE,
        "data.text_size": SIZE, "evaluation.encoder_weight": 0.3,
    }  # fmt: skip
    return load_experiment("demo", settings | values)


def small_checkpoint(directory: Path, seed: int = 0, noise: float = 0.1, **values: object) -> Path:
    """Write a checkpoint of an untrained model, with noise on its weights."""
    experiment = small_experiment(**values)
    torch.manual_seed(seed)
    data = experiment.data
    model = DreamPRVR(experiment.model, data.video_size, data.text_size, data.trim_frames)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=noise)
    directory.mkdir(parents=True)
    Checkpoint(model.state_dict(), None, experiment, {"epoch": 1, "best_epoch": 1, "SumR": 1.0}).write(directory)
    return directory


def small_split(name: str, videos: int, seed: int) -> FeatureSplit:
    """Return videos whose frames resemble the words of two sentences each, as those of one encoder do."""
    random = np.random.default_rng(seed)
    frames, queries = {}, []
    for number in range(videos):
        video = f"{name}{number}"
        sentences = [" ".join(random.choice(WORDS, 4)) for _ in range(2)]
        shown = np.stack([features_of(sentence).sentence for sentence in sentences])
        count = FRAMES[number % len(FRAMES)]
        frames[video] = shown[np.arange(count) * 2 // count] + random.standard_normal((count, SIZE))
        for place, sentence in enumerate(sentences):
            queries.append(Query(f"{video}#{place}", video, sentence, features_of(sentence).tokens))
    return FeatureSplit(frames, queries)


def small_shards(
    directory: Path, videos: Iterable[tuple[str, int]] = (("train", 10), ("val", 20), ("test", 2))
) -> ShardSet:
    """Write shards of one encoder, of the tiny encoder's sentences."""
    splits = {name: small_split(name, count, seed) for seed, (name, count) in enumerate(videos)}
    return write_shards(directory, collection="small", splits=splits, one_encoder=True)

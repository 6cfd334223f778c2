"""Everything that a page of figures shows, computed from a checkpoint and shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamprvr_ray.checkpoints.checkpoint import TrainedModel
from dreamprvr_ray.data.moments import read_moment_files
from dreamprvr_ray.data.shards import ShardSet, Split
from dreamprvr_ray.device import best_device
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.curves import ENCODER_ALONE, MODEL_ALONE
from dreamprvr_ray.evaluation.metrics import Evaluation
from dreamprvr_ray.evaluation.ranks import summarise
from dreamprvr_ray.evaluation.retrieval import rank_queries
from dreamprvr_ray.evaluation.test_record import load_fitting_model, score_checkpoint
from dreamprvr_ray.evaluation.weights import ScoreWeights
from dreamprvr_ray.index.calibration import Calibration, read_calibration
from dreamprvr_ray.report.figures.embedders import EncoderEmbedder, ModelEmbedder
from dreamprvr_ray.report.figures.query_map import QueryMap, busiest_videos, query_map
from dreamprvr_ray.report.figures.selection import find_queries, sample_queries
from dreamprvr_ray.report.figures.similarity import (
    CurveSource,
    Localisation,
    QueryExample,
    localisation,
    query_examples,
)
from dreamprvr_ray.storage.location import Storage

BOTH = "model and encoder, as in the score"  # the label of the curve by which a search finds moments


@dataclass(frozen=True)
class FigureSettings:
    """What to show besides the checkpoint's own results.

    Attributes:
        split: `train` or `val`. Looking at results on test would be a reading, so `test` is refused.
        without: A checkpoint of a model without registers, to compare with; None for the encoder alone.
        moments: JSON lines with the moments of queries, see `data.moments`.
        frame_captions: JSON lines with the captions of frames.
        queries: Ids or words of the queries to show; if empty, a random sample.
        examples: The size of the sample.
        seed: Of the sample and of t-SNE.
    """

    split: str = "val"
    without: Storage | None = None
    moments: Path | None = None
    frame_captions: Path | None = None
    queries: tuple[str, ...] = ()
    examples: int = 6
    seed: int = 0


@dataclass(frozen=True, eq=False)
class MappedQueries:
    """The queries of the videos with the most queries, n in all, and their maps by each embedder."""

    videos: tuple[str, ...]  # (n,) the video of each query
    sentences: tuple[str, ...]  # (n,)
    maps: tuple[QueryMap, ...]


@dataclass(frozen=True, eq=False)
class FigureRecord:
    """The data of a page of figures."""

    checkpoint: str  # location
    trained: TrainedModel
    settings: FigureSettings
    evaluation: Evaluation
    encoder_weight: float  # of the encoder's own comparison in the scores that rank videos
    mapped: MappedQueries | None  # None if too few videos have several queries
    examples: tuple[QueryExample, ...]
    localisations: tuple[Localisation, ...]  # empty if no moment is known
    calibration: Calibration | None = None  # None if the checkpoint has none

    def lines(self) -> list[str]:
        """Return the numbers of the page for people."""
        lines = self.evaluation.lines()[:2]
        for each in self.localisations:
            share = f"{100 * each.inside / each.queries:.1f}% of {each.queries} queries"
            lines.append(f"most similar frame inside the moment, {each.label}: {share}")
            half = 100 * each.overlapping(0.5) / each.queries
            lines.append(f"found moment with IoU of 0.5 or more, {each.label}: {half:.1f}% of {each.queries} queries")
        for found in self.mapped.maps if self.mapped else ():
            lines.append(f"mean silhouette of query embeddings by video, {found.label}: {found.silhouette:.2f}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers of the page by the names of the command's JSON output."""
        return {
            "checkpoint": self.checkpoint,
            "split": self.settings.split,
            "SumR": self.evaluation.retrieval.recall.sumr,
            "inside_moment": [each.to_dict() for each in self.localisations],
            "silhouettes": {found.label: found.silhouette for found in self.mapped.maps} if self.mapped else {},
            "examples": [{"query": example.query, "rank": example.rank} for example in self.examples],
        }


def compute_figures(
    checkpoint: Storage, shards: ShardSet, settings: FigureSettings, log: Callable[[str], None]
) -> FigureRecord:
    """Compute the data of the figures. `log` receives a line before each step that may take long.

    Raises `UserError` if the split is `test`, if a checkpoint cannot be loaded or does not fit the shards, if
    `without` has registers, or if a file or a query of the settings is wrong.
    """
    _check_settings(settings)
    files = read_moment_files(settings.moments, settings.frame_captions)
    trained = load_fitting_model(checkpoint, shards)
    data = shards.split(settings.split)
    if not data.queries:
        raise UserError(f"{shards.directory}: split {settings.split} has no queries")
    chosen = find_queries(data, settings.queries) or sample_queries(data, files, settings.examples, settings.seed)
    manifest = shards.manifest
    model = ModelEmbedder(trained.model.to(best_device()), model_label(trained))
    weights = ScoreWeights.of(trained.experiment.evaluation, trained.metrics, checkpoint)
    sources = [CurveSource(model.label, MODEL_ALONE, model, moments=trained.moments)]
    if settings.without is not None:
        without = _without_registers(settings.without, shards)
        sources.append(CurveSource(without.label, MODEL_ALONE, without))
    elif manifest.video_size == manifest.text_size and manifest.one_encoder is not False:
        sources.append(CurveSource(EncoderEmbedder().label, ENCODER_ALONE, encoder=EncoderEmbedder()))
    if weights.encoder:
        sources.append(CurveSource(BOTH, weights, model, EncoderEmbedder(), trained.moments))
    log(f"scoring {len(data.queries):,} queries against {len(data):,} videos of {data.name}")
    scores = score_checkpoint(trained, data, checkpoint, shards)
    ranks = rank_queries(scores, data)
    retrieval = summarise(ranks, len(data), data.moment_fractions)
    evaluation = Evaluation(settings.split, manifest.collection, manifest.protocol, retrieval)
    examples = query_examples(
        sources, data, files, chosen, scores, ranks.rank, len(sources) - 1 if weights.encoder else 0
    )
    log("looking for the moments")
    found = [localisation(source, data, files) for source in sources]
    log("mapping query embeddings")
    return FigureRecord(
        str(checkpoint),
        trained,
        settings,
        evaluation,
        weights.encoder,
        _map_queries(model, data, settings.seed),
        tuple(examples),
        tuple(each for each in found if each is not None),
        read_calibration(checkpoint),
    )


def _check_settings(settings: FigureSettings) -> None:
    mistakes = []
    if settings.split == "test":
        mistakes.append("--split test: looking at results on test would be a reading that is not recorded; use val")
    if settings.examples < 1:
        mistakes.append(f"--examples must be at least 1, not {settings.examples}")
    if not 0 <= settings.seed < 2**32:  # what scikit-learn accepts
        mistakes.append(f"--seed must be at least 0 and less than 2^32, not {settings.seed}")
    if mistakes:
        raise UserError(*mistakes)


def model_label(trained: TrainedModel) -> str:
    """Return what charts call a model."""
    registers = trained.experiment.model.registers
    if not registers:
        return "without registers"
    return f"with {registers} register{'s' if registers > 1 else ''}"


def _without_registers(storage: Storage, shards: ShardSet) -> ModelEmbedder:
    trained = load_fitting_model(storage, shards)
    if registers := trained.experiment.model.registers:
        raise UserError(f"{storage}: has {registers} registers; --without needs a model trained with model.registers=0")
    return ModelEmbedder(trained.model.to(best_device()), model_label(trained))


def _map_queries(model: ModelEmbedder, split: Split, seed: int) -> MappedQueries | None:
    videos = busiest_videos(split)
    if not len(videos):
        return None
    first = split.first_query
    queries = np.concatenate([np.arange(first[video], first[video + 1]) for video in videos])
    return MappedQueries(
        tuple(split.videos[split.owner[query]] for query in queries),
        tuple(split.captions[query] for query in queries),
        # Sentence vectors are compared with each other only, so that they need not be of the frames' encoder.
        tuple(query_map(embedder, split, queries, seed) for embedder in (model, EncoderEmbedder())),
    )

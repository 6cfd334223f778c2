"""The functions of the package's Python API; import them as `dreamprvr_ray.<name>` (docs/api.md shows each in use).

Paths are `str` or `Path`. A function that also accepts a URI such as `s3://bucket/shards` says so in its documentation.
Every function raises `UserError`, one line per mistake, for what its caller can fix.

Modules that take seconds to load (torch, Ray) are imported by the functions that need them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dreamprvr_ray.config import Experiment, load_experiment
from dreamprvr_ray.data.locations import one_or_several
from dreamprvr_ray.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from dreamprvr_ray.checkpoints.checkpoint import TrainedModel
    from dreamprvr_ray.data.manifest import FeatureType
    from dreamprvr_ray.data.shards import ShardSet, Split
    from dreamprvr_ray.index.index import Index
    from dreamprvr_ray.search.publication import SearchOutcome

Log = Callable[[str], None]


def convert_features(
    source: str | Path,
    out: str | Path,
    *,
    collection: str,
    features: str | None = None,
    queries: str | None = None,
    dtype: FeatureType = "float16",
    protocol: Literal["dev", "paper"] = "dev",
    dev_fraction: float = 0.1,
    seed: int = 0,
    one_encoder: bool | None = None,
    workers: int = 1,
) -> ShardSet:
    """Convert a benchmark's distributed features to shards in the directory `out`, and open them.

    The arguments are those of the `convert` command; `one_encoder=None` is its `auto`. A conversion that was stopped
    resumes; a finished one is opened as it is.
    """
    from dreamprvr_ray.data.conversion import ConversionSettings, convert
    from dreamprvr_ray.data.source import Source

    settings = ConversionSettings(
        dtype=dtype, protocol=protocol, dev_fraction=dev_fraction, seed=seed, one_encoder=one_encoder
    )
    tree = Source.open(Path(source), collection, features, queries)
    conversion = convert(tree, Path(out), settings, workers)
    for note in [*tree.notes(), *conversion.notes]:
        logging.getLogger(__name__).warning("%s", note)
    return open_shards(out)


def open_shards(location: str | Path) -> ShardSet:
    """Open shards in a directory or at a URI; from a URI they are copied once to this machine's cache."""
    from dreamprvr_ray.data.cache import local_shards

    return local_shards(str(location))


def train_model(
    config: str | Path | Experiment,
    shards: str | Path | ShardSet | Sequence[str | Path | ShardSet],
    out: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    log: Log | None = print,
) -> TrainedModel:
    """Train one model in this process, without Ray, and return the best epoch's model.

    `config` is a preset's name, a YAML file or an `Experiment`; `overrides` replaces values by dotted key. `shards` may
    be a list, to train on several collections of one encoder together: the mean of their val SumR then counts. The
    directory `out` keeps the latest and the best checkpoint (`last/`, `best/`); with `resume`, training continues from
    the latest. `log` receives one line an epoch.
    """
    from dreamprvr_ray.checkpoints.checkpoint import load_model as load
    from dreamprvr_ray.data.collections import Collections
    from dreamprvr_ray.training.loop import fit
    from dreamprvr_ray.training.reporter import DirectoryReporter

    directory = Path(out)
    if not resume and directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} already exists; pass resume=True to continue its training")
    experiment = _experiment(config, overrides)
    fit(experiment, Collections([_shard_set(each) for each in _each(shards)]), DirectoryReporter(directory, log))
    return load(directory / "best")


def run_training(
    config: str | Path | Experiment,
    shards: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    workers: int | str = 1,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    log: Log = print,
) -> dict[str, Any]:
    """Train one model in Ray Train workers, as the `train` command does, and return the best epoch's metrics.

    `workers` is a number, or `"2:8"` for as many as there is room for. `shards` may be a list, as in `train_model`.
    `shards` and `out` may be URIs. The best checkpoint is `out`/best.
    """
    from dreamprvr_ray.runtime.resources import WorkerCount
    from dreamprvr_ray.runtime.train_run import train

    count = WorkerCount.parse(str(workers))
    locations = one_or_several([str(each) for each in _each(shards)])
    return train(_experiment(config, overrides), locations, str(out), count, resume=resume, log=log)


def run_search(
    space: str | Path,
    *,
    shards: str | Path | Sequence[str | Path] | None = None,
    out: str | Path | None = None,
    trials: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    log: Log = print,
) -> SearchOutcome:
    """Search a space with Ray Tune and Optuna, as the `tune` command does, and return its trials, final models and
    test result.

    `space` is a search's YAML file; `shards` (one or a list, as in `train_model`), `out` and `trials` replace the
    file's values. Raises `SearchInterrupted`
    where it was stopped before its end.
    """
    from dreamprvr_ray.search.driver import run_search as run
    from dreamprvr_ray.search.space import load_search

    values: dict[str, Any] = {} if trials is None else {"trials": trials}
    if out is not None:
        values["out"] = str(out)
    if shards is not None:
        values["shards"] = one_or_several([str(each) for each in _each(shards)])
    return run(load_search(Path(space), {**(overrides or {}), **values}), resume=resume, log=log)


def load_model(checkpoint: str | Path) -> TrainedModel:
    """Load a checkpoint: its directory or URI, or a checkpoint file of the authors' release. Loading never executes
    code in it."""
    from dreamprvr_ray.checkpoints.locate import load_trained_model
    from dreamprvr_ray.storage.location import Storage

    return load_trained_model(Storage.of(checkpoint))


def evaluate_model(
    checkpoint: str | Path,
    shards: str | Path | ShardSet,
    split: Literal["val", "test"] = "val",
    *,
    queries: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint's retrieval on a split, as the `evaluate` command does: recall, SumR, median and mean
    rank, by moment length.

    Every evaluation on `test` is recorded in the checkpoint's directory; `test_reads` in the result counts them.
    `queries` names a new file for the result of each query, one line of JSON per query.
    """
    from dreamprvr_ray.evaluation.query_results import QueryResult, check_new_file, write_query_results
    from dreamprvr_ray.evaluation.test_record import evaluate_checkpoint
    from dreamprvr_ray.storage.location import Storage

    results: list[QueryResult] = []
    if queries is not None:
        check_new_file(Path(queries))
    evaluation = evaluate_checkpoint(
        Storage.of(checkpoint),
        _shard_set(shards),
        split,
        on_queries=None if queries is None else results.extend,
    )
    if queries is not None:
        write_query_results(Path(queries), results)
    return evaluation.to_dict()


def model_cost(checkpoint: str | Path) -> dict[str, Any]:
    """Measure what using a model costs on this machine, as `evaluate --cost` does: parameters, GFLOP and milliseconds
    to encode a video and a query, and the bytes of an encoded video of 128 frames."""
    from dreamprvr_ray.training.encoding_cost import measure_encoding_cost

    return measure_encoding_cost(load_model(checkpoint)).to_dict()


def result_table(
    locations: Sequence[str | Path],
    form: Literal["markdown", "latex"] = "markdown",
    *,
    out: str | Path | None = None,
) -> str:
    """Return a table of the recorded results of checkpoints, runs and searches, as `report --table` does.

    A location is a directory or a URI, or `NAME=LOCATION`; those with the same name are seeds of one model. Test is
    never evaluated. With `out`, the table is also written to this file.
    """
    from dreamprvr_ray.report.table_rows import read_groups
    from dreamprvr_ray.report.table_text import write_table

    return write_table(read_groups(list(map(str, locations))), form, None if out is None else Path(out))


def score_queries(trained: TrainedModel, split: Split) -> Tensor:
    """Score all queries of a split against all its videos: (Q, V), higher is better, fused as the model's
    configuration says."""
    from dreamprvr_ray.device import best_device
    from dreamprvr_ray.evaluation.retrieval import score_split
    from dreamprvr_ray.evaluation.weights import ScoreWeights

    weights = ScoreWeights.of(trained.experiment.evaluation, trained.metrics, "the model's metrics")
    return score_split(trained.model.to(best_device()), split, weights)


def export_model(checkpoint: str | Path, out: str | Path, shards: str | Path | ShardSet | None = None) -> Path:
    """Copy a checkpoint, without what only training needs, to the new directory `out`, with a script that retrieves
    with it.

    With `shards`, whose val split has queries, it is also learned from these how probable it is that a collection holds
    what a sentence describes (calibration.json).
    """
    from dreamprvr_ray.index import exporting
    from dreamprvr_ray.storage.location import Storage

    opened = None if shards is None else _shard_set(shards)
    exporting.export_model(Storage.of(checkpoint), Path(out), opened)
    return Path(out)


def build_index(
    model: str | Path | None,
    out: str | Path,
    *,
    shards: str | Path | ShardSet | None = None,
    source: str | Path | None = None,
    collection: str | None = None,
    splits: Sequence[str] = (),
    sentence_encoder: str | None = None,
    files: str | Path | None = None,
    compact: bool = False,
) -> Index:
    """Encode a collection into the directory `out`, or update the index there, as the `index` command does; open it.

    `model` is a local checkpoint or exported model; None for the encoder of the features alone. The collection is
    `shards`, of which `splits` are indexed (all by default), or the features of a `source` tree. `files` is the
    directory of the videos' files; `compact` takes at most 16 KB a video. To index videos, use the command.
    """
    from dreamprvr_ray.data.source import Source
    from dreamprvr_ray.index.building import update_index
    from dreamprvr_ray.index.collections import Collection, ShardCollection, SourceCollection
    from dreamprvr_ray.index.index import Index

    videos: Collection
    if (shards is None) == (source is None):
        raise UserError("build_index: give either shards or source")
    if shards is not None:
        videos = ShardCollection(_shard_set(shards), splits)
    else:
        root = Path(source or "")
        videos = SourceCollection(Source.open(root, collection or root.resolve().name))
    update_index(
        Path(out),
        videos,
        None if model is None else Path(model),
        sentence_encoder=sentence_encoder,
        videos_directory=None if files is None else Path(files),
        compact=compact,
    )
    return Index.open(out)


def write_search_report(experiment: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a search in a local directory, finished or still running, as one HTML file, and return its
    path."""
    from dreamprvr_ray.report.page import write_report
    from dreamprvr_ray.report.reader import read_search

    path = Path(out) if out is not None else Path(experiment) / "report.html"
    write_report(read_search(Path(experiment)), path)
    return path


def write_figures(
    checkpoint: str | Path,
    shards: str | Path | ShardSet,
    out: str | Path,
    *,
    split: Literal["train", "val"] = "val",
    without: str | Path | None = None,
    moments: str | Path | None = None,
    frame_captions: str | Path | None = None,
    queries: Sequence[str] = (),
    examples: int = 6,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the paper's figures of a checkpoint as one HTML file, as `report --figures` does, and return their numbers.

    `without` is a checkpoint of a model without registers to compare with, `queries` are ids or words of the queries to
    show instead of a random sample of `examples`. `out` may replace a report, but nothing else.
    """
    from dreamprvr_ray.report.figures.page import write_figures as write
    from dreamprvr_ray.report.figures.record import FigureSettings
    from dreamprvr_ray.storage.location import Storage

    settings = FigureSettings(
        split=split,
        without=None if without is None else Storage.of(without),
        moments=None if moments is None else Path(moments),
        frame_captions=None if frame_captions is None else Path(frame_captions),
        queries=tuple(queries),
        examples=examples,
        seed=seed,
    )
    log = logging.getLogger(__name__).info
    return write(Storage.of(checkpoint), _shard_set(shards), Path(out), settings, log).to_dict()


def _experiment(config: str | Path | Experiment, overrides: Mapping[str, Any] | None) -> Experiment:
    if isinstance(config, Experiment):
        return config.with_values(overrides, "overrides") if overrides else config
    return load_experiment(config, overrides)


def _each(shards: Any) -> list[Any]:
    """Return one or several shards as a list; a string is one."""
    return list(shards) if isinstance(shards, Sequence) and not isinstance(shards, str) else [shards]


def _shard_set(shards: str | Path | ShardSet) -> ShardSet:
    return open_shards(shards) if isinstance(shards, (str, Path)) else shards

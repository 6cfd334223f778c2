"""The rows of a table of results, from the records of trained models, runs and searches. Test is never evaluated here.

A model's row is its first recorded evaluation on test. If test was never evaluated, it is the val result of its
checkpoint. Rows are grouped by what they were measured on: only rows of one group can be compared.
"""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from dreamprvr_ray.checkpoints.checkpoint import METRICS
from dreamprvr_ray.checkpoints.layout import CHECKPOINTS, EXPERIMENT, TEST_RECORD
from dreamprvr_ray.checkpoints.locate import find_checkpoint
from dreamprvr_ray.config import build_experiment
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.metrics import ENCODER, RECALL_RANKS, Evaluation, Recall, Retrieval
from dreamprvr_ray.evaluation.moment_metrics import OVERLAPS, MomentRecall
from dreamprvr_ray.model.dreamprvr import DreamPRVR
from dreamprvr_ray.report.record_files import CheckpointMetrics, FinalFile, SearchFile, TestFile, check
from dreamprvr_ray.search.final_result import FinalRecord
from dreamprvr_ray.search.layout import BEST, FINAL, SEARCH
from dreamprvr_ray.storage.location import Storage, is_uri
from dreamprvr_ray.training.encoding_cost import count_parameters
from dreamprvr_ray.user_files import MAX_JSON_BYTES, parse_user_json, read_user_text
from dreamprvr_ray.yaml_files import describe, parse_yaml

SUMR = "SumR"
EVALUATE, TRAIN = "`evaluate`", "`train` or `tune`"  # which write a checkpoint's records
COLUMNS = (*(f"R@{rank}" for rank in RECALL_RANKS), SUMR)
MOMENT_COLUMNS = (*(f"IoU>={least:g}" for least in OVERLAPS), *(f"R@1, IoU>={least:g}" for least in OVERLAPS))


@dataclass(frozen=True)
class Setting:
    """What results were measured on."""

    split: str
    collection: str
    protocol: str
    videos: int = 0  # 0: not recorded, as for val
    queries: int = 0


@dataclass(frozen=True)
class Row:
    """A line of the table: the results of one model, or of several that differ by their seed."""

    name: str
    recalls: tuple[Recall, ...]  # one for each seed
    parameters: int | None  # trainable, of one model; None if its configuration is of another version
    is_zero_shot: bool = False  # by the encoder of the features, without a model: has no parameters
    moments: tuple[MomentRecall | None, ...] = ()  # one for each seed, None where no annotated windows were known

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it has: those of moments only if they were measured for all of its seeds."""
        return (*COLUMNS, *(MOMENT_COLUMNS if self.moments and None not in self.moments else ()))

    def mean(self, column: str) -> float:
        """Return the mean over the seeds of one of `columns`."""
        return statistics.fmean(self._values(column))

    def deviation(self, column: str) -> float | None:
        """Return the sample standard deviation over the seeds of one of `columns`, or None for a single seed."""
        values = self._values(column)
        return statistics.stdev(values) if len(values) > 1 else None

    def _values(self, column: str) -> list[float]:
        if column in MOMENT_COLUMNS:
            return [moments.to_dict()[column] for moments in self.moments if moments is not None]
        return [recall.sumr if column == SUMR else recall.at[int(column.removeprefix("R@"))] for recall in self.recalls]

    def to_dict(self) -> dict[str, Any]:
        """Return the row by the names of the command's JSON output."""
        deviations = {column: self.deviation(column) for column in self.columns} if len(self.recalls) > 1 else None
        means = {column: self.mean(column) for column in self.columns}
        return {"name": self.name, "seeds": len(self.recalls), "parameters": self.parameters, **means} | (
            {"standard_deviation": deviations} if deviations else {}
        )


@dataclass(frozen=True)
class Group:
    """Rows that were measured on the same videos and queries."""

    setting: Setting
    rows: tuple[Row, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the group by the names of the command's JSON output."""
        return {**vars(self.setting), "rows": [row.to_dict() for row in self.rows]}


def read_groups(sources: Sequence[str]) -> list[Group]:
    """Read the results of checkpoints, runs and searches: directories or URIs, each as LOCATION or NAME=LOCATION.

    Sources with the same NAME are seeds of one model and become one row. Raises `UserError` with a line for each source
    that holds no result, is damaged, or is given twice.
    """
    parsed: list[_Source] = []
    mistakes: list[str] = []
    for text in sources:
        try:
            parsed.append(_Source.parse(text))
        except UserError as error:
            mistakes += error.mistakes
    locations = Counter(str(source.storage) for source in parsed)
    mistakes += [f"{location}: given {count} times" for location, count in locations.items() if count > 1]
    given = Counter(source.name for source in parsed if source.is_named)
    found: list[tuple[Setting, Row]] = []
    for source in _with_unique_names(parsed):
        try:
            if source.is_search and given[source.name] > 1:
                raise UserError(f"{source.name}={source.storage}: is a search, whose rows cannot be joined with others")
            found += source.rows(alone=len(sources) == 1)
        except UserError as error:
            mistakes += error.mistakes
    if not mistakes:
        groups = _group(found)
        mistakes = [
            f"{row.name}: its models have different numbers of parameters; give them different names"
            for group in groups
            for row in group.rows
            if row.parameters == _DIFFERENT
        ]
    if mistakes:
        raise UserError(*dict.fromkeys(mistakes))
    return groups


_DIFFERENT = -1  # in place of a number of parameters


@dataclass(frozen=True)
class _Source:
    """Where results are, and what the table calls them."""

    storage: Storage
    name: str
    is_named: bool  # by the user

    @classmethod
    def parse(cls, text: str) -> _Source:
        """Parse LOCATION or NAME=LOCATION. Both may contain `=`: the location is what exists."""
        if not is_uri(text) and not os.path.lexists(text):
            pairs = [(text[:place].strip(), text[place + 1 :]) for place, mark in enumerate(text) if mark == "="]
            pairs = [(name, rest) for name, rest in pairs if name and rest]
            named = next((pair for pair in pairs if is_uri(pair[1]) or os.path.lexists(pair[1])), None)
            if pair := named or next(iter(pairs), None):
                return cls(Storage.of(pair[1]), pair[0], is_named=True)
        storage = Storage.of(text)
        return cls(storage, _default_name(storage), is_named=False)

    @property
    def is_search(self) -> bool:
        return (self.storage.directory is None or self.storage.directory.is_dir()) and self.storage.exists(SEARCH)

    def rows(self, alone: bool) -> Iterator[tuple[Setting, Row]]:
        """Yield the results. Those of a search have the names of its candidates, after its own unless it is `alone`."""
        if not self.is_search:
            yield from _checkpoint_rows(find_checkpoint(self.storage), self.name)
            return
        prefix = "" if alone and not self.is_named else f"{self.name}, "
        if self.storage.exists(FINAL):
            yield from _final_rows(self.storage, prefix)
        elif self.storage.exists(f"{BEST}/{METRICS}"):
            yield from _checkpoint_rows(self.storage / BEST, f"{prefix}best trial")
        else:
            raise UserError(f"{self.storage}: the search has no result yet: neither {FINAL} nor {BEST}/")


def _default_name(storage: Storage) -> str:
    """Return what a table calls a location: `tvr` for runs/tvr/best, `tvr, epoch-0003` for another checkpoint of it."""
    path = str(storage) if storage.directory is None else str(storage.directory.resolve())
    parts = [part for part in path.split("/") if part] or [path]
    if parts[-1] == BEST and len(parts) > 1:
        return parts[-2]
    return f"{parts[-3]}, {parts[-1]}" if len(parts) > 2 and parts[-2] == CHECKPOINTS else parts[-1]


def _with_unique_names(sources: Sequence[_Source]) -> list[_Source]:
    """Return the sources, named by their whole location if the user gave no name and two would have the same."""
    counts = Counter(source.name for source in sources)
    return [
        source if source.is_named or counts[source.name] == 1 else replace(source, name=str(source.storage))
        for source in sources
    ]


def _checkpoint_rows(checkpoint: Storage, name: str) -> Iterator[tuple[Setting, Row]]:
    """Yield the first evaluation on test of each collection, or the checkpoint's result on val."""
    parameters = _checkpoint_parameters(checkpoint)
    if checkpoint.exists(TEST_RECORD):
        record = parse_user_json(_read(checkpoint, TEST_RECORD), f"{checkpoint}/{TEST_RECORD}")
        check(TestFile, record, f"{checkpoint}/{TEST_RECORD}", EVALUATE)
        first: dict[Setting, Evaluation] = {}
        for reading in record.get("readings") or ():
            evaluation = Evaluation.from_dict(reading)
            first.setdefault(_setting(evaluation), evaluation)
        for setting, evaluation in first.items():
            yield from _zero_shot_rows(setting, evaluation)
            found = evaluation.retrieval
            yield setting, Row(name, (found.recall,), parameters, moments=(found.moments,))
        if first:
            return
    where = f"{checkpoint}/{METRICS}"
    metrics = parse_user_json(_read(checkpoint, METRICS), where)
    check(CheckpointMetrics, metrics, where, TRAIN)
    recall = Retrieval.from_dict(metrics).recall
    setting = Setting("val", metrics.get("collection") or "", metrics.get("protocol") or "")
    yield setting, Row(name, (recall,), parameters)


def _final_rows(search: Storage, prefix: str) -> Iterator[tuple[Setting, Row]]:
    """Yield the result of each retrained candidate: one recall for each of its seeds."""
    where = f"{search}/{FINAL}"
    values = parse_user_json(_read(search, FINAL), where)
    check(FinalFile, values, where)
    contents = parse_yaml(_read(search, SEARCH), f"{search}/{SEARCH}")
    check(SearchFile, contents, f"{search}/{SEARCH}")
    for candidate in FinalRecord.from_dict(values).result.candidates:
        parameters = _parameters(contents["experiment"], candidate.values)
        by_setting: dict[Setting, list[Retrieval]] = {}
        for run in candidate.runs:
            yield from _zero_shot_rows(_setting(run.test), run.test)
            by_setting.setdefault(_setting(run.test), []).append(run.test.retrieval)
        for setting, found in by_setting.items():
            recalls, moments = tuple(each.recall for each in found), tuple(each.moments for each in found)
            yield setting, Row(f"{prefix}{candidate.shown_name}", recalls, parameters, moments=moments)


def _zero_shot_rows(setting: Setting, evaluation: Evaluation) -> Iterator[tuple[Setting, Row]]:
    """Yield the best result by the encoder alone, if it was recorded."""
    if best := evaluation.best_zero_shot:
        moments = (evaluation.zero_shot_moments,) if best[0] == ENCODER else ()
        yield setting, Row(f"zero-shot, {best[0]}", (best[1],), parameters=None, is_zero_shot=True, moments=moments)


def _setting(evaluation: Evaluation) -> Setting:
    retrieval = evaluation.retrieval
    return Setting(
        evaluation.split, evaluation.collection, evaluation.protocol, retrieval.videos, retrieval.recall.queries
    )


def _read(storage: Storage, name: str) -> str:
    if storage.directory is not None:
        return read_user_text(storage.directory / name, MAX_JSON_BYTES)
    try:
        return storage.read_text(name)
    except FileNotFoundError:
        raise UserError(f"{storage}/{name}: no such file") from None


def _checkpoint_parameters(checkpoint: Storage) -> int | None:
    where = f"{checkpoint}/{EXPERIMENT}"
    experiment = parse_yaml(_read(checkpoint, EXPERIMENT), where)
    if not isinstance(experiment, dict):
        raise UserError(f"{where}: must be a mapping of keys to values, not {describe(experiment)}")
    return _parameters(experiment, {})


def _parameters(experiment: Mapping[str, Any], values: Mapping[str, Any]) -> int | None:
    """Return the number of parameters of a configuration, or None if it is of another version."""
    try:
        built = build_experiment(experiment, EXPERIMENT).with_values(values)
        built = built.with_feature_sizes(built.data.video_size, built.data.text_size, EXPERIMENT)
    except UserError:
        return None
    # How weights are initialised does not change their number.
    model = built.model.model_copy(update={"initialization": "paper"})
    with torch.device("meta"):  # shapes only
        return count_parameters(DreamPRVR(model, built.data.video_size, built.data.text_size))


def _group(found: Sequence[tuple[Setting, Row]]) -> list[Group]:
    """Join rows of one name in one setting, and collect the rows of each setting: zero-shot ones, then as given."""
    groups: dict[Setting, dict[str, Row]] = {}
    encoders: dict[Setting, list[Row]] = {}
    for setting, row in found:
        rows, zero_shot = groups.setdefault(setting, {}), encoders.setdefault(setting, [])
        if row.is_zero_shot:  # recorded with each model; another one if the features are of another encoder
            zero_shot += [row] if row not in zero_shot else []
            continue
        before = rows.get(row.name)
        if before is not None:
            parameters = row.parameters if row.parameters == before.parameters else _DIFFERENT
            moments = before.moments + row.moments
            row = Row(row.name, before.recalls + row.recalls, parameters, moments=moments)
        rows[row.name] = row
    return [Group(setting, (*encoders[setting], *rows.values())) for setting, rows in groups.items()]

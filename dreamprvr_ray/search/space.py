"""A search as one YAML file, a whole job: the configuration, the shards, where to write, the resources, the budget and the ranges.

config: tvr                    # a preset or a file
shards: shards/tvr             # --shards overrides it
out: runs/tvr-search           # --out overrides it
trials: 40
space:
  model.registers: {int: [1, 16]}
  optimizer.learning_rate: {float: [1e-4, 1e-3], log: true}
  model.dropout: {float: [0.0, 0.4], step: 0.05}
  model.branches: {choice: [4, 8]}
  training.epochs: 20          # a fixed value
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import optuna
import yaml
from pydantic import Field

from dreamprvr_ray.config import Count, Experiment, NonNegative, Section, known_keys, load_experiment, read_yaml, validated
from dreamprvr_ray.errors import UserError, near_miss

FIXED_BEFORE_TRAINING = ("data.video_size", "data.text_size", "training.epochs")


class TrialResources(Section):
    """What one trial gets. One worker trains in the trial's own warm process, several are a nested Ray Train run."""

    workers: Count = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] | None = None  # None: the CPUs divided among the trials at a time
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None  # None: one where there are enough
    at_a_time: Count | None = None  # None: what fits, at most four


class Pruning(Section):
    """ASHA on val SumR: at each rung only the best 1 / `reduction_factor` of the trials go on."""

    enabled: bool = True
    grace_epochs: Count = 2
    reduction_factor: Annotated[int, Field(ge=2)] = 3


class Sampler(Section):
    """Optuna's TPE: so many random trials first (the paper's setting not counted), then by what was learnt."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    startup_trials: Annotated[int, Field(ge=0)] = 10


class SourceTree(Section):
    """Where the features as they are distributed are expected: what makes the shards when they are missing."""

    directory: str
    collection: str
    features: str | None = None

    def convert_command(self, shards: str) -> str:
        """The command that makes the shards."""
        features = f" --features {self.features}" if self.features else ""
        return f"python -m dreamprvr_ray.convert --source {self.directory} --collection {self.collection}{features} --out {shards}"


class SearchFile(Section):
    """The keys of a search's YAML file."""

    config: str
    shards: str
    out: str
    trials: Count
    space: dict[str, Any]
    trial: TrialResources = TrialResources()
    pruning: Pruning = Pruning()
    sampler: Sampler = Sampler()
    source: SourceTree | None = None
    hours: NonNegative | None = None  # no trial starts after so many hours


@dataclass(frozen=True)
class Range:
    """The values that one key may take: numbers from `low` to `high`, or `choices`."""

    key: str
    low: float | int | None = None
    high: float | int | None = None
    step: float | int | None = None
    log: bool = False
    choices: tuple[Any, ...] | None = None

    def suggest(self, trial: optuna.Trial) -> Any:
        """This key's value in an Optuna trial."""
        if self.choices is not None:
            return trial.suggest_categorical(self.key, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, step=int(self.step or 1), log=self.log)
        assert self.low is not None and self.high is not None
        return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)

    def contains(self, value: Any) -> bool:
        """Whether the value lies in the range."""
        if self.choices is not None:
            return value in self.choices
        assert self.low is not None and self.high is not None
        return bool(self.low <= value <= self.high)

    def ends(self) -> list[Any]:
        """The values to check against the configuration's own bounds."""
        return list(self.choices) if self.choices is not None else [self.low, self.high]

    def __str__(self) -> str:
        if self.choices is not None:
            return " | ".join(str(choice) for choice in self.choices)
        kind = "integers" if isinstance(self.low, int) else "numbers"
        return f"{kind} from {self.low:g} to {self.high:g}" + (", log scale" if self.log else "") + (f", step {self.step:g}" if self.step else "")


@dataclass(frozen=True)
class Search:
    """A checked search: what every trial shares, and the ranges."""

    name: str
    experiment: Experiment
    ranges: tuple[Range, ...]
    file: SearchFile

    @property
    def paper_setting(self) -> dict[str, Any]:
        """The configuration's own values of the searched keys: the first trial."""
        flat = self.experiment.flat()
        return {space.key: flat[space.key] for space in self.ranges}

    def suggest(self, trial: optuna.Trial) -> None:
        """Asks an Optuna trial for every searched key."""
        for space in self.ranges:
            space.suggest(trial)

    def to_yaml(self) -> str:
        """Everything that decides the search's result, to compare with when it is resumed."""
        return yaml.safe_dump({"experiment": self.experiment.model_dump(), "search": self.file.model_dump()}, sort_keys=False)


def load_search(path: Path, overrides: Mapping[str, Any] | None = None) -> Search:
    """The search of a YAML file.

    `overrides` go by dotted key, to the search (`trials`, `trial.workers`, `sampler.seed`) or, as fixed values, to the configuration.
    Raises `UserError` with every mistake found, each naming the file, the key and what is allowed.
    """
    values = read_yaml(path)
    settings: dict[str, Any] = {}
    mistakes = []
    for key, value in (overrides or {}).items():
        if key in known_keys():
            settings[key] = value
        elif key in search_keys():
            _put(values, key, value)
        else:
            mistakes.append(f"--set: unknown key '{key}'{near_miss(key, [*known_keys(), *search_keys()])}")
    if mistakes:
        raise UserError(*mistakes)
    file = validated(SearchFile, values, str(path))
    experiment = load_experiment(file.config)
    ranges, fixed, mistakes = _read_space(file.space, str(path))
    experiment, more = _with_fixed(experiment, fixed | settings, str(path))
    ranges = [space for space in ranges if space.key not in settings]
    mistakes += more + [mistake for space in ranges for mistake in _check_range(space, experiment, str(path))]
    if not ranges and not mistakes:
        mistakes.append(f"{path}: space: nothing to search: every key has a fixed value")
    if mistakes:
        raise UserError(*mistakes)
    return Search(path.stem, experiment, tuple(ranges), file)


def search_keys() -> list[str]:
    """Every dotted key of a search file but the space's."""
    sections: dict[str, type[Section]] = {"trial": TrialResources, "pruning": Pruning, "sampler": Sampler, "source": SourceTree}
    nested = [f"{name}.{key}" for name, section in sections.items() for key in section.model_fields]
    return [key for key in SearchFile.model_fields if key not in {*sections, "space"}] + nested


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[name] = value


def _read_space(space: dict[str, Any], where: str) -> tuple[list[Range], dict[str, Any], list[str]]:
    """The ranges, the fixed values and the mistakes of a space."""
    ranges, fixed, mistakes = [], {}, []
    for key, value in space.items():
        if key not in known_keys():
            mistakes.append(f"{where}: space: unknown key '{key}'{near_miss(key, known_keys())}")
        elif not isinstance(value, dict):
            fixed[key] = value
        elif key in FIXED_BEFORE_TRAINING:
            mistakes.append(f"{where}: space: {key} can be fixed but not searched")
        else:
            try:
                ranges.append(_read_range(key, value))
            except ValueError as error:
                mistakes.append(f"{where}: space: {key}: {error}")
    return ranges, fixed, mistakes


def _read_range(key: str, value: dict[str, Any]) -> Range:
    kinds = [kind for kind in ("int", "float", "choice") if kind in value]
    unknown = [name for name in value if name not in ("int", "float", "choice", "log", "step")]
    if unknown:
        words = ("int", "float", "choice", "log", "step")
        raise ValueError(f"unknown word '{unknown[0]}'; write int, float or choice, with log or step{near_miss(unknown[0], words)}")
    if len(kinds) != 1:
        raise ValueError("write one of int: [low, high], float: [low, high], choice: [...]")
    kind = kinds[0]
    bounds, step, log = value[kind], value.get("step"), value.get("log", False)
    if kind == "choice":
        if not isinstance(bounds, list) or not bounds or len(value) > 1:
            raise ValueError("choice takes a list of values, and neither log nor step")
        return Range(key, choices=tuple(bounds))
    numbers = (int,) if kind == "int" else (int, float)
    if not isinstance(bounds, list) or len(bounds) != 2 or any(isinstance(b, bool) or not isinstance(b, numbers) for b in bounds):
        raise ValueError(f"{kind} takes [low, high], two {'whole numbers' if kind == 'int' else 'numbers'}, not {bounds!r}")
    low, high = bounds if kind == "int" else map(float, bounds)
    if low >= high:
        raise ValueError(f"low {low:g} must be below high {high:g}")
    if not isinstance(log, bool):
        raise ValueError(f"log is true or false, not {log!r}")
    if log and low <= 0:
        raise ValueError(f"a log scale needs low above 0, not {low:g}")
    if log and step is not None:
        raise ValueError("log and step exclude each other")
    if step is not None and (isinstance(step, bool) or not isinstance(step, numbers) or step <= 0):
        raise ValueError(f"step must be a number above 0, not {step!r}")
    return Range(key, low, high, step, log)


def _with_fixed(experiment: Experiment, fixed: dict[str, Any], where: str) -> tuple[Experiment, list[str]]:
    try:
        return experiment.with_values(fixed, where), []
    except UserError as error:
        return experiment, list(error.mistakes)


def _check_range(space: Range, experiment: Experiment, where: str) -> list[str]:
    """Mistakes of a range against the configuration's own bounds, and against the first trial."""
    mistakes: list[str] = []
    for value in space.ends():
        try:
            experiment.with_values({space.key: value}, f"{where}: space")
        except UserError as error:
            mistakes += error.mistakes
    own = experiment.flat()[space.key]
    if not mistakes and not space.contains(own):
        mistakes.append(f"{where}: space: {space.key}: the range ({space}) must hold the configuration's own value {own!r}, the first trial's")
    return mistakes

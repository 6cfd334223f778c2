"""A search as one YAML file, a whole job: the configuration, the shards, where to write, the resources, the budget and the ranges.

config: tvr                    # a preset or a file
shards: shards/tvr             # --shards overrides it
out: runs/tvr-search           # --out overrides it
trials: 40
space:
  model.registers: {int: [0, 16]}
  model.diffusion_steps: {int: [1, 50], log: true, when: model.registers > 0}
  optimizer.learning_rate: {float: [1e-4, 1e-3], log: true}
  model.dropout: {float: [0.0, 0.4], step: 0.05}
  model.branches: {choice: [4, 8]}
  training.epochs: 20          # a fixed value
constraints:
  - loss.weights.clip_nce < 4 * loss.weights.frame_nce
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import optuna
import yaml
from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator, field_validator

from dreamprvr_ray.config import (
    Count,
    Experiment,
    NonNegative,
    Section,
    known_keys,
    load_experiment,
    validated,
)
from dreamprvr_ray.errors import UserError, did_you_mean
from dreamprvr_ray.search.conditions import Condition
from dreamprvr_ray.yaml_files import read_yaml

FIXED_BEFORE_TRAINING = ("data.video_size", "data.text_size", "training.epochs")
CHANGEABLE = (
    "out",
    "shards",
    "source",
    "trial",
    "trials",
    "trackers",
    "hours",
    "keep",
    "final",
)  # of a search that is taken up again


def _or_auto(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """In place of a line for each of the two types that a key may have."""
    try:
        return check(value)
    except ValidationError as error:
        told = error.errors()[0]["msg"].replace("Input should be", "must be")
        raise ValueError(f"{value!r}: {told}, or auto") from None


class TrialResources(Section):
    """What one trial gets. One worker trains in the trial's own warm process, several are a nested Ray Train run."""

    workers: Annotated[Count | Literal["auto"], WrapValidator(_or_auto)] = (
        1  # auto: the GPUs that four trials at a time leave go to several workers a trial
    )
    cpus_per_worker: Annotated[float, Field(gt=0)] | None = None  # None: the CPUs divided among the trials at a time
    gpus_per_worker: Annotated[NonNegative | Literal["auto"] | None, WrapValidator(_or_auto)] = (
        None  # auto: as much as its memory needs; None: one
    )
    at_a_time: Count | None = None  # None: what fits, at most four


class Pruning(Section):
    """Successive halving on val SumR: at epochs grace, grace * factor, ... only the best 1 / `reduction_factor` of the trials go on."""

    enabled: bool = True
    grace_epochs: Count = 2
    reduction_factor: Annotated[int, Field(ge=2)] = 3

    def rungs(self, epochs: int) -> list[int]:
        """The epochs at which trials of so many epochs are compared."""
        rungs, rung = [], self.grace_epochs
        while self.enabled and rung < epochs:
            rungs.append(rung)
            rung *= self.reduction_factor
        return rungs


class Sampler(Section):
    """Which of Optuna's samplers proposes; so many random trials come first (the paper's setting not counted)."""

    kind: Literal["tpe", "gp", "random"] = "tpe"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    startup_trials: Annotated[int, Field(ge=0)] = 10


class Final(Section):
    """What follows a search: the best `top` trials' values and the paper's, trained anew with so many seeds and tested once each.

    `ablate` names searched keys: for each, the best trial's values with the paper's in its place are trained as well.
    """

    top: Count = 1
    seeds: Count = 3
    ablate: tuple[str, ...] = Field((), strict=False)
    with_val: bool = False  # train on train and val, for as many epochs as the trial's best one


class SourceTree(Section):
    """Where the features as they are distributed are expected: what makes the shards when they are missing."""

    directory: str
    collection: str
    features: str | None = None

    def convert_command(self, shards: str) -> str:
        """The command that makes the shards."""
        features = f" --features {self.features}" if self.features else ""
        return f"python -m dreamprvr_ray.convert --source {self.directory} --collection {self.collection}{features} --out {shards}"


class SearchSettings(Section):
    """The keys of a search's YAML file."""

    config: str
    shards: str
    out: str
    trials: Count
    space: dict[str, Any]
    constraints: tuple[str, ...] = Field((), strict=False)  # proposals that break one are drawn again
    against: Literal["gflop_per_video", "encode_ms"] | None = (
        None  # a second objective, as small as possible; nothing is pruned then
    )
    store: str | None = None  # a database's URL, which several drivers may share; None: a file in `out`
    trial: TrialResources = TrialResources()
    pruning: Pruning = Pruning()
    sampler: Sampler = Sampler()
    keep: Count = 3  # so many trials' checkpoints stay on disk
    final: Final | None = None
    source: SourceTree | None = None
    trackers: tuple[Literal["mlflow", "wandb"], ...] = Field((), strict=False)  # each is an extra to install
    hours: NonNegative | None = None  # no trial starts after so many hours

    @field_validator("trackers")
    @classmethod
    def _are_installed(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        missing = [name for name in names if find_spec(name) is None]
        if missing:
            raise ValueError(f"not installed; pip install 'dreamprvr_ray[{','.join(missing)}]'")
        return names


@dataclass(frozen=True)
class Range:
    """The values that one key may take: numbers from `low` to `high`, or `choices`; only where `when` holds."""

    key: str
    low: float | int | None = None
    high: float | int | None = None
    step: float | int | None = None
    log: bool = False
    choices: tuple[Any, ...] | None = None
    when: Condition | None = None

    def suggest(self, trial: optuna.Trial) -> Any:
        """This key's value in an Optuna trial."""
        if self.choices is not None:
            return trial.suggest_categorical(self.key, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, step=int(self.step or 1), log=self.log)
        assert self.low is not None and self.high is not None
        return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)

    def contains(self, value: Any) -> bool:
        """Whether the value is one that this range may give."""
        if self.choices is not None:
            return value in self.choices
        assert self.low is not None and self.high is not None
        if not self.low <= value <= self.high:
            return False
        steps = float((value - self.low) / self.step) if self.step else 0.0
        return bool(abs(steps - round(steps)) < 1e-6)

    def ends(self) -> list[Any]:
        """The values to check against the configuration's own bounds."""
        return list(self.choices) if self.choices is not None else [self.low, self.high]

    def __str__(self) -> str:
        when = f", when {self.when}" if self.when else ""
        if self.choices is not None:
            return " | ".join(str(choice) for choice in self.choices) + when
        kind = "integers" if isinstance(self.low, int) else "numbers"
        scale = (", log scale" if self.log else "") + (f", step {self.step:g}" if self.step else "")
        return f"{kind} from {self.low:g} to {self.high:g}{scale}{when}"


@dataclass(frozen=True)
class Search:
    """A checked search: what every trial shares, and the ranges, those that a condition asks for before it."""

    name: str
    experiment: Experiment
    ranges: tuple[Range, ...]
    constraints: tuple[Condition, ...]
    settings: SearchSettings

    @property
    def paper_setting(self) -> dict[str, Any]:
        """The configuration's own values of the searched keys: the first trial."""
        flat = self.experiment.flat()
        return {space.key: flat[space.key] for space in self.ranges if space.when is None or space.when.holds(flat)}

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Asks an Optuna trial for every searched key whose condition holds; the values by dotted key."""
        values: dict[str, Any] = {}
        flat = self.experiment.flat()
        for space in self.ranges:
            if space.when is None or space.when.holds(flat | values):
                values[space.key] = space.suggest(trial)
        return values

    def broken_constraint(self, values: Mapping[str, Any]) -> Condition | None:
        """The first constraint that these values of the searched keys break."""
        flat = self.experiment.flat() | dict(values)
        return next((each for each in self.constraints if not each.holds(flat)), None)

    def to_yaml(self) -> str:
        """Everything that decides the search's result, to compare with when it is resumed."""
        search = self.settings.model_dump(mode="json")
        return yaml.safe_dump(
            {"name": self.name, "experiment": self.experiment.model_dump(), "search": search}, sort_keys=False
        )


def load_search(path: Path, overrides: Mapping[str, Any] | None = None) -> Search:
    """The search of a YAML file.

    `overrides` go by dotted key, to the search (`trials`, `trial.workers`, `sampler.seed`) or, as fixed values, to the configuration.
    Raises `UserError` with every mistake found, each naming the file, the key and what is allowed.
    """
    values, where = read_yaml(path), str(path)
    settings: dict[str, Any] = {}
    mistakes = []
    for key, value in (overrides or {}).items():
        if key in known_keys():
            settings[key] = value
        elif key in search_keys():
            _put(values, key, value)
        else:
            mistakes.append(f"--set: unknown key '{key}'{did_you_mean(key, [*known_keys(), *search_keys()])}")
    space = values.get("space")
    ranges, fixed, more = _read_space(space, where) if isinstance(space, dict) else ([], {}, [])
    ranges = [each for each in ranges if each.key not in settings]
    mistakes += more
    file = experiment = None
    try:
        file = validated(SearchSettings, values, where)
        experiment = load_experiment(file.config)
    except UserError as error:
        mistakes += error.mistakes
    constraints: list[Condition] = []
    if file and experiment:
        experiment, more = _with_fixed(experiment, fixed | settings, where)
        mistakes += more + [mistake for each in ranges for mistake in _check_range(each, experiment, where)]
        constraints, more = _read_conditions(file.constraints, f"{where}: constraints")
        mistakes += more
        mistakes += _check_ablated(file.final, ranges, where)
        if not ranges and not mistakes:
            mistakes.append(f"{where}: space: nothing to search: every key has a fixed value")
    try:
        ranges = _in_order(ranges)
    except ValueError as error:
        mistakes.append(f"{where}: space: {error}")
    if mistakes or file is None or experiment is None:
        raise UserError(*mistakes)
    search = Search(path.stem, experiment, tuple(ranges), tuple(constraints), file)
    _check_conditions(search, where)
    return search


def search_keys() -> list[str]:
    """Every dotted key of a search file but the space's."""
    sections: dict[str, type[Section]] = {
        "trial": TrialResources,
        "pruning": Pruning,
        "sampler": Sampler,
        "final": Final,
        "source": SourceTree,
    }
    nested = [f"{name}.{key}" for name, section in sections.items() for key in section.model_fields]
    return [
        key for key in SearchSettings.model_fields if key not in {*sections, "space", "constraints"} or key == "final"
    ] + nested


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    values[name] = value


def _read_space(space: dict[str, Any], where: str) -> tuple[list[Range], dict[str, Any], list[str]]:
    """The ranges, the fixed values and the mistakes of a space."""
    ranges, fixed, mistakes = [], {}, []
    for key, value in space.items():
        if key not in known_keys():
            mistakes.append(f"{where}: space: unknown key '{key}'{did_you_mean(key, known_keys())}")
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
    words = ("int", "float", "choice", "log", "step", "when")
    unknown = [name for name in value if name not in words]
    if unknown:
        raise ValueError(
            f"unknown word '{unknown[0]}'; write int, float or choice, with log, step or when{did_you_mean(str(unknown[0]), words)}"
        )
    if len(kinds) != 1:
        raise ValueError("write one of int: [low, high], float: [low, high], choice: [...]")
    kind = kinds[0]
    bounds, step, log = value[kind], value.get("step"), value.get("log", False)
    when = _read_condition(value["when"]) if "when" in value else None
    if kind == "choice":
        if not isinstance(bounds, list) or not bounds or "log" in value or "step" in value:
            raise ValueError("choice takes a list of values, and neither log nor step")
        if not all(isinstance(each, (bool, int, float, str)) for each in bounds):
            raise ValueError("choice takes a list of numbers, words, true or false")
        return Range(key, choices=tuple(bounds), when=when)
    numbers = (int,) if kind == "int" else (int, float)
    if (
        not isinstance(bounds, list)
        or len(bounds) != 2
        or any(isinstance(b, bool) or not isinstance(b, numbers) for b in bounds)
    ):
        raise ValueError(
            f"{kind} takes [low, high], two {'whole numbers' if kind == 'int' else 'numbers'}, not {bounds!r}"
        )
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
    return Range(key, low, high, step, log, when=when)


def _read_condition(text: Any) -> Condition:
    if not isinstance(text, str):
        raise ValueError(f"a condition is a text, as in model.registers > 0, not {text!r}")
    condition = Condition.parse(text)
    for key in condition.keys:
        if key not in known_keys():
            raise ValueError(f"unknown key '{key}' in '{text}'{did_you_mean(key, known_keys())}")
    return condition


def _read_conditions(texts: tuple[str, ...], where: str) -> tuple[list[Condition], list[str]]:
    conditions, mistakes = [], []
    for text in texts:
        try:
            conditions.append(_read_condition(text))
        except ValueError as error:
            mistakes.append(f"{where}: {error}")
    return conditions, mistakes


def _in_order(ranges: list[Range]) -> list[Range]:
    """The ranges with those before them that their conditions ask for, otherwise as written. Raises ValueError where they go in a circle."""
    ordered: list[Range] = []
    waiting = list(ranges)
    while waiting:
        open_keys = {space.key for space in waiting}
        ready = next((space for space in waiting if space.when is None or not open_keys & set(space.when.keys)), None)
        if ready is None:
            raise ValueError(f"the conditions of {' and '.join(sorted(open_keys))} wait for each other")
        ordered.append(ready)
        waiting.remove(ready)
    return ordered


def _check_conditions(search: Search, where: str) -> None:
    """Raises `UserError` where a condition cannot be worked out, or the first trial breaks a constraint."""
    try:
        broken = search.broken_constraint(search.paper_setting)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if broken:
        raise UserError(
            f"{where}: constraints: '{broken}' does not hold for the configuration's own values, the first trial's"
        )


def _with_fixed(experiment: Experiment, fixed: dict[str, Any], where: str) -> tuple[Experiment, list[str]]:
    try:
        return experiment.with_values(fixed, where), []
    except UserError as error:
        return experiment, list(error.mistakes)


def _check_ablated(final: Final | None, ranges: list[Range], where: str) -> list[str]:
    searched = [space.key for space in ranges]
    unknown = [key for key in (final.ablate if final else ()) if key not in searched]
    return [f"{where}: final: ablate: '{key}' is not a searched key{did_you_mean(key, searched)}" for key in unknown]


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
        mistakes.append(
            f"{where}: space: {space.key}: the range ({space}) must hold the configuration's own value {own!r}, the first trial's"
        )
    return mistakes

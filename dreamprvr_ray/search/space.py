"""A search, loaded from one YAML file: the configuration, the searched space, the resources and the budget.

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

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import yaml

from dreamprvr_ray.config import (
    FULL_WEIGHT,
    WEIGHTS,
    Experiment,
    is_known_key,
    known_keys,
    load_experiment,
    validated,
)
from dreamprvr_ray.data.locations import each_location
from dreamprvr_ray.data.manifest import MANIFEST
from dreamprvr_ray.errors import UserError, did_you_mean
from dreamprvr_ray.search.ablation_rows import AblationTable, prepare_values, read_table
from dreamprvr_ray.search.conditions import Condition
from dreamprvr_ray.search.parameters import (
    Parameter,
    by_dependency,
    parameter_mistakes,
    parse_condition,
    parse_parameter,
)
from dreamprvr_ray.search.seeds import SEED, final_seeds
from dreamprvr_ray.search.settings import FinalSettings, SearchSettings, search_keys
from dreamprvr_ray.storage.location import is_uri
from dreamprvr_ray.yaml_files import read_yaml

WITH_VAL = "training.with_val"
NOT_SEARCHABLE = ("data.video_size", "data.text_size", "training.epochs")  # keys that all trials of a search share
MAX_POINTS = 500  # values of the searched keys for which each condition is evaluated when a file is loaded


@dataclass(frozen=True)
class Search:
    """A validated search. `parameters` are ordered so that each comes after those in its condition."""

    name: str
    experiment: Experiment
    parameters: tuple[Parameter, ...]
    constraints: tuple[Condition, ...]
    settings: SearchSettings
    table: AblationTable = field(default_factory=AblationTable)  # if it has rows, nothing is searched

    @property
    def paper_setting(self) -> dict[str, Any]:
        """The configuration's own values of the searched keys, by dotted key: the first trial."""
        flat = self.experiment.flat()
        return {
            parameter.key: flat[parameter.key]
            for parameter in self.parameters
            if parameter.when is None or _holds(parameter.when, flat)
        }

    @property
    def final_seeds(self) -> tuple[int, ...]:
        """The seeds of the final trainings, which no trial has; none if nothing is retrained."""
        final = self.settings.final
        return final_seeds(self.experiment, self.parameters, final.seeds) if final else ()

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Ask an Optuna trial for every searched key whose condition holds; return the values by dotted key."""
        values: dict[str, Any] = {}
        flat = self.experiment.flat()
        for parameter in self.parameters:
            if parameter.when is None or _holds(parameter.when, flat | values):
                values[parameter.key] = parameter.suggest(trial)
        return values

    def reason_to_reject(self, values: Mapping[str, Any]) -> str | None:
        """Return why these values of the searched keys must not be trained: the first constraint that they violate.

        A condition that cannot be evaluated for them, such as a division by zero, counts as violated.
        """
        flat = self.experiment.flat() | dict(values)
        try:
            for parameter in self.parameters:
                if parameter.when is not None:
                    parameter.when.holds(flat)
            violated = next((constraint for constraint in self.constraints if not constraint.holds(flat)), None)
        except ValueError as error:
            return str(error)
        return f"violates {violated}" if violated else None

    def check_shards(self) -> None:
        """Raise `UserError`, naming the command that creates them, if there are no shards. A URI is not checked."""
        shards, source = self.settings.shards, self.settings.source
        missing = [
            location
            for location in each_location(shards)
            if not is_uri(location) and not (Path(location) / MANIFEST).exists()
        ]
        if missing:
            hint = f"; create them with: {source.convert_command(shards)}" if source and isinstance(shards, str) else ""
            raise UserError(*(f"{location}: no feature shards{hint}" for location in missing))

    def to_yaml(self) -> str:
        """Return the contents of `search.yaml`, with which a resumed search is compared."""
        settings = self.settings.model_dump(mode="json")
        return yaml.safe_dump(
            {"name": self.name, "experiment": self.experiment.model_dump(), "search": settings}, sort_keys=False
        )


def load_search(path: Path, overrides: Mapping[str, Any] | None = None) -> Search:
    """Load the search of a YAML file.

    `overrides` are by dotted key: keys of the search file (`trials`, `trial.workers`, `sampler.seed`), or configuration
    keys, which become fixed values. Raises `UserError` with one line per mistake, naming the file, the key and what is
    allowed.
    """
    values, where = read_yaml(path), str(path)
    fixed_by_user, mistakes = _apply_overrides(values, overrides or {})
    if values.get("ablations") is not None:
        mistakes += prepare_values(values, where)
    space = _read_space(values.get("space"), where)
    mistakes += space.mistakes
    parameters = [parameter for parameter in space.parameters if parameter.key not in fixed_by_user]
    try:
        parameters = by_dependency(parameters)
    except ValueError as error:
        mistakes.append(f"{where}: space: {error}")
    try:
        settings = validated(SearchSettings, values, where)
        experiment = load_experiment(settings.config)
    except UserError as error:
        raise UserError(*mistakes, *error.mistakes) from None
    try:
        # The weight of a collection for which the configuration has none: the first trial uses it.
        missing = {each.key for each in parameters if each.key.startswith(WEIGHTS)} - experiment.flat().keys()
        experiment = experiment.with_values(dict.fromkeys(missing, FULL_WEIGHT) | space.fixed | fixed_by_user, where)
    except UserError as error:
        mistakes += error.mistakes
    mistakes += [mistake for parameter in parameters for mistake in parameter_mistakes(parameter, experiment, where)]
    constraints, constraint_mistakes = _read_constraints(settings.constraints, where)
    mistakes += constraint_mistakes + _ablation_mistakes(settings.final, parameters, where)
    mistakes += _final_seeds_mistakes(settings.final, parameters, experiment, where)
    mistakes += _with_val_mistakes(parameters, experiment, where)
    table = AblationTable()
    if settings.ablations is not None:
        mistakes += [f"{where}: space: {parameter.key} cannot be searched with ablations" for parameter in parameters]
        table, table_mistakes = read_table(settings.ablations, experiment, where)
        mistakes += table_mistakes
        kept = settings.ablations.model_copy(update={"rows": {row.name: row.values for row in table.rows}})
        trainings = max(1, len(table.rows) * kept.seeds)
        settings = settings.model_copy(update={"trials": trainings, "ablations": kept})
    elif not parameters and not mistakes:
        mistakes.append(f"{where}: space: nothing to search: every key has a fixed value")
    if mistakes:
        raise UserError(*mistakes)
    search = Search(path.stem, experiment, tuple(parameters), tuple(constraints), settings, table)
    _check_conditions(search, where)
    return search


@dataclass
class _Space:
    """The space of a search file: searched keys, fixed values by dotted key, and what is wrong with the others."""

    parameters: list[Parameter] = field(default_factory=list)
    fixed: dict[str, Any] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)


def _read_space(descriptions: Any, where: str) -> _Space:
    space = _Space()
    if not isinstance(descriptions, dict):  # reported when the settings are validated
        return space
    for key, description in descriptions.items():
        if not is_known_key(key):
            space.mistakes.append(f"{where}: space: unknown key '{key}'{did_you_mean(key, known_keys())}")
        elif not isinstance(description, dict):
            space.fixed[key] = description
        elif key in NOT_SEARCHABLE:
            space.mistakes.append(f"{where}: space: {key} can be fixed but not searched")
        else:
            try:
                space.parameters.append(parse_parameter(key, description))
            except ValueError as error:
                space.mistakes.append(f"{where}: space: {key}: {error}")
    return space


def _apply_overrides(values: dict[str, Any], overrides: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Put overrides of search keys into `values`; return those of configuration keys, and the mistakes."""
    fixed: dict[str, Any] = {}
    mistakes = []
    for key, value in overrides.items():
        if is_known_key(key):
            fixed[key] = value
        elif key in search_keys():
            _set_nested(values, key, value)
        else:
            mistakes.append(f"--set: unknown key '{key}'{did_you_mean(key, [*known_keys(), *search_keys()])}")
    return fixed, mistakes


def _set_nested(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            values[section] = {}
        values = values[section]
    values[name] = value


def _read_constraints(texts: tuple[str, ...], where: str) -> tuple[list[Condition], list[str]]:
    conditions, mistakes = [], []
    for text in texts:
        try:
            conditions.append(parse_condition(text))
        except ValueError as error:
            mistakes.append(f"{where}: constraints: {error}")
    return conditions, mistakes


def _ablation_mistakes(final: FinalSettings | None, parameters: list[Parameter], where: str) -> list[str]:
    searched = [parameter.key for parameter in parameters]
    keys = final.ablate if final else ()
    mistakes = [
        f"{where}: final: ablate: '{key}' is not a searched key{did_you_mean(key, searched)}"
        for key in keys
        if key not in searched
    ]
    if SEED in keys:
        mistakes.append(f"{where}: final: ablate: {SEED} has no effect: final trainings have their own seeds")
    return mistakes


def _final_seeds_mistakes(
    final: FinalSettings | None, parameters: list[Parameter], experiment: Experiment, where: str
) -> list[str]:
    is_valid = all(
        isinstance(value, int) for parameter in parameters if parameter.key == SEED for value in parameter.extremes()
    )
    if final is None or not is_valid:  # the latter is reported with the parameter's mistakes
        return []
    try:
        final_seeds(experiment, parameters, final.seeds)
    except ValueError as error:
        return [f"{where}: space: {error}"]
    return []


def _with_val_mistakes(parameters: list[Parameter], experiment: Experiment, where: str) -> list[str]:
    searched = any(parameter.key == WITH_VAL for parameter in parameters)
    if not searched and not experiment.training.with_val:
        return []
    return [
        f"{where}: {WITH_VAL} must be false in a search: val chooses among the trials, so they must not learn from it;"
        " set final.with_val to train the selected settings on train and val"
    ]


def _check_conditions(search: Search, where: str) -> None:
    """Raise `UserError` if the first trial violates a constraint, or a condition cannot be evaluated.

    Conditions are evaluated for the ends and choices of their parameters, and all values of short ranges of integers.
    Whether one can be evaluated for a value in between shows only when that value is proposed.
    """
    values = search.paper_setting
    if reason := search.reason_to_reject(values):
        if not reason.startswith("violates "):
            raise UserError(f"{where}: {reason}")
        raise UserError(
            f"{where}: constraints: '{reason.removeprefix('violates ')}' does not hold for the configuration's own"
            " values, which the first trial uses"
        )
    # A constraint is evaluated only for proposals that satisfy those before it.
    groups: list[tuple[Condition, ...]] = [(parameter.when,) for parameter in search.parameters if parameter.when]
    groups += [search.constraints[: last + 1] for last in range(len(search.constraints))]
    flat = search.experiment.flat()
    for conditions in groups:
        keys = {key for condition in conditions for key in condition.keys}
        searched = [parameter for parameter in search.parameters if parameter.key in keys]
        points = itertools.product(*(parameter.sample() for parameter in searched))
        for point in itertools.islice(points, MAX_POINTS):
            values = {parameter.key: value for parameter, value in zip(searched, point, strict=True)}
            try:
                all(condition.holds(flat | values) for condition in conditions)
            except ValueError as error:
                at = ", ".join(f"{key} = {values[key]}" for key in conditions[-1].keys if key in values)
                raise UserError(f"{where}: {error}{f' for {at}' if at else ''}") from None


def _holds(condition: Condition, values: Mapping[str, Any]) -> bool:
    """Return whether a condition holds; one that cannot be evaluated does not."""
    try:
        return condition.holds(values)
    except ValueError:
        return False

"""The rows of an ablation table, read from the section `ablations` of a search file. Imports no Ray.

ablations:
  seeds: 3
  rows:
    full: {}                                # the configuration itself, with which the others are compared
    no registers: {model.registers: 0}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreamprvr_ray.config import Experiment, known_keys
from dreamprvr_ray.errors import UserError, did_you_mean
from dreamprvr_ray.search.seeds import SEED
from dreamprvr_ray.search.settings import AblationSettings, SearchSettings

# The keys of a search file that an ablation table has; all others belong to the search of a space.
ALLOWED = ("config", "shards", "out", "source", "trial", "trackers", "space", "ablations")
NOT_ABLATED = (SEED, "training.with_val", "data.video_size", "data.text_size")  # the same in all rows
MAX_NAME = 60  # characters of a row's name


@dataclass(frozen=True)
class AblationRow:
    """One row: the values that differ from the configuration's own, by dotted key."""

    name: str
    values: dict[str, Any]

    @property
    def directory(self) -> str:
        """Its name in file names: `no_registers`."""
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")

    def run_name(self, seed: int) -> str:
        """Return the name of the directory of one of its trainings: `no_registers-seed_1`."""
        return f"{self.directory}-seed_{seed}"

    def experiment(self, base: Experiment, seed: int) -> Experiment:
        """Return the configuration of one of its trainings."""
        return base.with_values(self.values | {SEED: seed}, self.name)


@dataclass(frozen=True)
class AblationTable:
    """All rows, each trained with the same seeds. The first is the one with which the others are compared."""

    rows: tuple[AblationRow, ...] = ()
    seeds: tuple[int, ...] = ()
    left_out: tuple[str, ...] = ()  # which rows are left out and why, a line each


def prepare_values(values: dict[str, Any], where: str) -> list[str]:
    """Complete the values of a search file that has ablations, and return the mistakes."""
    others = [key for key in values if key not in ALLOWED and key in SearchSettings.model_fields]
    values |= {"space": values.get("space") or {}, "trials": 1}
    return [f"{where}: {key} has no effect with ablations, which train every row; remove it" for key in others]


def read_table(settings: AblationSettings, base: Experiment, where: str) -> tuple[AblationTable, list[str]]:
    """Return the table of a configuration and the mistakes in its rows. The seeds start with the configuration's."""
    rows: list[AblationRow] = []
    mistakes: list[str] = []
    for name, values in settings.rows.items():
        row, at = AblationRow(name, dict(values)), f"{where}: ablations: rows: {name}"
        if not row.directory or len(name) > MAX_NAME:
            mistakes.append(f"{at}: a row's name must have letters or digits, and at most {MAX_NAME} characters")
        elif twin := next((other.name for other in rows if other.directory == row.directory), None):
            mistakes.append(f"{at}: too similar to the name of the row '{twin}'")
        unknown = _unknown_keys(values, at)
        mistakes += unknown
        if not unknown:
            try:
                base.with_values(values, at)
            except UserError as error:
                mistakes += error.mistakes
        rows.append(row)
    if len(rows) < 2:
        mistakes.append(f"{where}: ablations: rows: there must be at least two: the others are compared with the first")
    if mistakes:
        return AblationTable(), mistakes
    kept, left_out = _without_repetitions(rows, base)
    first = base.training.seed
    return AblationTable(tuple(kept), tuple(range(first, first + settings.seeds)), tuple(left_out)), []


def _without_repetitions(rows: list[AblationRow], base: Experiment) -> tuple[list[AblationRow], list[str]]:
    """Leave out the rows that have the settings of an earlier one, and say which: they would train the same models.

    A configuration without registers, for example, leaves nothing to change for the row `no registers`.
    """
    kept: list[AblationRow] = []
    left_out: list[str] = []
    experiments = [row.experiment(base, base.training.seed) for row in rows]
    for place, row in enumerate(rows):
        first = experiments.index(experiments[place])  # of equal ones
        if first == place:
            kept.append(row)
        else:
            left_out.append(f"row '{row.name}' is left out: here it has the same settings as '{rows[first].name}'")
    return kept, left_out


def _unknown_keys(values: Mapping[str, Any], at: str) -> list[str]:
    mistakes = []
    for key, value in values.items():
        if key not in known_keys():
            mistakes.append(f"{at}: unknown key '{key}'{did_you_mean(key, known_keys())}")
        elif key in NOT_ABLATED:
            mistakes.append(f"{at}: {key} must be the same in all rows")
        elif isinstance(value, (dict, list)):
            mistakes.append(f"{at}: {key} must have a single value")
    return mistakes

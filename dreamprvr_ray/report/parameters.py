"""The parameters that a search varied, with their ranges."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution


@dataclass(frozen=True)
class SearchedParameter:
    """One searched key and the values that it may take. `baseline` is its value in trial 0."""

    key: str
    name: str  # short, for readers: the last part of the key
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    is_integer: bool = False
    choices: tuple[Any, ...] | None = None  # instead of a range
    baseline: Any = None

    @classmethod
    def from_distribution(cls, key: str, name: str, distribution: BaseDistribution, baseline: Any) -> SearchedParameter:
        """Convert an Optuna distribution."""
        if isinstance(distribution, CategoricalDistribution):
            return cls(key, name, choices=tuple(distribution.choices), baseline=baseline)
        assert isinstance(distribution, (FloatDistribution, IntDistribution))
        return cls(
            key,
            name,
            low=distribution.low,
            high=distribution.high,
            log=distribution.log,
            is_integer=isinstance(distribution, IntDistribution),
            baseline=baseline,
        )

    def position(self, value: Any) -> float | None:
        """Return where a value lies between the ends of the range, from 0 to 1, on the range's scale.

        It is None for a value that cannot be placed: no number, or not among the choices.
        """
        if self.choices is not None:
            return self.choices.index(value) / max(1, len(self.choices) - 1) if value in self.choices else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or (self.log and value <= 0):
            return None
        low, high, at = (math.log(number) if self.log else number for number in (self.low, self.high, value))
        return (at - low) / (high - low) if high > low else 0.5

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends of the range, as integers if the parameter is one."""
        return (int(self.low), int(self.high)) if self.is_integer else (self.low, self.high)


def searched_parameters(
    distributions: Iterable[Mapping[str, BaseDistribution]], space: Mapping[str, Any], baseline: Mapping[str, Any]
) -> tuple[SearchedParameter, ...]:
    """Return the parameters that the trials' distributions vary, in the order of the search's file.

    `space` is that file's section and `baseline` the configuration, by dotted key. A key with a single possible value
    was not searched.
    """
    found: dict[str, BaseDistribution] = {}
    for trial_distributions in distributions:
        found |= trial_distributions
    order = {key: place for place, key in enumerate(space)}
    keys = [key for key in sorted(found, key=lambda key: order.get(key, len(order))) if not found[key].single()]
    names = short_names(keys)
    return tuple(SearchedParameter.from_distribution(key, names[key], found[key], baseline.get(key)) for key in keys)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last part of each dotted key, with as many parts before it as are needed to tell the keys apart."""
    names = {}
    for key in keys:
        parts = key.split(".")
        length = next(
            (n for n in range(1, len(parts)) if sum(other.split(".")[-n:] == parts[-n:] for other in keys) == 1),
            len(parts),
        )
        names[key] = " ".join(parts[-length:]).replace("_", " ")
    return names

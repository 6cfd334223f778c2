"""One searched configuration key: its range of values, and how a search file describes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from dreamprvr_ray.config import Experiment, is_known_key, known_keys
from dreamprvr_ray.errors import UserError, did_you_mean
from dreamprvr_ray.search.conditions import Condition
from dreamprvr_ray.yaml_files import describe, format_value

FEW = 32
MAX_CHOICES = 1000
MAX_STEPS = 10**6  # between the ends of a range
MAX_BOUND = 10**15


@dataclass(frozen=True)
class Parameter:
    """A searched key: numbers from `low` to `high`, both included, or `choices`; only searched where `when` holds."""

    key: str
    low: float | int | None = None
    high: float | int | None = None
    step: float | int | None = None
    log: bool = False
    choices: tuple[Any, ...] | None = None
    when: Condition | None = None

    def suggest(self, trial: optuna.Trial) -> Any:
        """Return this key's value in an Optuna trial."""
        if self.choices is not None:
            return trial.suggest_categorical(self.key, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.key, self.low, self.high, step=int(self.step or 1), log=self.log)
        assert self.low is not None and self.high is not None
        return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)

    def contains(self, value: Any) -> bool:
        """Return whether `suggest` may return the value."""
        if self.choices is not None:
            return value in self.choices
        assert self.low is not None and self.high is not None
        if not self.low <= value <= self.high:
            return False
        steps = float((value - self.low) / self.step) if self.step else 0.0
        return bool(abs(steps - round(steps)) < 1e-6)

    def extremes(self) -> list[Any]:
        """Return the values to check against the configuration's own bounds."""
        return list(self.choices) if self.choices is not None else [self.low, self.high]

    def sample(self) -> list[Any]:
        """Return values for which to check conditions: all of a few choices or integers, else the ends, the middle, 0.

        Numbers are not rounded to steps.
        """
        if self.choices is not None:
            return list(self.choices[:FEW])
        assert self.low is not None and self.high is not None
        if isinstance(self.low, int) and isinstance(self.high, int):
            values = list(range(self.low, self.high + 1, int(self.step or 1))[:FEW])
            middle: float = (self.low + self.high) // 2
        else:
            values, middle = [], (self.low + self.high) / 2
        return list(dict.fromkeys([*values, self.low, self.high, middle, *([0] if self.low <= 0 <= self.high else [])]))

    def __str__(self) -> str:
        when = f", when {self.when}" if self.when else ""
        if self.choices is not None:
            return " | ".join(map(format_value, self.choices)) + when
        kind = "integers" if isinstance(self.low, int) else "numbers"
        scale = (", log scale" if self.log else "") + (f", step {self.step:g}" if self.step else "")
        return f"{kind} from {self.low:g} to {self.high:g}{scale}{when}"


def parse_parameter(key: str, description: dict[str, Any]) -> Parameter:
    """Return the parameter of a key from its description in a search file, such as `{int: [1, 8], log: true}`.

    Raises `ValueError` with the reason if the description is invalid.
    """
    words = ("int", "float", "choice", "log", "step", "when")
    unknown = next((describe(word).strip("'") for word in description if word not in words), None)
    if unknown is not None:
        raise ValueError(
            f"unknown word '{unknown}'; use int, float or choice, optionally with log, step or when"
            f"{did_you_mean(unknown, words)}"
        )
    kinds = [kind for kind in ("int", "float", "choice") if kind in description]
    if len(kinds) != 1:
        raise ValueError("must have exactly one of int: [low, high], float: [low, high], choice: [...]")
    when = parse_condition(description["when"]) if "when" in description else None
    if kinds == ["choice"]:
        return Parameter(key, choices=_parse_choices(description), when=when)
    low, high = _parse_bounds(kinds[0], description[kinds[0]])
    step, log = _parse_scale(kinds[0], low, high, description)
    return Parameter(key, low, high, step, log, when=when)


def _parse_choices(description: dict[str, Any]) -> tuple[Any, ...]:
    choices = description["choice"]
    if not isinstance(choices, list) or not choices or "log" in description or "step" in description:
        raise ValueError("choice takes a list of values and allows neither log nor step")
    if len(choices) > MAX_CHOICES:
        raise ValueError(f"choice takes at most {MAX_CHOICES} values, not {len(choices)}")
    if not all(isinstance(choice, (bool, int, float, str)) for choice in choices):
        raise ValueError("choice takes a list of numbers, strings, true or false")
    if any(isinstance(choice, float) and not math.isfinite(choice) for choice in choices):
        raise ValueError("choice takes finite numbers")
    if len({(type(choice), choice) for choice in choices}) < len(choices):
        raise ValueError("choice takes each value once")
    return tuple(choices)


def _parse_bounds(kind: str, bounds: Any) -> tuple[float, float]:
    types = (int,) if kind == "int" else (int, float)
    if (
        not isinstance(bounds, list)
        or len(bounds) != 2
        or any(isinstance(bound, bool) or not isinstance(bound, types) for bound in bounds)
    ):
        raise ValueError(
            f"{kind} takes [low, high], two {'integers' if kind == 'int' else 'numbers'}, not {_shown(bounds)}"
        )
    if not all(abs(bound) <= MAX_BOUND for bound in bounds):  # also of NaN
        raise ValueError(f"{kind} takes bounds from {-MAX_BOUND:g} to {MAX_BOUND:g}, not {_shown(bounds)}")
    low, high = bounds if kind == "int" else map(float, bounds)
    if low >= high:
        raise ValueError(f"low {low:g} must be below high {high:g}")
    return low, high


def _shown(value: Any) -> str:
    """Return a value as a message shows it: a short list in full."""
    return f"[{', '.join(map(describe, value))}]" if isinstance(value, list) and len(value) <= 3 else describe(value)


def _parse_scale(kind: str, low: float, high: float, description: dict[str, Any]) -> tuple[float | None, bool]:
    """Return the step and whether the scale is logarithmic."""
    types = (int,) if kind == "int" else (int, float)
    step, log = description.get("step"), description.get("log", False)
    if not isinstance(log, bool):
        raise ValueError(f"log must be true or false, not {_shown(log)}")
    if log and low <= 0:
        raise ValueError(f"a log scale requires low above 0, not {low:g}")
    if log and step is not None:
        raise ValueError("log and step cannot be combined")
    if step is not None and (isinstance(step, bool) or not isinstance(step, types) or not 0 < step < math.inf):
        raise ValueError(f"step must be {'an integer' if kind == 'int' else 'a number'} above 0, not {_shown(step)}")
    if step is not None and step > high - low:
        raise ValueError(f"step {step:g} must be at most the distance of the bounds, {high - low:g}")
    if step is not None and (high - low) / step > MAX_STEPS:
        raise ValueError(f"step {step:g} is too small: it must divide the range into at most {MAX_STEPS:,} steps")
    return step, log


def parse_condition(text: Any) -> Condition:
    """Return the condition in a search file's text. Raises `ValueError` if it is invalid or names an unknown key."""
    if not isinstance(text, str):
        raise ValueError(f"a condition must be a string, such as 'model.registers > 0', not {_shown(text)}")
    condition = Condition.parse(text)
    for key in condition.keys:
        if not is_known_key(key):
            raise ValueError(f"unknown key '{key}' in '{text}'{did_you_mean(key, known_keys())}")
    return condition


def by_dependency(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Return the parameters so that each comes after those in its condition, otherwise in the given order.

    Raises `ValueError` if conditions depend on each other in a cycle.
    """
    ordered: list[Parameter] = []
    remaining = list(parameters)
    while remaining:
        open_keys = {parameter.key for parameter in remaining}
        ready = next(
            (
                parameter
                for parameter in remaining
                if parameter.when is None or not open_keys & set(parameter.when.keys)
            ),
            None,
        )
        if ready is None:
            raise ValueError(f"the conditions of {' and '.join(sorted(open_keys))} depend on each other")
        ordered.append(ready)
        remaining.remove(ready)
    return ordered


def parameter_mistakes(parameter: Parameter, experiment: Experiment, where: str) -> list[str]:
    """Return what is wrong with a parameter of the search file `where`, given the configuration that trials start from.

    Its values must be within the configuration's bounds, and it must contain the configuration's own value, which the
    first trial uses.
    """
    mistakes: list[str] = []
    for value in parameter.extremes():
        try:
            experiment.with_values({parameter.key: value}, f"{where}: space")
        except UserError as error:
            mistakes += error.mistakes
    own_value = experiment.flat()[parameter.key]
    if not mistakes and not parameter.contains(own_value):
        mistakes.append(
            f"{where}: space: {parameter.key}: the range ({parameter}) must contain the configuration's own value"
            f" {describe(own_value)}, which the first trial uses"
        )
    return mistakes

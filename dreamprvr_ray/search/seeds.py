"""The training seeds of a search's trials, and those of the final trainings, which must be others.

A trial is selected because its SumR is high, partly by the luck of its seed. Trained again with the same seed, the same
settings give the same weights: the luck would count as a result of the settings, and only for the selected trial.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dreamprvr_ray.config import Experiment
from dreamprvr_ray.search.parameters import Parameter

SEED = "training.seed"
MAX_SEED = 2**31 - 1


def final_seeds(experiment: Experiment, parameters: Sequence[Parameter], count: int) -> tuple[int, ...]:
    """Return the `count` smallest seeds that no trial of a search can have: `experiment` is its configuration.

    All candidates are trained with the same seeds. More seeds, or more trials, leave the first ones as they are.
    Raises `ValueError` if the search leaves too few.
    """
    taken = {experiment.training.seed}
    ranges = []
    for parameter in parameters:
        if parameter.key != SEED:
            continue
        if parameter.choices is not None:
            taken.update(parameter.choices)
        else:
            assert isinstance(parameter.low, int) and isinstance(parameter.high, int)
            ranges.append((parameter.low, parameter.high))
    seeds: list[int] = []
    for seed in _outside(ranges):
        if len(seeds) == count:
            break
        if seed not in taken:
            seeds.append(seed)
    if len(seeds) < count:
        raise ValueError(
            f"{SEED} leaves {len(seeds)} seeds to the final trainings, which need {count} that no trial has; search"
            " fewer seeds or reduce final.seeds"
        )
    return tuple(seeds)


def shared_seeds(
    seeds: Sequence[int | None], experiment_seed: int, trial_values: Sequence[Mapping[str, Any]]
) -> tuple[int, ...]:
    """Return those of the final trainings' seeds that trials of the search had too, ascending.

    `experiment_seed` is that of the search's configuration, which trials have unless their values say otherwise.
    Files of version 0.1.0 have such seeds.
    """
    used = {experiment_seed, *(values[SEED] for values in trial_values if SEED in values)}
    return tuple(sorted({seed for seed in seeds if seed is not None and seed in used}))


def _outside(ranges: Sequence[tuple[int, int]]) -> Iterator[int]:
    """Yield all seeds that are in no range, ascending."""
    seed = 0
    for low, high in sorted(ranges):
        yield from range(seed, low)
        seed = max(seed, high + 1)
    yield from range(seed, MAX_SEED + 1)

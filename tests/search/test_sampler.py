"""The proposals of a search with more trials than its sampler sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from dreamprvr_ray.search import sampler
from dreamprvr_ray.search.sampler import PerTrialSampler
from dreamprvr_ray.search.settings import SamplerSettings

SPACE = {"x": FloatDistribution(0.0, 1.0), "y": FloatDistribution(0.0, 1.0)}
TRIALS = 60


@pytest.fixture(autouse=True)
def few_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "MAX_TRIALS", 40)
    monkeypatch.setattr(sampler, "BEST_TRIALS", 10)


def proposal(
    change: Callable[[int, dict[str, float]], None] = lambda number, params: None, objectives: int = 1
) -> dict[str, Any]:
    """Return the next proposal of a study in which `change` has changed the values of some trials.

    The older half of the trials has the better values: number 0 the best.
    """
    settings = SamplerSettings(kind="tpe", seed=3, startup_trials=5)
    directions = ["maximize", "minimize"][:objectives]
    study = optuna.create_study(directions=directions, sampler=PerTrialSampler(settings, conditional=False))
    for number in range(TRIALS):
        params = {"x": (number * 0.37) % 1, "y": (number * 0.61) % 1}
        change(number, params)
        values = [100.0 - number, 50.0 - number if number < 5 else 60.0][:objectives]
        study.add_trial(
            create_trial(state=TrialState.COMPLETE, params=params, distributions=SPACE, values=values),
        )
    return study.ask(SPACE).params


def move(to: dict[str, Any], *numbers: int) -> Callable[[int, dict[str, float]], None]:
    """Return a change that puts trials where another proposal was."""
    return lambda number, params: params.update(to) if number in numbers else None


@pytest.mark.parametrize("objectives", [1, 2])
def test_old_trials_are_seen_if_they_are_the_best(objectives: int) -> None:
    """Of the 60 trials, the sampler sees the 30 latest and the best of the others, which are the first."""
    proposed = proposal(objectives=objectives)
    assert proposal(move(proposed, *range(12, 30)), objectives) == proposed
    assert proposal(move(proposed, *range(5)), objectives) != proposed
    assert proposal(move(proposed, *range(30, TRIALS)), objectives) != proposed


def test_all_trials_are_seen_if_they_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "MAX_TRIALS", TRIALS)
    proposed = proposal()
    assert proposal(move(proposed, *range(12, 30))) != proposed

"""Win rates of trials, and the importance of parameters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.experiments import make_search

from dreamprvr_ray.report.importance import importances, win_rate_by_choice, win_rates
from dreamprvr_ray.report.reader import read_search
from dreamprvr_ray.report.summary import describe_importances
from dreamprvr_ray.search.results import TrialRecord


def trial(number: int, *curve: float) -> TrialRecord:
    points = tuple(enumerate(curve, start=1))
    return TrialRecord(number, "finished", max(curve), 1 + int(np.argmax(curve)), len(curve), {}, curve=points)


def test_two_trials_are_compared_at_the_last_epoch_that_both_reached() -> None:
    slow, pruned, fast = trial(0, 10, 20, 30, 40), trial(1, 25, 24), trial(2, 30, 35, 35, 41)
    assert win_rates([slow, pruned]) == pytest.approx([0.0, 1.0])  # 20 against 25, at epoch 2
    assert win_rates([slow, pruned, fast]) == pytest.approx([0.0, 0.5, 1.0])
    assert win_rates([trial(0, 10, 20), trial(1, 20, 5)]) == pytest.approx([0.5, 0.5])  # a tie: each one's best is 20
    assert win_rates([replace(slow, curve=()), replace(fast, curve=())]) == pytest.approx([0.0, 1.0])


def test_win_rates_are_those_of_comparing_each_pair() -> None:
    random = np.random.default_rng(4)
    trials = [trial(number, *random.integers(5, size=random.integers(1, 7)).tolist()) for number in range(60)]

    def score(a: TrialRecord, b: TrialRecord) -> float:
        epochs = min(a.epochs, b.epochs)
        own, other = (max(value for _, value in each.curve[:epochs]) for each in (a, b))
        return 0.5 if own == other else float(own > other)

    expected = [sum(score(a, b) for b in trials if b is not a) / 59 for a in trials]
    assert win_rates(trials) == pytest.approx(expected)


def test_a_bad_choice_stands_out_even_if_few_trials_have_it(tmp_path: Path) -> None:
    """A sampler soon proposes only the good choice, which is then common to nearly all trials."""
    search = read_search(make_search(tmp_path / "synthetic", trials=24, pruning=False))
    bad = {0, 1, 3, 6, 8}

    def scored(trial: TrialRecord) -> TrialRecord:
        low = 150.0 if trial.number in bad else 240.0
        value = low + np.random.default_rng(trial.number).normal()
        return replace(
            trial,
            values=trial.values | {"model.branches": 4 if trial.number in bad else 8},
            best_sumr=value,
            curve=((20, value),),
        )

    search = replace(search, trials=tuple(map(scored, search.trials)))
    found = importances(search)
    assert found[0].parameter.key == "model.branches" and [importance.stands_out for importance in found] == [
        True,
        *[False] * 5,
    ]
    rates = win_rate_by_choice(search, found[0].parameter)
    assert rates == [(8, pytest.approx((5 + 9) / 23)), (4, pytest.approx(2 / 23))]
    text = describe_importances(search, found)
    assert "The most important parameter is branches: it explains" in text
    assert "Trials with 8 beat 61% of all other trials; trials with 4 beat 9%." in text


def test_the_number_of_epochs_does_not_distort_importances(tmp_path: Path) -> None:
    """The first trials are never pruned, even bad ones, and end with a higher SumR than better trials that were."""
    search = read_search(make_search(tmp_path / "synthetic", trials=24, pruning=False))
    by_rate = sorted(search.trials, key=lambda trial: abs(np.log10(trial.values["optimizer.learning_rate"] / 1e-3)))
    good = {trial.number for trial in by_rate[: len(by_rate) // 2]}

    def curve(trial: TrialRecord) -> TrialRecord:
        random = np.random.default_rng(trial.number)
        start = 60.0 if trial.number in good else 40.0
        epochs = 2 if trial.number in good and trial.number % 2 else 20
        values = tuple((epoch, start + 4 * epoch + random.normal()) for epoch in range(1, epochs + 1))
        return replace(trial, curve=values, best_sumr=values[-1][1], state="pruned" if epochs == 2 else "finished")

    found = importances(replace(search, trials=tuple(map(curve, search.trials))))
    assert found[0].parameter.key == "optimizer.learning_rate" and found[0].stands_out

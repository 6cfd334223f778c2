"""Which trials are the good ones, and what they have in common."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.experiments import make_search

from dreamprvr_ray.report.experiment import Trial, read_search
from dreamprvr_ray.report.importance import beaten_by_choice, importances, standings
from dreamprvr_ray.report.summary import mattered


def trial(number: int, *curve: float) -> Trial:
    points = tuple(enumerate(curve, start=1))
    return Trial(number, "finished", {}, max(curve), 1 + int(np.argmax(curve)), len(curve), points)


def test_two_trials_are_compared_at_the_last_epoch_that_both_reached() -> None:
    slow, pruned, fast = trial(0, 10, 20, 30, 40), trial(1, 25, 24), trial(2, 30, 35, 35, 41)
    assert standings([slow, pruned]) == pytest.approx(
        [0.0, 1.0]
    )  # 20 against 25: the later epochs of one say nothing of the other
    assert standings([slow, pruned, fast]) == pytest.approx([0.0, 0.5, 1.0])
    assert standings([trial(0, 10, 20), trial(1, 20, 5)]) == pytest.approx([0.5, 0.5])  # the best so far, and a tie
    assert standings([replace(slow, curve=()), replace(fast, curve=())]) == pytest.approx([0.0, 1.0])


def test_a_choice_that_is_bad_stands_out_however_few_trials_have_it(tmp_path: Path) -> None:
    """As a sampler leaves it, which soon proposes the good choice alone: what the best have in common, nearly all trials have."""
    search = read_search(make_search(tmp_path / "made", trials=24, pruning=False))
    bad = {0, 1, 3, 6, 8}

    def told(trial: Trial) -> Trial:
        low = 150.0 if trial.number in bad else 240.0
        value = low + np.random.default_rng(trial.number).normal()
        return replace(
            trial,
            values=trial.values | {"model.branches": 4 if trial.number in bad else 8},
            sumr=value,
            curve=((20, value),),
        )

    search = replace(search, trials=tuple(map(told, search.trials)))
    found = importances(search)
    assert found[0].axis.key == "model.branches" and [importance.stands_out for importance in found] == [
        True,
        *[False] * 5,
    ]
    beaten = beaten_by_choice(search, found[0].axis)
    assert beaten == [(8, pytest.approx((5 + 9) / 23)), (4, pytest.approx(2 / 23))]
    said = mattered(search, found)
    assert "Branches mattered most" in said and "Trials with 8 beat 61% of all others, those with 4 9%." in said


def test_the_first_trials_length_does_not_hide_what_matters(tmp_path: Path) -> None:
    """The first trials are never pruned, however bad: their last SumR is above that of better ones which were."""
    search = read_search(make_search(tmp_path / "made", trials=24, pruning=False))
    by_rate = sorted(search.trials, key=lambda trial: abs(np.log10(trial.values["optimizer.learning_rate"] / 1e-3)))
    good = {trial.number for trial in by_rate[: len(by_rate) // 2]}

    def curve(trial: Trial) -> Trial:
        random = np.random.default_rng(trial.number)
        start = 60.0 if trial.number in good else 40.0
        epochs = 2 if trial.number in good and trial.number % 2 else 20
        values = tuple((epoch, start + 4 * epoch + random.normal()) for epoch in range(1, epochs + 1))
        return replace(trial, curve=values, sumr=values[-1][1], state="pruned" if epochs == 2 else "finished")

    told = importances(replace(search, trials=tuple(map(curve, search.trials))))
    assert told[0].axis.key == "optimizer.learning_rate" and told[0].stands_out

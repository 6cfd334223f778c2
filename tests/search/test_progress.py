from __future__ import annotations

from dreamprvr_ray.search.progress import format_progress
from dreamprvr_ray.search.results import TrialRecord, rank_trials

VALUES = {"model.registers": 4, "optimizer.learning_rate": 3e-4}
ENDED = [
    TrialRecord(number, "pruned" if number % 2 else "finished", 200.0 + number, 2, 4, VALUES, 200.0)
    for number in range(8)
]
OTHERS = [TrialRecord(8, "running", 190.0, 1, 1, VALUES, 190.0), TrialRecord(9, "waiting", None, None, 0, VALUES)]


def trials(lines: list[str]) -> list[int]:
    return [int(line.split("|")[0]) for line in lines[1:]]


def test_the_best_trials_and_the_running_ones_are_shown() -> None:
    assert trials(format_progress(rank_trials(ENDED + OTHERS), list(VALUES))) == [7, 6, 5, 4, 3, 8, 9]


def test_values_are_shown_if_they_fit_into_a_line() -> None:
    wide, narrow = (format_progress(rank_trials(ENDED), list(VALUES), width) for width in (160, 60))
    assert "learning_rate" in wide[0] and "0.0003" in wide[1]
    assert narrow[0].split() == ["trial", "|", "state", "|", "epochs", "|", "SumR", "|", "at", "|", "last"] and all(
        len(line) < 60 for line in narrow
    )

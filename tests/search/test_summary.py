"""The records of a search as text."""

from __future__ import annotations

import numpy as np
from support.experiments import make_test_result

from dreamprvr_ray.search.comparison import compare_on_test
from dreamprvr_ray.search.final_result import Candidate, FinalResult, FinalRun
from dreamprvr_ray.search.results import TrialRecord, rank_trials
from dreamprvr_ray.search.summary import describe_final, format_table

TRIALS = [
    TrialRecord(0, "finished", 250.0, 7, 8, {"model.registers": 4}, 248.0),
    TrialRecord(1, "failed", None, None, 0, {"model.registers": 8}, error="out of memory"),
    TrialRecord(2, "pruned", 260.5, 2, 2, {}, 260.5),
    TrialRecord(3, "finished", 250.0, 8, 8, {"model.registers": 1}, 250.0),
]


def test_the_table_has_a_row_for_each_trial() -> None:
    lines = [line.replace("|", " ") for line in format_table(rank_trials(TRIALS), ["model.registers"])]
    assert lines[0].split() == ["trial", "state", "epochs", "SumR", "at", "last", "registers"]
    assert lines[1].split() == ["2", "pruned", "2", "260.5", "2", "260.5", "-"]
    assert lines[2].split() == ["0", "finished", "8", "250.0", "7", "248.0", "4"]
    assert lines[4].split() == ["1", "failed", "0", "-", "-", "-", "8"]


def test_the_final_result_is_described_in_lines() -> None:
    def run(sumr: float, val: float) -> FinalRun:
        return FinalRun(0, val, 3, "checkpoint", make_test_result(sumr))

    def candidate(name: str, *vals: float) -> Candidate:
        deviations = np.array([-1, 1]) / np.sqrt(2)  # with a sample standard deviation of 1
        runs = tuple(run(200.0 + deviation, val) for deviation, val in zip(deviations, vals, strict=True))
        return Candidate(name, 0, {}, 3, runs)

    comparison = compare_on_test("trial 5", np.ones((1, 3)), "paper", np.full((1, 3), 7), np.arange(3))
    found = FinalResult((candidate("trial 5", 250.0, 250.0), candidate("paper", 240.0, 240.0)), comparison)
    assert describe_final(found)[0] == "trial 5: test SumR 200.0 (standard deviation 1.0, 2 seeds), val 250.0"
    assert describe_final(found)[2] == (
        "trial 5 against paper: +200.0 test SumR"
        " (95% interval +200.0 to +200.0, paired bootstrap over videos and seeds)"
    )
    assert FinalResult((candidate("a", 3.0, 5.0),)).chosen.val_sumr == 5.0
    assert FinalResult((candidate("a", 3.0, 5.0),), with_val=True).chosen.val_sumr == 3.0
    other = FinalResult(found.candidates[::-1], comparison)
    assert describe_final(other)[-1] == "the paper's settings have a higher val SumR than every retrained trial"

"""The records of a search as text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from support.experiments import make_test_result

from dreamprvr_ray.evaluation.moment_metrics import MomentRecall
from dreamprvr_ray.search.comparison import compare_on_test
from dreamprvr_ray.search.final_result import ENCODER_ALONE, Candidate, Comparison, FinalResult, FinalRun
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


def candidate(name: str, *vals: float, title: str | None = None) -> Candidate:
    """A candidate with a run for each val SumR, and a standard deviation of 1 if there are two."""
    deviations = np.array([-1, 1]) / np.sqrt(2) if len(vals) > 1 else [0.0]
    runs = tuple(
        FinalRun(1, val, 3, "checkpoint", make_test_result(200.0 + deviation))
        for deviation, val in zip(deviations, vals, strict=True)
    )
    return Candidate(name, 0, {}, 3, runs, title=title)


def compare(seeds: int) -> Comparison:
    return compare_on_test("trial 5", np.ones((seeds, 3)), "paper", np.full((seeds, 3), 7), np.arange(3))


def test_the_final_result_is_described_in_lines() -> None:
    own = "the configuration's own settings"
    found = FinalResult(
        (candidate("trial 5", 250.0, 250.0), candidate("paper", 240.0, 240.0, title=own)), compare(seeds=2)
    )
    assert describe_final(found)[0] == "trial 5: test SumR 200.0 (standard deviation 1.0, 2 seeds), val 250.0"
    assert describe_final(found)[1].startswith(f"{own}: test SumR 200.0")
    assert describe_final(found)[2] == (
        f"trial 5 against {own}: +200.0 test SumR (95% interval +200.0 to +200.0, over videos and seeds)"
    )
    assert FinalResult((candidate("a", 3.0, 5.0),)).chosen.val_sumr == 5.0
    assert FinalResult((candidate("a", 3.0, 5.0),), with_val=True).chosen.val_sumr == 3.0
    other = FinalResult(found.candidates[::-1], found.comparison)
    assert describe_final(other)[-1] == f"{own} have a higher val SumR than every retrained trial"


def test_finals_are_compared_with_the_encoder_alone() -> None:
    recall = make_test_result(210.0).retrieval.recall
    plain = candidate("trial 5", 250.0, 250.0)
    runs = tuple(replace(run, test=replace(run.test, zero_shot={"encoder": recall})) for run in plain.runs)
    against = replace(compare(seeds=2), than=ENCODER_ALONE)
    result = FinalResult((replace(plain, runs=runs),), encoder=(against,))
    assert describe_final(result)[1:] == [
        "  warning: the model is below the encoder alone: SumR 200.0 against 210.0",
        "zero-shot SumR: encoder 210.0",
        "trial 5 against the encoder alone: +200.0 test SumR (95% interval +200.0 to +200.0, over videos and seeds)",
        *describe_final(FinalResult((plain,)))[1:],
    ]
    read = FinalResult.from_dict(result.to_dict())
    assert read.encoder == (against,) and read.candidates[0].zero_shot == {"encoder": recall}
    assert "encoder" not in FinalResult((plain,)).to_dict()


def test_found_moments_are_below_the_candidates() -> None:
    moments = MomentRecall.of(np.array([0.2, 0.6]), np.array([True, True]))
    plain = candidate("trial 5", 250.0, 250.0)
    runs = []
    for run in plain.runs:
        test = replace(run.test, retrieval=replace(run.test.retrieval, moments=moments), zero_shot_moments=moments)
        runs.append(replace(run, test=test))
    result = FinalResult((replace(plain, runs=tuple(runs)),))
    assert describe_final(result)[1:5] == [
        "  moment found in the right video (2 queries): IoU>=0.3 50.0  IoU>=0.5 50.0  IoU>=0.7 0.0  mean IoU 0.40",
        "  R@1 of video and moment: IoU>=0.3 50.0  IoU>=0.5 50.0  IoU>=0.7 0.0",
        "zero-shot, moment found in the right video (2 queries): IoU>=0.3 50.0  IoU>=0.5 50.0  IoU>=0.7 0.0"
        "  mean IoU 0.40",
        "zero-shot, R@1 of video and moment: IoU>=0.3 50.0  IoU>=0.5 50.0  IoU>=0.7 0.0",
    ]
    read = FinalResult.from_dict(result.to_dict()).candidates[0]
    assert read.moments == read.zero_shot_moments == moments
    partly = FinalResult((replace(plain, runs=(runs[0], plain.runs[1])),))  # not of all seeds
    assert partly.candidates[0].moments is None


def test_one_seed_claims_nothing_about_others() -> None:
    lines = describe_final(FinalResult((candidate("trial 5", 250.0), candidate("paper", 240.0)), compare(seeds=1)))
    assert lines[0] == "trial 5: test SumR 200.0 (1 seed), val 250.0"
    assert lines[2] == (
        "trial 5 against paper: +200.0 test SumR (95% interval +200.0 to +200.0, over videos only: with one seed,"
        " how much other seeds would change is not known)"
    )
    assert "nan" not in " ".join(lines) and "and seeds" not in " ".join(lines)


def test_runs_with_a_seed_of_the_search_are_called_biased() -> None:
    result = FinalResult((candidate("trial 5", 250.0, 250.0),), shared_seeds=(0,))
    assert any("seed 0 was also a seed of the search: these results favour" in line for line in describe_final(result))

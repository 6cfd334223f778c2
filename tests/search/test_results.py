"""The records of a search are read and written as `leaderboard.json` and `final.json` hold them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from support.experiments import make_test_result

from dreamprvr_ray.search.final_result import Candidate, Comparison, FinalRecord, FinalResult, FinalRun
from dreamprvr_ray.search.results import STATES, TrialRecord, best_trial, rank_trials

EARLIER = Path(__file__).parents[1] / "golden" / "earlier" / "version_0.1.0.tar.xz"
TRIALS = [
    TrialRecord(0, "finished", 250.0, 7, 8, {"model.registers": 4}, 248.0),
    TrialRecord(1, "failed", None, None, 0, {"model.registers": 8}, error="out of memory"),
    TrialRecord(2, "pruned", 260.5, 2, 2, {}, 260.5),
    TrialRecord(3, "finished", 250.0, 8, 8, {"model.registers": 1}, 250.0),
]


def earlier_file(name: str) -> Any:
    """The contents of a JSON file in the search that version 0.1.0 wrote."""
    with tarfile.open(EARLIER) as archive:
        file = archive.extractfile(f"search/{name}")
        assert file is not None
        return json.loads(file.read())


def test_the_leaderboard_of_version_0_1_0_is_read_and_written_unchanged() -> None:
    entries = earlier_file("leaderboard.json")
    trials = [TrialRecord.from_dict(entry) for entry in entries]
    assert json.dumps([trial.to_dict() for trial in trials], indent=1) == json.dumps(entries, indent=1)
    assert rank_trials(reversed(trials)) == trials and best_trial(trials) == trials[0]


def test_the_final_record_of_version_0_1_0_is_read_and_written_unchanged() -> None:
    written = earlier_file("final.json")
    record = FinalRecord.from_dict(written)
    assert json.dumps(record.to_dict(), indent=1) == json.dumps(written, indent=1)
    assert all(run.seed in (0, 1) for candidate in record.result.candidates for run in candidate.runs)


def test_trials_are_ranked_by_their_best_sumr() -> None:
    assert [trial.number for trial in rank_trials(TRIALS)] == [2, 0, 3, 1]
    assert best_trial(TRIALS) == TRIALS[2] and best_trial(TRIALS[1:2]) is None


def test_one_seed_has_no_standard_deviation() -> None:
    candidate = Candidate("trial 1", 1, {}, 3, (FinalRun(0, 250.0, 3, "checkpoint", make_test_result(200.0)),))
    assert candidate.std is None and candidate.mean == 200.0
    entry = candidate.to_dict()
    assert entry["std"] is None and Candidate.from_dict(entry) == candidate
    assert Candidate.from_dict(entry | {"std": math.nan}) == candidate  # as version 0.1.0 wrote it
    untested = Candidate("trial 1", 1, {}, 3)
    json.dumps([entry, untested.to_dict()], allow_nan=False)


def test_the_interval_of_one_seed_covers_videos_only_in_files_of_every_version() -> None:
    run = {"seed": 0, "test": {"SumR": 200.0}}
    comparison = {"better": "trial 1", "than": "paper", "difference": 1.0, "interval": [0.5, 1.5]}
    entries = [{"name": name, "runs": [run]} for name in ("trial 1", "paper")]
    earlier = {"candidates": entries, "comparison": comparison | {"confidence": 0.95, "resamples": 100}}
    result = FinalResult.from_dict(earlier)
    assert result.comparison is not None and not result.comparison.covers_seeds
    written = result.to_dict()["comparison"]
    assert written["seeds"] == 1 and written["covers"] == "videos"
    entries[0]["runs"] = entries[1]["runs"] = [run, run]
    two = FinalResult.from_dict(earlier).comparison
    assert two is not None and two.covers_seeds and "covers" not in two.to_dict()
    assert Comparison.from_dict(two.to_dict() | {"seeds": 2}).to_dict()["covers"] == "videos and seeds"


def test_candidates_and_comparisons_survive_a_round_trip() -> None:
    runs = tuple(FinalRun(seed, 250.0 + seed, 3, None, make_test_result(200.0 + seed)) for seed in range(3))
    candidates = (
        Candidate("trial 1", 1, {"model.registers": 2}, 3, runs),
        Candidate("trial 1 with the paper's model.registers", 1, {"model.registers": 4}, 3, runs, "model.registers"),
        Candidate("paper", 0, {}, None, runs),
    )
    comparison = Comparison("trial 1", "paper", 1.5, (-1.0, 4.0), 0.95, 100)
    result = FinalResult(candidates, comparison, (comparison,))
    record = FinalRecord("test", "demo", "own splits", result, {"torch": "2"}, ("python -m dreamprvr_ray.tune",))
    assert FinalRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert result.paper is candidates[2] and result.comparisons == (comparison, comparison)
    assert [candidate.run_name(1) for candidate in candidates] == [
        "trial_001-seed_1",
        "trial_001-paper_model.registers-seed_1",
        "paper-seed_1",
    ]


def test_files_of_an_earlier_version_may_lack_keys() -> None:
    assert TrialRecord.from_dict({"number": 1, "state": "waiting"}) == TrialRecord(1, "waiting", None, None, 0, {})
    run = {"seed": 0, "test": {"SumR": 200.0}}
    result = FinalResult.from_dict({"candidates": [{"name": "paper", "runs": [run]}, {"name": "trial 1", "runs": []}]})
    (candidate,) = result.candidates
    assert candidate.is_paper and candidate.val_mean is None and result.chosen == candidate.runs[0]
    assert result.comparison is None and result.ablations == ()
    with pytest.raises(KeyError):
        FinalResult.from_dict({})


def test_a_trial_of_the_study_becomes_a_record() -> None:
    distribution = optuna.distributions.IntDistribution(0, 8)

    def trial(state: TrialState, curve: dict[int, float], values: list[float] | None = None, **attributes: Any) -> Any:
        frozen = optuna.trial.create_trial(
            state=state,
            values=values,
            params={"model.registers": 4},
            distributions={"model.registers": distribution},
            intermediate_values=curve,
            user_attrs=attributes,
        )
        frozen.number = 7
        return frozen

    running = TrialRecord.from_study(trial(TrialState.RUNNING, {1: 10.0, 2: 30.0, 3: 30.0, 4: math.nan}))
    assert (running.state, running.best_sumr, running.best_epoch) == ("running", 30.0, 2)
    assert (running.epochs, running.last_sumr, running.values) == (3, 30.0, {"model.registers": 4})
    assert running.best_until(1) == 10.0 and running.best_until(0) is None
    recorded = {"best_SumR": 40.0, "best_epoch": 5, "epochs": 6, "seconds": 12.5}
    finished = TrialRecord.from_study(trial(TrialState.COMPLETE, {}, [40.0], **recorded), ((5, 40.0), (6, 20.0)))
    assert (finished.best_sumr, finished.best_epoch, finished.epochs, finished.last_sumr) == (40.0, 5, 6, 20.0)
    assert finished.seconds == 12.5 and finished.cost is None and finished.is_trained
    failed = TrialRecord.from_study(trial(TrialState.FAIL, {}, reason="out of memory"))
    assert failed.error == "out of memory" and failed.best_sumr is None and not failed.is_trained
    retried = TrialRecord.from_study(trial(TrialState.RUNNING, {}, reason="out of memory"))
    assert retried.error is None
    assert set(STATES) == {state.name for state in TrialState}


def test_the_records_need_neither_ray_nor_torch_nor_optuna() -> None:
    code = "import sys, dreamprvr_ray.search.results; print(sorted({'ray', 'torch', 'optuna'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

"""The time that a search will still take: it counts down, also after a resume, and includes the final stage."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from support.searches import make_search, trial_epoch

from dreamprvr_ray.runtime.metrics import Gauges
from dreamprvr_ray.search import progress as progress_module
from dreamprvr_ray.search.messages import TrialEpoch, TrialRequest
from dreamprvr_ray.search.progress import FinalProgress, SearchProgress
from dreamprvr_ray.search.results import TrialRecord
from dreamprvr_ray.search.settings import FinalSettings
from dreamprvr_ray.search.study import SearchStudy
from dreamprvr_ray.search.time_left import Pace, epochs_left, final_epochs

EPOCHS = 9  # of `make_search`


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress_module.time, "monotonic", lambda: self.now)


def epoch_of(number: int, seconds: float = 10.0, finished: bool = False) -> TrialEpoch:
    epoch = trial_epoch(number, 100.0 + number, finished=finished)
    return replace(epoch, result=replace(epoch.result, seconds=seconds, planned_epochs=EPOCHS))


def train(study: SearchStudy, until: int = EPOCHS) -> TrialRequest:
    """Train the next trial for some epochs, and end it if they are all."""
    request = study.propose()
    assert request is not None
    for epoch in range(1, until + 1):
        study.report(request.number, epoch_of(epoch))
    if until == EPOCHS:
        study.finish(request.number, epoch_of(EPOCHS, finished=True))
    return request


def seconds_left(line: str) -> int:
    match = re.search(r"left: (?:(\d+) h )?(?:(\d+) min)?(?: ?(\d+) s)?", line)
    assert match, line
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def test_the_time_left_counts_down_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, lines = Clock(monkeypatch), []  # type: ignore[var-annotated]
    search = make_search(tmp_path, pruning={"enabled": False}, final={"top": 1, "seeds": 2})
    earlier = SearchStudy(search, tmp_path)
    for _ in range(6):
        train(earlier)
    train(earlier, until=3)  # interrupted
    study = SearchStudy(search, tmp_path)
    display = SearchProgress(study, lines.append, Gauges("demo"), lambda: 0)
    resumed = study.propose()
    assert resumed is not None and resumed.number == 6
    work = [(resumed, range(4, EPOCHS + 1))]
    left = []
    for request, epochs in work:
        for epoch in epochs:
            clock.now += 30.0  # more than the interval of the table
            study.report(request.number, epoch_of(epoch, seconds=30.0))
            display.update(0, {request.run: epoch_of(epoch, seconds=30.0)})
            left.append(seconds_left(lines[-1]))
    # In epochs: 5 of this trial, 9 of the next one, and 2 settings with 2 seeds of 9 each.
    assert left[0] == pytest.approx((5 + 9 + 36) * 30, abs=60)
    assert all(after < before for before, after in pairwise(left)), left
    study.finish(6, epoch_of(EPOCHS, finished=True))
    display.update(1, {})
    assert seconds_left(lines[-1]) == pytest.approx((9 + 36) * 30, abs=60) and "with the final stage" in lines[-1]
    train(study)
    clock.now += 9 * 30.0
    display.update(2, {"trial_007": epoch_of(EPOCHS, finished=True)})
    assert "8 of 8 trials ended" in lines[-1] and seconds_left(lines[-1]) > 60  # the final stage follows


def record(number: int, state: str, epochs: int) -> TrialRecord:
    return TrialRecord(number, state, 100.0, 1, epochs, {}, 100.0)  # type: ignore[arg-type]


def test_trials_are_expected_to_be_as_long_as_those_that_ended() -> None:
    ended = [record(0, "finished", 9), record(1, "pruned", 2), record(2, "pruned", 1)]
    assert epochs_left(ended, {}, planned=5, epochs=9) == 2 * 4
    assert epochs_left([*ended, record(3, "running", 1)], {}, planned=4, epochs=9) == 3
    assert epochs_left([*ended, record(3, "running", 1)], {3: 6}, planned=4, epochs=9) == 3  # it will finish
    assert epochs_left([*ended, record(3, "failed", 0)], {}, planned=4, epochs=9) == 0
    assert epochs_left([], {}, planned=4, epochs=9) == 36
    assert final_epochs(FinalSettings(top=2, seeds=3), ended, 20) == 3 * 3 * 9
    assert final_epochs(None, ended, 20) == 0


def test_the_start_of_trainings_does_not_count_for_every_epoch() -> None:
    pace = Pace()
    assert pace.seconds(10, 5.0, 0) is None
    pace.observe({"a": epoch_of(1, 2.0), "b": epoch_of(1, 2.0)}, 0)
    assert pace.seconds(10, 100.0, 2) == 10  # two at a time
    pace.observe({"b": epoch_of(3, 2.0)}, 1)
    assert pace.seconds(8, 40.0, 1) == 8 * 40 / 4


def test_the_final_stage_shows_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, lines = Clock(monkeypatch), []  # type: ignore[var-annotated]
    display = FinalProgress({"trial_005-seed_1": 9, "trial_000-seed_1": 9}, lines.append)
    clock.now += 5
    display.update(0, {"trial_005-seed_1": epoch_of(1)})
    assert lines == []
    clock.now += 25
    display.update(0, {"trial_005-seed_1": epoch_of(3)})
    assert lines == ["final stage: 0 of 2 runs ended, trial_005-seed_1 at epoch 3/9 | 30 s so far, left: 2 min 30 s"]
    clock.now += 10
    display.update(1, {"trial_005-seed_1": epoch_of(4, finished=True)})  # its patience ran out
    display.update(1, {"trial_000-seed_1": epoch_of(1)})
    clock.now += 30
    display.update(1, {"trial_000-seed_1": epoch_of(4)})
    assert lines[-1].startswith("final stage: 1 of 2 runs ended, trial_000-seed_1 at epoch 4/9 | 1 min 10 s so far")
    assert seconds_left(lines[-1]) == pytest.approx(5 * 70 / 8, abs=1)

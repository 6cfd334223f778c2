from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.searches import trial_epoch

from dreamprvr_ray.errors import UserError
from dreamprvr_ray.runtime.metrics import Gauges
from dreamprvr_ray.search.epoch_log import EpochLog
from dreamprvr_ray.search.layout import EPOCHS, read_epochs
from dreamprvr_ray.search.messages import TrialRequest

REQUEST = TrialRequest.for_trial(3, {"model.registers": 3})


def logged_epochs(runs: Path) -> list[int]:
    return [epoch["epoch"] for epoch in read_epochs(runs / "trial_003")]


def test_each_epoch_is_logged_once_despite_a_kill(tmp_path: Path) -> None:
    log = EpochLog(tmp_path, Gauges("demo"))
    for epoch in (1, 2):
        log.add(REQUEST, trial_epoch(epoch, 10.0 * epoch))
    log.close("trial_003")
    with (tmp_path / "trial_003" / EPOCHS).open("a") as file:
        file.write('{"epoch": 3, "Sum')  # killed here
    assert logged_epochs(tmp_path) == [1, 2]
    resumed = EpochLog(tmp_path, Gauges("demo"))
    for epoch in (2, 3):
        resumed.add(REQUEST, trial_epoch(epoch, 10.0 * epoch))
    resumed.close("trial_003")
    assert logged_epochs(tmp_path) == [1, 2, 3]
    assert read_epochs(tmp_path / "trial_003")[0] == trial_epoch(1, 10.0).to_dict()
    events = b"".join(path.read_bytes() for path in (tmp_path / "trial_003" / "tensorboard").glob("events*"))
    assert b"_hparams_/session_start_info" in events and b"model.registers" in events  # in TensorBoard's HPARAMS table


def test_a_run_without_a_log_has_no_epochs(tmp_path: Path) -> None:
    assert read_epochs(tmp_path) == []


def test_the_time_of_a_resumed_run_includes_that_before(tmp_path: Path) -> None:
    """Before, it was the time of the last session only."""

    def add(log: EpochLog, epoch: int, seconds: float) -> float:
        return log.add(REQUEST, replace(trial_epoch(epoch, 10.0), seconds_total=seconds)).seconds_total

    log = EpochLog(tmp_path, Gauges("demo"))
    assert [add(log, 1, 5.0), add(log, 2, 9.0)] == [5.0, 9.0]
    assert [add(log, 2, 1.0), add(log, 3, 6.0)] == [10.0, 15.0]  # started again by Ray Tune
    log.close("trial_003")
    resumed = EpochLog(tmp_path, Gauges("demo"))
    assert [add(resumed, 3, 0.5), add(resumed, 4, 4.0)] == [15.5, 19.0]
    assert [epoch["time_total_s"] for epoch in read_epochs(tmp_path / "trial_003")] == [5.0, 9.0, 15.0, 19.0]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    for damage in ('{"epoch": 1, "Su', "[]", "{}", '"epoch"', ""):
        (tmp_path / EPOCHS).write_text(f'{{"epoch": 1}}\n{damage}\n{{"epoch": 3}}\n')
        with pytest.raises(UserError, match=r"epochs\.jsonl, line 2: damaged; restore the file, or remove the line$"):
            read_epochs(tmp_path)

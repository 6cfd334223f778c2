from __future__ import annotations

from pathlib import Path

from support.searches import trial_epoch

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

from __future__ import annotations

from pathlib import Path

from support.searches import result

from dreamprvr_ray.runtime.metrics import Gauges
from dreamprvr_ray.search.epoch_log import Records
from dreamprvr_ray.search.layout import EPOCHS, read_epochs


def epochs(runs: Path) -> list[int]:
    return [each["epoch"] for each in read_epochs(runs / "trial_003")]


def test_every_epoch_is_kept_once_whatever_a_kill_repeats_or_cuts_off(tmp_path: Path) -> None:
    records = Records(tmp_path, Gauges("demo"))
    for epoch in (1, 2):
        records.add(
            "trial_003",
            result(epoch, 10.0 * epoch) | {"config/model.registers": 3, "hostname": "here"},
            {"model.registers": 3},
        )
    records.close("trial_003")
    with (tmp_path / "trial_003" / EPOCHS).open("a") as file:
        file.write('{"epoch": 3, "Sum')  # killed here
    assert epochs(tmp_path) == [1, 2]
    again = Records(tmp_path, Gauges("demo"))
    for epoch in (2, 3):
        again.add("trial_003", result(epoch, 10.0 * epoch), {"model.registers": 3})
    again.close("trial_003")
    assert epochs(tmp_path) == [1, 2, 3]
    assert (
        "hostname" not in read_epochs(tmp_path / "trial_003")[0]
        and "config/model.registers" not in read_epochs(tmp_path / "trial_003")[0]
    )
    events = b"".join(path.read_bytes() for path in (tmp_path / "trial_003" / "tensorboard").glob("events*"))
    assert (
        b"_hparams_/session_start_info" in events and b"model.registers" in events
    )  # its line in the table of hyperparameters


def test_a_run_without_records_has_no_epochs(tmp_path: Path) -> None:
    assert read_epochs(tmp_path) == []

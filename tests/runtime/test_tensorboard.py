"""TensorBoard's files: their content, and that a full disk neither blocks nor ends what writes them."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.searches import trial_epoch
from tensorboardX.event_file_writer import EventsWriter

from dreamprvr_ray.runtime.metrics import Gauges
from dreamprvr_ray.runtime.tensorboard import EventFile
from dreamprvr_ray.search.epoch_log import EpochLog
from dreamprvr_ray.search.layout import read_epochs
from dreamprvr_ray.search.messages import TrialRequest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_scalars_are_in_the_file_at_once(tmp_path: Path) -> None:
    events = EventFile(tmp_path / "tensorboard", print)
    events.add_scalars({"loss/nce": 0.5, "SumR": 100.0}, 1)
    (path,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    assert b"loss/nce" in path.read_bytes() and b"SumR" in path.read_bytes()
    events.close()
    events.add_scalars({"late": 1.0}, 2)
    events.close()
    assert b"late" not in path.read_bytes()


def test_a_full_disk_gives_one_warning_and_blocks_nothing(small_disk: Path) -> None:
    lines: list[str] = []

    def write() -> None:
        events = EventFile(small_disk / "tensorboard", lines.append)
        for epoch in range(1, 5000):
            events.add_scalars({f"name_{index}": 1.0 for index in range(10)}, epoch)
        events.close()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert len(lines) == 1 and "cannot be written: No space left on device; its curves end here" in lines[0]


def test_a_directory_that_cannot_be_made_gives_one_warning(tmp_path: Path) -> None:
    lines: list[str] = []
    (tmp_path / "tensorboard").write_text("a file")
    events = EventFile(tmp_path / "tensorboard", lines.append)
    events.add_scalars({"SumR": 1.0}, 1)
    events.close()
    assert len(lines) == 1 and lines[0].startswith(f"warning: {tmp_path / 'tensorboard'}: ")


def test_a_search_logs_its_epochs_although_tensorboard_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    lines: list[str] = []
    log = EpochLog(tmp_path, Gauges("demo"), lines.append)
    request = TrialRequest.for_trial(3, {"model.registers": 3})
    monkeypatch.setattr(EventsWriter, "write_event", fail)
    thread = threading.Thread(
        target=lambda: [log.add(request, trial_epoch(epoch, 10.0)) for epoch in range(1, 30)], daemon=True
    )
    thread.start()
    thread.join(timeout=30)
    assert not thread.is_alive() and len(lines) == 1
    assert len(read_epochs(tmp_path / "trial_003")) == 29
    log.close("trial_003")

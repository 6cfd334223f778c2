"""Messages between the first worker and the driver."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dreamprvr_ray.runtime.reporting import EpochFinished, Message, StartTimes, TrainingStarted, read_message
from dreamprvr_ray.training.reporter import EpochResult, StepTraffic

STARTED = TrainingStarted(workers=2, worker_entered=109.5, first_step=110.25)
RESULT = EpochResult(
    epoch=3,
    sumr=150.0,
    best_sumr=160.0,
    best_epoch=2,
    recall={1: 10.0, 5: 20.0, 10: 30.0, 100: 90.0},
    median_rank=7.5,
    ties=2,
    losses={"clip_nce": 2.0, "total": 1.25},
    learning_rate=1e-3,
    videos_per_second=12.0,
    seconds=10.0,
    seconds_left=95.0,
    waited=0.1,
    finished=False,
    gpu_bytes=10**9,
    traffic=StepTraffic(loss=1.9, gradients=140.2, video_tokens=63.0),
    planned_epochs=12,
)


def test_the_line_of_a_start() -> None:
    assert STARTED.line(StartTimes(command=100.0, ray=104.0)) == (
        "training started with 2 workers after 10.2 s (Python and Ray 4.0 s, workers 5.5 s, model and data 0.8 s)"
    )
    assert replace(STARTED, workers=1).line(None) == "training restarted with 1 worker (model and data 0.8 s)"


@pytest.mark.parametrize("message", [STARTED, EpochFinished(RESULT), EpochFinished(replace(RESULT, traffic=None))])
def test_a_message_is_read_as_it_was_sent(message: Message) -> None:
    assert read_message(message.to_dict()) == message


@pytest.mark.parametrize("message", [STARTED, EpochFinished(RESULT)])
def test_a_message_holds_plain_values_only(message: Message) -> None:
    """The queue's process would import torch for anything else."""
    assert json.loads(json.dumps(message.to_dict())) == message.to_dict()


def test_a_message_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(KeyError, match="other"):
        read_message({"kind": "other"})

"""What is said of an epoch, and the directory that keeps the last and the best checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dreamprvr_ray.training.reporter import DirectoryReporter, EpochResult, Sent, duration

REPORT = EpochResult(
    epoch=3,
    epochs=12,
    losses={"clip_nce": 2.0, "total": 1.23456},
    metrics={"R@1": 10.0, "R@5": 20.04, "R@10": 30.0, "R@100": 90.0, "median_rank": 7.5, "ties": 2, "by_moment": None},
    sumr=150.04,
    best_sumr=160.0,
    best_epoch=2,
    learning_rate=1e-3,
    videos_per_second=12.34,
    seconds=10.0,
    seconds_left=95.0,
    waited=0.1,
    gpu_bytes=None,
    sent=None,
    finished=False,
)


def test_the_line_of_an_epoch() -> None:
    assert REPORT.line() == (
        "epoch  3/12 | loss 1.2346 | val R 10.0 20.0 30.0 90.0 | SumR 150.0 (best 160.0 at 2) | 12.3 videos/s | 1 min 35 s left"
    )
    last = replace(REPORT, epoch=12, best_epoch=12, best_sumr=150.04, finished=True)
    assert "epoch 12/12" in last.line() and "(best so far)" in last.line() and last.line().endswith("| done")


def test_names_of_the_metrics() -> None:
    named = REPORT.to_dict()
    assert (
        named["epoch"] == 3
        and named["SumR"] == 150.04
        and named["best_SumR"] == 160.0
        and named["loss/total"] == 1.23456
    )
    assert {
        "R@1",
        "R@5",
        "R@10",
        "R@100",
        "median_rank",
        "ties",
        "loss/clip_nce",
        "finished",
        "learning_rate",
    } <= named.keys()
    assert not any(isinstance(value, dict) for value in named.values())
    sending = replace(REPORT, sent=Sent(loss=1.9, gradients=140.2, video_tokens=63.0))
    assert sending.to_dict() == named | {"sent_MB/loss": 1.9, "sent_MB/gradients": 140.2, "sent_MB/video_tokens": 63.0}
    line = "a worker sends 1.9 MB a step for the loss (63.0 MB if video tokens were gathered) and 140.2 MB of gradients"
    assert sending.sent is not None and sending.sent.line() == line


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (-1, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_directory_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    lines: list[str] = []
    reporter = DirectoryReporter(tmp_path / "run", lines.append)
    with reporter.latest_checkpoint() as nothing:
        assert nothing is None
    for epoch, best in ((1, 1), (2, 2), (3, 2)):
        report = replace(REPORT, epoch=epoch, best_epoch=best)
        reporter.report(
            report,
            lambda epoch=epoch: lambda directory: (directory / "metrics.json").write_text(f'{{"epoch": {epoch}}}'),
        )
    assert (tmp_path / "run" / "last" / "metrics.json").read_text() == '{"epoch": 3}'
    assert (tmp_path / "run" / "best" / "metrics.json").read_text() == '{"epoch": 2}'
    with reporter.latest_checkpoint() as latest:
        assert latest == tmp_path / "run" / "last"
    assert [report.epoch for report in reporter.reports] == [1, 2, 3]
    assert lines == [report.line() for report in reporter.reports]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best", "last"]

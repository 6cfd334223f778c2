"""Predict training steps and searches on more workers than there are here.

    python -m benchmarks.simulate --measure FILE [--hidden-size 384 --batch-videos 24]
    python -m benchmarks.simulate --fit FILE

`--measure` runs one and two workers with half a core each, fits the model of `benchmarks.step_model` to them, prints
what it predicts for three and four workers, and then measures these. It needs Linux, root and two quiet cores, and
takes about ten minutes. `--fit` repeats the fit and the comparison from the file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.step_prediction import WITHIN, Measurements, describe, measure
from dreamprvr_ray.command_line import Parser, print_json, print_progress, run
from dreamprvr_ray.config import load_experiment


def main(arguments: list[str]) -> None:
    options = build_parser().parse_args(arguments)
    if options.measure or options.fit:
        _compare(options)


def build_parser() -> Parser:
    parser = Parser("simulate", "Predict training steps and searches on many workers.", package="benchmarks")
    parser.add_argument("--measure", type=Path, metavar="FILE", help="measure one to four workers here, and write FILE")
    parser.add_argument("--fit", type=Path, metavar="FILE", help="a file that --measure wrote")
    parser.add_argument("--share", type=float, default=0.5, help="of a core for each worker (default: 0.5)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="steps per measurement (default: 3)")
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--batch-videos", type=int, default=24)
    return parser


def _compare(options: argparse.Namespace) -> None:
    if options.measure:
        changes = {
            "model.hidden_size": options.hidden_size,
            "training.batch_videos": options.batch_videos,
            "data.video_size": 384,
            "data.text_size": 384,
        }
        experiment = load_experiment("tvr", changes)
        found = measure(experiment, options.share, options.rounds, options.steps, options.measure, print_progress)
    else:
        found = Measurements.read(options.fit)
        print_progress(describe(found.fit()))
    predictions = found.predictions()
    for prediction in predictions:
        print(prediction.line())
    good = all(abs(prediction.error) <= WITHIN for prediction in predictions)
    print(f"within {WITHIN:.0%}: {'yes' if good else 'no'}")
    if options.json:
        print_json(
            {
                "predictions": [
                    {**vars(prediction), "error": round(prediction.error, 4)} for prediction in predictions
                ],
                "within": good,
                "model": vars(found.fit()),
            }
        )


if __name__ == "__main__":
    run(main)

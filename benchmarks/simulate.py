"""Predict training steps and searches on more workers than there are here.

    python -m benchmarks.simulate [--set network_gb_s=100 ...]
    python -m benchmarks.simulate --measure FILE [--hidden-size 384 --batch-videos 24]
    python -m benchmarks.simulate --fit FILE

The first prints trainings and searches on 1 to 64 nodes of 8 GPUs (`benchmarks.scale`; docs/scale.md explains them),
from constants that `--set` changes and `--constants` lists with their origin.

`--measure` runs one and two workers with half a core each, fits the model of `benchmarks.step_model` to them, prints
what it predicts for three and four workers, and then measures these. It needs Linux, root and two quiet cores, and
takes about ten minutes. `--fit` repeats the fit and the comparison from the file.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from benchmarks.scale import BATCH, GPUS, NODES, search, search_line, training, training_line
from benchmarks.scale_constants import CONSTANTS, constants
from benchmarks.step_prediction import WITHIN, Measurements, describe, measure
from dreamprvr_ray.command_line import Parser, print_json, print_progress, run
from dreamprvr_ray.config import load_experiment, parse_overrides


def main(arguments: list[str]) -> None:
    options = build_parser().parse_args(arguments)
    if options.measure or options.fit:
        _compare(options)
    elif options.constants:
        for name, constant in CONSTANTS.items():
            print(f"{name} = {constant.value:g} {constant.unit} ({constant.basis}): {constant.source}")
    else:
        _predict(options)


def build_parser() -> Parser:
    parser = Parser("simulate", "Predict training steps and searches on many workers.", package="benchmarks")
    parser.add_argument("--measure", type=Path, metavar="FILE", help="measure one to four workers here, and write FILE")
    parser.add_argument("--fit", type=Path, metavar="FILE", help="a file that --measure wrote")
    parser.add_argument("--constants", action="store_true", help="list the constants that --set changes")
    parser.add_overrides()
    parser.add_argument("--share", type=float, default=0.5, help="of a core for each worker (default: 0.5)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="steps per measurement (default: 3)")
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--batch-videos", type=int, default=24)
    return parser


def _predict(options: argparse.Namespace) -> None:
    values = constants(parse_overrides(options.set))
    counts = [1, *(nodes * GPUS for nodes in NODES)]
    print(f"one batch of {BATCH} videos, divided:")
    divided = [training(values, gpus, BATCH) for gpus in counts]
    print(*map(training_line, divided), sep="\n")
    print(f"{BATCH} videos for each GPU:")
    grown = [training(values, gpus, BATCH * gpus) for gpus in counts]
    print(*map(training_line, grown), sep="\n")
    print("searches:")
    searches = []
    for gpus_per_trial in (1, GPUS):
        for nodes in NODES:
            searches.append(search(values, nodes, gpus_per_trial, BATCH * gpus_per_trial))
            print(search_line(searches[-1]), flush=True)
    if options.json:
        print_json(
            {
                "constants": values,
                "divided": [asdict(row) for row in divided],
                "grown": [asdict(row) for row in grown],
                "searches": [asdict(row) for row in searches],
            }
        )


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

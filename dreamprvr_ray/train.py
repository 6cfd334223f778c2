"""`python -m dreamprvr_ray.train`: trains one experiment in Ray Train workers."""

from __future__ import annotations

import sys
from pathlib import Path

from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.config import load_experiment, parse_overrides
from dreamprvr_ray.errors import UserError


def main(arguments: list[str]) -> None:
    parser = Parser("train", "Train one experiment in Ray Train workers; the best checkpoint by val SumR ends up in OUT/best.")
    parser.add_argument("--config", required=True, help="a preset (tvr, activitynet, charades, demo) or a YAML file")
    parser.add_argument("--shards", type=Path, help="what `convert` wrote")
    parser.add_argument("--out", type=Path, help="the run's new directory")
    parser.add_argument("--workers", type=int, default=1, help="data-parallel workers; a GPU each where there are enough")
    parser.add_argument("--resume", action="store_true", help="go on with the run in OUT")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its cost, and train nothing")
    parser.add_overrides()
    options = parser.parse_args(arguments)
    experiment = load_experiment(options.config, parse_overrides(options.set))
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: must be at least 1")
    if options.dry_run:
        from dreamprvr_ray.cost import estimate  # torch takes seconds to import: after the mistakes

        cost = estimate(experiment)
        print("\n".join([f"config: {options.config}", *(f"{key} = {value}" for key, value in experiment.flat().items()), *cost.lines()]))
        if options.json:
            print_json(cost.named())
        return
    if options.shards is None or options.out is None:
        raise UserError("--shards and --out are needed (only --dry-run does without)")
    from dreamprvr_ray.workers import train  # so does Ray

    metrics = train(
        experiment, options.shards, options.out, options.workers, resume=options.resume, say=lambda line: print(line, file=sys.stderr, flush=True)
    )
    best = options.out / "best"
    print(f"best epoch {metrics['best_epoch']}: val SumR {metrics['best_SumR']:.1f}, checkpoint {best}")
    if options.json:
        print_json(metrics | {"checkpoint": str(best)})


if __name__ == "__main__":
    run(main)

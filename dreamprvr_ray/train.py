"""`python -m dreamprvr_ray.train`: trains one experiment in Ray Train workers."""

from __future__ import annotations

import sys
import threading
import time
from importlib import import_module

from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.config import Experiment, load_experiment, parse_overrides
from dreamprvr_ray.errors import UserError, redact


def main(arguments: list[str]) -> None:
    began = time.time()
    parser = Parser(
        "train", "Train one experiment in Ray Train workers; the best checkpoint by val SumR ends up in OUT/best."
    )
    parser.add_argument("--config", required=True, help="a preset (tvr, activitynet, charades, demo) or a YAML file")
    parser.add_argument("--shards", help="what `convert` wrote: a folder, or a URI as s3://bucket/shards")
    parser.add_argument("--out", help="the run's new directory, or a URI as s3://bucket/run")
    parser.add_argument(
        "--workers",
        default="1",
        help="data-parallel workers, a GPU each where there are enough; 2:8: from two to eight, as there is room",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in OUT")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its cost, and train nothing")
    parser.add_overrides(("configuration keys (docs/configuration.md explains them in full):", Experiment))
    options = parser.parse_args(arguments)
    experiment = load_experiment(options.config, parse_overrides(options.set))
    from dreamprvr_ray.runtime.resources import WorkerCount

    workers = WorkerCount.parse(options.workers)
    if options.dry_run:
        from dreamprvr_ray.training.cost import estimate

        cost = estimate(experiment)
        print(
            "\n".join(
                [
                    f"config: {options.config}",
                    *(f"{key} = {value}" for key, value in experiment.flat().items()),
                    *cost.lines(),
                ]
            )
        )
        if options.json:
            print_json(cost.to_dict())
        return
    if options.shards is None or options.out is None:
        raise UserError("--shards and --out are needed (only --dry-run does without)")

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    from dreamprvr_ray.runtime.session import ray_session

    threading.Thread(target=_import_torch, daemon=True).start()  # while Ray's processes start
    with ray_session(dashboard=False):
        from dreamprvr_ray.runtime.train_run import train

        try:
            metrics = train(
                experiment, options.shards, options.out, workers, resume=options.resume, say=say, began=began
            )
        except KeyboardInterrupt:
            say(f"to go on, add --resume to the same command (the run is in {redact(options.out)})")
            raise
    best = f"{options.out.rstrip('/')}/best"
    print(f"best epoch {metrics['best_epoch']}: val SumR {metrics['best_SumR']:.1f}, checkpoint {best}")
    if options.json:
        print_json(metrics | {"checkpoint": best})


def _import_torch() -> None:
    """Imports what takes seconds and is not Ray's: modules of Ray import each other in circles, which two threads must not do at once."""
    for name in ("dreamprvr_ray.training.loop", "pandas"):
        import_module(name)


if __name__ == "__main__":
    run(main)

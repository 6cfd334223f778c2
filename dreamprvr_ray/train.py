"""`python -m dreamprvr_ray.train`: train one model in Ray Train workers."""

from __future__ import annotations

import threading
import time
from importlib import import_module

from dreamprvr_ray.command_line import Parser, print_json, print_progress, run
from dreamprvr_ray.config import Experiment, load_experiment, parse_overrides
from dreamprvr_ray.data.locations import one_or_several
from dreamprvr_ray.errors import UserError, redact_uri
from dreamprvr_ray.yaml_files import format_value


def main(arguments: list[str]) -> None:
    started = time.time()
    options = _parser().parse_args(arguments)
    experiment = load_experiment(options.config, parse_overrides(options.set))
    from dreamprvr_ray.runtime.resources import WorkerCount

    workers = WorkerCount.parse(options.workers)
    if options.dry_run:
        _print_plan(options.config, experiment, options.json)
        return
    shards = options.shards and one_or_several(options.shards)
    if shards is None or options.out is None:
        raise UserError("--shards and --out are required, except with --dry-run")
    from dreamprvr_ray.runtime.run_directory import check_locations

    check_locations(shards, options.out, options.resume)
    from dreamprvr_ray.runtime.session import ray_session

    threading.Thread(target=_import_torch, daemon=True).start()  # while Ray's processes start
    with ray_session(dashboard=False, log=print_progress):
        from dreamprvr_ray.runtime.train_run import train
        from dreamprvr_ray.training.reporter import EpochResult

        try:
            metrics = train(
                experiment,
                shards,
                options.out,
                workers,
                resume=options.resume,
                log=print_progress,
                command_started=started,
            )
        except KeyboardInterrupt:
            print_progress(f"to continue, add --resume to the same command (the run is in {redact_uri(options.out)})")
            raise
    checkpoint, result = f"{redact_uri(options.out).rstrip('/')}/best", EpochResult.from_dict(metrics)
    print(f"best epoch {result.best_epoch}: val SumR {result.best_sumr:.1f}, checkpoint {checkpoint}")
    if options.json:
        print_json(metrics | {"checkpoint": checkpoint})


def _parser() -> Parser:
    parser = Parser("train", "Train one model in Ray Train workers. OUT/best is the best checkpoint by val SumR.")
    parser.add_argument("--config", required=True, help="a preset (tvr, activitynet, charades, demo) or a YAML file")
    parser.add_argument(
        "--shards",
        nargs="+",
        help="output of `convert`: a directory, or a URI such as s3://bucket/shards; those of several collections of "
        "one encoder are trained on together; required except with --dry-run",
    )
    parser.add_argument(
        "--out", help="new directory for the run, or a URI such as s3://bucket/run; required except with --dry-run"
    )
    parser.add_argument(
        "--workers",
        default="1",
        metavar="N or MIN:MAX",
        help="data-parallel workers, each with a GPU if there are enough; 2:8 uses two to eight, as many as fit "
        "(default: 1)",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in OUT")
    parser.add_argument("--dry-run", action="store_true", help="print the configuration and its cost without training")
    parser.add_overrides(("configuration keys (docs/configuration.md explains them in full):", Experiment))
    return parser


def _print_plan(config: str, experiment: Experiment, json: bool) -> None:
    from dreamprvr_ray.training.cost import estimate

    cost = estimate(experiment)
    print(f"config: {config}")
    for key, value in experiment.flat().items():
        print(f"{key} = {format_value(value)}")
    print("\n".join(cost.lines()))
    if json:
        print_json(cost.to_dict())


def _import_torch() -> None:
    """Import the slow modules that are not Ray's:

    Ray's import each other in cycles, so two threads must not import them at once.
    """
    for name in ("dreamprvr_ray.training.loop", "pandas"):
        import_module(name)


if __name__ == "__main__":
    run(main)

"""`python -m dreamprvr_ray.tune`: search a space with Ray Tune and Optuna, and evaluate the best model once on test."""

from __future__ import annotations

from typing import Any

from dreamprvr_ray.command_line import Parser, print_json, print_progress, run
from dreamprvr_ray.config import Experiment, parse_overrides
from dreamprvr_ray.data.locations import one_or_several
from dreamprvr_ray.errors import SearchInterrupted, redact_uri
from dreamprvr_ray.search.settings import SearchSettings
from dreamprvr_ray.search.space import Search, load_search
from dreamprvr_ray.storage.location import local_file


def main(arguments: list[str]) -> None:
    parser = Parser(
        "tune", "Search a space. The best model by val SumR is written to OUT/best and evaluated once on test."
    )
    parser.add_argument(
        "--space", type=local_file, required=True, help="YAML file of a search; search_spaces/ has examples"
    )
    parser.add_argument(
        "--shards",
        nargs="+",
        help="directory or URI of the shards written by `convert`, or those of several collections of one encoder; "
        "overrides the file's",
    )
    parser.add_argument("--out", help="directory or URI of the search, which must be new; overrides the file's")
    parser.add_argument("--trials", type=int, help="number of trials; overrides the file's")
    parser.add_argument("--resume", action="store_true", help="continue the search in OUT")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and the cost of a trial without training"
    )
    parser.add_overrides(
        ("search-file keys (docs/configuration.md explains them in full):", SearchSettings),
        ("configuration keys, which `space` may search or fix:", Experiment),
    )
    options = parser.parse_args(arguments)
    overrides = parse_overrides(options.set)
    overrides |= {key: value for key in ("out", "trials") if (value := getattr(options, key)) is not None}
    if options.shards is not None:
        overrides["shards"] = one_or_several(options.shards)
    search = load_search(options.space, overrides)
    if options.dry_run:
        _print_plan(search, options.json)
    else:
        _run(search, options.resume, options.json)


def _print_plan(search: Search, json: bool) -> None:
    from dreamprvr_ray.runtime.session import ray_session
    from dreamprvr_ray.search import ablation_table, presentation
    from dreamprvr_ray.search.plan import plan_trials
    from dreamprvr_ray.search.preconditions import planned_sizes
    from dreamprvr_ray.training.cost import estimate

    search, sizes_from = planned_sizes(search)
    with ray_session(dashboard=False, log=print_progress):
        plan = plan_trials(search)
    if search.table.rows:
        lines, values = ablation_table.plan_lines(search, plan, sizes_from), ablation_table.plan_dict(search, plan)
    else:
        cost = estimate(search.experiment)
        lines = presentation.plan_lines(search, plan, cost, sizes_from)
        values = presentation.plan_dict(search, plan, cost)
    _print(lines, values, json)


def _run(search: Search, resume: bool, json: bool) -> None:
    search.check_shards()  # before the imports, which take seconds
    run_all = _run_ablations if search.table.rows else _run_search
    try:
        lines, values = run_all(search, resume)
    except (KeyboardInterrupt, SearchInterrupted):
        print_progress(
            f"to continue, add --resume to the same command (what has finished is in {redact_uri(search.settings.out)})"
        )
        raise
    _print(lines, values, json)


def _run_search(search: Search, resume: bool) -> tuple[list[str], dict[str, Any]]:
    from dreamprvr_ray.search.driver import run_search
    from dreamprvr_ray.search.presentation import outcome_dict, outcome_lines

    outcome = run_search(search, resume=resume, log=print_progress)
    return outcome_lines(search, outcome), outcome_dict(outcome)


def _run_ablations(search: Search, resume: bool) -> tuple[list[str], dict[str, Any]]:
    from dreamprvr_ray.search.ablation_table import outcome_lines
    from dreamprvr_ray.search.ablations import run_ablations

    result = run_ablations(search, resume=resume, log=print_progress)
    return outcome_lines(search, result), result.to_dict()


def _print(lines: list[str], values: dict[str, Any], json: bool) -> None:
    print("\n".join(lines))
    if json:
        print_json(values)


if __name__ == "__main__":
    run(main)

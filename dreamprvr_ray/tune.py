"""`python -m dreamprvr_ray.tune`: searches a space with Ray Tune and Optuna, and evaluates the winner once on test."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from dreamprvr_ray.command_line import Parser, print_json, run
from dreamprvr_ray.config import Experiment, parse_overrides
from dreamprvr_ray.errors import UserError, redact
from dreamprvr_ray.search.settings import SearchSettings
from dreamprvr_ray.search.space import Search, load_search


def main(arguments: list[str]) -> None:
    parser = Parser("tune", "Search a space; the winner by val SumR ends up in OUT/best and is evaluated once on test.")
    parser.add_argument("--space", type=Path, required=True, help="a search's YAML file, as in search_spaces/")
    parser.add_argument("--shards", help="what `convert` wrote, instead of the file's")
    parser.add_argument("--out", help="the search's new directory or URI, instead of the file's")
    parser.add_argument("--trials", type=int, help="the number of trials, instead of the file's")
    parser.add_argument("--resume", action="store_true", help="go on with the search in OUT")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its cost, and train nothing")
    parser.add_overrides(
        ("search-file keys (docs/configuration.md explains them in full):", SearchSettings),
        ("configuration keys, which `space` may search or fix:", Experiment),
    )
    options = parser.parse_args(arguments)
    overrides = parse_overrides(options.set)
    overrides |= {
        key: getattr(options, key) for key in ("shards", "out", "trials") if getattr(options, key) is not None
    }
    search = load_search(options.space, overrides)
    if options.dry_run:
        _print_plan(search, options.json)
        return
    _require_shards(search)
    from dreamprvr_ray.search.driver import run_search

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        outcome = run_search(search, resume=options.resume, say=say)
    except KeyboardInterrupt:
        say(f"to go on, add --resume to the same command (the search is in {redact(search.settings.out)})")
        raise
    from dreamprvr_ray.evaluation.test_record import described
    from dreamprvr_ray.search.summary import describe_final, format_table

    print("\n".join(format_table(outcome.entries, [parameter.key for parameter in search.parameters])))
    for entry in outcome.entries:
        if entry.error:
            print(f"trial {entry.number} failed: {entry.error}")
    winner = outcome.entries[0]
    print(f"winner: trial {winner.number}, val SumR {winner.best_sumr:.1f} at epoch {winner.best_epoch}")
    if outcome.final:
        print("\n".join(describe_final(outcome.final)))
    best: dict[str, Any] = {
        "trial": winner.number,
        "val_SumR": winner.best_sumr,
        "epoch": winner.best_epoch,
        "values": winner.values,
    }
    model = f"trial {winner.number}"
    if outcome.final:
        candidate, run = outcome.final.candidates[0], outcome.final.chosen
        best = {
            "trial": candidate.trial,
            "seed": run.seed,
            "val_SumR": run.val_sumr,
            "epoch": run.best_epoch,
            "values": candidate.values,
        }
        model = f"{candidate.name}, seed {run.seed}"
    print(f"the chosen model: {outcome.best} ({model})")
    print("\n".join(described(outcome.test)))
    print(f"what was found, with pictures: python -m dreamprvr_ray.report {redact(search.settings.out)}")
    if options.json:
        states = [entry.state for entry in outcome.entries]
        counts = {state: states.count(state) for state in ("finished", "pruned", "failed")}
        best["checkpoint"] = str(outcome.best)
        final = {"final": outcome.final.to_dict()} if outcome.final else {}
        print_json({"trials": len(states)} | counts | {"best": best, "test": outcome.test} | final)


def _print_plan(search: Search, json: bool) -> None:
    from dreamprvr_ray.runtime.session import ray_session
    from dreamprvr_ray.search.plan import plan_trials
    from dreamprvr_ray.search.presentation import plan_lines
    from dreamprvr_ray.training.cost import estimate

    with ray_session(dashboard=False):
        plan = plan_trials(search)
    cost = estimate(search.experiment)
    print("\n".join(plan_lines(search, plan, cost)))
    if json:
        print_json(
            cost.to_dict()
            | {"trials": search.settings.trials, "at_a_time": plan.at_a_time, "workers": plan.group.workers}
        )


def _require_shards(search: Search) -> None:
    """Names the command that makes the shards where they are missing."""
    shards = search.settings.shards
    if "://" in shards or (Path(shards) / "manifest.json").exists():
        return
    source = search.settings.source
    hint = f"; make them with: {source.convert_command(shards)}" if source else ""
    raise UserError(f"{shards}: no feature shards there{hint}")


if __name__ == "__main__":
    run(main)

"""`python -m dreamprvr_ray.evaluate`: evaluate a checkpoint's retrieval on a split."""

from __future__ import annotations

from pathlib import Path

from dreamprvr_ray.checkpoints.locate import load_trained_model
from dreamprvr_ray.command_line import Parser, print_json, print_progress, run
from dreamprvr_ray.data.cache import local_shards
from dreamprvr_ray.errors import UserError
from dreamprvr_ray.evaluation.metrics import mean_evaluation, table_lines
from dreamprvr_ray.evaluation.query_results import QueryResult, check_new_file, write_query_results
from dreamprvr_ray.evaluation.test_record import evaluate_checkpoint, evaluate_each
from dreamprvr_ray.storage.location import Storage
from dreamprvr_ray.training.encoding_cost import measure_encoding_cost


def main(arguments: list[str]) -> None:
    parser = Parser(
        "evaluate", "Evaluate the retrieval of a checkpoint on a split. Every evaluation on test is recorded with it."
    )
    parser.add_argument(
        "--checkpoint", required=True, help="checkpoint directory or URI, or a checkpoint file of the authors' release"
    )
    parser.add_argument(
        "--shards",
        nargs="+",
        required=True,
        help="output of `convert`: a directory or a URI like s3://bucket/shards; several give a table with the mean",
    )
    parser.add_argument("--split", choices=("val", "test"), required=True, help="split to evaluate on")
    parser.add_argument(
        "--queries",
        type=Path,
        metavar="FILE.jsonl",
        help="new file with a line of JSON per query: its id, sentence and video, the rank of the video, and the five"
        " best videos with their scores",
    )
    parser.add_argument(
        "--cost",
        action="store_true",
        help="also measure the model: parameters, GFLOP and time to encode a video and a query on this machine, and"
        " the memory of an encoded video",
    )
    options = parser.parse_args(arguments)
    if options.queries is not None:
        check_new_file(options.queries)
    if len(options.shards) > 1:
        for name in ("queries", "cost"):
            if getattr(options, name):
                raise UserError(f"--{name}: needs the shards of a single collection")
        _evaluate_each(options.checkpoint, options.shards, options.split, options.json)
        return
    results: list[QueryResult] = []
    checkpoint, shards = Storage.of(options.checkpoint), local_shards(options.shards[0])
    evaluation = evaluate_checkpoint(
        checkpoint,
        shards,
        options.split,
        _warn_unrecorded,
        on_queries=None if options.queries is None else results.extend,
        on_note=print_progress,
    )
    print("\n".join(evaluation.lines()), flush=True)
    if options.queries is not None:
        write_query_results(options.queries, results)
    values = evaluation.to_dict()
    if options.cost:
        frame_counts = shards.split(options.split).frame_counts
        cost = measure_encoding_cost(load_trained_model(checkpoint), frame_counts)
        print("\n".join(cost.lines()), flush=True)
        values["cost"] = cost.to_dict()
    if options.json:
        print_json(values)


def _evaluate_each(checkpoint: str, locations: list[str], split: str, json: bool) -> None:
    shards = [local_shards(location) for location in locations]
    evaluations = evaluate_each(Storage.of(checkpoint), shards, split, _warn_unrecorded, print_progress)
    print("\n".join(table_lines(evaluations)), flush=True)
    for each in evaluations:
        if each.reading is not None and each.reading.number > 1:
            print_progress(
                f"note: this model has been evaluated on test of {each.collection} {each.reading.number} times; do not"
                " use test to choose between models"
            )
    if json:
        mean = mean_evaluation(evaluations).retrieval.to_dict()
        print_json({"evaluations": [each.to_dict() for each in evaluations], "mean": mean})


def _warn_unrecorded(reason: str) -> None:
    print_progress(f"warning: this test evaluation could not be recorded: {reason}")


if __name__ == "__main__":
    run(main)
